"""Rates as the other side measures them, the best window of half a second, and memory."""

import ctypes
import json
import pathlib
import sys
import time


def best_rate(work, seconds):
    """Measures the amount of work a second in the best window; `work()` returns how much it did."""
    best = 0.0
    start = end = time.perf_counter()
    while end - start < seconds:
        window_start, done = end, 0
        while end - window_start < min(0.5, seconds):
            done += work()
            end = time.perf_counter()
        best = max(best, done / (end - window_start))
    return best


def print_cases(make):
    """Prints the rate of each of CASES, given after SECONDS; `make(*case)` returns its work."""
    seconds, cases = float(sys.argv[1]), json.loads(sys.argv[2])
    rates = {}
    for name, case in cases.items():
        work = make(*case)
        work()
        rates[name] = best_rate(work, seconds)
    print(json.dumps(rates))


def both_ways(work, seconds):
    """Returns the rate as torch comes, and where it keeps freed memory; and the former's peak."""
    rates, peaks = [], []
    for prepare in (lambda: None, keep_freed_memory):
        prepare()
        for _ in range(2):
            work()
        rates.append(best_rate(work, seconds / 2))
        peaks.append(peak_memory())
    return *rates, peaks[0]


def peak_memory():
    """Returns this process's peak memory in bytes; getrusage would count its parent's too."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no VmHWM: this needs Linux")


def keep_freed_memory():
    """Lets glibc keep what is freed, as our own side does: large tensors are then reused."""
    mmap_max, trim_threshold = -4, -1  # Of malloc.h.
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
