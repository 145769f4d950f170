"""meinst predict from the command line, on a tiny model with random weights and on files of every kind."""

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

from meinst_d2.commands import predict as predict_command
from meinst_d2.model_zoo.publish import publish_run
from tests.conftest import ROOT
from tests.model_zoo.test_publish import write_run
from tests.models import tiny_cfg

CLASSES = ["ring", "star", "crescent", "bar", "cut", "blob"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published file; random weights are sure of nothing, hence the thresholds of 0 below."""
    folder = tmp_path_factory.mktemp("model")
    run = write_run(folder, "MODEL.MEINST.SCORE_THRESH_TEST", 0.0)
    return publish_run(run, folder, "tiny")[0]


@pytest.fixture
def image(tmp_path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def pixels(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)


def run(*args: Any) -> int:
    """The exit status."""
    with pytest.raises(SystemExit) as stop:
        predict_command.main([*map(str, args), "--device", "cpu", "--confidence-threshold", "0"])
    return stop.value.code  # type: ignore[return-value]


def write_video(path: Path, frames: int = 3) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for i in range(frames):
        writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    writer.release()
    return path


def test_from_the_command_line_with_a_broken_file(model: Path, tmp_path: Path, pixels: np.ndarray) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(pixels).save(images / "good.png")
    (images / "broken.jpg").write_bytes(b"no image")
    command = [sys.executable, ROOT / "demo.py", "--weights", model, "--input", images, "--output", tmp_path / "found"]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"the image {images / 'broken.jpg'} cannot be read: cannot identify image file" in done.stderr
    assert "1 of 2 inputs could not be read to the end" in done.stderr
    assert "1 of 2 inputs" in done.stdout and "in 1 image\n" in done.stdout
    assert [x.name for x in (tmp_path / "found").iterdir()] == ["good.png"]
    assert Image.open(tmp_path / "found/good.png").size == (64, 48)


def test_nothing_readable_is_a_failure(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "b.mp4").write_bytes(b"no video")
    inputs = (tmp_path / "a.png", tmp_path / "b.mp4")
    assert run("--weights", model, "--input", *inputs, "--output", tmp_path / "o", "--save-json", tmp_path / "j") == 1
    assert not (tmp_path / "o").exists() and not (tmp_path / "j").exists()
    errors = capsys.readouterr().err
    assert "a.png" in errors and "b.mp4 cannot be read: OpenCV cannot open it" in errors


def test_results_are_coco_results(model: Path, tmp_path: Path, pixels: np.ndarray, image: Path) -> None:
    Image.fromarray(pixels[:40, :50]).save(tmp_path / "b.png")
    found = tmp_path / "found.json"
    assert run("--weights", model, "--input", tmp_path / "*.png", "--save-json", found) == 0
    entries = json.loads(found.read_text())
    sizes = {"a.png": ([48, 64], 1), "b.png": ([40, 50], 2)}
    assert {Path(entry["file_name"]).name for entry in entries} == set(sizes)
    for entry in entries:
        size, image_id = sizes[Path(entry["file_name"]).name]
        assert entry["image_id"] == image_id and entry["segmentation"]["size"] == size
        assert isinstance(entry["segmentation"]["counts"], str) and mask_util.decode(entry["segmentation"]).max() <= 1
        x, y, width, height = entry["bbox"]
        assert x >= 0 and y >= 0 and x + width <= size[1] + 1e-3 and y + height <= size[0] + 1e-3
        assert CLASSES[entry["category_id"]] == entry["category_name"]
    assert not (tmp_path / "output").exists()


def test_the_threshold_counts_in_pictures_and_file(model: Path, tmp_path: Path, image: Path) -> None:
    arguments = ("--weights", model, "--input", image, "--save-json", tmp_path / "found.json")
    run(*arguments)
    scores = sorted(entry["score"] for entry in json.loads((tmp_path / "found.json").read_text()))
    middle = scores[len(scores) // 2]
    with pytest.raises(SystemExit):
        predict_command.main([*map(str, arguments), "--device", "cpu", "--confidence-threshold", str(middle)])
    kept = [entry["score"] for entry in json.loads((tmp_path / "found.json").read_text())]
    assert kept == sorted((x for x in scores if x >= middle), reverse=True) and len(kept) < len(scores)


def test_of_16_bits_the_upper_8_are_taken_and_that_is_said(
    model: Path, tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("detectron2.utils.logger._LOG_COUNTER", Counter())  # what was said before in this process
    grey = pixels[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey.astype(np.uint16) * 256 + 7).save(tmp_path / "b.png")
    found = tmp_path / "found.json"
    assert run("--weights", model, "--input", tmp_path / "*.png", "--save-json", found) == 0
    of_each: dict[str, list[tuple[float, Any]]] = {"a.png": [], "b.png": []}
    for entry in json.loads(found.read_text()):
        of_each[Path(entry["file_name"]).name].append((entry["score"], entry["bbox"]))
    assert of_each["a.png"] == of_each["b.png"] != []
    assert "b.png has more than 8 bits per pixel: the upper 8 of 16 are taken" in caplog.text


def test_an_image_that_its_camera_turned(model: Path, tmp_path: Path, pixels: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    found = tmp_path / "found.json"
    run("--weights", model, "--input", tmp_path / "a.jpg", "--output", tmp_path / "b.png", "--save-json", found)
    assert Image.open(tmp_path / "b.png").size == (48, 64)
    assert {tuple(x["segmentation"]["size"]) for x in json.loads(found.read_text())} == {(64, 48)}


def test_a_video(model: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4")
    found = tmp_path / "found.json"
    assert run("--weights", model, "--input", video, "--output", tmp_path / "out", "--save-json", found) == 0
    capture = cv2.VideoCapture(str(tmp_path / "out/clip.mp4"))
    assert [capture.read()[0] for _ in range(4)] == [True, True, True, False]
    assert capture.get(cv2.CAP_PROP_FPS) == 10
    assert {(x["image_id"], x["frame"]) for x in json.loads(found.read_text())} == {(1, 0), (2, 1), (3, 2)}
    video = write_video(tmp_path / "clip.mp4").rename(tmp_path / "clip.png")
    assert run("--weights", model, "--video-input", video, "--output", tmp_path / "out") == 0
    assert cv2.VideoCapture(str(tmp_path / "out/clip.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3


def test_a_video_that_is_cut_off(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_video(tmp_path / "clip.mp4")
    monkeypatch.setattr("meinst_d2.visualization.sources.cv2.VideoCapture", _ThatStopsAfterTwo)
    assert run("--weights", model, "--input", video, "--output", tmp_path / "out") == 0
    assert "clip.mp4: frame 3 of 3 cannot be decoded" in capsys.readouterr().err
    monkeypatch.undo()
    assert cv2.VideoCapture(str(tmp_path / "out/clip.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 2


class _ThatStopsAfterTwo:
    def __init__(self, path: str, real: Any = cv2.VideoCapture) -> None:
        self._real, self._left = real(path), 2

    def read(self) -> tuple[bool, Any]:
        self._left -= 1
        return self._real.read() if self._left >= 0 else (False, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def test_a_camera(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("meinst_d2.visualization.sources.cv2.VideoCapture", _Camera)
    found, handler = tmp_path / "found.json", signal.getsignal(signal.SIGINT)
    assert run("--weights", model, "--webcam", "--output", tmp_path / "out", "--save-json", found) == 0
    monkeypatch.undo()
    assert cv2.VideoCapture(str(tmp_path / "out/webcam.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 4
    assert {x["frame"] for x in json.loads(found.read_text())} == {0, 1, 2, 3}
    assert "decoded" not in capsys.readouterr().err and signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(SystemExit):
        predict_command.main(["--webcam", "--input", "a.png"])


class _Camera:
    """The first camera; Ctrl-C is pressed while its fourth frame is looked at."""

    def __init__(self, number: int) -> None:
        assert number == 0
        self._num_read = 0

    def isOpened(self) -> bool:
        return True

    def read(self) -> tuple[bool, np.ndarray]:
        self._num_read += 1
        if self._num_read == 5:
            signal.raise_signal(signal.SIGINT)
        return True, np.full((48, 64, 3), 20 * self._num_read, np.uint8)

    def get(self, key: int) -> float:
        return 30.0 if key == cv2.CAP_PROP_FPS else -1.0

    def release(self) -> None:
        pass


def test_an_input_is_never_replaced(model: Path, tmp_path: Path, image: Path) -> None:
    before, picture = {path: path.read_bytes() for path in (image, model)}, tmp_path / "out/a.png"
    for output in (tmp_path, image):
        assert "would replace the input" in run("--weights", model, "--input", image, "--output", output)
    arguments = ("--weights", model, "--input", image, "--output", tmp_path / "out", "--save-json")
    for path, what in ((image, "the input"), (picture, "the picture"), (model, "the model")):
        assert f"--save-json {path} would replace {what}" in run(*arguments, path)
    assert "is a folder" in run(*arguments, tmp_path)
    assert {path: path.read_bytes() for path in before} == before and not picture.exists()


def test_a_thin_image_is_passed_over(
    model: Path, tmp_path: Path, pixels: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (3000, 1)).save(tmp_path / "a_thin.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "b_pixel.png")
    Image.fromarray(pixels).save(tmp_path / "c_good.png")
    found = tmp_path / "found.json"
    inputs = tmp_path / "*.png"
    assert run("--weights", model, "--input", inputs, "--output", tmp_path / "out", "--save-json", found) == 0
    assert "a_thin.png: 3000 x 1 pixels cannot be brought to the network's size" in capsys.readouterr().err
    assert sorted(x.name for x in (tmp_path / "out").iterdir()) == ["b_pixel.png", "c_good.png"]
    assert {x["image_id"] for x in json.loads(found.read_text())} <= {1, 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "{tmp}"], "holds no images or videos"),
        (["--input", "demo.py"], "no model: give --config-file, --weights or both"),
        (["--input", "demo.py", "--font", "demo.py"], "demo.py is not a font that matplotlib can read"),
        (["--input", "demo.py", "--weights", "nowhere.pth"], "the file of weights nowhere.pth does not exist"),
        (["--input", "demo.py", "--config-file", "quick/tiny"], "names no trained weights: give --weights"),
        (["--input", "demo.py", "--config-file", "quick/tinny"], "did you mean quick/tiny"),
    ],
)
def test_mistakes_are_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(ROOT)
    arguments = [x.format(tmp=tmp_path) for x in arguments]
    code = run(*arguments, "--output", tmp_path / "out")
    assert str(code).startswith("meinst predict: ") and message in str(code)


def test_overrides_reach_the_model(model: Path, tmp_path: Path, image: Path) -> None:
    found = tmp_path / "found.json"
    with pytest.raises(SystemExit):
        arguments = ["--weights", str(model), "--input", str(image), "--save-json", str(found)]
        predict_command.main([*arguments, "--confidence-threshold", "0", "--opts", "TEST.DETECTIONS_PER_IMAGE", "2"])
    assert 0 < len(json.loads(found.read_text())) <= 2
    run(*arguments)
    assert len(json.loads(found.read_text())) > 2


def test_a_model_without_masks(tmp_path: Path, image: Path) -> None:
    from detectron2.modeling import build_model

    cfg = tiny_cfg("MODEL.MASK_ON", False, "MODEL.MEINST.SCORE_THRESH_TEST", 0.0)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model_final.pth")
    found = tmp_path / "found.json"
    arguments = ("--input", image, "--output", tmp_path / "out.png", "--save-json", found)
    assert run("--config-file", tmp_path / "config.yaml", *arguments) == 0
    assert (tmp_path / "out.png").is_file() and "segmentation" not in json.loads(found.read_text())[0]


def test_tiles(model: Path, image: Path, tmp_path: Path) -> None:
    found = {}
    for flags in ((), ("--tiles", 32), ("--tiles", 32, "--overlap", 0.8)):
        assert run("--weights", model, "--input", image, "--save-json", tmp_path / "found.json", *flags) == 0
        found[flags] = json.loads((tmp_path / "found.json").read_text())
        assert found[flags] and all(one["segmentation"]["size"] == [48, 64] for one in found[flags])
    whole, tiles, more = found.values()
    assert whole != tiles != more != whole
    for flags in (("--overlap", 0.5), ("--tiles", 0)):
        with pytest.raises(SystemExit, match="2"):
            predict_command.parse_args(["--input", str(image), *map(str, flags)])
