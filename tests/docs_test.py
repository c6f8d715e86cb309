"""Tests that docs/ agrees with the code; they do not build the pages (`make docs`)."""

import ast
import csv
import dataclasses
import importlib
import pathlib
import re
import runpy
import shlex
from typing import Any

import jax
import pytest

from kullback import agents, lm
from kullback.core import experience, types
from kullback.environments import toy
from kullback.experiments import catalog, cli
from kullback.experiments.runs import episodes
from kullback.lm import dpo, gemma, preferences, rollouts

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in DOCS.rglob("*.md")}
TEXTS = {**PAGES, **{path.name: path.read_text() for path in ROOT.glob("*.md")}}
HOOKS = runpy.run_path(str(DOCS / "hooks.py"))
ROOMS = {path.parent.name for path in ROOT.glob("*/py.typed")}


def modules() -> list[str]:
    """Returns the dotted names of all modules of the package."""
    paths = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in paths]
    return [".".join(["kullback", *part]).removesuffix(".__init__") for part in parts]


def top_level(module: str) -> set[str]:
    """Returns the names that a module defines or imports."""
    names = set()
    for node in ast.parse(HOOKS["path_of"](module).read_text()).body:
        if isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
    return names


@pytest.mark.parametrize("page", sorted(PAGES))
def test_what_a_page_shows_of_the_code_is_there(page: str):
    known = set(modules())
    for name in HOOKS["shown"](PAGES[page]):
        module, _, last = name.rpartition(".")
        assert name in known or (module in known and last in top_level(module)), name


def test_the_reference_shows_the_public_modules_and_no_others():
    texts = [text for page, text in PAGES.items() if page.startswith("docs/reference/")]
    shown = sorted(name for text in texts for name in HOOKS["shown"](text))
    public = [
        m for m in modules() if re.search(r"^__all__ = ", HOOKS["path_of"](m).read_text(), re.M)
    ]
    assert shown == sorted(public), (
        "modules with __all__ stand in docs/reference/ROOM.md as ::: NAME, and no others: "
        f"{sorted({*shown} ^ {*public})}"
    )


def test_what_is_public_is_there_and_is_described():
    for module in HOOKS["shown"]("\n".join(PAGES.values())):
        if not module.startswith("kullback.") or module not in modules():
            continue
        if not re.search(r"^__all__ = ", HOOKS["path_of"](module).read_text(), re.M):
            continue
        imported = importlib.import_module(module)
        assert HOOKS["exported"](module) == list(imported.__all__)
        for name in imported.__all__:
            assert not name.startswith("_") and hasattr(imported, name), f"{module}.{name}"


def test_public_data_have_a_comment():
    # The reference leaves out what nothing describes, and the pages are then not built.
    for module in HOOKS["shown"]("\n".join(PAGES.values())):
        if module not in modules() or "\n__all__ = " not in HOOKS["path_of"](module).read_text():
            continue
        source = HOOKS["path_of"](module).read_text()
        public, said = HOOKS["exported"](module), HOOKS["comments"](source)
        body = ast.parse(source).body
        for node, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.Assign | ast.AnnAssign):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                name = getattr(target, "id", "")
                described = isinstance(after, ast.Expr) or HOOKS["comment_of"](node, said)
                assert name not in public or described, f"{module}.{name}"


CONFIGS = sorted({c for text in PAGES.values() for c in HOOKS["markers"](text, "settings")})


@pytest.mark.parametrize("config", CONFIGS)
def test_settings_are_those_of_the_class(config: str):
    # The table is read from the source; here Python says what it means.
    name, _, kind = config.rpartition(".")
    class_ = getattr(importlib.import_module(name), kind)
    read = list(HOOKS["fields"](config))
    assert [field.name for field in read] == [x.name for x in dataclasses.fields(class_)]
    defaults, known = class_(), {}
    for base in class_.__mro__:
        known |= vars(importlib.import_module(base.__module__))
    for field in read:
        assert eval(field.default, known.copy()) == getattr(defaults, field.name), field.name
        assert (field.config is not None) == dataclasses.is_dataclass(getattr(defaults, field.name))


