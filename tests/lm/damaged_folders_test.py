"""What the files of a folder of weights hold of other types, in every reader of them."""

import json
import pathlib
import shutil
from typing import Any

import pytest

from kullback.lm import bert_folder, folder_meaning, gemma, hugging_face_config
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
