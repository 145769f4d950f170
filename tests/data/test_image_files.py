"""Image files: the bits are Detectron2's wherever there are 8 of them, and else those of a rule that is said."""

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import detection_utils
from detectron2.utils import logger
from PIL import Image

from meinst_d2.data.image_files import read_header, read_image


@pytest.fixture(autouse=True)
def _every_warning_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logger, "_LOG_COUNTER", Counter())


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1", "LA", "YCbCr"])
@pytest.mark.parametrize("image_format", ["BGR", "RGB", "L"])
def test_eight_bits_are_detectron2s(tmp_path: Path, rng: np.random.Generator, mode: str, image_format: str) -> None:
    path = str(tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(rng.integers(0, 256, (5, 9, 3), dtype=np.uint8)).convert(mode)
    image.save(path, **({"exif": exif} if path.endswith("png") else {}))
    ours, theirs = read_image(path, image_format), detection_utils.read_image(path, image_format)
    assert ours.dtype == np.uint8 and np.array_equal(ours, theirs)
    header = read_header(path)
    assert header.size == ours.shape[:2] and not header.deep and header.turned == path.endswith("png")


@pytest.mark.parametrize(
    ("values", "name", "expected"),
    [
        (np.array([[0, 255, 256, 1000, 65535]], np.uint16), "a.png", [0, 0, 1, 3, 255]),
        (np.array([[-5, 255, 256, 65535, 10**6]], np.int32), "a.tif", [0, 0, 1, 255, 255]),
        (np.array([[-5, 0.7, 99.5, 255, 1e6]], np.float32), "a.tif", [0, 0, 99, 255, 255]),
    ],
)
def test_more_bits_follow_one_rule(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: np.ndarray, name: str, expected: list[int]
) -> None:
    path = str(tmp_path / name)
    Image.fromarray(values).save(path)
    assert read_header(path).deep
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert read_image(path, "BGR").tolist() == [[[value] * 3 for value in expected]]
    assert caplog.text.count("more than 8 bits per pixel") == 1 and path in caplog.text


def test_grey_images_of_8_and_of_16_bits_are_one(tmp_path: Path, rng: np.random.Generator) -> None:
    grey = rng.integers(0, 256, (5, 9), dtype=np.uint8)
    for factor in (256, 257):
        Image.fromarray(grey.astype(np.uint16) * factor).save(tmp_path / "deep.png")
        assert (read_image(str(tmp_path / "deep.png"), "RGB") == grey[..., None]).all()


def test_of_several_pages_the_first_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pages = [Image.new("RGB", (4, 3), color) for color in ("red", "blue", "blue")]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with caplog.at_level(logging.WARNING):
        assert (read_image(str(tmp_path / "a.tif"), "RGB") == [255, 0, 0]).all()
    assert "a.tif has 3 pages, of which the first is read" in caplog.text
