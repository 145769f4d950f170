"""meinst check as a user runs it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meinst_d2.commands import check as check_command
from meinst_d2.data.shapes import generate
from meinst_d2.encoding import load_components
from tests.check.datasets import Content, good_content, spoiled, write
from tests.conftest import ROOT
from tests.models import write_components

CONFIG = str(ROOT / "configs/demo/shapes.yaml")


def run(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "meinst_d2.commands", "check", *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=170)


@pytest.fixture
def main(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The tool in this process: exit status, what it prints, and its complaints."""

    def call(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as status:
            check_command.main([*map(str, args), "--workers", "1"])
        printed = capsys.readouterr()
        return int(status.value.code or 0), printed.out, printed.err

    return call


def test_statuses_and_images_only_on_request(tmp_path: Path, main: Callable[..., tuple[int, str, str]]) -> None:
    path = write(tmp_path, good_content(), images=False)
    assert main(path, tmp_path, "--no-encodings")[0] == 2
    for args in ([path], [path, tmp_path, "--no-images"], [path, tmp_path / "nowhere", "--no-images"]):
        status, out, _ = main(*args, "--no-encodings")
        assert status == 0 and "files not looked at" in out
    path = spoiled(tmp_path, lambda content: content["annotations"][0].update(category_id=5))
    stopped = run(path, tmp_path, "--no-encodings")
    assert stopped.returncode == 2 and "STOPS TRAINING" in stopped.stdout and "Traceback" not in stopped.stderr


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    generate(root, {"train": 80}, workers=1)
    return root


def test_generated_shapes_are_well(main: Callable[..., tuple[int, str, str]], shapes: Path, tmp_path: Path) -> None:
    json_file = shapes / "annotations/instances_train.json"
    status, out, _ = main(
        *(json_file, shapes / "train", "--decode", "--config-file", CONFIG, "--encodings", "14/10", "28/40"),
        *("--json", tmp_path / "r/report.json", "--contact-sheet", tmp_path / "s/sheet.png"),
    )
    assert status == 0 and "nothing is wrong (exit status 0)" in out and "images: 80 (decoded)" in out
    assert "STOPS" not in out and "HURTS" not in out
    report = json.loads((tmp_path / "r/report.json").read_text())
    assert report["exit_status"] == 0 and {c["name"] for c in report["classes"]} >= {"ring", "blob"}
    small, large = report["encodings"]["rows"]
    assert (small["mask_size"], small["numbers"], large["mask_size"], large["numbers"]) == (14, 10, 28, 40)
    for name, quality in large["by_class"].items():
        assert 0.8 < quality["iou"] < 1 and quality["iou"] > small["by_class"][name]["iou"]
    assert report["encodings"]["fitted_to"] + report["encodings"]["measured"] == report["objects"]
    assert f"{large['all']['iou']:.4f}" in out and (tmp_path / "s/sheet.png").stat().st_size > 10_000


def test_augmented_samples(main: Callable[..., tuple[int, str, str]], shapes: Path, tmp_path: Path) -> None:
    files = shapes / "annotations/instances_train.json", shapes / "train"
    config, sheets = tmp_path / "augmented.yaml", [tmp_path / name for name in ("plain.png", "again.png", "other.png")]
    config.write_text(f"_BASE_: {CONFIG}\nINPUT:\n  COPY_PASTE:\n    PROB: 1.0\n")
    for sheet, given in zip(sheets, (CONFIG, CONFIG, config), strict=True):
        main(*files, "--no-encodings", "--augmented", sheet, "--samples", 8, "--config-file", given)
    plain, again, pasted = (np.asarray(Image.open(sheet).convert("RGB"), np.float32) for sheet in sheets)
    assert plain.shape == (640, 1920, 3)  # rows of six
    changed = np.abs(plain - pasted).mean()
    assert changed > 5 and np.abs(plain - again).mean() < changed  # colours of masks are drawn at random
    with pytest.raises(SystemExit):
        check_command.parse_args([str(files[0]), "--augmented", "sheet.png"])


def test_given_components(main: Callable[..., tuple[int, str, str]], shapes: Path, tmp_path: Path) -> None:
    file = write_components(tmp_path / "c.npz", 12, 14)
    annotations = shapes / "annotations/instances_train.json"
    status, out, _ = main(annotations, "--components", file, "--encodings", "14/6", "28/9", "--config-file", CONFIG)
    assert load_components(file).basis.dim == 12
    assert "pca 14x14, 6 pca 14x14, 12" in out and "of the given components" in out and status in (0, 1)


def test_poor_encodings(main: Callable[..., tuple[int, str, str]], tmp_path: Path, shapes: Path) -> None:
    path = write(tmp_path, good_content())
    status, out, _ = main(path, tmp_path, "--encodings", "28/60")
    assert status == 0 and "not measured: 28/60: " in out
    status, out, _ = main(shapes / "annotations/instances_train.json", "--encodings", "4/2", "--config-file", CONFIG)
    assert status == 1 and "classes that no measured encoding reconstructs well" in out and "ring (0." in out


def test_what_hurts(main: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    def spoil(content: Content) -> None:
        content["annotations"][0]["segmentation"] = []

    path = spoiled(tmp_path, spoil)
    out_json = tmp_path / "usable.json"
    status, out, _ = main(path, tmp_path, "--no-encodings", "--drop-bad", out_json)
    assert status == 1 and "annotations without a segmentation: 1" in out
    assert "left out: annotation 10 of 1.png (no-segmentation)" in out and "annotations left out: 1" in out
    assert main(out_json, tmp_path, "--no-encodings")[0] == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["good.json", "nowhere"], "the folder of images nowhere does not exist"),
        (["good.json", "--drop-bad", "good.json"], "is the file that is read"),
        (["good.json", "--components", "broken.json"], "broken.json"),
        (["good.json", "--config-file", "nowhere.yaml"], "nowhere.yaml"),
        (["good.json", "--encodings", "28"], "28/60"),
        (["good.json", "--decode"], "--decode needs"),
        (["good.json", "--no-encodings", "--encodings", "28/9"], "--no-encodings leaves"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    main: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.json").write_text(json.dumps(good_content()))
    Path("broken.json").write_text('{"images": [')
    status, out, err = main(*args)
    assert status == 2 and message in err and not out
    assert json.loads(Path("good.json").read_text()) == good_content()


def test_real_images(main: Callable[..., tuple[int, str, str]], real_data: Path, tmp_path: Path) -> None:
    annotations = real_data / "coco/annotations/instances_train2017.json"
    status, out, _ = main(
        *(annotations, real_data / "coco/train2017", "--encodings", "14/10", "--json", tmp_path / "report.json")
    )
    report = json.loads((tmp_path / "report.json").read_text())
    found = {finding["problem"]: finding for finding in report["findings"]}
    assert (report["images"], report["annotations"], len(report["classes"])) == (80, 705, 80)
    assert found["crowd"]["count"] == 6 and found["too-small"]["severity"] == "fine"
    assert not [key for key in found if key.startswith(("box-", "mask-", "rle-", "polygon-", "image-"))]
    assert all(finding["severity"] != "stops" for finding in report["findings"]) and status == report["exit_status"]
    assert 0.7 < report["encodings"]["rows"][0]["all"]["iou"] < 0.95 and "person" in out


MEASURE = """
import re, sys
from meinst_d2.commands import check as tool
def kilobytes(name):  # of this process alone: ru_maxrss also counts what the process that started it had
    return int(re.search(name + r":\\s*(\\d+) kB", open("/proc/self/status").read())[1])
for path in sys.argv[1:3]:  # a small file first, which loads what any file needs
    before = kilobytes("VmRSS")
    try:
        tool.main([path, *sys.argv[3:]])
    except SystemExit as status:
        print("status", status.code)
print("kilobytes", kilobytes("VmHWM") - before)
"""


def write_large(path: Path, megabytes: float, points: int) -> None:
    """Random outlines of so many points, seven in an image, before the images and categories."""
    rng, annotations, written = np.random.default_rng(0), [], 0
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    circle = np.stack((np.cos(angles), np.sin(angles)), axis=1)
    while written < 0.97 * megabytes * 1e6:
        n, radius = len(annotations), rng.uniform(5, 90)
        outline = (rng.uniform(100, 300, 2) + circle * radius * rng.uniform(0.7, 1, (points, 1))).round(2)
        box = [*outline.min(axis=0).tolist(), *np.ptp(outline, axis=0).round(2).tolist()]
        keys = {"id": n + 1, "image_id": n // 7 + 1, "category_id": n % 64 + 1, "iscrowd": 0, "area": radius}
        annotations.append(json.dumps({**keys, "bbox": box, "segmentation": [outline.ravel().tolist()]}))
        written += len(annotations[-1])
    size = {"height": 480, "width": 640}
    images = [{"id": k + 1, "file_name": f"{k:012}.jpg", **size} for k in range(-(-len(annotations) // 7))]
    categories = [{"id": k + 1, "name": f"class {k}"} for k in range(64)]
    rest = json.dumps({"images": images, "categories": categories})[1:]
    path.write_text('{"annotations": [' + ",".join(annotations) + "], " + rest)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("points", [24, 3])
def test_memory_is_a_small_multiple_of_the_file(tmp_path: Path, points: int) -> None:
    small, path = tmp_path / "small.json", tmp_path / "large.json"
    write_large(small, 0.1, points)
    write_large(path, 15, points)
    command = [sys.executable, "-c", MEASURE, str(small), str(path), "--no-encodings", "--workers", "1"]
    command += ["--drop-bad", str(tmp_path / "out.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=170)
    assert "status " in result.stdout, result.stderr
    used = 1000 * int(result.stdout.split("kilobytes ")[-1])
    assert used < 4 * path.stat().st_size
