"""Where mask AP is lost: detectors that are perfect, or wrong in one way, and files that cannot be used."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import BitMasks

from meinst_d2.analysis import Analysis, Truth, analyze, read_detections, read_truth
from meinst_d2.analysis.analysis import IN_OWN_BOX, Pairs, match
from meinst_d2.analysis.inputs import encoder_of_checkpoint, fitted_encoder
from meinst_d2.analysis.report import conclusions, json_of, text_of
from meinst_d2.commands import analyze as analyze_command
from meinst_d2.data.instances import make_templates
from meinst_d2.encoding import DCTEncoder, MaskEncoder, PCAEncoder, PixelEncoder, SigmoidClamp, fit_pca, save_components
from meinst_d2.fitting.count import count_moments
from meinst_d2.masks import encode_templates
from meinst_d2.masks.paste import move_mask
from tests.conftest import ROOT
from tests.models import shapes_with_ids_from_3

Results = list[dict[str, Any]]
SIZE = (40, 60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated shapes with crowd regions and empty images, category ids from 3."""
    folder = tmp_path_factory.mktemp("analysis")
    shapes_with_ids_from_3(folder, 12, 16)
    return folder


@pytest.fixture(scope="module")
def truth(folder: Path) -> Truth:
    return read_truth(folder / "annotations/instances_val.json")


@pytest.fixture(scope="module")
def encoder(truth: Truth) -> PCAEncoder:
    return fitted_encoder(truth.annotations, 16, 4)


Draw = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def detect(truth: Truth, draw: Draw | None = None, shift: float = 0, keep: int = 1) -> Results:
    """Every ``keep``-th object as a detection, its box moved, its mask as drawn from its template of 16 x 16."""
    category_of = truth.ground_truth.dataset.category_ids
    results: Results = []
    for image_id, image in truth.images.items():
        boxes = torch.from_numpy(image.xyxy) + shift
        rles = list(image.rles)
        if draw is not None:
            templates = make_templates(image.annotations, 16)
            assert len(templates.kept) == len(rles)
            classes = torch.from_numpy(image.classes)
            rles = encode_templates(draw(torch.from_numpy(templates.masks), classes), boxes, *image.size)
        for box, k, rle in zip(boxes.tolist(), image.classes, rles, strict=True):
            bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            segmentation = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
            found = {"image_id": image_id, "category_id": category_of[int(k)], "bbox": bbox, "score": 0.9}
            results.append({**found, "segmentation": segmentation})
    return results[::keep]


def analyzed(truth: Truth, results: Results, encoder: MaskEncoder, tmp_path: Path, **settings: Any) -> Analysis:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    return analyze(truth, read_detections(file, truth), encoder, **settings)


def test_a_perfect_detector_has_nothing_to_improve(truth: Truth, encoder: PCAEncoder, tmp_path: Path) -> None:
    analysis = analyzed(truth, detect(truth), encoder, tmp_path)
    assert analysis.box.ap == pytest.approx(100) and analysis.masks["predicted"].ap == pytest.approx(100)
    assert analysis.masks["exact"].ap == analysis.masks["box"].ap == pytest.approx(100)
    assert analysis.masks["encoding"].ap < 99  # the encoding would have lost something
    error = analysis.pairs
    assert len(error) == len(truth.annotations) == analysis.num_objects[0] and error.error == 0
    assert all(math.isnan(share) for share in error.shares.values())
    assert all(image.total == 0 for image in analysis.images)
    assert conclusions(analysis) == ["improve next: nothing, less than 1 point of mask AP is lost"]


def test_every_detection_counts_also_where_an_image_has_more_than_100(tmp_path: Path) -> None:
    boxes = [[8 * x, 8 * y, 6, 6] for y in range(11) for x in range(11)]
    polygons = [[[x, y, x + 6, y, x + 6, y + 6, x, y + 6]] for x, y, _, _ in boxes]
    objects = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": 36, "iscrowd": 0, "segmentation": polygon}
        for i, (box, polygon) in enumerate(zip(boxes, polygons, strict=True), 1)
    ]
    image = {"id": 1, "file_name": "nuclei.png", "height": 90, "width": 90}
    content = {"images": [image], "annotations": objects, "categories": [{"id": 1, "name": "nucleus"}]}
    file = tmp_path / "nuclei.json"
    file.write_text(json.dumps(content))
    nuclei = read_truth(file)
    analysis = analyzed(nuclei, detect(nuclei), PixelEncoder(mask_size=8), tmp_path)
    assert len(analysis.pairs) == 121 and analysis.lost["detection"] == pytest.approx(0)


