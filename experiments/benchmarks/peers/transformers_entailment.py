"""Pairs a second of transformers' BERT classifier: SECONDS, PAIRS, TOKENS, its config.json.

The rate is the better of two: as torch is, and keeping freed memory, which no user gets by default.
"""

import json
import os
import sys

import torch
from rate import both_ways
from transformers import BertConfig, BertForSequenceClassification


def scorer(pairs, tokens, shape):
    """Makes a function that scores all pairs."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**shape)).float().eval()
    ids = torch.randint(1, shape["vocab_size"], (pairs, tokens))
    kinds = (torch.arange(tokens) >= tokens // 2).long().expand(pairs, tokens)
    mask = torch.ones_like(ids)

    def work():
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=mask, token_type_ids=kinds).logits
            return len(torch.softmax(logits, -1).numpy())

    return work


def main():
    """Prints the rates."""
    seconds, pairs, tokens = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    rate, kept, _ = both_ways(scorer(pairs, tokens, json.loads(sys.argv[4])), seconds)
    print(json.dumps({"pairs": rate, "kept_pairs": kept}))


if __name__ == "__main__":
    main()
