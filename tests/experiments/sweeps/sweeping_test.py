"""Tests of experiments/sweeps/sweeping.py: sweeps of processes that fail, are killed, and go on."""

import argparse
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from kullback import experiments
from kullback.core import checkpoints
from kullback.experiments import toml_files
from kullback.experiments.commands import sweep
from kullback.experiments.runs import run_folder
from kullback.experiments.sweeps import sweeping
from tests.records import repeated, wait_for_checkpoint

CORES = len(os.sched_getaffinity(0))
OFTEN = {"log_every": 250, "checkpoint_every": 500}

# Two runs, of which the second diverges at once. Its threads are those that this process has,
# in which the run that is compared with it is made.
FILE = f"""
agents = ["dqn"]
environments = ["toy/chain"]
seeds = 2
steps = 6_000
threads = {CORES}
[plan]
log_every = 250
checkpoint_every = 500
[settings]
learning_rate = [1e-3, 1e30]
"""
GOOD, BAD = (f"dqn-toy-chain,learning_rate={rate},seeds=0-1" for rate in ("0.001", "1e+30"))


def command(*arguments: object) -> int:
    """Runs the command `kullback sweep`; its errors are raised."""
    parser = argparse.ArgumentParser()
    sweep.add_parser(parser.add_subparsers())
    options = parser.parse_args(["sweep", *map(str, arguments)])
    return options.command(options)


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kullback.experiments.cli", "sweep", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )


@dataclasses.dataclass(frozen=True)
class Killed:
    """A sweep that was killed at `step` and started again."""

    file: pathlib.Path
    out: pathlib.Path
    step: int
    error: str


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    home = tmp_path_factory.mktemp("sweep")
    file, out = home / "sweep.toml", home / "out"
    file.write_text(FILE)
    process = start(file, "--out", out, "--jobs", "1")
    wait_for_checkpoint(out / GOOD, 1_000, process, 400)
    process.kill()
    process.communicate()
    step = checkpoints.steps(out / GOOD / "checkpoints")[-1]
    with pytest.raises(sweeping.Failed) as failed:
        sweeping.sweep(file, out=out, jobs=1, quiet=True)
    return Killed(file, out, step, str(failed.value))


@pytest.mark.slow
def test_a_killed_sweep_goes_on_bit_by_bit(killed: Killed, tmp_path: pathlib.Path):
    assert 1_000 <= killed.step < 6_000, "the run was over before it could be interrupted"
    whole = experiments.train(
        *("dqn", "toy/chain"),
        **{"steps": 6_000, "num_seeds": 2, "settings": ("learning_rate=0.001",), **OFTEN},
        out=tmp_path / "run",
        quiet=True,
    )
    assert repeated(killed.out / GOOD) == repeated(whole)
    log = (killed.out / "logs" / f"{GOOD}.log").read_text()
    assert log.count("$ kullback train dqn toy/chain") == 1
    assert log.count("$ kullback train --resume") == 1
    # The child of the sweep that was killed saw that it was alone, and saved.
    assert "saved at step" in log.split("--resume")[0]


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_stops_no_other(killed: Killed):
    summary, line = killed.error.split(": ", 1)
    assert summary == "1 of 2 runs failed, the rest is finished"
    log = killed.out / "logs" / f"{BAD}.log"
    assert line.startswith(f"{BAD}: the loss is not finite at step")
    assert line.endswith(f"(log: {log})") and log.is_file()
    record = json.loads((killed.out / "sweep.json").read_text())
    assert [(run["name"], run["threads"]) for run in record["runs"]] == [
        (GOOD, CORES),
        (BAD, CORES),
    ]
    assert record["sweep"]["seeds"] == 2


@pytest.mark.slow
def test_a_run_that_diverges_is_done_again_on_request_alone(killed: Killed):
    rows = len(run_folder.RunFolder(killed.out / BAD).rows())
    log = killed.out / "logs" / f"{BAD}.log"
    before = log.read_text()
    sweeping.sweep(killed.file, out=killed.out, quiet=True)
    assert log.read_text() == before
    with pytest.raises(sweeping.Failed, match="is not finite at step"):
        sweeping.sweep(killed.file, out=killed.out, quiet=True, retry_diverged=True)
    assert log.read_text().count("$ kullback train --resume") == before.count("--resume") + 1
    assert run_folder.RunFolder(killed.out / BAD).diverged()
    assert len(run_folder.RunFolder(killed.out / BAD).rows()) == rows


