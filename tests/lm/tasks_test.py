"""Tests of lm/tasks.py."""

import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest

from kullback.lm import data, read_once, tasks
from kullback.lm.data import Limits
from kullback.lm.tokenizer import Tokenizer, reading, train_bpe


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["a"], 262)


OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


@pytest.mark.parametrize("operation", ["+", "-", "*"])
@pytest.mark.parametrize("digits", [1, 2, 5, 9])
def test_arithmetic_is_right_and_its_splits_are_apart(operation: Any, digits: int):
    config = tasks.Arithmetic(digits=digits, operation=operation, num_train=500, num_test=60)
    task = tasks.make("tokens/arithmetic", config)
    seen = {}
    for split in ("train", "test"):
        texts = task.texts(split)
        assert len(texts) == len(set(texts))
        pairs = []
        for text in texts:
            match = re.fullmatch(r"(\d+)([-+*])(\d+)=(-?\d+)", text)
            assert match and match[2] == operation
            a, b = int(match[1]), int(match[3])
            assert max(a, b) < 10**digits
            assert int(match[4]) == OPERATIONS[operation](a, b)
            pairs.append((min(a, b), max(a, b)))
        seen[split] = set(pairs)
    assert seen["train"] and seen["test"] and not seen["train"] & seen["test"]
    if digits > 1:
        assert (len(task.texts("train")), len(task.texts("test"))) == (500, 60)
    else:  # All there are.
        assert len(task.texts("train")) + len(task.texts("test")) == 100


def test_arithmetic_is_reproducible_and_spread():
    task = tasks.make("tokens/arithmetic")
    train, test = task.texts("train"), task.texts("test")
    assert train == tasks.make("tokens/arithmetic").texts("train")
    other = tasks.make("tokens/arithmetic", tasks.Arithmetic(seed=1))
    assert train != other.texts("train")
    assert set(train) == set(other.texts("train"))  # Two digits: all that are not held out.
    assert not set(test) & set(train)
    assert 800 <= len(test) <= 1_000 and 9_000 <= len(train) <= 9_200
    for texts in (train, test):  # No digit of an answer is the held-out ones'.
        last = np.bincount([int(text[-1]) for text in texts], minlength=10) / len(texts)
        assert np.all(np.abs(last - 0.1) < 0.05)


def test_arithmetic_of_many_digits_has_as_many_as_asked_and_none_twice():
    many = tasks.arithmetic(tasks.Arithmetic(digits=4, num_train=40_000)).texts("train")
    assert len(many) == len(set(many)) == 40_000  # Drawn from 10^8: some came up twice.
    for seed in range(80):
        few = tasks.arithmetic(tasks.Arithmetic(digits=4, num_train=1, num_test=1, seed=seed))
        assert len(few.texts("test")) == len(few.texts("train")) == 1


def test_arithmetic_examples_and_score(tokenizer: Tokenizer):
    task = tasks.make("tokens/arithmetic", tasks.Arithmetic(num_train=20, num_test=5))
    examples, report = task.examples("train", tokenizer, None)
    assert report.rows == len(examples) == 20
    for example, text in zip(examples, task.texts("train"), strict=True):
        assert tokenizer.decode(example.prompt) + tokenizer.decode(example.completion) == text
        assert tokenizer.decode(example.prompt).endswith("=")
        assert example.prompt[0] == tokenizer.bos_id
        assert example.completion[-1] == tokenizer.eos_id
    assert task.score is not None
    assert task.score(" 19\n", "19") == 1.0
    assert task.score("19 9", "19") == task.score("", "19") == 0.0


def test_conversations_are_split_and_fit_their_lengths():
    task = tasks.make("tokens/conversations")
    bpe = train_bpe(task.texts("train"), 512)  # As a preset's is.
    lengths = tasks.lengths("tokens/conversations")
    limits = Limits(
        max_length=sum(lengths.values()), max_prompt_length=lengths["max_prompt_length"]
    )
    firsts = {}
    counts: dict[tasks.Split, int] = {"train": 90, "test": 8}
    for split, least in counts.items():
        examples, report = task.examples(split, bpe, limits)
        assert len(examples) == report.rows >= least and not report.spelled
        assert max(len(x.completion) for x in examples) <= lengths["max_new_tokens"]
        # Turns of the model's before the last.
        assert {len(x.answers) for x in examples} == ({0, 1, 2} if split == "train" else {0})
        firsts[split] = {tuple(text.split("\n")[:2]) for text in task.texts(split)}
    assert not firsts["train"] & firsts["test"]
    assert task.score is None and tasks.lengths("tokens/arithmetic") == {}
    with pytest.raises(ValueError, match="has no settings, got Arithmetic"):
        tasks.make("tokens/conversations", tasks.Arithmetic())


