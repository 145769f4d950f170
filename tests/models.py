"""Models and configs for tests."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

import meinst_d2.modeling  # noqa: F401  registers the model
from meinst_d2 import add_meinst_config
from meinst_d2.checkpoint.checkpointer import MEInstCheckpointer
from meinst_d2.config_file import merge_config_file
from meinst_d2.data.shapes import ShapesConfig, generate
from meinst_d2.encoding import FittedEncoder, PCABasis, fit_pca, save_components
from tests.conftest import ROOT, blob_masks, moments_of


def load_cfg(config_file: str | Path, *overrides: Any) -> CfgNode:
    """A config of this repository, on the CPU."""
    cfg = get_cfg()
    add_meinst_config(cfg)
    merge_config_file(cfg, str(ROOT / "configs" / config_file))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *overrides])
    return cfg


def flat(node: dict, prefix: str = "") -> dict[str, Any]:
    """Values of a config by dotted key."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def build_from(config_file: Path, *overrides: Any) -> torch.nn.Module:
    """The model of any config, with its weights, on the CPU."""
    cfg = load_cfg(config_file, *overrides)
    model = build_model(cfg)
    MEInstCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


def published_model(deform_conv: str = "none") -> torch.nn.Module:
    """R-50 with the published behaviour, without randomness."""
    return build_model(
        load_cfg(
            "MEInst_R_50_1x_none.yaml",
            *("MODEL.MEINST.DEFORM_CONV", deform_conv),
            *("MODEL.MEINST.SIGMOID_CLAMP", (0.01, 0.01)),
            *("MODEL.MEINST.MASK_PASTE_BOX", "clipped"),
            *("MODEL.MEINST.COMPONENTS", ""),
        )
    )


def write_components(path: Path, dim: int = 8, mask_size: int = 28, **provenance: Any) -> Path:
    """Components of random ellipses."""
    save_components(path, [blob_basis(mask_size).truncated(dim)], provenance)
    return path


def tiny_cfg(*overrides: Any) -> CfgNode:
    """The smallest model: two levels, 32 channels, 8 coefficients."""
    return load_cfg("quick/tiny.yaml", *overrides)


def tiny_model(*overrides: Any, seed: int = 0) -> torch.nn.Module:
    """A tiny model with components of random ellipses."""
    torch.manual_seed(seed)
    model = build_model(tiny_cfg(*overrides))
    encoder = model.proposal_generator.mask_encoder
    if isinstance(encoder, FittedEncoder):
        fit_to_blobs(encoder)
    return model


@functools.cache
def blob_basis(mask_size: int) -> PCABasis:
    """Every component of random ellipses."""
    return fit_pca(moments_of(blob_masks(np.random.default_rng(0), 300, mask_size)))


def under_their_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict as the published implementation names it; their names stay."""
    names = {"head.centerness": "MEInst_head.ctrness", "head.": "MEInst_head.", "mask_encoder.": "mask_encoding."}
    for ours, theirs in names.items():
        of_ours, of_theirs = f"proposal_generator.{ours}", f"proposal_generator.{theirs}"
        state = {name.replace(of_ours, of_theirs): value for name, value in state.items()}
    return state


def fit_to_blobs(encoder: FittedEncoder) -> None:
    """Give an encoder components of random ellipses, the same to every class."""
    count = len(encoder.means) if encoder.class_specific else 1
    encoder.load_bases([blob_basis(encoder.mask_size).truncated(encoder.dim)] * count)


def image_with(
    boxes: list[list[float]], height: int = 64, width: int = 96, classes: list[int] | None = None, mask_size: int = 28
) -> dict[str, Any]:
    """An input dict with random pixels, and an ellipse in every box."""
    rng = np.random.default_rng(len(boxes))
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor([0] * len(boxes) if classes is None else classes, dtype=torch.int64)
    instances.gt_mask_templates = torch.from_numpy(blob_masks(rng, len(boxes), mask_size))
    times = 112 // mask_size
    fine = instances.gt_mask_templates.repeat_interleave(times, 1).repeat_interleave(times, 2)
    instances.gt_fine_templates = fine
    image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
    return {"image": image, "instances": instances, "image_id": len(boxes)}


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rel: float = 1e-5) -> None:
    """Equal but for rounding, which for gradients that cancel (biases before a norm) is that of the largest ones."""
    largest = max(float(gradient.norm()) for gradient in expected.values())
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        difference = float((found[name] - gradient).norm())
        assert difference <= rel * float(gradient.norm()) + 1e-7 * largest, (name, difference, float(gradient.norm()))


def shapes_with_ids_from_3(folder: Path, count: int, min_side: int) -> Path:
    """The annotation file of shapes with crowd regions and empty images, category ids from 3."""
    shapes = ShapesConfig(height=96, width=120, min_side=min_side, max_side=90, empty=0.1, crowd=0.3)
    generate(folder, {"val": count}, shapes)
    file = folder / "annotations/instances_val.json"
    content = json.loads(file.read_text())
    for entry in content["annotations"]:
        entry["category_id"] += 2
    for entry in content["categories"]:
        entry["id"] += 2
    file.write_text(json.dumps(content))
    return file