def test_encoded_masks_in_perfect_boxes(truth: Truth, encoder: PCAEncoder, tmp_path: Path) -> None:
    results = detect(truth, lambda masks, classes: encoder.decode(encoder.encode(masks)))
    analysis = analyzed(truth, results, encoder, tmp_path)
    error = analysis.pairs
    assert error.error > 0.02 and error.parts["box"] == 0 and error.parts["regression"] == 0
    assert error.shares == pytest.approx({"box": 0, "encoding": 1, "regression": 0})
    assert analysis.box.ap == pytest.approx(100) and analysis.lost["encoding"] > 1
    assert analysis.lost == pytest.approx(
        {"detection": 0, "box": 0, "encoding": 100 - analysis.masks["predicted"].ap, "regression": 0}, abs=1e-6
    )
    assert analysis.masks[IN_OWN_BOX] == analysis.masks["encoding"] == analysis.masks["predicted"]
    first = conclusions(analysis)[0]
    assert first.startswith("improve next: encoding") and "raise MODEL.MEINST.DIM_MASK" in first


def test_a_template_that_is_too_coarse_is_told_from_too_few_coefficients(truth: Truth, tmp_path: Path) -> None:
    coarse = fitted_encoder(truth.annotations, 4, 16)  # as many coefficients as pixels
    parts = analyzed(truth, detect(truth, lambda masks, classes: masks.float()), coarse, tmp_path).pairs.parts
    assert parts["template"] > 0.1 and abs(parts["coefficients"]) < 0.1 * parts["template"]
    assert parts["regression"] < 0  # masks of 16 x 16 are better than what 4 x 4 can draw


