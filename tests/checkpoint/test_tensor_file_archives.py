"""Files that hold two archives, of which Python's zipfile finds a modest one and torch another."""

import io
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from meinst_d2.checkpoint.readers import load_tensor_file
from meinst_d2.checkpoint.tensor_file import require_modest_file


class Parts(NamedTuple):
    members: bytes
    directory: bytes

    def moved(self, by: int) -> bytes:
        """The directory once there are so many bytes before the members."""
        moved, at = bytearray(self.directory), 0
        while at < len(moved):
            struct.pack_into("<I", moved, at + 42, struct.unpack_from("<I", moved, at + 42)[0] + by)
            at += 46 + sum(struct.unpack_from("<HHH", moved, at + 28))
        return bytes(moved)


def parts_of(content: object, compression: int) -> Parts:
    saved, file = io.BytesIO(), io.BytesIO()
    torch.save(content, saved)
    with zipfile.ZipFile(saved) as archive, zipfile.ZipFile(file, "w", compression) as copy:
        for name in archive.namelist():
            copy.writestr(name, archive.read(name))
    data = file.getvalue()
    size, start = struct.unpack_from("<II", data, data.rindex(b"PK\x05\x06") + 12)
    return Parts(data[:start], data[start : start + size])


def end(start: int, size: int, count: int) -> bytes:
    return struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count, count, size, start, 0)


def end64(start: int, size: int, count: int) -> bytes:
    return struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, count, count, size, start)


def locator(at: int) -> bytes:
    return struct.pack("<IIQI", 0x07064B50, 0, at, 1)


@pytest.fixture(scope="module")
def modest() -> Parts:
    return parts_of({"a": torch.zeros(4)}, zipfile.ZIP_STORED)


@pytest.fixture(scope="module")
def packed() -> Parts:
    return parts_of({"a": torch.zeros(10**6)}, zipfile.ZIP_DEFLATED)


def assert_refused(path: Path, content: bytes, reason: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        require_modest_file(path)


def count(parts: Parts) -> int:
    return parts.directory.count(b"PK\x01\x02")


def test_one_archive_is_read_with_and_without_a_64_bit_end(tmp_path: Path, modest: Parts) -> None:
    start, size = len(modest.members), len(modest.directory)
    list_of_parts = start, size, count(modest)
    both = end64(*list_of_parts) + locator(start + size) + end(*list_of_parts)
    for name, ending in (("old", end(*list_of_parts)), ("new", both)):
        (tmp_path / name).write_bytes(modest.members + modest.directory + ending)
        assert load_tensor_file(tmp_path / name)["a"].shape == (4,)


def test_an_archive_behind_another_is_refused(tmp_path: Path, modest: Parts, packed: Parts) -> None:
    assert len(packed.directory) == len(modest.directory)
    before = packed.members + packed.directory
    shift = len(packed.members) - len(modest.members)  # Python adds what the directory is further back than it says
    content = before + modest.members + modest.moved(shift)
    content += end(len(packed.members), len(packed.directory), count(packed))
    assert_refused(tmp_path / "w.pth", content, "its parts do not start where the file does")


def test_a_64_bit_end_elsewhere_is_refused(tmp_path: Path, modest: Parts, packed: Parts) -> None:
    content = modest.members + packed.members
    other_end = len(content) + len(packed.directory)
    content += packed.moved(len(modest.members)) + end64(len(content), len(packed.directory), count(packed))
    list_of_parts = len(content), len(modest.directory), count(modest)
    content += modest.directory + end64(*list_of_parts) + locator(other_end) + end(*list_of_parts)
    assert_refused(tmp_path / "w.pth", content, "its list of parts is not at the end")


def test_what_follows_the_end_is_refused(tmp_path: Path, modest: Parts) -> None:
    content = modest.members + modest.directory + end(len(modest.members), len(modest.directory), count(modest))
    assert_refused(tmp_path / "w.pth", content + b"x", "its list of parts is not at the end")


def test_a_comment_is_refused(tmp_path: Path, modest: Parts) -> None:
    content = modest.members + modest.directory + end(len(modest.members), len(modest.directory), count(modest))
    comment = b"a comment"
    content = content[:-2] + struct.pack("<H", len(comment)) + comment
    assert_refused(tmp_path / "w.pth", content, "its list of parts is not at the end")
