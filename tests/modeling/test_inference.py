import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torchvision.ops import batched_nms

from meinst_d2.encoding import PCABasis, PCAEncoder
from meinst_d2.fcos.boxes import level_locations
from meinst_d2.masks import paste_masks
from meinst_d2.modeling.head import HeadOutput
from meinst_d2.modeling.inference import InferenceRule, detect, postprocess

STRIDES, SHAPES = (8, 16), [(6, 8), (3, 4)]


def random_output(seed: int = 0, dim: int | None = 4, level: float = 0.0) -> HeadOutput:
    generator = torch.Generator().manual_seed(seed)

    def maps(channels: int) -> list[torch.Tensor]:
        return [torch.randn(2, channels, *shape, generator=generator) for shape in SHAPES]

    return HeadOutput([x + level for x in maps(3)], [x.relu() * 5 for x in maps(4)], maps(1), dim and maps(dim))


def encoder() -> PCAEncoder:
    built = PCAEncoder(dim=4, mask_size=6)
    rows = np.linalg.qr(np.random.default_rng(0).normal(size=(36, 4)))[0].T
    built.load_bases([PCABasis(rows, np.zeros(36), np.full(4, 9.0), np.ones(4))])
    return built


def run(output: HeadOutput, **options: object) -> list[Instances]:
    masks = None if output.mask_coeffs is None else encoder()
    rule = InferenceRule(**options)
    return detect(output, level_locations(SHAPES, STRIDES), STRIDES, [(48, 64), (40, 60)], rule, masks)


def test_every_detection_is_what_its_location_says() -> None:
    output = random_output()
    strides = torch.cat([torch.full((h * w,), s) for (h, w), s in zip(SHAPES, STRIDES, strict=True)])
    flat = lambda maps: torch.cat([x.flatten(2) for x in maps], 2)  # noqa: E731
    all_locations = torch.cat(level_locations(SHAPES, STRIDES))
    for i, found in enumerate(run(output, nms_thresh=0.6, max_detections=20)):
        assert len(found) == 20 and (found.scores.diff() <= 0).all()
        scores = (flat(output.cls_logits)[i].sigmoid() * flat(output.centerness)[i].sigmoid()).sqrt()  # (K, R)
        at = []
        for location, k, score in zip(found.locations, found.pred_classes, found.scores, strict=True):
            matches = (all_locations == location).all(1) & (scores[k] == score)
            at.append(matches.nonzero()[0, 0].item())
        ltrb = flat(output.box_ltrb)[i, :, at].T * strides[at, None]
        expected = torch.cat((all_locations[at] - ltrb[:, :2], all_locations[at] + ltrb[:, 2:]), 1)
        assert torch.equal(found.pred_boxes.tensor, expected)
        decoded = encoder().decode(flat(output.mask_coeffs)[i, :, at].T)
        torch.testing.assert_close(found.pred_masks, decoded[:, None])


def test_suppression_is_torchvisions_per_class() -> None:
    output = random_output(1, dim=None)
    every = run(output, nms_thresh=0.0, max_detections=0)
    kept = run(output, nms_thresh=0.1, max_detections=0)
    for before, after in zip(every, kept, strict=True):
        index = batched_nms(before.pred_boxes.tensor, before.scores, before.pred_classes, 0.1)
        assert len(index) < len(before)
        assert torch.equal(before.pred_boxes.tensor[index], after.pred_boxes.tensor)


def test_ties_do_not_break_the_cap() -> None:
    """The published cap keeps every detection that ties with the last."""
    output = random_output(2, dim=None)
    for maps in (output.cls_logits, output.centerness):
        for x in maps:
            x.fill_(1.0)
    assert [len(found) for found in run(output, nms_thresh=0, max_detections=10)] == [10, 10]


def detections(boxes: list[list[float]], masks: torch.Tensor, size: tuple[int, int] = (40, 40)) -> Instances:
    found = Instances(size)
    found.pred_boxes = Boxes(torch.tensor(boxes))
    found.scores = torch.linspace(0.9, 0.5, len(boxes))
    found.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
    found.pred_masks = masks[:, None]
    return found


def test_inside_the_image_pasting_is_detectron2s() -> None:
    torch.manual_seed(0)
    found = detections([[3.0, 4.0, 30.0, 20.5], [10.2, 11.0, 39.0, 39.5]], torch.rand(2, 28, 28))
    for paste_box in ("predicted", "clipped"):
        ours = postprocess(found, 80, 100, paste_box)
        theirs = detector_postprocess(
            Instances((40, 40), **{**found.get_fields(), "pred_boxes": found.pred_boxes.clone()}), 80, 100
        )
        assert torch.equal(ours.pred_masks, theirs.pred_masks)
        assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)


