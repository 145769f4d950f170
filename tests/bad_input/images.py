"""Image files: those that cannot be read, and those that look as if they could not."""

import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.detection_utils import SizeMismatchError
from PIL import Image

from meinst_d2.data.mapper import MEInstDatasetMapper
from tests.bad_input.case import Call, Case, show_with

READER = "meinst train, at the image"
HEIGHT, WIDTH = 4, 6
ORIENTATION = 0x0112


def sample_of(path: Path, height: int = HEIGHT, width: int = WIDTH) -> dict[str, Any]:
    """What training makes of a file that the JSON says is so large."""
    mapper = MEInstDatasetMapper(augmentations=[], image_format="RGB", mask_size=None)
    return mapper({"file_name": str(path), "image_id": 1, "height": height, "width": width, "annotations": []})


def colours() -> np.ndarray:
    """(4, 6, 3) uint8, every pixel of another colour."""
    return np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3) * 3


def fails(wrong: str, name: str, write: Callable[[Path], object], error: type[Exception] = OSError) -> Case:
    def make(folder: Path) -> Call:
        write(folder / name)
        return lambda: sample_of(folder / name)

    return Case(READER, wrong, make, error)


def works(
    wrong: str, name: str, image: Callable[[], Image.Image], instead: str, expected: Callable[[], Any], **options: Any
) -> Case:
    """An image that is read as the (H, W, 3) ``expected``."""

    def make(folder: Path) -> Call:
        image().save(folder / name, **options)

        def call() -> None:
            pixels = expected()
            found = sample_of(folder / name, *pixels.shape[:2])["image"].numpy().transpose(1, 2, 0)
            tolerance = 12 if name.endswith(".jpg") else 0
            assert np.abs(found.astype(int) - pixels.astype(int)).max() <= tolerance

        return call

    return Case(READER, wrong, make, None, instead)


def deep() -> Image.Image:
    values = np.full((HEIGHT, WIDTH), 0x1234, np.uint16)
    values[0] = 0xFFFF
    return Image.fromarray(values)


def deep_as_read() -> np.ndarray:
    values = np.full((HEIGHT, WIDTH, 3), 0x12, np.uint8)
    values[0] = 0xFF
    return values


def transparent() -> Image.Image:
    alpha = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    return Image.fromarray(np.concatenate((colours(), alpha), axis=2))


def coloured() -> Image.Image:
    return Image.fromarray(colours())


def grey() -> Image.Image:
    return Image.fromarray(colours()[:, :, 0])


def plain(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((16, 16, 3), colour, np.uint8)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return exif


def large(folder: Path) -> Call:
    """Grey, and one bit deep in the file."""
    Image.new("1", (10_000, 10_000)).save(folder / "a.png")

    def call() -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert sample_of(folder / "a.png", 10_000, 10_000)["image"].shape == (3, 10_000, 10_000)
        assert any(issubclass(warning.category, Image.DecompressionBombWarning) for warning in caught)

    return call


def claiming_png(path: Path) -> None:
    """A header of 100,000 x 100,000 pixels, and nothing else."""
    header = (100_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100)))]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks))


def _chunk(name: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")


def cut_off(path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])


def of_another_size(folder: Path) -> Call:
    coloured().save(folder / "a.png")
    return lambda: sample_of(folder / "a.png", 6, 4)


WARNED = "with a warning; meinst check says so"
CASES = [
    fails("not there", "a.png", lambda path: None, FileNotFoundError),
    fails("cut off", "a.bmp", cut_off),
    fails("no image", "a.png", lambda path: path.write_text("<html>Not found</html>")),
    fails("a folder", "a.png", Path.mkdir),
    fails("a header of 10,000 megapixels", "a.png", claiming_png),
    Case(READER, "of another size than the JSON says", of_another_size, SizeMismatchError),
    Case(READER, "of 100 megapixels", large, None, "read, with Pillow's DecompressionBombWarning"),
    works("16 bits per channel", "a.png", deep, f"read as the upper 8 of the 16 bits, {WARNED}", deep_as_read),
    works(
        *("a TIFF of several pages", "a.tif", coloured, f"the first page is read, {WARNED}", colours),
        **{"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT))]},
    ),
    works(
        "CMYK",
        "a.jpg",
        lambda: Image.fromarray(plain((200, 100, 50))).convert("CMYK"),
        "read as RGB",
        lambda: plain((200, 100, 50)),
        quality=95,
    ),
    works("transparent", "a.png", transparent, "read without its transparency", colours),
    works("grey", "a.png", grey, "read with three equal channels", lambda: colours()[:, :, :1].repeat(3, axis=2)),
    works(
        "a palette",
        "a.png",
        lambda: Image.fromarray(colours()).quantize(256, method=Image.Quantize.FASTOCTREE).convert("RGB").quantize(256),
        "read in the palette's colours",
        lambda: np.asarray(Image.fromarray(colours()).quantize(256, method=Image.Quantize.FASTOCTREE).convert("RGB")),
    ),
    works("one pixel", "a.png", lambda: Image.fromarray(colours()[:1, :1]), "read", lambda: colours()[:1, :1]),
    works(
        *("turned by its EXIF orientation", "a.png", coloured),
        "turned before use: height and width in the JSON are those after turning",
        lambda: np.rot90(colours(), -1),
        exif=turned(),
    ),
    Case(
        "meinst predict",
        "no image among the inputs",
        lambda folder: ((folder / "a.png").write_text("no"), show_with(folder, folder / "a.png"))[1],
    ),
    Case("meinst predict", "inputs that are not there", lambda folder: show_with(folder, folder / "*.png")),
]
