import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import DefaultPredictor

import meinst_d2
from meinst_d2 import model_zoo
from meinst_d2.checkpoint.checkpointer import MEInstCheckpointer, fetch
from meinst_d2.checkpoint.readers import read_checkpoint
from meinst_d2.checkpoint.resume import open_last_whole
from meinst_d2.model_zoo.publish import safetensors_of
from meinst_d2.model_zoo.trained import build
from tests.models import load_cfg, published_model, tiny_cfg, tiny_model, write_components
from tests.parity_cases import published_weights
from tests.web import serve


@pytest.mark.parametrize(("layout", "deform"), [("none", "none"), ("dcnv1", "last")])
def test_the_published_models_have_the_published_numbers_of_parameters(layout: str, deform: str) -> None:
    model = build(load_cfg("MEInst_R_50_1x_none.yaml", "MODEL.MEINST.DEFORM_CONV", deform), "meta")
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == {"none": 34_522_518, "dcnv1": 34_646_220}[layout]


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("checkpointer", [DetectionCheckpointer, MEInstCheckpointer])
def test_published_weights_load_unchanged(
    tmp_path: Path, wrapped: bool, checkpointer: type, caplog: pytest.LogCaptureFixture
) -> None:
    weights = published_weights("none", 0)
    torch.save({"model": weights} if wrapped else weights, tmp_path / "theirs.pth")
    model = published_model()
    checkpointer(model).load(str(tmp_path / "theirs.pth"))
    state = model.state_dict()
    same = {"head.centerness.weight": "MEInst_head.ctrness.weight", "mask_encoder.means": "mask_encoding.means"}
    for ours, theirs in same.items():
        assert torch.equal(state[f"proposal_generator.{ours}"], weights[f"proposal_generator.{theirs}"])
    assert model.proposal_generator.mask_encoder.is_fitted
    assert "not found" not in caplog.text and "not used" not in caplog.text and "Skip loading" not in caplog.text


def test_a_predictor_of_detectron2_takes_a_checkpoint_of_ours(tmp_path: Path) -> None:
    MEInstCheckpointer(tiny_model("MODEL.MEINST.PRIOR_PROB", 0.3), str(tmp_path)).save("model")
    predictor = DefaultPredictor(tiny_cfg("MODEL.WEIGHTS", str(tmp_path / "model.pth")))
    found = predictor(np.zeros((50, 70, 3), np.uint8))["instances"]
    assert found.image_size == (50, 70)
    assert found.pred_masks.shape == (len(found), 50, 70) and found.pred_masks.dtype == torch.bool
    assert len(found) > 0


