"""The trained models that there are names for."""

from __future__ import annotations

from dataclasses import dataclass

PUBLISHED_PAGE = "https://github.com/aim-uofa/AdelaiDet/tree/master/configs/MEInst-InstanceSegmentation"
PUBLISHED_LICENCE = "licensed by its authors for non-commercial use"


@dataclass(frozen=True)
class Entry:
    """Where a trained model is.

    Attributes:
        url: of the file, or None where only a page is known.
        source: the page that describes it.
        licence: what its authors allow.
    """

    url: str | None
    source: str
    licence: str


ENTRIES = {
    name: Entry(None, PUBLISHED_PAGE, PUBLISHED_LICENCE)
    for name in ("MEInst_R_50_1x_none", "MEInst_R_50_1x", "MEInst_R_50_3x", "MEInst_R_50_3x_512")
}
"""By the name of their config."""
