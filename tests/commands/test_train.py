"""What meinst train says about datasets before it starts, and training from two files in one call."""

import importlib.util
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.structures import Boxes, Instances

import meinst_d2
from meinst_d2.checkpoint import readers
from meinst_d2.checkpoint.checkpointer import CheckpointInfo, MEInstCheckpointer
from meinst_d2.checkpoint.readers import read_checkpoint
from meinst_d2.commands import train as train_command
from meinst_d2.data.datasets import DatasetError, require_dataset
from meinst_d2.data.shapes import ShapesConfig, generate
from meinst_d2.engine import Trainer
from tests.conftest import ROOT
from tests.models import tiny_model, write_components

TINY = str(ROOT / "configs/quick/tiny.yaml")
NAMES = ["ring", "star", "crescent", "bar", "cut", "blob"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shapes as COCO files, and components."""
    folder = tmp_path_factory.mktemp("files")
    generate(folder, {"train": 6, "val": 3}, ShapesConfig(height=64, width=64, max_side=50))
    write_components(folder / "c.npz")
    return folder


def altered(files: Path, path: Path, change: Callable[[dict[str, Any]], object], split: str = "train") -> str:
    """The annotations of a split after a change, as NAME=ANNOTATIONS.json:IMAGES."""
    content = json.loads((files / f"annotations/instances_{split}.json").read_text())
    change(content)
    path.write_text(json.dumps(content))
    return f"{path}={path}:{files / split}"


@pytest.fixture
def right(files: Path, tmp_path: Path) -> str:
    return altered(files, tmp_path / "right.json", lambda _: None)


def arguments(folder: Path, files: Path, train: Sequence[str], test: Sequence[str], *overrides: object) -> Any:
    """Of meinst train on datasets given as NAME=ANNOTATIONS.json:IMAGES."""
    datasets = [x for spec in dict.fromkeys((*train, *test)) for x in ("--coco-dataset", spec)]
    names = [repr(tuple(spec.partition("=")[0] for spec in specs)) for specs in (train, test)]
    values = ("DATASETS.TRAIN", names[0], "DATASETS.TEST", names[1], "OUTPUT_DIR", folder / "run")
    more = ("MODEL.MEINST.COMPONENTS", files / "c.npz", "INPUT.MIN_SIZE_TRAIN", "(64,)", "SOLVER.MAX_ITER", 1)
    return train_command.parse_args(["--config-file", TINY, *datasets, *map(str, (*values, *more, *overrides))])


def rename(content: dict[str, Any]) -> None:
    content["categories"][1]["name"] = "comet"


def swap_ids(content: dict[str, Any]) -> None:
    """The same objects of the same classes, with the first two categories numbered the other way round."""
    first, second = (category["id"] for category in content["categories"][:2])
    other = {first: second, second: first}
    for category in content["categories"]:
        category["id"] = other.get(category["id"], category["id"])
    for annotation in content["annotations"]:
        annotation["category_id"] = other.get(annotation["category_id"], annotation["category_id"])


def keep_two(content: dict[str, Any]) -> None:
    """Only the second and the fourth class."""
    content["categories"] = content["categories"][1:4:2]
    ids = {category["id"] for category in content["categories"]}
    content["annotations"] = [x for x in content["annotations"] if x["category_id"] in ids]


@pytest.mark.parametrize("role", ["train", "test"])
def test_classes_are_compared_by_name(files: Path, tmp_path: Path, right: str, role: str) -> None:
    messages = {
        rename: r"\(.*other.json\) has comet, which the dataset '.*right.json' .* lacks",
        swap_ids: r"\(.*other.json\) has the classes star, ring in the place of ring, star of the dataset '.*right.js"
        ".*: give its categories ids that rise in the same order",
        keep_two: r"\(.*other.json\) lacks ring, crescent, cut, blob of the dataset '.*right.json' .*: give both the",
    }
    for change, message in messages.items():
        other = altered(files, tmp_path / "other.json", change)
        train, test = ((right, other), ()) if role == "train" else ((right,), (other,))
        args = arguments(tmp_path, files, train, test)
        if change is keep_two and role == "test":
            train_command.check(args)
            continue
        with pytest.raises(ValueError, match=message) as error:
            train_command.check(args)
        assert "\n" not in str(error.value)


def test_a_dataset_that_lacks_classes_is_evaluated_by_name(files: Path, tmp_path: Path, right: str) -> None:
    """Its ground truth under the model's numbers has AP 100, and its validation losses are those of these numbers."""
    few = altered(files, tmp_path / "few.json", keep_two)
    args = arguments(tmp_path, files, (right,), (few,), "TEST.VALIDATION_LOSS", True)
    train_command.train(args, train_command.check(args))
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.json").read_text().splitlines()]
    assert any("validation/loss_cls" in row for row in rows)
    cfg, (name,) = train_command.load(args)[0], train_command.load(args)[0].DATASETS.TEST
    records = get_detection_dataset_dicts(name, filter_empty=False)
    numbers = [NAMES.index(x) for x in MetadataCatalog.get(name).thing_classes]
    assert numbers == [1, 3]
    (loader,) = [Trainer.build_validation_loader(cfg, name)]
    assert {int(x) for (sample,) in loader for x in sample["instances"].gt_classes} == set(numbers)
    cfg.MODEL.MASK_ON = False
    for class_names in (None, NAMES):
        evaluator = Trainer.build_evaluator(cfg, name, class_names)
        evaluator.reset()
        for record in records:
            found = Instances((record["height"], record["width"]))
            boxes = torch.tensor([x["bbox"] for x in record["annotations"]]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            found.pred_boxes, found.scores = Boxes(boxes), torch.ones(len(boxes))
            found.pred_classes = torch.tensor([numbers[x["category_id"]] for x in record["annotations"]]).long()
            evaluator.process([record], [{"instances": found}])
        assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


def test_weights_say_which_classes_they_have_learned(files: Path, tmp_path: Path) -> None:
    """Also where the data that they were trained on is not there."""
    MEInstCheckpointer(tiny_model(), str(tmp_path), meinst=CheckpointInfo({"class_names": NAMES})).save("w")
    few = altered(files, tmp_path / "few.json", keep_two, "val")
    changes = ("MODEL.WEIGHTS", tmp_path / "w.pth", "MODEL.MEINST.NUM_CLASSES", 6, "DATASETS.TRAIN", "('gone',)")
    args = arguments(tmp_path, files, (), (few,), *changes, "MODEL.MEINST.SCORE_THRESH_TEST", 0.0)
    args.eval_only = True
    assert set(train_command.train(args, train_command.check(args))) == {"bbox", "segm"}
    results = json.loads((tmp_path / "run/inference/coco_instances_results.json").read_text())
    assert {x["category_id"] for x in results} <= {2, 4}
    args.opts += ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (48, 64)]
    both = train_command.train(args, train_command.check(args))
    assert set(both) == {"bbox", "segm", "bbox_TTA", "segm_TTA"}
    merged = json.loads((tmp_path / "run/inference_TTA/coco_instances_results.json").read_text())
    assert merged != results == json.loads((tmp_path / "run/inference/coco_instances_results.json").read_text())
    args.coco_dataset.append(altered(files, tmp_path / "other.json", rename, "val"))
    args.opts[args.opts.index("DATASETS.TEST") + 1] = (str(tmp_path / "other.json"),)
    with pytest.raises(ValueError, match=r"\(.*other.json\) has comet, which .*w.pth lacks"):
        train_command.check(args)


def no_areas(content: dict[str, Any]) -> None:
    for annotation in content["annotations"]:
        annotation["bbox"][2] = 0


def give(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: [annotation.update(values) for annotation in content["annotations"]]


PAIRS = give(segmentation=[[[1, 1], [9, 1], [9, 9], [1, 9], [1, 5], [1, 2]]])


@pytest.mark.parametrize(
    ("change", "reason"), [(no_areas, "box without area"), (give(iscrowd=1), "crowd region"), (PAIRS, "segmentation")]
)
def test_a_dataset_of_which_nothing_can_be_learned(files: Path, tmp_path: Path, change: Any, reason: str) -> None:
    args = arguments(tmp_path, files, (altered(files, tmp_path / "bad.json", change),), ())
    with pytest.raises(
        DatasetError, match=rf"there is nothing to learn: of \d+ annotations in 6 images \d+ .*{reason}"
    ):
        train_command.train(args, train_command.check(args))
    if change is PAIRS:  # boxes can be
        args.opts += ["MODEL.MASK_ON", "False"]
        train_command.train(args, train_command.check(args))


def test_a_dataset_that_teaches_little(files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def mostly(content: dict[str, Any]) -> None:
        no_areas({"annotations": content["annotations"][1:]})

    args = arguments(tmp_path, files, (altered(files, tmp_path / "few.json", mostly),), ())
    logging.getLogger("meinst_d2").propagate = True
    with caplog.at_level(logging.WARNING):
        Trainer(train_command.load(args)[0])
    assert any("Little can be learned: of" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("MODEL.KEYPOINT_ON", True), "keypoints are not supported"),
        (("MODEL.LOAD_PROPOSALS", True), "proposals from files are not supported"),
        (("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3), "= 0.3 has no effect: set MODEL.MEINST.SCORE_THRESH_TEST"),
    ],
)
def test_idle_keys(files: Path, tmp_path: Path, right: str, override: tuple[Any, ...], message: str) -> None:
    for test in ((), (right,)):
        with pytest.raises(ValueError, match=message):
            train_command.check(arguments(tmp_path, files, (right,), test, *override))


def test_lvis_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    DatasetCatalog.register(str(tmp_path), list)
    MetadataCatalog.get(str(tmp_path)).set(evaluator_type="lvis", json_file="lvis.json")
    with pytest.raises(ValueError, match=r"needs the package lvis: run pip install 'meinst_d2\[lvis\]'"):
        require_dataset(str(tmp_path))


def test_annotations_that_cannot_be_evaluated(files: Path, tmp_path: Path, right: str) -> None:
    bad = altered(files, tmp_path / "bad.json", lambda content: content["annotations"].insert(1, "none"))
    with pytest.raises(ValueError, match=r"bad.json cannot be loaded .*: meinst check .*bad.json says"):
        train_command.check(arguments(tmp_path, files, (right,), (bad,)))


def test_ids_that_are_strings_are_trained_and_evaluated(files: Path, tmp_path: Path) -> None:
    def to_strings(content: dict[str, Any]) -> None:
        for element in (*content["images"], *content["annotations"], *content["categories"]):
            element.update({key: f"id {value}" for key, value in element.items() if key.endswith("id")})

    both = (altered(files, tmp_path / "strings.json", to_strings),)
    args = arguments(tmp_path, files, both, both, "MODEL.MEINST.SCORE_THRESH_TEST", 0.0)
    assert set(train_command.train(args, train_command.check(args))) == {"bbox", "segm"}


def test_crops_of_polygons_and_a_drawn_seed(files: Path, tmp_path: Path, right: str) -> None:
    args = arguments(tmp_path, files, (right,), (), "INPUT.CROP.ENABLED", True, "SEED", -1)
    cfg = train_command.load(args)[0]
    trainer = Trainer(cfg)
    trainer.resume_or_load(False)
    trainer.train()
    assert cfg.SEED == -1 and trainer.cfg.SEED == Trainer(cfg).cfg.SEED >= 0


def test_weights_are_opened_once(files: Path, tmp_path: Path, right: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, opened = readers._Unpickler.read_all, []
    monkeypatch.setattr(readers._Unpickler, "read_all", lambda *call: opened.append(1) or read(*call))
    args = arguments(tmp_path, files, (right,), ())
    train_command.train(args, train_command.check(args))
    assert not opened
    args.resume, args.opts = True, [*args.opts, "SOLVER.MAX_ITER", 2]
    train_command.train(args, train_command.check(args))
    assert opened == [1] and read_checkpoint(tmp_path / "run/model_final.pth")["iteration"] == 1
    changes = ("OUTPUT_DIR", tmp_path / "other", "MODEL.WEIGHTS", tmp_path / "run/model_final.pth")
    for args.eval_only in (False, True):
        args.resume, args.opts = False, [*args.opts, *map(str, changes)]
        opened.clear()
        train_command.train(args, train_command.check(args))
        assert opened == [1]


def test_one_call_trains_from_two_files(files: Path, tmp_path: Path) -> None:
    weights = meinst_d2.train(
        *(files / f"annotations/instances_{split}.json" for split in ("train", "val")),
        images=(files / "train", files / "val"),
        output=tmp_path / "mine",
        config="quick/tiny",
        overrides=("SOLVER.MAX_ITER", 2, "MODEL.MEINST.PRIOR_PROB", 0.3, "MODEL.MEINST.DIM_MASK", 4),
    )
    assert Path(weights).parent == tmp_path / "mine" and (tmp_path / "mine/components.npz").is_file()
    content = read_checkpoint(weights)
    assert content["meinst"]["class_names"] == NAMES
    assert content["model"]["proposal_generator.mask_encoder.components"].shape == (4, 28 * 28)
    assert meinst_d2.load(weights).class_names == NAMES
    with pytest.raises(ValueError, match="other files already"):
        meinst_d2.train("a.json", "b.json", images="images", output=tmp_path / "mine", config=TINY)
