"""Fills the pages from the code as they are built: settings, metrics, files of the repository.

In a page, on a line of its own:

    {{ settings: kullback.agents.munchausen.Config }}   a table of the fields and their comments
    {{ metrics: loss mean_q }}                          their rows of the tables in metrics.md
    {{ curve: results/x/y.csv | loss mean_q | 10 20 }}  rows of a run's first seed, at these steps

A link that leads out of this folder, such as `../results/README.md`, becomes one to a copy. All is
read from the source, so that building imports nothing of ours; `tests/docs_test.py` compares it
with what Python says.
"""

import ast
import csv
import io
import os
import pathlib
import posixpath
import re
import tokenize
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent
COPIES = "repository"  # Folder of the site with copies of files.

_MARKER = re.compile(r"^\{\{ (settings|metrics|curve): (.*?) \}\}$", re.MULTILINE)
_LINK = re.compile(r"(\]\()(\.\./[^)#\s]+)")


class Field(NamedTuple):
    """A field of a configuration, as its class declares it."""

    name: str
    hint: str
    default: str
    comment: str
    config: str | None  # Dotted name of the configuration that it holds, if it does.


def path_of(module: str) -> pathlib.Path:
    """Returns the file of `kullback.ROOM...`; ValueError if there is none."""
    base = ROOT.joinpath(*module.split(".")[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    raise ValueError(f"no module {module}; expected {base.relative_to(ROOT)}.py or a package")


def exported(module: str) -> list[str]:
    """Returns `__all__` of a module; ValueError where it is missing."""
    for node in ast.parse(path_of(module).read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    raise ValueError(f"{module} has no __all__, but docs/reference shows it")


def comments(source: str) -> dict[int, tuple[str, bool]]:
    """Returns line -> (comment, whether it stands alone on the line)."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: (token.string.lstrip("# "), not token.line[: token.start[1]].strip())
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def comment_of(node: ast.stmt, said: dict[int, tuple[str, bool]]) -> str:
    """Returns what the comments above and behind a field say."""
    above, line = [], node.lineno - 1
    while line in said and said[line][1]:
        above.insert(0, said[line][0])
        line -= 1
    # A comment behind the field before may go on below it, and is not this one's.
    if above and line in said and not said[line][0].endswith((".", ":")):
        above = []
    behind, line = [], node.end_lineno or node.lineno
    if line in said:
        behind.append(said[line][0])
        while not behind[-1].endswith((".", ":")) and said.get(line + 1, ("", False))[1]:
            line += 1
            behind.append(said[line][0])
    return " ".join([*above, *behind])


def fields(config: str) -> Iterator[Field]:
    """Yields the fields of a configuration `kullback.ROOM.MODULE.CLASS`, its bases' too.

    Raises:
      ValueError: if there is no such class.
    """
    module, _, name = config.rpartition(".")
    source = path_of(module).read_text()
    tree, said = ast.parse(source), comments(source)
    (class_,) = [x for x in tree.body if isinstance(x, ast.ClassDef) and x.name == name] or [None]
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    if class_ is None and imported.get(name, "").startswith("kullback."):
        yield from fields(imported[name])
        return
    if class_ is None:
        raise ValueError(f"no class {name} in {module}")
    for base in map(ast.unparse, class_.bases):  # Their fields come first.
        prefix, dot, last = base.rpartition(".")
        yield from fields(f"{imported[prefix]}.{last}" if dot else f"{module}.{base}")
    for node in class_.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        hint = ast.unparse(node.annotation)
        # Of a module, or imported itself; of several, the default is the first.
        prefix, dot, last = hint.partition(" | ")[0].rpartition(".")
        dotted = (
            f"{imported.get(prefix, '')}.{last}" if dot else imported.get(hint, f"{module}.{hint}")
        )
        is_nested = dotted.startswith("kullback.") and dotted.rpartition(".")[2] in CONFIGS
        nested = dotted if is_nested else None
        default = "" if node.value is None else ast.unparse(_made(node.value))
        yield Field(node.target.id, hint, default, comment_of(node, said), nested)


# Classes that configurations hold.
CONFIGS = ("Config", "Objective", "Atoms", "Samples", "Implicit")


def _made(value: ast.expr) -> ast.expr:
    """Returns what `dataclasses.field` takes or makes as the default, or the value as it is."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "dataclasses.field":
        given = {keyword.arg: keyword.value for keyword in value.keywords}
        if "default" in given:
            return given["default"]
        factory = given["default_factory"]
        return factory.body if isinstance(factory, ast.Lambda) else ast.Call(factory, [], [])
    return value


def settings(config: str, page: str, pages: dict[str, str]) -> str:
    """Returns the table of a configuration's fields.

    Args:
      config: dotted name of the class.
      page: where the table stands, relative to docs/.
      pages: configuration -> page that shows it.
    """
    lines = ["| setting | default | unit, range, source |", "| --- | --- | --- |"]
    for field in fields(config):
        said = field.comment
        default = f"`{field.default}`"
        if field.config is not None:
            where = pages.get(field.config)
            if where is None:
                raise ValueError(f"{page}: no page shows the settings of {field.config}")
            target = posixpath.relpath(where, posixpath.dirname(page) or ".")
            changed = re.match(r"[\w.]+\((.*)\)$", field.default, re.DOTALL)
            default = f"`{changed[1]}`" if changed and changed[1] else "as there"
            said = f"{said} Its own fields: [{short(field.config)}]({target}).".strip()
        elif field.hint.startswith("Literal"):
            said = f"{said} One of {field.hint[8:-1]}.".strip()
        cells = [f"`{field.name}`", default, said]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def short(config: str) -> str:
    """Returns `MODULE.CLASS`."""
    return ".".join(config.split(".")[-2:])


def metric_rows() -> dict[str, str]:
    """Returns metric -> its row of the tables in metrics.md."""
    text = (DOCS / "metrics.md").read_text()
    return {name: row for row, name in re.findall(r"^(\| `(\w+)` \|.*)$", text, re.MULTILINE)}


def metrics(names: str) -> str:
    """Returns a table of metrics; ValueError for one that metrics.md has not."""
    rows = metric_rows()
    missing = [name for name in names.split() if name not in rows]
    if missing:
        raise ValueError(f"metrics.md has no row for {', '.join(missing)}")
    head = ["| column | what it is | a healthy curve |", "| --- | --- | --- |"]
    return "\n".join([*head, *(rows[name] for name in names.split())])


def curve(argument: str) -> str:
    """Returns a table of some rows of a metrics.csv; ValueError for a step that it has not.

    Args:
      argument: "PATH | COLUMNS | STEPS", the path relative to the root.
    """
    path, columns, steps = (part.split() for part in argument.split("|"))
    with (ROOT / path[0]).open() as lines:
        rows = list(csv.DictReader(lines))
    rows = {row["steps"]: row for row in rows if row["seed"] == rows[0]["seed"]}
    missing = [step for step in steps if step not in rows]
    if missing:
        raise ValueError(f"{path[0]} has no row at step {', '.join(missing)}")
    numbers = [[float(rows[step][name]) for name in columns] for step in steps]
    cells = [["" if x != x else f"{x:.3g}" for x in row] for row in numbers]
    lines = [["`steps`", *(f"`{name}`" for name in columns)], ["---:"] * (len(columns) + 1)]
    lines += [[f"{int(step):,}", *row] for step, row in zip(steps, cells, strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markers(text: str, kind: str) -> list[str]:
    """Returns the arguments of a page's markers of a kind."""
    return [argument for name, argument in _MARKER.findall(text) if name == kind]


def outside(text: str, page: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns link -> path relative to the root, of a page's links out of docs/."""
    links = {link for _, link in _LINK.findall(text)}
    paths = {link: pathlib.Path(os.path.normpath(page.parent / link)) for link in links}
    return {k: p.relative_to(ROOT) for k, p in paths.items() if DOCS not in [p, *p.parents]}


def copy_of(path: pathlib.Path) -> str:
    """Returns where the site has a file of the repository; what is text is shown as text."""
    if (ROOT / path).is_dir():
        path = path / "README.md"
    suffix = "" if path.suffix in (".png", ".svg", ".csv") else ".txt"
    return f"{COPIES}/{path.as_posix()}{suffix}"


def on_config(config: Any) -> Any:
    """Lets texts say <pi, q>, q_* and > 0: no HTML, no quotations."""
    from markdown.extensions import Extension  # Where documents are built, and nowhere else.
    from markdown.inlinepatterns import SimpleTextInlineProcessor

    class Plain(Extension):
        def extendMarkdown(self, md: Any) -> None:  # As Markdown calls it.
            md.inlinePatterns.deregister("html")
            # After code, before emphasis.
            md.inlinePatterns.register(SimpleTextInlineProcessor(r"(_\*)"), "optimum", 185)
            md.preprocessors.deregister("html_block")
            md.parser.blockprocessors.deregister("quote")

    config.markdown_extensions.append(Plain())
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the files that pages link to."""
    from mkdocs.structure.files import File  # Where documents are built, and nowhere else.

    linked = set()
    for page in files.documentation_pages():
        path = pathlib.Path(page.abs_src_path)
        linked |= set(outside(path.read_text(), path).values())
    for path in sorted(linked):
        source = ROOT / path / "README.md" if (ROOT / path).is_dir() else ROOT / path
        files.append(File.generated(config, copy_of(path), abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fills the markers of a page, and leads its links to the copies."""
    del config
    here = page.file.src_uri
    pages = {
        argument: file.src_uri
        for file in files.documentation_pages()
        for argument in markers(pathlib.Path(file.abs_src_path).read_text(), "settings")
    }

    def filled(match: re.Match[str]) -> str:
        kind, argument = match.groups()
        if kind == "settings":
            return settings(argument, here, pages)
        return metrics(argument) if kind == "metrics" else curve(argument)

    copied = outside(markdown, pathlib.Path(page.file.abs_src_path))
    up = "../" * here.count("/")
    linked = _LINK.sub(
        lambda m: m[1] + (up + copy_of(copied[m[2]]) if m[2] in copied else m[2]), markdown
    )
    return _MARKER.sub(filled, linked)


def on_page_content(html: str, **kwargs: Any) -> str:
    """Opens what is shown of sources, and names their files as the repository does."""
    html = html.replace(
        '<details class="mkdocstrings-source">', '<details class="mkdocstrings-source" open>'
    )
    return html.replace(".cache/docs/source/kullback/", "")


def shown(text: str) -> list[str]:
    """Returns what a page shows of the code, `::: NAME`."""
    return re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)


def on_post_build(config: Any) -> None:
    """Raises unless the site shows every name of the public modules."""
    listed = zlib.decompress(
        pathlib.Path(config.site_dir, "objects.inv").read_bytes().split(b"\n", 4)[4]
    ).decode()
    names = {line.split(" ", 1)[0] for line in listed.splitlines()}
    public = [
        name for path in (DOCS / "reference").glob("*.md") for name in shown(path.read_text())
    ]
    missing = [f"{m}.{n}" for m in public for n in exported(m) if f"{m}.{n}" not in names]
    if missing:
        raise ValueError(f"public, but not in the reference: {', '.join(missing)}")
