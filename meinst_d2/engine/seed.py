"""One seed per run, on every process and after every restart."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from meinst_d2.files import atomic_path

SEED_FILE = "seed.txt"


def settle_seed(cfg: CfgNode, resume: bool) -> None:
    """Give ``cfg.SEED`` a value that is not negative.

    A negative SEED is replaced by one that is drawn once and kept in ``OUTPUT_DIR/seed.txt``, where a resumed run finds
    it. Every process calls this; all get the value of the first.
    """
    if cfg.SEED >= 0:
        return
    path = Path(cfg.OUTPUT_DIR) / SEED_FILE
    seed = comm.shared_random_seed() % 2**31
    if comm.is_main_process():
        if resume and path.exists():
            seed = int(path.read_text())
        else:
            with atomic_path(path) as temporary:
                temporary.write_text(f"{seed}\n")
    frozen = cfg.is_frozen()
    cfg.defrost()
    cfg.SEED = comm.all_gather(seed)[0]
    if frozen:
        cfg.freeze()
