"""Tests of experiments/commands/child.py."""

import pathlib

from kullback.experiments.commands import child


def test_the_error_of_a_run_is_found_in_its_log(tmp_path: pathlib.Path):
    log = tmp_path / "run.log"
    for text, status, error in [
        ("step 3\nkullback: the loss is not finite\n\n", 1, "the loss is not finite"),
        ("Traceback\nMemoryError\n", 1, "it ended with status 1; its last line: MemoryError"),
        ("", -9, "it ended with signal SIGKILL; its last line: (none)"),
        ("", 1, "it ended with status 1; its last line: (none: is the disk full?)"),
    ]:
        log.write_text(text)
        assert child.error_in(log, status) == error
