"""Every reader refuses values of wrong types in files of models and of data."""

import json
import pathlib
import shutil
import struct
from typing import Any

import pytest

from kullback.core import json_files, weights
from kullback.lm import data, folder_meaning, gemma, preferences
from kullback.lm.entailment import bert_folder, faithfulness, pair_tokenizer
from kullback.lm.formats import hugging_face_config, tensor_files
from kullback.lm.tokenizer import Tokenizer, train_bpe
from tests import damage

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
CONFIG = gemma.Config(
    vocab_size=16, num_layers=2, embed_dim=8, num_heads=2, num_kv_heads=1, head_dim=4,
    hidden_dim=16, window=4, pattern=2, eos_ids=(1, 3), global_rope_factor=2.0,
)  # fmt: skip
BOTH = hugging_face_config.to_json(CONFIG, "float32") | {"kullback": {"divergence": "chi_squared"}}
OLD = {name: value for name, value in BOTH.items() if name not in ("rope_parameters",)}
NEW = {
    name: value
    for name, value in BOTH.items()
    if name not in ("rope_theta", "rope_local_base_freq", "rope_scaling", "sliding_window_pattern")
}


@pytest.mark.parametrize(
    "fields", [OLD, NEW, {"model_type": "gemma3", "text_config": NEW, "eos_token_id": 1}]
)
def test_gemmas_configuration(fields: dict[str, Any], tmp_path: pathlib.Path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))

    def read() -> None:
        hugging_face_config.read(tmp_path)
        folder_meaning.fields(tmp_path)

    damage.check(path, read)


def test_gemmas_special_tokens(tmp_path: pathlib.Path):
    (tmp_path / "config.json").write_text(json.dumps(NEW))
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(hugging_face_config.generation_to_json(CONFIG)))
    assert hugging_face_config.read(tmp_path).eos_ids == (1, 3)
    damage.check(path, lambda: hugging_face_config.read(tmp_path))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_berts_configuration(kind: str, tmp_path: pathlib.Path):
    path = pathlib.Path(shutil.copy(FIXTURES / kind / "config.json", tmp_path))

    def read() -> None:
        bert_folder.read_config(tmp_path)
        folder_meaning.fields(tmp_path)

    damage.check(path, read)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_berts_tokenizer(kind: str, tmp_path: pathlib.Path):
    shutil.copytree(FIXTURES / kind, tmp_path, dirs_exist_ok=True)
    config = bert_folder.read_config(tmp_path)
    path = tmp_path / "tokenizer.json"
    if kind == "bert":
        path = tmp_path / "tokenizer_config.json"
        fields = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
        path.write_text(json.dumps(fields))
    damage.check(path, lambda: pair_tokenizer.read(tmp_path, config).encode(["it is"]), most=400)


def test_a_classifiers_regular_expression_without_end_is_a_line(tmp_path: pathlib.Path):
    shutil.copytree(FIXTURES / "roberta", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer.json"
    fields = json.loads(path.read_text())
    pattern = {"Regex": "(a+)+b"}
    fields["pre_tokenizer"] = {
        "type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False,
    }  # fmt: skip
    path.write_text(json.dumps(fields))
    pairs = pair_tokenizer.read(tmp_path, bert_folder.read_config(tmp_path))
    with pytest.raises(ValueError, match=r"tokenizer\.json: it cannot encode a text that begins"):
        pairs.encode(["a" * 40 + "c"])


@pytest.fixture
def weighed(tmp_path: pathlib.Path) -> pathlib.Path:
    """Returns a folder of weights."""
    shutil.copyfile(FIXTURES / "one_layer.json", tmp_path / "config.json")
    shutil.copyfile(FIXTURES / "one_layer.safetensors", tmp_path / "model.safetensors")
    return tmp_path


def test_an_index(weighed: pathlib.Path):
    shard = weighed / "model-00001-of-00001.safetensors"
    (weighed / "model.safetensors").rename(shard)
    index = {
        "metadata": {"total_size": 5},
        "weight_map": {name: shard.name for name in weights.read(shard)},
    }
    path = weighed / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    damage.check(path, lambda: tensor_files.open_folder(weighed))


def test_a_header_of_tensors(weighed: pathlib.Path):
    path = weighed / "model.safetensors"
    sound = path.read_bytes()
    (size,) = struct.unpack("<Q", sound[:8])
    faults = []
    for damaged in damage.variants(sound[8 : 8 + size].decode()):
        header = damaged.text.encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + sound[8 + size :])
        if fault := damage.fault_of(lambda: tensor_files.open_folder(weighed), path.name):
            faults.append(f"{damaged.where}: {fault}")
    assert not faults, "\n".join(faults)


ROWS = {
    "completion": {"prompt": "1+1=", "completion": "2", "id": 3},
    "ids": {"prompt": [10, 11], "target": [12, 13]},
    "text": {"text": "1+1=2"},
    "messages": {
        "messages": [{"role": "user", "content": "1+1"}, {"role": "model", "content": "2"}]
    },
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["a"], 262)


@pytest.mark.parametrize("form", ROWS)
def test_rows(form: str, tokenizer: Tokenizer, tmp_path: pathlib.Path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(ROWS[form]) + "\n" for _ in range(3)))

    def read() -> None:
        data.read_jsonl(path, tokenizer)
        if form in ("completion", "messages"):
            data.read_questions(path, tokenizer)

    damage.check(path, read, line=1)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "1+1=", "chosen": "2", "rejected": "3"},
        {
            "chosen": ROWS["messages"]["messages"],
            "rejected": [*ROWS["messages"]["messages"][:1], {"role": "model", "content": "3"}],
        },
    ],
)
def test_pairs(row: dict[str, Any], tokenizer: Tokenizer, tmp_path: pathlib.Path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row) + "\n")
    damage.check(path, lambda: preferences.read_jsonl(path, tokenizer), line=0)


def test_papers(tmp_path: pathlib.Path):
    path = tmp_path / "test.jsonl"
    summary = dict.fromkeys(faithfulness.ASPECTS, "They do.")
    marks = {"abstract": [1, 0], "conclusion": [0]}
    row = {
        "id": "E09-1056",
        "summary": summary,
        "sentences": {"abstract": ["They do.", "We do."], "conclusion": ["It is done."]},
        "highlights": dict.fromkeys(faithfulness.ASPECTS, marks),
    }
    path.write_text(json.dumps(row) + "\n")

    def read() -> faithfulness.Paper:
        return faithfulness.paper(json_files.parse(path.read_text(), f"{path}:1"))

    assert read().summaries[0] == ("They do.", ("They do.",))
    damage.check(path, read, line=0)
