"""The second look at a detection: its geometry by hand, its parts against others', and what it starts from."""

import math

import pycocotools.mask as mask_utils
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

from meinst_d2.encoding import PixelEncoder
from meinst_d2.masks import paste_masks
from meinst_d2.modeling.refinement import (
    RefinementHead,
    boxes_of_masks,
    elementwise_iou,
    enlarge,
    mask_loss,
    mean_inside,
    resample,
    sample_features,
)
from tests.modeling.test_retinanet import RETINANET
from tests.models import fit_to_blobs, image_with, tiny_cfg, tiny_model

LEVELS = {f"p{i}": ShapeSpec(channels=4, stride=2**i) for i in (3, 4, 5)}
STRIDES = (8, 16, 32)
REFINED = ("MODEL.MEINST.REFINE.ENABLED", True, "MODEL.MEINST.REFINE.CLASSIFY", True)


def features_of(num_images: int, channels: int = 4) -> dict[str, torch.Tensor]:
    return {f"p{i}": torch.randn(num_images, channels, 128 >> i, 160 >> i) for i in (3, 4, 5)}


def test_a_box_grows_about_its_center() -> None:
    assert enlarge(torch.tensor([[10.0, 10.0, 30.0, 20.0]]), 1.2).tolist() == [[8, 9, 32, 21]]


def test_overlap_of_pairs() -> None:
    first = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 1, 1]])
    second = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [2, 2, 3, 3]])
    torch.testing.assert_close(elementwise_iou(first, second), torch.tensor([1, 1 / 3, 0]))


def test_a_mask_in_another_box() -> None:
    mask = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])  # the upper left quarter of its box
    box = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    torch.testing.assert_close(resample(mask, box, box, 2), mask)
    part = torch.tensor([[0.0, 0.0, 4.0, 4.0]])  # its cells are centered at 1 and 3, those of the mask at 2 and 6
    torch.testing.assert_close(resample(mask, box, part, 2), torch.full((1, 2, 2), 0.75 * 0.75))
    assert not resample(mask, box, box + 20, 4).any()


def test_features_are_those_of_detectron2s_pooler() -> None:
    """Which floors where this rounds: its canonical size is a level's limit, half an octave up."""
    torch.manual_seed(0)
    features = list(features_of(2).values())
    boxes = torch.rand(40, 4) * 60
    boxes[:, 2:] += boxes[:, :2] + torch.logspace(0, 2.5, 40)[:, None]
    image_idx = torch.arange(40) // 25
    theirs = ROIPooler(7, [1 / stride for stride in STRIDES], 2, "ROIAlignV2", 8 * 14 / math.sqrt(2), 3)
    expected = theirs(features, [Boxes(boxes[:25]), Boxes(boxes[25:])])
    torch.testing.assert_close(sample_features(features, boxes, image_idx, STRIDES, 7), expected)


def test_losses_by_hand() -> None:
    logits, masks = torch.zeros(1, 2, 2), torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    dice = 1 - (2 * 1 + 1) / (2 + 2 + 1)  # half of every pixel is found
    torch.testing.assert_close(mask_loss(logits, masks), torch.tensor([math.log(2) + dice]))
    sure = mask_loss(200 * (masks - 0.5), masks)
    assert sure.item() == pytest.approx(0, abs=1e-6)


