"""The report as text and as JSON."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from meinst_d2.check.coverage import Coverage
from meinst_d2.check.encodings import Encodings
from meinst_d2.check.findings import Finding, class_counts
from meinst_d2.check.problem import Problem, Severity
from meinst_d2.check.problems import ANNOTATION_PROBLEMS
from meinst_d2.check.scan import CocoFile
from meinst_d2.reconstruction.report import as_json

HEADINGS = {Severity.STOPS: "STOPS TRAINING", Severity.HURTS: "HURTS", Severity.FINE: "fine, counted"}
VERDICTS = {
    Severity.FINE: "nothing is wrong",
    Severity.HURTS: "training runs, and some of this hurts it",
    Severity.STOPS: "training would stop",
}


@dataclass(frozen=True)
class Report:
    """What was found out about a dataset.

    Attributes:
        file: what it holds.
        findings: the worst first.
        coverage: how objects spread over the feature levels.
        encodings: how well masks can be encoded; None where that was not asked.
        images_checked: "no", "headers" or "pixels".
    """

    file: CocoFile
    findings: list[Finding]
    coverage: Coverage
    encodings: Encodings | None
    images_checked: str

    @property
    def severity(self) -> Severity:
        """Of the worst finding; the exit status of the command."""
        return max((finding.severity for finding in self.findings), default=Severity.FINE)

    @property
    def bad_problems(self) -> list[Problem]:
        """Those of annotations that are not fine here."""
        bad = {finding.problem.key for finding in self.findings if finding.severity > Severity.FINE}
        return [problem for problem in ANNOTATION_PROBLEMS if problem.key in bad]


def as_text(report: Report) -> str:
    """The report for a reader."""
    file = report.file
    images = {"no": "files not looked at", "headers": "headers read", "pixels": "decoded"}[report.images_checked]
    blocks = [
        f"{os.path.basename(file.path)}: {len(file.image_flags):,} images ({images}), {len(file.flags):,} annotations, "
        f"{int(file.learned.sum()):,} objects to learn, {len(file.classes):,} classes"
    ]
    for severity in sorted(HEADINGS, reverse=True):
        found = [_finding(finding) for finding in report.findings if finding.severity == severity]
        if found:
            blocks.append(HEADINGS[severity] + "\n" + "\n".join(found))
    blocks += [_levels(report.coverage), _encodings(report.encodings) if report.encodings else _classes(file)]
    blocks.append(f"{VERDICTS[report.severity]} (exit status {int(report.severity)})")
    return "\n\n".join(blocks)


def _finding(finding: Finding) -> str:
    count = f"{finding.count:,} " if finding.count else "no "
    lines = [f"  {count}{finding.problem.title}" + (f": {finding.note}" if finding.note else "")]
    if finding.effect:
        lines.append(f"      training {finding.effect}")
    if finding.severity > Severity.FINE and finding.problem.remedy:
        lines.append(f"      way out: {finding.problem.remedy}")
    if finding.examples:
        more = ", ..." if finding.count > len(finding.examples) else ""
        lines.append(f"      {', '.join(finding.examples)}{more}")
    return "\n".join(lines)


def _levels(coverage: Coverage) -> str:
    settings = coverage.settings
    bounds = [0, *settings.rule.size_bounds]
    lines = [
        f"feature levels, with images resized to a short side of {settings.min_size} (long side at most "
        f"{settings.max_size})",
        f"  {coverage.objects:,} objects; 5, 50 and 95 % are up to {' / '.join(f'{v:.0f}' for v in coverage.sides)} "
        "pixels large (root of the box's area)",
        "  stride  farthest side   objects with a location",
    ]
    for k, (stride, count) in enumerate(zip(settings.rule.strides, coverage.per_level, strict=True)):
        reach = f"{bounds[k]:g} to {bounds[k + 1]:g}" if k + 1 < len(bounds) else f"from {bounds[k]:g}"
        share = 100 * count / max(1, coverage.objects)
        lines.append(f"  {stride:>6}  {reach:>13}   {count:>7,} ({share:.0f} %)")
    return "\n".join(lines)


def _encodings(encodings: Encodings) -> str:
    source = f"fitted to {encodings.fitted_to:,} other masks" if encodings.fitted_to else "of the given components"
    lines = ["encodings S x S, D: mean IoU of masks and what is left of them, at the objects' own resolution"]
    if encodings.rows:
        lines[0] += f", {source}"
        lines += [f"  {line}" for line in encodings.table().splitlines()]
    lines += [f"  not measured: {reason}" for reason in encodings.left_out]
    return "\n".join(lines)


def _classes(file: CocoFile) -> str:
    width = max(map(len, file.classes), default=0)
    rows = zip(file.classes, class_counts(file).tolist(), strict=True)
    return "\n".join(["objects to learn", *(f"  {name:{width}} {count:>7,}" for name, count in rows)])


def as_content(report: Report) -> dict[str, Any]:
    """The report for a JSON file."""
    file, coverage, encodings = report.file, report.coverage, report.encodings
    return {
        "file": os.path.basename(file.path),
        "exit_status": int(report.severity),
        "images": len(file.image_flags),
        "images_checked": report.images_checked,
        "annotations": len(file.flags),
        "objects": int(file.learned.sum()),
        "classes": [
            {"name": name, "objects": count}
            for name, count in zip(file.classes, class_counts(file).tolist(), strict=True)
        ],
        "findings": [
            {
                "problem": finding.problem.key,
                "severity": finding.severity.name.lower(),
                "what": finding.problem.title,
                "count": finding.count,
                "training": finding.effect,
                "way_out": finding.problem.remedy,
                "note": finding.note,
                "examples": finding.examples,
            }
            for finding in report.findings
        ],
        "feature_levels": {
            "min_size": coverage.settings.min_size,
            "max_size": coverage.settings.max_size,
            "objects": coverage.objects,
            "objects_per_stride": dict(zip(map(str, coverage.settings.rule.strides), coverage.per_level, strict=True)),
        },
        "encodings": None
        if encodings is None
        else {
            "fitted_to": encodings.fitted_to,
            "measured": encodings.measured,
            "left_out": encodings.left_out,
            "rows": as_json(encodings.rows, encodings.classes),
        },
    }
