"""Each thing that is wrong is said in one sentence with the way out, before anything is built."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from meinst_d2.checkpoint.checkpointer import CheckpointInfo, MEInstCheckpointer
from meinst_d2.data.datasets import register_coco
from meinst_d2.engine import PreflightError, check_before_start
from meinst_d2.model_zoo.publish import safetensors_of
from tests.modeling.test_retinanet import RETINANET
from tests.models import published_model, tiny_cfg, tiny_model, write_components
from tests.parity_cases import published_weights

pytestmark = pytest.mark.usefixtures("shapes")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_components(folder / "c.npz", sigmoid=True, whiten=True)
    cfg, model = tiny_cfg(), tiny_model()
    MEInstCheckpointer(model, str(folder), meinst=CheckpointInfo.from_config(cfg)).save("ours")
    with torch.no_grad():
        model.proposal_generator.mask_encoder.components[0].neg_()
    MEInstCheckpointer(model, str(folder)).save("other")
    torch.save({"model": {"backbone.x": torch.zeros(1)}}, folder / "bare.pth")
    (folder / "R-50.pkl").write_bytes(pickle.dumps({"conv1_w": np.zeros(1)}))
    (folder / "last_checkpoint").unlink()
    return folder


def check(folder: Path, *overrides: Any, eval_only: bool = False, resume: bool = False, processes: int = 1) -> None:
    cfg = tiny_cfg("OUTPUT_DIR", str(folder / "out"), *overrides)
    check_before_start(cfg, eval_only=eval_only, resume=resume, num_processes=processes)


def refused(match: str) -> Any:
    return pytest.raises(PreflightError, match=match)


def components(folder: Path, name: str = "c.npz") -> tuple[str, str]:
    return "MODEL.MEINST.COMPONENTS", str(folder / name)


def weights(folder: Path, name: str) -> tuple[str, str]:
    return "MODEL.WEIGHTS", str(folder / name)


def test_what_is_right_passes_and_leaves_no_trace(files: Path) -> None:
    check(files, *components(files))
    check(files, *weights(files, "ours.pth"))
    check(files, *weights(files, "ours.pth"), *components(files))
    check(files, *weights(files, "R-50.pkl"), *components(files))
    check(files, *weights(files, "ours.pth"), eval_only=True)
    check(files, "MODEL.MASK_ON", False)
    check(files, "MODEL.WEIGHTS", "https://example.org/model.pth")
    assert not (files / "out").exists()


def test_components_that_are_nowhere(files: Path) -> None:
    fit = r"run meinst fit --dataset shapes_train --dim 8 --mask-size 28 --output"
    with refused(rf"names no file and random weights do not carry them; {fit} FILE and set"):
        check(files)
    with refused(rf"absent.npz does not exist and .*bare.pth do not carry them; {fit} "):
        check(files, *components(files, "absent.npz"), *weights(files, "bare.pth"))
    with refused("do not carry them"):
        check(files, *weights(files, "R-50.pkl"), eval_only=True)
    with refused("do not carry them"):
        check(files, "MODEL.WEIGHTS", "detectron2://ImageNetPretrained/MSRA/R-50.pkl")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("DIM_MASK", 60, "D = 8, the config asks for MODEL.MEINST.DIM_MASK = 60: run meinst fit --dim 60, or set"),
        ("MASK_SIZE", 14, "S = 28, the config asks for MODEL.MEINST.MASK_SIZE = 14: run meinst fit --mask-size 14"),
        ("SIGMOID", False, "sigmoid = True, .* run meinst fit --no-sigmoid, or set MODEL.MEINST.SIGMOID True"),
        ("WHITEN", False, "whiten = True, .* run meinst fit --no-whiten, or set MODEL.MEINST.WHITEN True"),
    ],
)
def test_components_that_do_not_match(files: Path, key: str, value: object, message: str) -> None:
    for source in (components(files), weights(files, "ours.pth")):
        with refused(message):
            check(files, *source, f"MODEL.MEINST.{key}", value)


def test_weights_and_file_with_different_components(files: Path) -> None:
    both = (*weights(files, "other.pth"), *components(files))
    with refused("differ .* set MODEL.MEINST.COMPONENTS_CONFLICT to 'weights'"):
        check(files, *both)
    for choice in ("weights", "file"):
        check(files, *both, "MODEL.MEINST.COMPONENTS_CONFLICT", choice)
    check(files, *both, eval_only=True)


def test_weights_of_other_classes(files: Path) -> None:
    other = (*weights(files, "ours.pth"), "MODEL.MEINST.NUM_CLASSES", 3, "DATASETS.TEST", ())
    with refused("^.*ours.pth was trained with .*NUM_CLASSES = 6, the config asks for 3: set .*6, or first train"):
        check(files, *other, eval_only=True)
    anchors = build_model(tiny_cfg(*RETINANET, "MODEL.MASK_ON", False))
    torch.save({"model": anchors.state_dict()}, files / "anchors.pth")
    with refused("^.*anchors.pth was trained with .*NUM_CLASSES = 6, the config asks for 3: set .*6, or first train"):
        check(files, *RETINANET, *weights(files, "anchors.pth"), *other[2:], "MODEL.MASK_ON", False, eval_only=True)
    with pytest.raises(PreflightError) as error:
        check(files, *other)
    assert "'shapes_train' needs MODEL.MEINST.NUM_CLASSES = 6" in str(error.value) and "\n" not in str(error.value)
    about = CheckpointInfo({"class_names": ["star", "ring", "crescent", "bar", "cut", "blob"]})
    MEInstCheckpointer(tiny_model(), str(files), meinst=about).save("order")
    with refused("has the classes ring, star in the place of star, ring of .*order.pth: give its "):
        check(files, *weights(files, "order.pth"), eval_only=True)


def test_weights_that_cannot_refine(files: Path) -> None:
    refines = ("MODEL.MEINST.REFINE.ENABLED", True)
    check(files, *weights(files, "ours.pth"), *refines)
    with refused("ours.pth cannot refine masks, .*: set MODEL.MEINST.REFINE.ENABLED False, or train from them first"):
        check(files, *weights(files, "ours.pth"), *refines, eval_only=True)
    MEInstCheckpointer(tiny_model(*refines), str(files)).save("refines")
    check(files, *weights(files, "refines.pth"), *refines, eval_only=True)
    with refused("refines.pth cannot predict classes again, .*: set MODEL.MEINST.REFINE.CLASSIFY False"):
        check(files, *weights(files, "refines.pth"), *refines, "MODEL.MEINST.REFINE.CLASSIFY", True, eval_only=True)
    details = ("MODEL.MEINST.REFINE.DETAIL_FEATURE", "res2")
    with refused("refines.pth was trained without MODEL.MEINST.REFINE.DETAIL_FEATURE, which is 'res2': set .* to ''"):
        check(files, *weights(files, "refines.pth"), *refines, *details, eval_only=True)
    MEInstCheckpointer(tiny_model(*refines, *details), str(files)).save("details")
    check(files, *weights(files, "details.pth"), *refines, *details, eval_only=True)
    with refused("details.pth was trained with MODEL.MEINST.REFINE.DETAIL_FEATURE, which is '': .* such as res2"):
        check(files, *weights(files, "details.pth"), *refines, eval_only=True)


def test_settings_that_cannot_work(files: Path) -> None:
    for overrides, message in (
        (("SOLVER.EMA_DECAY", 1.0), "SOLVER.EMA_DECAY = 1.0 must be below 1"),
        (("TEST.BEST_METRIC", "AP"), "TEST.BEST_METRIC = 'AP' is not a metric"),
        (("TEST.PATIENCE", 3), "TEST.PATIENCE = 3 counts evaluations during training"),
        (("TEST.VALIDATION_LOSS", True, "MODEL.META_ARCHITECTURE", "MEInstRetinaNet"), "needs MODEL.META_ARCH"),
        (("DATASETS.TRAIN", ()), "DATASETS.TRAIN is empty"),
        (("MODEL.DEVICE", "cuda"), "torch sees no GPU: add MODEL.DEVICE cpu"),
        (("MODEL.MEINST.SIGMOID_CLAMP", (0.05, 0.01)), "0 < low <= high < 0.5"),
        (("INPUT.COPY_PASTE.PROB", 1.5), "INPUT.COPY_PASTE.PROB = 1.5 must be between 0 and 1"),
        (("INPUT.COPY_PASTE.PROB", 0.5, "MODEL.MASK_ON", False), "copy-paste needs masks, and MODEL.MASK_ON is False"),
        (("INPUT.COLOR_JITTER.CONTRAST", 2.0), "INPUT.COLOR_JITTER.CONTRAST = 2.0 must be between 0 and 1"),
        (
            ("INPUT.SCALE_JITTER.ENABLED", True, "INPUT.SCALE_JITTER.RANGE", (2.0, 0.1)),
            r"= \(2.0, 0.1\) .* not a range",
        ),
        (("TEST.TILES.SIZE", -1), "TEST.TILES: SIZE = -1 must be at least 1"),
        (("TEST.TILES.SIZE", 64, "MODEL.MEINST.MASK_OUTPUT", "template"), "joined masks are not templates"),
        (("SOLVER.OPTIMIZER", "Adam"), "SOLVER.OPTIMIZER = 'Adam' is none of SGD, AdamW"),
    ):
        if overrides[0] == "MODEL.DEVICE" and torch.cuda.is_available():
            continue
        with refused(message):
            check(files, *components(files), *overrides)
    check(files, *components(files), "TEST.PATIENCE", 3, "TEST.EVAL_PERIOD", 100)


def test_images_and_processes_that_do_not_fit(files: Path) -> None:
    register_coco(f"gone={files / 'gone.json'}:{files / 'gone'}")
    (files / "gone.json").write_text('{"images": [], "annotations": [], "categories": []}')
    with refused("'gone' has no folder of images .*gone: name the folder"):
        check(files, *components(files), "DATASETS.TRAIN", ("gone",))
    with refused("IMS_PER_BATCH = 2 cannot be shared by 3 processes"):
        check(files, *components(files), processes=3)
    with pytest.raises(PreflightError) as error:
        check(files, "MODEL.MEINST.NUM_CLASSES", 3, "MODEL.WEIGHTS", "nowhere.pth", "MODEL.MEINST.NORM", "LN")
    assert len(str(error.value).splitlines()) == 4  # the classes of both datasets


@pytest.mark.parametrize(("key", "value"), [("DIM_MASK", 6), ("MASK_SIZE", 14)])
def test_weights_of_another_encoding_need_the_config_to_say_so(files: Path, key: str, value: int) -> None:
    fitting = write_components(files / "fitting.npz", **{key.split("_")[0].lower().replace("mask", "mask_size"): value})
    other = (*weights(files, "ours.pth"), f"MODEL.MEINST.{key}", value, *components(files, fitting.name))
    with refused("or to re-initialize the mask predictor, name components .*CONFLICT file"):
        check(files, *other)
    check(files, *other, "MODEL.MEINST.COMPONENTS_CONFLICT", "file")
    for kwargs in ({"eval_only": True}, {}):
        with refused("the components in .*ours.pth have [DS] = "):
            check(files, *other, "MODEL.MEINST.COMPONENTS_CONFLICT", "file" if kwargs else "weights", **kwargs)


def test_weights_of_another_encoder_or_representation(files: Path) -> None:
    ours = weights(files, "ours.pth")
    with refused("have encoder = PCAEncoder, the config asks for MODEL.MEINST.ENCODER = Class"):
        check(files, *ours, "MODEL.MEINST.ENCODER", "ClassPCAEncoder")
    pixels = (*ours, "MODEL.MEINST.MASK_REPRESENTATION", "none")
    with refused("predicts 8 values per mask, the config asks for 784: change .*, or to re-"):
        check(files, *pixels)
    check(files, *pixels, "MODEL.MEINST.COMPONENTS_CONFLICT", "file")


def test_other_forms_of_weights_are_looked_into(files: Path, tmp_path: Path) -> None:
    content = torch.load(files / "ours.pth", weights_only=True)
    (files / "ours.safetensors").write_bytes(safetensors_of(content["model"], content["meinst"]))
    check(files, *weights(files, "ours.safetensors"), eval_only=True)
    with refused("ours.safetensors have D = 8"):
        check(files, *weights(files, "ours.safetensors"), "MODEL.MEINST.DIM_MASK", 9)
    torch.save(published_weights("none", 0), tmp_path / "theirs.pth", _use_new_zipfile_serialization=False)
    overrides = ("MODEL.MEINST.DIM_MASK", 60, "MODEL.MEINST.COMPONENTS", "", *weights(tmp_path, "theirs.pth"))
    check(tmp_path, *overrides, "MODEL.MEINST.NUM_CLASSES", 80, "DATASETS.TEST", (), eval_only=True)
    assert published_model() is not None


def test_a_resumed_run_starts_from_its_last_checkpoint(files: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/last_checkpoint").write_text("model_final.pth")
    with refused(r"no checkpoint is whole: .*out/model_final.pth does not exist: delete"):
        check(tmp_path, *components(files), resume=True)
    (tmp_path / "out/model_final.pth").write_bytes((files / "other.pth").read_bytes())
    check(tmp_path, *components(files), resume=True)


def test_broken_files_are_named(files: Path, tmp_path: Path) -> None:
    for name in ("c.npz", "w.pth", "file"):
        (tmp_path / name).write_text("no")
    torch.save([1], tmp_path / "list.pth")
    for overrides, message in (
        (components(tmp_path), "c.npz holds no usable components"),
        (weights(tmp_path, "w.pth"), "w.pth is refused"),
        (weights(tmp_path, "list.pth"), "holds an object of type list instead of weights by name"),
        (("OUTPUT_DIR", str(tmp_path / "file/run")), "cannot write .*file is a file"),
    ):
        with refused(message):
            check(files, *components(files), *overrides)
