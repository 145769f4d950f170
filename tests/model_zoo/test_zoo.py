from pathlib import Path
from typing import Any

import pytest
import torch

from meinst_d2 import model_zoo
from meinst_d2.model_zoo import zoo
from meinst_d2.model_zoo.publish import publish_run
from meinst_d2.model_zoo.zoo import URLS
from tests.conftest import ROOT
from tests.model_zoo.test_publish import write_run
from tests.models import tiny_cfg, tiny_model, write_components
from tests.web import serve

PUBLISHED = ["MEInst_R_50_1x_none", "MEInst_R_50_1x", "MEInst_R_50_3x", "MEInst_R_50_3x_512"]


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "web"


def publish(folder: Path, output: Path) -> Path:
    return publish_run(write_run(folder), output, "tiny")[0]


def same_weights(model: torch.nn.Module, expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_configs_have_names_and_unknown_ones_are_met_with_known_ones() -> None:
    for path in (*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "configs").rglob("*.py")):
        name = path.relative_to(ROOT / "configs").as_posix()
        assert model_zoo.get_config_file(name) == model_zoo.get_config_file(name.removesuffix(".yaml")) == str(path)
    for name in ("MEInst_R_50_3x", "MEInst_R_50_3x.yaml", "quick/tiny"):
        cfg = model_zoo.get_config(name)
        assert ("MEInstDetector", f"output/{Path(name).stem}") == (cfg.MODEL.META_ARCHITECTURE, cfg.OUTPUT_DIR)
    with pytest.raises(ValueError, match="no config MEInst_R50_1x: did you mean .*MEInst_R_50_1x"):
        model_zoo.get_config("MEInst_R50_1x")
    with pytest.raises(ValueError, match="there is no trained model for quick/tiny: train it"):
        model_zoo.get_checkpoint_url("quick/tiny")


def test_a_lazy_config_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_zoo.get_config("lazy/meinst_r50.py").model.proposal_generator.head.num_classes == 80
    torch.save({"model": {}}, tmp_path / "nothing.pth")
    small = (ROOT / "configs/lazy/meinst_r50.py").read_text() + (
        f"\ntrain['init_checkpoint'] = '{tmp_path}/nothing.pth'\nmodel.proposal_generator.head.num_classes = 3\n"
    )
    (tmp_path / "small.py").write_text(small)
    monkeypatch.setattr(zoo, "CONFIG_FOLDERS", (tmp_path,))
    model = model_zoo.get("small.py", device="cpu")
    assert model.proposal_generator.head.cls_logits.out_channels == 3 and model.training


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoints_are_linked_and_not_shipped(name: str) -> None:
    assert URLS[name] is None
    message = rf"the checkpoint of {name} has to be downloaded by hand from https://github.com/aim-uofa/AdelaiDet\S+ "
    for call in (model_zoo.get_checkpoint_url, lambda name: model_zoo.get(name, trained=True)):
        with pytest.raises(ValueError, match=message + r"\(licensed .*non-commercial use\): give its path as"):
            call(name)
    assert name in (ROOT / "MODEL_ZOO.md").read_text()


def test_a_name_gives_a_model(web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = model_zoo.get("quick/tiny", device="cpu")
    assert model.training and not model.proposal_generator.mask_encoder.is_fitted
    path = publish(tmp_path, web)
    with serve(web) as url:
        monkeypatch.setitem(URLS, "quick/tiny", f"{url}/{path.name}")
        assert f"{url}/{path.name}" == model_zoo.get_config("quick/tiny", trained=True).MODEL.WEIGHTS
        assert same_weights(model_zoo.get("quick/tiny", trained=True), tiny_model().state_dict())


def test_a_published_file_is_a_model_by_path_and_by_url(web: Path, tmp_path: Path) -> None:
    path = publish(tmp_path, web)
    expected = tiny_model().state_dict()
    with serve(web) as url:
        for source in (path, str(path), f"{url}/{path.name}"):
            model = model_zoo.get(source)
            assert not model.training and same_weights(model, expected)
            assert model_zoo.get_info(source)["class_names"][0] == "ring"
    assert not same_weights(model_zoo.get(path, trained=False), expected)


def damage(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


def test_a_damaged_file_is_refused(web: Path, tmp_path: Path) -> None:
    path = damage(publish(tmp_path, web))
    with pytest.raises(ValueError, match="is refused: .*Bad CRC-32"):
        model_zoo.get(path)
    with serve(web) as url, pytest.raises(ValueError, match="the download was deleted, try again"):
        model_zoo.get(f"{url}/{path.name}")
    assert path.is_file() and not list((tmp_path / "cache").rglob("*.pth"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.zeros(1)}, "carries no config, and there is no config.yaml beside it: give --config-file, or pub"),
        ({"model": {}, "meinst": {"config": "A: ["}}, "the config in .* does not fit this version"),
        ({"model": {}, "meinst": {"config": "MODEL: {NEW: 1}"}}, "the config in .* does not fit .*: .*NEW"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message):
        model_zoo.get(tmp_path / "w.pth")


def test_a_file_makes_no_other_file_be_opened(tmp_path: Path) -> None:
    components = write_components(tmp_path / "c.npz", dim=8)
    cfg = tiny_cfg("MODEL.MEINST.COMPONENTS", str(components), "MODEL.WEIGHTS", "/etc/passwd")
    torch.save({"model": tiny_model().state_dict(), "meinst": {"config": cfg.dump()}}, tmp_path / "w.pth")
    assert not model_zoo.get(tmp_path / "w.pth", trained=False).proposal_generator.mask_encoder.is_fitted
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        model_zoo.get("nowhere.pth")
