"""The benchmarks of fitting and of targets on a few generated images: what they compare is equal."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from threadpoolctl import threadpool_limits

from benchmarks import fit, fit_growth, targets
from benchmarks.annotations import write_json_of
from benchmarks.fit_memory import peak_memory
from meinst_d2.data.coco import read_coco_json
from meinst_d2.data.shapes import generate


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    generate(root / "shapes", {"val": 30}, workers=2)
    annotations = root / "coco/annotations"
    annotations.mkdir(parents=True)
    (root / "shapes/annotations/instances_val.json").rename(annotations / "instances_val2017.json")
    return root


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


@pytest.fixture
def args(data: Path) -> argparse.Namespace:
    options = {"rounds": 1, "masks": 700, "mask_size": 28, "dim": 20, "workers": 2, "threads": 1, "batches": 2}
    return argparse.Namespace(data=data, **options, batch_size=2, size=320, max_size=500)


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
