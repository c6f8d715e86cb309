"""Imports run one way: from room to room downward, and between modules without a circle."""

import ast
import graphlib
import pathlib
from collections.abc import Iterator

import pytest

# Room -> the rooms that it may import. `agents` and `lm` never import each other.
ALLOWED = {
    "core": set(),
    "environments": {"core"},
    "agents": {"core", "environments"},
    "lm": {"core", "environments"},
    "theory": {"core"},
    "experiments": {"core", "environments", "agents", "lm", "theory"},
}


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Yields line and dotted name of every module that `source` may import, wherever it does so."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from kullback import core` names a room too.
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def complaints(room: str, source: str) -> list[str]:
    """Returns faults in the imports of a file of `room`, a line each."""
    wrong = []
    for line, name in imported(source):
        first, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if not first:
            wrong.append(f"{line}: {name} is relative; write kullback.{room}. ...")
        elif first in ALLOWED:
            wrong.append(f"{line}: {name} is found from the checkout only; write kullback.{name}")
        elif first == "kullback" and other not in ALLOWED[room] | {room}:
            wrong.append(f"{line}: {name}, but {room} may import {sorted(ALLOWED[room])} only")
    return wrong


def test_no_arrow_points_up(root: pathlib.Path):
    wrong = [
        f"{path.relative_to(root)}:{complaint}"
        for room in ALLOWED
        for path in sorted((root / room).rglob("*.py"))
        for complaint in complaints(room, path.read_text())
    ]
    assert not wrong, "\n".join(wrong)


def graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Maps each module to the modules of ours that it imports anywhere; sources by dotted name."""

    def module(name: str) -> str:
        while name and name not in sources:
            name = name.rpartition(".")[0]  # `from module import function` names a module too.
        return name

    return {
        name: {module(other) for _, other in imported(source)} - {name, ""}
        for name, source in sources.items()
    }


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Finds modules that import each other in a circle; [] if there is none."""
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return error.args[1][::-1]
    return []


def test_no_modules_import_each_other(root: pathlib.Path):
    files = [path for room in ALLOWED for path in (root / room).rglob("*.py")]
    names = [
        ".".join(("kullback", *path.relative_to(root).with_suffix("").parts)) for path in files
    ]
    sources = {
        name.removesuffix(".__init__"): path.read_text()
        for name, path in zip(names, files, strict=True)
    }
    assert not (cycle := circle(graph(sources))), " imports ".join(cycle)


def test_a_circle_is_seen_wherever_it_is_imported():
    sources = {
        "kullback.a": "from kullback.b import name",
        "kullback.b": "def f():\n    from kullback import c",
        "kullback.c": "import kullback.a",
        "kullback.d": "from kullback import a",
    }
    a, b, c = "kullback.a", "kullback.b", "kullback.c"
    assert graph(sources) == {a: {b}, b: {c}, c: {a}, "kullback.d": {a}}
    assert set(circle(graph(sources))) == {a, b, c}
    assert not circle(graph({**sources, c: "import jax"}))


def test_every_room_has_its_arrows(root: pathlib.Path):
    rooms = {path.parent.name for path in root.glob("*/py.typed")}
    assert rooms and rooms <= set(ALLOWED)


@pytest.mark.parametrize(
    "room, source",
    [
        ("core", "from kullback.agents import munchausen"),
        ("core", "from kullback import environments"),
        ("agents", "def f():\n    import kullback.experiments.cli"),
        ("agents", "from kullback.lm import gemma"),
        ("lm", "import numpy, kullback.agents.dqn as dqn"),
        ("theory", "from kullback.environments import registry"),
        ("core", "from . import types"),
        ("agents", "from core import types"),
    ],
)
def test_an_arrow_that_points_up_is_seen(room: str, source: str):
    assert complaints(room, source)


def test_arrows_that_point_down_are_fine():
    assert not complaints("agents", "import jax\nfrom kullback.core import types\nimport os.path")
