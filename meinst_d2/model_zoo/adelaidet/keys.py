"""``MODEL.MEInst`` of the published implementation: its keys and defaults, and what they become here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEFAULTS: dict[str, Any] = {"NUM_CLASSES": 80, "MASK_ON": True, "IOU_THRESHOLDS": [0.5], "IOU_LABELS": [0, 1]}
# Levels, and the sizes of the objects that they learn.
DEFAULTS |= {"IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"], "FPN_STRIDES": [8, 16, 32, 64, 128], "TOP_LEVELS": 2}
DEFAULTS |= {"SIZES_OF_INTEREST": [64, 128, 256, 512], "CENTER_SAMPLE": True, "POS_RADIUS": 1.5}
# What is kept of the predictions.
DEFAULTS |= {"INFERENCE_TH_TRAIN": 0.05, "INFERENCE_TH_TEST": 0.05, "NMS_TH": 0.6, "THRESH_WITH_CTR": False}
DEFAULTS |= {"PRE_NMS_TOPK_TRAIN": 1000, "PRE_NMS_TOPK_TEST": 1000}
DEFAULTS |= {"POST_NMS_TOPK_TRAIN": 100, "POST_NMS_TOPK_TEST": 100}
# The head.
DEFAULTS |= {"NUM_CLS_CONVS": 4, "NUM_BOX_CONVS": 4, "NUM_SHARE_CONVS": 0, "NUM_MASK_CONVS": 4, "NORM": "GN"}
DEFAULTS |= {"USE_SCALE": True, "USE_RELU": True, "USE_GCN_IN_MASK": False, "GCN_KERNEL_SIZE": 9, "PRIOR_PROB": 0.01}
DEFAULTS |= {"USE_DEFORMABLE": False, "LAST_DEFORMABLE": False, "TYPE_DEFORMABLE": "DCNv1"}
# The losses.
DEFAULTS |= {"LOSS_ALPHA": 0.25, "LOSS_GAMMA": 2.0, "LOC_LOSS_TYPE": "giou"}
DEFAULTS |= {"MASK_LOSS_TYPE": "mse", "LOSS_ON_MASK": False}
# The encoding of masks.
DEFAULTS |= {
    "AGNOSTIC": True,
    "WHITEN": True,
    "SIGMOID": True,
    "DIM_MASK": 60,
    "MASK_SIZE": 28,
    "FLAG_PARAMETERS": False,
}
DEFAULTS["PATH_COMPONENTS"] = (
    "datasets/coco/components/coco_2017_train_class_agnosticTrue_whitenTrue_sigmoidTrue_60.npz"
)

SAME = ("NUM_CLASSES", "IN_FEATURES", "PRIOR_PROB", "USE_SCALE", "SIZES_OF_INTEREST", "WHITEN", "SIGMOID", "DIM_MASK")
SAME += ("MASK_SIZE", "NUM_CLS_CONVS", "NUM_BOX_CONVS", "NUM_SHARE_CONVS", "NUM_MASK_CONVS", "PRE_NMS_TOPK_TEST")
RENAMED = {
    **{name: name for name in SAME},
    "INFERENCE_TH_TEST": "SCORE_THRESH_TEST",
    "NMS_TH": "NMS_THRESH_TEST",
    "THRESH_WITH_CTR": "THRESH_WITH_CENTERNESS",
    "LOSS_ALPHA": "FOCAL_LOSS_ALPHA",
    "LOSS_GAMMA": "FOCAL_LOSS_GAMMA",
    "CENTER_SAMPLE": "CENTER_SAMPLING",
    "POS_RADIUS": "CENTER_SAMPLING_RADIUS",
    "LOC_LOSS_TYPE": "BOX_LOSS_TYPE",
    "GCN_KERNEL_SIZE": "LARGE_KERNEL_SIZE",
}
"""Keys whose value is taken over, and their names here."""

NO_EFFECT = {
    "INFERENCE_TH_TRAIN": "their code predicts with the TEST threshold only",
    "PRE_NMS_TOPK_TRAIN": "their code predicts with the TEST limit only",
    "POST_NMS_TOPK_TRAIN": "their code predicts with the TEST limit only",
    "TOP_LEVELS": "their code reads MODEL.FCOS.TOP_LEVELS",
    "USE_RELU": "their code always rectifies the box distances",
    "MASK_ON": "their model always has the mask branch",
    "IOU_THRESHOLDS": "their code uses the best match only",
    "IOU_LABELS": "their code uses the best match only",
    "PATH_COMPONENTS": "the weights carry the components",
    "FLAG_PARAMETERS": "the weights carry the components",
}
"""Keys that change nothing, and why."""

FIXED: dict[str, Any] = {"PRECISION": "float32", "CHANNELS_LAST": "auto", "ENCODER": "PCAEncoder"}
FIXED |= {"SIGMOID_CLAMP": [0.01, 0.05], "COMPONENTS": "", "COMPONENTS_CONFLICT": "stop"}
FIXED |= {"MASK_LOSS_TYPE": "l2", "MASK_LOSS_WEIGHTS": "uniform", "MASK_PASTE_BOX": "clipped", "MASK_OUTPUT": "bitmask"}
FIXED |= {f"LOSS_WEIGHT_{loss}": 1.0 for loss in ("CLS", "BOX", "CENTERNESS", "MASK")}
"""What every published model does, under our keys."""

NORMS = {"GN": "GN", "NaiveGN": "GN", "none": "none"}
BOX_LOSSES = ("giou", "iou", "linear_iou")
DEFORMABLE = {"DCNv1": False, "DCNv2": True}


def translate(theirs: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Their ``MODEL.MEInst`` as our ``MODEL.MEINST``.

    Args:
        theirs: every key of :data:`DEFAULTS`.
        given: the keys that their file sets.

    Returns:
        Our keys, and a sentence about every value that does not mean what it seems to.

    Raises:
        ValueError: their code cannot run with a value, and so neither can ours.
    """
    _refuse(theirs)
    ours = FIXED | {name: theirs[key] for key, name in RENAMED.items()}
    ours["NORM"] = NORMS.get(theirs["NORM"], "none")
    ours["MASK_REPRESENTATION"] = "implicit" if theirs["LOSS_ON_MASK"] else "explicit"
    ours["MASK_PREDICTOR"] = "large_kernel" if theirs["USE_GCN_IN_MASK"] else "conv"
    ours["DEFORM_CONV"], ours["DEFORM_MODULATED"] = "none", False
    if theirs["USE_DEFORMABLE"]:
        ours["DEFORM_CONV"] = "last" if theirs["LAST_DEFORMABLE"] else "all"
        ours["DEFORM_MODULATED"] = DEFORMABLE[theirs["TYPE_DEFORMABLE"]]

    notes = [f"MODEL.MEInst.{key} has no effect: {reason}" for key, reason in NO_EFFECT.items() if key in given]
    if theirs["NORM"] not in NORMS:
        notes.append(f"MODEL.MEInst.NORM {theirs['NORM']!r} means no normalisation, as in their code")
    if theirs["LAST_DEFORMABLE"] and not theirs["USE_DEFORMABLE"]:
        notes.append("MODEL.MEInst.LAST_DEFORMABLE has no effect: MODEL.MEInst.USE_DEFORMABLE is False")
    if theirs["LOSS_ON_MASK"] and "MASK_LOSS_TYPE" in given:
        notes.append("MODEL.MEInst.MASK_LOSS_TYPE has no effect: MODEL.MEInst.LOSS_ON_MASK is True")
    if not theirs["WHITEN"]:
        notes.append("MODEL.MEInst.WHITEN False stops their code when it decodes; here it decodes without whitening")
    return ours, notes


