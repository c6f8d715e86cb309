"""Writes a small BERT and a small RoBERTa classifier, and what transformers makes of them: FOLDER.

FOLDER/bert and FOLDER/roberta are folders of Hugging Face. `expected.npz` in each has the ids, mask
and token types of PAIRS as int32 [B, T], padded on the right, and their logits, float32 [B, C].
"""

import pathlib
import shutil
import sys

import numpy as np
import tokenizers
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaTokenizerFast,
)

PAIRS = [
    ("The cat sat on the mat, and a dog looked on.", "A cat sat."),
    ("Dogs do not like 12 cats.", "The dog likes the cat, which sat on the mat of the Dogs"),
    ("cat", "dog"),
]
SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
}
LABELS = ["contradiction", "entailment", "neutral"]
WORDS = (
    "the a cat dog ##s sat on mat and look ##ed do not like which of 1 ##2 , . c d l m o s t w "
    "##a ##c ##e ##g ##i ##k ##o ##t ##u"
).split()


def bert(folder):
    """Returns the tokenizer and the shape of a BERT."""
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n"
    )
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True)
    shape = {**SHAPE, "vocab_size": 5 + len(WORDS), "max_position_embeddings": 48}
    return tokenizer, BertConfig, BertForSequenceClassification, shape


def roberta(folder):
    """Returns the tokenizer and the shape of a RoBERTa."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    inner = tokenizers.ByteLevelBPETokenizer()
    inner.train_from_iterator(
        [text for pair in PAIRS for text in pair], 280, special_tokens=special, show_progress=False
    )
    inner.save_model(str(folder))
    tokenizer = RobertaTokenizerFast(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt")
    )
    shape = {
        **SHAPE,
        "vocab_size": 280,
        "max_position_embeddings": 66,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    }
    return tokenizer, RobertaConfig, RobertaForSequenceClassification, shape


def main(folder):
    """Writes both."""
    for seed, (name, make) in enumerate({"bert": bert, "roberta": roberta}.items()):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
        tokenizer, config_type, model_type, shape = make(folder / name)
        torch.manual_seed(seed)
        config = config_type(**shape, id2label=dict(enumerate(LABELS)))
        model = model_type(config).eval()
        with torch.no_grad():
            for path, weight in model.named_parameters():
                # The norms and biases too, which begin as ones and zeros and would hide.
                is_norm = path.endswith("LayerNorm.weight")
                scale = 0.3 if weight.ndim == 1 else weight.shape[-1] ** -0.5
                weight.copy_(torch.randn_like(weight) * scale + float(is_norm))
            inputs = tokenizer(
                [first for first, _ in PAIRS],
                [second for _, second in PAIRS],
                padding=True,
                return_tensors="pt",
                return_token_type_ids=True,
            )
            logits = model(**inputs).logits
        model.save_pretrained(folder / name)
        for path in (folder / name).glob("*.txt" if name == "roberta" else "*.md"):
            path.unlink()
        (folder / name / "vocab.json").unlink(missing_ok=True)
        if name == "roberta":  # That of BERT follows from vocab.txt.
            tokenizer.backend_tokenizer.save(str(folder / name / "tokenizer.json"), pretty=False)
        fields = {"ids": "input_ids", "mask": "attention_mask", "types": "token_type_ids"}
        np.savez_compressed(
            folder / name / "expected.npz",
            logits=logits.numpy(),
            **{ours: inputs[theirs].numpy().astype(np.int32) for ours, theirs in fields.items()},
        )
        print(name, inputs["input_ids"].shape, logits.numpy().round(3).tolist())


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