@pytest.mark.slow
def test_what_is_finished_is_left_alone(killed: Killed, capsys: pytest.CaptureFixture[str]):
    before = {path: path.stat().st_mtime_ns for path in killed.out.rglob("*")}
    text = FILE.replace("[1e-3, 1e30]", "1e-3")
    killed.file.with_name("good.toml").write_text(text)
    assert command(killed.file.with_name("good.toml"), "--out", killed.out) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{GOOD}: 6,000 steps, finished",
        f"1 runs in {killed.out}, 1 of them finished; 0 steps to go",
        f"not of this sweep, and left as they are: {BAD}",
        f"1 runs: {killed.out}",
    ]
    assert {path: path.stat().st_mtime_ns for path in killed.out.rglob("*")} == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"agents": ["dqm"]}, "dqm-toy-chain: unknown agent 'dqm'; did you mean dqn"),
        ("agents = [", "is no TOML file"),
        ({"out": 3}, "out must be the folder of the sweep, got 3"),
    ],
)
def test_refuses_before_anything_is_written(
    given: Any, message: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    if isinstance(given, str):
        (tmp_path / "sweep.toml").write_text(given)
        source: Any = "sweep.toml"
    else:
        source = {"out": "runs", "agents": ["dqn"], "environments": ["toy/chain"], **given}
    before = list(tmp_path.iterdir())
    with pytest.raises(ValueError) as error:
        sweeping.sweep(source)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == before


def test_without_ray_its_extra_is_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    from kullback.experiments.sweeps import sweep_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'kullback\[ray\]'"):
        sweep_ray.workers({"platform": "cpu", "runs": []}, None, "auto")


def test_where_no_cluster_listens_is_said_at_once(monkeypatch: pytest.MonkeyPatch):
    from kullback.experiments.sweeps import sweep_ray

    class Ray:
        """Stands for a library that is asked whether it has begun, and for no more."""

        def is_initialized(self) -> bool:
            return False

    monkeypatch.setitem(sys.modules, "ray", Ray())
    for address in ("127.0.0.1:1", "ray://[::1]:1", "nowhere.invalid:1", "127.0.0.1:x"):
        with pytest.raises(ValueError, match="no Ray cluster at") as error:
            sweep_ray.workers({"platform": "cpu", "runs": []}, None, address)
        assert address in str(error.value) and "\n" not in str(error.value)


def test_runs_per_gpu_is_said_to_do_nothing_where_there_is_no_cuda(tmp_path: pathlib.Path):
    checked = {"platform": "cpu", "runs": [], "untrusted": [], "others": [], "runs_per_gpu": 4}
    assert sweeping._listing(checked, tmp_path, retry_diverged=False)[-1] == (
        "runs_per_gpu=4 has no effect: JAX has no CUDA here"
    )
    for facts in ({"runs_per_gpu": None}, {"platform": "gpu"}):
        assert len(sweeping._listing({**checked, **facts}, tmp_path, retry_diverged=False)) == 1


@pytest.mark.slow
def test_runs_of_a_cluster_share_a_gpu(tmp_path: pathlib.Path):
    """Ray counts GPUs as it is told to: four runs wait for one another on the only one."""
    pytest.importorskip("ray", reason="the extra kullback[ray] is not installed")
    program = """if True:
    import json, pathlib, sys, time
    import ray
    from kullback.experiments.sweeps import sweep_ray, sweep_worker
    from kullback.experiments.sweeps.sweep_worker import Job, Outcome

    def work(job, environment):
        import ray
        here = pathlib.Path(job.folder)
        (here / job.name).touch()
        end = time.monotonic() + 60
        while len(list(here.iterdir())) < 4 and time.monotonic() < end:
            time.sleep(0.05)
        beside = len(list(here.iterdir()))
        return Outcome(0, json.dumps([beside, environment, ray.get_gpu_ids()]))

    sweep_worker.work = work
    ray.init(num_cpus=8, num_gpus=1, include_dashboard=False, log_to_driver=False)
    jobs = [Job(name=str(n), folder=sys.argv[1], log="", plan={}, threads=1, done=0, home="")
            for n in range(4)]
    checked = {"platform": "gpu", "devices": 1, "runs_per_gpu": 4, "runs": [{"threads": 1}]}
    workers = sweep_ray.workers(checked, None, "auto")
    handles = [workers.start(job, {}) for job in jobs]
    ended = []
    while len(ended) < 4:
        ended = [x for x in (workers.poll(*pair) for pair in zip(jobs, handles)) if x is not None]
        time.sleep(0.1)
    print("\\n".join(outcome.error for outcome in ended))
    """
    (folder := tmp_path / "beside").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        env={**os.environ, "HOME": str(tmp_path)},  # Where Ray writes its token.
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()[-4:]]
    assert said == [[4, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.2250"}, [0]]] * 4


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: pathlib.Path):
    file, out = tmp_path / "sweep.toml", tmp_path / "out"
    file.write_text(FILE.replace("[1e-3, 1e30]", "1e-3"))
    alone = "dqn-toy-chain,seeds=0-1"  # Nothing varies.
    # Shells start what they put in the background deaf to Ctrl-C, and children inherit that.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = start(file, "--out", out, "--jobs", 1)
    signal.signal(signal.SIGINT, heard)
    wait_for_checkpoint(out / alone, 1_000, process, 400)
    process.send_signal(signal.SIGINT)
    output = process.communicate()[0]
    assert process.returncode == 130
    assert f"go on with: kullback sweep {file} --out {out} --jobs 1\n" in output
    log = (out / "logs" / f"{alone}.log").read_text()
    saved = checkpoints.steps(out / alone / "checkpoints")[-1]
    assert f"saved at step {saved:,}" in log and saved < 6_000


@pytest.mark.slow
def test_a_ray_cluster_does_the_same(tmp_path: pathlib.Path):
    pytest.importorskip("ray", reason="the extra kullback[ray] is not installed")
    # In a process of its own: Ray leaves threads and sockets in the one that called it.
    program = (
        "import sys, ray\n"
        "from kullback.experiments.sweeps import sweeping\n"
        "ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)\n"
        "try: sweeping.sweep(sys.argv[1], out=sys.argv[2], ray='auto')\n"
        "except sweeping.Failed as error: print(error)\n"
    )
    file, out = tmp_path / "sweep.toml", tmp_path / "out"
    file.write_text(FILE.replace("6_000", "2_000").replace(f"threads = {CORES}", ""))
    done = subprocess.run(
        [sys.executable, "-c", program, str(file), str(out)],
        env={**os.environ, "HOME": str(tmp_path)},  # Where Ray writes its token.
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"{BAD}: the loss is not finite at step" in done.stdout
    local = sweeping.sweep(
        {**toml_files.read(file)[0], "settings": {"learning_rate": 1e-3}},
        out=tmp_path / "local",
        quiet=True,
    )
    assert repeated(out / GOOD) == repeated(local[0]) != []


@pytest.mark.slow
def test_a_killed_sweep_over_ray_leaves_no_run_unsaved(tmp_path: pathlib.Path):
    pytest.importorskip("ray", reason="the extra kullback[ray] is not installed")
    file, out = tmp_path / "sweep.toml", tmp_path / "out"
    file.write_text(FILE.replace("[1e-3, 1e30]", "1e-3").replace("6_000", "600_000"))
    # A cluster that outlives the sweep, until we close its stdin.
    program = (
        "import sys, ray\n"
        f"cluster = ray.init(num_cpus={CORES}, include_dashboard=False, log_to_driver=False)\n"
        "print(cluster.address_info['address'], flush=True)\n"
        "sys.stdin.read()\n"
    )
    home = {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}  # Where Ray writes its token.
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, **home},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as cluster:
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        process = start(file, "--out", out, "--ray", address, **home)
        alone = "dqn-toy-chain,seeds=0-1"
        wait_for_checkpoint(out / alone, 1_000, process, 400)
        process.kill()
        process.communicate()
        log, deadline = out / "logs" / f"{alone}.log", time.monotonic() + 60
        while "saved at step" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        cluster.communicate()  # Closes its stdin.
    assert "saved at step" in log.read_text()
