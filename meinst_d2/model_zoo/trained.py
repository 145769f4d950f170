"""From a config and weights, or from either where that says enough, to a model that finds objects in images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import detectron2.data.detection_utils as detection_utils
import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import CfgNode, instantiate
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Instances
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn

import meinst_d2.modeling  # noqa: F401  registers the model
from meinst_d2.checkpoint.checkpointer import MEInstCheckpointer, carried_components, fetch, info_of
from meinst_d2.checkpoint.compatibility import (
    CLASS_LAYER,
    REFINED_CLASSES,
    REFINED_DETAILS,
    REFINEMENT,
    has_part,
    num_classes_of,
)
from meinst_d2.checkpoint.readers import read_checkpoint
from meinst_d2.config_file import merge_overrides
from meinst_d2.data.image_files import read_image
from meinst_d2.model_zoo import zoo
from meinst_d2.modeling.proposal_generator import settle_names
from meinst_d2.modeling.test_time_augmentation import DetectorWithTTA
from meinst_d2.modeling.tiles import in_tiles

AnyImage = str | os.PathLike[str] | np.ndarray | Image.Image
WEIGHT_SUFFIXES = (".pth", ".pyth", ".pkl", ".safetensors")
RUN_CONFIG = "config.yaml"


class UnusableImage(ValueError):
    """An image that cannot be shown to the network."""


@dataclass(frozen=True)
class TrainedModel:
    """A model that can be called on an image, like Detectron2's DefaultPredictor.

    Attributes:
        model: in evaluation mode, on its device.
        resize: what brings an image to the size that the network sees.
        image_format: "BGR" or "RGB", the order of the channels that it learned.
        class_names: K names.
        weights: where they are from.
        notes: sentences that the user should read.
        detector: what is called with whole images instead, where the config asks for test-time augmentation or tiles.
    """

    model: nn.Module
    resize: T.Augmentation
    image_format: str
    class_names: list[str]
    weights: str
    notes: list[str] = field(default_factory=list)
    detector: nn.Module | None = None

    @torch.no_grad()
    def __call__(self, image: AnyImage, *, min_score: float = 0.0, masks: str = "bitmask") -> Instances:
        """
        Args:
            image: a path, an (H, W, 3) uint8 RGB array, or an image of Pillow, turned as its EXIF orientation says.
            min_score: least score of a detection.
            masks: "bitmask" for ``pred_masks`` (n, H, W) bool; "rle" for ``pred_masks_rle``, n COCO RLEs.

        Returns:
            On the CPU, at the image's size, the highest score first: ``pred_boxes``, ``scores``, ``pred_classes`` and,
            of a model of masks, one of the two.

        Raises:
            OSError: the file cannot be read.
            UnusableImage: it is another array, or so thin that nothing is left of it at the network's size.
        """
        pixels = _rgb(image)
        height, width = pixels.shape[:2]
        resized = T.AugInput(pixels[:, :, ::-1] if self.image_format == "BGR" else pixels)
        detector = self.detector or self.model
        try:
            if self.detector is None:
                self.resize(resized)
        except ValueError as error:  # Pillow's, for a side of 0
            raise UnusableImage(
                f"{width} x {height} pixels cannot be brought to the network's size: {error}"
            ) from error
        if masks not in ("bitmask", "rle"):
            raise ValueError(f"masks = {masks!r} must be 'bitmask' or 'rle'")
        detector.mask_output = masks
        values = resized.image.astype("float32") if self.detector is None else resized.image
        tensor = torch.as_tensor(values.transpose(2, 0, 1).copy())
        found = detector([{"image": tensor, "height": height, "width": width}])[0]["instances"].to("cpu")
        found = found[found.scores >= min_score]
        return found[found.scores.argsort(descending=True, stable=True)]


def _rgb(image: AnyImage) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    if isinstance(image, (str, os.PathLike)):
        return read_image(os.fspath(image), "RGB")
    if isinstance(image, Image.Image):
        if image.mode[0] in "IF":
            raise UnusableImage(f"an image of Pillow's mode {image.mode} has more than 8 bits: convert it to RGB")
        return detection_utils.convert_PIL_to_numpy(detection_utils._apply_exif_orientation(image), "RGB")
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        kind = f"{image.dtype} of shape {image.shape}" if hasattr(image, "dtype") else type(image).__name__
        raise UnusableImage(f"an array must be (H, W, 3) uint8 RGB, not {kind}")
    return image


def load(
    source: str | os.PathLike[str], *, weights: str | None = None, config_file: str | None = None, **options: Any
) -> TrainedModel:
    """A trained model, ready to be called on an image.

    Args:
        source: a file of weights, its URL, a config file, or a name as for
            :func:`~meinst_d2.model_zoo.get_config_file`.
        weights, config_file, options: what the source does not say, ``overrides`` and ``device``: see
            :func:`load_trained`.
    """
    source = os.fspath(source)
    if _names_weights(source):
        return load_trained(config_file, weights or source, **options)
    return load_trained(config_file or source, weights, **options)


def load_trained(
    config_file: str | None = None, weights: str | None = None, overrides: Sequence[str] = (), device: str | None = None
) -> TrainedModel:
    """A trained model.

    The number of classes and the form of the masks' components are those of the weights, and need not be set.

    Args:
        config_file: a path, a name as for :func:`~meinst_d2.model_zoo.get_config_file`, or that of a model in ``zoo/``.
            None for weights that carry their config, as meinst publish and import write them, or lie beside the
            ``config.yaml`` of their run.
        weights: a file, a URL or the name of a model in ``zoo/``. None for ``MODEL.WEIGHTS`` of the overrides, the
            ``model_final.pth`` beside the config, the trained model of the name, or ``MODEL.WEIGHTS`` of the config,
            the first that there is.
        overrides: KEY VALUE pairs for the config; KEY=VALUE for a LazyConfig.
        device: where; by default that of the config, or "cpu" where there is no GPU.

    Raises:
        OSError: a file is missing, or a download failed.
        ValueError: the weights are not those of a trained model, or not of this config.
    """
    cfg: CfgNode | DictConfig | None = None
    if config_file in zoo.model_names() and not os.path.isfile(config_file):
        config_file, weights = None, weights or config_file
    if config_file is not None:
        file = config_file if os.path.isfile(config_file) else zoo.get_config_file(config_file)
        cfg = zoo.read_config(file)
        cfg = zoo.override_lazy(cfg, overrides) if isinstance(cfg, DictConfig) else cfg
        weights = weights or _weights_of(cfg, file, config_file, overrides)
    elif not weights:
        raise ValueError("no model: give --config-file, --weights or both")
    content, path = read_weights(weights)
    state, about = content["model"], info_of(content)
    cfg = cfg or config_of(path, about)
    if not any(name.startswith(CLASS_LAYER.prefixes) for name in state):
        raise ValueError(f"{path} does not hold a trained detector (it has no class layer): give the weights of one")
    if isinstance(cfg, CfgNode):
        _fit_config(cfg, state, about, path)
        merge_overrides(cfg, overrides)
    notes: list[str] = []
    model = build(cfg, device, notes)
    _fill(model, state, path)
    if isinstance(cfg, CfgNode):
        num_classes, datasets, image_format = cfg.MODEL.MEINST.NUM_CLASSES, cfg.DATASETS.TRAIN, cfg.INPUT.FORMAT
        resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    else:
        mapper, num_classes = cfg.dataloader.test.mapper, model.proposal_generator.head.cls_logits.out_channels
        augmentations = [instantiate(augmentation) for augmentation in mapper.augmentations]
        resize = augmentations[0] if len(augmentations) == 1 else T.AugmentationList(augmentations)
        datasets, image_format = (), mapper.image_format
    names, model = _class_names(num_classes, about, datasets, notes), model.eval()
    detector = model
    if isinstance(cfg, CfgNode):
        detector = in_tiles(cfg, DetectorWithTTA(cfg, model).eval() if cfg.TEST.AUG.ENABLED else model)
    whole = detector if detector is not model else None
    return TrainedModel(model, resize, image_format, names, path, notes, whole)


def get(source: str | os.PathLike[str], trained: bool | None = None, device: str | None = None) -> nn.Module:
    """A model by name, or from a file of weights.

    Args:
        source: a name as for :func:`get_config_file`, a file of weights that carries its config or lies beside that of
            its run, or the URL of one.
        trained: by name, with the trained weights instead of those that training starts from (default False); from a
            file, with its weights (default True) instead of random ones.
        device: where; by default that of the config, or "cpu" where there is no GPU.

    Returns:
        The model; from a file in evaluation mode, by name in training mode, as Detectron2 has it.

    Raises:
        OSError: a file is missing, or a download failed.
        ValueError: the name is unknown, or the file is not that of a trained model with its config.
    """
    source = os.fspath(source)
    if _names_weights(source):
        if trained is not False:
            return load_trained(None, source, (), device).model
        content, path = read_weights(source)
        return build(config_of(path, info_of(content)), device).eval()
    cfg = zoo.get_config(source, bool(trained))
    model = build(cfg, device)
    MEInstCheckpointer(model).load(cfg.MODEL.WEIGHTS if isinstance(cfg, CfgNode) else cfg.train.init_checkpoint)
    return model


def get_info(source: str | os.PathLike[str]) -> dict[str, Any]:
    """What a published file or URL says about itself: name, class_names, config (a string), metrics, versions."""
    return info_of(read_weights(source)[0])


def _names_weights(source: str) -> bool:
    config = source.endswith((".yaml", ".yml", ".py"))
    if "://" in source or source.endswith(WEIGHT_SUFFIXES) or source in zoo.model_names():
        return True
    return os.path.isfile(source) and not config


def read_weights(source: str | os.PathLike[str]) -> tuple[dict[str, Any], str]:
    """A checkpoint, from a file, a URL or by the name of a model, whose weights have our names, and its local path."""
    path, models = os.fspath(source), zoo.model_names()
    if "://" in path:
        try:
            path = fetch(path)
        except OSError as error:
            if source not in zoo.URLS.values():
                raise
            by_hand = f"download it by hand from {zoo.PUBLISHED_PAGE} ({zoo.PUBLISHED_LICENCE}) and give its path"
            raise OSError(f"{error}: {by_hand}") from error
    elif not os.path.isfile(path):
        if path not in models:
            named = f", or the name of a model: {', '.join(models)}" if models else ""
            raise FileNotFoundError(f"the file of weights {path} does not exist: give --weights FILE or a URL{named}")
        path = models[path]
    content = read_checkpoint(path)
    settle_names(content["model"])
    return content, path


def config_of(path: str, about: Mapping[str, Any]) -> CfgNode:
    """The config that weights carry, or that of the run whose folder they are in."""
    beside = Path(path).parent / RUN_CONFIG
    if "config" in about:
        cfg = zoo.config_from_string(about["config"], f"the config in {path}")
        cfg.MODEL.MEINST.COMPONENTS = ""  # the file's word must not make this machine open other files
        return cfg
    if beside.is_file():
        return zoo.read_config(str(beside))
    fix = "give --config-file, or publish it with meinst publish"
    raise ValueError(f"{path} carries no config, and {RUN_CONFIG} is not beside it: {fix}")


def build(cfg: CfgNode | DictConfig, device: str | None = None, notes: list[str] | None = None) -> nn.Module:
    """The model of a config, with random weights.

    Args:
        cfg: left as it is.
        device: where; "meta" for a model without memory for its weights.
        notes: gets a sentence where that is another place than the config says.

    Raises:
        ValueError: the config cannot be built, or there is no such device.
    """
    where = device or (cfg.MODEL.DEVICE if isinstance(cfg, CfgNode) else cfg.train.device)
    if where.startswith("cuda") and not torch.cuda.is_available():
        if device is not None:
            raise ValueError(f"--device {device}: torch sees no GPU, choose cpu")
        where = "cpu"
        (notes if notes is not None else []).append("torch sees no GPU: running on the CPU")
    if isinstance(cfg, DictConfig):
        return instantiate(cfg.model).to(where)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = where
    if where == "meta":
        cfg.MODEL.MEINST.COMPONENTS = ""
        cfg.MODEL.TIMM.PRETRAINED, cfg.MODEL.TIMM.CHECKPOINT = False, ""
    try:
        with torch.device("meta") if where == "meta" else nullcontext():
            return build_model(cfg)
    except (AssertionError, KeyError) as error:
        raise ValueError(f"the config cannot be built: {type(error).__name__} {error}") from error


def require_same_tensors(model: nn.Module, state: Mapping[str, Tensor], path: object) -> None:
    """Raise a ValueError that lists the tensors that are missing, unexpected or of another shape.

    Args:
        model: on any device.
        state: weights by our names.
        path: where they are from.
    """
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in expected]
    changed = [name for name, shape in expected.items() if found.get(name, shape) != shape]
    problems += [f"{name} has shape {found[name]} instead of {expected[name]}" for name in changed]
    if problems:
        raise ValueError(f"the weights in {path} do not belong to the config:\n  " + "\n  ".join(problems))


def _weights_of(cfg: CfgNode | DictConfig, file: str, name: str, overrides: Sequence[str]) -> str:
    """The weights that belong to a config where none are named."""
    given = dict(zip(overrides[::2], overrides[1::2], strict=False))
    if "MODEL.WEIGHTS" in given:
        return given["MODEL.WEIGHTS"]
    beside = Path(file).parent / "model_final.pth"
    if beside.is_file():
        return str(beside)
    if name.removesuffix(".yaml") in zoo.URLS:
        return zoo.get_checkpoint_url(name)
    weights: str = cfg.MODEL.WEIGHTS if isinstance(cfg, CfgNode) else cfg.train.init_checkpoint
    if not weights or "ImageNetPretrained" in weights:
        raise ValueError(f"{name} names no trained weights: give --weights model.pth")
    return weights


def _fit_config(cfg: CfgNode, state: Mapping[str, Tensor], about: Mapping[str, Any], path: str) -> None:
    """Set what the weights leave no choice about: the number of classes, and how masks are encoded."""
    meinst = cfg.MODEL.MEINST
    num_classes = num_classes_of(state)
    if num_classes == 0:
        raise ValueError(f"{path} does not say how many classes it knows: it lacks a bias of the class layer")
    meinst.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = num_classes
    meinst.REFINE.ENABLED, meinst.REFINE.CLASSIFY = has_part(state, REFINEMENT), has_part(state, REFINED_CLASSES)
    if not has_part(state, REFINED_DETAILS):
        meinst.REFINE.DETAIL_FEATURE = ""
    cfg.MODEL.TIMM.PRETRAINED, cfg.MODEL.TIMM.CHECKPOINT = False, ""  # what training started from
    components = carried_components(state, path)
    if components is not None:
        meinst.DIM_MASK, meinst.MASK_SIZE = components.shape[-2], round(components.shape[-1] ** 0.5)
        meinst.COMPONENTS = ""  # the weights have them
        for name in ("ENCODER", "SIGMOID", "WHITEN"):
            meinst[name] = about.get(name.lower(), meinst[name])


def _fill(model: nn.Module, state: Mapping[str, Tensor], path: str) -> None:
    """Load weights that must be those of the model; components that it has already may be missing.

    A model that is asked for without its refinement head draws the masks of the codes alone.
    """
    encoder = getattr(getattr(model, "proposal_generator", model), "mask_encoder", None)
    own = model.state_dict()
    absent = [part for part in (REFINEMENT, REFINED_CLASSES) if not has_part(own, part)]
    complete = {name: value for name, value in state.items() if not any(has_part([name], part) for part in absent)}
    if encoder is None or encoder.is_fitted:
        complete = {name: own[name] for name in own if "mask_encoder." in name} | complete
    require_same_tensors(model, complete, path)
    model.load_state_dict(complete)
    if encoder is not None and not encoder.is_fitted:
        fix = "add the override MODEL.MEINST.COMPONENTS FILE.npz, with the components that the model was trained with"
        raise ValueError(f"{path} carries no mask components: {fix}")


def _class_names(num_classes: int, about: Mapping[str, Any], datasets: Sequence[str], notes: list[str]) -> list[str]:
    """Those that the checkpoint says, those of a dataset that is registered, or numbers."""
    for names in (about.get("class_names"), *(MetadataCatalog.get(x).get("thing_classes") for x in datasets[:1])):
        if names is not None and len(names) == num_classes:
            return [str(name) for name in names]
    notes.append("the weights do not say what their classes are called: they are numbered")
    return [f"class {i}" for i in range(num_classes)]
