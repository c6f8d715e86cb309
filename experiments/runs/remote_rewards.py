"""Rewards that a server gives: texts are posted to a URL, and what it says of them is recorded.

    POST {"prompts": [...], "texts": [...], "references": [...]}  ->  {"rewards": [0.5, null, ...]}

The lists have a text each; null is a text that the server cannot judge. A reply that is late,
refused, too large, or not of this form is asked for again, with growing pauses; after the last
attempt its texts have no reward. A server that knows no such address, or refuses whoever asks (a
status from 400 to 499), is not asked again. What a slow server needs stands behind its URL, and is
not sent: http://HOST/PATH#seconds=600&attempts=3&texts=8.

A server may say another thing when it is asked again. So that a run goes on exactly as it was, each
batch is recorded under the hash of what was asked, and asked once.
"""

import dataclasses
import hashlib
import http.client
import json
import math
import pathlib
import socket
import threading
import time
import urllib.parse
from collections.abc import Sequence

import numpy as np

from kullback.core import checked_lines, json_files
from kullback.experiments import interrupts

SCHEMES = ("http", "https")
BYTES_OF_NUMBER = 64  # Of a reply, for each reward, at most; a float64 has 24 digits and signs.
BYTES_BESIDE = 4_096  # Of a reply, beside its numbers.
AGAIN = (408, 425, 429)  # Statuses below 500 after which the same may be asked again.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patience:
    """Size of a server's requests, and the time that it has for them."""

    seconds: float = 60.0  # For a whole reply, from the first byte that is sent; (0, 86400].
    attempts: int = 5  # At each request, [1, 100].
    texts: int = 64  # Of a request at most, [1, 4096].
    pause_seconds: float = 1.0  # Before the second attempt; twice as long before each other.


class Server:
    """A server at a URL, and the record of what it said."""

    def __init__(self, url: str, patience: Patience | None = None):
        """Asks nothing yet; without `patience` it has what stands behind # in the URL.

        Raises:
          ValueError: for a URL that is none of HTTP, or that holds a name or password; for
            something else behind #.
        """
        self._address = _address(url)
        self.url, _ = urllib.parse.urldefrag(url)
        self._patience = patience or _patience(url)
        self._path: pathlib.Path | None = None
        self._known: dict[str, np.ndarray] = {}

    def keep(self, path: pathlib.Path) -> None:
        """Writes into a file what the server says, and takes from it what it has said.

        Raises:
          ValueError: for a file that is damaged.
        """
        self._path = path
        self._known = {
            record.get("request", str): _numbers(record.list_of("rewards", (float, type(None))))
            for record in checked_lines.begin(path)
        }

    def rewards(
        self, prompts: Sequence[str], texts: Sequence[str], references: Sequence[str]
    ) -> np.ndarray:
        """Returns rewards of B texts, float64 [B]; NaN where the server gave none.

        Raises:
          interrupts.Failure: if it refuses the request, or gives no reward for any text.
        """
        columns = {"prompts": prompts, "texts": texts, "references": references}
        name = hashlib.sha256(json.dumps([self.url, columns]).encode()).hexdigest()
        if name not in self._known:
            size = self._patience.texts
            parts = [
                self._ask({key: [*x[i : i + size]] for key, x in columns.items()})
                for i in range(0, len(texts), size)
            ]
            rewards = np.concatenate([numbers for numbers, _ in parts])
            if len(texts) and np.all(np.isnan(rewards)):
                said = next((said for _, said in parts if said), "it judged none of them")
                raise interrupts.Failure(
                    f"reward {self.url} gave nothing for any of {len(texts)} texts: {said}"
                )
            if self._path is not None:
                numbers = [None if math.isnan(x) else x for x in rewards.tolist()]
                checked_lines.append(self._path, [{"request": name, "rewards": numbers}])
            self._known[name] = rewards
        return self._known[name]

    def _ask(self, columns: dict[str, list[str]]) -> tuple[np.ndarray, str]:
        """Returns the rewards of a request, NaN without, and why the last attempt failed."""
        count, patience, said = len(columns["texts"]), self._patience, ""
        for attempt in range(patience.attempts):
            if attempt:
                time.sleep(patience.pause_seconds * 2 ** (attempt - 1))
            try:
                return self._attempt(json.dumps(columns).encode(), count), ""
            except (OSError, http.client.HTTPException, ValueError) as error:
                said = str(error) or type(error).__name__
        return np.full(count, np.nan), said

    def _attempt(self, body: bytes, count: int) -> np.ndarray:
        """Returns the rewards of one reply.

        Raises:
          ValueError, OSError, http.client.HTTPException: for a reply that cannot be used.
          interrupts.Failure: for a status that says that it is of no use to ask again.
        """
        address, seconds, most = self._address, self._patience.seconds, _most_bytes(count)
        secure = address.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(address.hostname or "", address.port, timeout=seconds)
        # A server that sends a byte now and then is within the limit of each read.
        is_late = threading.Event()
        timer = threading.Timer(seconds, _cut, (connection, is_late))
        timer.daemon = True
        timer.start()
        try:
            target = (address.path or "/") + (f"?{address.query}" if address.query else "")
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            connection.request("POST", target, body, headers)
            response = connection.getresponse()
            status, data = response.status, response.read(most + 1)
        except TimeoutError as error:  # Of a read, which may be noticed before the timer is.
            raise _late(seconds) from error
        except (OSError, http.client.HTTPException) as error:
            if is_late.is_set():
                raise _late(seconds) from error
            raise
        finally:
            timer.cancel()
            connection.close()
        if is_late.is_set():
            raise _late(seconds)
        if 400 <= status < 500 and status not in AGAIN:
            raise interrupts.Failure(
                f"reward {self.url} refused the request: {status} {_first(response.reason)}"
            )
        if status != 200:
            raise ValueError(f"its status was {status}, expected 200")
        if len(data) > most:
            raise ValueError(f"its reply for {count} texts has more than {most:,} bytes")
        return _read(data, count)


