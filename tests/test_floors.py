"""A file imports only from its own floor and from lower ones; the low floors know neither Detectron2 nor its config."""

import ast
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "meinst_d2"

FLOORS = {  # the longest matching prefix counts
    "meinst_d2": 0,
    "meinst_d2.files": 0,
    "meinst_d2.precision": 0,
    "meinst_d2.prerequisites": 0,
    "meinst_d2.encoding": 0,
    "meinst_d2.fcos": 0,
    "meinst_d2.masks": 0,
    "meinst_d2.layers": 1,
    "meinst_d2.modeling.head": 2,
    "meinst_d2.modeling.criterion": 2,
    "meinst_d2.modeling.mask_loss": 2,
    "meinst_d2.modeling": 3,
    "meinst_d2.array_pickle": 0,
    "meinst_d2.tensor_file": 0,
    "meinst_d2.weights": 0,
    "meinst_d2.fine_tuning": 0,
    "meinst_d2.checkpoint": 3,
    "meinst_d2.download": 3,
    "meinst_d2.importer": 3,
    "meinst_d2.model_check": 3,
    "meinst_d2.export": 3,
    "meinst_d2.model_zoo": 3,
    "meinst_d2.publish": 3,
    "meinst_d2.check": 3,
    "meinst_d2.config": 3,
    "meinst_d2.config_file": 3,
    "meinst_d2.data": 3,
    "meinst_d2.engine": 3,
    "meinst_d2.evaluation": 3,
    "meinst_d2.visualization": 3,
}

THIRD_PARTY = {  # what a room may import at all; others may import anything
    "meinst_d2.encoding": {"torch", "numpy", "fvcore"},
    "meinst_d2.fcos": {"torch", "torchvision"},
    "meinst_d2.masks": {"torch", "numpy", "pycocotools"},
    "meinst_d2.layers": {"torch", "torchvision", "fvcore"},
    "meinst_d2.modeling.head": {"torch"},
    "meinst_d2.modeling.criterion": {"torch"},
    "meinst_d2.modeling.mask_loss": {"torch"},
    "meinst_d2.data.rasterize": {"numpy", "pycocotools"},
    "meinst_d2.data.rle": {"numpy"},
    "meinst_d2.files": set(),
    "meinst_d2.fine_tuning": set(),
    "meinst_d2.array_pickle": {"numpy"},
    "meinst_d2.tensor_file": set(),
    "meinst_d2.weights": {"torch", "numpy", "safetensors"},
    "meinst_d2.precision": {"torch"},
    "meinst_d2.prerequisites": set(),
}

LAZY = {"meinst_d2", "meinst_d2.modeling"}  # their __init__ import higher floors on demand


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def longest_prefix(table: dict, module: str):  # type: ignore[no-untyped-def]
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        prefix = ".".join(parts[:end])
        if prefix in table:
            return table[prefix]
    return None


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_come_from_the_same_floor_or_below(path: Path) -> None:
    module = module_of(path)
    if module in LAZY:
        return
    floor = longest_prefix(FLOORS, module)
    for name in imports(path):
        if name.startswith("meinst_d2."):
            assert longest_prefix(FLOORS, name) <= floor, f"{module} (floor {floor}) imports {name}"
        elif floor < 3:
            assert not name.startswith("detectron2"), f"{module} (floor {floor}) imports {name}"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_rooms_import_what_they_may(path: Path) -> None:
    allowed = longest_prefix(THIRD_PARTY, module_of(path))
    if allowed is None:
        return
    outside = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"meinst_d2"}
    assert outside <= allowed


def test_only_the_glue_reads_the_config() -> None:
    readers = {module_of(path) for path in FILES if "cfg." in path.read_text()}
    assert not {module for module in readers if longest_prefix(FLOORS, module) < 3}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert length <= 50, f"{node.name} has {length} lines"