def test_the_box_of_a_mask_lies_between_the_centers_of_cells() -> None:
    x, y = torch.arange(8) + 0.5, (torch.arange(8) + 0.5)[:, None]
    logits = torch.minimum(torch.minimum(x - 1.75, 6.25 - x), torch.minimum(y - 3.0, 7.0 - y))[None]
    region = torch.tensor([[10.0, 20.0, 26.0, 36.0]])  # two pixels a cell
    found = boxes_of_masks(logits, region, torch.zeros(1, 4))
    torch.testing.assert_close(found, torch.tensor([[13.5, 26.0, 22.5, 34.0]]))
    full = boxes_of_masks(torch.ones(1, 8, 8), region, torch.zeros(1, 4))
    assert torch.equal(full, region)
    empty = boxes_of_masks(-torch.ones(1, 8, 8), region, torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert empty.tolist() == [[1, 2, 3, 4]]


def test_the_mean_probability_inside_a_mask() -> None:
    masks = torch.tensor([[[0.9, 0.7], [0.4, 0.0]], [[0.1, 0.2], [0.3, 0.4]]])
    torch.testing.assert_close(mean_inside(masks), torch.tensor([0.8, 0.0]))


def test_a_predictor_of_zeros_leaves_the_mask_of_the_code() -> None:
    torch.manual_seed(0)
    head = RefinementHead(in_features=LEVELS)
    torch.nn.init.zeros_(head.predictor.weight)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 28), torch.linspace(-1, 1, 28), indexing="ij")
    templates = torch.sigmoid(8 * (1 - 1.4 * x.square() - 1.4 * y.square()))[None]
    boxes = torch.tensor([[20.0, 30.0, 90.0, 100.0]])
    logits, class_logits = head(features_of(1), boxes, torch.zeros(1, dtype=torch.int64), templates)
    assert class_logits.shape == (1, 0)
    code = paste_masks(templates, boxes, 128, 160)
    refined = paste_masks(logits.sigmoid().detach(), enlarge(boxes, head.context), 128, 160)
    assert (code & refined).sum() / (code | refined).sum() > 0.97


def test_a_box_that_is_far_from_its_object_is_replaced_by_the_objects() -> None:
    torch.manual_seed(0)
    head, encoder = RefinementHead(in_features=LEVELS).eval(), PixelEncoder().eval()
    objects = image_with([[20, 20, 60, 50], [70, 30, 120, 100]], height=128, width=160)["instances"]
    near = objects.gt_boxes.tensor + 1.0
    far = near.clone()
    far[1] += 60  # its IoU with the object is below one half
    coeffs, numbers = torch.randn(2, 784), torch.arange(2)
    features, image_idx = features_of(1), torch.zeros(2, dtype=torch.int64)

    def loss(boxes: torch.Tensor) -> torch.Tensor:
        losses = head.loss(features, boxes, coeffs, image_idx, numbers, [objects], encoder, torch.tensor(2.0))
        return losses["loss_refine"]

    own = torch.stack((near[0], objects.gt_boxes.tensor[1]))
    torch.testing.assert_close(loss(far), loss(own))
    assert loss(near) != loss(own)
    head.train()
    torch.manual_seed(1)
    moved = loss(far)
    assert moved != loss(far) and not torch.isclose(moved, loss(own))  # the sides are moved at random


def test_scores_are_multiplied_by_the_root_of_the_probability_of_the_class() -> None:
    head = RefinementHead(in_features=LEVELS, num_classes=3).eval()
    torch.nn.init.zeros_(head.cls_score.weight)
    head.cls_score.bias.data = torch.tensor([0.25, 0.5, 0.25]).log()
    boxes, image_idx = torch.tensor([[20.0, 30.0, 90.0, 100.0]] * 2), torch.zeros(2, dtype=torch.int64)
    found = head.look(
        features_of(1), boxes, torch.tensor([0.8, 0.8]), torch.tensor([0, 1]), image_idx, torch.ones(2, 28, 28)
    )
    torch.testing.assert_close(found.scores, torch.tensor([0.8 * 0.5, 0.8 * math.sqrt(0.5)]))


