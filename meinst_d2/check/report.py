"""All checks of a dataset, one after another, and what was found as text and as JSON."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from meinst_d2.check import FINE, HURTS, STOPS, Finding, Report, Rule
from meinst_d2.check.annotation_rules import ANNOTATION_RULES, check_masks
from meinst_d2.check.coco_file import scan
from meinst_d2.check.coverage import Coverage, Settings, measure_coverage
from meinst_d2.check.encodings import Encodings, measure_classes
from meinst_d2.check.image_rules import DATASET_RULES, IMAGE_RULES, check_images, settle_images
from meinst_d2.encoding import Components
from meinst_d2.reconstruction.report import as_json

HEADINGS = {STOPS: "STOPS TRAINING", HURTS: "HURTS", FINE: "fine, counted"}
VERDICTS = "nothing is wrong", "training runs, and some of this hurts it", "training would stop"


def examine(
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str] | None,
    settings: Settings,
    *,
    decode: bool = False,
    pairs: Sequence[tuple[int, int]] = (),
    components: Components | None = None,
    grids: Sequence[int] = (),
    num_examples: int = 5,
    workers: int = 1,
) -> Report:
    """Look for everything that will go wrong when a dataset is trained on.

    Args:
        annotations: COCO instances file.
        images: folder that its file names are relative to; None looks at no image.
        settings: of the config that will be trained with.
        decode: read the pixels of the images, not only their headers.
        pairs, components, grids: see :func:`~meinst_d2.check.encodings.measure_classes`; with neither of the first two,
            none is measured.
        num_examples, workers: the most of each kind of problem; processes.

    Raises:
        OSError: the file or the folder cannot be read.
        ValueError: the file is not a readable COCO JSON, or the components are for other classes.
    """
    file = scan(annotations)
    check_masks(file, workers)
    if images is not None:
        check_images(file, images, decode=decode, workers=workers)
    settle_images(file)
    coverage = measure_coverage(file, settings, workers)
    encodings = None
    if pairs or components is not None:
        encodings = measure_classes(file, pairs, components, workers, grids)
    report = Report(file, coverage, encodings, images, decode)
    report.findings = find(report, num_examples)
    return report


def find(report: Report, num_examples: int = 5) -> list[Finding]:
    """Everything that was found, the worst first, and causes before what follows from them."""
    file, found = report.file, []

    def add(rule: Rule, count: int, examples: list[str]) -> None:
        finding = Finding(rule, count, examples, rule.severity, rule.effect, rule.fix)
        found.append(dataclasses.replace(finding, **rule.special(report, finding) if rule.special else {}))

    of_images, of_annotations = (file.image_flags, file.image_text), (file.flags, file.annotation_text)
    for rule in [*ANNOTATION_RULES, *IMAGE_RULES]:
        flags, text = of_images if rule in IMAGE_RULES else of_annotations
        rows = np.flatnonzero(flags & rule.bit)
        if len(rows):
            add(rule, len(rows), [text(row) for row in rows[:num_examples].tolist()])
    for rule in DATASET_RULES:
        if examples := rule.find(report):
            add(rule, len(examples) if examples[0] else 0, list(filter(None, examples[:num_examples])))
    return sorted(found, key=lambda finding: -finding.severity)


def bad_rules(report: Report) -> list[Rule]:
    """Rules about annotations that found something which is not fine here."""
    return [f.rule for f in report.findings if f.severity > FINE and f.rule in ANNOTATION_RULES]


def as_text(report: Report) -> str:
    """The report for a reader."""
    file = report.file
    images = "files not looked at" if report.folder is None else "decoded" if report.decoded else "headers read"
    held = f"images: {len(file.image_flags):,} ({images}), annotations: {len(file.flags):,}"
    learned = f"objects to learn: {int(file.learned.sum()):,}, classes: {len(file.classes):,}"
    blocks = [f"{os.path.basename(file.path)}: {held}, {learned}"]
    for severity, heading in HEADINGS.items():
        found = [_finding(finding) for finding in report.findings if finding.severity == severity]
        blocks += [heading + "\n" + "\n".join(found)] if found else []
    width = max(map(len, file.classes), default=0)
    classes = ["objects to learn", *(f"  {name:{width}} {count:>7,}" for name, count in file.class_counts)]
    blocks += [_levels(report.coverage), _encodings(report.encodings) if report.encodings else "\n".join(classes)]
    return "\n\n".join([*blocks, f"{VERDICTS[report.severity]} (exit status {int(report.severity)})"])


def _finding(finding: Finding) -> str:
    lines = [f"  {finding.rule.title}" + (f": {finding.count:,}" if finding.count else "")]
    lines[0] += f"; {finding.note}" if finding.note else ""
    if finding.effect:
        lines.append(f"      training {finding.effect}")
    if finding.severity > FINE and finding.fix:
        lines.append(f"      fix: {finding.fix}")
    if finding.examples:
        lines.append(f"      {', '.join(finding.examples)}{', ...' if finding.count > len(finding.examples) else ''}")
    return "\n".join(lines)


def _levels(coverage: Coverage) -> str:
    settings = coverage.settings
    bounds = [0, *settings.rule.size_bounds]
    sizes = f"a short side of {settings.min_size} (long side at most {settings.max_size})"
    sides = f"up to {' / '.join(f'{side:.0f}' for side in coverage.sides)} pixels large (root of the box's area)"
    lines = [f"feature levels, with images resized to {sizes}"]
    lines += [f"  {coverage.objects:,} objects; 5, 50 and 95 % are {sides}"]
    lines += ["  stride  farthest side   objects with a location"]
    for k, (stride, count) in enumerate(zip(settings.rule.strides, coverage.per_level, strict=True)):
        reach = f"{bounds[k]:g} to {bounds[k + 1]:g}" if k + 1 < len(bounds) else f"from {bounds[k]:g}"
        share = 100 * count / max(1, coverage.objects)
        lines.append(f"  {stride:>6}  {reach:>13}   {count:>7,} ({share:.0f} %)")
    return "\n".join(lines)


def _encodings(encodings: Encodings) -> str:
    lines = ["encodings S x S, D: mean IoU of masks and what is left of them, at the objects' own resolution"]
    if encodings.rows:
        fitted_to = f"fitted to {encodings.fitted_to:,} other masks"
        lines[0] += f", {fitted_to if encodings.fitted_to else 'of the given components'}"
        lines += [f"  {line}" for line in encodings.table().splitlines()]
        if encodings.rows[-1].encoding.family == "grid":
            lines.append("  grid: the pixels that refined masks have in their objects' boxes, which limit them instead")
    return "\n".join([*lines, *(f"  not measured: {reason}" for reason in encodings.left_out)])


def as_content(report: Report) -> dict[str, Any]:
    """The report for a JSON file."""
    file, coverage, encodings = report.file, report.coverage, report.encodings
    per_stride = dict(zip(map(str, coverage.settings.rule.strides), coverage.per_level, strict=True))
    return {
        "file": os.path.basename(file.path),
        "exit_status": int(report.severity),
        "images": len(file.image_flags),
        "images_checked": "no" if report.folder is None else "pixels" if report.decoded else "headers",
        "annotations": len(file.flags),
        "objects": int(file.learned.sum()),
        "classes": [{"name": name, "objects": count} for name, count in file.class_counts],
        "findings": [
            {"problem": found.rule.key, "severity": found.severity.name.lower(), "what": found.rule.title}
            | {"count": found.count, "training": found.effect, "fix": found.fix, "note": found.note}
            | {"examples": found.examples}
            for found in report.findings
        ],
        "feature_levels": {"min_size": coverage.settings.min_size, "max_size": coverage.settings.max_size}
        | {"objects": coverage.objects, "objects_per_stride": per_stride},
        "encodings": encodings
        and {"fitted_to": encodings.fitted_to, "measured": encodings.measured, "left_out": encodings.left_out}
        | {"rows": as_json(encodings.rows, encodings.classes)},
    }
