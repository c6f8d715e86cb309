"""The folder of a small model that writes letters, with a chat template."""

import pathlib

import pytest

from kullback.lm import chat, tokenizer
from tests.small_models import write


@pytest.fixture(scope="session")
def converses(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    bpe = chat.with_template(tokenizer.train_bpe(["user\nmodel\n"], 262))
    return write(tmp_path_factory.mktemp("converses"), bpe)
