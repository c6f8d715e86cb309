"""Lets mkdocstrings show comments of fields, and arguments that are told in one line."""

import ast
import functools
import pathlib
import re
import runpy
from typing import Any

import griffe

_hooks = runpy.run_path(str(pathlib.Path(__file__).with_name("hooks.py")))


@functools.cache
def _said(path: pathlib.Path) -> dict[int, tuple[str, bool]]:
    return _hooks["comments"](path.read_text())


class Comments(griffe.Extension):
    """Reads the comments above and behind an attribute that has no docstring."""

    def on_function_instance(self, *, node: Any, func: griffe.Function, **kwargs: Any) -> None:
        """Makes paragraphs of `Args: a, b: of both; c: another.`, which is no section to griffe."""
        if func.docstring is not None:
            text = func.docstring.value
            for name, title in (("Args", "Parameters"), ("Returns", "Returns")):
                text = re.sub(rf"^{name}: (?=\S)", rf"\n**{title}:** ", text, flags=re.MULTILINE)
            func.docstring.value = text

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Sets the docstring."""
        if attr.docstring is None and isinstance(node, ast.Assign | ast.AnnAssign):
            text = _hooks["comment_of"](node, _said(pathlib.Path(str(attr.filepath))))
            if text:
                attr.docstring = griffe.Docstring(text, parent=attr)
