"""The benchmarks: turns, ratios, tables, JSON, and that every command compares what is equal."""

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from threadpoolctl import threadpool_limits

from benchmarks import fit, fit_growth, infer, models, targets
from benchmarks.annotations import write_json_of
from benchmarks.common import Goal, PeakMemory, Row, Side, add_common_arguments, alternate, print_table, write_json
from benchmarks.fit_memory import peak_memory
from benchmarks.source import find_source
from meinst_d2.data.coco import read_coco_json
from meinst_d2.data.shapes import ShapesConfig, generate
from tests.conftest import ROOT


def test_sides_take_turns_and_ratios_are_taken_round_by_round(tmp_path: Path) -> None:
    calls = []
    sides = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, at_least=0)
    assert calls == ["a", "a", "b", "b", *"ababab"]  # the first two of each are the warm-up and the estimate
    assert [len(side.samples) for side in sides.values()] == [3, 3]
    row = Row("x", Side("new", [1.0, 2.0, 4.0]), Side("old", [10.0, 10.0, 12.0]))
    assert row.ratios == [10, 5, 3] and row.ratio == 5
    with PeakMemory() as peak:
        np.ones(25_000_000)
    assert 190 < peak.megabytes < 300
    with pytest.raises(FileNotFoundError, match="give --data a folder with coco/"):
        find_source(tmp_path)


def test_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        Row("x", Side("new", [1.0, 2.0, 3.0]), Side("old", [10.0, 10.0, 12.0]), "s", Goal(">= 9x", False), {"n": 3}),
        Row("alone", Side("new", [7.0])),
    ]
    print_table("title", rows)
    printed = capsys.readouterr().out
    assert "| new 2 s (1 to 3) | old 10 s (10 to 12) | 5 (4 to 10) | >= 9x: NO |" in printed
    assert "x: n 3" in printed and "new 7 ms" in printed
    write_json(tmp_path / "a.json", {"cpu": "any"}, {"title": rows})
    first, second = json.loads((tmp_path / "a.json").read_text())["tables"]["title"]
    assert first["ratio"] == 5 and first["ours"] == {"name": "new", "median": 2, "samples": [1, 2, 3]}
    assert first["goal"] == {"text": ">= 9x", "met": False} and second["ratio"] is None and "baseline" not in second