def test_wrong_coefficients_are_the_regressions(truth: Truth, encoder: PCAEncoder, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(masks: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        coeffs = encoder.encode(masks)
        return encoder.decode(coeffs + 4 * torch.randn(coeffs.shape, generator=generator))

    analysis = analyzed(truth, detect(truth, draw), encoder, tmp_path)
    error, best = analysis.pairs, detect(truth, lambda masks, classes: encoder.decode(encoder.encode(masks)))
    right = analyzed(truth, best, encoder, tmp_path).pairs.error
    assert error.parts["box"] == 0 and error.parts["template"] + error.parts["coefficients"] == pytest.approx(right)
    assert error.parts["regression"] == pytest.approx(error.error - right) and error.shares["regression"] > 0.5
    assert conclusions(analysis)[0].startswith("improve next: regression")


def test_boxes_that_are_off_lose_by_the_box(truth: Truth, tmp_path: Path) -> None:
    fine = fitted_encoder(truth.annotations, 16, 16)
    results = detect(truth, lambda masks, classes: fine.decode(fine.encode(masks)), shift=3)
    analysis = analyzed(truth, results, fine, tmp_path)
    error = analysis.pairs
    assert error.parts["regression"] == 0 and error.shares["box"] > 0.5
    assert conclusions(analysis)[0].startswith("improve next: box")
    assert analysis.masks["exact"].ap > analysis.masks["box"].ap + 20
    assert analysis.masks["exact"].ap > analysis.masks[IN_OWN_BOX].ap > analysis.masks["encoding"].ap + 20


def test_refined_masks_lose_by_pixels_and_by_what_leaves_the_enlarged_box(truth: Truth, tmp_path: Path) -> None:
    pixels, results, context = PixelEncoder(mask_size=16), detect(truth, shift=1), 1.5
    results = [r for r in results if min(r["bbox"][2:]) > 8]
    for r in results:  # what can be drawn with 16 x 16 pixels in the enlarged box
        rle = r["segmentation"] | {"counts": r["segmentation"]["counts"].encode()}
        mask = BitMasks(torch.from_numpy(mask_util.decode(rle)).bool()[None])
        x, y, w, h = r["bbox"]
        box = torch.tensor([[x - w / 4, y - h / 4, x + 1.25 * w, y + 1.25 * h]])
        [rle] = encode_templates(mask.crop_and_resize(box, 16).float(), box, *r["segmentation"]["size"])
        r["segmentation"] = rle | {"counts": rle["counts"].decode()}
    analysis = analyzed(truth, results, pixels, tmp_path, context=context)
    parts = analysis.pairs.parts
    assert len(analysis.pairs) == len(results) and abs(parts["box"]) < 1e-3  # a pixel off is within the enlarged box
    assert parts["template"] > 0.02 and parts["coefficients"] == 0 and abs(parts["regression"]) < 1e-3
    assert "as S x S pixels" in text_of(analysis)
    tight = analyzed(truth, results, pixels, tmp_path, context=1).pairs.parts
    assert tight["box"] > 0.02  # a column and a row of every object are outside


def test_objects_that_are_missed_lose_by_the_detection(truth: Truth, encoder: PCAEncoder, tmp_path: Path) -> None:
    analysis = analyzed(truth, detect(truth, keep=2), encoder, tmp_path)
    assert analysis.lost["detection"] == pytest.approx(100 - analysis.box.ap) and 30 < analysis.lost["detection"] < 70
    assert analysis.lost["box"] == 0
    assert sum(image.missed for image in analysis.images) == len(truth.annotations) - len(detect(truth, keep=2))
    assert conclusions(analysis)[0].startswith("improve next: detection")


def test_what_is_lost_and_the_parts_of_the_error_add_up(truth: Truth, encoder: PCAEncoder, tmp_path: Path) -> None:
    results = detect(truth, lambda masks, classes: encoder.decode(encoder.encode(masks) * 0.7), shift=1, keep=3)
    analysis = analyzed(truth, results, encoder, tmp_path)
    assert sum(analysis.lost.values()) + analysis.masks["predicted"].ap == pytest.approx(100)
    for error in (*analysis.pairs.by_size().values(), *analysis.pairs.by_class(6)):
        if len(error):
            assert sum(error.parts.values()) == pytest.approx(error.error)
            assert sum(error.shares.values()) == pytest.approx(1)


def test_the_parts_of_an_error_by_hand() -> None:
    ious = np.array([[0.9, 0.8, 0.7, 0.5]] * 4)
    pairs = error = Pairs(np.array([100.0, 1024.0, 9216.0, 9217.0]), np.array([0, 1, 1, 0]), ious)
    assert error.parts == pytest.approx({"box": 0.1, "template": 0.1, "coefficients": 0.1, "regression": 0.2})
    assert error.shares == pytest.approx({"box": 0.2, "encoding": 0.4, "regression": 0.4})
    assert [len(e) for e in pairs.by_size().values()] == [4, 1, 1, 2]
    assert [len(e) for e in pairs.by_class(3)] == [2, 2, 0] and math.isnan(pairs.by_class(3)[2].error)
    perfect = Pairs(np.ones(1), np.zeros(1, np.int64), np.ones((1, 4)))
    assert perfect.error == 0 and math.isnan(perfect.shares["encoding"])


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def scene(tmp_path: Path, *annotations: dict[str, Any]) -> Truth:
    """An image of 40 x 60 with squares of two classes."""
    height, width = SIZE
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": height, "width": width}],
        "categories": [{"id": 5, "name": "b"}, {"id": 2, "name": "a"}],
        "annotations": [{"id": i + 1, "image_id": 7, **a} for i, a in enumerate(annotations)],
    }
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(content))
    return read_truth(file)


def thing(x: float, y: float, side: float, category: int = 2, **more: Any) -> dict[str, Any]:
    return {"category_id": category, "bbox": [x, y, side, side], "segmentation": square(x, y, side), **more}


def detection(x: float, y: float, side: float, score: float = 0.9, category: int = 2) -> dict[str, Any]:
    rle = mask_util.merge(mask_util.frPyObjects(square(x, y, side), *SIZE))
    segmentation = {"size": list(SIZE), "counts": rle["counts"].decode()}
    found = {"image_id": 7, "category_id": category, "bbox": [x, y, side, side], "score": score}
    return {**found, "segmentation": segmentation}


def crowd_region() -> dict[str, Any]:
    """The right half of the scene."""
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[:, 30:] = 1
    rle = mask_util.encode(mask)
    segmentation = {"size": list(SIZE), "counts": rle["counts"].decode()}
    return {"category_id": 2, "bbox": [30, 0, 30, 40], "segmentation": segmentation, "iscrowd": 1}


