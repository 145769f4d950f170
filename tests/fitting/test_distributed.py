"""meinst fit in several processes, as torchrun starts them."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from meinst_d2.commands import fit as fit_command
from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.data.shapes import generate
from meinst_d2.fitting.distributed import Ranks, join_ranks
from tests.conftest import ROOT

OPTIONS = ["--dim", "10", "--workers", "1"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("shapes")
    generate(root, {"train": 40, "val": 10}, workers=2)
    return [str(root / f"annotations/instances_{split}.json") for split in ("train", "val")]


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}


def torchrun(ranks: int, script: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.run(
        [*command, str(script), *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120
    )


def start_rank(rank: int, size: int, port: int, script: Path, *arguments: str) -> subprocess.Popen:
    """One rank without torchrun, which ends the others when one of them is lost."""
    variables = environment(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    command = [sys.executable, str(script), *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=variables, stdout=-1, stderr=-1, text=True)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def patched(path: Path, patches: str) -> Path:
    """meinst fit with something that happens to one of its ranks."""
    path.write_text(
        "import os, signal, sys, time\nimport numpy as np\nfrom meinst_d2.commands import fit\n"
        "def lost(*args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)\n"
        "def hang(*args, **kwargs): time.sleep(100)\n"
        f"rank = int(os.environ['RANK'])\n{patches}\nfit.main(sys.argv[1:])\n"
    )
    return path


@pytest.mark.parametrize(("ranks", "more"), [(1, []), (2, ["--class-specific", "--min-masks", "30"]), (3, [])])
def test_any_number_of_ranks_writes_the_same_bytes(
    shapes: list[str], tmp_path: Path, ranks: int, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    # Three ranks share two files' annotations, fewer take a file each.
    fit_command.main(["--coco-json", *shapes, *OPTIONS, *more, "--output", str(tmp_path / "alone/c.npz")])
    printed = capsys.readouterr().out
    arguments = ["--coco-json", *shapes, *OPTIONS, *more, "--output", str(tmp_path / "ranks/c.npz")]
    result = torchrun(ranks, ROOT / "fit_pca.py", *arguments)
    assert result.returncode == 0, result.stderr
    for name in ("c.npz", "c.png"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "ranks" / name).read_bytes()
    table = printed[printed.index("reconstruction") : printed.rindex("\nwrote")]
    assert result.stdout.count(table) == 1  # printed once, with the same figures


def test_a_rank_that_is_killed_ends_the_job_and_no_file_stays(shapes: list[str], tmp_path: Path) -> None:
    script = patched(
        tmp_path / "ranks.py",
        "def half(file, **arrays): file.write(b'half'); file.flush(); print('half', flush=True); time.sleep(100)\n"
        "if rank == 0: np.savez = half\n"
        "if rank == 1: fit.measure_encodings = lambda *_, **__: time.sleep(2) or lost()\n",
    )
    start = time.monotonic()
    result = torchrun(2, script, "--coco-json", *shapes, *OPTIONS, "--output", str(tmp_path / "out/c.npz"))
    assert result.returncode != 0 and "half" in result.stdout
    assert "meinst fit: rank 0 of 2 was stopped: another rank failed, or the job was cancelled" in result.stderr
    assert list((tmp_path / "out").iterdir()) == []
    assert time.monotonic() - start < 60


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ("if rank == 1: fit.count_moments = lost", "rank 0 of 2 lost the connection to another rank"),
        ("if rank == 1: fit.count_moments = hang", "rank 0 of 2 waited 2 s in vain for another rank"),
    ],
)
def test_a_lost_rank_of_another_machine(shapes: list[str], tmp_path: Path, patch: str, message: str) -> None:
    script, port = patched(tmp_path / "ranks.py", patch), free_port()
    arguments = ["--coco-json", *shapes, *OPTIONS, "--rank-timeout", "2", "--output", str(tmp_path / "out/c.npz")]
    first, second = (start_rank(rank, 2, port, script, *arguments) for rank in range(2))
    try:
        _, errors = first.communicate(timeout=60)
    finally:
        first.kill()
        second.kill()
        second.communicate()
    assert first.returncode == 1
    assert errors.strip().splitlines()[-1].startswith(f"meinst fit: {message}")
    assert not (tmp_path / "out").exists()


def test_a_rank_that_never_comes_is_a_sentence(shapes: list[str], tmp_path: Path) -> None:
    arguments = ["--coco-json", *shapes, *OPTIONS, "--rank-timeout", "1", "--output", str(tmp_path / "out/c.npz")]
    process = start_rank(0, 2, free_port(), ROOT / "fit_pca.py", *arguments)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.strip().splitlines()[-1].startswith("meinst fit: rank 0 of 2 did not meet the others within 1 s")


def test_nccl_needs_a_gpu_per_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "99"), ("WORLD_SIZE", "100"), ("LOCAL_RANK", "99")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="rank 99 has no GPU for nccl"), join_ranks(1, "nccl"):
        pass


def test_shares_are_disjoint_and_whole() -> None:
    items = [InstanceAnnotation(None, (0, 0, i, i), (9, 9), i, False) for i in range(10)]
    shares = [[a.category for a in Ranks(rank, 3).share(items)] for rank in range(3)]
    assert sorted(i for share in shares for i in share) == list(range(10)) and max(map(len, shares)) == 4
    assert Ranks().share(items) is items


def test_without_torchrun_this_process_is_alone() -> None:
    with join_ranks(1) as ranks:
        assert (ranks.rank, ranks.size) == (0, 1) and (ranks.sum(np.arange(3)) == [0, 1, 2]).all()
