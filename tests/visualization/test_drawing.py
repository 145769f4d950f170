"""Holes stay open, whatever form the masks have, and names are drawn as they are written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.visualizer import Visualizer
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager
from PIL import Image

from meinst_d2.masks import RLEs, encode_masks
from meinst_d2.visualization.drawing import MOST_LABELED, MaskVideoVisualizer, MaskVisualizer, draw_sheet, use_font

GREY = np.full((80, 80, 3), 100, np.uint8)
RED = (1.0, 0.0, 0.0)
TWO = Metadata(name="two", thing_classes=["cup", "ring"])
CENTRE, RIM, OUTSIDE = (40, 40), (40, 18), (4, 4)


def ring() -> np.ndarray:
    y, x = np.mgrid[:80, :80] - 39.5
    distance = np.hypot(x, y)
    return (distance < 30) & (distance > 15)


@pytest.mark.parametrize("form", [lambda x: x, torch.from_numpy, lambda x: BitMasks(torch.from_numpy(x))])
def test_a_ring_is_painted_and_its_hole_is_not(form: Any) -> None:
    drawn = MaskVisualizer(GREY).overlay_instances(masks=form(ring()[None]), assigned_colors=[RED]).get_image()
    assert np.abs(drawn[RIM].astype(int) - (177, 50, 50)).max() <= 2  # half of red, half of grey
    assert (drawn[CENTRE] == 100).all() and (drawn[OUTSIDE] == 100).all()


def test_detectron2_paints_the_hole() -> None:
    """Why this class exists; when this fails it may go."""
    drawn = Visualizer(GREY).overlay_instances(masks=ring()[None], assigned_colors=[RED]).get_image()
    assert drawn[CENTRE][0] > 150


def test_a_smaller_mask_lies_on_a_larger_one() -> None:
    large, small = np.zeros((2, 80, 80), bool)
    large[10:70, 10:70], small[30:50, 30:50] = True, True
    colors = [(0.0, 0.0, 1.0), RED]
    for order in ([0, 1], [1, 0]):
        masks = np.stack([large, small])[order]
        visualizer = MaskVisualizer(GREY)
        drawn = visualizer.overlay_instances(masks=masks, assigned_colors=[colors[i] for i in order]).get_image()
        blue_on_grey = (50, 50, 177)
        assert np.abs(drawn[20, 20].astype(int) - blue_on_grey).max() <= 2
        assert np.abs(drawn[40, 40].astype(int) - (152, 25, 89)).max() <= 3  # red on that


def found(masks: str | None) -> Instances:
    instances = Instances((80, 80))
    instances.pred_boxes = Boxes(torch.tensor([[9.0, 9.0, 71.0, 71.0]]))
    instances.scores, instances.pred_classes = torch.tensor([0.9]), torch.tensor([1])
    if masks == "rle":
        instances.pred_masks_rle = RLEs(encode_masks(ring()[None], instances.pred_boxes.tensor.numpy()))
    elif masks == "bitmask":
        instances.pred_masks = torch.from_numpy(ring()[None])
    return instances


@pytest.mark.parametrize("masks", ["rle", "bitmask", None])
def test_detections_on_images_and_frames(masks: str | None) -> None:
    def drawings(instances: Instances) -> tuple[Any, Any]:
        image = MaskVisualizer(GREY, TWO).draw_instance_predictions(instances)
        return image, MaskVideoVisualizer(TWO).draw_instance_predictions(GREY, instances)

    image, frame = drawings(found(masks))
    for drawn in (image, frame):
        assert (drawn.ax.texts[0].get_text()) == "ring 90%"
        changed = (drawn.get_image() != 100).any(axis=2)
        assert changed[RIM] == (masks is not None) and changed.any()
    assert not (image.get_image()[CENTRE] != 100).any()
    for drawn in drawings(found(masks)[torch.zeros(1, dtype=torch.bool)]):
        assert (drawn.get_image() == 100).all()


def test_boxes_and_labels_are_drawn_unless_they_would_hide_the_masks() -> None:
    for objects, kept in ((MOST_LABELED, True), (MOST_LABELED + 1, False)):
        axes = MaskVisualizer(GREY, TWO).draw_instance_predictions(Instances.cat([found("bitmask")] * objects)).ax
        assert len(axes.texts) == objects * kept
        assert len(axes.images) == 2  # the image and the painted masks


def test_an_object_keeps_its_colour_from_frame_to_frame() -> None:
    visualizer = MaskVideoVisualizer(TWO)
    first, second = (visualizer.draw_instance_predictions(GREY, found("rle")).get_image()[RIM] for _ in range(2))
    assert (first == second).all()


def label_of(name: str) -> Any:
    """The text that a class name is drawn as, after drawing."""
    metadata = Metadata(name="two", thing_classes=["cup", name])
    drawn = MaskVisualizer(GREY, metadata).draw_instance_predictions(found(None))
    drawn.get_image()
    return drawn.ax.texts[0]


@pytest.mark.parametrize("name", ["A$_$B", "$5 to $10", r"100\$", "$x_{1}$"])
def test_a_dollar_sign_in_a_name_is_a_dollar_sign(name: str) -> None:
    label = label_of(name)
    assert label.get_text() == f"{name} 90%" and not label.get_parse_math()


def test_what_is_not_a_font_is_a_sentence(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "height": 80, "width": 80, "annotations": []}
    draw_sheet(tmp_path / "sheet.png", [record], [found(None)], "of_no_name", titles=["a_$b$_$"])
    assert Image.open(tmp_path / "sheet.png").width > 600
    (tmp_path / "a.ttf").write_text("no font")
    for name in ("a.ttf", "b.ttf"):
        with pytest.raises(ValueError, match=f"{name} is not a font"):
            use_font(tmp_path / name)


@pytest.fixture
def font(tmp_path: Path) -> Iterator[Path]:
    """A file whose only character is U+65B9, a full square."""
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "fang"])
    builder.setupCharacterMap({0x65B9: "fang"})
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 900), (900, 900), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "fang": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "fang": (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "OneGlyph", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "one.ttf")
    known = list(fontManager.ttflist)
    with matplotlib.rc_context():
        yield tmp_path / "one.ttf"
    fontManager.ttflist[:] = known


def test_a_script_that_the_font_lacks(
    font: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    for _ in range(2):
        before = label_of("\u65b9 square").get_window_extent()
    (record,) = caplog.records
    assert "the font DejaVu Sans lacks characters of \u65b9 square, which are drawn as squares" in record.message
    assert "meinst predict --font FILE" in record.message
    use_font(font)
    label = label_of("\u65b9 square")
    assert label.get_fontfamily() == ["OneGlyph", "sans-serif"] and label.get_window_extent() != before
    assert len(caplog.records) == 1
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