PIXELS = PCAEncoder(dim=1, mask_size=4, sigmoid=False)
PIXELS.load_state_dict(
    {"components": torch.full((1, 16), 0.25), "explained_variances": torch.ones(1), "means": torch.zeros(16)}
)


def test_the_better_detection_takes_the_object(tmp_path: Path) -> None:
    truth = scene(tmp_path, thing(5, 5, 10), thing(30, 5, 10), thing(5, 25, 10, category=5))
    results = [detection(6, 5, 10, 0.5), detection(5, 5, 10, 0.8), detection(5, 25, 10, 0.7), detection(35, 5, 10, 0.6)]
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    found = read_detections(file, truth)[7]
    # By falling score: the object; an object of another class; a box with an IoU of 1/3; one that comes too late.
    assert found.scores.tolist() == pytest.approx([0.8, 0.7, 0.6, 0.5])
    assert match(truth.images[7], found)[0].tolist() == [0, -1, -1, -1]
    (image,) = analyzed(truth, results, PIXELS, tmp_path, score_threshold=0.55).images
    assert (image.missed, image.false, image.mask_error, image.total) == (2, 2, 0, 4)


def test_detections_in_a_crowd_region_are_not_false(tmp_path: Path) -> None:
    truth = scene(tmp_path, thing(5, 5, 10), crowd_region())
    results = [detection(5, 5, 10), detection(40, 10, 10), detection(40, 10, 10, category=5), detection(10, 25, 10)]
    analysis = analyzed(truth, results, PIXELS, tmp_path)
    assert analysis.num_objects == (1, 1, 0, 0) and len(analysis.pairs) == 1
    assert (analysis.images[0].missed, analysis.images[0].false) == (0, 2)  # of another class; outside


def test_no_detections(tmp_path: Path) -> None:
    analysis = analyzed(scene(tmp_path, thing(5, 5, 10), thing(20, 5, 12, category=5)), [], PIXELS, tmp_path)
    assert analysis.box.ap == analysis.masks["predicted"].ap == 0 and analysis.box.by_class == (0, 0)
    assert analysis.lost == {"detection": 100, "box": 0, "encoding": 0, "regression": 0}
    assert analysis.images[0].total == 2 and len(analysis.pairs) == 0
    assert conclusions(analysis)[0].startswith("improve next: detection, which loses 100.0 points")
    written = json.loads(json.dumps(json_of(analysis), allow_nan=False))
    assert written["mask_error"]["all"]["error"] is None and "detection 100.0" in text_of(analysis)


@pytest.mark.parametrize("annotations", [[], [crowd_region()]])
def test_no_objects(annotations: Results, tmp_path: Path) -> None:
    analysis = analyzed(scene(tmp_path, *annotations), [detection(5, 5, 10)], PIXELS, tmp_path)
    assert math.isnan(analysis.box.ap) and analysis.images[0].false == 1
    assert conclusions(analysis) == ["improve next: the ground truth has no objects, so there is nothing to measure"]
    text_of(analysis), json.dumps(json_of(analysis), allow_nan=False)


def test_a_mask_is_stretched_with_its_box() -> None:
    mask = np.zeros((20, 30), np.uint8, order="F")
    mask[4:8, 6:8] = 1  # the left half of the box 6, 4, 10, 8
    source = np.array([6, 4, 10, 8], np.float32)
    rle = mask_util.encode(mask)
    same = mask_util.decode(move_mask(rle, source, source))
    moved = mask_util.decode(move_mask(rle, source, source + 3))
    doubled = mask_util.decode(move_mask(rle, source, np.array([10, 2, 18, 10], np.float32)))
    assert np.array_equal(same, mask) and np.array_equal(moved[7:11, 9:11], np.ones((4, 2))) and moved.sum() == 8
    assert doubled[2:10, 10:14].all() and doubled.sum() == 32
    outside = mask_util.decode(move_mask(rle, source, np.array([28, 18, 32, 22], np.float32)))
    assert outside.sum() == 4 and outside[18:, 28:].all()


