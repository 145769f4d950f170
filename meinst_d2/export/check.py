"""Whether an exported model detects what the model detects, and the images on which that is checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import ImageList, Instances
from torch import Tensor

from meinst_d2.data.image_files import read_image
from meinst_d2.data.shapes import ShapesConfig, draw_image
from meinst_d2.export.graph import OUTPUTS, OUTPUTS_WITHOUT_MASKS
from meinst_d2.modeling.inference import postprocess
from meinst_d2.modeling.meta_arch import MEInstDetector

TOLERANCES = {"boxes": 1e-2, "scores": 1e-4, "masks": 1e-3}
"""Largest differences: pixels, probabilities, probabilities."""
GENERATED = ((96, 128), (160, 128), (128, 200))
"""(height, width) of the images that are drawn where none are given."""

Runner = Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]
"""(N, 3, H, W) float32 pixels and (N, 2) int64 sizes -> the outputs in their order."""


class CheckError(RuntimeError):
    """The exported model differs from the model, or nothing was detected to compare."""


@dataclass(frozen=True)
class CheckResult:
    """What was compared.

    Attributes:
        images, detections: how many.
        differences: the largest, by the names of :data:`TOLERANCES`.
    """

    images: int
    detections: int
    differences: dict[str, float]

    def table(self) -> str:
        """For people."""
        title = f"images checked: {self.images}, detections compared: {self.detections}"
        rows = [title, f"{'':8}{'difference':>12}{'tolerance':>12}"]
        rows += [f"{name:8}{value:12.2e}{TOLERANCES[name]:12.0e}" for name, value in self.differences.items()]
        return "\n".join(rows)


def check_batches(paths: Sequence[str | os.PathLike[str]], metadata: Mapping[str, str]) -> list[list[Tensor]]:
    """The first image alone, then all in pairs, so that batches, sizes and padding differ.

    Args:
        paths: image files; none for drawings of shapes.
        metadata: of :class:`~meinst_d2.export.write.ExportSource`.

    Returns:
        (3, H, W) uint8 each, resized as at test time, channels in the model's order.

    Raises:
        OSError: a file is missing or not an image.
    """
    read = (read_image(os.fspath(path), "RGB") for path in paths)
    drawn = (draw_image(ShapesConfig(height=h, width=w), (seed,))[0] for seed, (h, w) in enumerate(GENERATED))
    resize = T.ResizeShortestEdge(int(metadata["min_size_test"]), int(metadata["max_size_test"]))
    images = []
    for pixels in read if paths else drawn:
        pixels = resize.get_transform(pixels).apply_image(pixels)
        pixels = pixels[:, :, ::-1] if metadata["input_format"] == "BGR" else pixels
        images.append(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))))
    return [images[:1], *(images[i : i + 2] for i in range(0, len(images), 2))]


def pad_batch(images: Sequence[Tensor], divisor: int) -> tuple[np.ndarray, np.ndarray]:
    """Images as the graph takes them.

    Args:
        images: (3, H, W) each, pixels.
        divisor: what height and width become multiples of.

    Returns:
        (N, 3, H, W) float32 with zeros below and to the right, and (N, 2) int64 sizes.
    """
    padded = ImageList.from_tensors([image.float() for image in images], divisor)
    return padded.tensor.numpy(), np.array(padded.image_sizes, np.int64)


@torch.no_grad()
def expected_detections(model: MEInstDetector, images: Sequence[Tensor]) -> list[Instances]:
    """What the model itself detects in a batch, with templates instead of pasted masks."""
    padded = model.preprocess_image([{"image": image} for image in images])
    detections, _ = model.proposal_generator(padded, model.backbone(padded.tensor))
    pairs = zip(detections, padded.image_sizes, strict=True)
    return [postprocess(found, *size, model.mask_paste_box, "template") for found, size in pairs]


def check(model: MEInstDetector, run: Runner, batches: Sequence[Sequence[Tensor]]) -> CheckResult:
    """Compare an exported model with the model.

    Args:
        model: in evaluation mode, float32.
        run: runs the exported one.
        batches: images (3, H, W) of pixels.

    Raises:
        CheckError: they differ by more than :data:`TOLERANCES`, or there was nothing to compare.
    """
    has_masks = model.proposal_generator.mask_encoder is not None
    names = OUTPUTS if has_masks else OUTPUTS_WITHOUT_MASKS
    worst = {name: 0.0 for name in TOLERANCES if has_masks or name != "masks"}
    num_detections = 0
    for images in batches:
        batch, sizes = pad_batch(images, max(model.backbone.size_divisibility, 1))
        outputs = dict(zip(names, run(batch, sizes), strict=True))
        for index, expected in enumerate(expected_detections(model, images)):
            mine = outputs["image_index"] == index
            num_detections += len(expected)
            differences = compare({k: v[mine] for k, v in outputs.items()}, expected, f"{tuple(images[index].shape)}")
            worst = {name: max(value, differences[name]) for name, value in worst.items()}
    result = CheckResult(sum(map(len, batches)), num_detections, worst)
    if not num_detections:
        raise CheckError(
            f"the model detects nothing in the images of the check ({result.images}), so that nothing was compared: "
            "give images of objects that it knows with --image, or lower MODEL.MEINST.SCORE_THRESH_TEST"
        )
    too_far = [name for name, value in worst.items() if not value <= TOLERANCES[name]]
    if too_far:
        raise CheckError(f"the exported model differs in {' and '.join(too_far)}:\n{result.table()}")
    return result


def compare(outputs: dict[str, np.ndarray], expected: Instances, image: str) -> dict[str, float]:
    """Largest differences of one image, each detection with that of its class whose box is nearest.

    Equal scores may come in either order, so the order does not count.

    Raises:
        CheckError: another number of detections.
    """
    found = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in outputs.items()}
    if len(found["scores"]) != len(expected):
        raise CheckError(
            f"the exported model finds {len(found['scores'])} objects and the model {len(expected)} in an image of "
            f"shape {image}"
        )
    if not len(expected):
        return dict.fromkeys(TOLERANCES, 0.0)
    gaps = (found["boxes"][:, None] - expected.pred_boxes.tensor).abs().amax(2)  # (n, n)
    gaps[found["classes"][:, None] != expected.pred_classes] = float("inf")
    gap, partner = gaps.min(1)
    if len(partner.unique()) < len(partner):
        gap = torch.full_like(gap, float("inf"))  # two of them are the same detection
    scores = (found["scores"] - expected.scores[partner]).abs()
    differences = {"boxes": float(gap.max()), "scores": float(scores.max()), "masks": 0.0}
    if "masks" in found:
        differences["masks"] = float((found["masks"] - expected.pred_mask_templates[partner]).abs().max())
        apart = (found["mask_boxes"] - expected.pred_mask_boxes.tensor[partner]).abs().max()
        differences["boxes"] = max(differences["boxes"], float(apart))
    return differences
