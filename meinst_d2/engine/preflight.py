"""Everything that can be known to be wrong before the model and the loader are built."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

from meinst_d2.checkpoint.checkpointer import carried_components, info_of
from meinst_d2.checkpoint.compatibility import CLASS_LAYER
from meinst_d2.checkpoint.readers import load_array_pickle, read_checkpoint
from meinst_d2.checkpoint.resume import OpenedCheckpoint, open_last_whole
from meinst_d2.config import add_meinst_config, check_choices
from meinst_d2.data.datasets import class_names, loading, require_dataset
from meinst_d2.encoding import MASK_ENCODER_REGISTRY, SigmoidClamp, load_components
from meinst_d2.engine.trainer import COMPONENTS_DIFFER
from meinst_d2.evaluation.build import build_evaluator
from meinst_d2.files import require_writable
from meinst_d2.modeling.published_names import GENERATOR_PREFIX, settle_names

NEEDED = ("MODEL.DEVICE", "MODEL.WEIGHTS", "OUTPUT_DIR", "INPUT.FORMAT")
"""Keys that cannot be null; those of ``MODEL.MEINST`` cannot either."""
LEAST = {
    "MODEL.MEINST.NUM_CLASSES": 1,
    "MODEL.MEINST.DIM_MASK": 1,
    "MODEL.MEINST.MASK_SIZE": 2,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.MAX_ITER": 0,
    "TEST.DETECTIONS_PER_IMAGE": 0,
}
"""The least values of keys that count something."""
UNSUPPORTED = {
    "TEST.AUG.ENABLED": "test-time augmentation is",
    "MODEL.KEYPOINT_ON": "keypoints are",
    "MODEL.LOAD_PROPOSALS": "proposals from files are",
}
"""Keys of Detectron2 that would do nothing, and what they ask for."""
THRESHOLDS = {"MEInstDetector": "MEINST", "MEInstRetinaNet": "RETINANET"}
"""The node that a model reads its thresholds from."""
REINITIALIZE = (
    "to re-initialize the mask predictor, name components that fit in MODEL.MEINST.COMPONENTS and train with "
    "MODEL.MEINST.COMPONENTS_CONFLICT file"
)


class PreflightError(ValueError):
    """What is wrong, one sentence a line, each with its fix."""


def check_before_start(
    cfg: CfgNode, *, eval_only: bool, resume: bool, num_processes: int = 1
) -> OpenedCheckpoint | None:
    """Look at config, datasets, weights, components, device and output folder.

    Reads the starting weights, the categories of training sets and the annotations of test sets, but no images.

    Args:
        cfg: the run's.
        eval_only: nothing will be trained.
        resume: the last checkpoint of ``OUTPUT_DIR``, if there is one, counts instead of ``MODEL.WEIGHTS``.
        num_processes: over all machines.

    Returns:
        The starting weights, for the trainer of the same process; None where they are not a file of weights by name.

    Raises:
        PreflightError: with every problem found.
    """
    problems: list[str] = []

    def check(function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except (ValueError, OSError) as error:
            problems.append(str(error))

    def stop_here() -> None:
        if problems:
            raise PreflightError("\n".join(dict.fromkeys(problems)))

    check(_check_values, cfg)
    stop_here()  # nothing else can be looked at
    check(check_choices, cfg)
    check(_check_keys, cfg)
    start = check(_open_start, cfg, resume)
    opened, resumes = start or (None, False)
    trains = not (eval_only or resumes)  # the class layer, and perhaps the mask predictor, can be re-initialized
    names = dict.fromkeys((*(() if eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST))
    classes = {name: check(_classes_of, name) for name in names}
    source, wanted = _classes_of_model(cfg, classes, None if trains else opened)
    for name, found in classes.items():
        check(_check_classes, cfg, name, found, source, wanted)
    if not eval_only:
        check(_check_batch, cfg, num_processes)
        check(_check_evaluations, cfg)
    if start is not None:
        check(_check_weights, cfg, opened, trains, eval_only)
    check(require_writable, os.path.join(cfg.OUTPUT_DIR, "log.txt"))
    stop_here()
    for name in cfg.DATASETS.TEST:
        check(_check_annotations, cfg, name)
    stop_here()
    return opened


def value_of(cfg: CfgNode, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), cfg)


def _check_values(cfg: CfgNode) -> None:
    """Raise a ValueError if a key has no value, or counts less than there can be."""
    for key in (*NEEDED, *(f"MODEL.MEINST.{name}" for name in cfg.MODEL.MEINST)):
        if value_of(cfg, key) is None:
            raise ValueError(f"{key} has no value: give it one, or remove it from the config")
    for key, least in LEAST.items():
        if value_of(cfg, key) < least:
            raise ValueError(f"{key} = {value_of(cfg, key)} must be at least {least}")
    meinst = cfg.MODEL.MEINST
    if meinst.DIM_MASK > meinst.MASK_SIZE**2:
        raise ValueError(
            f"MODEL.MEINST.DIM_MASK = {meinst.DIM_MASK} is more than the {meinst.MASK_SIZE**2} pixels of a template of "
            f"MODEL.MEINST.MASK_SIZE = {meinst.MASK_SIZE}: choose fewer"
        )


def _check_keys(cfg: CfgNode) -> None:
    """Raise a ValueError if a part or the device does not exist, or a key would do nothing."""
    device, architecture = cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE
    for key, registry in (("MODEL.META_ARCHITECTURE", META_ARCH_REGISTRY), ("MODEL.BACKBONE.NAME", BACKBONE_REGISTRY)):
        if value_of(cfg, key) not in registry:
            raise ValueError(f"{key} = {value_of(cfg, key)!r} is registered nowhere: import what defines it")
    try:
        torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"MODEL.DEVICE = {device!r} is not a device: choose cpu, cuda or cuda:N") from error
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"MODEL.DEVICE is {device}, but torch sees no GPU: add MODEL.DEVICE cpu to the command")
    for key, what in UNSUPPORTED.items():
        if value_of(cfg, key):
            raise ValueError(f"{key} is {value_of(cfg, key)}, but {what} not supported: set it to False")
    defaults, used = get_cfg(), THRESHOLDS.get(architecture)
    add_meinst_config(defaults)
    for node in ("MEINST", "RETINANET", "ROI_HEADS") if used else ():
        for key in (f"MODEL.{node}.SCORE_THRESH_TEST", f"MODEL.{node}.NMS_THRESH_TEST"):
            if node != used and value_of(cfg, key) != value_of(defaults, key):
                instead = key.replace(node, used)
                raise ValueError(f"{key} = {value_of(cfg, key)} does nothing to {architecture}: set {instead} instead")


def _open_start(cfg: CfgNode, resume: bool) -> tuple[OpenedCheckpoint | None, bool]:
    """The weights that the run starts from, by our names, and whether they are the last whole checkpoint of the run.

    None for random weights, for URLs and for ``.pkl`` files, which hold the names of other projects.
    """
    path, last = cfg.MODEL.WEIGHTS, open_last_whole(Path(cfg.OUTPUT_DIR)) if resume else None
    opened = last
    if last is None and path and "://" not in path:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"MODEL.WEIGHTS {path} does not exist: give a file, a URL or '' for random weights")
        content = load_array_pickle(path) if path.endswith(".pkl") else read_checkpoint(path, mmap=True)
        opened = None if path.endswith(".pkl") else OpenedCheckpoint(Path(path), content)
    if opened is not None:
        settle_names(opened.content["model"])
    return opened, last is not None


def _classes_of(name: str) -> list[str] | None:
    require_dataset(name)
    images = MetadataCatalog.get(name).get("image_root")
    if images is not None and not os.path.isdir(images):
        raise FileNotFoundError(
            f"the dataset {name!r} has no folder of images {images}: name the folder that holds them"
        )
    return class_names(name)


def _classes_of_model(
    cfg: CfgNode, classes: Mapping[str, list[str] | None], trained: OpenedCheckpoint | None
) -> tuple[str, list[str] | None]:
    """The names of the model's classes, None where they are not known, and where they are from.

    Args:
        cfg: of the run.
        classes: by dataset, as far as they have been read.
        trained: the weights, where they have learned their classes.
    """
    names = info_of(trained.content).get("class_names") if trained is not None else None
    if trained is not None and names and len(names) == cfg.MODEL.MEINST.NUM_CLASSES:
        return str(trained.path), list(names)
    first, names = next(iter(cfg.DATASETS.TRAIN), ""), None
    if first in DatasetCatalog:
        with suppress(ValueError, OSError):  # what was trained on need not be here
            names = classes.get(first) or class_names(first)
    return f"the dataset {first!r}", names if names and len(names) == cfg.MODEL.MEINST.NUM_CLASSES else None


def _check_classes(cfg: CfgNode, name: str, found: list[str] | None, source: str, wanted: list[str] | None) -> None:
    """Raise a ValueError that says which classes of a dataset are not, by name, those of the model.

    A dataset that is only evaluated on may lack some.
    """
    if found is None or found == wanted:
        return
    num_classes = cfg.MODEL.MEINST.NUM_CLASSES
    if wanted is None:
        if len(found) != num_classes:
            raise ValueError(
                f"the dataset {name!r} has {len(found)} classes, MODEL.MEINST.NUM_CLASSES is {num_classes}: set "
                f"MODEL.MEINST.NUM_CLASSES {len(found)}"
            )
        return
    dataset = f"the dataset {name!r} ({MetadataCatalog.get(name).get('json_file', 'no file')})"
    unknown = [x for x in found if x not in wanted]
    lacking = [x for x in wanted if x not in found and name in cfg.DATASETS.TRAIN]
    differences = [f"has {', '.join(unknown)}, which {source} lacks"] if unknown else []
    differences += [f"lacks {', '.join(lacking)} of {source}"] if lacking else []
    if differences:
        raise ValueError(
            f"{dataset} {' and '.join(differences)}: classes go by name, so give its categories the names of {source}"
        )
    in_order = [x for x in wanted if x in found]
    if found != in_order:
        moved = [pair for pair in zip(found, in_order, strict=True) if pair[0] != pair[1]]
        here, there = (", ".join(names) for names in zip(*moved, strict=True))
        raise ValueError(
            f"{dataset} has the classes {here} in the place of {there} of {source}: give its categories ids that rise in "
            f"the order of {source}"
        )


def _check_batch(cfg: CfgNode, num_processes: int) -> None:
    """Raise a ValueError unless the batch can be divided among processes and parts."""
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty: name a dataset to train on")
    batch, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    parts, share = cfg.SOLVER.GRADIENT_ACCUMULATION, batch // (reference or num_processes)
    if parts < 1 or share % parts:
        raise ValueError(
            f"SOLVER.GRADIENT_ACCUMULATION = {parts} cannot divide the {share} images that a process has in a batch "
            f"of SOLVER.IMS_PER_BATCH = {batch}: choose a divisor"
        )
    if reference == 0 and batch % num_processes:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH = {batch} cannot be shared by {num_processes} processes: choose a multiple"
        )
    for key, is_set in (
        ("SOLVER.GRADIENT_ACCUMULATION", parts > 1),
        ("TEST.VALIDATION_LOSS", cfg.TEST.VALIDATION_LOSS),
    ):
        if is_set and not hasattr(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), "as_parts_of"):
            raise ValueError(
                f"{key} = {value_of(cfg, key)} needs MODEL.META_ARCHITECTURE MEInstDetector, "
                f"{cfg.MODEL.META_ARCHITECTURE} normalises its losses otherwise: remove it"
            )


def _check_evaluations(cfg: CfgNode) -> None:
    """Raise a ValueError unless the settings of evaluation go together."""
    test, decay = cfg.TEST, cfg.SOLVER.EMA_DECAY
    if not 0 <= decay < 1:
        raise ValueError(f"SOLVER.EMA_DECAY = {decay} must be below 1, such as 0.9998, or 0 for no average")
    if test.BEST_METRIC and test.BEST_METRIC.split("/")[0] not in ("segm", "bbox"):
        raise ValueError(
            f"TEST.BEST_METRIC = {test.BEST_METRIC!r} is not a metric: set it to segm/AP, bbox/AP50 or the like"
        )
    evaluates = test.EVAL_PERIOD > 0 and test.BEST_METRIC and cfg.DATASETS.TEST
    if test.PATIENCE < 0 or (test.PATIENCE > 0 and not evaluates):
        raise ValueError(
            f"TEST.PATIENCE = {test.PATIENCE} counts evaluations during training: set TEST.EVAL_PERIOD, "
            "TEST.BEST_METRIC and DATASETS.TEST, or TEST.PATIENCE 0"
        )


def _check_annotations(cfg: CfgNode, name: str) -> None:
    """Raise a ValueError if the evaluator cannot use the annotation file of a COCO dataset."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("json_file") is not None and metadata.get("evaluator_type") == "coco":
        with loading(name):
            build_evaluator(cfg, name)


