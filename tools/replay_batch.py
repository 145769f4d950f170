#!/usr/bin/env python
"""Show again why training stopped: the losses of a batch whose loss was not finite, and of each of its images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
EXAMPLES = """example:
  tools/replay_batch.py output/run/nonfinite_iter_0000017_process_0.pth
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("batch", type=Path, help="the file that the error names")
    parser.add_argument("--config-file", type=Path, help="of the run (default config.yaml beside the batch)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    import meinst_d2.modeling  # noqa: F401  registers the model
    from meinst_d2 import add_meinst_config
    from meinst_d2.config_file import merge_config_file
    from meinst_d2.engine.failed_batch import FailedBatch

    config = args.config_file or args.batch.parent / "config.yaml"
    try:
        failed = FailedBatch.load(args.batch)
        cfg = get_cfg()
        add_meinst_config(cfg)
        merge_config_file(cfg, config)
    except (OSError, ValueError) as error:
        sys.exit(f"replay_batch.py: {error}")
    cfg.merge_from_list(["MODEL.DEVICE", args.device, "MODEL.MEINST.COMPONENTS", ""])  # the weights hold them
    model = build_model(cfg)
    print(f"iteration {failed.iteration}, process {failed.rank}, images {', '.join(failed.image_ids)}")
    losses = failed.replay(model)
    print(f"{'':20} {'in training':>14} {'again':>14} {'gradient norm':>14}")
    for name, loss in losses.items():
        model.zero_grad()
        loss.backward(retain_graph=True)
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        norm = sum(float(x) ** 2 for x in norms) ** 0.5
        print(f"{name:20} {failed.losses.get(name, float('nan')):14.6g} {loss.item():14.6g} {norm:14.6g}")
    for number, (image_id, x) in enumerate(zip(failed.image_ids, failed.inputs, strict=True)):
        alone = failed.replay(model, [x])
        values = ", ".join(f"{name} {loss.item():.6g}" for name, loss in alone.items())
        print(f"image {number} ({image_id}, {len(x['instances'])} instances) alone: {values}")


if __name__ == "__main__":
    main()
