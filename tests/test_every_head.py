"""Every distinct model of configs/, at tiny size, learns from a batch and predicts."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from meinst_d2.encoding import FittedEncoder
from tests.conftest import ROOT
from tests.models import fit_to_blobs, image_with, load_cfg

SMALL = (
    *("MODEL.WEIGHTS", "", "MODEL.PIXEL_STD", [57.375, 57.12, 58.395], "MODEL.BACKBONE.FREEZE_AT", 0),
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.NORM", "GN", "MODEL.RESNETS.NUM_GROUPS", 1),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", 64, "MODEL.RESNETS.STRIDE_IN_1X1", True, "MODEL.FPN.OUT_CHANNELS", 32),
    *("MODEL.RETINANET.NUM_CLASSES", 6, "MODEL.RETINANET.IN_FEATURES", ["p3", "p4", "p5"]),
    *("MODEL.RETINANET.NUM_CONVS", 1, "MODEL.RETINANET.PRIOR_PROB", 0.3),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64]]),
    *("MODEL.MEINST.NUM_CLASSES", 6, "MODEL.MEINST.IN_FEATURES", ["p3", "p4", "p5"], "MODEL.MEINST.TOP_LEVELS", 0),
    *("MODEL.MEINST.SIZES_OF_INTEREST", [32, 64], "MODEL.MEINST.NUM_CLS_CONVS", 2, "MODEL.MEINST.NUM_BOX_CONVS", 2),
    *("MODEL.MEINST.NUM_MASK_CONVS", 2),
    *("MODEL.MEINST.PRIOR_PROB", 0.3),  # an untrained head that is sure of itself
    *("MODEL.MEINST.DIM_MASK", 8, "MODEL.MEINST.MASK_SIZE", 14, "MODEL.MEINST.COMPONENTS", ""),
    *("TEST.DETECTIONS_PER_IMAGE", 5),
)


def small_cfg(path: Path) -> CfgNode:
    """The tiny form of a config."""
    cfg = load_cfg(path, *SMALL)
    ours = cfg.MODEL.BACKBONE.NAME == "build_meinst_resnet_fpn_backbone"
    width = 32 if ours else 64  # Detectron2's own backbones know no narrower ResNet-18
    cfg.merge_from_list(["MODEL.RESNETS.STEM_OUT_CHANNELS", 32, "MODEL.RESNETS.RES2_OUT_CHANNELS", width])
    return cfg


def distinct_models() -> dict[str, CfgNode]:
    """The tiny form of every config, by the name of the first of those that have the same."""
    found: dict[str, tuple[str, CfgNode]] = {}
    for path in sorted((ROOT / "configs").rglob("*.yaml"), key=lambda path: (len(path.parts), path)):
        cfg = small_cfg(path)
        name = path.relative_to(ROOT / "configs").with_suffix("")
        if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":  # Detectron2's Mask R-CNN, to compare with
            continue
        if name.parts[0] in ("timm", "real"):  # no tiny form; tests/modeling/test_timm.py has their backbones
            continue
        found.setdefault(cfg.MODEL.dump(), (str(name), cfg))
    return dict(found.values())


MODELS = distinct_models()


@pytest.mark.parametrize("name", MODELS)
def test_it_learns_from_a_batch_and_predicts(name: str) -> None:
    cfg = MODELS[name]
    torch.manual_seed(0)
    model = build_model(cfg)
    encoder = getattr(model, "proposal_generator", model).mask_encoder
    if isinstance(encoder, FittedEncoder):
        fit_to_blobs(encoder)
    with_objects = image_with([[8, 8, 48, 56], [50, 20, 90, 60]], classes=[3, 5], mask_size=14)
    batch = [with_objects, image_with([], mask_size=14)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def losses() -> dict[str, torch.Tensor]:
        torch.manual_seed(1)  # the same random clamp in every step
        with EventStorage():
            return model(batch)

    first = losses()
    assert ("loss_mask" in first) == cfg.MODEL.MASK_ON and all(loss > 0 for loss in first.values())
    sum(first.values()).backward()
    without_gradient = [key for key, value in model.named_parameters() if value.grad is None]
    assert all("top_block" in key for key in without_gradient)  # p6 and p7 feed no level here
    optimizer.step()
    learned = "loss_mask" if cfg.MODEL.MASK_ON else "loss_cls"
    assert losses()[learned] < first[learned]

    model.eval()
    with torch.no_grad():
        (found,) = model([{"image": with_objects["image"], "height": 128, "width": 192}])
    instances = found["instances"]
    assert 0 < len(instances) <= 5 and instances.has("pred_masks") == cfg.MODEL.MASK_ON
    if cfg.MODEL.MASK_ON:
        assert instances.pred_masks.shape[1:] == (128, 192) and instances.pred_masks.dtype == torch.bool


NOT_OF_THE_HEAD = ("COMPONENTS_CONFLICT", "MASK_PASTE_BOX", "MASK_OUTPUT", "PRECISION", "CHANNELS_LAST")
"""Keys with tests of their own."""


def test_the_models_cover_every_choice() -> None:
    """So that no value of a key goes untrained."""
    from meinst_d2.config import CHOICES

    for key, choices in CHOICES.items():
        node, _, leaf = key.removeprefix("MODEL.MEINST.").rpartition(".")
        if key.startswith("MODEL.MEINST.") and leaf not in NOT_OF_THE_HEAD:
            assert {cfg.MODEL.MEINST[leaf] for cfg in MODELS.values()} == set(choices), key
            assert not node
