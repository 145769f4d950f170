"""Training that starts from weights of another task."""

from pathlib import Path
from typing import Any

import pytest
import torch

from meinst_d2.checkpoint.checkpointer import CheckpointInfo, MEInstCheckpointer
from meinst_d2.checkpoint.compatibility import CLASS_LAYER, MASK_LAYER, changed_layers, leave_out
from meinst_d2.engine import Trainer
from tests.models import tiny_cfg, tiny_model, under_their_names, write_components

GENERATOR = "proposal_generator."
CLASSES = GENERATOR + "head.cls_logits.weight"
MASKS = GENERATOR + "head.mask_pred.weight"
SHAPES = ["ring", "star", "crescent", "bar", "cut", "blob"]


pytestmark = pytest.mark.usefixtures("shapes")


def start(folder: Path, weights: Path, *overrides: Any, resume: bool = False) -> Trainer:
    components = write_components(folder / "c.npz")
    cfg = tiny_cfg(
        *("OUTPUT_DIR", str(folder / "run"), "MODEL.MEINST.COMPONENTS", str(components)),
        *("INPUT.MIN_SIZE_TRAIN", (64,), "DATASETS.TEST", (), "MODEL.WEIGHTS", str(weights)),
        *overrides,
    )
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    return trainer


def save(folder: Path, *overrides: Any, class_names: list[str] | None = None, published: bool = False) -> Path:
    """Weights unlike any initialisation."""
    cfg, model = tiny_cfg(*overrides), tiny_model(*overrides)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    info = CheckpointInfo.from_config(cfg)
    info.content["class_names"] = class_names
    state = model.state_dict()
    content = under_their_names(state) if published else {"model": state, "meinst": info.content}
    torch.save(content, folder / "w.pth")
    return folder / "w.pth"


def changed_tensors(trainer: Trainer, weights: Path) -> set[str]:
    """What the model has otherwise than the weights."""
    content = torch.load(weights, weights_only=True)
    saved, state = under_their_names(content.get("model", content)), trainer.checkpointer.model.state_dict()
    named = dict(zip(state, under_their_names(state), strict=True))
    assert set(saved) == set(named.values())
    return {name for name, value in state.items() if not value.equal(saved[named[name]])}


def layer(name: str) -> set[str]:
    return {f"{name}.weight", f"{name}.bias"}


@pytest.mark.parametrize("published", [False, True])
def test_other_classes_re_initialize_their_layer_alone(
    tmp_path: Path, published: bool, caplog: pytest.LogCaptureFixture
) -> None:
    weights = save(tmp_path, "MODEL.MEINST.NUM_CLASSES", 80, published=published)
    trainer = start(tmp_path, weights)
    assert changed_tensors(trainer, weights) == layer(GENERATOR + "head.cls_logits")
    state = trainer.checkpointer.model.state_dict()
    assert state[CLASSES].abs().max() < 0.1  # from N(0, 0.01)
    torch.testing.assert_close(state[GENERATOR + "head.cls_logits.bias"], torch.full((6,), -4.59512))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    shapes = "(80, 32, 3, 3) in the weights and (6, 32, 3, 3) in the model"
    assert warnings == [f"The class layer is re-initialized: {CLASSES} has shape {shapes}."]


def test_as_many_classes_of_other_names_do_so_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = save(tmp_path, class_names=["cat", "dog", "cow", "fox", "owl", "bat"])
    assert changed_tensors(start(tmp_path, weights), weights) == layer(GENERATOR + "head.cls_logits")
    assert "The class layer is re-initialized: the weights were trained on other classes." in caplog.text


