"""Runs in llama.cpp what `write_gguf.py` wrote, and compares ids and log-probabilities: FOLDER.

llama.cpp's server gives no log-probabilities of a prompt, so each prompt is given without its end,
one token longer each time, and all V log-probabilities of what follows are compared. With quantised
numbers llama.cpp rounds its activations to 8 bits, too, and we do not.
"""

import base64
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
    for path in sorted((folder / "seeing").glob("[!m]*.gguf")):
        difference = compared_seeing(path)
        agree &= difference <= BOUNDS["f32"][0]
        print(f"{path.stem}, of a picture: {difference:.1e} between log-probabilities")
    sys.stdout.flush()
    os._exit(0 if agree else 1)  # Its threads do not end.


def started(path, images=""):
    """Returns a server of a file, which computes in float32 what is not quantised.

    Args:
      path: of the model.
      images: path of what reads images, if anything does.
    """
    params = xllamacpp.CommonParams()
    params.model.path, params.mmproj.path = str(path), str(images)
    params.mmproj_use_gpu = False
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 128, 1, False, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    return xllamacpp.Server(params)


def compared(server, tokens, log_probs):
    """Returns the largest difference, and the share of prompts with the same best token."""
    differences, same = [], []
    for length in LENGTHS:
        ours = log_probs[length - 1]
        theirs = following(server, [int(token) for token in tokens[:length]], len(ours))
        differences.append(max(abs(theirs[i] - x) for i, x in enumerate(ours)))
        same.append(max(theirs, key=theirs.get) == int(np.argmax(ours)))
    return max(differences), float(np.mean(same))


def following(server, prompt, num_ids):
    """Returns the log-probabilities of what follows a prompt, by id."""
    request = {
        "prompt": prompt,
        "n_predict": 1,
        "n_probs": num_ids,
        "temperature": 0.0,
        "cache_prompt": False,
        # An end, or a part of a character, has no entry. Probabilities are those before this.
        "logit_bias": [[tokenized(server, "a")[0], 1e3]],
    }
    (place,) = posted(server, "completion", request)["completion_probabilities"]
    theirs = {entry["id"]: entry["logprob"] for entry in place["top_logprobs"]}
    assert len(theirs) == num_ids, (len(theirs), num_ids)
    return theirs


def compared_seeing(path):
    """Returns the largest difference between log-probabilities of what follows a picture."""
    server = started(path, path.with_name(f"mmproj-{path.name}"))
    picture = base64.b64encode(path.with_suffix(".png").read_bytes()).decode()
    before, after = json.loads(path.with_suffix(".json").read_text())
    with urllib.request.urlopen(f"{server.listening_address}/props") as answer:
        marker = json.load(answer)["media_marker"]  # Drawn anew by each server.
    log_probs = np.load(path.with_suffix(".npz"))["log_probs"]
    text = f"{before}{marker}{after}"
    prompt = {"prompt_string": text, "multimodal_data": [picture]}
    theirs = following(server, prompt, len(log_probs))
    return max(abs(theirs[i] - x) for i, x in enumerate(log_probs))


def tokenized(server, text):
    """Returns llama.cpp's ids of a text."""
    fields = {"content": text, "add_special": False, "parse_special": False}
    return posted(server, "tokenize", fields)["tokens"]


def posted(server, name, fields):
    """Returns what a server answers to a request."""
    request = urllib.request.Request(
        f"{server.listening_address}/{name}",
        json.dumps(fields).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