def test_help_does_not_import_torch() -> None:
    command = [sys.executable, "-X", "importtime", "dev/benchmark.py", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "examples:" in result.stdout
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "benchmarks.common" in imported and "torch" not in imported


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few generated images in the layout of the real ones."""
    root = tmp_path_factory.mktemp("data")
    generate(root, {"val": 5}, ShapesConfig(height=96, width=128, min_side=8, max_side=90))
    (root / "coco").mkdir()
    (root / "val").rename(root / "coco/val2017")
    (root / "annotations").rename(root / "coco/annotations")
    (root / "coco/annotations/instances_val.json").rename(root / "coco/annotations/instances_val2017.json")
    return root


def measure(command: str, data: Path, *options: str) -> list[Row]:
    module = importlib.import_module(f"benchmarks.{command}")
    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
    module.add_arguments(parser)
    return module.run(parser.parse_args(["--data", str(data), "--rounds", "1", *options]))


@pytest.fixture
def few_components(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import detections

    monkeypatch.setattr(detections, "DIM", 4)  # a few objects have no more


def test_reading_takes_less_time_and_memory_than_parsing(data: Path) -> None:
    time, memory = measure("read", data, "--objects", "2000")
    assert time.baseline is not None and time.ratio > 1 and time.goal is not None
    assert memory.unit == "x" and memory.ours.samples[0] < 20  # of a small file


def test_paste(data: Path, few_components: None) -> None:
    paste, _, templates, masks = measure("paste", data, "--detections", "7", "--sizes", "50x60")
    assert paste.what == "paste 7 detections, 50 x 60"
    assert paste.notes["pixels that differ"] == "0 of 21,000"
    assert templates.notes["encodings that differ"] == masks.notes["encodings that differ"] == 0
    with pytest.raises(ValueError, match="--sizes 50: give HEIGHTxWIDTH"):
        measure("paste", data, "--sizes", "50")


def test_eval(data: Path, few_components: None) -> None:
    for row in measure("eval", data, "--images", "4", "--detections", "12"):
        assert row.notes["largest difference of a metric"] <= 1e-9
        assert row.notes["encodings that differ"].startswith("0 of ")
        assert 10 < row.notes["mask AP"] < 100


@pytest.fixture
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "CONFIG", "quick/tiny.yaml")


def test_infer(data: Path, small_model: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infer, "_memory_row", lambda args: Row("memory", Side("", [0.0])))
    rows = measure("infer", data, "--short-edge", "96", "--detections", "20", "--no-baselines")
    assert [row.baseline and row.baseline.name for row in rows] == [
        "MEInst, MASK_ON False",
        "MEInst, refined",
        "MEInst, deformable",
        "MEInst, bfloat16",
        "MEInst, CHANNELS_LAST never",
        "up to the head",
        "one by one",
        None,
    ]
    assert rows[2].notes == {"detections of MEInst and MEInst, deformable": "20 and 20"}
    assert rows[5].what.endswith("20 detections")


def test_random_weights_behave_like_trained_ones(data: Path) -> None:
    """Without the statistics of batch norms, RetinaNet and FCOS find nothing and Mask R-CNN next to nothing."""
    args = argparse.Namespace(data=data, batch=1, short_edge=96, detections=20, device="cpu")
    images, _ = infer.input_images(args)
    for name in models.DETECTRON2:
        model = infer.prepared(models.detectron2_model(name, args, images), images, args)
        with torch.no_grad():
            assert 5 < len(model(images)[0]["instances"]) <= 20, name


def test_growth(data: Path, few_components: None, small_model: None, tmp_path: Path) -> None:
    plot = tmp_path / "growth.png"
    sizes = ["--short-edges", "64", "96", "--objects", "1", "3", "--dims", "4", "8", "--mask-sizes", "7", "14"]
    rows = measure("growth", data, *sizes, "--plot", str(plot))
    assert len(rows) == 2 * (3 + 5 + 3 + 5) and Image.open(plot).width > 1000
    assert [row.what for row in rows[:3]] == [
        "network at 64",
        "select, suppress, decode, paste at 64",
        "the network's FLOPs (limit) at 64",
    ]
    assert all(row.ours.samples[0] > 0 for row in rows)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    generate(root / "shapes", {"val": 30}, workers=2)
    annotations = root / "coco/annotations"
    annotations.mkdir(parents=True)
    (root / "shapes/annotations/instances_val.json").rename(annotations / "instances_val2017.json")
    return root


@pytest.fixture
def args(objects: Path) -> Iterator[argparse.Namespace]:
    options = {"rounds": 1, "masks": 700, "mask_size": 28, "dim": 20, "workers": 2, "threads": 1, "batches": 2}
    with threadpool_limits(1):
        yield argparse.Namespace(data=objects, **options, batch_size=2, size=320, max_size=500)


def test_fit_compares_equal_things(args: argparse.Namespace) -> None:
    polygons = fit.read_polygons(args.data)
    raster = fit.rasterising(polygons, args)
    assert raster.notes == {"bits that differ": 0}
    for row in fit.cropping_rles(polygons, args):
        differing, total = (
            int(n.replace(",", "")) for n in row.notes["bits that differ"].split(", on")[0].split(" of ")
        )
        assert differing <= 1e-5 * total + 1
    errors = fit.against_incremental_pca(polygons, args).notes
    assert float(errors["mean squared error, ours"]) <= float(errors["mean squared error, IncrementalPCA"])


def test_files_of_any_length_and_their_fit(args: argparse.Namespace, tmp_path: Path) -> None:
    file = tmp_path / "many.json"
    write_json_of(args.data, args.masks, file)
    polygons = fit.read_polygons(args.data)
    found = read_coco_json(file)
    assert len(found) == args.masks > len(polygons)
    assert {a.box for a in found} == {a.box for a in polygons}
    one, two = fit.end_to_end(file, args)
    assert (
        one.unit == fit.measuring(file, args).unit == "us" and one.goal is not None and two.what.startswith("2 workers")
    )


def test_memory_is_that_of_the_process_and_its_children() -> None:
    alone = peak_memory("import time; kept = bytearray(50_000_000); time.sleep(0.3)")
    forked = "import os, time\nif os.fork():\n os.wait()\nelse:\n kept = bytearray(50_000_000); time.sleep(0.3)"
    assert alone == pytest.approx(60, abs=15) and peak_memory(forked) == pytest.approx(60, abs=15)
    with pytest.raises(OSError, match="exit code 3"):
        peak_memory("raise SystemExit(3)")


def test_targets_are_the_same_and_growth_is_drawn(args: argparse.Namespace, tmp_path: Path) -> None:
    masks, _, assignment = targets.run(args)
    assert float(masks.notes["largest difference of a coefficient"]) < 1e-4
    assert " 0 different" in assignment.notes["positive locations"]
    args.counts, args.mask_sizes, args.dims, args.plot = (300, 700), (7, 14), (10, 20), tmp_path / "growth.png"
    rows = fit_growth.run(args)
    assert len(rows) == 4 * 2 + 3 * 2 + 2 * 2
    assert Image.open(args.plot).width > 1000
