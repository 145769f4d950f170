"""From templates and boxes to the masks of an image: bit masks or COCO's run-length encodings, on the CPU."""

from meinst_d2.masks.paste import paste_masks
from meinst_d2.masks.rasterize import RLE
from meinst_d2.masks.rle import RLEs, encode_masks, encode_templates

__all__ = ["RLE", "RLEs", "encode_masks", "encode_templates", "paste_masks"]
