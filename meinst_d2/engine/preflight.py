"""Everything that can be known to be wrong before the model and the loader are built."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from meinst_d2.checkpoint.checkpointer import carried_components, info_of
from meinst_d2.checkpoint.compatibility import CLASS_LAYER
from meinst_d2.checkpoint.readers import read_checkpoint
from meinst_d2.checkpoint.resume import open_last_whole
from meinst_d2.config import check_choices
from meinst_d2.data.datasets import class_names, require_dataset
from meinst_d2.encoding import MASK_ENCODER_REGISTRY, Components, SigmoidClamp, load_components
from meinst_d2.engine.settings import check_batch, check_device, check_parts, check_validation, require_values
from meinst_d2.engine.trainer import COMPONENTS_DIFFER
from meinst_d2.files import require_writable
from meinst_d2.modeling.published_names import GENERATOR_PREFIX, settle_names

ANEW = (
    "to start the mask predictor anew, name components that fit in MODEL.MEINST.COMPONENTS and train with "
    "MODEL.MEINST.COMPONENTS_CONFLICT file"
)


class PreflightError(ValueError):
    """What is wrong, one sentence a line, each with the way out."""


def check_before_start(cfg: CfgNode, *, eval_only: bool, resume: bool, num_processes: int = 1) -> None:
    """Look at config, datasets, weights, components, device and output folder.

    Reads a checkpoint's keys and the categories of an annotation file, but neither images nor annotations.

    Args:
        cfg: the run's.
        eval_only: nothing will be trained.
        resume: the last checkpoint of ``OUTPUT_DIR``, if there is one, counts instead of ``MODEL.WEIGHTS``.
        num_processes: over all machines.

    Raises:
        PreflightError: with every problem found.
    """
    try:
        require_values(cfg)
    except ValueError as error:  # nothing else can be looked at
        raise PreflightError(str(error)) from error
    problems: list[str] = []

    def check(function: Callable[..., None], *args: Any) -> None:
        try:
            function(*args)
        except (ValueError, OSError) as error:
            problems.append(str(error))

    check(check_choices, cfg)
    check(check_parts, cfg)
    check(check_device, cfg)
    for name in (*(() if eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST):
        check(_check_dataset, cfg, name)
    if not eval_only:
        check(check_batch, cfg, num_processes)
        check(check_validation, cfg)
    check(_check_weights_and_components, cfg, eval_only, resume)
    check(require_writable, os.path.join(cfg.OUTPUT_DIR, "log.txt"))
    if problems:
        raise PreflightError("\n".join(dict.fromkeys(problems)))


def _check_dataset(cfg: CfgNode, name: str) -> None:
    require_dataset(name)
    images = MetadataCatalog.get(name).get("image_root")
    if images is not None and not os.path.isdir(images):
        raise FileNotFoundError(
            f"the dataset {name!r} has no folder of images {images}: name the folder that holds them"
        )
    names = class_names(name)
    if names is not None and len(names) != cfg.MODEL.MEINST.NUM_CLASSES:
        raise ValueError(
            f"the dataset {name!r} has {len(names)} classes, MODEL.MEINST.NUM_CLASSES is "
            f"{cfg.MODEL.MEINST.NUM_CLASSES}: set MODEL.MEINST.NUM_CLASSES {len(names)}"
        )


def _check_weights_and_components(cfg: CfgNode, eval_only: bool, resume: bool) -> None:
    last = open_last_whole(Path(cfg.OUTPUT_DIR)) if resume else None
    path, resuming = (cfg.MODEL.WEIGHTS, False) if last is None else (str(last.path), True)
    content, remote = _read_weights(path) if last is None else (last.content, False)
    settle_names(content.get("model", {}))
    meinst = cfg.MODEL.MEINST
    starting = not (resuming or eval_only)
    anew = starting and meinst.COMPONENTS_CONFLICT == "file"  # the mask predictor may start anew
    ours = content and cfg.MODEL.META_ARCHITECTURE in ("MEInstDetector", "MEInstRetinaNet")
    if eval_only and ours and not any(name.startswith(CLASS_LAYER.prefixes) for name in content["model"]):
        raise ValueError(f"{path} does not hold a trained detector (it has no class layer): give the weights of one")
    if not starting:
        _check_num_classes(path, content, meinst.NUM_CLASSES)
        _check_order_of_classes(path, content, cfg)
    if not cfg.MODEL.MASK_ON:
        return
    if not anew:
        _check_mask_predictor(path, content, meinst)
    if not _needs_components(meinst):
        return
    SigmoidClamp(*meinst.SIGMOID_CLAMP)
    from_file = _components_of_file(meinst)
    if from_file is not None:
        basis = from_file.basis
        _compare(meinst.COMPONENTS, meinst, basis.dim, basis.mask_size, from_file.sigmoid, from_file.whiten)
        _check_num_dictionaries(meinst.COMPONENTS, meinst, len(from_file.bases))
    carried = carried_components(content.get("model", {}), path)
    if carried is not None and not (anew and from_file is not None):
        _check_carried(path, content, carried, meinst)
    if from_file is None and carried is None and not remote:
        raise ValueError(_missing_components(cfg))
    if from_file is not None and carried is not None and starting and meinst.COMPONENTS_CONFLICT == "stop":
        components = torch.stack([torch.as_tensor(basis.components) for basis in from_file.bases])
        if not torch.allclose(components, carried.reshape(components.shape), rtol=1e-5, atol=1e-6):
            raise ValueError(COMPONENTS_DIFFER)


def _check_num_classes(path: str, content: dict[str, Any], wanted: int) -> None:
    bias = content.get("model", {}).get(GENERATOR_PREFIX + "head.cls_logits.bias")
    if bias is not None and bias.numel() != wanted:
        raise ValueError(
            f"{path} has {bias.numel()} classes, the config asks for MODEL.MEINST.NUM_CLASSES = {wanted}: set "
            f"MODEL.MEINST.NUM_CLASSES {bias.numel()}, or first train on the new classes (the class layer starts anew)"
        )


def _check_order_of_classes(path: str, content: dict[str, Any], cfg: CfgNode) -> None:
    learned = info_of(content).get("class_names")
    for dataset in cfg.DATASETS.TEST:
        names = class_names(dataset) if dataset in MetadataCatalog else None
        if learned and names and list(learned) != names and sorted(learned) == sorted(names):
            raise ValueError(
                f"{path} has learned the classes in the order {', '.join(learned)}, the dataset {dataset!r} has "
                f"{', '.join(names)}: give its categories ids that rise in the order of the weights"
            )


def _check_mask_predictor(path: str, content: dict[str, Any], meinst: CfgNode) -> None:
    state = content.get("model", {})
    names = [GENERATOR_PREFIX + f"head.mask_pred.{name}" for name in ("bias", "conv_l1.conv.bias")]
    carried = next((state[name].numel() for name in names if name in state), None)
    pixels = meinst.MASK_REPRESENTATION == "none"
    wanted = meinst.MASK_SIZE**2 if pixels else meinst.DIM_MASK
    if carried is not None and carried != wanted and (pixels or not _needs_components(meinst)):
        raise ValueError(
            f"{path} predicts {carried} values per mask, the config asks for {wanted}: change "
            f"MODEL.MEINST.{'MASK_SIZE' if pixels else 'DIM_MASK'} or MODEL.MEINST.MASK_REPRESENTATION, or {ANEW}"
        )


def _check_carried(path: str, content: dict[str, Any], carried: torch.Tensor, meinst: CfgNode) -> None:
    about = info_of(content)
    try:
        if about.get("encoder", meinst.ENCODER) != meinst.ENCODER:
            raise ValueError(
                f"{path} was trained with MODEL.MEINST.ENCODER {about['encoder']}, the config asks for {meinst.ENCODER}"
            )
        _check_num_dictionaries(path, meinst, len(carried) if carried.ndim == 3 else 1)
        _compare(path, meinst, *_dim_and_size(carried), about.get("sigmoid"), about.get("whiten"))
    except ValueError as error:
        raise ValueError(f"{error}; or {ANEW}") from error


def _read_weights(path: str) -> tuple[dict[str, Any], bool]:
    """What a checkpoint holds (nothing for ImageNet weights), and whether only a download would tell."""
    if "://" in path:
        return {}, "ImageNetPretrained" not in path
    if path and not os.path.isfile(path):
        raise FileNotFoundError(f"MODEL.WEIGHTS {path} does not exist: give a file, a URL or '' for random weights")
    if not path:
        return {}, False
    content = read_checkpoint(path)
    return ({} if path.endswith(".pkl") else content), False  # names of other projects


def _dim_and_size(components: torch.Tensor) -> tuple[int, int]:
    dim, pixels = components.shape[-2:]
    return dim, round(pixels**0.5)


def _components_of_file(meinst: CfgNode) -> Components | None:
    if not meinst.COMPONENTS or not os.path.isfile(meinst.COMPONENTS):
        return None
    return load_components(meinst.COMPONENTS)


def _needs_components(meinst: CfgNode) -> bool:
    """Whether masks go through an encoder that is fitted."""
    known = meinst.MASK_REPRESENTATION != "none" and meinst.ENCODER in MASK_ENCODER_REGISTRY
    return known and MASK_ENCODER_REGISTRY.get(meinst.ENCODER).needs_components


def _check_num_dictionaries(path: str, meinst: CfgNode, num_dictionaries: int) -> None:
    wanted = meinst.NUM_CLASSES if MASK_ENCODER_REGISTRY.get(meinst.ENCODER).class_specific else 1
    if num_dictionaries != wanted:
        option = "without --class-specific" if wanted == 1 else "--class-specific"
        raise ValueError(
            f"{path} holds {num_dictionaries} dictionaries, MODEL.MEINST.ENCODER {meinst.ENCODER} needs {wanted}: "
            f"run meinst fit {option}, or choose another encoder"
        )


def _compare(
    path: str,
    meinst: CfgNode,
    dim: int,
    mask_size: int,
    sigmoid: bool | None = None,
    whiten: bool | None = None,
) -> None:
    """Raise a ValueError if components do not fit the config; None means not recorded."""
    for name, value, key, wanted, option in (
        ("D", dim, "DIM_MASK", meinst.DIM_MASK, f"--dim {meinst.DIM_MASK}"),
        ("S", mask_size, "MASK_SIZE", meinst.MASK_SIZE, f"--mask-size {meinst.MASK_SIZE}"),
        ("sigmoid", sigmoid, "SIGMOID", meinst.SIGMOID, "" if meinst.SIGMOID else "--no-sigmoid"),
        ("whiten", whiten, "WHITEN", meinst.WHITEN, "" if meinst.WHITEN else "--no-whiten"),
    ):
        if value is not None and value != wanted:
            refit = f"run meinst fit {option}".strip() + (" without --no-" + name if not option else "")
            raise ValueError(
                f"the components in {path} have {name} = {value}, the config asks for MODEL.MEINST.{key} = {wanted}: "
                f"{refit}, or set MODEL.MEINST.{key} {value}"
            )


def _missing_components(cfg: CfgNode) -> str:
    meinst = cfg.MODEL.MEINST
    where = f"there is no file {meinst.COMPONENTS}" if meinst.COMPONENTS else "MODEL.MEINST.COMPONENTS names no file"
    weights = cfg.MODEL.WEIGHTS or "random weights"
    output = meinst.COMPONENTS or "FILE"
    names = " ".join(cfg.DATASETS.TRAIN) or "NAME"
    class_specific = "--class-specific " if MASK_ENCODER_REGISTRY.get(meinst.ENCODER).class_specific else ""
    return (
        f"the masks have no components: {where} and {weights} do not carry them; run meinst fit --dataset {names} "
        f"--dim {meinst.DIM_MASK} --mask-size {meinst.MASK_SIZE} {class_specific}--output {output}"
        + ("" if meinst.COMPONENTS else " and set MODEL.MEINST.COMPONENTS FILE")
    )
