import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage

from meinst_d2.checkpoint.checkpointer import MEInstCheckpointer
from meinst_d2.engine import Trainer, settle_seed
from meinst_d2.engine.step import TrainStep
from tests.models import assert_same_gradients, image_with, tiny_cfg, tiny_model, write_components

pytestmark = pytest.mark.usefixtures("shapes")


def run_cfg(folder: Path, *overrides: Any) -> Any:
    components = write_components(folder / "c.npz")
    return tiny_cfg(
        *("OUTPUT_DIR", str(folder / "run"), "MODEL.MEINST.COMPONENTS", str(components)),
        *("INPUT.MIN_SIZE_TRAIN", (64,), "SOLVER.MAX_ITER", 4, "DATASETS.TEST", ()),
        *overrides,
    )


def train(cfg: Any, resume: bool = False) -> Trainer:
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer


def losses_of(folder: Path) -> dict[int, float]:
    lines = (folder / "run/metrics.json").read_text().splitlines()
    return {row["iteration"]: row["total_loss"] for row in map(json.loads, lines)}


def test_a_run_writes_what_detectron2_users_expect(tmp_path: Path) -> None:
    train(run_cfg(tmp_path))
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"model_final.pth", "last_checkpoint", "metrics.json"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    content = torch.load(tmp_path / "run/model_final.pth", weights_only=True)
    assert content["meinst"]["class_names"] == ["ring", "star", "crescent", "bar", "cut", "blob"]
    assert content["meinst"]["encoder"] == "PCAEncoder" and content["iteration"] == 3


def test_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = train(run_cfg(tmp_path / "whole")).model.state_dict()
    train(run_cfg(tmp_path / "parts", "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2))
    run = tmp_path / "parts/run"
    (run / "last_checkpoint").write_text("model_0000001.pth")
    resumed = train(run_cfg(tmp_path / "parts", "SOLVER.CHECKPOINT_PERIOD", 2), resume=True)
    assert resumed.start_iter == 2
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, whole[name]), name


def test_the_same_seed_trains_the_same_weights(tmp_path: Path) -> None:
    states = [train(run_cfg(tmp_path / str(i))).model.state_dict() for i in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_trains_on_the_cpu(tmp_path: Path, precision: str) -> None:
    full = run_cfg(tmp_path / "full", "SOLVER.MAX_ITER", 1)
    mixed = run_cfg(tmp_path / "mixed", "SOLVER.MAX_ITER", 1, "MODEL.MEINST.PRECISION", precision)
    states = [train(cfg).storage.latest()["total_loss"][0] for cfg in (full, mixed)]
    assert states[1] == pytest.approx(states[0], rel=0.05) and states[0] != states[1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(bad: float) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.proposal_generator.head.mask_pred.bias[0] = bad
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    step = TrainStep(model, [[image_with([[10.0, 8.0, 50.0, 48.0]])]], optimizer, seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step.iter = 17
    with EventStorage(17), pytest.raises(FloatingPointError) as error:
        step.run_step()
    message = str(error.value)
    assert "iteration 17" in message and "loss_mask = " in message and "images 1" in message
    for name, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num()), name


def conflicting_weights(folder: Path) -> Path:
    model = tiny_model()
    torch.nn.init.ones_(model.proposal_generator.head.mask_pred.weight)
    with torch.no_grad():
        model.proposal_generator.mask_encoder.means.add_(1)
    MEInstCheckpointer(model, str(folder)).save("other")
    return folder / "other.pth"


@pytest.mark.parametrize("choice", ["weights", "file", "stop"])
def test_of_two_sets_of_components_the_chosen_one_is_kept(tmp_path: Path, choice: str) -> None:
    weights = conflicting_weights(tmp_path)
    cfg = run_cfg(tmp_path, "MODEL.WEIGHTS", str(weights), "MODEL.MEINST.COMPONENTS_CONFLICT", choice)
    trainer = Trainer(cfg)
    if choice == "stop":
        with pytest.raises(ValueError, match="COMPONENTS_CONFLICT"):
            trainer.resume_or_load(False)
        return
    generator = trainer.model.proposal_generator
    from_file = generator.mask_encoder.means.clone()
    trainer.resume_or_load(False)
    assert torch.equal(generator.mask_encoder.means, from_file) == (choice == "file")
    assert (generator.head.mask_pred.weight == 1).all() == (choice == "weights")


def test_a_seed_is_drawn_once_and_found_again(tmp_path: Path) -> None:
    def settled(seed: int, resume: bool) -> int:
        return settle_seed(seed, tmp_path / "run", resume)

    assert settled(5, False) == 5 and not (tmp_path / "run").exists()
    np.random.seed(1)
    drawn = settled(-1, True)
    assert drawn >= 0 and settled(-1, True) == drawn
    assert settled(-1, False) != drawn


def test_optimizers_and_their_groups() -> None:
    model = tiny_model()
    sgd = Trainer.build_optimizer(tiny_cfg("SOLVER.OPTIMIZER", "SGD"), model)
    adamw = Trainer.build_optimizer(tiny_cfg("SOLVER.CLIP_GRADIENTS.ENABLED", True), model)
    assert isinstance(sgd, torch.optim.SGD) and isinstance(adamw, torch.optim.AdamW)
    assert type(adamw).__name__ == "AdamWWithGradientClip"
    decays = {group["weight_decay"] for group in adamw.param_groups}
    assert decays == {0.0, 1e-4}  # norms have none
    assert sum(len(g["params"]) for g in adamw.param_groups) == sum(p.requires_grad for p in model.parameters())


def test_a_batch_in_parts_has_the_losses_and_gradients_of_the_whole() -> None:
    model = tiny_model("MODEL.MEINST.SIGMOID_CLAMP", (0.01, 0.01))
    boxes = [
        [[10.0, 8.0, 50.0, 48.0]],
        [],
        [[4.0, 4.0, 90.0, 60.0], [50.0, 20.0, 70.0, 60.0]],
        [[0.0, 0.0, 30.0, 30.0]],
    ]
    batch = [image_with(per_image) for per_image in boxes]

    def learn(accumulation: int) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        step = TrainStep(model, [batch], optimizer, seed=0, accumulation=accumulation)
        with EventStorage(0) as storage:
            step.run_step()
            losses = {name: value for name, (value, _) in storage.latest().items() if "loss" in name}
        return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    whole_losses, whole = learn(1)
    for accumulation in (2, 4):
        losses, gradients = learn(accumulation)
        for name, value in whole_losses.items():
            assert losses[name] == pytest.approx(value, rel=1e-5), name
        assert_same_gradients(gradients, whole)


def test_the_reference_world_size_scales_batch_and_learning_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny_cfg("SOLVER.REFERENCE_WORLD_SIZE", 8, "SOLVER.IMS_PER_BATCH", 16, "SOLVER.BASE_LR", 0.01)
    scaled = Trainer.auto_scale_workers(cfg, 1)
    assert (2, pytest.approx(0.00125)) == (scaled.SOLVER.IMS_PER_BATCH, scaled.SOLVER.BASE_LR)
    assert scaled.SOLVER.MAX_ITER == 8 * cfg.SOLVER.MAX_ITER
