"""Runs in llama.cpp what `write_gguf.py` wrote, and compares ids and log-probabilities: FOLDER.

llama.cpp's server gives no log-probabilities of a prompt, so each prompt is given without its end,
one token longer each time, and all V log-probabilities of what follows are compared. With quantised
numbers llama.cpp rounds its activations to 8 bits, too, and we do not.
"""

import json
import os
import pathlib
import sys
import urllib.request

import numpy as np
import xllamacpp

LENGTHS = (1, 4, 5, 6, 8, 9, 16, 24, 40, 59, 60)  # Of prompts, around windows of 5 and 8.
# Largest difference between log-probabilities (llama.cpp's gelu is a table in half precision), and
# in how many of the prompts the most probable token must be the same.
BOUNDS = {"f32": (1e-2, 1.0), "f16": (2e-2, 1.0), "q8_0": (0.3, 0.8), "q4_0": (0.3, 0.8)}


def main(folder):
    """Prints a line a file; the exit status says whether all agree."""
    paths = sorted(folder.glob("*.gguf"))
    agree = bool(paths)
    for path in paths:
        server = started(path)
        expected = np.load(path.with_suffix(".npz"))
        largest, same = compared(server, expected["tokens"], expected["log_probs"])
        texts = json.loads(path.with_suffix(".json").read_text())
        other = [text for text, ids in texts.items() if tokenized(server, text) != ids]
        bound, least = BOUNDS[path.stem.rpartition("-")[2]]
        agree &= largest <= bound and same >= least and not other
        print(
            f"{path.stem}: {largest:.1e} between log-probabilities (at most {bound}), the same "
            f"token in {same:.0%}, other ids for {other or 'no text'}",
            flush=True,
        )
    sys.stdout.flush()
    os._exit(0 if agree else 1)  # Its threads do not end.


def started(path):
    """Returns a server of a file, which computes in float32 what is not quantised."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 128, 1, False, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    return xllamacpp.Server(params)


def compared(server, tokens, log_probs):
    """Returns the largest difference, and the share of prompts with the same best token."""
    differences, same, letter = [], [], tokenized(server, "a")[0]
    for length in LENGTHS:
        request = {
            "prompt": [int(token) for token in tokens[:length]],
            "n_predict": 1,
            "n_probs": log_probs.shape[1],
            "temperature": 0.0,
            "cache_prompt": False,
            # An end, or a part of a character, has no entry. Probabilities are those before this.
            "logit_bias": [[letter, 1e3]],
        }
        answer = server.handle_completions(request)
        (place,) = answer["choices"][0]["logprobs"]["content"]
        theirs = {entry["id"]: entry["logprob"] for entry in place["top_logprobs"]}
        ours = log_probs[length - 1]
        assert len(theirs) == len(ours), (len(theirs), len(ours))
        differences.append(max(abs(theirs[i] - x) for i, x in enumerate(ours)))
        same.append(max(theirs, key=theirs.get) == int(np.argmax(ours)))
    return max(differences), float(np.mean(same))


def tokenized(server, text):
    """Returns llama.cpp's ids of a text."""
    fields = {"content": text, "add_special": False, "parse_special": False}
    request = urllib.request.Request(
        f"{server.listening_address}/tokenize",
        json.dumps(fields).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["tokens"]


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