@pytest.mark.parametrize("class_names", [None, SHAPES])
def test_same_or_unknown_classes(
    tmp_path: Path, class_names: list[str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    weights = save(tmp_path, class_names=class_names)
    assert changed_tensors(start(tmp_path, weights), weights) == set()
    assert "is re-initialized" not in caplog.text


OTHER_ENCODINGS = [("DIM_MASK", 6), ("MASK_SIZE", 14)]


@pytest.mark.parametrize("classes", [6, 80])
@pytest.mark.parametrize(("key", "value"), OTHER_ENCODINGS)
def test_another_encoding_where_allowed(
    tmp_path: Path, key: str, value: int, classes: int, caplog: pytest.LogCaptureFixture
) -> None:
    weights = save(tmp_path, f"MODEL.MEINST.{key}", value, "MODEL.MEINST.NUM_CLASSES", classes)
    with pytest.raises(ValueError, match="in the weights and .* in the model.*: to re-initialize the mask predictor"):
        start(tmp_path, weights)
    caplog.clear()
    trainer = start(tmp_path, weights, "MODEL.MEINST.COMPONENTS_CONFLICT", "file")
    encoder = {f"{GENERATOR}mask_encoder.{name}" for name in ("components", "means", "explained_variances")}
    changed = changed_tensors(trainer, weights)
    assert changed - encoder == layer(GENERATOR + "head.mask_pred") | (
        layer(GENERATOR + "head.cls_logits") if classes == 80 else set()
    )
    generator = trainer.checkpointer.model.proposal_generator
    assert generator.mask_encoder.is_fitted and generator.head.mask_pred.weight.abs().max() < 0.1
    assert caplog.text.count("The mask predictor is re-initialized") == 1
    assert caplog.text.count("The class layer is re-initialized") == (classes == 80)


def test_a_resumed_run_and_an_evaluation_take_no_other_classes(tmp_path: Path) -> None:
    weights = save(tmp_path, "MODEL.MEINST.NUM_CLASSES", 80)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/last_checkpoint").write_text("../w.pth")
    message = r"cls_logits.weight has shape \(80, 32, 3, 3\) in the weights and \(6, .*: evaluate with the classes"
    with pytest.raises(ValueError, match=message):
        start(tmp_path, Path(""), resume=True)
    with pytest.raises(ValueError, match=message):
        MEInstCheckpointer(tiny_model()).load(str(weights))


def test_what_two_checkpoints_say_decides_which_layers_changed() -> None:
    ours = {"class_names": ["a", "b"], "encoder": "PCAEncoder", "sigmoid": True, "whiten": True}
    assert changed_layers(ours, dict(ours)) == {} == changed_layers({}, ours) == changed_layers(ours, {})
    assert set(changed_layers(ours | {"class_names": ["b", "a"]}, ours)) == {CLASS_LAYER}
    assert set(changed_layers(ours | {"class_names": None}, ours)) == set()
    for key, value in (("encoder", "DCTEncoder"), ("sigmoid", False), ("whiten", False)):
        reasons = changed_layers(ours | {key: value}, ours)
        assert reasons == {MASK_LAYER: f"the weights were trained with MODEL.MEINST.{key.upper()} {value}"}


def test_only_whole_layers_are_left_out() -> None:
    model = {MASKS: torch.zeros(8, 4), GENERATOR + "head.mask_pred.bias": torch.zeros(8), "head.x": torch.zeros(2)}
    state = {MASKS: torch.zeros(6, 4), GENERATOR + "head.mask_pred.bias": torch.zeros(8), "head.x": torch.zeros(2)}
    assert set(leave_out(state, model, (CLASS_LAYER, MASK_LAYER), {})) == {MASK_LAYER}
    assert set(state) == {"head.x"}
    assert leave_out(state, model, (CLASS_LAYER, MASK_LAYER), {}) == {}
    # What changed, but may not start anew, loads.
    assert leave_out(state := dict(model), model, (), {MASK_LAYER: "why"}) == {} and set(state) == set(model)
    with pytest.raises(ValueError, match=r"head.x has shape \(3,\) in the weights and \(2,\) in the model: take the"):
        leave_out({"head.x": torch.zeros(3)}, model, (CLASS_LAYER, MASK_LAYER), {})
    model = {"head.cls_score.weight": torch.zeros(54, 4), "head.mask_pred.bias": torch.zeros(8)}
    state = {"head.cls_score.weight": torch.zeros(720, 4), "head.mask_pred.bias": torch.zeros(8)}
    assert set(leave_out(state, model, (CLASS_LAYER,), {})) == {CLASS_LAYER} and set(state) == {"head.mask_pred.bias"}
