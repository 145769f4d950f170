"""Configs from YAML files and command lines: plain values only, and what is wrong in a sentence."""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from detectron2.config import CfgNode, downgrade_config, upgrade_config
from detectron2.config.compat import guess_version
from fvcore.common.config import BASE_KEY
from yaml import YAMLError

MOST_ALIASES = 16
"""In one file. Twenty lines of aliases to aliases stand for more values than fit into any memory."""
LONGEST_FILE = 2**20  # characters
MALFORMED = (AssertionError, AttributeError, KeyError, MemoryError, RecursionError, TypeError, ValueError, YAMLError)
"""What yaml, yacs and Detectron2 raise on files that are not configs."""
MISMATCH = re.compile(r"Type mismatch \(<class '(.*?)'> vs\. <class '(.*?)'>\).* for config key: (\S+)$", re.DOTALL)
UNKNOWN = re.compile(r"Non-existent (?:config )?key: (\S+?)'?$")


class ConfigError(ValueError):
    """What is wrong with a config, in a sentence."""


def merge_config_file(cfg: CfgNode, path: str | os.PathLike[str]) -> None:
    """Like Detectron2's ``merge_from_file``, for files that nobody has looked at: they cannot run code.

    Raises:
        FileNotFoundError, ConfigError: see :func:`read_plain_yaml`, or the content does not fit ``cfg``, the defaults.
    """
    merge_content(cfg, read_plain_yaml(path), path)


def merge_content(cfg: CfgNode, content: Any, source: object) -> None:
    """Merge what a YAML file holds into the defaults, whichever version of Detectron2 it was written for.

    Raises:
        ConfigError: it does not fit; the sentence names ``source``.
    """
    old = cfg
    try:
        given = CfgNode(content)
        guess = "VERSION" not in given and all(isinstance(given.get(group, {}), dict) for group in ("MODEL", "TEST"))
        version = guess_version(given, str(source)) if guess else given.get("VERSION", cfg.VERSION)
        if isinstance(content.get("model"), dict) and "_target_" in content["model"]:
            raise ConfigError("it was written by a run of a LazyConfig: give that .py file")
        if type(version) is not int or not 0 < version <= cfg.VERSION:
            raise ConfigError(f"VERSION must be an int up to {cfg.VERSION}, not {version!r}")
        old = downgrade_config(cfg, to_version=version)
        old.merge_from_other_cfg(given)
        new = upgrade_config(old)
    except MALFORMED as error:
        raise ConfigError(f"{source} does not fit this version of meinst_d2: {_sentence(error, old)}") from error
    cfg.clear()
    cfg.update(new)


def merge_overrides(cfg: CfgNode, overrides: Sequence[Any]) -> None:
    """Like Detectron2's ``merge_from_list``; raises a ConfigError for half a pair, an unknown key or another type."""
    if len(overrides) % 2:
        raise ConfigError(f"the overrides {' '.join(map(str, overrides))} are not pairs: give KEY VALUE KEY VALUE ...")
    known = set(_keys(cfg))
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        try:
            if key not in known:
                raise ConfigError(_unknown(key, cfg))
            cfg.merge_from_list([key, value])
        except MALFORMED as error:
            raise ConfigError(f"the override {key} {value} does not fit: {_sentence(error, cfg)}") from error


