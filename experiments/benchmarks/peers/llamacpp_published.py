"""One text in llama.cpp: SECONDS, SIZES, FILE.gguf.

SIZES is a JSON list: tokens of the prompt, new tokens. With no new tokens the rate is that of the
prompt's tokens. Ids are random, and nothing ends a text.
"""

import json
import os
import random
import sys
import time

import xllamacpp
from rate import peak_memory

VOCABULARY = 200_000  # Of ids that are text.


def started(path, length):
    """Returns a server of a file for one text of `length` tokens."""
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = length + 64, 1, False, 0
    params.n_batch = params.n_ubatch = 512
    cores = len(os.sched_getaffinity(0))
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = cores
    return xllamacpp.Server(params)


def seconds_of(server, prompt, new_tokens):
    """Returns the seconds in which tokens are drawn at temperature 1 after a prompt."""
    start = time.perf_counter()
    answer = server.handle_completions(
        {
            "prompt": prompt,
            "n_predict": new_tokens,
            "ignore_eos": True,
            "cache_prompt": False,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.0,
        }
    )
    assert answer["usage"]["completion_tokens"] == new_tokens, answer["usage"]
    return time.perf_counter() - start


def measured(server, seconds, prompt_tokens, new_tokens):
    """Returns the fastest rate, and the fewest seconds to the first token."""
    prompt = [random.Random(0).randrange(1_000, VOCABULARY) for _ in range(prompt_tokens)]
    seconds_of(server, prompt, 1)
    first = min(seconds_of(server, prompt, 1) for _ in range(3))
    if not new_tokens:
        return {"rate": prompt_tokens / first, "first_seconds": first}
    fastest, start = float("inf"), time.perf_counter()
    while fastest == float("inf") or time.perf_counter() - start < seconds:
        fastest = min(fastest, seconds_of(server, prompt, new_tokens))
    return {"rate": new_tokens / fastest, "first_seconds": first}


def main():
    """Prints rate, seconds and peak."""
    seconds, (prompt_tokens, new_tokens) = float(sys.argv[1]), json.loads(sys.argv[2])
    server = started(sys.argv[3], prompt_tokens + new_tokens)
    figures = measured(server, seconds, prompt_tokens, new_tokens)
    print(json.dumps(figures | {"peak_bytes": peak_memory()}), flush=True)
    os._exit(0)  # Its threads do not end.


if __name__ == "__main__":
    main()
