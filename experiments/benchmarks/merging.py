"""Two checkpoints of 286 million parameters in float32 become one, beside mergekit and a copy.

`python -m kullback.experiments.benchmarks.merging FOLDER METHOD` merges FOLDER/one and FOLDER/two
in a process of its own, whose anonymous memory (what is no page of a file) is the merge's.
"""

import contextlib
import json
import os
import pathlib
import shutil
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from kullback.experiments.benchmarks import peer, rows, timing
from kullback.lm import merging

LAYERS, WIDTH, HIDDEN, VOCABULARY = 17, 1_024, 2_816, 33_024
CONFIG = {
    "architectures": ["LlamaForCausalLM"],  # One that the peer knows too.
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "tie_word_embeddings": False,
    "dtype": "float32",
}
PEER = "mergekit"
# Method -> (groups of ours, whether the models have a base). The peer has an angle a tensor.
METHODS = {"slerp": ("tensor", False), "slerp with a base": ("tensor", True)}
TARGET_TIME, TARGET_COPY, TARGET_MEMORY = (
    0.4,
    2.5,
    0.5,
)  # Shares of the peer's and a copy's time; GB.
CHUNK = 1 << 22  # Numbers drawn at once.


def shapes() -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a checkpoint's tensors."""
    shapes_by_name: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        shapes_by_name |= {f"{layer}.self_attn.{n}_proj.weight": (WIDTH, WIDTH) for n in "qkvo"}
        shapes_by_name |= {f"{layer}.mlp.{n}_proj.weight": (HIDDEN, WIDTH) for n in ("gate", "up")}
        shapes_by_name[f"{layer}.mlp.down_proj.weight"] = (WIDTH, HIDDEN)
        norms = ("input_layernorm", "post_attention_layernorm")
        shapes_by_name |= {f"{layer}.{norm}.weight": (WIDTH,) for norm in norms}
    return shapes_by_name | {"model.norm.weight": (WIDTH,), "lm_head.weight": (VOCABULARY, WIDTH)}


def write_checkpoint(folder: pathlib.Path, seed: int) -> int:
    """Writes random parameters as a folder of Hugging Face, and returns how many bytes they are."""
    header, end = {}, 0
    for name, shape in shapes().items():
        begin, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    rng = np.random.default_rng(seed)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, end // 4, CHUNK):
            count = min(CHUNK, end // 4 - start)
            file.write((0.02 * rng.standard_normal(count, np.float32)).data)
    return end


@contextlib.contextmanager
def anonymous_memory() -> Iterator[Callable[[], int]]:
    """Gives a function that says the most of anonymous memory so far, in bytes; Linux alone has it.

    It is looked at a hundred times a second: the kernel keeps no peak of it.
    """
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            status = pathlib.Path("/proc/self/status").read_text()
            line = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
            peak = max(peak, 1024 * int(line.split()[1]))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: peak
    finally:
        done.set()
        thread.join()


def copy(home: pathlib.Path) -> float:
    """Measures the seconds of a copy of a checkpoint, until it is on the disk as the merge is.

    The second copy counts. For the first, a virtual machine must ask its host for pages one by
    one, which takes longer than all the rest.
    """
    _copy(home)
    return _copy(home)


def _copy(home: pathlib.Path) -> float:
    start = time.perf_counter()
    shutil.copyfile(home / "one" / "model.safetensors", home / "copied")
    with (home / "copied").open("rb") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    (home / "copied").unlink()
    return seconds


def run(budget: timing.Budget, run_peer: peer.Peer) -> list[rows.Row]:
    """Measures ours beside the peer and a copy, in turn, with the files in memory for all."""
    memory: dict[str, float] = {}

    def side(result: dict[str, float], name: str) -> dict[str, float]:
        """Returns a side's rate, of which the best counts, and notes its most memory."""
        if not result:
            return {}
        memory[name] = max(result["anonymous_bytes"], memory.get(name, 0))
        return {name: 1 / result["seconds"]}

    def ours() -> dict[str, float]:
        measured = {}
        for method in METHODS:
            measured |= side(peer.ours("merging", home, method), method)
        return measured

    def theirs() -> dict[str, float]:
        measured = {}
        for method in METHODS:
            measured |= side(run_peer(PEER, "merging", home, method), f"{PEER} {method}")
        return measured

    with tempfile.TemporaryDirectory() as folder:
        home = pathlib.Path(folder)
        num_bytes = 0
        for seed, name in enumerate(("one", "two", "base")):
            num_bytes = write_checkpoint(home / name, seed)
        best = timing.interleave([lambda: {"copy": 1 / copy(home)}, ours, theirs], budget.rounds)
    seconds = {name: 1 / rate for name, rate in best.items()}
    what = f"of two checkpoints of {num_bytes / 1e9:.2f} GB"
    compared = [
        rows.Row(
            name=f"{method} {what}, beside {other}",
            ours=seconds[method],
            unit="s",
            lower_is_better=True,
            **rows.of_peer(seconds, key, other),
            target_ratio=target,
            details={"copy": seconds["copy"], **memory},
        )
        for method, other, key, target in (
            ("slerp", PEER, f"{PEER} slerp", 1 / TARGET_TIME),
            ("slerp with a base", PEER, f"{PEER} slerp with a base", None),
            ("slerp with a base", "a copy", "copy", 1 / TARGET_COPY),
        )
    ]
    gigabytes = {name: num_bytes / 1e9 for name, num_bytes in memory.items()}
    return [
        *compared,
        *(
            rows.Row(
                name=f"anonymous memory of {method} {what}",
                ours=gigabytes[method],
                unit="GB",
                lower_is_better=True,
                **rows.of_peer(gigabytes, f"{PEER} {method}", PEER),
                target=TARGET_MEMORY,
            )
            for method in METHODS
        ),
    ]


def main() -> None:
    """Merges and prints seconds and bytes; what was merged is deleted."""
    home, method = pathlib.Path(sys.argv[1]), sys.argv[2]
    group, has_base = METHODS[method]
    config = merging.Config(method="slerp", group=group)
    base = home / "base" if has_base else None
    _copy(home)
    with anonymous_memory() as peak:
        start = time.perf_counter()
        merging.merge([home / "one", home / "two"], home / "merged", config, base)
        seconds = time.perf_counter() - start
        result = {"seconds": seconds, "anonymous_bytes": peak()}
    shutil.rmtree(home / "merged")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
