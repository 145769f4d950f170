"""The masks that one model draws into the boxes of many detectors (paper, section 3.3, table 1 and figure 4).

Everything but the boxes stays equal, so that a difference in mask AP is the boxes' doing.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from matplotlib import pyplot as plt
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from meinst_d2.evaluation.coco import MEInstCOCOEvaluator
from meinst_d2.evaluation.results import DetectedBoxes, boxes_of
from meinst_d2.files import atomic_path

matplotlib.use("Agg")

EXAMPLE_CONFIG = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"


@dataclass(frozen=True)
class SwapResult:
    """What came of one source of boxes.

    Attributes:
        name: of the source.
        box, mask: Detectron2's results, ``{"AP": ..., "AP50": ...}``, in percent.
        scores: of all boxes, in any order.
        num_images: evaluated.
    """

    name: str
    box: Mapping[str, float]
    mask: Mapping[str, float]
    scores: np.ndarray
    num_images: int

    def boxes_per_image(self, threshold: float) -> float:
        """The mean number of boxes of an image that score above ``threshold``."""
        return float((self.scores > threshold).sum() / self.num_images)


def require_mask_head(cfg: CfgNode, num_classes: int) -> None:
    """Raise a ValueError unless the model of ``cfg`` draws masks of ``num_classes`` classes into given boxes."""
    name = cfg.MODEL.META_ARCHITECTURE
    inference = getattr(dict(META_ARCH_REGISTRY).get(name), "inference", None)
    if inference is None or "detected_instances" not in inspect.signature(inference).parameters:
        fix = f"give a config of GeneralizedRCNN, such as {EXAMPLE_CONFIG}"
        raise ValueError(f"MODEL.META_ARCHITECTURE {name} does not take boxes that others found: {fix}")
    if not cfg.MODEL.MASK_ON:
        raise ValueError(f"MODEL.MASK_ON is False, the model has no mask head: give a config such as {EXAMPLE_CONFIG}")
    known = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if num_classes != known:
        fix = "name the dataset that the model was trained for"
        raise ValueError(f"MODEL.ROI_HEADS.NUM_CLASSES is {known}, the dataset needs {num_classes}: {fix}")


def in_network_pixels(found: DetectedBoxes, image_size: tuple[int, int], network_size: tuple[int, int]) -> Instances:
    """Boxes as ``GeneralizedRCNN.inference`` takes them: clipped to the image, scaled to the size the network sees.

    Args:
        found: in pixels of the original image.
        image_size, network_size: (height, width).

    Returns:
        ``pred_boxes``, ``scores`` and ``pred_classes`` of the boxes that are not empty once clipped.
    """
    boxes = Boxes(torch.from_numpy(found.xyxy).clone())
    boxes.clip(image_size)
    boxes.scale(network_size[1] / image_size[1], network_size[0] / image_size[0])
    scores, classes = torch.from_numpy(found.scores), torch.from_numpy(found.classes)
    return Instances(network_size, pred_boxes=boxes, scores=scores, pred_classes=classes)[boxes.nonempty()]


@torch.no_grad()
def masks_in_boxes(model: nn.Module, inputs: Mapping[str, Any], found: DetectedBoxes | None) -> Instances:
    """The detections of one image at its original size, masks included.

    Args:
        model: a GeneralizedRCNN in evaluation mode.
        inputs: ``image`` (3, H, W) at the network's size, ``height`` and ``width`` of the original.
        found: the boxes to draw masks into; None for the model's own.
    """
    given = None
    if found is not None:
        network_size = (inputs["image"].shape[1], inputs["image"].shape[2])
        given = [in_network_pixels(found, (inputs["height"], inputs["width"]), network_size)]
    return model.inference([inputs], detected_instances=given)[0]["instances"].to("cpu")


def swap_boxes(
    model: nn.Module,
    loader: DataLoader[Any],
    sources: Mapping[str, Mapping[Hashable, DetectedBoxes] | None],
    dataset_name: str,
    *,
    output_dir: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> list[SwapResult]:
    """Evaluate a model on the boxes of every source, image by image.

    Args:
        model: a GeneralizedRCNN in evaluation mode.
        loader: of a whole dataset, one image a batch.
        sources: boxes by image id for every name; None for the model's own. An image that a source does not know has
            no boxes.
        dataset_name: registered; its annotations are the ground truth.
        output_dir: Detectron2's result files go into a folder per source below it; None writes none.
        limit: evaluate the first images only.

    Returns:
        In the order of the sources.
    """
    evaluator = MEInstCOCOEvaluator(dataset_name, distributed=False, output_dir=output_dir and os.fspath(output_dir))
    evaluators, scores = {}, {name: [np.zeros(0, np.float32)] for name in sources}
    for name in sources:
        evaluators[name] = copy.copy(evaluator)  # shares the ground truth, which is read once
        evaluators[name]._output_dir = output_dir and os.path.join(output_dir, name)
        evaluators[name].reset()
    image_ids = []
    for (inputs,) in tqdm(itertools.islice(loader, limit), desc="images", unit="image", total=limit or len(loader)):
        image_ids.append(inputs["image_id"])
        for name, boxes in sources.items():
            found = None if boxes is None else boxes.get(inputs["image_id"], boxes_of([], {}))
            instances = masks_in_boxes(model, inputs, found)
            scores[name].append(instances.scores.numpy())
            evaluators[name].process([inputs], [{"instances": instances}])
    evaluated = {name: evaluators[name].evaluate(None if limit is None else image_ids) for name in sources}
    return [
        SwapResult(name, result["bbox"], result["segm"], np.concatenate(scores[name]), len(image_ids))
        for name, result in evaluated.items()
    ]


def draw_swaps(path: str | os.PathLike[str], results: Sequence[SwapResult], threshold: float) -> None:
    """The paper's figure 4: box AP against mask AP, and how many boxes a threshold leaves; ``threshold`` is marked."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    thresholds = np.linspace(0, 1, 101)
    for result in results:
        at = result.box["AP"], result.mask["AP"]
        left.plot(*at, "o")
        left.annotate(result.name, at, (5, 5), textcoords="offset points", fontsize=9)
        right.plot(thresholds, [result.boxes_per_image(t) for t in thresholds], label=result.name)
    left.set(xlabel="box AP", ylabel="mask AP")
    left.margins(0.2)
    right.axvline(threshold, color="gray", linestyle=":", linewidth=1)
    right.set(xlabel="score threshold", ylabel="boxes per image", ylim=(0, None))
    right.legend()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
