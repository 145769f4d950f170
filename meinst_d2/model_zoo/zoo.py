"""Configs and the trained models that belong to them, by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode, LazyConfig, get_cfg
from hydra.errors import HydraException
from omegaconf import DictConfig

from meinst_d2 import add_meinst_config
from meinst_d2.config_file import ConfigError, merge_config_file, merge_content, plain_yaml

CONFIG_FOLDERS = (Path(__file__).parent / "configs", Path(__file__).parents[2] / "configs")
"""Where an installed package and a checkout have them."""
PUBLISHED_PAGE = "https://github.com/aim-uofa/AdelaiDet/tree/master/configs/MEInst-InstanceSegmentation"
PUBLISHED_LICENCE = "licensed by its authors for non-commercial use"
PUBLISHED_FOLDER = "https://huggingface.co/ZjuCv/AdelaiDet/resolve/main"

URLS = {
    name: f"{PUBLISHED_FOLDER}/{name}.pth"
    for name in ("MEInst_R_50_1x_none", "MEInst_R_50_1x", "MEInst_R_50_3x", "MEInst_R_50_3x_512")
}
"""Of published models, by the name of their config, as PUBLISHED_PAGE gives them."""
MODELS = Path(__file__).parents[2] / "zoo"
"""Models that were trained here, NAME-SHA256.safetensors: a checkout has them, an installed package does not."""


def model_names() -> dict[str, str]:
    """The files of the models in :data:`MODELS`, by name."""
    return {path.stem.rpartition("-")[0]: str(path) for path in sorted(MODELS.glob("*-*.safetensors"))}


def get_config_file(name: str) -> str:
    """The path of a config of this project.

    Args:
        name: below ``configs/``: "MEInst_R_50_3x", "demo/shapes.yaml", "lazy/meinst_r50.py"; .yaml can be left out.

    Raises:
        ValueError: there is none; the sentence names the nearest.
    """
    name = name.removesuffix(".yaml")
    folder = next((folder for folder in CONFIG_FOLDERS if folder.is_dir()), None)
    if folder is None:
        raise ValueError(f"there are no configs at {' or '.join(map(str, CONFIG_FOLDERS))}: install meinst_d2 again")
    files = [path for suffix in ("yaml", "py") for path in folder.rglob(f"*.{suffix}")]
    known = {path.relative_to(folder).as_posix().removesuffix(".yaml"): path for path in files}
    if name not in known:
        near = difflib.get_close_matches(name, known, 3, 0.3)
        raise ValueError(f"unknown config {name}" + (f": did you mean {' or '.join(near)}?" if near else ""))
    return str(known[name])


def get_config(name: str, trained: bool = False) -> CfgNode | DictConfig:
    """A config of this project by name, a LazyConfig where it is a .py.

    ``MODEL.WEIGHTS`` is what training starts from or, for the trained model, what :func:`get_checkpoint_url` says.
    """
    cfg = read_config(get_config_file(name))
    if trained and isinstance(cfg, CfgNode):
        cfg.MODEL.WEIGHTS = get_checkpoint_url(name)
    elif trained:
        cfg.train.init_checkpoint = get_checkpoint_url(name)
    return cfg


def read_config(file: str) -> CfgNode | DictConfig:
    """A config from a .yaml or .py file."""
    if file.endswith(".py"):
        return LazyConfig.load(file)
    cfg = get_cfg()
    add_meinst_config(cfg)
    merge_config_file(cfg, file)
    return cfg


def override_lazy(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A LazyConfig with overrides, KEY=VALUE; raises a ConfigError where one has another form."""
    try:
        return LazyConfig.apply_overrides(cfg, list(overrides))
    except (HydraException, KeyError) as error:
        given = " ".join(map(str, overrides))
        raise ConfigError(f"the overrides {given} do not fit: a LazyConfig takes KEY=VALUE ... of its keys") from error


def config_from_string(text: str, source: object = "the config") -> CfgNode:
    """A config from YAML; raises a ConfigError that names ``source`` if it is not one of plain values that fit."""
    cfg = get_cfg()
    add_meinst_config(cfg)
    try:
        content = plain_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{source} is refused: {error}") from error
    merge_content(cfg, content, source)
    return cfg


def get_checkpoint_url(name: str) -> str:
    """The URL of the published model of a config, or the path of a model that was trained here, by its name.

    Raises:
        ValueError: no such model is known.
    """
    if name in model_names():
        return model_names()[name]
    get_config_file(name)
    name = name.removesuffix(".yaml")
    if name not in URLS:
        raise ValueError(f"no trained model is known for {name}: train it with meinst train")
    return URLS[name]
