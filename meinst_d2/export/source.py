"""What is exported: a model, and what a program needs to know to use it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from detectron2.data import transforms as T

from meinst_d2.model_zoo.trained import TrainedModel
from meinst_d2.modeling.meta_arch import MEInstDetector


@dataclass(frozen=True)
class ExportSource:
    """A model with its metadata.

    Attributes:
        model: in evaluation mode, float32, on the CPU.
        metadata: texts by name: class_names (JSON list), mask_size, input_format, size_divisibility, min_size_test,
            max_size_test, score_threshold, paste_box.
        notes: sentences that the user should read.
    """

    model: MEInstDetector
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()


def make_source(trained: TrainedModel) -> ExportSource:
    """A trained model for export.

    Args:
        trained: its model is changed: float32, on the CPU.

    Raises:
        ValueError: the model is not of a kind that can be exported.
    """
    model, resize = trained.model, trained.resize
    if not isinstance(model, MEInstDetector):
        raise ValueError(
            f"{type(model).__name__} cannot be exported: only MODEL.META_ARCHITECTURE MEInstDetector can; run others "
            "with Detectron2's DefaultPredictor"
        )
    if not isinstance(resize, T.ResizeShortestEdge):
        raise ValueError("only models that are tested with the single augmentation ResizeShortestEdge can be exported")
    notes = list(trained.notes)
    if model.precision != "float32":
        notes.append(f"the model computes in {model.precision}; the exported one computes in float32")
        model.precision = "float32"
    encoder = model.proposal_generator.mask_encoder
    if encoder is not None and not encoder.is_fitted:
        raise ValueError("the model has no mask components: give --weights that hold them, or MODEL.MEINST.COMPONENTS")
    metadata = {
        "class_names": json.dumps(trained.class_names),
        "mask_size": str(encoder.mask_size if encoder is not None else 0),
        "input_format": trained.image_format,
        "size_divisibility": str(max(model.backbone.size_divisibility, 1)),
        "min_size_test": str(resize.short_edge_length[0]),
        "max_size_test": str(resize.max_size),
        "score_threshold": str(model.proposal_generator.inference_rule.score_thresh),
        "paste_box": model.mask_paste_box,
    }
    return ExportSource(model.float().cpu().eval(), metadata, tuple(notes))
