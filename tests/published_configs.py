"""Configs as owners of published checkpoints have them: a base file, and short files that name it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

BASE = """\
MODEL:
  META_ARCHITECTURE: "OneStageDetector"
  MASK_ON: True
  BACKBONE: {NAME: "build_fcos_resnet_fpn_backbone"}
  RESNETS: {OUT_FEATURES: ["res3", "res4", "res5"]}
  FPN: {IN_FEATURES: ["res3", "res4", "res5"]}
  PROPOSAL_GENERATOR: {NAME: "MEInst"}
DATASETS:
  TRAIN: ("coco_2017_train",)
  TEST: ("coco_2017_val",)
SOLVER:
  IMS_PER_BATCH: 16
  BASE_LR: 0.01
  STEPS: (60000, 80000)
  MAX_ITER: 90000
INPUT:
  MIN_SIZE_TRAIN: (640, 672, 704, 736, 768, 800)
VERSION: 2
"""

ONE_X = """\
_BASE_: "Base-MEInst.yaml"
MODEL:
  WEIGHTS: "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
  RESNETS: {{DEPTH: 50}}
  MEInst: {{USE_DEFORMABLE: {deformable}, LAST_DEFORMABLE: {deformable}}}
SOLVER: {{WARMUP_METHOD: "constant", WARMUP_FACTOR: 0.3333, WARMUP_ITERS: 500}}
INPUT:
  MIN_SIZE_TRAIN: (800,)
OUTPUT_DIR: "output/MEInst/R_50_1x"
"""

FILES = {
    "Base-MEInst.yaml": BASE,
    "MEInst_R_50_1x.yaml": ONE_X.format(deformable=True),
    "MEInst_R_50_1x_none.yaml": ONE_X.format(deformable=False),
}


def write_published_config(folder: Path, base: str, overrides: Mapping[str, Any] | Sequence[Any] = ()) -> Path:
    """A config below ``base`` (a name in :data:`FILES`), with overrides by dotted key, and the files it stands on."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    if not isinstance(overrides, Mapping):
        overrides = dict(zip(overrides[0::2], overrides[1::2], strict=True))
    content: dict[str, Any] = {"_BASE_": base}
    for key, value in overrides.items():
        *path, name = key.split(".")
        node = content
        for part in path:
            node = node.setdefault(part, {})
        node[name] = value
    (folder / "theirs.yaml").write_text(yaml.safe_dump(content))
    return folder / "theirs.yaml"
