"""Configs from YAML files and command lines: plain values only, and what is wrong in a sentence."""

from __future__ import annotations

import difflib
import functools
import io
import os
import re
from collections.abc import Iterator, Sequence
from typing import IO, Any, ClassVar

import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from fvcore.common.config import BASE_KEY
from fvcore.common.config import CfgNode as PlainCfgNode

MOST_ALIASES = 16
"""In one file. Twenty lines of aliases to aliases stand for more values than fit into any memory."""
LONGEST_FILE = 2**20
"""Characters."""
MALFORMED = (
    *(yaml.YAMLError, AssertionError, AttributeError, KeyError, TypeError, ValueError),
    *(MemoryError, RecursionError),
)
"""What yaml, yacs and Detectron2 raise on files that are no configs."""
MISMATCH = re.compile(r"Type mismatch \(<class '(.*?)'> vs\. <class '(.*?)'>\).* for config key: (\S+)$", re.DOTALL)
UNKNOWN = re.compile(r"Non-existent (?:config )?key: (\S+?)'?$")


class ConfigError(ValueError):
    """What is wrong with a config, in a sentence."""


def merge_config_file(cfg: CfgNode, path: str | os.PathLike[str]) -> None:
    """As Detectron2's ``merge_from_file``, for files that nobody has looked at: they cannot run code.

    Args:
        cfg: the defaults.
        path: of a YAML file; its ``_BASE_`` is read the same way.

    Raises:
        FileNotFoundError: the file or its base is not there.
        ConfigError: a file holds more than plain values, is no YAML, or does not fit ``cfg``.
    """
    path = os.fspath(path)
    content = read_plain_yaml(path)
    try:
        _require_groups(content, cfg)
        cfg.merge_from_file(path, allow_unsafe=False)
    except MALFORMED as error:
        raise ConfigError(f"{path} does not fit this version of meinst_d2: {sentence(error, cfg)}") from error


def merge_overrides(cfg: CfgNode, overrides: Sequence[Any]) -> None:
    """As Detectron2's ``merge_from_list``.

    Raises:
        ConfigError: an odd number, a key that ``cfg`` does not have, or a value of another type.
    """
    if len(overrides) % 2:
        raise ConfigError(f"the overrides {' '.join(map(str, overrides))} are no pairs: give KEY VALUE KEY VALUE ...")
    known = set(_keys(cfg))
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        if key not in known:
            raise ConfigError(f"the override {key} {value} does not fit: {_unknown(key, cfg)}")
        try:
            cfg.merge_from_list([key, value])
        except MALFORMED as error:
            raise ConfigError(f"the override {key} {value} does not fit: {sentence(error, cfg)}") from error


def require_file(path: str) -> None:
    """Raise a FileNotFoundError if there is no such config."""
    if not PathManager.isfile(path):
        raise FileNotFoundError(f"there is no config file {path}: name one that exists")


