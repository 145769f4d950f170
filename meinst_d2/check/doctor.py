"""All checks of a dataset, one after another."""

from __future__ import annotations

import os
from collections.abc import Sequence

from meinst_d2.check.coverage import Settings, measure_coverage
from meinst_d2.check.encodings import measure_classes
from meinst_d2.check.findings import Context, find, settle_images
from meinst_d2.check.images import check_images
from meinst_d2.check.masks import check_masks
from meinst_d2.check.report import Report
from meinst_d2.check.scan import scan
from meinst_d2.encoding import Components


def examine(
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str] | None,
    settings: Settings,
    *,
    decode: bool = False,
    pairs: Sequence[tuple[int, int]] = (),
    components: Components | None = None,
    num_examples: int = 5,
    workers: int = 1,
) -> Report:
    """Look for everything that will go wrong when a dataset is trained on.

    Args:
        annotations: COCO instances file.
        images: folder that its file names are relative to; None looks at no image.
        settings: of the config that will be trained with.
        decode: read the pixels of the images, not only their headers.
        pairs: (S, D) of encodings to measure; none measures none but ``components``.
        components: measured instead of fitting.
        num_examples: the most of each kind of problem.
        workers: processes.

    Raises:
        OSError: the file or the folder cannot be read.
        ValueError: the file is no readable COCO JSON, or the components are for other classes.
    """
    file = scan(annotations)
    check_masks(file, workers)
    if images is not None:
        check_images(file, images, decode=decode, workers=workers)
    settle_images(file)
    coverage = measure_coverage(file, settings, workers)
    encodings = measure_classes(file, pairs, components, workers) if pairs or components is not None else None
    poor = encodings.poor_classes() if encodings else []
    findings = find(Context(file, coverage, images, poor, num_examples))
    checked = "no" if images is None else "pixels" if decode else "headers"
    return Report(file, findings, coverage, encodings, checked)
