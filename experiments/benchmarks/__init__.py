"""Speed beside named peers on the same work, in one run: `make bench`.

A benchmark is a module with `run(budget, run_peer) -> rows`; its line is in `__main__.py`.
"""