def read_plain_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a config file with its ``_BASE_``.

    Raises:
        FileNotFoundError: the file or its base is not there.
        ConfigError: a file holds more than plain values, or is no YAML.
    """

    class Reader(_Reader):
        chain: ClassVar[list[str]] = []

    content: dict[str, Any] = Reader.load_yaml_with_base(os.fspath(path))
    return content


def plain_yaml(text: Any) -> Any:
    """What a YAML text holds.

    Raises:
        ConfigError: more than plain values, or no YAML.
    """
    if not isinstance(text, str):
        raise ConfigError(f"it is a {type(text).__name__} instead of a text")
    if len(text) > LONGEST_FILE:
        raise ConfigError(f"it is longer than {LONGEST_FILE:,} characters")
    try:
        if sum(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)) > MOST_ALIASES:
            raise ConfigError(f"it has more than {MOST_ALIASES} aliases (*name): write the values themselves")
        return yaml.safe_load(text)
    except yaml.constructor.ConstructorError as error:
        tag = re.search(r"for the tag '(?:tag:yaml.org,2002:)?(.*)'", str(error.problem))
        if tag is None:
            raise ConfigError(f"it is no YAML ({_first_line(error)})") from error
        raise ConfigError(
            f"it holds Python objects ({tag[1]}), which can run code: write plain values, and lists for tuples, or use "
            "a LazyConfig (.py) whose author you trust"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, ConfigError):
            raise
        at = getattr(error, "problem_mark", None)
        where = f"in line {at.line + 1}: {error.problem}" if at else _first_line(error)  # type: ignore[union-attr]
        raise ConfigError(f"it is no YAML ({where})") from error


class _Reader(PlainCfgNode):
    """Says which of the files that a config is made of is wrong."""

    chain: ClassVar[list[str]]
    """The files that are being read, each the _BASE_ of the one before."""

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str]:
        require_file(filename)
        try:
            with PathManager.open(filename, "r") as file:
                text = file.read(LONGEST_FILE + 1)
            content = plain_yaml(text)
        except (ConfigError, UnicodeDecodeError) as error:
            reason = error if isinstance(error, ConfigError) else "it is no text in UTF-8"
            raise ConfigError(f"the config {filename} is refused: {reason}") from error
        if not isinstance(content, dict):
            kind = "nothing" if content is None else f"a {type(content).__name__}"
            raise ConfigError(f"the config {filename} is refused: it holds {kind} instead of keys with values")
        bases = content.get(BASE_KEY, "")
        if not all(isinstance(base, str) for base in (bases if isinstance(bases, list) else [bases])):
            raise ConfigError(f"the config {filename} is refused: its {BASE_KEY} {bases} names no file")
        return io.StringIO(text)

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        if os.path.realpath(filename) in map(os.path.realpath, cls.chain):
            raise ConfigError(f"the config {filename} is refused: its {BASE_KEY} leads back to itself")
        if cls.chain and not PathManager.isfile(filename):
            raise FileNotFoundError(f"there is no {filename}, the {BASE_KEY} of {cls.chain[-1]}: put it there")
        cls.chain.append(filename)
        try:
            found: dict[str, Any] = super().load_yaml_with_base(filename, allow_unsafe=False)
        except ConfigError:
            raise
        except MALFORMED as error:
            raise ConfigError(f"the config {filename} is refused: {_first_line(error)}") from error
        cls.chain.pop()
        return found


def _keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in cfg.items():
        yield f"{prefix}{name}"
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{name}.")


def _require_groups(content: dict[str, Any], cfg: CfgNode, prefix: str = "") -> None:
    """Raise a ConfigError where yacs would stumble over a key or a version without naming it."""
    for name, value in content.items():
        if not isinstance(name, str):
            raise ConfigError(f"the key {prefix}{name!r} is no text")
        if prefix + name == "VERSION" and type(value) is not int:
            raise ConfigError(f"VERSION must be of type int, such as {cfg.VERSION}, not {type(value).__name__}")
        if isinstance(cfg.get(name), CfgNode):
            if not isinstance(value, dict):
                raise ConfigError(f"{prefix}{name} stands for a group of keys and not for one value")
            _require_groups(value, cfg[name], f"{prefix}{name}.")


def _unknown(key: str, cfg: CfgNode) -> str:
    names = {known: known.rpartition(".")[2] for known in _keys(cfg)}
    close = difflib.get_close_matches(key.rpartition(".")[2].upper(), names.values(), 3)
    # Of keys with names like this, the one whose groups are most like these.
    near = difflib.get_close_matches(key.upper(), [known for known, name in names.items() if name in close], 1)
    return f"there is no key {key}" + (f" (did you mean {near[0]}?)" if near else "")


def sentence(error: BaseException, cfg: CfgNode) -> str:
    """What yacs says, in words of users."""
    line = _first_line(error)
    if unknown := UNKNOWN.search(line):
        return _unknown(unknown[1], cfg)
    mismatch = MISMATCH.search(str(error))
    if mismatch is None:
        return line
    wanted, given, key = mismatch.groups()
    default = functools.reduce(getattr, key.split("."), cfg)
    if isinstance(default, CfgNode):
        return f"{key} stands for a group of keys and not for one value"
    given = "group of keys" if given.endswith("CfgNode") else given
    return f"{key} must be of type {wanted}, such as {default!r}, not {given}"


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
