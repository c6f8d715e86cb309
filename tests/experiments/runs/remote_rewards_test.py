"""Tests of runs/remote_rewards.py, against servers that run here."""

import contextlib
import http.server
import json
import pathlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

from kullback import experiments
from kullback.experiments import interrupts
from kullback.experiments.runs import models, rewards
from kullback.experiments.runs.remote_rewards import Patience, Server
from kullback.lm import tasks
from tests.records import as_killed, repeated

TASK = "tokens/arithmetic"
pytestmark = pytest.mark.usefixtures("few_sums")
HASTY = Patience(seconds=0.3, attempts=3, pause_seconds=0.01)
Reply = Callable[[dict[str, Any], int], Any]  # (what is asked, number of the request) -> a reply.


class Local(http.server.ThreadingHTTPServer):
    """A server on this machine, which replies as a test says."""

    daemon_threads = True

    def __init__(self, reply: Reply):
        self.reply, self.seen = reply, list[dict[str, Any]]()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/judge?by=letters"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that hang up."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Local  # pyright: ignore[reportIncompatibleVariableOverride]  # As it is here.

    def do_POST(self) -> None:
        assert self.path == "/judge?by=letters"
        read = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(read)
        reply = self.server.reply(read, len(self.server.seen))
        if callable(reply):
            reply(self)
            return
        status, body = reply if isinstance(reply, tuple) else (200, reply)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing."""


@contextlib.contextmanager
def serving(reply: Reply) -> Iterator[Local]:
    server = Local(reply)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def letters(read: dict[str, Any], number: int) -> Any:
    """Rewards each text by its length."""
    return {"rewards": [float(len(text)) for text in read["texts"]]}


def ask(server: Local | Server, count: int = 2) -> np.ndarray:
    client = server if isinstance(server, Server) else Server(server.url, HASTY)
    texts = ["a" * n for n in range(count)]
    return client.rewards(["p"] * count, texts, ["é"] * count)


def test_texts_are_posted_in_batches():
    with serving(letters) as server:
        np.testing.assert_array_equal(ask(server, 150), np.arange(150))
    assert [len(read["texts"]) for read in server.seen] == [64, 64, 22]
    assert server.seen[0].keys() == {"prompts", "texts", "references"}
    assert server.seen[1]["texts"][0] == "a" * 64 and server.seen[2]["references"] == ["é"] * 22


def hang(handler: Handler) -> None:
    """Replies nothing for a while."""
    time.sleep(1.0)


def drip(handler: Handler) -> None:
    """Sends a byte of a reply now and then, so that no single read is late."""
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(30):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.1)


def hang_up(handler: Handler) -> None:
    """Ends the connection in the middle of a reply."""
    handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"rewards"')
    handler.connection.shutdown(socket.SHUT_RDWR)


def endless(handler: Handler) -> None:
    """Sends a reply without an end, and without saying how long it is."""
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            handler.wfile.write(b" " * 65_536)


WRONG = {
    "hang": (hang, "it had not replied after 0.3 seconds"),
    "drip": (drip, "it had not replied after 0.3 seconds"),
    "hang_up": (hang_up, "its reply is no JSON"),
    "endless": (endless, "its reply for 2 texts has more than 4,224 bytes"),
    "status": ((500, b"sorry"), "its status was 500, expected 200"),
    "busy": ((429, {"rewards": [0, 0]}), "its status was 429, expected 200"),
    "moved": ((302, b""), "its status was 302, expected 200"),
    "one": ({"rewards": [1.0]}, "its reply must have 2 rewards, one a text, got 1"),
    "many": ({"rewards": [1.0] * 3}, "its reply must have 2 rewards, one a text, got 3"),
    "nan": (b'{"rewards": [NaN, 1.0]}', "NaN is no number of JSON"),
    "infinite": (b'{"rewards": [1e999, 1.0]}', "1e999 is too large"),
    "beyond": ({"rewards": [1e39, 1.0]}, "a reward must be below 3.4e38, got 1e+39"),
    "text": ({"rewards": ["1.0", 1.0]}, "its reply: rewards[0] must be a list of"),
    "bool": ({"rewards": [True, 1.0]}, "rewards[0]"),
    "list": ([1.0, 2.0], "its reply must hold an object"),
    "other": ({"scores": [1.0, 2.0]}, "rewards is missing"),
    "deep": (b"[" * 2_000, "its reply"),
    "bytes": (b"\xff\xfe", "must be UTF-8"),
    "empty": (b"", "its reply is empty, no JSON"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_reply_that_cannot_be_used_is_asked_for_again(name: str):
    reply, said = WRONG[name]
    with serving(lambda read, number: reply if number == 1 else letters(read, number)) as server:
        np.testing.assert_array_equal(ask(server), [0, 1])
        assert len(server.seen) == 2
    with serving(lambda read, number: reply) as server:
        begin = time.monotonic()
        with pytest.raises(interrupts.Failure) as error:
            ask(server)
        assert time.monotonic() - begin < 10 and len(server.seen) == HASTY.attempts
    message = str(error.value)
    assert f"reward {server.url} gave nothing for any of 2 texts: " in message
    assert said in message or name in ("text", "hang_up"), message
    assert "\n" not in message and len(message) < 400


def test_a_server_that_is_dead_or_refuses():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = Server(f"http://127.0.0.1:{free.getsockname()[1]}/", HASTY)
    with pytest.raises(interrupts.Failure, match=r"gave nothing for any of 2 texts: .*refused"):
        ask(dead)
    with serving(lambda read, number: (404, b"")) as server:
        with pytest.raises(interrupts.Failure, match="refused the request: 404 'Not Found'"):
            ask(server)
        assert len(server.seen) == 1


def test_what_is_missing_is_nan_and_pauses_grow(monkeypatch: pytest.MonkeyPatch):
    pauses = list[float]()
    monkeypatch.setattr(time, "sleep", pauses.append)

    def some(read: dict[str, Any], number: int) -> Any:
        if len(read["texts"]) == 64:
            return 503, b""
        return {"rewards": [None, 2, 3.5][: len(read["texts"])]}

    with serving(some) as server:
        got = ask(Server(server.url, Patience(seconds=5, attempts=4, pause_seconds=0.5)), 67)
    np.testing.assert_array_equal(got, [np.nan] * 65 + [2, 3.5])
    assert [x for x in pauses if x >= 0.5] == [0.5, 1.0, 2.0]


def test_what_was_said_is_recorded_and_not_asked_again(tmp_path: pathlib.Path):
    file = tmp_path / "rewards.jsonl"

    def random(read: dict[str, Any], number: int) -> Any:
        return {"rewards": [None, *[number / 3] * (len(read["texts"]) - 1)]}

    with serving(random) as server:
        first = Server(server.url, HASTY)
        first.keep(file)
        said = [ask(first), ask(first, 3)]
        again = Server(server.url, HASTY)
        again.keep(file)
        for count, expected in zip((2, 3), said, strict=True):
            np.testing.assert_array_equal(ask(again, count), expected)
        assert len(server.seen) == 2
        other = Server(server.url, HASTY)
        other.keep(tmp_path / "other.jsonl")
        assert ask(other)[1] == 1.0 and len(server.seen) == 3
    file.write_text(file.read_text().replace("0.333", "0.334"))
    with pytest.raises(ValueError, match=r"rewards\.jsonl, line 1: it has changed"):
        Server(server.url).keep(file)


def test_what_a_slow_server_needs_stands_behind_its_url(tmp_path: pathlib.Path):
    with serving(letters) as server:
        url = f"{server.url}#texts=40&attempts=2"
        reward = rewards.parse(f"exact+0.5*{url}", tasks.make(TASK), None)  # pyright: ignore[reportArgumentType]
        ((weight, client),) = reward.servers
        assert (weight, client.url) == (0.5, server.url)
        client.keep(tmp_path / "rewards.jsonl")
        ask(client, 100)
        assert [len(read["texts"]) for read in server.seen] == [40, 40, 20]
        # More patience is no other question: what was said is not asked again.
        patient = Server(f"{server.url}#seconds=600")
        patient.keep(tmp_path / "rewards.jsonl")
        np.testing.assert_array_equal(ask(patient, 100), np.arange(100))
        assert len(server.seen) == 3
    with serving(lambda read, number: hang) as server:
        hasty = Server(f"{server.url}#seconds=0.1&attempts=1")
        with pytest.raises(interrupts.Failure, match=r"had not replied after 0\.1 seconds"):
            ask(hasty)
        assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://", "expected http://HOST/PATH"),
        ("http:host/path", "expected http://HOST/PATH"),
        ("http://:80/x", "expected http://HOST/PATH"),
        ("http://host:99999/x", "Port out of range"),
        ("http://host:0/x", "expected http://HOST/PATH"),
        ("http://[::1/x", "Invalid IPv6 URL"),
        ("http://me:secret@host/x", "without a name or password before the host"),
        ("https://me@host/x", "without a name or password before the host"),
        ("http://host/a b", "in ASCII without spaces"),
        ("http://host/é", "in ASCII without spaces"),
        ("http://host/\r\nX: y", "in ASCII without spaces"),
        ("http://host/x#part", "expected behind its # some of seconds=(0, 86400]"),
        ("http://host/x#seconds=0", "expected behind its # some of"),
        ("http://host/x#seconds=nan", "expected behind its # some of"),
        ("http://host/x#seconds=1&attempts=1.5", "expected behind its # some of"),
        ("http://host/x#texts=8&texts=9", "expected behind its # some of"),
        ("http://host/x#texts=4097", "expected behind its # some of"),
    ],
)
def test_urls_that_cannot_be_are_refused(url: str, said: str):
    with pytest.raises(ValueError, match="reward ") as error:
        rewards.parse(f"0.5*{url}+exact", tasks.make(TASK), None)  # pyright: ignore[reportArgumentType]
    assert said in str(error.value) and "secret" not in str(error.value)


def test_a_sum_has_what_servers_say():
    with serving(letters) as server:
        name = f"exact+0.5*{server.url}-2*https://host/x"
        reward = rewards.parse(name, tasks.make(TASK), None)  # pyright: ignore[reportArgumentType]
        assert [(w, s.url) for w, s in reward.servers] == [
            (0.5, server.url),
            (-2, "https://host/x"),
        ]
        reward = rewards.parse(f"exact+0.5*{server.url}", tasks.make(TASK), None)  # pyright: ignore[reportArgumentType]
        got = reward.python_score(["1+1=", "1+2="], ["2", "333"], ["2", "3"])
    np.testing.assert_array_equal(got, [1.5, 1.5])


def train(path: pathlib.Path, algorithm: str, model: Any, **fields: Any) -> pathlib.Path:
    given: dict[str, Any] = {"steps": 6, "log_every": 2, "checkpoint_every": 3, **fields}
    short = ("batch_size=4", "max_prompt_length=8", "max_new_tokens=4", "learning_rate=1e-2")
    settings = (*short, *given.pop("settings", ()))
    return experiments.train(
        algorithm, TASK, out=path, model=str(model), settings=settings, quiet=True, **given
    )


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    flags = ("num_layers=1", "embed_dim=16", "hidden_dim=16", "window=4")
    return train(tmp_path_factory.mktemp("start") / "run", "sft", "tiny", model_flags=flags)


@pytest.mark.slow
def test_a_run_goes_on_by_what_the_server_said_and_drops_groups(
    start: pathlib.Path, tmp_path: pathlib.Path
):
    random = np.random.default_rng(0)

    def fickle(read: dict[str, Any], number: int) -> Any:
        scores = random.normal(size=len(read["texts"])).tolist()  # Another thing each time.
        if number % 3 == 0:
            scores[1] = None
        return {"rewards": scores}

    settings = ("samples_per_prompt=2",)
    with serving(fickle) as server:
        given = {"reward": f"{server.url}-0.1*length", "settings": settings}
        whole = train(tmp_path / "whole", "rlhf", start, **given)
        assert len(server.seen) == 6
        file = whole / "rewards.jsonl"
        assert len(file.read_text().splitlines()) == 6
        table = repeated(whole)
        # Of the two prompts of a step one is dropped in every third step.
        assert [float(row["dropped"]) for row in table] == [0.0, 0.25, 0.25]
        assert np.isfinite([float(row["loss"]) for row in table]).all()
        killed = as_killed(whole, tmp_path / "killed", 3)
        experiments.resume(killed, quiet=True, trust_code=True)
        assert len(server.seen) == 6, "a step whose rewards are recorded is asked again"
        again = train(tmp_path / "again", "rlhf", start, **given)
    assert (killed / "rewards.jsonl").read_bytes() == file.read_bytes()
    one, other, third = (models.load(path).params for path in (whole, killed, again))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert repeated(killed) == table
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (one, third)), strict=True))
    # A line that is lost is found before the run goes on.
    damaged = as_killed(whole, tmp_path / "damaged", 3)
    kept = (damaged / "rewards.jsonl").read_text().splitlines(keepends=True)
    (damaged / "rewards.jsonl").write_text("".join(kept[1:]))
    with pytest.raises(ValueError, match=r"rewards\.jsonl has"):
        experiments.resume(damaged, quiet=True, trust_code=True)
    with pytest.raises(ValueError, match="or send texts to that server; if you know it, add --tr"):
        experiments.resume(as_killed(whole, tmp_path / "strange", 3), quiet=True)


@pytest.mark.slow
def test_a_dropped_group_changes_nothing_that_is_learnt(
    start: pathlib.Path, tmp_path: pathlib.Path
):

    def run(name: str, first: float | None, second: float) -> Any:
        def half(read: dict[str, Any], number: int) -> Any:
            return {"rewards": [first, second, 1.0, 0.0]}

        with serving(half) as server:
            fields = {"reward": server.url, "settings": ("samples_per_prompt=2",), "steps": 3}
            path = train(tmp_path / name, "rlhf", start, log_every=1, **fields)
        return models.load(path).params, repeated(path)[-1]

    (one, row), (other, _), (third, _) = (
        run("a", None, 5.0),
        run("b", None, -7.0),
        run("c", 0.0, 0.0),  # As the dropped ones, but for the weight: the KL penalty acts.
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert float(row["dropped"]) == 0.5
    assert float(row["return_mean"]) == 0.5  # Of the texts that count.
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (one, third)), strict=True))
