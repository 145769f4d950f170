"""Writing files so that a reader never meets a half-written one."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
UNWRITTEN = re.compile("PytorchStreamWriter failed|unexpected pos|I/O error", re.IGNORECASE)
UNFINISHED = re.compile(r"\..+\.[a-z0-9_]{8}")
"""The names of temporary files, without suffix."""
MAKE_ROOM = "make room and run it again; what was there before is untouched"


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block ends, and vanishes when the block fails.

    The temporary name keeps the suffix of ``path``, which some writers look at. Missing folders are made.

    Raises:
        OSError: the folder refuses new files, or the file could not be written to its end (a full disk, a quota); the
            sentence names ``path``.
    """
    target = Path(path)
    _require_ordinary(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix)
    except OSError as error:
        raise _cannot_write(target, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner can read
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (*NO_SPACE, *NO_PERMISSION):
            raise _cannot_write(target, error) from error
        if isinstance(error, RuntimeError) and UNWRITTEN.search(str(error)):
            # torch.save does not say which error the system gave
            raise OSError(f"cannot write {target}: {MAKE_ROOM}") from error
        raise


def remove_unfinished(folder: str | os.PathLike[str], suffix: str) -> None:
    """Delete what processes that were killed within :func:`atomic_path` have left in a folder.

    Args:
        folder: nothing else may be writing there.
        suffix: of the files, such as ".pth".
    """
    for path in Path(folder).glob(f".*{suffix}"):
        if UNFINISHED.fullmatch(path.stem):
            path.unlink(missing_ok=True)


def _cannot_write(target: Path, error: OSError) -> OSError:
    fix = MAKE_ROOM if error.errno in NO_SPACE else "name a folder that takes new files"
    return type(error)(f"cannot write {target}: {error.strerror}; {fix}")


def _require_ordinary(path: Path) -> None:
    """Raise an OSError if writing would replace a folder, a device or a pipe."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "not an ordinary file"
        raise OSError(f"cannot write {path}: it is {kind}; name a file")


def require_writable(path: str | os.PathLike[str]) -> None:
    """Raise an OSError now if ``path`` could not be written later.

    Missing folders are not made; the nearest one that exists is asked.
    """
    _require_ordinary(Path(path))
    folder = Path(path).absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"cannot write {path}: {folder} is a file")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(f"cannot write {path}: {folder} refuses new files ({error.strerror})") from error