def test_the_encoder_comes_with_a_checkpoint(tmp_path: Path, encoder: PCAEncoder) -> None:
    weights = {f"proposal_generator.mask_encoder.{name}": value for name, value in encoder.state_dict().items()}
    torch.save({"model": weights}, tmp_path / "model.pth")
    read, context = encoder_of_checkpoint(tmp_path / "model.pth")
    masks = torch.rand(3, 16, 16) > 0.5
    assert (read.dim, read.mask_size, read.sigmoid, context) == (4, 16, True, None)
    torch.testing.assert_close(read.decode(read.encode(masks)), encoder.decode(encoder.encode(masks)))
    dct = DCTEncoder(dim=4, mask_size=16).eval()  # of logits whose mean is 0
    weights = {f"module.proposal_generator.mask_encoding.{name}": value for name, value in dct.state_dict().items()}
    torch.save({"model": weights}, tmp_path / "dct.pth")
    read = encoder_of_checkpoint(tmp_path / "dct.pth")[0]
    torch.testing.assert_close(read.decode(read.encode(masks)), dct.decode(dct.encode(masks)))
    torch.save({"model": {"backbone.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth holds no components of an encoder: name their file"):
        encoder_of_checkpoint(tmp_path / "other.pth")


def command(folder: Path, results: Path, *more: str) -> list[str]:
    truth = folder / "annotations/instances_val.json"
    return ["--results", str(results), "--annotations", str(truth), "--output", str(results.parent / "out"), *more]


def test_the_command_prints_writes_and_draws(folder: Path, truth: Truth, encoder: PCAEncoder, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(detect(truth, lambda masks, classes: encoder.decode(encoder.encode(masks)), shift=2)))
    content = json.loads((folder / "annotations/instances_val.json").read_text())
    content["categories"][0]["name"] = "A$_$B"  # to matplotlib a formula, and a wrong one
    (tmp_path / "truth.json").write_text(json.dumps(content))
    arguments = command(
        folder, file, "--images", str(folder / "val"), "--mask-size", "16", "--dim", "4", "--worst", "3"
    )
    arguments += ["--annotations", str(tmp_path / "truth.json")]
    done = subprocess.run(
        [sys.executable, "-c", "from meinst_d2.commands import main; main()", "analyze", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out/analysis.json").read_text())
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    assert float(rows["boxes"][1]) == pytest.approx(written["bbox"]["ap"], abs=0.051)
    assert float(rows["gap"][1]) == pytest.approx(written["bbox"]["ap"] - written["segm"]["predicted"]["ap"], abs=0.051)
    assert written["improve_next"][0] in done.stdout and written["encoding"]["dim"] == 4
    assert all((tmp_path / "out" / name).stat().st_size > 5000 for name in ("losses.png", "worst.png"))
    assert not list((tmp_path / "out").glob(".*"))


def test_components_of_a_file_and_no_pictures_without_images(folder: Path, truth: Truth, tmp_path: Path) -> None:
    basis = fit_pca(count_moments(truth.annotations, 12)[0], SigmoidClamp()).truncated(5)
    save_components(tmp_path / "c.npz", [basis], {"sigmoid": True})
    (tmp_path / "results.json").write_text("[]")
    analyze_command.main(command(folder, tmp_path / "results.json", "--components", str(tmp_path / "c.npz")))
    encoding = json.loads((tmp_path / "out/analysis.json").read_text())["encoding"]
    assert (encoding["dim"], encoding["mask_size"]) == (5, 12) and not (tmp_path / "out/worst.png").exists()


GOOD = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 9], "score": 0.5}


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ([GOOD], [], "entry 0 has no mask, which is what is analyzed"),
        ([GOOD | {"segmentation": {"size": [4, 4], "counts": ""}}], [], "of size [4, 4] on an image of [96, 120]"),
        (
            [GOOD | {"segmentation": {"size": [96, 120], "counts": "PR1"}}],
            [],
            "entry 0 has a mask that cannot be read: an RLE whose runs do not add up to 96 x 120 pixels",
        ),
        ([GOOD | {"image_id": 999}], [], "boxes of images that the dataset does not have (ids 999)"),
        ([], ["--images", "gone"], "--images gone is not a folder"),
        ([], ["--components", "gone.npz"], "there are no components at gone.npz"),
        ([], ["--weights", "gone.pth"], "gone.pth"),
        ([], ["--dim", "700"], "not 700"),
        ([], ["--annotations", "gone.json"], "the annotation file gone.json does not exist"),
    ],
)
def test_what_cannot_be_used(content: Any, more: list[str], message: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit) as error:
        analyze_command.main(command(folder, tmp_path / "results.json", *more))
    assert message in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "out").exists()


