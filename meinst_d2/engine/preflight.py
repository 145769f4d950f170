"""Everything that can be known to be wrong before the model and the loader are built."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from torch import nn

from meinst_d2.checkpoint.checkpointer import carried_components, info_of
from meinst_d2.checkpoint.compatibility import (
    CLASS_LAYER,
    REFINED_CLASSES,
    REFINED_DETAILS,
    REFINEMENT,
    has_part,
    num_classes_of,
)
from meinst_d2.checkpoint.readers import read_checkpoint
from meinst_d2.checkpoint.resume import OpenedCheckpoint, open_last_whole
from meinst_d2.config import check_choices
from meinst_d2.config_file import value_of
from meinst_d2.data.datasets import class_names, loading, require_dataset
from meinst_d2.data.loader import build_mapper
from meinst_d2.encoding import MASK_ENCODER_REGISTRY, SigmoidClamp, load_components
from meinst_d2.engine.trainer import COMPONENTS_DIFFER
from meinst_d2.evaluation import build_evaluator
from meinst_d2.files import require_writable
from meinst_d2.modeling.proposal_generator import GENERATOR_PREFIX, settle_names
from meinst_d2.modeling.tiles import in_tiles

NEEDED = ("MODEL.DEVICE", "MODEL.WEIGHTS", "OUTPUT_DIR", "INPUT.FORMAT")
"""Keys that cannot be null; those of ``MODEL.MEINST`` cannot either."""
LEAST = {"MODEL.MEINST.NUM_CLASSES": 1, "MODEL.MEINST.DIM_MASK": 1, "MODEL.MEINST.MASK_SIZE": 2}
LEAST |= {"SOLVER.IMS_PER_BATCH": 1, "SOLVER.MAX_ITER": 0, "TEST.DETECTIONS_PER_IMAGE": 0}
"""The least values of keys that count something."""
WITHOUT_EFFECT = {
    "MODEL.KEYPOINT_ON": "keypoints are not supported",
    "MODEL.LOAD_PROPOSALS": "proposals from files are not supported",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "set MODEL.MEINST.SCORE_THRESH_TEST (MODEL.RETINANET for MEInstRetinaNet)",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": "set MODEL.MEINST.NMS_THRESH_TEST (MODEL.RETINANET for MEInstRetinaNet)",
}
"""Keys of Detectron2 whose defaults alone are right, and why."""
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

    Reads the starting weights, the categories of training sets and the annotations of test sets, but no images. With
    ``resume`` the last checkpoint of ``OUTPUT_DIR``, if there is one, counts instead of ``MODEL.WEIGHTS``.

    Returns:
        The starting weights, for the trainer of the same process; None for random ones and for URLs.

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

    problems += _wrong_values(cfg)
    stop_here()  # nothing else can be looked at
    check(check_choices, cfg)
    check(check_device, cfg)
    problems += _wrong_keys(cfg)
    check(in_tiles, cfg, nn.Module())
    if not eval_only:
        problems += _wrong_settings(cfg, num_processes)
        check(build_mapper, cfg, [])
    start = check(_open_start, cfg, resume)
    opened, resumes = start or (None, False)
    trains = not (eval_only or resumes)  # the class layer, and perhaps the mask predictor, can be re-initialized
    if start is not None:
        check(_check_weights, cfg, opened, trains, eval_only)
    names = dict.fromkeys((*(() if eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST))
    classes = {name: check(_classes_of, name) for name in names}
    problems += _wrong_classes(cfg, classes, None if trains else opened)
    check(require_writable, os.path.join(cfg.OUTPUT_DIR, "log.txt"))
    stop_here()
    for name in cfg.DATASETS.TEST:
        check(_check_annotations, cfg, name, None if trains else opened)
    stop_here()
    return opened


def _wrong_values(cfg: CfgNode) -> Iterator[str]:
    meinst = cfg.MODEL.MEINST
    needed = [key for key in (*NEEDED, *(f"MODEL.MEINST.{name}" for name in meinst)) if value_of(cfg, key) is None]
    yield from (f"{key} has no value: give it one, or remove it from the config" for key in needed)
    for key, least in LEAST.items():
        if key not in needed and value_of(cfg, key) < least:
            yield f"{key} = {value_of(cfg, key)} must be at least {least}"
    if not needed and meinst.DIM_MASK > meinst.MASK_SIZE**2:
        pixels = f"{meinst.MASK_SIZE**2} pixels of a template of MODEL.MEINST.MASK_SIZE = {meinst.MASK_SIZE}"
        yield f"MODEL.MEINST.DIM_MASK = {meinst.DIM_MASK} is more than the {pixels}: choose fewer"


def _wrong_keys(cfg: CfgNode) -> Iterator[str]:
    """Parts that do not exist, and keys that would do nothing."""
    for key, registry in (("MODEL.META_ARCHITECTURE", META_ARCH_REGISTRY), ("MODEL.BACKBONE.NAME", BACKBONE_REGISTRY)):
        if value_of(cfg, key) not in registry:
            yield f"{key} = {value_of(cfg, key)!r} is registered nowhere: import what defines it"
    defaults = get_cfg()
    for key, why in WITHOUT_EFFECT.items():
        if value_of(cfg, key) != value_of(defaults, key):
            yield f"{key} = {value_of(cfg, key)} has no effect: {why}"


def check_device(cfg: CfgNode) -> None:
    """Raise a ValueError unless torch has the device."""
    device = cfg.MODEL.DEVICE
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"MODEL.DEVICE = {device!r} is not a device: choose cpu, cuda or cuda:N") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"MODEL.DEVICE is {device}, but torch sees no GPU: add MODEL.DEVICE cpu to the command")


def _wrong_settings(cfg: CfgNode, num_processes: int) -> Iterator[str]:
    """What cannot be trained or evaluated on the way."""
    solver, test, architecture = cfg.SOLVER, cfg.TEST, cfg.MODEL.META_ARCHITECTURE
    batch, parts = solver.IMS_PER_BATCH, solver.GRADIENT_ACCUMULATION
    share = batch // (solver.REFERENCE_WORLD_SIZE or num_processes)
    if not cfg.DATASETS.TRAIN:
        yield "DATASETS.TRAIN is empty: name a dataset to train on"
    if solver.REFERENCE_WORLD_SIZE == 0 and batch % num_processes:
        yield f"SOLVER.IMS_PER_BATCH = {batch} cannot be shared by {num_processes} processes: choose a multiple"
    elif parts < 1 or share % parts:
        images = f"{share} images that a process has in a batch of SOLVER.IMS_PER_BATCH = {batch}"
        yield f"SOLVER.GRADIENT_ACCUMULATION = {parts} cannot divide the {images}: choose a divisor"
    can = [name for name, model in META_ARCH_REGISTRY if hasattr(model, "as_parts_of")]
    for key, is_set in (("SOLVER.GRADIENT_ACCUMULATION", parts > 1), ("TEST.VALIDATION_LOSS", test.VALIDATION_LOSS)):
        if is_set and architecture not in can:
            why = f"needs MODEL.META_ARCHITECTURE MEInstDetector, {architecture} normalises its losses otherwise"
            yield f"{key} = {value_of(cfg, key)} {why}: leave it out"
    if not 0 <= solver.EMA_DECAY < 1:
        yield f"SOLVER.EMA_DECAY = {solver.EMA_DECAY} must be below 1, such as 0.9998, or 0 for no average"
    if test.BEST_METRIC and test.BEST_METRIC.split("/")[0] not in ("segm", "bbox"):
        yield f"TEST.BEST_METRIC = {test.BEST_METRIC!r} is not a metric: set it to segm/AP, bbox/AP50 or the like"
    evaluates = test.EVAL_PERIOD > 0 and test.BEST_METRIC and cfg.DATASETS.TEST
    if test.PATIENCE < 0 or (test.PATIENCE > 0 and not evaluates):
        fix = "set TEST.EVAL_PERIOD, TEST.BEST_METRIC and DATASETS.TEST, or TEST.PATIENCE 0"
        yield f"TEST.PATIENCE = {test.PATIENCE} counts evaluations during training: {fix}"


def _open_start(cfg: CfgNode, resume: bool) -> tuple[OpenedCheckpoint | None, bool]:
    """The weights that the run starts from, None for random ones and for URLs, and whether they are the run's own."""
    path, opened = cfg.MODEL.WEIGHTS, open_last_whole(Path(cfg.OUTPUT_DIR)) if resume else None
    if opened is not None:
        return opened, True
    if path and "://" not in path:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"MODEL.WEIGHTS {path} does not exist: give a file, a URL or '' for random weights")
        opened = OpenedCheckpoint(Path(path), read_checkpoint(path))
    return opened, False