def _check_weights(cfg: CfgNode, opened: OpenedCheckpoint | None, trains: bool, eval_only: bool) -> None:
    """Raise a ValueError if the starting weights, the components and the config do not fit together."""
    meinst, path = cfg.MODEL.MEINST, opened.path if opened else cfg.MODEL.WEIGHTS
    state = opened.content["model"] if opened else {}
    if eval_only and opened and cfg.MODEL.META_ARCHITECTURE in THRESHOLDS:
        if not any(name.startswith(CLASS_LAYER.prefixes) for name in state):
            raise ValueError(
                f"{path} does not hold a trained detector (it has no class layer): give the weights of one"
            )
    bias = state.get(GENERATOR_PREFIX + "head.cls_logits.bias")
    if not trains and bias is not None and bias.numel() != meinst.NUM_CLASSES:
        raise ValueError(
            f"{path} has {bias.numel()} classes, the config asks for MODEL.MEINST.NUM_CLASSES = {meinst.NUM_CLASSES}: "
            f"set MODEL.MEINST.NUM_CLASSES {bias.numel()}, or first train on the new classes (the class layer is then "
            "re-initialized)"
        )
    if not cfg.MODEL.MASK_ON:
        return
    conflict = meinst.COMPONENTS_CONFLICT if trains else "weights"
    encodes = meinst.MASK_REPRESENTATION != "none" and meinst.ENCODER in MASK_ENCODER_REGISTRY
    if encodes and MASK_ENCODER_REGISTRY.get(meinst.ENCODER).needs_components:
        _check_components(cfg, opened, conflict)
        return
    key, wanted = "DIM_MASK", meinst.DIM_MASK
    if meinst.MASK_REPRESENTATION == "none":
        key, wanted = "MASK_SIZE", meinst.MASK_SIZE**2
    names = [GENERATOR_PREFIX + f"head.mask_pred.{name}" for name in ("bias", "conv_l1.conv.bias")]
    predicted = next((state[name].numel() for name in names if name in state), wanted)
    if predicted != wanted and conflict != "file":
        raise ValueError(
            f"{path} predicts {predicted} values per mask, the config asks for {wanted}: change MODEL.MEINST.{key} or "
            f"MODEL.MEINST.MASK_REPRESENTATION, or {REINITIALIZE}"
        )


