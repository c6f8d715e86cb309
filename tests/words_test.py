"""A function's docstring begins with a verb, and a module is called by its own name."""

import ast
import functools
import pathlib
from collections.abc import Iterator

import pytest

# Names that may hold anything: a tokenizer was called `words`, a result `found` or `made`.
VAGUE_NAMES = {"arena", "asked", "found", "judge", "made", "own", "words"}

# Openings that make a reader guess what is meant: the thing itself comes first.
VAGUE = {"What", "Of", "Those", "By", "As", "Where"}

# Words that are no verbs ("Tokens of a text"), unless a determiner follows ("Runs a scheme").
NOUNS = set(
    """
    Always Its Less Ours Perhaps Plus This Thus Versus
    Accuracies Actions Agents Answers Arguments Arms Arrays Atoms Averages Bars Bases Batches
    Bits Blocks Bytes Chances Channels Checkpoints Classes Colours Columns Completions Copies
    Cosines Curves Dimensions Distances Divergences Edges Entries Environments Episodes Epochs
    Errors Examples Features Fields Figures Files Flags Folders Frames Functions Games Gaps
    Gradients Groups Ids Images Improvements Indices Intervals Items Iterations Keys Labels
    Layers Leaves Lengths Letters Levels Likelihoods Lines Logits Logs Loss Losses Masses Means
    Members Metrics Models Modules Names Numbers Observations Options Pairs Papers Parameters
    Parts Paths Pictures Pieces Pixels Points Policies Positions Priorities Probabilities
    Processes Products Prompts Quantiles Ranges Rates Ratios Records Rewards Rows Runs Scalars
    Scales Schemes Scores Seconds Sections Seeds Sentences Series Settings Shapes Sizes Slots
    Spans States Statistics Steps Strings Students Sums Supports Tables Targets Tasks Tensors
    Terms Texts Threads Thresholds Ticks Tokens Values Vectors Versions Ways Weights Words
    """.split()
)


DETERMINERS = {
    "what",
    "a",
    "an",
    "the",
    "all",
    "another",
    "both",
    "each",
    "every",
    "it",
    "one",
    "several",
}


@functools.cache
def nodes(source: str) -> list[ast.AST]:
    """Returns the nodes of a file, parsed once for all rules."""
    return list(ast.walk(ast.parse(source)))


@functools.cache
def sources(root: pathlib.Path) -> dict[pathlib.Path, str]:
    """Returns the text of each file that is ours."""
    paths = sorted(root.glob("[!.]*/**/*.py"))
    return {path.relative_to(root): path.read_text() for path in paths}


def has_verb(docstring: str) -> bool:
    """Returns whether a docstring begins with a word like Returns."""
    word, following = (*docstring.split(), "", "")[:2]
    word = word.strip(".,:;")
    is_verb = word not in NOUNS or following in DETERMINERS
    return word[0].isupper() and word.isalpha() and word.endswith("s") and is_verb


def is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Returns whether a method is read as a field is, and so is documented as one."""
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def docstring_complaints(source: str) -> Iterator[str]:
    """Yields "line: what is wrong" for each docstring that breaks the rules."""
    for node in nodes(source):
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if not is_function and not isinstance(node, ast.ClassDef | ast.Module):
            continue
        docstring = ast.get_docstring(node)
        # A test's docstring adds to its name, which is a sentence.
        if not docstring or getattr(node, "name", "").startswith("test_"):
            continue
        start = f"{node.body[0].lineno}: {docstring.splitlines()[0]!r}"
        if docstring.split()[0].strip(",") in VAGUE:
            yield f"{start} begins with a word that only what follows explains"
        elif is_function and not is_property(node) and not has_verb(docstring):
            yield f"{start} does not begin with a verb, such as Returns"


def renamed_modules(root: pathlib.Path, source: str) -> Iterator[str]:
    """Yields "line: what is wrong" for each module of ours imported under another name.

    Two modules of one name may meet in a file, and `__main__` is no name to call a module by.
    """
    imports = [x for x in nodes(source) if isinstance(x, ast.ImportFrom)]
    names = [alias.name for x in imports for alias in x.names]
    for node in imports:
        folder = root.joinpath(*(node.module or "").split(".")[1:])
        if node.module is None or node.module.split(".")[0] != "kullback":
            continue
        for alias in node.names:
            is_module = any((folder / path).exists() for path in (alias.name, f"{alias.name}.py"))
            is_clash = names.count(alias.name) > 1 or alias.name == "__main__"
            if is_module and not is_clash and alias.asname not in (None, alias.name):
                yield f"{node.lineno}: {alias.name} is imported as {alias.asname}"


def vague_names(source: str) -> Iterator[str]:
    """Yields "line: what is wrong" for each function, argument or variable of a vague name."""
    for node in nodes(source):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                line, name = node.lineno, node.name
            case ast.arg():
                line, name = node.lineno, node.arg
            case ast.Name(ctx=ast.Store()):
                line, name = node.lineno, node.id
            case _:
                continue
        if name in VAGUE_NAMES:
            yield f"{line}: {name} may be anything; call it what it holds"


def test_docstrings_say_what_a_function_does(root: pathlib.Path):
    wrong = [
        f"{path}:{complaint}"
        for path, source in sources(root).items()
        for complaint in docstring_complaints(source)
    ]
    assert not wrong, "\n".join(wrong)


def test_modules_keep_their_names(root: pathlib.Path):
    wrong = [
        f"{path}:{complaint}"
        for path, source in sources(root).items()
        for complaint in renamed_modules(root, source)
    ]
    assert not wrong, "\n".join(wrong)


def test_names_say_what_they_hold(root: pathlib.Path):
    wrong = [
        f"{path}:{complaint}"
        for path, source in sources(root).items()
        for complaint in vague_names(source)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "docstring",
    [
        "What is left.",
        "Of a run.",
        "By name.",
        "Tokens of a text.",
        "The mean.",
        "Return it.",
        "Runs at paths.",
    ],
)
def test_another_opening_is_found(docstring: str):
    source = f'def f():\n    """{docstring}"""\n'
    assert len(list(docstring_complaints(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        'def f():\n    """Returns it."""\n',
        'def f():\n    """Runs a scheme."""\n',
        'class A:\n    """A run."""\n\n    @property\n    def b(self):\n        """Its seeds."""\n',
        "def f():\n    pass\n",
    ],
)
def test_the_right_openings_are_not(source: str):
    assert not list(docstring_complaints(source))


def test_another_name_is_found(root: pathlib.Path):
    renamed = "from kullback.core import replay as replays\n"
    assert len(list(renamed_modules(root, renamed))) == 1
    assert not list(renamed_modules(root, renamed + "from kullback.experiments import replay\n"))
    assert not list(renamed_modules(root, "from kullback.core.files import sha256 as sha256\n"))


@pytest.mark.parametrize("source", ["found = 1", "def made(): ...", "def f(*, words): ..."])
def test_a_vague_name_is_found(source: str):
    assert len(list(vague_names(source))) == 1
    assert not list(vague_names("found.made = found[0]"))  # A name of somebody else's.