def test_sums_in_conversations_are_right():
    """Where an answer is "A plus B is C", or says so of another operation."""
    task = tasks.make("tokens/conversations")
    texts = [*task.texts("train"), *task.texts("test")]
    says = {"plus": "+", "minus": "-", "times": "*"}
    sums = [
        x for t in texts for x in re.findall(r"(?<!\.)\b(\d+) (plus|minus|times) (\d+) is (\d+)", t)
    ]
    assert len(sums) > 10
    for a, operation, b, c in sums:
        assert OPERATIONS[says[operation]](int(a), int(b)) == int(c), (a, operation, b, c)


def test_summaries(tokenizer: Tokenizer):
    task = tasks.make("tokens/summaries")
    assert task.score is None
    train, test = task.texts("train"), task.texts("test")
    assert len(train) == len(test) == 300 and not set(train) & set(test)
    limits = Limits(max_length=400, overlong="truncate-left")
    examples, report = task.examples("test", tokenizer, limits)
    assert report.rows == len(examples) == 300 and report.truncated > 250
    assert report.ignored_keys == {}
    prompt = tokenizer.decode(examples[1].prompt)
    assert prompt.endswith("\n\nThe approach in one sentence:\n")
    assert tokenizer.decode(examples[1].completion).startswith("They propose simple methods to")
    assert all(example.length <= 400 for example in examples)
    body, question = prompt[-200:].rsplit("\n\n", 1)
    assert task.document(examples[1], f"{body}\n\n{question}") == body


def test_summaries_of_more_sections_are_longer():
    short = tasks.make("tokens/summaries", tasks.Summaries(aspects=("outcome",)))
    sections = ("abstract", "introduction", "conclusion")
    whole = tasks.make("tokens/summaries", tasks.Summaries(aspects=("outcome",), sections=sections))
    lengths = [[len(t) for t in task.texts("train")] for task in (short, whole)]
    assert len(lengths[0]) == len(lengths[1]) == 100
    assert all(a < b for a, b in zip(*lengths, strict=True))


def test_without_aclsum_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install aclsum"):
        tasks.make("tokens/summaries")


def write(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_folder_of_jsonl_leads_only_into_itself(tmp_path: pathlib.Path):
    folder = tmp_path / "data"
    folder.mkdir()
    write(tmp_path / "secret.jsonl", [{"text": "abc"}])
    write(folder / "train.jsonl", [{"text": "abc"}])
    (folder / "test.jsonl").symlink_to(tmp_path / "secret.jsonl")
    for kind in ("jsonl", "preferences"):
        with pytest.raises(ValueError, match=r"data/test\.jsonl is a link out of the folder, to "):
            tasks.make(f"tokens/{kind}:{folder}")


def test_a_folder_of_jsonl(tokenizer: Tokenizer, tmp_path: pathlib.Path):
    write(tmp_path / "train.jsonl", [{"text": "abc"}])
    with pytest.raises(ValueError, match=r"lacks test\.jsonl"):
        tasks.make(f"tokens/jsonl:{tmp_path}")
    messages = [{"role": "user", "content": "q"}, {"role": "model", "content": "r"}]
    write(tmp_path / "test.jsonl", [{"messages": messages}, {"prompt": "a", "target": "b"}])
    task = tasks.make(f"tokens/jsonl:{tmp_path}")
    assert task.texts("train") == ["abc"] and task.texts("test") == ["q\nr", "ab"]
    examples, report = task.examples("test", tokenizer, None)
    assert len(examples) == report.rows == 2 and task.name == f"tokens/jsonl:{tmp_path}"
    write(tmp_path / "test.jsonl", [{"text": "a"}, {"text": ""}])
    with pytest.raises(ValueError, match=r"test\.jsonl:2: text is empty"):
        task.examples("test", tokenizer, None)


def test_a_file_is_split_by_what_is_asked(tokenizer: Tokenizer, tmp_path: pathlib.Path):
    path = tmp_path / "all.jsonl"
    rows = [{"prompt": f"p{n % 200}", "completion": f"c{n}"} for n in range(400)]
    write(path, rows)
    task = tasks.make(f"tokens/jsonl:{path}")
    train, test = task.texts("train"), task.texts("test")
    assert sorted(train + test) == sorted(row["prompt"] + row["completion"] for row in rows)
    questions = [{text.split("c")[0] for text in texts} for texts in (train, test)]
    assert not questions[0] & questions[1] and 20 <= len(test) <= 70
    chats = [
        [{"role": "user", "content": f"q{n % 100}"}, {"role": "model", "content": f" r{n}"}]
        for n in range(200)
    ]
    write(path, [{"messages": m} for m in chats])
    questions = [{t.split("\n")[0] for t in task.texts(s)} for s in ("train", "test")]
    assert questions[0] and questions[1] and not questions[0] & questions[1]
    write(path, [{"text": "a"}])
    with pytest.raises(ValueError, match="has no row in"):
        _ = task.texts("train"), task.texts("test")
    with pytest.raises(ValueError, match="no file or folder at"):
        tasks.make("tokens/jsonl:nowhere.jsonl")


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("prompt", [5, None, {"a": {}}, True])
def test_whoever_reads_a_split_meets_a_prompt_that_is_none(
    split: Any, prompt: Any, tokenizer: Tokenizer, tmp_path: pathlib.Path
):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"{n}+1=", "completion": str(n + 1)} for n in range(50)]
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in (*rows, {**rows[0], "prompt": prompt}))
    )
    with pytest.raises(ValueError, match=r"rows.jsonl:51: .*prompt"):
        tasks.jsonl(path).examples(split, tokenizer, None)


