"""YAML configs and overrides on the command line."""

from __future__ import annotations

from pathlib import Path

from tests.bad_input.annotations import written
from tests.bad_input.case import Call, Case, check_dataset_with, coco_content, train_with

LAZY = ": write plain values, and lists for tuples, or use a LazyConfig (.py) whose author you trust"
UNFIT = "meinst train: c.yaml does not fit this version of meinst_d2: "
REFUSED = "meinst train: the config c.yaml is refused: "


def config(wrong: str, text: str | bytes, gets: str, **others: str) -> Case:
    """The config c.yaml, and other files by name."""

    def make(folder: Path) -> Call:
        (folder / "c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        for name, content in others.items():
            (folder / f"{name}.yaml").write_text(content)
        return train_with(folder, config=folder / "c.yaml")

    return Case("meinst train", wrong, gets, make)


def absent(name: str) -> Case:
    sentence = f"meinst train: there is no config file {name}: name one that exists"
    return Case("meinst train", f"no {name}", sentence, lambda folder: train_with(folder, config=folder / name))


def override(wrong: str, gets: str, *overrides: object) -> Case:
    return Case("meinst train", wrong, f"meinst train: {gets}", lambda folder: train_with(folder, *overrides))


def odd(folder: Path) -> Call:
    """Overrides alone, since the case adds none of its own."""
    from meinst_d2.commands import train as train_command
    from tests.bad_input.case import TINY

    return lambda: train_command.main(["--config-file", TINY, "SOLVER.MAX_ITER", "10", "OUTPUT_DIR"])


CASES = [
    absent("c.yaml"),
    absent("c.py"),
    config(
        "Python objects that run code",
        "MODEL: !!python/object/apply:os.system [exit]",
        f"{REFUSED}it holds Python objects (python/object/apply:os.system), which can run code{LAZY}",
    ),
    config(
        "Python tuples",
        "DATASETS:\n  TRAIN: !!python/tuple [a]",
        f"{REFUSED}it holds Python objects (python/tuple), which can run code{LAZY}",
    ),
    config(
        "Python objects in its _BASE_",
        "_BASE_: base.yaml",
        f"{REFUSED}it holds Python objects (python/name:os.system), which can run code{LAZY}".replace(
            "c.yaml", "base.yaml"
        ),
        base="MODEL: !!python/name:os.system",
    ),
    config(
        "no _BASE_ of the name",
        "_BASE_: base.yaml",
        "meinst train: there is no config file base.yaml, the _BASE_ of c.yaml: put it there",
    ),
    config("a _BASE_ that leads back", "_BASE_: c.yaml", f"{REFUSED}its _BASE_ leads back to itself"),
    config("a _BASE_ that is no name", "_BASE_: 5", f"{REFUSED}its _BASE_ 5 does not name a file"),
    config("empty", "", f"{REFUSED}it holds nothing instead of keys with values"),
    config("a list", "- MODEL", f"{REFUSED}it holds a list instead of keys with values"),
    config(
        "no YAML",
        "MODEL:\n\tWEIGHTS: a",
        f"{REFUSED}it is not YAML (in line 2: found character '\\t' that cannot start any token)",
    ),
    config("not UTF-8", b"\xff\xfe", f"{REFUSED}it is not text in UTF-8"),
    config(
        "aliases of aliases, which stand for a million million values",
        "\n".join(["A0: &a0 [x]", *(f"A{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 41))]),
        f"{REFUSED}it has more than 16 aliases (*name): write the values themselves",
    ),
    config(
        "an unknown key",
        "MODEL:\n  MEINST:\n    dim_mask: 60",
        f"{UNFIT}there is no key MODEL.MEINST.dim_mask (did you mean MODEL.MEINST.DIM_MASK?)",
    ),
    config(
        "a value of another type",
        "MODEL:\n  MEINST:\n    DIM_MASK: sixty",
        f"{UNFIT}MODEL.MEINST.DIM_MASK must be of type int, such as 60, not str",
    ),
    config("a value for a group of keys", "MODEL: 5", f"{UNFIT}MODEL stands for a group of keys and not for one value"),
    config("a key that is a number", "5: 6", f"{REFUSED}the key 5 is not a string"),
    config("a version that is a string", "VERSION: two", f"{UNFIT}VERSION must be an int up to 2, not 'two'"),
    config("a later version", "VERSION: 9", f"{UNFIT}VERSION must be an int up to 2, not 9"),
    Case(
        "meinst train",
        "a key without its value on the command line",
        "meinst train: the overrides SOLVER.MAX_ITER 10 OUTPUT_DIR are not pairs: give KEY VALUE KEY VALUE ...",
        odd,
    ),
    override(
        "an unknown key on the command line",
        "the override SOLVER.max_iter 10 does not fit: there is no key SOLVER.max_iter (did you mean SOLVER.MAX_ITER?)",
        "SOLVER.max_iter",
        10,
    ),
    override(
        "a value of another type on the command line",
        "the override SOLVER.BASE_LR fast does not fit: SOLVER.BASE_LR must be of type float, such as 0.001, not str",
        "SOLVER.BASE_LR",
        "fast",
    ),
    override(
        "a name where several belong",
        "the override DATASETS.TRAIN shapes_train does not fit: DATASETS.TRAIN must be of type tuple, such as "
        "('shapes_train',), not str",
        "DATASETS.TRAIN",
        "shapes_train",
    ),
    override(
        "null",
        "MODEL.MEINST.DIM_MASK has no value: give it one, or remove it from the config",
        "MODEL.MEINST.DIM_MASK",
        None,
    ),
    override("a negative D", "MODEL.MEINST.DIM_MASK = -8 must be at least 1", "MODEL.MEINST.DIM_MASK", -8),
    override(
        "more components than pixels",
        "MODEL.MEINST.DIM_MASK = 1000 is more than the 784 pixels of a template of MODEL.MEINST.MASK_SIZE = 28: choose "
        "fewer",
        "MODEL.MEINST.DIM_MASK",
        1000,
    ),
    override("a choice that is none", "MODEL.MEINST.NORM = 'BN' is none of GN, none", "MODEL.MEINST.NORM", "BN"),
    override(
        "an unknown encoder",
        "MODEL.MEINST.ENCODER = 'VAE' is none of DCTEncoder, PCAEncoder, ClassPCAEncoder",
        "MODEL.MEINST.ENCODER",
        "VAE",
    ),
    override(
        "an unknown model",
        "MODEL.META_ARCHITECTURE = 'YOLO' is registered nowhere: import what defines it",
        "MODEL.META_ARCHITECTURE",
        "YOLO",
    ),
    override(
        "an unknown device", "MODEL.DEVICE = 'gpu' is not a device: choose cpu, cuda or cuda:N", "MODEL.DEVICE", "gpu"
    ),
    override(
        "an unknown dataset",
        "the dataset 'shapes_trian' is not registered (did you mean shapes_train, shapes_val?): name its files with "
        "--coco-dataset shapes_trian=ANNOTATIONS.json:IMAGES (meinst fit takes --coco-json), or register it as "
        "Detectron2 does",
        "DATASETS.TRAIN",
        "('shapes_trian',)",
    ),
    override(
        "another number of classes than the dataset's",
        "the dataset 'shapes_train' has 6 classes, MODEL.MEINST.NUM_CLASSES is 80: set MODEL.MEINST.NUM_CLASSES 6\n"
        "the dataset 'shapes_val' has 6 classes, MODEL.MEINST.NUM_CLASSES is 80: set MODEL.MEINST.NUM_CLASSES 6",
        "MODEL.MEINST.NUM_CLASSES",
        80,
    ),
    override(
        "another D than the components'",
        "the components in right.npz have D = 8, the config asks for MODEL.MEINST.DIM_MASK = 60: run meinst fit --dim "
        "60, or set MODEL.MEINST.DIM_MASK 8",
        "MODEL.MEINST.DIM_MASK",
        60,
    ),
    Case(
        "meinst train",
        "a --coco-dataset of another form",
        "meinst train: --coco-dataset mine: give NAME=ANNOTATIONS.json:IMAGES, such as mine=a/train.json:a/images",
        lambda folder: train_with(folder, flags=("--coco-dataset", "mine")),
    ),
    Case(
        "meinst check --config-file",
        "Python objects that run code",
        f"meinst check: the config c.yaml is refused: it holds Python objects (python/name:os.system), "
        f"which can run code{LAZY}",
        lambda folder: (
            (folder / "c.yaml").write_text("MODEL: !!python/name:os.system"),
            check_dataset_with(written(folder, coco_content()), "--config-file", folder / "c.yaml"),
        )[1],
    ),
]