def test_every_setting_says_its_unit_range_or_source():
    silent = {
        f"{HOOKS['short'](config)}.{field.name}"
        for config in CONFIGS
        for field in HOOKS["fields"](config)
        if not field.comment and not field.config and not field.hint.startswith("Literal")
    }
    assert not silent, f"settings need a comment with unit, range or source: {sorted(silent)}"


def columns_of(page: str) -> set[str]:
    """Returns the metrics that a page explains."""
    assert page in PAGES, f"{page} is missing: an algorithm's page is as docs/agents/dqn.md"
    (names,) = HOOKS["markers"](PAGES[page], "metrics")
    return set(names.split())


EVERY = set(re.findall(r"^\| `(\w+)` \|", PAGES["docs/metrics.md"].split("## Of agents")[0], re.M))


@pytest.mark.parametrize("name", list(catalog.AGENTS))
def test_an_agents_page_has_the_columns_that_it_reports(name: str):
    entry, environment = agents.AGENTS[name], toy.chain(4)
    agent = entry.make(None, environment.spec, entry.presets("toy"))
    names = experience.source(agent, environment, types.NO_CONSTANTS).names
    page, reported = f"docs/agents/{name}.md", {*names, "epsilon"}
    assert columns_of(page) == reported, f"{page}: {{{{ metrics: {' '.join(sorted(reported))} }}}}"


# Columns that are there with a setting alone, or came later than the runs of the fixtures.
ON_DEMAND = {"sample_age", "teacher_distance", "value_error", "distance", "kl_runaway"}
ON_DEMAND |= {"equal_rewards", "ratio_max", "ratio_error", "clip_fraction", "kl_old"}
ON_DEMAND |= {"sampler_kl", "sampler_ratio", "sampler_cut", "dropped", "wait_seconds"}


# Others are presets of these.
ALGORITHMS = [name for name, entry in lm.ALGORITHMS.items() if entry.presets_name == "presets"]


def texts_with_rewards(rows: int, width: int) -> Any:
    """Returns the shapes of a batch of reinforcement learning."""
    numbers = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((rows,), (rows, width)))
    return rollouts.Episodes(episodes.sequence_shapes(rows, width), *numbers)  # pyright: ignore[reportArgumentType]


def pairs_with_reference(rows: int, width: int) -> Any:
    """Returns the shapes of a batch of pairs."""
    of_answers = episodes.sequence_shapes(rows, width)
    log_reference = jax.ShapeDtypeStruct((rows, 2), "float32")
    return dpo.Referred(preferences.Pairs(of_answers, of_answers), log_reference)  # pyright: ignore[reportArgumentType]


# Algorithms of which version 0.1 has no run.
SHAPES = {
    "bond": texts_with_rewards,
    "dpo": pairs_with_reference,
    "online-dpo": texts_with_rewards,
}


def columns_of_a_step(name: str) -> set[str]:
    """Returns the metrics of a learner step, of which nothing is computed."""
    entry, small = lm.ALGORITHMS[name], dataclasses.replace(gemma.PRESETS["tiny"], num_layers=1)
    agent = entry.make(gemma.make(small), config=entry.presets("tokens"))
    state = jax.eval_shape(agent.learner.init, jax.random.key(0))
    data = SHAPES[name](agent.config.learning.batch_size, agent.config.learning.width)
    batch = jax.eval_shape(types.Batch.of, data)
    constants = types.Constants(start=state.params)
    return set(jax.eval_shape(agent.learner.step, state, batch, constants)[1].metrics)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithms_page_has_the_columns_that_it_reports(name: str):
    if name in SHAPES:
        reported = columns_of_a_step(name)
    else:
        runs = ROOT / "tests" / "experiments" / "fixtures" / "runs_of_0_1"
        with (runs / name.replace("-", "_") / "metrics.csv").open() as lines:
            reported = set(next(csv.reader(lines))) - EVERY | {"loss"}
    said = columns_of(f"docs/lm/{name}.md")
    assert reported <= said
    assert said - reported <= ON_DEMAND


