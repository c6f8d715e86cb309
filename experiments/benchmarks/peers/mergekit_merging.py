"""Seconds and bytes of a merge by mergekit: FOLDER, METHOD ("slerp" or "slerp with a base").

Of its ways to read, the one that takes least memory. Loading the library is not counted.
"""

import json
import pathlib
import shutil
import sys
import threading
import time

from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions


def described(home, method):
    """Describes the merge in mergekit's configuration."""
    one, two, base = (str(home / name) for name in ("one", "two", "base"))
    if method == "slerp":
        models = [{"model": one}, {"model": two}]
        kind = {"merge_method": "slerp", "base_model": one, "parameters": {"t": 0.5}}
    else:
        models = [{"model": m, "parameters": {"weight": 0.5}} for m in (one, two)]
        kind = {"merge_method": "nuslerp", "base_model": base}
    return MergeConfiguration.model_validate({"models": models, "dtype": "float32", **kind})


def main():
    """Prints what was measured."""
    home, method = pathlib.Path(sys.argv[1]), sys.argv[2]
    peak, done = [0], threading.Event()

    def watch():
        while not done.wait(0.01):
            for line in pathlib.Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    peak[0] = max(peak[0], 1024 * int(line.split()[1]))

    thread = threading.Thread(target=watch)
    thread.start()
    options = MergeOptions(
        copy_tokenizer=False, lazy_unpickle=True, write_model_card=False, quiet=True
    )
    # As ours: the pages of a virtual machine come from its host at their first use, slowly.
    copied = pathlib.Path(shutil.copyfile(home / "one" / "model.safetensors", home / "copied"))
    copied.unlink()
    start = time.perf_counter()
    run_merge(described(home, method), str(home / "theirs"), options)
    seconds = time.perf_counter() - start
    done.set()
    thread.join()
    shutil.rmtree(home / "theirs")
    print(json.dumps({"seconds": seconds, "anonymous_bytes": peak[0]}))


if __name__ == "__main__":
    main()
