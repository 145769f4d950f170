"""The importer as a whole, on a small model, and what it refuses."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from meinst_d2.config_file import read_plain_yaml
from meinst_d2.data.shapes import ShapesConfig, generate
from meinst_d2.encoding import load_components
from meinst_d2.model_zoo import load_trained
from meinst_d2.model_zoo.adelaidet import import_checkpoint
from meinst_d2.model_zoo.adelaidet.config import translate_config
from meinst_d2.model_zoo.zoo import config_from_text
from tests.models import build_from, write_components
from tests.published_configs import write_published_config

SMALL: dict[str, Any] = {
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.MEInst.NUM_CLASSES": 6,
    "MODEL.MEInst.DIM_MASK": 8,
    "MODEL.MEInst.PRIOR_PROB": 0.3,
    **{f"MODEL.MEInst.NUM_{tower}_CONVS": 1 for tower in ("CLS", "BOX", "MASK")},
    "DATASETS.TRAIN": ["shapes_train"],
    "DATASETS.TEST": ["shapes_val"],
    "INPUT.MIN_SIZE_TEST": 160,  # less, and p7 would be too small for 32 groups of 1 channel
    "OUTPUT_DIR": "evaluated",
}
PREFIX = "proposal_generator."
ENCODING = PREFIX + "mask_encoding."


def write_config(folder: Path, overrides: Mapping[str, Any] = {}) -> Path:
    return write_published_config(folder, "MEInst_R_50_1x.yaml", SMALL | dict(overrides))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Under the published names."""
    folder = tmp_path_factory.mktemp("small")
    translation = translate_config(read_plain_yaml(write_config(folder)))
    (folder / "ours.yaml").write_text(yaml.safe_dump(translation.keys))
    components = write_components(folder / "c.npz")
    torch.manual_seed(0)
    model = build_from(folder / "ours.yaml", "MODEL.MEINST.COMPONENTS", str(components))
    return {
        name.replace("head.centerness", "head.ctrness")
        .replace(PREFIX + "head.", PREFIX + "MEInst_head.")
        .replace("mask_encoder.", "mask_encoding."): value
        for name, value in model.state_dict().items()
    }


def without_components(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights.items() if not name.startswith(ENCODING)}


def save(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "theirs.pth")
    return folder / "theirs.pth"