def _check_components(cfg: CfgNode, opened: OpenedCheckpoint | None, conflict: str) -> None:
    """Raise a ValueError unless components of the file or of the weights fit the config, and each other."""
    meinst, file, weights = cfg.MODEL.MEINST, cfg.MODEL.MEINST.COMPONENTS, cfg.MODEL.WEIGHTS
    SigmoidClamp(*meinst.SIGMOID_CLAMP)
    of_file = load_components(file) if os.path.isfile(file) else None
    if of_file is not None:
        rows = torch.stack([torch.as_tensor(basis.components) for basis in of_file.bases])  # (dictionaries, D, S*S)
        _require_fit(file, meinst, rows, {"sigmoid": of_file.sigmoid, "whiten": of_file.whiten})
    carried = carried_components(opened.content["model"], opened.path) if opened else None
    if opened and carried is not None and not (conflict == "file" and of_file):
        try:
            _require_fit(str(opened.path), meinst, carried, info_of(opened.content))
        except ValueError as error:
            raise ValueError(f"{error}; or {REINITIALIZE}") from error
        if of_file and conflict == "stop" and not torch.allclose(rows, carried.reshape(rows.shape), 1e-5, 1e-6):
            raise ValueError(COMPONENTS_DIFFER)
    only_a_download_tells = opened is None and "://" in weights and "ImageNetPretrained" not in weights
    if of_file is None and carried is None and not only_a_download_tells:
        where = f"there is no file {file}" if file else "MODEL.MEINST.COMPONENTS names no file"
        class_specific = "--class-specific " if MASK_ENCODER_REGISTRY.get(meinst.ENCODER).class_specific else ""
        raise ValueError(
            f"the masks have no components: {where} and {weights or 'random weights'} do not carry them; run meinst fit "
            f"--dataset {' '.join(cfg.DATASETS.TRAIN) or 'NAME'} --dim {meinst.DIM_MASK} --mask-size {meinst.MASK_SIZE} "
            f"{class_specific}--output {file or 'FILE and set MODEL.MEINST.COMPONENTS FILE'}"
        )


