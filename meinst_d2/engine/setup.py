"""What a command does first."""

from __future__ import annotations

import argparse
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_setup as setup_of_detectron2
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger


def default_setup(cfg: Any, args: argparse.Namespace) -> None:
    """Detectron2's, with the messages of this package in the same log.

    Args:
        cfg: a CfgNode or a lazy config.
        args: of Detectron2's argument parser.
    """
    setup_of_detectron2(cfg, args)
    folder = cfg.OUTPUT_DIR if isinstance(cfg, CfgNode) else cfg.train.output_dir
    setup_logger(folder, distributed_rank=comm.get_rank(), name="meinst_d2", abbrev_name="meinst")
