"""A room imports from rooms of its own rank or below; no two rooms import each other, directly or through others."""

import ast
import re
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "meinst_d2"

ROOMS = [  # by rank; a room is a folder of the package, or a file beside them
    ["", "files", "precision", "fcos", "masks"],  # the package itself: its version, where Detectron2 comes from
    ["encoding"],
    ["config", "config_file"],
    ["modeling", "data", "visualization"],
    ["checkpoint", "convert", "fitting", "evaluation"],
    ["engine", "model_zoo", "analysis", "reconstruction"],
    ["check", "export"],
    ["commands"],
]
RANKS = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}

THIRD_PARTY = {  # what a room or a file may import besides Python's own and this package; others may import anything
    "files": set(),
    "precision": {"torch"},
    "fcos": {"torch", "torchvision"},
    "masks": {"torch", "numpy", "pycocotools", "cv2"},
    "encoding": {"torch", "numpy", "fvcore"},
    "modeling.layers": {"torch", "torchvision", "fvcore"},
    **{f"modeling.{name}": {"torch"} for name in ("head", "criterion", "mask_loss")},
    "data.coco": {"numpy", "msgspec"},
    "data.annotations": {"numpy"},
}

FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """Below the package: "data.coco", "data", "config", ""."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def room_of(module: str) -> str:
    return module.partition(".")[0]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_that(path: Path) -> set[str]:
    """Rooms that a file imports from; a name that is not a room is the package's own."""
    names = {name.removeprefix("meinst_d2").lstrip(".") for name in imports(path) if re.match(r"meinst_d2\b", name)}
    return {room_of(name) if room_of(name) in RANKS else "" for name in names}


def graph() -> dict[str, set[str]]:
    """The other rooms that each room imports from."""
    found: dict[str, set[str]] = {room: set() for room in RANKS}
    for path in FILES:
        found[room_of(module_of(path))] |= rooms_that(path)
    found[""] = set()  # imports higher rooms on demand only
    return {room: below - {room} for room, below in found.items()}


def floors() -> dict[str, int]:
    """Every room's floor: one above the highest that it imports from. Raises where two rooms import each other."""
    rooms, found = graph(), {}

    def floor_of(room: str, above: tuple[str, ...]) -> int:
        assert room not in above, f"rooms import each other: {' -> '.join((*above, room))}"
        if room not in found:
            found[room] = max((floor_of(below, (*above, room)) + 1 for below in rooms[room]), default=0)
        return found[room]

    for room in rooms:
        floor_of(room, ())
    return found


def test_every_room_has_a_rank_and_the_house_is_low() -> None:
    assert {room_of(module_of(path)) for path in FILES} == set(RANKS)
    assert 1 + max(floors().values()) <= 8


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_come_from_the_same_rank_or_below(path: Path) -> None:
    room = room_of(module_of(path))
    if room:
        above = {other for other in rooms_that(path) if RANKS[other] > RANKS[room]}
        assert not above, f"{module_of(path)} (rank {RANKS[room]}) imports from {above}"


def test_the_readme_lists_the_rooms_in_the_order_of_their_ranks() -> None:
    layout = (ROOT / "README.md").read_text().partition("## Layout")[2].partition("\n## ")[0]
    lines = [line for line in layout.splitlines() if line.startswith("  ")]
    listed = [room for line in lines for room in re.findall(r"\b([a-z_]+)(?:/|\.py)(?= |$)", line)]
    assert set(RANKS) - {""} <= set(listed)
    ranks = [RANKS[room] for room in listed if room in RANKS]
    assert ranks == sorted(ranks)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_rooms_import_what_they_may(path: Path) -> None:
    module = module_of(path)
    allowed = THIRD_PARTY.get(module, THIRD_PARTY.get(room_of(module)))
    names = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"meinst_d2"}
    if allowed is not None:
        assert names <= allowed


def test_only_the_glue_reads_the_config() -> None:
    readers = {room_of(module_of(path)) for path in FILES if re.search(r"\bcfg\.", path.read_text())}
    assert not {room for room in readers if RANKS[room] < 2}
    without = ("layers", "head", "criterion", "mask_loss", "inference")
    assert not [name for name in without if re.search(r"\bcfg\b", (PACKAGE / f"modeling/{name}.py").read_text())]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert length <= 80, f"{node.name} has {length} lines"