def _require_fit(source: str, meinst: CfgNode, rows: torch.Tensor, about: Mapping[str, Any]) -> None:
    """Raise a ValueError if components do not fit the config.

    Args:
        source: what has them.
        meinst: ``MODEL.MEINST``.
        rows: (D, S*S), or of every dictionary.
        about: ``encoder``, ``sigmoid`` and ``whiten``, as far as it is recorded how they were made.
    """
    if about.get("encoder", meinst.ENCODER) != meinst.ENCODER:
        raise ValueError(
            f"{source} was trained with MODEL.MEINST.ENCODER {about['encoder']}, the config asks for {meinst.ENCODER}"
        )
    dictionaries = len(rows) if rows.ndim == 3 else 1
    wanted = meinst.NUM_CLASSES if MASK_ENCODER_REGISTRY.get(meinst.ENCODER).class_specific else 1
    if dictionaries != wanted:
        raise ValueError(
            f"{source} holds {dictionaries} {'dictionary' if dictionaries == 1 else 'dictionaries'}, "
            f"MODEL.MEINST.ENCODER {meinst.ENCODER} needs {wanted}: run meinst fit "
            f"{'without ' if wanted == 1 else ''}--class-specific, or choose another encoder"
        )
    for name, found, key, option in (
        ("D", rows.shape[-2], "DIM_MASK", f"--dim {meinst.DIM_MASK}"),
        ("S", round(rows.shape[-1] ** 0.5), "MASK_SIZE", f"--mask-size {meinst.MASK_SIZE}"),
        ("sigmoid", about.get("sigmoid"), "SIGMOID", "without --no-sigmoid" if meinst.SIGMOID else "--no-sigmoid"),
        ("whiten", about.get("whiten"), "WHITEN", "without --no-whiten" if meinst.WHITEN else "--no-whiten"),
    ):
        if found is not None and found != meinst[key]:
            raise ValueError(
                f"the components in {source} have {name} = {found}, the config asks for MODEL.MEINST.{key} = "
                f"{meinst[key]}: run meinst fit {option}, or set MODEL.MEINST.{key} {found}"
            )