def read_plain_yaml(path: str | os.PathLike[str], *, read_from: tuple[str, ...] = ()) -> dict[str, Any]:
    """The content of a config file, over that of the files that its ``_BASE_`` names.

    It is the base of the last file of ``read_from``, each of which is the base of the one before.

    Raises:
        FileNotFoundError: the file or its base is not there.
        ConfigError: a file holds more than plain values, or is not YAML.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        if read_from:
            raise FileNotFoundError(
                f"the config file {path}, the {BASE_KEY} of {read_from[-1]}, does not exist: put it there"
            )
        raise FileNotFoundError(f"the config file {path} does not exist: name one that exists")
    try:
        if os.path.realpath(path) in map(os.path.realpath, read_from):
            raise ConfigError(f"its {BASE_KEY} leads back to itself")
        with open(path, encoding="utf-8") as file:
            content = plain_yaml(file.read(LONGEST_FILE + 1))
        if not isinstance(content, dict):
            kind = "nothing" if content is None else f"a {type(content).__name__}"
            raise ConfigError(f"it holds {kind} instead of keys with values")
        given = content.pop(BASE_KEY, [])
        bases = given if isinstance(given, list) else [given]
        if not all(isinstance(base, str) for base in bases):
            raise ConfigError(f"its {BASE_KEY} {given} does not name a file")
    except (ConfigError, UnicodeDecodeError) as error:
        reason = error if isinstance(error, ConfigError) else "it is not UTF-8"
        raise ConfigError(f"the config {path} is refused: {reason}") from error
    merged: dict[str, Any] = {}
    for base in map(os.path.expanduser, bases):
        base = os.path.join(os.path.dirname(path), base)
        _merge(read_plain_yaml(base, read_from=(*read_from, path)), merged, base)
    _merge(content, merged, path)
    return merged


def _merge(content: Mapping[str, Any], into: dict[str, Any], path: str) -> None:
    for name, value in content.items():
        if not isinstance(name, str):
            raise ConfigError(f"the config {path} is refused: the key {name!r} is not a string")
        if isinstance(value, dict):
            into[name] = dict(into[name]) if isinstance(into.get(name), dict) else {}
            _merge(value, into[name], path)
        else:
            into[name] = value


def plain_yaml(text: Any) -> Any:
    """What a YAML text holds; raises a ConfigError if that is more than plain values, or not YAML."""
    if not isinstance(text, str):
        raise ConfigError(f"it is a {type(text).__name__} instead of a string")
    if len(text) > LONGEST_FILE:
        raise ConfigError(f"it is longer than {LONGEST_FILE:,} characters")
    try:
        if sum(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)) > MOST_ALIASES:
            raise ConfigError(f"it has more than {MOST_ALIASES} aliases (*name): write the values themselves")
        return yaml.safe_load(text)
    except MALFORMED as error:
        if isinstance(error, ConfigError):
            raise
        tag = re.search(r"for the tag '(?:tag:yaml.org,2002:)?(.*)'", str(getattr(error, "problem", "")))
        if tag is not None:
            fix = "write plain values, and lists for tuples, or use a LazyConfig (.py) whose author you trust"
            raise ConfigError(f"it holds Python objects ({tag[1]}), which can run code: {fix}") from error
        at = getattr(error, "problem_mark", None)
        where = f"in line {at.line + 1}: {error.problem}" if at else _first_line(error)  # type: ignore[union-attr]
        raise ConfigError(f"it is not YAML ({where})") from error


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value, or the group of keys, that a dotted key names."""
    return functools.reduce(getattr, key.split("."), cfg)


def _keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in cfg.items():
        yield f"{prefix}{name}"
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{name}.")


def _unknown(key: str, cfg: CfgNode) -> str:
    names = {known: known.rpartition(".")[2] for known in _keys(cfg)}
    close = difflib.get_close_matches(key.rpartition(".")[2].upper(), names.values(), 3)
    # Of keys with names like this, the one whose groups are most like these.
    near = difflib.get_close_matches(key.upper(), [known for known, name in names.items() if name in close], 1)
    return f"unknown key {key}" + (f" (did you mean {near[0]}?)" if near else "")


def _sentence(error: BaseException, cfg: CfgNode) -> str:
    """What yacs says, in words of users."""
    line = _first_line(error)
    if unknown := UNKNOWN.search(line):
        return _unknown(unknown[1], cfg)
    mismatch = MISMATCH.search(str(error))
    if mismatch is None:
        return line
    wanted, given, key = mismatch.groups()
    default = value_of(cfg, key)
    if isinstance(default, CfgNode):
        return f"{key} stands for a group of keys and not for one value"
    given = "group of keys" if given.endswith("CfgNode") else given
    return f"{key} must be of type {wanted}, such as {default!r}, not {given}"


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
