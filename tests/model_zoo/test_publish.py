"""Publishing a run; that its file loads elsewhere is tested in tests/model_zoo."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from meinst_d2.checkpoint.checkpointer import CheckpointInfo, MEInstCheckpointer
from meinst_d2.commands.publish import main
from meinst_d2.model_zoo.publish import metrics_of, publish_run
from meinst_d2.model_zoo.trained import build
from tests.models import load_cfg, tiny_cfg, tiny_model


def write_run(folder: Path, *overrides: Any, name: str = "model_final") -> Path:
    """What a training of two iterations would leave."""
    run = folder / "run"
    run.mkdir()
    private = ("OUTPUT_DIR", str(run), "MODEL.MEINST.COMPONENTS", "/home/me/c.npz", "MODEL.WEIGHTS", "/home/me/w.pth")
    private += ("MODEL.TIMM.CHECKPOINT", "/home/me/timm.pth")
    cfg = tiny_cfg(*private, *overrides)
    (run / "config.yaml").write_text(cfg.dump())
    model = tiny_model()
    info = CheckpointInfo.from_config(cfg)
    info.content["class_names"] = ["ring", "star", "crescent", "bar", "cut", "blob"]
    optimizer = torch.optim.AdamW(model.parameters())
    MEInstCheckpointer(model, str(run), meinst=info, optimizer=optimizer).save(name, iteration=1)
    rows = [{"iteration": 0, "bbox/AP": 1.0, "segm/AP": 2.0}, {"iteration": 1, "total_loss": 3.0}]
    rows.append({"iteration": 1, "bbox/AP": 10.0, "bbox/AP-ring": math.nan, "segm/AP": 20.06, "segm/AP50": 30.0})
    rows.append({"iteration": 1, "eta_seconds": 0.0})
    (run / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


@pytest.mark.parametrize("checkpoint", ["model_final", "model_0000001"])
def test_the_file_holds_all_that_is_needed_and_no_more(tmp_path: Path, checkpoint: str) -> None:
    run = write_run(tmp_path, name=checkpoint)
    path, row, _ = publish_run(run, tmp_path / "out", "tiny")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f"tiny-{digest[:8]}.pth"
    content = torch.load(path, weights_only=True)
    assert set(content) == {"model", "meinst"}
    trained = torch.load(run / f"{checkpoint}.pth", weights_only=True)["model"]
    assert all(torch.equal(value, trained[name]) for name, value in content["model"].items())
    assert set(content["model"]) == set(trained)

    about = content["meinst"]
    assert about["class_names"] == ["ring", "star", "crescent", "bar", "cut", "blob"]
    assert about["metrics"] == {"bbox/AP": 10.0, "segm/AP": 20.06, "segm/AP50": 30.0}
    assert (about["name"], about["iteration"], about["encoder"]) == ("tiny", 1, "PCAEncoder")
    assert set(about["versions"]) == {"meinst_d2", "python", "torch", "torchvision", "detectron2"}
    assert (
        "DIM_MASK: 8" in about["config"] and "/home/me" not in about["config"] and str(tmp_path) not in about["config"]
    )
    size = path.stat().st_size / 1e6
    assert row == f"| tiny | shapes_train | 2 | 10.0 | 20.1 | `{path.name}`, {size:.1f} MB |"
    weights = sum(value.numel() * value.element_size() for value in trained.values())
    assert path.stat().st_size < weights * 1.1


def test_the_best_weights_are_published_unless_others_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path)
    best = tiny_model(seed=5)
    MEInstCheckpointer(best, str(run)).save_weights("model_best", best, iteration=0, best=2.0)
    for flags, weights, columns in (
        ((), "model_best", "1 | 1.0 | 2.0"),
        (("--weights", "model_final.pth"), "model_final", "2 | 10.0 | 20.1"),
    ):
        main([str(run), "--output", str(tmp_path / "out"), "--name", "tiny", *flags])
        (path,) = (tmp_path / "out").glob("*.pth")
        wrote, row = capsys.readouterr().out.splitlines()
        assert wrote == f"wrote {path} with the weights of {run}/{weights}.pth"
        assert row.startswith(f"| tiny | shapes_train | {columns} | ")
        content = torch.load(path, weights_only=True)
        expected = torch.load(run / f"{weights}.pth", weights_only=True)["model"]
        assert all(torch.equal(value, expected[name]) for name, value in content["model"].items())
        path.unlink()
    with pytest.raises(FileNotFoundError, match="the file of weights .*run/absent.pth does not exist"):
        publish_run(run, tmp_path / "out", "tiny", "absent.pth")


def test_the_same_run_gives_the_same_file(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    first = publish_run(run, tmp_path / "a", "tiny")[0]
    second = publish_run(run, tmp_path / "b", "tiny")[0]
    assert first.name == second.name and first.read_bytes() == second.read_bytes()
    (run / "metrics.json").unlink()
    assert publish_run(run, tmp_path, "tiny")[1].startswith("| tiny | shapes_train | 2 | - | - |")
    (tmp_path / "m.json").write_text('{"a/bbox/AP": 1.0, "b/segm/AP": 2.0, "iteration": 3, "lr": 0.1}\n')
    for iteration in (None, 3, 2):
        assert metrics_of(tmp_path / "m.json", iteration) == {"a/bbox/AP": 1.0, "b/segm/AP": 2.0}
    for iteration in (1, 4):
        assert metrics_of(tmp_path / "m.json", iteration) == {}


def test_what_cannot_be_published_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere/config.yaml does not exist: name the OUTPUT_DIR"):
        publish_run(tmp_path / "nowhere", tmp_path / "out", "tiny")
    run = write_run(tmp_path)
    for name in ("a/b", "", "a|b"):
        with pytest.raises(ValueError, match="cannot name a file"):
            publish_run(run, tmp_path / "out", name)
    (run / "config.yaml").write_text("MODEL: {MEINST: {NEW_KEY: 1}}")
    with pytest.raises(ValueError, match="does not fit this version of meinst_d2: .*NEW_KEY"):
        publish_run(run, tmp_path / "out", "tiny")
    assert not (tmp_path / "out").exists()


def test_checking_the_tensors_of_a_timm_model_reads_none_of_its_first_weights() -> None:
    cfg = load_cfg("real/nuclei.yaml", "MODEL.TIMM.CHECKPOINT", "/home/me/timm.pth")
    assert build(cfg, "meta").backbone.bottom_up.net is not None
    with pytest.raises(FileNotFoundError):
        build(cfg, "cpu")
