"""A learner of plain functions, for sums."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from codream_clients.function_learner import FunctionLearner
from codream_protocols.course import Publication, Task
from codream_protocols.courses.sums import Sums
from codream_protocols.errors import VectorRefused
from codream_protocols.specs import Block, VectorSpec
from secure_codream.simulation.in_process import Simulation

BLOCKS = (Block("number", 1, 1000, "count"), Block("ages", 2, 1e4))


def test_three_clients_sum_what_their_functions_say() -> None:
    learnt: list[tuple[int, Publication]] = []

    def learner(number: int) -> FunctionLearner:
        return FunctionLearner(
            {"patients": lambda arrays: {"number": number, "ages": [number * 10.0, 5]}},
            learn=lambda number, publication: learnt.append((number, publication)),
        )

    found = Simulation(Sums({"patients": BLOCKS}), [learner(number) for number in (100, 200, 300)]).run_epoch()
    assert found["patients.number"].tolist() == [600]
    assert found["patients.ages"] == pytest.approx([6000, 15], abs=1)
    assert [number for number, _ in learnt] == [1, 1, 1]


def test_a_function_is_given_the_public_arrays() -> None:
    spec = VectorSpec("twice", (Block("x", 3, 10.0),))
    given = {"x": np.arange(3.0)}
    found = FunctionLearner({"twice": lambda arrays: {"x": 2 * arrays["x"]}}).compute(Task("twice", given), spec)
    assert found["x"].tolist() == [0, 2, 4]


def test_a_task_without_a_function_is_refused() -> None:
    with pytest.raises(VectorRefused, match=r"'ages'.*patients"):
        FunctionLearner({"patients": lambda arrays: {}}).compute(Task("ages", {}), VectorSpec("ages", BLOCKS))


def test_it_needs_no_torch() -> None:
    code = "import sys, codream_clients.function_learner, codream_clients.runner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_numbers_beyond_their_bound_are_told_of() -> None:
    told: list[str] = []
    spec = VectorSpec("visits", (Block("patients", 1, 1000, "count"), Block("dose", 2, 1.5)))
    learner = FunctionLearner({"visits": lambda arrays: {"patients": [5000], "dose": [1.5, -2.0]}}, tell=told.append)
    learner.compute(Task("visits", {}), spec)
    assert [text.partition(";")[0] for text in told] == [
        "visits.patients: 1 of 1 numbers are beyond 0 to 1000",
        "visits.dose: 1 of 2 numbers are beyond -1.5 to 1.5",
    ]


@pytest.mark.parametrize("answer", [{"patient": [1]}, {"patients": [1, 2]}, {}])
def test_another_answer_than_asked_for_is_refused(answer: dict[str, list[int]]) -> None:
    learner = FunctionLearner({"visits": lambda arrays: answer})
    with pytest.raises(VectorRefused, match="numbers"):
        learner.compute(Task("visits", {}), VectorSpec("visits", (Block("patients", 1, 1000, "count"),)))
