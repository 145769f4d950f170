"""Show again why training stopped: the losses of a batch whose loss was not finite, and of each of its images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from meinst_d2.commands import make_parser, reporting

EXAMPLES = """example:
  meinst replay output/run/nonfinite_iter_0000017_process_0.pth
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser("replay", __doc__, EXAMPLES)
    parser.add_argument("batch", type=Path, help="the file that the error names")
    parser.add_argument("--config-file", type=Path, help="of the run (default config.yaml beside the batch)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    import meinst_d2.modeling  # noqa: F401  registers the model
    from meinst_d2 import add_meinst_config
    from meinst_d2.config_file import merge_config_file
    from meinst_d2.engine.failed_batch import FailedBatch

    with reporting("replay"):
        failed, cfg = FailedBatch.load(args.batch), get_cfg()
        add_meinst_config(cfg)
        merge_config_file(cfg, args.config_file or args.batch.parent / "config.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", args.device, "MODEL.MEINST.COMPONENTS", ""])  # the weights hold them
    model = build_model(cfg)
    print(f"iteration {failed.iteration}, process {failed.rank}, images {', '.join(failed.image_ids)}")
    print(f"{'':20} {'in training':>14} {'again':>14} {'gradient norm':>14}")
    for name, loss in failed.replay(model).items():
        model.zero_grad()
        loss.backward(retain_graph=True)
        norm = sum(float(p.grad.norm()) ** 2 for p in model.parameters() if p.grad is not None) ** 0.5
        print(f"{name:20} {failed.losses.get(name, float('nan')):14.6g} {loss.item():14.6g} {norm:14.6g}")
    for number, (image_id, x) in enumerate(zip(failed.image_ids, failed.inputs, strict=True)):
        values = ", ".join(f"{name} {loss.item():.6g}" for name, loss in failed.replay(model, [x]).items())
        count = len(x["instances"])
        print(f"image {number} ({image_id}, {count} instance{'' if count == 1 else 's'}) alone: {values}")