def test_the_document_is_what_the_data_name(tokenizer: Tokenizer, tmp_path: pathlib.Path):
    prompt = "Summarize the following article:\n\nParis is in France."
    rows = [
        {"prompt": prompt, "completion": "a", "document": "Paris is in France."},
        {"prompt": prompt, "completion": "a"},
    ]
    pairs = [{"prompt": prompt, "chosen": "a", "rejected": "b"} | row for row in rows]
    for row in pairs:
        del row["completion"]
    for name, written in (("jsonl", rows), ("preferences", pairs)):
        for split in ("train", "test"):
            write(tmp_path / f"{split}.jsonl", written)
        for rule, whole in ((2, prompt), (1, "Summarize the following article:")):
            task = tasks.make(f"tokens/{name}:{tmp_path}", rule=rule)
            examples, _ = task.examples("train", tokenizer, None)
            documents = [task.document(example, prompt) for example in examples]
            assert documents == ["Paris is in France.", whole]


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"unknown task 'tokens/poems'.*tokens/arithmetic"):
        tasks.make("tokens/poems")
    with pytest.raises(ValueError, match="takes Arithmetic as its settings, got Summaries"):
        tasks.make("tokens/arithmetic", tasks.Summaries())
    with pytest.raises(ValueError, match="has no settings"):
        tasks.make("tokens/jsonl:a", tasks.Summaries())
    with pytest.raises(ValueError, match="split must be train or test, got 'val'"):
        tasks.make("tokens/arithmetic").texts("val")  # pyright: ignore[reportArgumentType]
    for bad in ({"digits": 0}, {"digits": 10}, {"operation": "/"}, {"num_test": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            tasks.Arithmetic(**bad)  # pyright: ignore[reportArgumentType]
    for name in ("sections", "aspects"):
        with pytest.raises(ValueError, match=f"{name} must be some of"):
            tasks.Summaries(**{name: ("title",)})
        with pytest.raises(ValueError, match=f"{name} must be some of"):
            tasks.Summaries(**{name: ()})


def test_data_are_read_once_until_they_change(
    tokenizer: Tokenizer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    reads, from_rows, path = [], data.from_rows, tmp_path / "rows.jsonl"

    def counted(*given: Any) -> Any:
        reads.append(given)
        return from_rows(*given)

    def examples(limits: Limits | None = None, of: Tokenizer = tokenizer) -> list[Any]:
        return tasks.make(f"tokens/jsonl:{path}").examples("train", of, limits)[0]

    monkeypatch.setattr(data, "from_rows", counted)
    write(path, [{"prompt": f"{n}", "completion": "a"} for n in range(40)])
    first = examples()
    examples().append(None)  # Whoever reads may change the list.
    assert examples() == first and len(reads) == 1
    assert examples(Limits(max_length=20)) == first and len(reads) == 2
    assert examples(None, reading(tokenizer, "parse")) == first and len(reads) == 3
    write(path, [{"prompt": f"{n}", "completion": "b"} for n in range(40)])
    assert examples() != first and len(reads) == 4
    for n in range(read_once.MOST):
        examples(Limits(max_length=30 + n))
    assert len(read_once._KEPT) == read_once.MOST