def _refuse(theirs: Mapping[str, Any]) -> None:
    if not theirs["AGNOSTIC"]:
        raise ValueError("MODEL.MEInst.AGNOSTIC False was never implemented: no weights can belong to it")
    if theirs["MASK_LOSS_TYPE"] != "mse" and not theirs["LOSS_ON_MASK"]:
        raise ValueError(
            f"MODEL.MEInst.MASK_LOSS_TYPE {theirs['MASK_LOSS_TYPE']!r} was never implemented (only 'mse'): no weights "
            "can belong to it"
        )
    if theirs["USE_DEFORMABLE"] and theirs["TYPE_DEFORMABLE"] not in DEFORMABLE:
        raise ValueError(
            f"MODEL.MEInst.TYPE_DEFORMABLE {theirs['TYPE_DEFORMABLE']!r} is none of {', '.join(DEFORMABLE)}: no "
            "weights can belong to it"
        )
    if theirs["LOC_LOSS_TYPE"] not in BOX_LOSSES:
        raise ValueError(f"MODEL.MEInst.LOC_LOSS_TYPE {theirs['LOC_LOSS_TYPE']!r} is none of {', '.join(BOX_LOSSES)}")
    if len(theirs["FPN_STRIDES"]) != len(theirs["IN_FEATURES"]):
        raise ValueError(
            f"MODEL.MEInst.FPN_STRIDES has {len(theirs['FPN_STRIDES'])} values for the {len(theirs['IN_FEATURES'])} "
            "feature maps of MODEL.MEInst.IN_FEATURES: give one each"
        )
