from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.engine import HookBase

from meinst_d2.checkpoint.checkpointer import MEInstCheckpointer
from meinst_d2.engine import Trainer, settle_seed
from tests.models import tiny_cfg, tiny_model, write_components

pytestmark = pytest.mark.usefixtures("shapes")


def run_cfg(folder: Path, *overrides: Any) -> Any:
    components = write_components(folder / "c.npz")
    return tiny_cfg(
        *("OUTPUT_DIR", str(folder / "run"), "MODEL.MEINST.COMPONENTS", str(components)),
        *("INPUT.MIN_SIZE_TRAIN", (64,), "SOLVER.MAX_ITER", 4, "DATASETS.TEST", ()),
        *overrides,
    )


def train(cfg: Any, resume: bool = False, *hooks: HookBase) -> Trainer:
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.register_hooks(list(hooks))
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer


def test_a_run_writes_what_detectron2_users_expect(tmp_path: Path) -> None:
    train(run_cfg(tmp_path))
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"model_final.pth", "last_checkpoint", "metrics.json"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    content = torch.load(tmp_path / "run/model_final.pth", weights_only=True)
    assert content["meinst"]["class_names"] == ["ring", "star", "crescent", "bar", "cut", "blob"]
    assert content["meinst"]["encoder"] == "PCAEncoder" and content["iteration"] == 3


def test_the_same_seed_trains_the_same_weights(tmp_path: Path) -> None:
    one, two = (train(run_cfg(tmp_path / str(i))).model.state_dict() for i in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_trains_on_the_cpu(tmp_path: Path, precision: str) -> None:
    full = run_cfg(tmp_path / "full", "SOLVER.MAX_ITER", 1)
    mixed = run_cfg(tmp_path / "mixed", "SOLVER.MAX_ITER", 1, "MODEL.MEINST.PRECISION", precision)
    states = [train(cfg).storage.latest()["total_loss"][0] for cfg in (full, mixed)]
    assert states[1] == pytest.approx(states[0], rel=0.05) and states[0] != states[1]


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


def test_optimizers_and_their_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    sgd = Trainer.build_optimizer(tiny_cfg("SOLVER.OPTIMIZER", "SGD"), model)
    cfg = tiny_cfg("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.BETAS", (0.9, 0.95))
    adamw = Trainer.build_optimizer(cfg, model)
    assert isinstance(sgd, torch.optim.SGD) and isinstance(adamw, torch.optim.AdamW)
    assert type(adamw).__name__ == "AdamWWithGradientClip"
    scaled_loss = Trainer.build_optimizer(tiny_cfg("MODEL.MEINST.PRECISION", "float16"), model)
    assert adamw.defaults["fused"] and not scaled_loss.defaults["fused"]
    assert {group["betas"] for group in adamw.param_groups} == {(0.9, 0.95)}
    decays = {group["weight_decay"] for group in adamw.param_groups}
    assert decays == {0.0, 1e-4}  # norms have none
    assert sum(len(g["params"]) for g in adamw.param_groups) == sum(p.requires_grad for p in model.parameters())
    cfg = tiny_cfg("SOLVER.REFERENCE_WORLD_SIZE", 8, "SOLVER.IMS_PER_BATCH", 16, "SOLVER.BASE_LR", 0.01)
    scaled = Trainer.auto_scale_workers(cfg, 1)
    assert (2, pytest.approx(0.00125)) == (scaled.SOLVER.IMS_PER_BATCH, scaled.SOLVER.BASE_LR)
    assert scaled.SOLVER.MAX_ITER == 8 * cfg.SOLVER.MAX_ITER
