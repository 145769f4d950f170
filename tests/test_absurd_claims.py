"""A file that claims to hold far more than it is long is refused before room is made for it."""

import json
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import get_cfg

from meinst_d2.checkpoint.readers import read_checkpoint
from meinst_d2.config_file import merge_config_file, read_plain_yaml
from meinst_d2.encoding import load_components
from tests.models import write_components

MOST_MEMORY = 200e6
"""Bytes that refusing a file may take."""
CLAIMED = 25 * 10**9
"""Numbers of 4 bytes: 100 GB."""


def npz_with(path: Path, number: int, parts: list[bytes], compression: int) -> None:
    """Components whose array says that it has 60 times so many numbers, and has these bytes."""
    arrays = dict(np.load(write_components(path)))
    save = np.savez_compressed if compression else np.savez
    save(path, **{name: array for name, array in arrays.items() if name != "components_c"})
    archive = zipfile.ZipFile(path, "a", compression, compresslevel=1)
    with archive, archive.open("components_c.npy", "w") as member:
        header = {"descr": "<f4", "fortran_order": False, "shape": (1, 60, number)}
        np.lib.format.write_array_header_1_0(member, header)
        member.writelines(parts)


def claiming_npz(path: Path) -> None:
    npz_with(path, CLAIMED // 60, [bytes(64)], zipfile.ZIP_STORED)


def deflated_npz(path: Path) -> None:
    npz_with(path, 784 * 1600, [bytes(10**6)] * 301, zipfile.ZIP_DEFLATED)


def claiming(content: bytes) -> bytes:
    return content.replace(b"M\xe8\x03", b"\x8a\x05" + CLAIMED.to_bytes(5, "little"))


def claiming_archive(path: Path) -> None:
    """A .pth whose pickle speaks of more elements than its storage has."""
    torch.save({"model": {"a": torch.zeros(1000)}}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, claiming(part) if name.endswith("data.pkl") else part)


def claiming_legacy(path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1000)}}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(claiming(path.read_bytes()))


def claiming_pickle(path: Path) -> None:
    path.write_bytes(claiming(pickle.dumps({"model": {"a": np.zeros(1000, np.float32)}}, 2)))


def claiming_safetensors(path: Path) -> None:
    about = json.dumps({"a": {"dtype": "F32", "shape": [CLAIMED], "data_offsets": [0, 4 * CLAIMED]}}).encode()
    path.write_bytes(len(about).to_bytes(8, "little") + about + bytes(64))


def yaml_of_aliases(path: Path) -> None:
    """Forty lines that stand for a million million values."""
    lines = [f"A{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 41)]
    path.write_text("\n".join(["A0: &a0 [x]", *lines]))


def test_the_bomb_of_aliases_is_what_it_seems(tmp_path: Path) -> None:
    """Twenty of its forty lines stand for a million values already."""
    yaml_of_aliases(tmp_path / "c.yaml")
    content = yaml.safe_load((tmp_path / "c.yaml").read_text())
    counts = {id(content["A0"]): 1}
    for i in range(1, 21):
        counts[id(content[f"A{i}"])] = sum(counts[id(part)] for part in content[f"A{i}"])
    assert counts[id(content["A20"])] == 2**20


LARGE_MEMO = b"\x80\x02}r\xff\xff\xff\x7f"
LONG_TEXT = b"\x80\x04\x8e" + (4 * CLAIMED).to_bytes(8, "little") + b"text"
LONG_HEADER = (4 * CLAIMED).to_bytes(8, "little") + b"{}"
BOMBS: list[tuple[str, Callable[[Path], None] | bytes, Callable[[Path], Any], str]] = [
    ("c.npz", claiming_npz, load_components, "components_c should be .* but has 64 bytes"),
    ("c.npz", deflated_npz, load_components, "components_c would grow from"),
    ("w.pth", claiming_archive, read_checkpoint, "it claims tensors of 100,000,000,000 bytes"),
    ("w.pth", claiming_legacy, read_checkpoint, "it claims tensors of 100,000,000,000 bytes"),
    ("w.pkl", claiming_pickle, read_checkpoint, r"it has an array of float32 of shape \(25000000000,\) in 4,000 bytes"),
    ("w.pkl", LARGE_MEMO, read_checkpoint, "is refused"),
    ("w.pkl", LONG_TEXT, read_checkpoint, "is refused"),
    ("w.pth", LONG_TEXT, read_checkpoint, "is refused"),
    ("w.safetensors", claiming_safetensors, read_checkpoint, "w.safetensors is refused"),
    ("w.safetensors", LONG_HEADER, read_checkpoint, "w.safetensors is refused"),
    ("c.yaml", yaml_of_aliases, lambda path: merge_config_file(get_cfg(), path), "it has more than 16 aliases"),
    ("c.yaml", yaml_of_aliases, read_plain_yaml, "it has more than 16 aliases"),
]


def peak_memory() -> float:
    """Bytes that this process has had in memory at most since the last reset."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024.0 * int(lines["VmHWM"].split()[0])


@pytest.mark.parametrize(("name", "make", "read", "message"), BOMBS)
def test_no_room_is_made_for_claims(
    tmp_path: Path, name: str, make: Callable[[Path], None] | bytes, read: Callable[[Path], Any], message: str
) -> None:
    make(tmp_path / name) if callable(make) else (tmp_path / name).write_bytes(make)
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        pytest.skip("only Linux says how much memory a process has had")
    try:
        reset.write_text("5")
    except OSError:
        pytest.skip("the peak of this process' memory cannot be reset")
    before = peak_memory()
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, SystemExit), match=message):
            read(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()
    assert peak_memory() - before < MOST_MEMORY