IMAGE = {"id": 1, "file_name": "a.png", "height": 40, "width": 60}
CATEGORY = {"id": 1, "name": "a"}
NUMBER_0 = "annotation number 0 (id 5) "


def one(**annotation: Any) -> dict[str, Any]:
    return {"annotations": [{"id": 5, "image_id": 1, "category_id": 1, **annotation}]}


MALFORMED: list[tuple[Any, str]] = [
    ("{", "is not readable JSON"),
    ([], "is not a JSON object"),
    ({"annotations": None}, "'annotations' is null instead of a list"),
    ({"images": {}}, "'images' is an object instead of a list"),
    ({"images": [3]}, "image number 0 is a number instead of an object"),
    ({"images": [{"height": 4, "width": 4}]}, "image number 0 needs an id"),
    ({"images": [IMAGE | {"id": [1]}]}, "image number 0 needs an id"),
    ({"images": [IMAGE | {"height": "tall"}]}, "image number 0 needs an id, a height"),
    ({"categories": [{"name": "a"}]}, "category number 0 needs an id"),
    ({"categories": [CATEGORY | {"id": [1]}]}, "category number 0 needs an id"),
    ({"categories": ["a"]}, "category number 0 is a string instead of an object"),
    ({"categories": [{"id": 1}]}, "category number 0 needs a name"),
    ({"annotations": [None]}, "annotation number 0 is null instead"),
    ({"annotations": [{"id": 5}]}, NUMBER_0 + "is of an image or a category that is not there"),
    (one(image_id=[1]), NUMBER_0 + "is of an image or a category that is not there"),
    (one(category_id=9), NUMBER_0 + "is of an image or a category that is not there"),
    (one(segmentation=7), NUMBER_0 + "cannot be evaluated: segmentation of an unknown kind"),
    (one(segmentation=[]), NUMBER_0 + "cannot be evaluated: no segmentation"),
    (one(segmentation=[[1, 2, 3, 4]]), NUMBER_0 + "cannot be evaluated: polygon with fewer than 3 points"),
    (one(segmentation=[[0, 0, 3e7, 0, 9, 9]]), NUMBER_0 + "cannot be evaluated: polygon that is absurdly long"),
]


@pytest.mark.parametrize(("content", "message"), MALFORMED)
def test_malformed_ground_truth_is_one_sentence(content: Any, message: str, tmp_path: Path) -> None:
    if isinstance(content, dict):
        content = {"images": [IMAGE], "categories": [CATEGORY], "annotations": []} | content
    file = tmp_path / "truth.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(SystemExit) as error:
        analyze_command.main(["--results", str(tmp_path / "results.json"), "--annotations", str(file)])
    said = str(error.value)
    assert said.startswith(f"meinst analyze: {file}") and message in said and "\n" not in said


def test_ids_that_are_strings_are_analyzed_alike(folder: Path, tmp_path: Path) -> None:
    """The area and iscrowd are missing, too."""
    content = json.loads((folder / "annotations/instances_val.json").read_text())
    content["annotations"] = [x for x in content["annotations"] if not x["iscrowd"]]
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps(content))
    results = detect(read_truth(plain), shift=2)
    for entry in (*content["images"], *content["categories"]):
        entry["id"] = f"{entry['id']:06}"
    for entry in (*content["annotations"], *results):
        entry |= {key: f"{entry[key]:06}" for key in ("image_id", "category_id")}
    for entry in content["annotations"]:
        entry["id"] = f"a{entry['id']}"
        del entry["area"], entry["iscrowd"]
    (tmp_path / "strings.json").write_text(json.dumps(content))
    truth = read_truth(tmp_path / "strings.json")
    analysis = analyzed(truth, results, fitted_encoder(truth.annotations, 16, 4), tmp_path)
    before = read_truth(plain)
    results = detect(before, shift=2)
    expected = analyzed(before, results, fitted_encoder(before.annotations, 16, 4), tmp_path)
    assert json_of(analysis)["segm"] == json_of(expected)["segm"] and 5 < analysis.box.ap < 95
    assert {image.image_id for image in analysis.images} == {f"{image.image_id:06}" for image in expected.images}


@pytest.mark.parametrize(("option", "value"), [("--dim", "0"), ("--score-threshold", "2"), ("--worst", "0")])
def test_options_out_of_range(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        analyze_command.parse_args(["--results", "r", "--annotations", "a", option, value])
    assert option in capsys.readouterr().err
