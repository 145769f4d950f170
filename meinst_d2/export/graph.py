"""The detector as one graph of tensors: a batch of raw pixels in, the detections of all its images out.

It is made of the model's own parts; only what chooses among candidates is written again, without a loop over images,
because the number of images is not known when the graph is made.

Symbols: N images, K classes, R locations of a level, D coefficients, S mask side, O that of a refined mask,
C candidates, n detections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from meinst_d2.fcos.boxes import level_locations, ltrb_to_xyxy
from meinst_d2.modeling.head import HeadOutput
from meinst_d2.modeling.inference import PasteBox
from meinst_d2.modeling.meta_arch import MEInstDetector

INPUTS = ("images", "image_sizes")
OUTPUTS = ("boxes", "scores", "classes", "masks", "image_index", "mask_boxes")
OUTPUTS_WITHOUT_MASKS = ("boxes", "scores", "classes", "image_index")


class Candidates(NamedTuple):
    """What suppression chooses from."""

    boxes: Tensor  # (C, 4) xyxy, not clipped
    scores: Tensor  # (C,)
    classes: Tensor  # (C,) int64
    images: Tensor  # (C,) int64, which image of the batch
    coeffs: Tensor | None  # (C, D); None without a mask branch

    def at(self, index: Tensor) -> Candidates:
        """Some of them."""
        return Candidates(*(None if x is None else x[index] for x in self))  # type: ignore[arg-type]


class DetectionGraph(nn.Module):
    """What :class:`~meinst_d2.modeling.meta_arch.MEInstDetector` detects, from tensors to tensors, in float32."""

    def __init__(self, model: MEInstDetector) -> None:
        """
        Args:
            model: in evaluation mode and float32; shared, not copied.
        """
        super().__init__()
        generator = model.proposal_generator
        self.backbone = model.backbone
        self.head = generator.head
        self.mask_encoder = generator.mask_encoder
        self.refinement = generator.refinement
        self.output_names = OUTPUTS_WITHOUT_MASKS if generator.mask_encoder is None else OUTPUTS
        self.in_features: list[str] = generator.in_features
        self.strides: tuple[int, ...] = generator.assignment_rule.strides
        self.rule = generator.inference_rule
        self.paste_box: PasteBox = model.mask_paste_box
        self.register_buffer("pixel_mean", model.pixel_mean.detach().clone())
        self.register_buffer("pixel_std", model.pixel_std.detach().clone())

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            images: (N, 3, H, W) float32, pixels 0 to 255 with channels in the order of ``INPUT.FORMAT``; each image in
                the top left corner. H and W are multiples of the backbone's ``size_divisibility``.
            image_sizes: (N, 2) int64, (height, width) of each image; what lies outside is not looked at.

        Returns:
            :attr:`output_names`, by image, then falling score: ``boxes`` (n, 4) float32 ``xyxy`` in pixels, clipped to
            their image; ``scores`` (n,) float32; ``classes`` (n,) int64; ``masks`` (n, S, S), or (n, O, O) where
            they are refined, float32 probabilities; ``image_index`` (n,) int64; ``mask_boxes`` (n, 4), where the masks
            belong, which may leave the image.
        """
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device) < image_sizes[:, :1]  # (N, H)
        columns = torch.arange(width, device=images.device) < image_sizes[:, 1:]  # (N, W)
        inside = (rows[:, :, None] & columns[:, None])[:, None]  # (N, 1, H, W)
        features = self.backbone(torch.where(inside, (images - self.pixel_mean) / self.pixel_std, 0.0))
        output = self.head([features[name] for name in self.in_features])
        locations = level_locations(output.level_shapes, self.strides, images.device)
        levels = [self._candidates(output, level, x) for level, x in enumerate(locations)]
        found = Candidates(*(None if x[0] is None else torch.cat(x) for x in zip(*levels, strict=True)))
        return self._outputs(found.at(self._survivors(found, images.shape[0])), image_sizes, features)

    def _candidates(self, output: HeadOutput, level: int, locations: Tensor) -> Candidates:
        """Like :func:`~meinst_d2.fcos.select.select_candidates`, of every image at once."""
        probability = output.cls_logits[level].flatten(2).sigmoid().transpose(1, 2)  # (N, R, K)
        product = probability * output.centerness[level].flatten(1)[..., None].sigmoid()
        above = (product if self.rule.thresh_with_centerness else probability) > self.rule.score_thresh
        num_classes = probability.shape[2]
        ranking = torch.where(above, product, -1.0).flatten(1)  # (N, R * K)
        top, pairs = ranking.topk(torch.sym_min(self.rule.pre_nms_topk, ranking.shape[1]), sorted=False)
        images, column = (top >= 0).nonzero(as_tuple=True)
        pairs = pairs[images, column]
        at, classes = pairs // num_classes, pairs % num_classes
        ltrb = output.box_ltrb[level].flatten(2).transpose(1, 2)[images, at] * self.strides[level]
        coeffs = None
        if output.mask_coeffs is not None:
            coeffs = output.mask_coeffs[level].flatten(2).transpose(1, 2)[images, at]
        return Candidates(ltrb_to_xyxy(locations[at], ltrb), top[images, column].sqrt(), classes, images, coeffs)

    def _survivors(self, found: Candidates, num_images: int) -> Tensor:
        """Indices of what suppression and the cap leave, by image, then falling score."""
        num_classes = self.head.cls_logits.out_channels
        if self.rule.nms_thresh > 0:
            group = found.images * num_classes + found.classes
            boxes = spread(found.boxes, group, num_images * num_classes)
            kept = suppress(boxes, found.scores, self.rule.nms_thresh)
        else:
            kept = found.scores.argsort(descending=True)
        images = found.images[kept]
        same = images[:, None] == torch.arange(num_images, device=images.device)  # (n, N)
        rank = same.to(torch.int64).cumsum(0).gather(1, images[:, None])[:, 0] - 1  # within the image
        if self.rule.max_detections > 0:
            capped = rank < self.rule.max_detections
            kept, images, rank = kept[capped], images[capped], rank[capped]
        return kept[(images * found.scores.shape[0] + rank).argsort()]

    def _outputs(self, found: Candidates, image_sizes: Tensor, features: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        limits = image_sizes.flip(1).to(found.boxes.dtype).repeat(1, 2)[found.images]  # (n, 4): w, h, w, h
        if self.refinement is not None:
            return self._refined(found, features, limits)
        clipped = torch.minimum(found.boxes.clamp(min=0), limits)
        left = not_empty(clipped)
        clipped, found = clipped[left], found.at(left)
        if self.mask_encoder is None or found.coeffs is None:
            return clipped, found.scores, found.classes, found.images
        masks = self.mask_encoder.decode(found.coeffs, found.classes)
        mask_boxes = found.boxes if self.paste_box == "predicted" else clipped.clone()
        return clipped, found.scores, found.classes, masks, found.images, mask_boxes

    def _refined(self, found: Candidates, features: Mapping[str, Tensor], limits: Tensor) -> tuple[Tensor, ...]:
        """Like :meth:`~meinst_d2.modeling.refinement.RefinementHead.refine`."""
        templates = self.mask_encoder.decode(found.coeffs, found.classes)
        # With one detection more, of the first image: onnxruntime's group normalization does not take none.
        given = (found.boxes, found.scores, found.classes, found.images, templates)
        inputs = (torch.cat((x, x.new_zeros(1, *x.shape[1:]))) for x in given)
        masks, mask_boxes, boxes, scores = (x[:-1] for x in self.refinement.look(features, *inputs))
        boxes = torch.minimum(boxes.clamp(min=0), limits)
        order = (found.images - scores).argsort()  # by image, then falling score, which refinement may have changed
        order = order[not_empty(boxes[order])]
        outputs = (boxes, scores, found.classes, masks, found.images, mask_boxes)
        return tuple(x[order] for x in outputs)


def not_empty(boxes: Tensor) -> Tensor:
    """The positions of (n, 4) boxes that have an area."""
    return (boxes[:, 2:] > boxes[:, :2]).all(1).nonzero()[:, 0]


def suppress(boxes: Tensor, scores: Tensor, nms_thresh: float) -> Tensor:
    """Torchvision's ``nms``, also where it leaves none or one: torch.export takes it for granted that it leaves two.

    Args:
        boxes: (C, 4).
        scores: (C,), not negative.
        nms_thresh: overlap above which one of two is dropped.
    """
    corner = torch.cat((boxes, boxes.new_zeros(1, 4))).flatten().amin(0)  # never of none
    apart = corner - torch.tensor([[2.0, 2.0, 1.0, 1.0], [4.0, 4.0, 3.0, 3.0]], device=boxes.device)
    kept = nms(torch.cat((boxes, apart)), torch.cat((scores, scores.new_full((2,), -1.0))), nms_thresh)
    return kept[kept < boxes.shape[0]]


def spread(boxes: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Boxes moved so that those of different groups cannot overlap.

    The groups are laid out in a square, not in a row: coordinates stay small, and float32 keeps them precise.

    Args:
        boxes: (C, 4).
        group: (C,) int64.
        num_groups: above every group.
    """
    if isinstance(num_groups, torch.SymInt):
        side = torch.full((), num_groups, dtype=torch.float32, device=boxes.device).sqrt().ceil().to(torch.int64)
    else:
        side = torch.tensor(int(num_groups**0.5) + 1, device=boxes.device)
    coordinates = torch.cat((boxes, boxes.new_zeros(1, 4))).flatten()  # never none
    extent = coordinates.amax(0) - coordinates.amin(0) + 1
    cell = torch.stack((group % side, group // side), dim=1).to(boxes.dtype) * extent
    return boxes + cell.repeat(1, 2)