def _read(data: bytes, count: int) -> np.ndarray:
    """Returns the rewards of a reply, NaN for null.

    Raises:
      ValueError: for a reply of another form, or a number that float32 cannot hold.
    """
    reply = json_files.parse(data, "its reply")
    rewards = reply.list_of("rewards", (float, type(None)))
    if len(rewards) != count:
        raise ValueError(f"its reply must have {count} rewards, one a text, got {len(rewards)}")
    numbers = _numbers(rewards)
    with np.errstate(over="ignore"):
        wrong = np.flatnonzero(np.isinf(numbers.astype(np.float32)))
    if len(wrong):
        raise ValueError(f"a reward must be below 3.4e38, got {numbers[wrong[0]]:g}")
    return numbers


def _address(url: str) -> urllib.parse.SplitResult:
    """Returns the parts of a URL.

    Raises:
      ValueError: as `Server` says.
    """
    wanted = f"reward {_hidden(url)}: expected http://HOST/PATH or https://HOST/PATH"
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"{wanted}, in ASCII without spaces; write others as %20")
    try:
        address = urllib.parse.urlsplit(url)
        port = address.port
    except ValueError as error:
        raise ValueError(f"{wanted} ({error})") from error
    if address.scheme not in SCHEMES or not address.hostname or port == 0:
        raise ValueError(wanted)
    if "@" in address.netloc:
        raise ValueError(
            f"{wanted}, without a name or password before the host: config.json would show them to "
            "whoever has the run; let the server know this machine by other means"
        )
    return address


def _patience(url: str) -> Patience:
    """Returns what stands behind the # of a URL: seconds=600&attempts=3&texts=8, or some of them.

    Raises:
      ValueError: for anything else.
    """
    types = {"seconds": float, "attempts": int, "texts": int}
    parts = [
        part.partition("=") for part in urllib.parse.urldefrag(url).fragment.split("&") if part
    ]
    try:
        given = {name: types[name](value) for name, _, value in parts}
        patience = Patience(**given)  # pyright: ignore[reportArgumentType]  # Each as its type.
        if len(given) < len(parts) or not (
            0 < patience.seconds <= 86_400
            and 1 <= patience.attempts <= 100
            and 1 <= patience.texts <= 4_096
        ):
            patience = None
    except (KeyError, ValueError):
        patience = None
    if patience is None:
        raise ValueError(
            f"reward {_hidden(url)}: expected behind its # some of seconds=(0, 86400], "
            "attempts=[1, 100] and texts=[1, 4096], joined by &"
        )
    return patience


def _hidden(url: str) -> str:
    """Returns a URL for a message, without what may be a password."""
    before, at, after = url.rpartition("@")
    return f"{before.partition('://')[0]}://...@{after}" if at else url


def _cut(connection: http.client.HTTPConnection, is_late: threading.Event) -> None:
    """Ends a connection whose time is over, whatever it waits for."""
    is_late.set()
    sock = connection.sock
    if sock is not None:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:  # It has ended.
            return


def _late(seconds: float) -> TimeoutError:
    return TimeoutError(f"it had not replied after {seconds:g} seconds")


def _most_bytes(count: int) -> int:
    return BYTES_BESIDE + BYTES_OF_NUMBER * count


def _numbers(rewards: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if x is None else x for x in rewards], np.float64)


def _first(text: str) -> str:
    return repr(text[:60])