def _state(opened: OpenedCheckpoint | None) -> dict[str, Any]:
    """The weights by our names; none where they have names of other projects."""
    if opened is None or opened.content.get("matching_heuristics"):
        return {}
    settle_names(opened.content["model"])
    return opened.content["model"]


def _classes_of(name: str) -> list[str] | None:
    """The names of a dataset's classes, None where only loading it would tell; raises where it is not there."""
    require_dataset(name)
    images = MetadataCatalog.get(name).get("image_root")
    if images is not None and not os.path.isdir(images):
        fix = "name the folder that holds them"
        raise FileNotFoundError(f"the dataset {name!r} has no folder of images {images}: {fix}")
    return class_names(name)


def _wrong_classes(
    cfg: CfgNode, classes: Mapping[str, Sequence[str] | None], trained: OpenedCheckpoint | None
) -> Iterator[str]:
    """Datasets whose ``classes`` are not, by name, those of the model; one that is only evaluated on may lack some.

    ``trained`` are the weights, where they have learned the classes.
    """
    num_classes, first = cfg.MODEL.MEINST.NUM_CLASSES, next(iter(cfg.DATASETS.TRAIN), "")
    source, wanted = first and _described(first), classes.get(first)
    if wanted is None and first in DatasetCatalog:
        with suppress(ValueError, OSError):  # what was trained on need not be here
            wanted = class_names(first)
    if trained is not None and info_of(trained.content).get("class_names"):
        source, wanted = str(trained.path), info_of(trained.content)["class_names"]
    known = wanted if wanted is not None and len(wanted) == num_classes else None
    for name, found in classes.items():
        if found is None or found == known or (known is None and len(found) == num_classes):
            continue
        if known is None:
            key = "MODEL.MEINST.NUM_CLASSES"
            yield f"the dataset {name!r} needs {key} = {len(found)}, not {num_classes}: set {key} {len(found)}"
            continue
        unknown = [x for x in found if x not in known]
        lacking = [x for x in known if x not in found and trained is None and name in cfg.DATASETS.TRAIN]
        there = [x for x in known if x in found]
        moved = [(mine, theirs) for mine, theirs in zip(found, there, strict=False) if mine != theirs]
        if unknown or lacking:
            differences = [f"has {', '.join(unknown)}, which {source} lacks"] if unknown else []
            differences += [f"lacks {', '.join(lacking)} of {source}"] if lacking else []
            yield f"{_described(name)} {' and '.join(differences)}: give both the same categories"
        elif moved:
            mine, theirs = (", ".join(names) for names in zip(*moved, strict=True))
            said = f"{_described(name)} has the classes {mine} in the place of {theirs} of {source}"
            yield f"{said}: give its categories ids that rise in the same order"


