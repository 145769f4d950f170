"""meinst reconstruct as a user runs it, on small JSON files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from meinst_d2.commands import fit as fit_command
from meinst_d2.commands import reconstruct
from meinst_d2.data.shapes import generate
from tests.conftest import ROOT

SMALL = ["--dims", "5", "12", "--sizes", "14", "--workers", "1"]


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of a small run's time."""
    monkeypatch.setattr(reconstruct, "draw", lambda folder, rows, classes: [])


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("shapes")
    generate(root, {"train": 50, "val": 12}, workers=1)
    return {split: str(root / f"annotations/instances_{split}.json") for split in ("train", "val")}


def test_tables_json_and_pictures(shapes: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new/folder"
    reconstruct.main(["--fit-json", shapes["val"], "--coco-json", shapes["train"], "--output", str(output), *SMALL])
    printed = capsys.readouterr().out
    content = json.loads((output / "reconstruction.json").read_text())
    assert content["fitted_to"] == "instances_val.json" and content["measured"] == ["instances_train.json"]
    found = [(e["encoder"], e["mask_size"], e["numbers"]) for e in content["encodings"]]
    assert found == [
        *((name, 14, dim) for name in ("pca", "class-pca", "dct") for dim in (5, 12)),
        ("grid", 14, 196),
        ("area-grid", 14, 196),
        ("polar", None, 38),
        ("chebyshev", None, 22),
    ]
    pca = content["encodings"][1]
    assert set(pca["by_class"]) == {"ring", "star", "crescent", "bar", "cut", "blob"}
    assert sum(q["count"] for q in pca["by_size"].values()) == pca["all"]["count"]
    assert f"{pca['all']['iou']:.4f} {pca['all']['boundary_iou']:.4f}" in printed
    assert f"skipped {content['skipped']['crowd region']}: crowd region" in printed
    assert "dictionary of their own" in printed
    assert {path.name for path in output.iterdir()} == {
        "reconstruction.json",
        *(f"{name}.png" for name in ("quality", "sizes", "classes", "hollow_decay")),
    }
    assert all(Image.open(path).size[0] > 500 for path in output.glob("*.png"))


@pytest.mark.usefixtures("without_pictures")
def test_a_fitted_file_is_measured(shapes: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, per_class = str(tmp_path / "c.npz"), str(tmp_path / "k.npz")
    arguments = ["--coco-json", shapes["train"], "--dim", "8", "--mask-size", "14", "--workers", "1"]
    fit_command.main([*arguments, "--output", file, "--no-sigmoid"])
    fit_command.main([*arguments, "--output", per_class, "--class-specific"])
    rows = {}
    for name, components in (("pca", file), ("class-pca", per_class)):
        output = tmp_path / name
        options = ["--encoders", name, "polar", "--dims", "5", "100", "--output", str(output), "--workers", "1"]
        reconstruct.main(["--components", components, "--coco-json", shapes["val"], *options])
        rows[name] = json.loads((output / "reconstruction.json").read_text())["encodings"]
        assert [(e["encoder"], e["numbers"], e["sigmoid"]) for e in rows[name]] == [
            (name, 5, name == "class-pca"),
            (name, 8, name == "class-pca"),
            ("polar", 38, None),
        ]
    assert rows["pca"][1]["all"]["iou"] != rows["class-pca"][1]["all"]["iou"]
    assert rows["pca"][2] == rows["class-pca"][2]
    capsys.readouterr()
    with pytest.raises(SystemExit, match=r"c\.npz holds the dictionaries of pca, not of class-pca"):
        reconstruct.main(["--components", file, "--coco-json", shapes["val"], "--encoders", "class-pca"])


@pytest.mark.usefixtures("without_pictures")
def test_classes_are_matched_by_name(shapes: dict[str, str], tmp_path: Path) -> None:
    """The same annotations under other category ids, in another order, and one category more."""
    content = json.loads(Path(shapes["train"]).read_text())
    other = {"ring": 70, "star": 60, "crescent": 50, "bar": 40, "cut": 30, "blob": 20}
    ids = {c["id"]: other[c["name"]] for c in content["categories"]}
    for annotation in content["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"]]
    content["categories"] = [{"id": 1, "name": "none of it"}, *({"id": i, "name": n} for n, i in other.items())]
    (tmp_path / "other.json").write_text(json.dumps(content))
    measured = {}
    for name, fit_to in (("same", shapes["train"]), ("other", str(tmp_path / "other.json"))):
        options = ["--encoders", "class-pca", "--dims", "3", "--sizes", "14", "--output", str(tmp_path / name)]
        reconstruct.main(["--fit-json", fit_to, "--coco-json", shapes["val"], "--workers", "1", *options])
        measured[name] = json.loads((tmp_path / name / "reconstruction.json").read_text())["encodings"]
    assert measured["same"] == measured["other"]


@pytest.mark.usefixtures("without_pictures")
def test_annotations_of_no_category_are_measured_too(shapes: dict[str, str], tmp_path: Path) -> None:
    content = json.loads(Path(shapes["val"]).read_text())
    content["annotations"] = [a for a in content["annotations"] if not a["iscrowd"]]
    content["annotations"][0]["category_id"] = 99
    (tmp_path / "a.json").write_text(json.dumps(content))
    options = ["--fit-json", shapes["train"], "--encoders", "pca", "class-pca", "--output", str(tmp_path)]
    reconstruct.main(["--coco-json", str(tmp_path / "a.json"), *options, *SMALL])
    (row, *_) = json.loads((tmp_path / "reconstruction.json").read_text())["encodings"]
    assert row["by_class"]["(no category)"]["count"] == 1
    assert row["all"]["count"] == len(content["annotations"])


@pytest.mark.usefixtures("without_pictures")
def test_limit_and_settings(shapes: dict[str, str], tmp_path: Path) -> None:
    options = ["--limit", "10", "--sigmoid", "on", "off", "--whiten", "off", "--encoders", "dct", "dct"]
    reconstruct.main(["--coco-json", shapes["val"], shapes["train"], "--output", str(tmp_path), *options, *SMALL])
    found = json.loads((tmp_path / "reconstruction.json").read_text())
    assert [(e["sigmoid"], e["whiten"]) for e in found["encodings"]] == [(True, False)] * 2 + [(False, False)] * 2
    assert found["encodings"][0]["all"]["count"] + sum(found["skipped"].values()) == 20
    assert found["fitted_to"] is None


def test_detectron2_is_not_imported(shapes: dict[str, str], tmp_path: Path) -> None:
    arguments = ["--coco-json", shapes["val"], "--encoders", "polar", "--limit", "9", "--output", str(tmp_path)]
    code = (
        "import sys; sys.modules['detectron2'] = None; "
        f"from meinst_d2.commands import main; main(['reconstruct', *{arguments!r}]); "
        "assert not any(name.startswith('detectron2.') for name in sys.modules)\n"
        "try:\n    from meinst_d2.evaluation import build_evaluator\n"
        "except ImportError as error:\n    assert 'pip install' in str(error)\n"
        "else:\n    raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "hollow_decay.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dims", "0"], "--dims must be at least 1, got 0"),
        (["--sizes", "28", "-1"], "--sizes must be at least 1, got -1"),
        (["--limit", "0"], "--limit must be at least 1, got 0"),
        (["--encoders", "pca"], "pca and class-pca need --fit-json"),
        (["--encoders", "spline"], "invalid choice"),
        (["--fit-json", "a", "--components", "b"], "not allowed with argument"),
    ],
)
def test_impossible_options_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        reconstruct.main(["--coco-json", "a.json", *arguments])
    assert message in capsys.readouterr().err


def test_errors_are_one_sentence(shapes: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"meinst reconstruct: the annotation file .*missing\.json does not exist"):
        reconstruct.main(["--coco-json", str(tmp_path / "missing.json"), "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"meinst reconstruct: there are no components at"):
        reconstruct.main(
            ["--components", str(tmp_path / "c.npz"), "--coco-json", shapes["val"], "--output", str(tmp_path)]
        )
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
    with pytest.raises(SystemExit, match=r"none of the 0 annotations of .*empty\.json has a usable mask"):
        reconstruct.main(["--coco-json", str(empty), "--encoders", "polar", "--output", str(tmp_path)])
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"cannot write .*file is a file"):
        reconstruct.main(["--coco-json", shapes["val"], "--output", str(tmp_path / "file/deeper")])
    assert not list(tmp_path.glob("*.png"))
