"""Tests of core/posts.py: who is hired in place of whom; crews and samplers test the rest."""

from typing import Any

import pytest

from kullback.core import posts


class Worker:
    """A worker that answers, or is lost; it knows its number among all that were hired."""

    def __init__(self, hired: int, is_lost: bool):
        self.name, self._hired, self._is_lost, self.closed = f"worker {hired}", hired, is_lost, 0

    def act(self, ask: Any, version: Any) -> Any:
        if self._is_lost:
            raise posts.Lost(f"{self.name} is gone")
        return self._hired, ask, version

    def close(self) -> None:
        self.closed += 1


def make(lost: int) -> tuple[posts.Post, list[Worker]]:
    """Returns a post whose first workers are lost, and all that it hires."""
    hired: list[Worker] = []

    def hire(number: int) -> Worker:
        assert number == 3
        hired.append(Worker(len(hired), len(hired) < lost))
        return hired[-1]

    return posts.Post(number=3, hire=hire, losses=posts.Losses()), hired


def test_another_is_asked_in_place_of_a_lost_one():
    post, hired = make(lost=2)
    numbers, told = iter(range(9)), list[str]()
    assert post.name == "worker 3, which begins,"
    assert post.act(lambda: next(numbers), "v", told.append) == (2, 2, "v")
    assert post.act(lambda: next(numbers), "w", told.append) == (2, 3, "w")
    assert told == ["worker 0 is gone", "worker 1 is gone"] and post.name == "worker 2"
    post.close()
    post.close()
    assert [worker.closed for worker in hired] == [1, 1, 1]


@pytest.mark.parametrize(("seconds", "how"), [(60.0, "within a minute"), (0.0, "over the same ch")])
def test_too_many_losses_end_it(seconds: float, how: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(posts, "LOSS_SECONDS", seconds)
    post, hired = make(lost=9)
    with pytest.raises(posts.Lost, match=f"5 workers were lost {how}.*: worker 4 is gone"):
        post.act(lambda: None, None, lambda cause: None)
    assert len(hired) == 5 and post.worker is None
