"""Rates as the other side measures them: the best window of half a second."""

import time


def best_rate(work, seconds):
    """Amount of work a second in the best window; `work()` returns how much it did."""
    best = 0.0
    start = end = time.perf_counter()
    while end - start < seconds:
        window_start, done = end, 0
        while end - window_start < min(0.5, seconds):
            done += work()
            end = time.perf_counter()
        best = max(best, done / (end - window_start))
    return best
