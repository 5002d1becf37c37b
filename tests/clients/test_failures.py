"""What a learner's failures come to: zeros that were summed, epochs not learnt; over attempts, and over processes."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent import futures
from typing import Any

import pytest

from codream_clients.failures import Failures
from codream_protocols.course import Array, Publication, Task
from codream_protocols.courses.sums import Sums
from codream_protocols.specs import Block, VectorSpec
from tests.clients.network import FakeLearner, Federation, over_network, take_part

FIRST, SECOND = b"1" * 32, b"2" * 32


def one_sum() -> Sums:
    return Sums({"p": (Block("n", 1, 10.0),)})


def test_zeros_count_once_the_attempt_that_they_were_in_is_certified() -> None:
    failures = Failures()
    failures.zeroed(FIRST, 0, "update")
    failures.zeroed(SECOND, 1, "logits")
    assert not failures
    failures.certified(SECOND, [0, 1])
    assert str(failures) == "zeros were summed for 'logits' in 1 step"
    failures.certified(FIRST, [0])  # it was given up before
    assert str(failures) == "zeros were summed for 'logits' in 1 step"


def test_zeros_of_a_step_whose_sum_does_not_hold_them_count_for_nothing() -> None:
    failures = Failures()
    failures.zeroed(FIRST, 2, "update")
    failures.certified(FIRST, [0, 1])
    assert not failures


def test_epochs_count_until_they_are_learnt_and_are_said_in_few_words() -> None:
    failures = Failures()
    for number in (1, 2, 3, 4, 7, 9, *range(20, 500)):
        failures.not_learnt(number)
    failures.learnt(3)
    assert str(failures) == "epochs 1 to 2, 4, 7, 9, 20 to 499 were not learnt, or not in full"


def test_what_counts_outlasts_the_process_and_not_the_charter() -> None:
    kept: list[bytes] = []
    failures = Failures("aa", None, kept.append)
    failures.zeroed(FIRST, 0, "update")
    failures.not_learnt(5)
    again = Failures("aa", kept[-1])
    again.certified(FIRST, [0])
    assert str(again) == "zeros were summed for 'update' in 1 step; epoch 5 was not learnt, or not in full"
    assert again.content != failures.content and not Failures("bb", kept[-1])
    written = len(kept)
    failures.learnt(6)
    failures.certified(SECOND, [0])
    assert len(kept) == written  # nothing has changed


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"charter": "aa"}',
        b'{"charter": "aa", "zeros": {"a": -1}, "unlearnt": [], "pending": []}',
        b'{"charter": "aa", "zeros": {}, "unlearnt": [1.5], "pending": []}',
        b'{"charter": "aa", "zeros": {}, "unlearnt": [], "pending": [["x", true, "a"]]}',
        b'{"charter": "aa", "zeros": {}, "unlearnt": [], "pending": [["x"]]}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_list_of_failures_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        Failures("aa", content)


def test_memory_of_attempts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codream_clients.failures.MOST_ATTEMPTS", 10)
    failures = Failures()
    for number in range(20):
        failures.zeroed(number.to_bytes(32, "big"), 0, "update")
    assert failures.content.count(b"update") == 10


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError("in its text")


@pytest.mark.parametrize(
    "raised",
    [StopIteration(), SystemExit(0), KeyboardInterrupt(), GeneratorExit(), futures.CancelledError(), Unspeakable()],
    ids=lambda raised: type(raised).__name__,
)
def test_exceptions_that_mean_other_things_to_the_loop_are_failures_like_others(raised: BaseException) -> None:
    """The first would never have arrived, the others would have ended the client as if it had been told to."""

    class Failing(FakeLearner):
        def compute(self, task: Task, spec: VectorSpec) -> Mapping[str, Array]:
            raise raised

        def learn(self, number: int, publication: Publication) -> None:
            raise raised

    whole, runners = Federation(course=one_sum()), []

    async def scenario(whole: Federation) -> None:
        runners.extend([whole.runner(0, Failing()), whole.runner(1), whole.runner(2)])
        await take_part(whole, runners)

    over_network(whole, scenario)
    failed = "zeros were summed for 'p' in 1 step; epoch 1 was not learnt, or not in full"
    assert [str(runner.failures) for runner in runners] == [failed, "", ""]


@pytest.mark.parametrize("raised", [StopIteration(), SystemExit(0)], ids=lambda raised: type(raised).__name__)
def test_a_training_beforehand_that_leaves_otherwise_is_an_error(raised: BaseException) -> None:
    async def scenario(whole: Federation) -> None:
        def prepare() -> None:
            raise raised

        await whole.runner(0, prepare=prepare).run()

    with pytest.raises(RuntimeError, match=type(raised).__name__):
        over_network(Federation(), scenario)


def test_nothing_returned_is_a_failure() -> None:
    class Nothing(FakeLearner):
        def compute(self, task: Task, spec: VectorSpec) -> Any:
            return None

    whole, runners = Federation(course=one_sum()), []

    async def scenario(whole: Federation) -> None:
        runners.extend([whole.runner(0, Nothing()), whole.runner(1), whole.runner(2)])
        await take_part(whole, runners)

    over_network(whole, scenario)
    assert str(runners[0].failures) == "zeros were summed for 'p' in 1 step"
