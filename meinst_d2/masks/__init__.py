"""The pixels of a mask in every form: polygons, run-length encodings, bit masks and S x S templates, on the CPU."""

from meinst_d2.masks.paste import encode_masks, encode_templates, paste_masks
from meinst_d2.masks.rasterize import RLE
from meinst_d2.masks.rle import RLEs

__all__ = ["RLE", "RLEs", "encode_masks", "encode_templates", "paste_masks"]
