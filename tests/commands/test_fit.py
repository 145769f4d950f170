"""meinst fit as a user runs it, on JSON files."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meinst_d2.commands import fit as fit_command
from meinst_d2.data.coco import read_category_names
from meinst_d2.data.instances import from_dataset_dicts
from meinst_d2.data.shapes import generate
from meinst_d2.encoding import fit_pca, load_components
from meinst_d2.fitting.count import count_moments
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    generate(root, {"train": 40, "val": 10}, workers=2)
    return root / "annotations"


def test_a_fit_writes_components_and_figures(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new/c.npz"
    train, val = str(shapes / "instances_train.json"), str(shapes / "instances_val.json")
    fit_command.main(
        ["--coco-json", train, "--dim", "30", "--output", str(output), "--eval-json", val, "--workers", "2"]
    )
    printed = capsys.readouterr().out
    components = load_components(output)
    assert (components.basis.dim, components.basis.mask_size) == (30, 28)
    assert components.provenance["datasets"] == ["instances_train.json"]
    assert components.provenance["clamp"] == [0.01, 0.05] and components.provenance["versions"]["numpy"]
    assert f"{components.provenance['num_masks']:,} masks" in printed
    assert "crowd region" in printed and f"reconstruction of {val}" in printed
    table = [line.split() for line in printed.splitlines() if line.strip()[:1].isdigit()]
    assert [int(row[0]) for row in table] == [20, 30, 40, 60, 80, 100]
    assert all(float(a[2]) < float(b[2]) for a, b in itertools.pairwise(table))
    assert Image.open(output.with_suffix(".png")).size[0] > 800
    assert sorted(p.name for p in output.parent.iterdir()) == ["c.npz", "c.png"]


def test_the_same_annotations_give_the_same_file_with_any_number_of_workers(shapes: Path, tmp_path: Path) -> None:
    train = str(shapes / "instances_train.json")
    for workers in ("1", "2"):
        fit_command.main(
            ["--coco-json", train, "--dim", "10", "--output", str(tmp_path / workers), "--workers", workers]
        )
    one, two = (np.load(tmp_path / workers) for workers in ("1", "2"))
    assert set(one.files) == set(two.files)
    assert all((one[name] == two[name]).all() for name in one.files)


def test_options_reach_the_file(shapes: Path, tmp_path: Path) -> None:
    output = tmp_path / "c.npz"
    train = str(shapes / "instances_train.json")
    arguments = ["--no-sigmoid", "--no-whiten", "--mask-size", "14", "--dim", "5", "--limit", "60"]
    fit_command.main(["--coco-json", train, train, "--output", str(output), *arguments])
    components = load_components(output)
    assert not components.sigmoid and components.whiten is False
    assert components.basis.mask_size == 14 and components.provenance["num_masks"] <= 60
    assert components.basis.mean.min() >= 0 and components.basis.mean.max() <= 1


def test_one_dictionary_per_class_or_shared(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, train = tmp_path / "c.npz", str(shapes / "instances_train.json")
    options = ["--class-specific", "--dim", "6", "--min-masks", "25", "--output", str(output)]
    fit_command.main(["--coco-json", train, *options])
    printed = capsys.readouterr().out
    components = load_components(output)
    assert len(components.bases) == 6 and components.basis.dim == 6
    content = json.loads((shapes / "instances_train.json").read_text())
    counts = [0] * 6
    for annotation in content["annotations"]:
        counts[annotation["category_id"] - 1] += not annotation["iscrowd"]
    few = [c["name"] for c, count in zip(content["categories"], counts, strict=True) if count < 25]
    assert 0 < len(few) < 6 and f"{len(few)} of 6 classes have fewer than 25 usable masks" in printed
    assert all(f"{name} (" in printed for name in few)


def test_too_few_masks_of_a_class(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--class-specific", "--dim", "12", "--min-masks", "1", "--output", str(tmp_path / "c.npz")]
    fit_command.main(["--coco-json", str(shapes / "instances_train.json"), "--limit", "60", *options])
    assert "classes have fewer than 13 usable masks" in capsys.readouterr().out


def test_dictionaries_are_in_detectron2s_order_of_classes(shapes: Path, tmp_path: Path) -> None:
    """Ids 3, 2.0, 1: numbered as whole numbers before others, two classes would swap their dictionaries."""
    catalog = pytest.importorskip("detectron2.data").MetadataCatalog
    from detectron2.data.datasets import load_coco_json

    content = json.loads((shapes / "instances_train.json").read_text())
    ids: dict[int, float] = {1: 3, 2: 2.0, 3: 1, 4: 40, 5: 5.0, 6: 6}
    for category in content["categories"]:
        category["id"] = ids[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"]]
    file, output = tmp_path / "mixed.json", tmp_path / "c.npz"
    file.write_text(json.dumps(content))
    options = ["--class-specific", "--dim", "6", "--min-masks", "1", "--output", str(output)]
    fit_command.main(["--coco-json", str(file), *options])
    bases = load_components(output).bases

    records = load_coco_json(str(file), "", "mixed ids")
    names = catalog.get("mixed ids").thing_classes
    assert read_category_names(file) == names == ["crescent", "star", "ring", "cut", "blob", "bar"]
    for k, basis in enumerate(bases):
        of_class = [{**r, "annotations": [a for a in r["annotations"] if a["category_id"] == k]} for r in records]
        moments, _ = count_moments(from_dataset_dicts(of_class), 28)
        np.testing.assert_array_equal(basis.components, fit_pca(moments).truncated(6).components.astype(np.float32))


def test_classes_that_differ_between_files_are_an_error(shapes: Path, tmp_path: Path) -> None:
    content = json.loads((shapes / "instances_val.json").read_text())
    content["categories"][0]["name"] = "other"
    (tmp_path / "other.json").write_text(json.dumps(content))
    files = [str(shapes / "instances_val.json"), str(tmp_path / "other.json")]
    with pytest.raises(SystemExit, match="needs the same classes everywhere"):
        fit_command.main(["--coco-json", *files, "--class-specific", "--output", str(tmp_path / "c.npz")])
    assert not (tmp_path / "c.npz").exists()


def test_detectron2_is_not_imported_for_json_files(shapes: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from meinst_d2.commands import fit as fit_command; sys.modules['detectron2'] = None; "
        f"fit_command.main(['--coco-json', {str(shapes / 'instances_val.json')!r}, '--dim', '5', "
        f"'--output', {str(tmp_path / 'c.npz')!r}]); "
        "assert not any(name.startswith('detectron2.') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_too_few_masks_are_a_sentence(tmp_path: Path, shapes: Path) -> None:
    source, output = tmp_path / "a.json", tmp_path / "out/c.npz"
    source.write_text(json.dumps({"images": [], "annotations": []}))
    with pytest.raises(SystemExit, match="0 of 0 annotations have a usable mask, 60 components need at least 61"):
        fit_command.main(["--coco-json", str(source), "--output", str(output)])
    assert not output.parent.exists()
    arguments = ["--coco-json", str(shapes / "instances_train.json"), "--limit", "30", "--output", str(tmp_path / "c")]
    with pytest.raises(SystemExit, match=r"meinst fit: \d+ of 30 annotations have a usable mask, 60 components need"):
        fit_command.main(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dim", "0"], "--dim must be at least 1, got 0"),
        (["--clamp", "0.2", "0.1"], "0 < low <= high < 0.5"),
        (["--dataset", "x"], "not allowed with argument"),
    ],
)
def test_impossible_options_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fit_command.main(["--coco-json", "a.json", *arguments])
    assert message in capsys.readouterr().err


def test_the_default_output_is_where_the_configs_look() -> None:
    args = fit_command.parse_args(["--dataset", "coco_2017_train"])
    base = (ROOT / "configs/Base-MEInst.yaml").read_text()
    assert f"COMPONENTS: {args.output}\n" in base


def test_real_masks_reconstruct_as_published(real_data: Path, tmp_path: Path) -> None:
    """The published tool measures 0.966 on its own training masks at D = 60 (699 masks of the same images)."""
    import contextlib
    import io

    train = str(real_data / "coco/annotations/instances_train2017.json")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        fit_command.main(["--coco-json", train, "--output", str(tmp_path / "c.npz")])
    (row,) = [line.split() for line in printed.getvalue().splitlines() if line.split()[:1] == ["60"]]
    assert float(row[3]) == pytest.approx(0.966, abs=0.005)
