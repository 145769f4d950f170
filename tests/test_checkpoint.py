import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import DefaultPredictor

from meinst_d2.checkpoint import MEInstCheckpointer, load_array_pickle, load_tensor_file
from tests.models import published_model, tiny_cfg, tiny_model, write_components
from tests.parity_cases import FOLDER, published_weights


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize(("layout", "deform"), [("none", "none"), ("dcnv1", "last")])
def test_the_state_dict_has_the_published_tensors(layout: str, deform: str) -> None:
    rows = [row.split("\t") for row in (FOLDER / f"keys/{layout}.tsv").read_text().splitlines()]
    renamed = {
        key.replace("MEInst_head.ctrness", "head.centerness")
        .replace("MEInst_head", "head")
        .replace("mask_encoding", "mask_encoder"): shape
        for key, shape in rows
    }
    model = published_model(deform)
    assert {key: str(list(value.shape)) for key, value in model.state_dict().items()} == renamed
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == {"none": 34_522_518, "dcnv1": 34_646_220}[layout]


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("checkpointer", [DetectionCheckpointer, MEInstCheckpointer])
def test_published_weights_load_unchanged_with_any_checkpointer(
    tmp_path: Path, wrapped: bool, checkpointer: type, caplog: pytest.LogCaptureFixture
) -> None:
    weights = published_weights("none", 0)
    torch.save({"model": weights} if wrapped else weights, tmp_path / "theirs.pth")
    model = published_model()
    checkpointer(model).load(str(tmp_path / "theirs.pth"))
    state = model.state_dict()
    assert torch.equal(
        state["proposal_generator.head.centerness.weight"], weights["proposal_generator.MEInst_head.ctrness.weight"]
    )
    assert torch.equal(
        state["proposal_generator.mask_encoder.means"], weights["proposal_generator.mask_encoding.means"]
    )
    assert model.proposal_generator.mask_encoder.is_fitted
    assert "not found" not in caplog.text and "not used" not in caplog.text and "Skip loading" not in caplog.text


def test_a_predictor_of_detectron2_takes_a_checkpoint_of_ours(tmp_path: Path) -> None:
    MEInstCheckpointer(tiny_model("MODEL.MEINST.PRIOR_PROB", 0.3), str(tmp_path)).save("model")
    predictor = DefaultPredictor(tiny_cfg("MODEL.WEIGHTS", str(tmp_path / "model.pth")))
    found = predictor(np.zeros((50, 70, 3), np.uint8))["instances"]
    assert found.image_size == (50, 70)
    assert found.pred_masks.shape == (len(found), 50, 70) and found.pred_masks.dtype == torch.bool
    assert len(found) > 0


def test_components_of_the_checkpoint_win_over_those_of_the_file(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.proposal_generator.mask_encoder.means.add_(1)
    MEInstCheckpointer(model, str(tmp_path)).save("model")
    components = write_components(tmp_path / "c.npz")
    overrides = ("MODEL.MEINST.COMPONENTS", str(components), "MODEL.WEIGHTS", str(tmp_path / "model.pth"))
    predictor = DefaultPredictor(tiny_cfg(*overrides))
    loaded = predictor.model.proposal_generator.mask_encoder.means
    assert torch.equal(loaded, model.proposal_generator.mask_encoder.means)


def test_saving_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointer = MEInstCheckpointer(tiny_model(), str(tmp_path))
    checkpointer.save("model_0")
    before = (tmp_path / "model_0.pth").read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    for name in ("model_0", "model_1"):
        with pytest.raises(OSError, match="disk full"):
            checkpointer.save(name)
    assert (tmp_path / "model_0.pth").read_bytes() == before
    assert (tmp_path / "last_checkpoint").read_text() == "model_0.pth"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_0.pth"]


def test_a_checkpoint_with_code_is_refused_and_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save({"model": Canary(marker)}, tmp_path / "evil.pth")
    with (tmp_path / "evil.pkl").open("wb") as file:
        pickle.dump({"model": Canary(marker)}, file)
    model = tiny_model()
    for name in ("evil.pth", "evil.pkl"):
        with pytest.raises(ValueError, match=f"{name} is refused"):
            MEInstCheckpointer(model).load(str(tmp_path / name))
    assert not marker.exists()


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": {"a": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="must be whole"):
        load_tensor_file(path)
    (tmp_path / "m.pkl").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="is refused"):
        load_array_pickle(tmp_path / "m.pkl")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_of_arrays_are_read(tmp_path: Path, protocol: int) -> None:
    content = {"model": {"a": np.arange(6.0).reshape(2, 3), "b": np.float32(3)}, "__author__": "me"}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, protocol))
    loaded = load_array_pickle(tmp_path / "w.pkl")
    np.testing.assert_array_equal(loaded["model"]["a"], content["model"]["a"])
    assert loaded["model"]["b"] == 3


@pytest.mark.parametrize("kind", ["zoo", "caffe2", "blobs"])
def test_imagenet_weights_reach_the_backbone_and_leave_the_components(tmp_path: Path, kind: str) -> None:
    """Detectron2's R-50.pkl is such a file; its name matching decides which tensor goes where."""
    source = tiny_model(seed=1)
    weights = {k: v.numpy() for k, v in source.backbone.bottom_up.state_dict().items()}
    content: dict[str, Any] = {
        "zoo": {"model": weights, "__author__": "third_party", "matching_heuristics": True},
        "caffe2": {"conv1_w": weights["stem.conv1.weight"], "conv1_w_momentum": np.zeros(3)},
        "blobs": {"blobs": {"conv1_w": weights["stem.conv1.weight"]}},
    }[kind]
    (tmp_path / "R.pkl").write_bytes(pickle.dumps(content, 2))
    model = tiny_model(seed=2)
    before = model.proposal_generator.mask_encoder.components.clone()
    MEInstCheckpointer(model).load(str(tmp_path / "R.pkl"))
    assert torch.equal(model.backbone.bottom_up.stem.conv1.weight, source.backbone.bottom_up.stem.conv1.weight)
    assert torch.equal(model.proposal_generator.mask_encoder.components, before)
