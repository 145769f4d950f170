"""The LazyConfig twin: the same model as the YAML, other backbones, training and evaluation through meinst train."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall, LazyConfig, instantiate
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid, ViT
from detectron2.utils.events import EventStorage

from meinst_d2.data.datasets import register_shapes
from meinst_d2.engine.lazy import run_lazy
from tests.conftest import ROOT
from tests.models import image_with, load_cfg, write_components
from tests.test_end_to_end import run

CONFIG = ROOT / "configs/lazy/meinst_r50.py"


def test_it_is_the_model_of_the_yaml() -> None:
    from detectron2.modeling import build_model

    lazy = LazyConfig.load(str(CONFIG))
    lazy.model.proposal_generator.mask_encoder.path = ""
    with torch.device("meta"):
        ours = instantiate(lazy.model)
        theirs = build_model(
            load_cfg("MEInst_R_50_1x_none.yaml", "MODEL.DEVICE", "meta", "MODEL.MEINST.COMPONENTS", "")
        )
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    ours_rules, theirs_rules = ours.proposal_generator, theirs.proposal_generator
    assert ours_rules.assignment_rule == theirs_rules.assignment_rule
    assert ours_rules.inference_rule == theirs_rules.inference_rule
    assert ours_rules.criterion.weights == theirs_rules.criterion.weights
    assert [p.requires_grad for p in ours.parameters()] == [p.requires_grad for p in theirs.parameters()]


def test_a_vision_transformer_carries_the_head(tmp_path: Path) -> None:
    lazy = LazyConfig.load(str(CONFIG))
    lazy.model.backbone = LazyCall(SimpleFeaturePyramid)(
        net=LazyCall(ViT)(img_size=64, patch_size=16, embed_dim=32, depth=1, num_heads=2, out_feature="last_feat"),
        in_feature="last_feat",
        out_channels=32,
        scale_factors=(2.0, 1.0, 0.5),
        top_block=LazyCall(LastLevelP6P7)(in_channels=32, out_channels=32, in_feature="p5"),
        norm="LN",
        square_pad=64,
    )
    generator = lazy.model.proposal_generator
    generator.head.in_channels = 32
    generator.head.prior_prob = 0.3
    generator.mask_encoder.encoder.dim = 8
    generator.mask_encoder.path = str(write_components(tmp_path / "c.npz"))
    torch.manual_seed(0)
    model = instantiate(lazy.model)
    batch = [image_with([[10, 8, 40, 44]], height=48, width=64), image_with([], height=64, width=40)]
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    assert losses["loss_mask"] > 0
    assert all(p.grad is not None for p in model.backbone.net.blocks.parameters())
    with torch.no_grad():
        found = model.eval()(batch)[0]["instances"]
    assert len(found) > 0 and found.pred_masks.shape[1:] == (48, 64)


TINY = (
    "train.device=cpu",
    "train.init_checkpoint=''",
    "model.backbone.bottom_up.freeze_at=0",
    "model.proposal_generator.head.num_classes=6",
    "model.proposal_generator.head.prior_prob=0.3",
    "model.proposal_generator.mask_encoder.path=components.npz",
    "model.proposal_generator.mask_encoder.encoder.dim=8",
    "dataloader.train.records.names=shapes_train",
    "dataloader.train.batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.train.mapper.augmentations.0.short_edge_length=64",
    "dataloader.test.dataset.names=shapes_val",
    "dataloader.test.num_workers=0",
    "dataloader.test.mapper.augmentations.0.short_edge_length=64",
    "dataloader.evaluator.dataset_name=shapes_val",
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lazy")
    size = ("--size", "64", "64", "--max-side", "40", "--max-objects", "3")
    run(folder, "-m", "meinst_d2.commands", "shapes", "--output", "data/shapes", "--train", "8", "--val", "2", *size)
    write_components(folder / "components.npz")
    return folder


def test_training_goes_on_after_a_stop_and_evaluates(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [*TINY, "train.output_dir=run", "train.checkpoint_period=2", "train.log_period=1"]
    run(
        workspace,
        "-m",
        "meinst_d2.commands",
        "train",
        "--config-file",
        str(CONFIG),
        *options,
        "train.max_iter=2",
        "train.eval_period=0",
    )
    monkeypatch.chdir(workspace)
    register_shapes("data/shapes")
    args = Namespace(config_file=str(CONFIG), opts=[*options, "train.max_iter=3"], resume=True, eval_only=False)
    results = run_lazy(args)
    rows = [json.loads(line) for line in Path("run/metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows if "loss_mask" in row] == [0, 1, 2]
    assert set(results) == {"bbox", "segm"}
    args = Namespace(
        config_file=str(CONFIG),
        opts=[*options, "train.init_checkpoint=run/model_final.pth"],
        resume=False,
        eval_only=True,
    )
    assert json.dumps(run_lazy(args)) == json.dumps(results)
