"""A second look at every detection, which corrects its mask, box and score (docs/better-masks.md).

A code is regressed from one location, and its mask inherits every error of its box. Here each box is enlarged, the
feature map is sampled inside it, and a few convolutions see the features, together with the decoded template, at the
resolution of the object.

Symbols: N images, n boxes, K classes, S mask side, R side of what is sampled, O of what comes out, T of the targets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torchvision.ops import roi_align

from meinst_d2.encoding import MaskEncoder
from meinst_d2.fcos.boxes import box_area, enlarge
from meinst_d2.modeling.head import GROUPS
from meinst_d2.modeling.targets import mask_templates

LEAST_IOU = 0.5
"""Of a predicted box with its object's, below which the object's own box is learned from, its sides moved."""
JITTER = 0.1
"""How far these are moved at most, of the sides' length."""
CELLS_PER_SAMPLE = 2
"""Cells of the feature map, along one side, that a sample is the mean of: details are in the finer levels."""
PRIOR_BOUND = 0.01
"""What a template's probabilities are clamped to, and from 1, before they become logits."""


class Refined(NamedTuple):
    """What n detections become."""

    masks: Tensor  # (n, O, O) probabilities
    mask_boxes: Tensor  # (n, 4) xyxy, where they belong
    boxes: Tensor  # (n, 4) xyxy
    scores: Tensor  # (n,)


