"""An analysis in words and as JSON, and what to improve next."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from meinst_d2.analysis.analysis import IN_OWN_BOX, ORACLES, Analysis, Pairs
from meinst_d2.evaluation.average_precision import SIZES, without_nan

MASK_TITLES = {
    "exact": "exact masks",
    "box": "exact, in predicted boxes",
    "template": "as S x S templates",
    "encoding": "encoded and decoded",
    "predicted": "predicted",
}
ADVICE = {
    "detection": "objects that are missed, found twice, or ranked below false ones: train longer or on more images, "
    "or take a stronger backbone",
    "box": "boxes that do not fit: look at the box loss and its weight, and at the size of the test images",
    "encoding": "masks that the encoding cannot reconstruct",
    "regression": "coefficients that the network gets wrong: look at the mask loss and its weight, the depth of the "
    "mask branch, and the length of training",
}
REFINED_TITLES = {
    "exact": "exact masks",
    "box": "inside enlarged boxes",
    "template": "as S x S pixels",
    "predicted": "predicted",
}
REFINED_ADVICE = {
    **ADVICE,
    "box": "boxes that leave a part of their object out: look at the box loss, or raise MODEL.MEINST.REFINE.CONTEXT",
    "encoding": "masks are too coarse: raise MODEL.MEINST.REFINE.OUTPUT_SIZE",
    "regression": "masks that refinement draws wrongly: look at MODEL.MEINST.REFINE (convolutions, samples, weight of "
    "the loss), and the length of training",
}
ENCODING_ADVICE = {
    "template": "the template is too coarse: raise MODEL.MEINST.MASK_SIZE (and fit components of that size)",
    "coefficients": "the dictionary is too short: raise MODEL.MEINST.DIM_MASK (and fit that many components)",
}
SMALL_LOSS = 1.0
"""Points of AP: where fewer are lost in all, nothing is worth improving."""
MOST_CLASSES = 20
"""Rows of the table by class; analysis.json has all."""
FEWEST_OBJECTS = 10
"""Matched detections below which a class or a size is not called the weakest."""


def text_of(analysis: Analysis) -> str:
    """The tables, then the conclusions."""
    tables = [make(analysis) for make in (ap_table, class_table, lost_table, error_table)]
    return "\n\n".join([*tables, "\n".join(conclusions(analysis))])


def ap_table(analysis: Analysis) -> str:
    """Box AP, mask AP and their gap, in all and by size."""
    lines = [f"{'':26}{'AP':>6}{'AP50':>7}{'AP75':>7}" + "".join(f"{size:>8}" for size in SIZES)]
    box, mask = ([ap.ap, ap.ap50, ap.ap75, *ap.by_size] for ap in (analysis.box, analysis.masks["predicted"]))
    gap = [b - m for b, m in zip(box, mask, strict=True)]
    for name, row in (("boxes", box), ("masks", mask), ("gap", gap)):
        lines.append(f"{name:26}" + "".join(map(_number, row, (6, 7, 7, 8, 8, 8))))
    counts = analysis.num_objects
    lines.append(f"{'objects':26}{counts[0]:6,}{'':14}" + "".join(f"{count:8,}" for count in counts[1:]))
    return "\n".join(lines)


def class_table(analysis: Analysis) -> str:
    """The 20 classes of lowest mask AP; the share of each part in the mask error of their matched detections."""
    width = max(26, *(len(name) + 1 for name in analysis.class_names)) if analysis.class_names else 26
    errors = analysis.pairs.by_class(len(analysis.class_names))
    box, mask = analysis.box.by_class, analysis.masks["predicted"].by_class
    lines = [f"{'class':{width}}{'box':>6}{'mask':>7}{'gap':>7}{'matched':>9}{'IoU':>7}  box / encoding / regression"]
    ranked = analysis.worst_classes()
    for k in ranked[:MOST_CLASSES]:
        figures = _number(box[k], 6) + _number(mask[k], 7) + _number(box[k] - mask[k], 7)
        iou, shares = _number(errors[k].mean_ious[-1], 7, 3), " / ".join(map(_percent, errors[k].shares.values()))
        lines.append(f"{analysis.class_names[k]:{width}}{figures}{len(errors[k]):9,}{iou}  {shares}")
    if len(ranked) > MOST_CLASSES:
        lines.append(f"{len(ranked) - MOST_CLASSES} more classes in analysis.json")
    return "\n".join(lines)


def lost_table(analysis: Analysis) -> str:
    """Mask AP with masks that could have been, and what each step loses."""
    lines = [f"{'masks of matched detections':30}{'AP':>6}{'AP50':>7}{'AP75':>7}{'IoU':>8}"]
    ious = [1.0 if len(analysis.pairs) else math.nan, *analysis.pairs.mean_ious]
    iou_of = dict(zip(MASK_TITLES, ious, strict=True))
    for name, title in (REFINED_TITLES if analysis.refined else MASK_TITLES).items():
        ap = analysis.masks[name]
        lines.append(
            f"{title:30}{_number(ap.ap, 6)}{_number(ap.ap50, 7)}{_number(ap.ap75, 7)}{_number(iou_of[name], 8, 3)}"
        )
    parts = ", ".join(f"{name} {_number(points).strip()}" for name, points in analysis.lost.items())
    own = analysis.masks[IN_OWN_BOX].ap
    alone = f"so the encoding alone loses {_number(analysis.masks['exact'].ap - own)}"
    lines.append(f"points of mask AP lost: {parts}")
    lines.append(f"once boxes fit: encoded masks in the objects' own boxes have AP {_number(own)}, {alone}")
    return "\n".join(lines)


def error_table(analysis: Analysis) -> str:
    """The mask error of matched detections by size."""
    widths = {"box": 6, "template": 8, "coefficients": 12, "regression": 10}
    parts = " + ".join(f"{part:>{width}}" for part, width in widths.items())
    lines = [f"{'mask error (1 - IoU)':22}{'matched':>9}{'error':>8} = {parts}   encoding's share"]
    for name, row in analysis.pairs.by_size().items():
        parts = " + ".join(_number(row.parts[part], width, 3) for part, width in widths.items())
        share = _percent(row.shares["encoding"])
        lines.append(f"{name:22}{len(row):9,}{_number(row.error, 8, 3)} = {parts}   {share:>16}")
    return "\n".join(lines)


def conclusions(analysis: Analysis) -> list[str]:
    """What to improve next, by the rules of docs/analysis.md."""
    lost = analysis.lost
    if any(map(math.isnan, lost.values())):
        return ["improve next: the ground truth has no objects, so there is nothing to measure"]
    first = max(lost, key=lambda name: lost[name])
    if 100 - analysis.masks["predicted"].ap < SMALL_LOSS:
        return [f"improve next: nothing, less than {SMALL_LOSS:g} point of mask AP is lost"]
    worse = max(ENCODING_ADVICE, key=lambda name: analysis.pairs.parts[name])
    of_codes = ADVICE | {"encoding": f"{ADVICE['encoding']}; {ENCODING_ADVICE[worse]}"}
    advice = REFINED_ADVICE if analysis.refined else of_codes
    lines = [f"improve next: {first}, which loses {lost[first]:.1f} points of mask AP: {advice[first]}"]
    shares = analysis.pairs.shares
    if len(analysis.pairs) and analysis.pairs.error > 1e-9:
        worst = max(shares, key=lambda name: shares[name])
        share = f"{worst} has the largest share ({_percent(shares[worst])})"
        more = f": {advice[worst]}" if worst != first else ""
        lines.append(f"of the mask error of matched detections, {share}{more}")
    mask, counts = analysis.masks["predicted"], analysis.num_objects[1:]
    sizes = [i for i in range(len(SIZES)) if counts[i] >= FEWEST_OBJECTS]
    if len(sizes) > 1:
        i = min(sizes, key=lambda i: mask.by_size[i])
        share = _percent(counts[i] / analysis.num_objects[0])
        lines.append(f"weakest size: {SIZES[i]} objects, mask AP {mask.by_size[i]:.1f} ({share} of all objects)")
    errors = analysis.pairs.by_class(len(analysis.class_names))
    classes = [k for k in analysis.worst_classes() if len(errors[k]) >= FEWEST_OBJECTS]
    if len(classes) > 1:
        lines.append(f"weakest class: {analysis.class_names[classes[0]]}, mask AP {mask.by_class[classes[0]]:.1f}")
        gap, k = max((analysis.box.by_class[k] - mask.by_class[k], -k) for k in classes)
        lines.append(f"widest gap between box AP and mask AP: {analysis.class_names[-k]}, {gap:.1f} points")
    return lines


def json_of(analysis: Analysis) -> dict[str, Any]:
    """Every figure; AP in percent, null where there is nothing to measure."""
    error, *by_size = map(_error_json, analysis.pairs.by_size().values())
    by_class = [_error_json(pairs) for pairs in analysis.pairs.by_class(len(analysis.class_names))]
    content = {
        "objects": dict(zip(("all", *SIZES), analysis.num_objects, strict=True)),
        "class_names": list(analysis.class_names),
        "bbox": asdict(analysis.box),
        "segm": {name: asdict(ap) for name, ap in analysis.masks.items()},
        "lost": analysis.lost,
        "mask_error": {"all": error, "by_size": by_size, "by_class": by_class},
        "score_threshold": analysis.score_threshold,
        "images": [{**asdict(image), "total": image.total} for image in analysis.images],
        "improve_next": conclusions(analysis),
    }
    cleaned: dict[str, Any] = without_nan(content)
    return cleaned


def _error_json(pairs: Pairs) -> dict[str, Any]:
    ious = dict(zip((*ORACLES[1:], "predicted"), pairs.mean_ious, strict=True))
    return {"matched": len(pairs), "iou": ious, "error": pairs.error, "parts": pairs.parts, "shares": pairs.shares}


def _number(value: float, width: int = 0, digits: int = 1) -> str:
    if math.isnan(value):
        return f"{'-':>{width}}" if width else "-"
    return f"{round(value, digits) + 0.0:{width}.{digits}f}"  # -0.0 becomes 0.0


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{round(100 * value)} %"