class State:
    """Something with a state, for a checkpointer."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


@pytest.mark.parametrize("earlier", [False, True], ids=["now", "as earlier versions wrote it"])
def test_averaged_weights_predict_and_training_resumes_from_the_others(tmp_path: Path, earlier: bool) -> None:
    raw, averaged = tiny_model(seed=1), tiny_model(seed=2)
    ema, trainer = State({"model": averaged.state_dict(), "updates": 3}), State({"iteration": 7})
    if earlier:
        content = {"model": raw.state_dict(), "ema": ema.state, "trainer": trainer.state}
        torch.save(content, tmp_path / "model_0000007.pth")
        (tmp_path / "last_checkpoint").write_text("model_0000007.pth")
    else:
        MEInstCheckpointer(raw, str(tmp_path), ema=ema, trainer=trainer).save("model_0000007", iteration=7)

    def has_weights_of(model: torch.nn.Module, expected: torch.nn.Module) -> bool:
        state = expected.state_dict()
        return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())

    model = tiny_model(seed=3)
    MEInstCheckpointer(model).load(str(tmp_path / "model_0000007.pth"))
    assert has_weights_of(model, averaged)
    if not earlier:
        weights = ("MODEL.WEIGHTS", str(tmp_path / "model_0000007.pth"))
        assert has_weights_of(DefaultPredictor(tiny_cfg(*weights)).model, averaged)
    resumed = State({}), State({})
    extra = MEInstCheckpointer(model, str(tmp_path), ema=resumed[0], trainer=resumed[1]).resume_or_load("", resume=True)
    assert has_weights_of(model, raw) and resumed[1].state == trainer.state and extra.get("iteration", 7) == 7
    assert set(resumed[0].state) == {"model", "updates"} and resumed[0].state["updates"] == 3
    assert all(torch.equal(value, averaged.state_dict()[name]) for name, value in resumed[0].state["model"].items())


@pytest.mark.parametrize("handed_on", [True, False])
def test_a_resumed_checkpoint_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handed_on: bool) -> None:
    source = tiny_model(seed=1)
    checkpointer = MEInstCheckpointer(source, str(tmp_path))
    for name in ("model_0000001", "model_0000003"):
        checkpointer.save(name)
    (tmp_path / "model_0000003.pth").write_bytes((tmp_path / "model_0000003.pth").read_bytes()[:-100])
    opened: list[Path] = []

    def counted(path: Any) -> Any:
        opened.append(Path(path))
        return read_checkpoint(path)

    monkeypatch.setattr("meinst_d2.checkpoint.resume.read_checkpoint", counted)
    monkeypatch.setattr("meinst_d2.checkpoint.checkpointer.read_checkpoint", counted)
    last = open_last_whole(tmp_path) if handed_on else None
    model = tiny_model(seed=2)
    checkpointer = MEInstCheckpointer(model, str(tmp_path), opened=last)
    checkpointer.resume_or_load("", resume=True)
    assert [path.stem for path in opened] == ["model_0000003", "model_0000001"]
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())
    if last is not None:
        assert last.path.name == "model_0000001.pth" and "model_0000003.pth is refused" in last.passed_over[0]
        assert checkpointer._opened is None  # its memory is free
    checkpointer.save("model_0000005")
    assert Path(checkpointer.get_checkpoint_file()).name == "model_0000005.pth"


@pytest.mark.parametrize("name", ["run-20240131.pth", "model-0123abcd.pth"])
def test_the_name_of_a_local_file_promises_no_hash(tmp_path: Path, name: str) -> None:
    MEInstCheckpointer(tiny_model(seed=1), str(tmp_path)).save(name.removesuffix(".pth"))
    (tmp_path / "config.yaml").write_text(tiny_cfg().dump())
    expected = tiny_model(seed=1).state_dict()
    model = tiny_model(seed=2)
    MEInstCheckpointer(model).load(str(tmp_path / name))
    for loaded in (model, meinst_d2.load(tmp_path / name).model, model_zoo.get(tmp_path / name)):
        assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())


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


@pytest.mark.parametrize("name", ["w.pth", "w.pyth", "w.safetensors", "w", "resnet50_lpf.pth", "dla34.pth"])
def test_the_suffix_says_how_to_read_and_other_parts_of_the_name_nothing(tmp_path: Path, name: str) -> None:
    source, model = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
    if name.endswith(".safetensors"):
        (tmp_path / name).write_bytes(safetensors_of(source.state_dict(), {}))
    else:
        torch.save({"model": source.state_dict()}, tmp_path / name)
    MEInstCheckpointer(model).load(str(tmp_path / name))
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


def test_pycls_weights_are_matched_by_name(tmp_path: Path) -> None:
    source, model = tiny_model(seed=1), tiny_model(seed=2)
    state = {name: value for name, value in source.backbone.bottom_up.state_dict().items()}
    torch.save({"model_state": state | {"stem.num_batches_tracked": torch.zeros(1)}}, tmp_path / "w.pyth")
    MEInstCheckpointer(model).load(str(tmp_path / "w.pyth"))
    assert torch.equal(model.backbone.bottom_up.stem.conv1.weight, source.backbone.bottom_up.stem.conv1.weight)


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


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def hashed(folder: Path, content: bytes, digest: str | None = None) -> Path:
    path = folder / f"model-{digest or hashlib.sha256(content).hexdigest()[:8]}.pth"
    path.write_bytes(content)
    return path


def test_a_file_is_fetched_once(tmp_path: Path, cache: Path) -> None:
    path = hashed(tmp_path, b"weights")
    with serve(tmp_path) as url:
        local = fetch(f"{url}/{path.name}")
        path.unlink()
        assert fetch(f"{url}/{path.name}") == local
    assert Path(local).read_bytes() == b"weights" and files_in(cache) == [path.name]


def test_names_say_what_a_file_is(tmp_path: Path, cache: Path) -> None:
    path = hashed(tmp_path, b"weights", "00000000")
    with serve(tmp_path) as url, pytest.raises(ValueError, match=r"begins with 00000000, .* was deleted, try again"):
        fetch(f"{url}/{path.name}")
    assert files_in(cache) == []
    with serve(tmp_path) as url:
        for name in ("model_final.pth", "R-50.pkl", "model_0001999.pth", "model-20.pth"):
            (tmp_path / name).write_bytes(b"anything")
            assert Path(fetch(f"{url}/{name}")).read_bytes() == b"anything"


def test_weights_load_from_the_web(tmp_path: Path, cache: Path) -> None:
    source, model = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    with serve(tmp_path) as url:
        MEInstCheckpointer(model).load(f"{url}/w.pth")
        with pytest.raises(OSError, match="absent.pth could not be downloaded"):
            MEInstCheckpointer(model).load(f"{url}/absent.pth")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_failed_download_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "whole.pth").write_bytes(bytes(100_000))
    with serve(tmp_path) as url:
        for address in ("absent.pth", "cut/whole.pth"):
            with pytest.raises(OSError, match=rf"/{address} could not be downloaded: .+"):
                fetch(f"{url}/{address}")
    with pytest.raises(OSError, match=f"{url}/model.pth could not be downloaded"):  # the server has ended
        fetch(f"{url}/model.pth")
    assert files_in(cache) == []