class RefinementHead(nn.Module):
    """Features in enlarged boxes, and the templates that the codes draw there, to logits of masks and of classes."""

    def __init__(
        self,
        *,
        in_features: Mapping[str, ShapeSpec],
        detail_feature: tuple[str, ShapeSpec] | None = None,
        context: float = 1.2,
        pooler_resolution: int = 14,
        output_size: int = 28,
        conv_dim: int = 64,
        num_convs: int = 3,
        code_as_prior: bool = True,
        mean_box: bool = False,
        maskness: bool = False,
        num_classes: int = 0,
        samples_per_image: int = 16,
        target_size: int = 112,
        loss_weight: float = 1.0,
        loss_weight_cls: float = 0.5,
    ) -> None:
        """
        Args:
            in_features: the feature maps that are looked at, of as many channels, each of twice the stride of the one
                before.
            detail_feature: name and shape of a map without the context of these that is added to what is sampled.
            context: how much longer than a box the sides are of what is looked at.
            pooler_resolution: R.
            output_size: O, of R doubled a few times.
            conv_dim, num_convs: channels and number of the 3 x 3 convolutions.
            code_as_prior: whether the decoded template is one more channel, and its logits are what is corrected.
            mean_box: whether boxes become the mean of themselves and of the box of the refined mask.
            maskness: whether scores are multiplied by the mean probability inside the refined mask.
            num_classes: K, to predict the class again, and multiply scores by the root of its probability; 0 does not.
            samples_per_image: positive locations to learn from, on average over the images of a batch.
            target_size: T.
            loss_weight, loss_weight_cls: factors of the losses of masks and of classes.
        """
        super().__init__()
        doublings = max(output_size // max(pooler_resolution, 1), 1).bit_length() - 1
        if conv_dim % GROUPS or pooler_resolution < 2 or context < 1 or output_size != pooler_resolution << doublings:
            raise ValueError(
                f"MODEL.MEINST.REFINE: CONV_DIM = {conv_dim} must be a multiple of {GROUPS}, POOLER_RESOLUTION = "
                f"{pooler_resolution} at least 2, OUTPUT_SIZE = {output_size} that doubled a few times, CONTEXT = "
                f"{context} at least 1"
            )
        self.in_features = list(in_features)
        self.strides = tuple(shape.stride for shape in in_features.values())
        self.context, self.pooler_resolution = context, pooler_resolution
        self.mean_box, self.maskness = mean_box, maskness
        self.code_as_prior, self.samples_per_image, self.num_classes = code_as_prior, samples_per_image, num_classes
        self.loss_weight, self.loss_weight_cls = loss_weight, loss_weight_cls
        self.mask_size, self.target_size = output_size, target_size
        layers: list[nn.Module] = []
        in_channels = next(iter(in_features.values())).channels
        self.detail_feature, self.detail_stride = None, 0
        if detail_feature:
            self.detail_feature, shape = detail_feature
            self.detail_stride, self.detail = shape.stride, nn.Conv2d(shape.channels, in_channels, 1)
        channels = in_channels + code_as_prior
        if num_classes:
            cells, hidden = (pooler_resolution // 2) ** 2, 4 * conv_dim
            pooled = [*_conv(channels, conv_dim), nn.AvgPool2d(2), nn.Flatten()]
            self.classifier = nn.Sequential(*pooled, nn.Linear(conv_dim * cells, hidden), nn.ReLU(inplace=True))
            self.cls_score = nn.Linear(hidden, num_classes)
        for _ in range(num_convs):
            layers += _conv(channels, conv_dim)
            channels = conv_dim
        self.convs = nn.Sequential(*layers)
        upsample: list[nn.Module] = []
        for i in range(doublings):
            width = conv_dim >> i
            upsample += [nn.ConvTranspose2d(channels, width, 2, stride=2), nn.ReLU(inplace=True)]
            channels = width
        self.upsample = nn.Sequential(*upsample)
        self.predictor = nn.Conv2d(channels, 1, 1)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Not near zero, where the mask would at first be the code's: all channels would then move alike, and some runs
        # never leave that state; their masks stay blurred.
        nn.init.normal_(self.predictor.weight, std=0.1)
        if num_classes:
            nn.init.normal_(self.cls_score.weight, std=0.01)
            nn.init.zeros_(self.cls_score.bias)

    def forward(
        self, features: Mapping[str, Tensor], boxes: Tensor, image_idx: Tensor, templates: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            features: (N, C, H, W) by name.
            boxes: (n, 4) ``xyxy`` in input pixels.
            image_idx: (n,) int64.
            templates: (n, S, S), probabilities in the boxes.

        Returns:
            (n, O, O) float32, logits of the masks in the enlarged boxes, and (n, K) float32, those of the classes; K is
            0 where these are not predicted.
        """
        region = enlarge(boxes, self.context)
        levels = [features[name] for name in self.in_features]
        x = sample_features(levels, region, image_idx, self.strides, self.pooler_resolution)
        if self.detail_feature:
            # FPN's lateral connection, of what is sampled instead of the whole map, which would cost far more.
            finest, strides = [features[self.detail_feature]], [self.detail_stride]
            x = x + self.detail(sample_features(finest, region, image_idx, strides, self.pooler_resolution))
        if self.code_as_prior:
            prior = resample(templates, boxes, region, self.pooler_resolution)
            x = torch.cat((x, prior[:, None].to(x.dtype)), dim=1)
        # Without gradients into the features: with them, masks and boxes get worse (docs/better-masks.md).
        class_logits = (
            self.cls_score(self.classifier(x.detach())).float() if self.num_classes else x.new_zeros(x.shape[0], 0)
        )
        x = self.predictor(self.upsample(self.convs(x)))[:, 0].float()
        if self.code_as_prior:
            prior = resample(templates, boxes, region, self.mask_size)
            x = x + prior.clamp(PRIOR_BOUND, 1 - PRIOR_BOUND).logit()
        return x, class_logits

    def look(
        self,
        features: Mapping[str, Tensor],
        boxes: Tensor,
        scores: Tensor,
        classes: Tensor,
        image_idx: Tensor,
        templates: Tensor,
    ) -> Refined:
        """What n detections become; the arguments are those of :meth:`forward`, (n,) scores and (n,) classes, int64."""
        logits, class_logits = self.forward(features, boxes, image_idx, templates)
        logits = logits.nan_to_num(0.0)
        masks, regions = logits.sigmoid(), enlarge(boxes, self.context)
        if self.mean_box:
            boxes = (boxes + boxes_of_masks(logits, regions, boxes)) / 2
        if self.num_classes:
            scores = scores * class_logits.softmax(1).gather(1, classes[:, None])[:, 0].nan_to_num(0.0).sqrt()
        if self.maskness:
            scores = scores * mean_inside(masks)
        return Refined(masks, regions, boxes, scores)

    @torch.no_grad()
    def refine(self, features: Mapping[str, Tensor], detections: Sequence[Instances]) -> list[Instances]:
        """Detections with other ``pred_masks`` (n, 1, O, O), relative to their ``pred_mask_boxes``.

        Args:
            features: (N, C, H, W) by name.
            detections: of N images, from :func:`~meinst_d2.modeling.inference.detect`.
        """
        counts = [len(found) for found in detections]
        given = ((d.pred_boxes.tensor, d.scores, d.pred_classes, d.pred_masks[:, 0]) for d in detections)
        boxes, scores, classes, templates = (torch.cat(x) for x in zip(*given, strict=True))
        image_idx = torch.repeat_interleave(torch.tensor(counts)).to(boxes.device)
        refined = self.look(features, boxes, scores, classes, image_idx, templates)
        results = []
        for found, masks, regions, boxes, scores in zip(detections, *(x.split(counts) for x in refined), strict=True):
            fields = {**found.get_fields(), "pred_masks": masks[:, None], "pred_mask_boxes": Boxes(regions)}
            result = Instances(found.image_size, **{**fields, "pred_boxes": Boxes(boxes), "scores": scores})
            rescored = self.maskness or self.num_classes
            results.append(result[scores.argsort(descending=True, stable=True)] if rescored else result)
        return results

    def loss(
        self,
        features: Mapping[str, Tensor],
        boxes: Tensor,
        coeffs: Tensor,
        image_idx: Tensor,
        gt_idx: Tensor,
        gt_instances: Sequence[Instances],
        encoder: MaskEncoder,
        num_positives: Tensor,
    ) -> dict[str, Tensor]:
        """Binary cross-entropy and dice loss of masks, cross-entropy of classes, in the boxes that locations predict.

        Args:
            features: (N, C, H, W) by name.
            boxes, coeffs: (P, 4) ``xyxy`` in input pixels and (P, D), as predicted; no gradient flows into them.
            image_idx, gt_idx: (P,) int64, the image and the instance of the batch that each location learns.
            gt_instances: of N images.
            encoder: of the coefficients.
            num_positives: (), P on average over the processes.

        Returns:
            ``loss_refine`` (), the mean over positive locations, in training over a random choice where there are many,
            and ``loss_refine_cls`` () where classes are predicted. A box that is far from its object is replaced by the
            object's. Attached to the graph in any case.
        """
        device = boxes.device
        most = self.samples_per_image * len(gt_instances) if self.training else max(len(boxes), 1)
        with torch.no_grad():
            gt_boxes = torch.cat([instances.gt_boxes.tensor for instances in gt_instances]).to(device)
            own = gt_boxes[gt_idx]
            if self.training:
                own = own + JITTER * (2 * torch.rand(own.shape) - 1).to(device) * (own[:, 2:] - own[:, :2]).repeat(1, 2)
            near = elementwise_iou(boxes, gt_boxes[gt_idx]) > LEAST_IOU
            boxes = torch.where(near[:, None], boxes, own)
            chosen = torch.randperm(len(boxes))[:most].to(device)
            boxes, gt_idx, image_idx = boxes[chosen], gt_idx[chosen], image_idx[chosen]
            classes = torch.cat([instances.gt_classes for instances in gt_instances]).to(device)[gt_idx]
            masks = mask_templates(gt_instances, self.target_size, "gt_fine_templates").to(device)[gt_idx].float()
            templates, region = encoder.decode(coeffs[chosen], classes), enlarge(boxes, self.context)
            masks = resample(masks, gt_boxes[gt_idx], region, self.mask_size).ge(0.5).float()
        logits, class_logits = self.forward(features, boxes, image_idx, templates)
        count = num_positives.clamp(1, most)
        losses = {"loss_refine": self.loss_weight * mask_loss(logits, masks).sum() / count}
        if self.num_classes:
            cross_entropy = F.cross_entropy(class_logits, classes, reduction="sum")
            losses["loss_refine_cls"] = self.loss_weight_cls * cross_entropy / count
        return losses


def _conv(in_channels: int, channels: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    return [conv, nn.GroupNorm(GROUPS, channels), nn.ReLU(inplace=True)]


def mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """(n,), binary cross-entropy (mean over pixels) and dice loss of (n, O, O) logits against masks of 0 and 1."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean((1, 2))
    found = logits.sigmoid()
    common, total = (found * masks).sum((1, 2)), (found + masks).sum((1, 2))
    return cross_entropy + 1 - (2 * common + 1) / (total + 1)


def mean_inside(masks: Tensor) -> Tensor:
    """(n,), the mean of the probabilities of (n, O, O) that are at least one half; 0 where none is."""
    inside = masks >= 0.5
    return (masks * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)


def boxes_of_masks(logits: Tensor, regions: Tensor, boxes: Tensor) -> Tensor:
    """(n, 4) ``xyxy``, where the logits rise above 0, between the centers of cells; ``boxes`` where they never do.

    Args:
        logits: (n, O, O).
        regions: (n, 4) ``xyxy``, where the masks are.
        boxes: (n, 4).
    """
    along = (logits.amax(1), logits.amax(2))  # of columns and of rows, (n, O)
    low = torch.stack([_first_above(x) for x in along], dim=1)  # (n, 2)
    high = 1 - torch.stack([_first_above(x.flip(1)) for x in along], dim=1)
    corner, sides = regions[:, :2], regions[:, 2:] - regions[:, :2]
    found = torch.cat((corner + low * sides, corner + high * sides), dim=1)
    return torch.where((along[0] > 0).any(1)[:, None], found, boxes)


def _first_above(x: Tensor) -> Tensor:
    """(n,), the share of (n, O) samples of an interval that lies before they first rise above 0, linearly."""
    first = (x > 0).float().argmax(1, keepdim=True)
    before, after = x.gather(1, (first - 1).clamp(min=0)), x.gather(1, first)
    back = torch.where(first > 0, after / (after - before).clamp(min=1e-6), 0.5)
    return ((first + 0.5 - back) / x.shape[1])[:, 0]


def elementwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """(n,) of (n, 4) ``xyxy`` boxes with area."""
    sides = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    common = sides.prod(dim=1)
    return common / (box_area(a) + box_area(b) - common)


def sample_features(
    features: Sequence[Tensor], boxes: Tensor, image_idx: Tensor, strides: Sequence[int], size: int
) -> Tensor:
    """(n, C, size, size), each box from the level where a sample is nearest to two cells in size."""
    cell = box_area(boxes).clamp(min=1).sqrt() / (size * CELLS_PER_SAMPLE)
    level = (cell.log2() - math.log2(strides[0])).round()
    level = level.clamp(0, len(strides) - 1)
    regions = torch.cat((image_idx[:, None].to(boxes.dtype), boxes), dim=1)
    at = [(level == i).nonzero()[:, 0] for i in range(len(strides))]
    sampled = [
        roi_align(feature, regions[index], size, 1 / stride, sampling_ratio=CELLS_PER_SAMPLE, aligned=True)
        for feature, index, stride in zip(features, at, strides, strict=True)
    ]
    order = torch.cat(at)
    # The inverse permutation. It has the shape of image_idx, which torch.export cannot know of an argsort of order.
    place = torch.zeros_like(image_idx).scatter(0, order, torch.arange(order.shape[0], device=order.device))
    return torch.cat(sampled)[place]


def resample(masks: Tensor, boxes: Tensor, regions: Tensor, size: int) -> Tensor:
    """What masks, given in one box each, are in another: bilinear, zero outside their box.

    Args:
        masks: (n, S, S).
        boxes, regions: (n, 4) ``xyxy``, where the masks are and where they are looked at.
        size: of the result.

    Returns:
        (n, size, size).
    """
    cells = (torch.arange(size, device=masks.device, dtype=torch.float32) + 0.5) / size
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6)
    points = regions[:, None, :2] + cells[:, None] * (regions[:, 2:] - regions[:, :2])[:, None]  # (n, size, 2)
    points = 2 * (points - boxes[:, None, :2]) / sides[:, None] - 1
    x, y = points[:, None, :, 0].expand(-1, size, -1), points[:, :, None, 1].expand(-1, -1, size)
    return F.grid_sample(masks[:, None], torch.stack((x, y), dim=-1), align_corners=False)[:, 0]
