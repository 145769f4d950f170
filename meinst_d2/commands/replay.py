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
    parser.add_argument("--config-file", help="of the run (default config.yaml beside the batch)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    return parser.parse_args(argv)


@reporting("replay")
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    # Imported here so that --help answers at once.
    from detectron2.config import CfgNode

    from meinst_d2.engine.failed_batch import FailedBatch
    from meinst_d2.model_zoo.trained import RUN_CONFIG, build
    from meinst_d2.model_zoo.zoo import read_config

    failed = FailedBatch.load(args.batch)
    cfg = read_config(str(args.config_file or args.batch.parent / RUN_CONFIG))
    if isinstance(cfg, CfgNode):
        cfg.MODEL.MEINST.COMPONENTS = ""  # the weights hold them
    model = build(cfg, args.device)
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