def test_a_mask_whose_box_leaves_the_image_is_cut_not_squeezed() -> None:
    mask = torch.zeros(1, 28, 28)
    mask[:, :, :14] = 1  # the left half of a box that is half outside on the right
    found = detections([[20.0, 0.0, 60.0, 40.0]], mask)
    cut, squeezed = (postprocess(found, 40, 40, kind).pred_masks[0] for kind in ("predicted", "clipped"))
    assert cut[:, 20:].all() and not cut[:, :20].any()
    assert squeezed[:, 20:30].all() and not squeezed[:, 30:].any()
    assert postprocess(found, 40, 40).pred_boxes.tensor.tolist() == [[20, 0, 40, 40]]


def test_boxes_without_area_in_the_image_go() -> None:
    boxes = [[5.0, 5.0, 5.0, 30.0], [50.0, 50.0, 60.0, 60.0], [1.0, 1.0, 9.0, 9.0]]
    done = postprocess(detections(boxes, torch.ones(3, 28, 28)), 40, 40)
    assert len(done) == 1 and done.scores.item() == pytest.approx(0.5)


def test_detections_are_not_modified() -> None:
    found = detections([[20.0, 0.0, 60.0, 40.0]], torch.ones(1, 28, 28))
    postprocess(found, 80, 80)
    assert found.pred_boxes.tensor.tolist() == [[20, 0, 60, 40]] and found.pred_masks.shape == (1, 1, 28, 28)


@pytest.mark.parametrize("paste_box", ["predicted", "clipped"])
def test_every_kind_of_output_is_the_same_masks(paste_box: str) -> None:
    torch.manual_seed(0)
    boxes = [[-8.0, 3.0, 21.5, 50.2], [5.0, 5.0, 5.0, 9.0], [10.2, 11.0, 39.0, 39.5]]  # the second one goes
    found = detections(boxes, torch.rand(3, 28, 28))
    masks, rles, templates = (postprocess(found, 80, 100, paste_box, kind) for kind in ("bitmask", "rle", "template"))
    assert len(masks) == len(rles) == len(templates) == 2
    assert masks.pred_masks.any((1, 2)).all()
    assert np.array_equal(mask_util.decode(list(rles.pred_masks_rle)).transpose(2, 0, 1), masks.pred_masks)
    pasted = paste_masks(templates.pred_mask_templates, templates.pred_mask_boxes.tensor, 80, 100)
    assert torch.equal(pasted, masks.pred_masks)
    kinds = {"pred_masks", "pred_masks_rle", "pred_mask_templates", "pred_mask_boxes"}
    assert kinds & masks.get_fields().keys() == {"pred_masks"}
    assert kinds & rles.get_fields().keys() == {"pred_masks_rle"}
    assert kinds & templates.get_fields().keys() == {"pred_mask_templates", "pred_mask_boxes"}


def test_encodings_can_be_chosen_from_like_other_fields() -> None:
    found = detections([[0.0, 0.0, 20.0, 20.0], [10.0, 0.0, 40.0, 20.0]], torch.ones(2, 28, 28))
    rles = postprocess(found, 40, 40, mask_output="rle")
    kept = rles[rles.scores < 0.7]
    assert len(kept) == 1 and mask_util.area(kept.pred_masks_rle[0]) == 600
    assert len(type(rles).cat([rles, kept])) == 3


@pytest.mark.parametrize("kind", ["bitmask", "rle", "template"])
def test_no_detection_of_any_kind(kind: str) -> None:
    (first, _) = run(random_output(level=-20.0))
    assert len(first) == 0 and first.pred_masks.shape == (0, 1, 6, 6)
    done = postprocess(first, 96, 128, mask_output=kind)
    assert kind != "bitmask" or (done.pred_masks.shape == (0, 96, 128) and done.pred_masks.dtype == torch.bool)
    assert len(done) == 0 and len(done.get_fields()) == (6 if kind == "template" else 5)


@pytest.mark.parametrize("kind", ["bitmask", "rle", "template"])
def test_a_model_without_masks_has_none(kind: str) -> None:
    (first, _) = run(random_output(dim=None))
    done = postprocess(first, 96, 128, mask_output=kind)
    assert set(done.get_fields()) == {"pred_boxes", "scores", "pred_classes", "locations"}
