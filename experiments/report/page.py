"""A page of HTML that stands alone: pictures are in it, and nothing is fetched.

Pictures and tables are written beside it too, as PNG and CSV of the same name.
"""

import base64
import contextlib
import html
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from kullback.core import files
from kullback.experiments import statistics

INDEX = "index.html"
LONG = 30  # Characters above which a cell gets more room on narrow screens.
UNFOLDED = 12  # Lines of a warning that are shown; more are folded.
MARK = '<meta name="generator" content="kullback report">'

STYLE = pathlib.Path(__file__).with_name("page.css")


class Page:
    """Collects the parts of a page in the order in which they are added; all text is escaped.

    Pictures and tables are written at once, into `folder`, which exists and is empty.
    """

    def __init__(
        self, folder: pathlib.Path, title: str, say: Callable[[str], Any] = lambda line: None
    ):
        """Begins without a part; `say` prints a line."""
        self._folder, self._title, self.say = folder, title, say
        self._parts: list[str] = []
        self._sections: list[tuple[str, str]] = []
        self._names: set[str] = set()

    def section(self, title: str) -> None:
        """Adds a heading that is in the page's table of contents."""
        anchor = f"section-{len(self._sections) + 1}"
        self._sections.append((anchor, title))
        self._parts.append(f'<h2 id="{anchor}">{_text(title)}</h2>')

    def heading(self, title: str) -> None:
        """Adds a heading within a section."""
        self._parts.append(f"<h3>{_text(title)}</h3>")

    def paragraph(self, text: str) -> None:
        """Adds a paragraph."""
        self._parts.append(f"<p>{_text(text)}</p>")

    def warning(self, summary: str, lines: Sequence[str] = (), said: str = "") -> None:
        """Adds a warning: a sentence and a list, folded if it is long.

        Unless `said` is "", each line is printed too, with it in front.
        """
        for line in lines if said else ():
            self.say(f"{said}: {line}")
        inner = f"<p>{_text(summary)}</p>"
        if lines:
            items = "".join(f"<li>{_text(line)}</li>" for line in lines)
            opened = " open" if len(lines) <= UNFOLDED else ""
            inner += f"<details{opened}><summary>which</summary><ul>{items}</ul></details>"
        self._parts.append(f'<div class="warning">{inner}</div>')

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], caption: str) -> None:
        """Adds a table and its CSV, in which an `Estimate` is three columns.

        Args:
          name: of the CSV, without its ending.
          rows: with the same keys each; numbers, texts and `Estimate`s.
          caption: says what the numbers are.
        """
        if not rows:
            return
        path = self._csv(name, rows)
        head = "".join(
            f'<th scope="col"{_class(value)}>{_text(key)}</th>' for key, value in rows[0].items()
        )
        body = "".join(f"<tr>{''.join(map(_cell, row.values()))}</tr>" for row in rows)
        self._parts.append(
            f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
            f'<p class="note">{_text(caption)} <a href="{_text(path.name)}">CSV</a></p>'
        )

    def figure(
        self, name: str, drawn: Figure, caption: str, rows: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Adds a picture and its PNG; its caption is also its alternative text.

        Args:
          name: of the PNG, without its ending.
          drawn: the picture.
          caption: says what is seen.
          rows: the numbers that are drawn, for a CSV; none where a table has them.
        """
        path = self._path(name, ".png")
        drawn.savefig(path, format="png")
        link = f' <a href="{_text(self._csv(name, rows).name)}">CSV</a>' if rows else ""
        data = base64.b64encode(path.read_bytes()).decode()
        width, height = (round(side * drawn.dpi) for side in drawn.get_size_inches())
        self._parts.append(
            f'<figure><img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
            f'alt="{_text(caption)}"><figcaption>{_text(caption)} '
            f'<a href="{_text(path.name)}">PNG</a>{link}</figcaption></figure>'
        )

    @contextlib.contextmanager
    def figures(self) -> Iterator[None]:
        """Lets the figures of a block stand side by side where there is room."""
        self._parts.append('<div class="figures">')
        yield
        self._parts.append("</div>")

    def folded(self, summary: str, text: str, pictures: Mapping[str, bytes] | None = None) -> None:
        """Adds preformatted text behind a line that unfolds it.

        Args:
          summary: the line.
          text: behind it.
          pictures: PNGs that stand before the text, by their alternative texts.
        """
        shown = "".join(
            f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" '
            f'alt="{_text(name)}" title="{_text(name)}"> '
            for name, png in (pictures or {}).items()
        )
        self._parts.append(
            f"<details><summary>{_text(summary)}</summary>{shown}<pre>{_text(text)}</pre></details>"
        )

    def write(self) -> None:
        """Writes index.html."""
        links = " ".join(f'<a href="#{a}">{_text(title)}</a>' for a, title in self._sections)
        body, style = "\n".join(self._parts), STYLE.read_text("utf-8")
        (self._folder / INDEX).write_text(
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{MARK}\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            # An empty icon, as a browser would fetch one from a server otherwise.
            '<link rel="icon" href="data:,">\n'
            f"<title>{_text(self._title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
            f"<h1>{_text(self._title)}</h1>\n<nav>{links}</nav>\n{body}\n</body>\n</html>\n",
            encoding="utf-8",
        )

    def _csv(self, name: str, rows: Sequence[Mapping[str, Any]]) -> pathlib.Path:
        path = self._path(name, ".csv")
        plain = [dict(pair for item in row.items() for pair in _columns(*item)) for row in rows]
        files.write_csv(path, plain)
        return path

    def _path(self, name: str, ending: str) -> pathlib.Path:
        """Returns an unused path in the folder; unsafe characters of `name` become hyphens."""
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.").lower()
        number, file = 1, f"{stem}{ending}"
        while file in self._names:
            number += 1
            file = f"{stem}-{number}{ending}"
        self._names.add(file)
        return self._folder / file


def check_folder(folder: pathlib.Path) -> None:
    """Raises ValueError unless nothing is there, or an old report, and a report can be written."""
    files.check_writable(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    index = folder / INDEX
    if not (index.is_file() and MARK in index.read_text("utf-8")):
        raise ValueError(
            f"{folder} exists and holds no report; nothing is overwritten: choose another --out"
        )


@contextlib.contextmanager
def replaced(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields an empty folder, which takes the place of an old report, whole or not at all."""
    old = folder.with_name(f"{files.TEMPORARY}old-{folder.name}")
    with files.atomic_path(folder) as temporary:
        temporary.mkdir()
        yield temporary
        if folder.exists():
            files.remove(old)
            folder.rename(old)
    files.remove(old)


def _text(text: object) -> str:
    return html.escape(str(text), quote=True)


def _cell(value: Any) -> str:
    return f"<td{_class(value)}>{_text(_shown(value))}</td>"


def _number(value: float) -> str:
    """Returns a number for a reader: four digits, and thousands in full."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"


def _estimate(value: statistics.Estimate) -> str:
    if value.mean != value.mean:
        return ""
    if value.low == value.high:  # One run a game, or equal runs: no interval to be shown.
        return _number(value.mean)
    return f"{_number(value.mean)} [{_number(value.low)}, {_number(value.high)}]"


def _class(value: Any) -> str:
    """Returns the class of a cell and of its column's head."""
    if isinstance(value, float | int | statistics.Estimate) and not isinstance(value, bool):
        return ' class="number"'
    return ' class="long"' if len(str(value)) > LONG else ""


def _shown(value: Any) -> object:
    if isinstance(value, float):
        return _number(value) if value == value else ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, statistics.Estimate):
        return _estimate(value)
    return value


def _columns(key: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, statistics.Estimate):
        return [(key, value.mean), (f"{key} low", value.low), (f"{key} high", value.high)]
    return [(key, value)]