@pytest.mark.parametrize("form", ["bare", "whole", "distributed", "with pixel statistics"])
def test_config_and_weights_are_written(tmp_path: Path, weights: dict[str, torch.Tensor], form: str) -> None:
    theirs = {
        "bare": weights,
        "whole": {"model": weights, "optimizer": {"state": {}}, "iteration": 89999},
        "distributed": {"model": {f"module.{name}": value for name, value in weights.items()}},
        "with pixel statistics": {**weights, "pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)},
    }[form]
    import_checkpoint(write_config(tmp_path), save(tmp_path, theirs), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.yaml", "model.pth"]
    content = torch.load(tmp_path / "out/model.pth", weights_only=True)
    assert content["meinst"]["class_names"] == ["ring", "star", "crescent", "bar", "cut", "blob"]
    model = build_from(tmp_path / "out/config.yaml", "MODEL.WEIGHTS", str(tmp_path / "out/model.pth"))
    state = model.state_dict()
    assert set(content["model"]) == set(state)
    for ours, theirs_name in (
        ("head.centerness.weight", "MEInst_head.ctrness.weight"),
        ("mask_encoder.means", "mask_encoding.means"),
        ("head.mask_tower.0.conv.weight", "MEInst_head.mask_tower.0.conv.weight"),
    ):
        assert torch.equal(state[PREFIX + ours], weights[PREFIX + theirs_name])


def test_the_commands_import_and_evaluate(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    def run(*command: str) -> str:
        environment = os.environ | {"DETECTRON2_DATASETS": "data"}
        done = subprocess.run(
            [sys.executable, "-m", "meinst_d2.commands", *command],
            **{"cwd": tmp_path, "env": environment, "capture_output": True, "text": True},
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    write_config(tmp_path)
    save(tmp_path, weights)
    generate(tmp_path / "data/shapes", {"train": 0, "val": 2}, ShapesConfig(height=96, width=96, max_side=60))
    files = ("--config", "theirs.yaml", "--weights", "theirs.pth", "--output", "ours")
    printed = run("import", *files)
    assert "dropped" not in printed and "wrote ours/config.yaml and ours/model.pth" in printed
    files = ("--config-file", "ours/config.yaml", "--eval-only", "MODEL.WEIGHTS", "ours/model.pth")
    printed = run("train", *files)
    assert "not found in the checkpoint" not in printed and "not used by the model" not in printed
    assert "Task: segm" in printed
    assert (tmp_path / "evaluated/inference/coco_instances_results.json").stat().st_size > 1000


def test_all_files_load_the_same(
    tmp_path: Path, weights: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    import_checkpoint(write_config(tmp_path), save(tmp_path, weights), tmp_path, safetensors=True)
    states = [
        build_from(tmp_path / "config.yaml", "MODEL.WEIGHTS", str(tmp_path / name)).state_dict()
        for name in ("theirs.pth", "model.pth", "model.safetensors")
    ]
    assert all(torch.equal(value, state[name]) for state in states[1:] for name, value in states[0].items())
    assert "not found" not in caplog.text and "not used" not in caplog.text and "Skip" not in caplog.text
    for name in ("model.pth", "model.safetensors"):  # which say what they are
        trained = load_trained(weights=str(tmp_path / name), device="cpu")
        assert trained.class_names == ["ring", "star", "crescent", "bar", "cut", "blob"]
        assert all(torch.equal(value, states[0][key]) for key, value in trained.model.state_dict().items())


def test_components_of_a_file_fill_weights_that_lack_them(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    config = write_config(tmp_path)
    file = write_components(tmp_path / "c.npz")
    expected = load_components(file).basis
    zeros = {name: torch.zeros_like(value) if ENCODING in name else value for name, value in weights.items()}
    for incomplete in (zeros, without_components(weights)):
        path = save(tmp_path, incomplete)
        with pytest.raises(ValueError, match="theirs.pth carries no mask components .*: add --components FILE"):
            import_checkpoint(config, path, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        import_checkpoint(config, path, tmp_path / "filled", components=str(file))
        state = torch.load(tmp_path / "filled/model.pth", weights_only=True)["model"]
        np.testing.assert_array_equal(state[PREFIX + "mask_encoder.components"], expected.components)
        np.testing.assert_array_equal(state[PREFIX + "mask_encoder.explained_variances"], expected.explained_variance)


def test_components_that_do_not_belong_are_refused(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    config, path = write_config(tmp_path), save(tmp_path, without_components(weights))
    for kwargs, message in (
        ({"dim": 9}, "have D = 9, the config needs 8"),
        ({"mask_size": 14}, "have S = 14, the config needs 28"),
        ({"sigmoid": False}, "have sigmoid = False, the config needs True"),
    ):
        with pytest.raises(ValueError, match=message):
            import_checkpoint(
                config, path, tmp_path / "out", components=str(write_components(tmp_path / "c", **kwargs))
            )
    good = write_components(tmp_path / "c.npz")
    import_checkpoint(config, save(tmp_path, weights), tmp_path / "same", components=str(good))
    others = {name: value + 1 if name == ENCODING + "means" else value for name, value in weights.items()}
    with pytest.raises(ValueError, match="carries other components than .*c.npz: leave out --components"):
        import_checkpoint(config, save(tmp_path, others), tmp_path / "out", components=str(good))
    with pytest.raises(FileNotFoundError, match="no components at nowhere.npz"):
        import_checkpoint(config, path, tmp_path / "out", components="nowhere.npz")
    assert not (tmp_path / "out").exists()


def test_tensors_that_do_not_belong_are_listed(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    wrong = dict(weights)
    del wrong[PREFIX + "MEInst_head.ctrness.bias"]
    wrong["head.extra"] = torch.zeros(1)
    wrong["backbone.fpn_lateral3.weight"] = torch.zeros(32, 7, 1, 1)
    with pytest.raises(ValueError) as error:
        import_checkpoint(write_config(tmp_path), save(tmp_path, wrong), tmp_path / "out")
    assert str(error.value).splitlines()[1:] == [
        "  missing proposal_generator.head.centerness.bias",
        "  unexpected head.extra",
        "  backbone.fpn_lateral3.weight has shape (32, 7, 1, 1) instead of (32, 128, 1, 1)",
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"MODEL.MEInst.FPN_STRIDES": [4, 8, 16, 32, 64]}, r"FPN_STRIDES \[4, 8, 16, 32, 64\] has no counterpart"),
        ({"MODEL.FCOS.TOP_LEVELS": 1}, "asks for p7, the backbone"),
        ({"MODEL.RESNETS.DEPTH": 19}, "the config cannot be built: KeyError 19"),
        ({"MODEL.MEInst.DIM_MASK": 9}, r"mask_encoder.components has shape \(8, 784\) instead of \(9, 784\)"),
    ],
)
def test_configs_that_do_not_belong_to_the_weights(
    tmp_path: Path, weights: dict[str, torch.Tensor], overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        import_checkpoint(write_config(tmp_path, overrides), save(tmp_path, weights), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk(tmp_path: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, *_: Any, **__: Any) -> None:
        raise OSError("disk full")

    config, path = write_config(tmp_path), save(tmp_path, weights)
    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        import_checkpoint(config, path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_large_backbone_is_detectron2s(tmp_path: Path) -> None:
    """X-101-32x8d as Detectron2's own configs have it; the imported config keeps every key of it."""
    overrides = {
        "MODEL.RESNETS.DEPTH": 101,
        "MODEL.RESNETS.NUM_GROUPS": 32,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],
    }
    path = write_published_config(tmp_path, "MEInst_R_50_1x.yaml", overrides)
    cfg = config_from_text(yaml.safe_dump(translate_config(read_plain_yaml(path)).keys))
    resnets = cfg.MODEL.RESNETS
    assert (resnets.DEPTH, resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP, resnets.STRIDE_IN_1X1) == (101, 32, 8, False)
    assert cfg.MODEL.PIXEL_STD == [57.375, 57.12, 58.395]