@pytest.mark.parametrize("form", [(), RETINANET], ids=["FCOS", "RetinaNet"])
def test_a_model_learns_to_correct_its_masks(form: tuple[object, ...]) -> None:
    torch.manual_seed(0)
    model = build_model(tiny_cfg(*form, *REFINED))
    inner = getattr(model, "proposal_generator", model)
    fit_to_blobs(inner.mask_encoder)
    batch = [image_with([[10, 8, 40, 44], [50, 20, 90, 60]], classes=[3, 5]), image_with([])]
    optimizer = torch.optim.Adam(inner.refinement.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        torch.manual_seed(1)
        with EventStorage():
            found = model(batch)
        losses.append(torch.stack([found["loss_refine"], found["loss_refine_cls"]]))
        optimizer.zero_grad()
        losses[-1].sum().backward()
        assert all(p.grad is not None for p in inner.refinement.parameters())
        optimizer.step()
    assert (losses[0] > 0).all() and (losses[-1] < 0.8 * losses[0]).all()
    with EventStorage():
        alone = model([image_with([])])
    for name in ("loss_refine", "loss_refine_cls"):
        assert alone[name] == 0 and alone[name].requires_grad  # so that every process has gradients of every parameter


@pytest.mark.parametrize("form", [(), RETINANET], ids=["FCOS", "RetinaNet"])
def test_details_are_those_of_the_finer_map_at_the_place_of_the_object(form: tuple[object, ...]) -> None:
    torch.manual_seed(0)
    model = build_model(tiny_cfg(*form, *REFINED, "MODEL.MEINST.REFINE.DETAIL_FEATURE", "res2"))
    inner = getattr(model, "proposal_generator", model)
    fit_to_blobs(inner.mask_encoder)
    batch = [image_with([[10, 8, 40, 44], [50, 20, 90, 60]], classes=[3, 5]), image_with([])]
    with EventStorage():
        sum(model(batch).values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in inner.refinement.detail.parameters())
    head, boxes = inner.refinement.eval(), torch.tensor([[16.0, 16.0, 48.0, 48.0]])
    given = (boxes, torch.zeros(1, dtype=torch.int64), torch.ones(1, 28, 28))
    with torch.no_grad():
        features = model.backbone(model.preprocess_image(batch[:1]).tensor)
        assert features["res2"].shape[-1] == 2 * features["p3"].shape[-1]
        logits = head(features, *given)[0]
        for at, same in ((slice(20, None), True), (slice(4, 12), False)):  # in cells of four pixels
            changed = features["res2"].clone()
            changed[..., at] += 1
            assert torch.equal(head({**features, "res2": changed}, *given)[0], logits) == same


def test_a_backbone_without_the_finer_map() -> None:
    cfg = tiny_cfg(*REFINED, "MODEL.MEINST.REFINE.DETAIL_FEATURE", "res2", "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    with pytest.raises(ValueError, match="DETAIL_FEATURE = 'res2', the backbone build_resnet_fpn_backbone gives p3"):
        build_model(cfg)


@pytest.mark.parametrize(
    "options",
    [
        ("PRECISION", "bfloat16", "MASK_REPRESENTATION", "none"),
        ("PRECISION", "float16", "ENCODER", "ClassPCAEncoder", "DEFORM_CONV", "last"),
        ("ENCODER", "DCTEncoder", "MASK_PREDICTOR", "large_kernel", "NORM", "none"),
    ],
    ids=str,
)
def test_any_encoder_head_precision_and_output(options: tuple[str, ...]) -> None:
    keys = [f"MODEL.MEINST.{x}" if i % 2 == 0 else x for i, x in enumerate((*options, "SCORE_THRESH_TEST", 0.0))]
    model = tiny_model(*keys, *REFINED, "MODEL.MEINST.REFINE.DETAIL_FEATURE", "res2", "TEST.DETECTIONS_PER_IMAGE", 20)
    torch.nn.init.constant_(model.proposal_generator.head.bbox_pred.bias, 2.5)  # boxes with an area
    batch = [image_with([[10, 8, 40, 44]], classes=[3])]
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    assert losses["loss_refine"] > 0 and all(loss.isfinite() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in model.proposal_generator.refinement.parameters())
    found = {}
    for model.eval().mask_output in ("bitmask", "rle", "template"):
        with torch.no_grad():
            found[model.mask_output] = model(batch)[0]["instances"]
    masks, boxes = found["template"].pred_mask_templates, found["template"].pred_mask_boxes.tensor
    assert len(masks) == 20 and masks.shape[1:] == (28, 28) and found["bitmask"].pred_masks.any()
    assert torch.equal(found["bitmask"].pred_masks, paste_masks(masks, boxes, 64, 96))
    decoded = mask_utils.decode(list(found["rle"].pred_masks_rle)).transpose(2, 0, 1)
    assert torch.equal(found["bitmask"].pred_masks, torch.from_numpy(decoded).bool())