def test_curves_are_rows_of_results():
    curves = [one for text in PAGES.values() for one in HOOKS["markers"](text, "curve")]
    assert curves
    for one in curves:
        _, columns, steps = (part.split() for part in one.split("|"))
        table = HOOKS["curve"](one).splitlines()
        assert len(table) == len(steps) + 2
        assert all(line.count("|") == len(columns) + 2 for line in table)
        assert set(columns) <= set(HOOKS["metric_rows"]())


def test_metrics_of_every_run_are_those_of_every_file():
    for path in (ROOT / "results").glob("*/metrics.csv"):
        with path.open() as lines:
            columns = set(next(csv.reader(lines)))
        assert EVERY <= columns
        assert columns <= set(HOOKS["metric_rows"]())


def test_pages_are_in_the_contents():
    listed = re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    missing = {*PAGES} ^ {f"docs/{page}" for page in listed}
    assert not missing, f"`nav` of mkdocs.yml lists each page of docs/ once: {sorted(missing)}"
    assert len(listed) == len({*listed})


def slugs(text: str) -> set[str]:
    """Returns the anchors of a page's headings, as the pages and code hosts make them."""
    plain = re.sub(r"^(```.*?^```|    .*?)$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", plain, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", sorted(TEXTS))
def test_links_lead_somewhere(page: str):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", TEXTS[page]):
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        assert target.is_relative_to(ROOT.resolve())
        if page in PAGES and target.is_dir():
            assert (target / "README.md").is_file(), f"{page}: {link} has no README.md to show"
        if anchor:
            assert anchor in slugs(target.read_text()), f"{page}: {link}"


def test_commands_name_what_there_is():
    text = "\n".join(TEXTS.values())
    for agent, environment in re.findall(r"kullback train ([a-z][a-z0-9-]*) ([a-z]+/[\w-]+)", text):
        catalog.check(
            agent, environment if not environment.startswith("tokens/") else "tokens/jsonl:"
        )
    for name in re.findall(r"kullback reproduce ([a-z][a-z-]*)", text):
        assert name in catalog.REPRODUCTIONS, name


def typed_commands(text: str) -> list[str]:
    """Returns the lines of a page's code that begin with `kullback`, variables filled in."""
    text = text.replace("\\\n", " ")
    variables = dict(re.findall(r'^    (\w+)=("[^"]*"|\S+)$', text, re.MULTILINE))
    lines = re.findall(r"^(?:    )?(?:\$ |srun |CUDA\S+ )?(kullback .*)$", text, re.MULTILINE)
    for name, value in variables.items():
        lines = [line.replace(f"${name}", value.strip('"')) for line in lines]
    return [line.partition(" < ")[0] for line in lines]


@pytest.mark.parametrize("page", sorted(TEXTS))
def test_commands_can_be_typed(page: str):
    for line in typed_commands(TEXTS[page]):
        cli.parse(shlex.split(line, comments=True)[1:])


def test_files_that_pages_include_are_there():
    # A formatter once took the line for Python, and the page had it instead of the file.
    for page, text in PAGES.items():
        for line in text.splitlines():
            if "--8" in line:
                included = re.fullmatch(r'--8<-- "([^":]+)(:\w+)?"', line)
                assert included and (ROOT / included[1]).is_file(), f"{page}: {line}"


def test_every_algorithm_has_a_page():
    pages = [f"docs/agents/{name}.md" for name in catalog.AGENTS]
    pages += [f"docs/lm/{name}.md" for name in ALGORITHMS]
    missing = {*pages} - {*PAGES}
    assert not missing, f"write {sorted(missing)} as docs/agents/dqn.md or docs/lm/gkd.md"


def test_a_comment_is_that_of_its_field(tmp_path: pathlib.Path):
    source = (
        "class Config:\n"
        "    # Above b.\n"
        "    b: int = 1\n"
        "    c: int = 2  # Behind c,\n"
        "    # and below.\n"
        "    d: int = 3\n"
        "    # Above e.\n"
        "    e: int = 4  # And behind.\n"
    )
    said = HOOKS["comments"](source)
    (config,) = ast.parse(source).body
    assert isinstance(config, ast.ClassDef)
    read = [HOOKS["comment_of"](node, said) for node in config.body]
    assert read == ["Above b.", "Behind c, and below.", "", "Above e. And behind."]
