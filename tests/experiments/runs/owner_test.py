"""Tests of experiments/runs/owner.py."""

import os
import pathlib
import subprocess
import sys

import pytest

from kullback.experiments.runs import owner

HOLD = """
import os, pathlib, subprocess, sys, time
from kullback.experiments.runs import owner
with owner.held(pathlib.Path(sys.argv[1])):
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    if not os.fork():
        print(child.pid, os.getpid(), flush=True)
    time.sleep(60)
"""


def test_a_lock_names_its_holder_and_ends_with_it_whatever_its_children_do(tmp_path: pathlib.Path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        children = [int(pid) for pid in process.stdout.readline().split()]
        try:
            message = rf"is being trained by process {process.pid} on \S+ since \d{{4}}-"
            with pytest.raises(ValueError, match=message), owner.held(tmp_path):
                pass
            assert owner.is_held(tmp_path)
            process.kill()
            process.wait()
            with owner.held(tmp_path):
                assert owner.is_held(tmp_path)
        finally:
            process.kill()
            for pid in children:
                os.kill(pid, 9)
    assert not owner.is_held(tmp_path)


def test_one_process_holds_a_folder_once(tmp_path: pathlib.Path):
    with owner.held(tmp_path):
        with pytest.raises(ValueError, match=f"process {os.getpid()} "), owner.held(tmp_path):
            pass
        assert owner.is_held(tmp_path)
    with owner.held(tmp_path):
        pass
    assert not owner.is_held(tmp_path / "nothing")
