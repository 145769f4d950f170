"""The LazyConfig twin: the same model as the YAML, other backbones, training and evaluation through meinst train."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import LazyCall, LazyConfig, instantiate
from detectron2.data import MetadataCatalog
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid, ViT
from detectron2.utils.events import EventStorage

from meinst_d2.checkpoint.readers import read_checkpoint
from meinst_d2.commands import train as train_command
from meinst_d2.data.datasets import register_coco
from meinst_d2.encoding import save_components
from tests.commands.test_train import altered, keep_two, swap_ids
from tests.conftest import ROOT
from tests.models import blob_basis, image_with, load_cfg, write_components

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


TINY = [
    "train.device=cpu",
    "train.init_checkpoint=''",
    "train.checkpoint_period=2",
    "train.log_period=1",
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
]


@pytest.fixture
def workspace(shapes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with components."""
    monkeypatch.chdir(tmp_path)
    write_components(tmp_path / "components.npz")
    return tmp_path


def run(*overrides: str, flags: Sequence[str] = ()) -> Any:
    """meinst train in this process; returns the results of the last evaluation."""
    args = train_command.parse_args(["--config-file", str(CONFIG), *flags, *TINY, *overrides])
    return train_command.train(args, train_command.check(args))


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_training_resumes_after_a_stop_and_evaluates(workspace: Path) -> None:
    run("train.output_dir=run", "train.max_iter=2", "train.eval_period=0")
    results = run("train.output_dir=run", "train.max_iter=3", flags=["--resume"])
    assert [row["iteration"] for row in rows(workspace / "run") if "loss_mask" in row] == [0, 1, 2]
    assert set(results) == {"bbox", "segm"}
    again = run("train.output_dir=run", "train.init_checkpoint=run/model_final.pth", flags=["--eval-only"])
    assert json.dumps(again) == json.dumps(results)


def test_a_run_has_what_one_from_yaml_has(workspace: Path) -> None:
    """Class names in checkpoints, validation losses, pictures, averaged and best weights, patience, a drawn seed."""
    run(
        *("train.output_dir=run", "train.max_iter=8", "train.eval_period=2", "train.seed=-1"),
        *("train.best_metric=bbox/AP", "train.patience=1", "train.validation_loss=True", "train.vis_period=1"),
        *("train.ema_decay=0.5", "optimizer.lr=0.0"),
    )
    content = read_checkpoint(workspace / "run/model_final.pth")
    assert content["meinst"]["class_names"] == ["ring", "star", "crescent", "bar", "cut", "blob"]
    encoding = {key: content["meinst"][key] for key in ("encoder", "sigmoid", "whiten")}
    assert encoding == {"encoder": "PCAEncoder", "sigmoid": True, "whiten": True}
    best = read_checkpoint(workspace / "run/model_best.pth")
    assert best["iteration"] == 1 and best["meinst"]["class_names"] == content["meinst"]["class_names"]
    assert content["iteration"] == 3 and content["ema"]["updates"] == 4  # nothing is learned: patience is over
    evaluated = [row for row in rows(workspace / "run") if "validation/total_loss" in row]
    assert evaluated and evaluated[-1]["validation/loss_mask"] > 0
    events = b"".join(path.read_bytes() for path in (workspace / "run").glob("events.out.tfevents*"))
    assert b"ground truth, reconstruction, prediction" in events
    assert (workspace / "run/seed.txt").is_file()


def test_gradients_are_accumulated(workspace: Path) -> None:
    clamp = "{_target_: meinst_d2.encoding.SigmoidClamp, low: 0.01, high: 0.01}"  # not random
    settled = ("train.max_iter=1", f"model.proposal_generator.mask_encoder.encoder.clamp={clamp}")
    losses = []
    for parts in (1, 2):
        run(f"train.output_dir=run{parts}", f"train.gradient_accumulation={parts}", *settled)
        losses.append({name: x for name, x in rows(workspace / f"run{parts}")[0].items() if "loss" in name})
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_of_two_sets_of_components_the_chosen_one_is_kept(workspace: Path) -> None:
    run("train.output_dir=first", "train.max_iter=1")
    weights = read_checkpoint(workspace / "first/model_final.pth")["model"]
    basis = blob_basis(28).truncated(8)
    save_components("components.npz", [replace(basis, mean=1 - basis.mean, components=-basis.components)], {})
    start = ("train.output_dir=second", "train.max_iter=1", "optimizer.lr=0.0")
    start += ("train.init_checkpoint=first/model_final.pth",)
    with pytest.raises(ValueError, match="set train.components_conflict to 'weights' to keep"):
        run(*start, "train.components_conflict=stop")
    for choice in ("weights", "file"):
        run(*start, f"train.components_conflict={choice}")
        found = read_checkpoint(workspace / "second/model_final.pth")["model"]
        for name in ("proposal_generator.mask_encoder.components", "proposal_generator.head.mask_pred.weight"):
            assert torch.equal(found[name], weights[name]) == (choice == "weights"), name


def test_what_is_wrong_is_said_before_the_start_with_the_keys_of_the_config(workspace: Path) -> None:
    for override, message in (
        ("train.max_iter=ten", "train.max_iter must be of type int, such as .*, not str"),
        ("train.device=gpu", "train.device = 'gpu' is not a device"),
        ("train.patience=3", "train.patience = 3 counts evaluations during training: set train.eval_period"),
        ("train.ema_decay=1.5", "train.ema_decay = 1.5 must be below 1"),
        ("train.gradient_accumulation=4", "train.gradient_accumulation = 4 cannot divide the 2 images"),
        ("train.init_checkpoint=no.pth", "train.init_checkpoint no.pth does not exist"),
        ("dataloader.evaluator.dataset_name=shapes_vla", "'shapes_vla' is not registered"),
        ("model.proposal_generator.head.num_classes=3", "set model.proposal_generator.head.num_classes 6"),
        ("model.proposal_generator.mask_encoder.encoder.dim=9", "D = 8, the config asks for model.proposal_generator"),
    ):
        with pytest.raises(ValueError, match=message):
            run("train.output_dir=wrong", "train.eval_period=0", override)
    assert not (workspace / "wrong").exists()


def test_a_dataset_of_other_classes_is_refused_and_one_of_fewer_evaluated(workspace: Path) -> None:
    root = Path(MetadataCatalog.get("shapes_train").json_file).parents[1]
    for change, refused in ((swap_ids, True), (keep_two, False)):
        name = register_coco(altered(root, workspace / f"{change.__name__}.json", change))
        options = (
            *(f"train.output_dir=run_{refused}", "train.max_iter=1", "train.validation_loss=True"),
            *(f"dataloader.evaluator.dataset_name={name}", f"dataloader.test.dataset.names={name}"),
        )
        if refused:
            with pytest.raises(
                ValueError, match=r"swap_ids.json\) has the classes star, ring in the place of ring, star"
            ):
                run(*options)
        else:
            assert set(run(*options)) == {"bbox", "segm"}
