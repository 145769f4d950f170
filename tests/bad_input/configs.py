"""YAML configs and overrides on the command line."""

from pathlib import Path

from tests.bad_input.annotations import written
from tests.bad_input.case import TINY, Call, Case, check_dataset_with, coco_content, train_with
from tests.conftest import ROOT

LAZY = ROOT / "configs/lazy/meinst_r50.py"


def config(wrong: str, text: str | bytes, **others: str) -> Case:
    """The config c.yaml, and other files by name."""

    def make(folder: Path) -> Call:
        (folder / "c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        for name, content in others.items():
            (folder / f"{name}.yaml").write_text(content)
        return train_with(folder, config=folder / "c.yaml")

    return Case("meinst train", wrong, make)


def absent(name: str) -> Case:
    return Case("meinst train", f"no {name}", lambda folder: train_with(folder, config=folder / name))


def override(wrong: str, *overrides: object) -> Case:
    return Case("meinst train", wrong, lambda folder: train_with(folder, *overrides))


def odd(folder: Path) -> Call:
    """Overrides alone, since the case adds none of its own."""
    from meinst_d2.commands import train as train_command

    return lambda: train_command.main(["--config-file", TINY, "SOLVER.MAX_ITER", "10", "OUTPUT_DIR"])


CASES = [
    absent("c.yaml"),
    absent("c.py"),
    config("Python objects that run code", "MODEL: !!python/object/apply:os.system [exit]"),
    config("Python tuples", "DATASETS:\n  TRAIN: !!python/tuple [a]"),
    config("Python objects in its _BASE_", "_BASE_: base.yaml", base="MODEL: !!python/name:os.system"),
    config("no _BASE_ of the name", "_BASE_: base.yaml"),
    config("a _BASE_ that leads back", "_BASE_: c.yaml"),
    config("a _BASE_ that is no name", "_BASE_: 5"),
    config("a _BASE_ on the web", "_BASE_: https://example.com/base.yaml"),
    config("of a run of a LazyConfig", "model: {_target_: a.Model}\ntrain: {seed: 1}"),
    config("empty", ""),
    config("a list", "- MODEL"),
    config("no YAML", "MODEL:\n\tWEIGHTS: a"),
    config("not UTF-8", b"\xff\xfe"),
    config(
        "aliases of aliases, which stand for a million million values",
        "\n".join(["A0: &a0 [x]", *(f"A{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 41))]),
    ),
    config("an unknown key", "MODEL:\n  MEINST:\n    dim_mask: 60"),
    config("a value of another type", "MODEL:\n  MEINST:\n    DIM_MASK: sixty"),
    config("a value for a group of keys", "MODEL: 5"),
    config("a key that is a number", "5: 6"),
    config("a version that is a string", "VERSION: two"),
    config("a later version", "VERSION: 9"),
    Case("meinst train", "a key without its value on the command line", odd),
    Case("meinst train", "overrides of YAML for a LazyConfig", lambda folder: train_with(folder, config=LAZY)),
    override("an unknown key on the command line", "SOLVER.max_iter", 10),
    override("a value of another type on the command line", "SOLVER.BASE_LR", "fast"),
    override("a name where several belong", "DATASETS.TRAIN", "shapes_train"),
    override("null", "MODEL.MEINST.DIM_MASK", None),
    override("a negative D", "MODEL.MEINST.DIM_MASK", -8),
    override("more components than pixels", "MODEL.MEINST.DIM_MASK", 1000),
    override("a choice that is none", "MODEL.MEINST.NORM", "BN"),
    override("an unknown encoder", "MODEL.MEINST.ENCODER", "VAE"),
    override("an unknown model", "MODEL.META_ARCHITECTURE", "YOLO"),
    override("an unknown device", "MODEL.DEVICE", "gpu"),
    override("an unknown dataset", "DATASETS.TRAIN", "('shapes_trian',)"),
    override("another number of classes than the dataset's", "MODEL.MEINST.NUM_CLASSES", 80),
    override("another D than the components'", "MODEL.MEINST.DIM_MASK", 60),
    Case(
        "meinst train",
        "a --coco-dataset of another form",
        lambda folder: train_with(folder, flags=("--coco-dataset", "mine")),
    ),
    Case(
        "meinst check --config-file",
        "Python objects that run code",
        lambda folder: (
            (folder / "c.yaml").write_text("MODEL: !!python/name:os.system"),
            check_dataset_with(written(folder, coco_content()), "--config-file", folder / "c.yaml"),
        )[1],
    ),
]