def _described(name: str) -> str:
    return f"the dataset {name!r} ({MetadataCatalog.get(name).get('json_file', 'without a file')})"


def _check_annotations(cfg: CfgNode, name: str, trained: OpenedCheckpoint | None) -> None:
    """Raise a ValueError if the evaluator cannot use the annotation file of a COCO dataset."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("json_file") is not None and metadata.get("evaluator_type") == "coco":
        with loading(name):
            build_evaluator(cfg, name, info_of(trained.content).get("class_names") if trained else None)


def _check_refinement(cfg: CfgNode, state: Mapping[str, Any], path: str) -> None:
    """Raise a ValueError if weights do not refine masks as the config asks."""
    refine, key = cfg.MODEL.MEINST.REFINE, "MODEL.MEINST.REFINE"
    if not has_part(state, REFINEMENT):
        fix = f"set {key}.ENABLED False, or train from them first"
        raise ValueError(f"{path} cannot refine masks, {key}.ENABLED asks for it: {fix}")
    if refine.CLASSIFY and not has_part(state, REFINED_CLASSES):
        fix = f"set {key}.CLASSIFY False, or train from them first"
        raise ValueError(f"{path} cannot predict classes again, {key}.CLASSIFY asks for it: {fix}")
    key, value = f"{key}.DETAIL_FEATURE", refine.DETAIL_FEATURE
    if value and not has_part(state, REFINED_DETAILS):
        raise ValueError(f"{path} was trained without {key}, which is {value!r}: set it to ''")
    if not value and has_part(state, REFINED_DETAILS):
        fix = "set it to the map that they were trained with, such as res2"
        raise ValueError(f"{path} was trained with {key}, which is {value!r}: {fix}")


def _check_weights(cfg: CfgNode, opened: OpenedCheckpoint | None, trains: bool, eval_only: bool) -> None:
    """Raise a ValueError if the starting weights, the components and the config do not fit together."""
    meinst, path = cfg.MODEL.MEINST, opened.path if opened else cfg.MODEL.WEIGHTS
    state = _state(opened)
    ours = cfg.MODEL.META_ARCHITECTURE in ("MEInstDetector", "MEInstRetinaNet")
    if eval_only and state and ours and not any(name.startswith(CLASS_LAYER.prefixes) for name in state):
        raise ValueError(f"{path} does not hold a trained detector (it has no class layer): give the weights of one")
    key, count = "MODEL.MEINST.NUM_CLASSES", num_classes_of(state)
    if not trains and ours and count not in (0, meinst.NUM_CLASSES):
        fix = f"set {key} {count}, or first train on the new classes (the class layer is then re-initialized)"
        raise ValueError(f"{path} was trained with {key} = {count}, the config asks for {meinst.NUM_CLASSES}: {fix}")
    if not cfg.MODEL.MASK_ON:
        return
    if not trains and state and ours and meinst.REFINE.ENABLED:
        _check_refinement(cfg, state, path)
    conflict = meinst.COMPONENTS_CONFLICT if trains else "weights"
    encodes = meinst.MASK_REPRESENTATION != "none"
    encoder = dict(MASK_ENCODER_REGISTRY).get(meinst.ENCODER)
    if encodes and encoder is not None and encoder.needs_components:
        _check_components(cfg, opened, conflict)
        return
    key, wanted = ("DIM_MASK", meinst.DIM_MASK) if encodes else ("MASK_SIZE", meinst.MASK_SIZE**2)
    names = [GENERATOR_PREFIX + f"head.mask_pred.{name}" for name in ("bias", "conv_l1.conv.bias")]
    predicted = next((state[name].numel() for name in names if name in state), wanted)
    if predicted != wanted and conflict != "file":
        fix = f"change MODEL.MEINST.{key} or MODEL.MEINST.MASK_REPRESENTATION, or {REINITIALIZE}"
        raise ValueError(f"{path} predicts {predicted} values per mask, the config asks for {wanted}: {fix}")


def _check_components(cfg: CfgNode, opened: OpenedCheckpoint | None, conflict: str) -> None:
    """Raise a ValueError unless components of the file or of the weights fit the config, and each other."""
    meinst, file, weights = cfg.MODEL.MEINST, cfg.MODEL.MEINST.COMPONENTS, cfg.MODEL.WEIGHTS
    SigmoidClamp(*meinst.SIGMOID_CLAMP)
    of_file = load_components(file) if os.path.isfile(file) else None
    if of_file is not None:
        rows = torch.stack([torch.as_tensor(basis.components) for basis in of_file.bases])  # (dictionaries, D, S*S)
        _require_fit(file, meinst, rows, {"sigmoid": of_file.sigmoid, "whiten": of_file.whiten})
    carried = carried_components(_state(opened), opened.path) if opened else None
    if opened and carried is not None and not (conflict == "file" and of_file):
        try:
            _require_fit(str(opened.path), meinst, carried, info_of(opened.content))
        except ValueError as error:
            raise ValueError(f"{error}; or {REINITIALIZE}") from error
        if of_file and conflict == "stop" and not torch.allclose(rows, carried.reshape(rows.shape), 1e-5, 1e-6):
            raise ValueError(COMPONENTS_DIFFER)
    only_a_download_tells = opened is None and "://" in weights and "ImageNetPretrained" not in weights
    if of_file is None and carried is None and not only_a_download_tells:
        where = f"{file} does not exist" if file else "MODEL.MEINST.COMPONENTS names no file"
        class_specific = "--class-specific " if MASK_ENCODER_REGISTRY.get(meinst.ENCODER).class_specific else ""
        raise ValueError(
            f"the masks have no components: {where} and {weights or 'random weights'} do not carry them; run "
            f"meinst fit --dataset {' '.join(cfg.DATASETS.TRAIN) or 'NAME'} --dim {meinst.DIM_MASK} --mask-size "
            f"{meinst.MASK_SIZE} {class_specific}--output {file or 'FILE and set MODEL.MEINST.COMPONENTS FILE'}"
        )


def _require_fit(source: str, meinst: CfgNode, rows: torch.Tensor, about: Mapping[str, Any]) -> None:
    """Raise a ValueError if components, (D, S*S) or those of every dictionary, do not fit ``MODEL.MEINST``.

    ``about`` has ``encoder``, ``sigmoid`` and ``whiten``, as far as it is recorded how they were made.
    """
    class_specific = MASK_ENCODER_REGISTRY.get(meinst.ENCODER).class_specific
    per_class = "--class-specific" if class_specific else "without --class-specific"
    for name, found, key, option in (
        ("encoder", about.get("encoder"), "ENCODER", per_class),
        ("D", rows.shape[-2], "DIM_MASK", f"--dim {meinst.DIM_MASK}"),
        ("S", round(rows.shape[-1] ** 0.5), "MASK_SIZE", f"--mask-size {meinst.MASK_SIZE}"),
        ("sigmoid", about.get("sigmoid"), "SIGMOID", "without --no-sigmoid" if meinst.SIGMOID else "--no-sigmoid"),
        ("whiten", about.get("whiten"), "WHITEN", "without --no-whiten" if meinst.WHITEN else "--no-whiten"),
    ):
        if found is not None and found != meinst[key]:
            asks = f"the config asks for MODEL.MEINST.{key} = {meinst[key]}"
            fix = f"run meinst fit {option}, or set MODEL.MEINST.{key} {found}"
            raise ValueError(f"the components in {source} have {name} = {found}, {asks}: {fix}")
    count, wanted = len(rows) if rows.ndim == 3 else 1, meinst.NUM_CLASSES if class_specific else 1
    if count != wanted:
        holds, fix = f"{count} {'dictionary' if count == 1 else 'dictionaries'}", f"run meinst fit {per_class}"
        needs = f"MODEL.MEINST.ENCODER {meinst.ENCODER} needs {wanted}"
        raise ValueError(f"{source} holds {holds}, {needs}: {fix}, or choose another encoder")
