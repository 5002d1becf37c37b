"""A federation in one process: repeatable from a seed, honest about its costs, and strict where a deployment is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codream_clients.data.datasets import load_digits_data
from codream_clients.models.zoo import build
from codream_protocols.charter import Aggregation
from codream_protocols.course import Array, Publication, Task
from codream_protocols.courses.sums import Sums, SumsPrivacy
from codream_protocols.errors import AggregationFailed, UnsafePlan
from codream_protocols.specs import Block, VectorSpec
from secure_codream.api.local import LocalRun, run_local
from secure_codream.configuration.reading import ConfigError
from secure_codream.simulation.in_process import Simulation

COURSE = Sums({"x": (Block("reals", 50, 8.0),), "n": (Block("counts", 3, 1000, "count"),)})


class Numbers:
    """A member's numbers; it learns by keeping what was published."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.learnt: list[Publication] = []

    def compute(self, task: Task, spec: VectorSpec) -> Mapping[str, Array]:
        if task.name == "n":
            return {"counts": np.array([self.number, 10 * self.number, 7])}
        return {"reals": np.linspace(-1, 1, 50) * self.number}

    def learn(self, number: int, publication: Publication) -> None:
        self.learnt.append(publication)


def simulated(members: int, **options: Any) -> tuple[Publication, Simulation, list[Numbers]]:
    learners = [Numbers(number) for number in range(members)]
    simulation = Simulation(options.pop("course", COURSE), learners, **options)
    return simulation.run_epoch(), simulation, learners


@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
def test_everybody_learns_the_sum_of_all(mode: Any) -> None:
    found, simulation, learners = simulated(6, aggregation=Aggregation(mode=mode))
    assert list(found["n.counts"]) == [15, 150, 42] and found["x.members"] == [6]
    np.testing.assert_allclose(found["x.reals"], np.linspace(-1, 1, 50) * 15, atol=0.01)
    for learner in learners:
        (learnt,) = learner.learnt
        assert all(np.array_equal(learnt[name], found[name]) for name in found)
    assert simulation.secure_steps == 2 and simulation.server.done
    assert 0 < simulation.traffic.setup < simulation.traffic.up and simulation.traffic.payload > 0


@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
@pytest.mark.parametrize("noised", [False, True], ids=["plain", "noised"])
def test_a_seed_repeats_to_the_last_digit_and_another_does_not(mode: Any, noised: bool) -> None:
    privacy = SumsPrivacy(epsilon=8.0, delta=1e-6, norm=40.0) if noised else None
    course = Sums({"x": (Block("reals", 50, 8.0),)}, privacy)
    runs = [simulated(3, course=course, seed=seed, aggregation=Aggregation(mode=mode)) for seed in (1, 1, 2)]
    first, again, other = (found["x.reals"] for found, _, _ in runs)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert runs[0][1].traffic == runs[1][1].traffic
    assert runs[0][1].server.head == runs[1][1].server.head != runs[2][1].server.head


def test_without_a_seed_nothing_repeats() -> None:
    heads = {simulated(3)[1].server.head for _ in range(2)}
    assert len(heads) == 2


def test_a_member_that_drops_takes_its_block_along_and_the_rest_goes_on() -> None:
    learners = [Numbers(number) for number in range(6)]
    simulation = Simulation(COURSE, learners, aggregation=Aggregation(mode="resilient"))
    found = simulation.run_epoch(dropped=lambda step: {4} if step == 1 else set())
    assert found["x.members"] == [6] and found["n.members"] == [3]
    assert list(found["n.counts"]) == [3, 30, 21]


def test_in_lockstep_a_silent_member_gives_up_the_epoch() -> None:
    learners = [Numbers(number) for number in range(4)]
    simulation = Simulation(COURSE, learners)
    with pytest.raises(AggregationFailed):
        simulation.run_epoch(dropped=lambda step: {2} if step == 1 else set())
    assert not any(learner.learnt for learner in learners)
    simulation.run_epoch()  # everybody is there again
    assert all(len(learner.learnt) == 1 for learner in learners)


def test_two_members_cannot_be_summed() -> None:
    with pytest.raises(UnsafePlan):
        Simulation(COURSE, [Numbers(0), Numbers(1)])


class Failing(Numbers):
    def compute(self, task: Task, spec: VectorSpec) -> Mapping[str, Array]:
        raise RuntimeError("out of memory")

    def learn(self, number: int, publication: Publication) -> None:
        raise RuntimeError("out of disk")


def test_what_a_learner_raises_ends_the_simulation_unless_somebody_listens() -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        Simulation(COURSE, [Numbers(1), Numbers(2), Failing(3)]).run_epoch()
    heard: list[tuple[int, str]] = []
    learners = [Numbers(1), Numbers(2), Failing(3)]
    simulation = Simulation(COURSE, learners, failed=lambda member, error: heard.append((member, str(error))))
    found = simulation.run_epoch()
    assert list(found["n.counts"]) == [3, 30, 14], "zeros in its place"
    assert heard == [(2, "out of memory"), (2, "out of memory"), (2, "out of disk")]
    assert [len(learner.learnt) for learner in learners] == [1, 1, 0]


def test_nothing_that_is_deployed_can_seed_its_keys() -> None:
    """The repeatable generator is a simulation's, an attack's and an audit's alone: no other module names it."""
    root = Path(__file__).parents[2]
    rooms = [root / "protocols", root / "clients", root / "server", root / "secure_codream"]
    importing = {
        str(path.relative_to(root))
        for room in rooms
        for path in room.rglob("*.py")
        if "seeded import" in path.read_text() or "import seeded" in path.read_text()
    }
    assert "secure_codream/simulation/in_process.py" in importing
    rooms_of_trials = tuple(f"secure_codream/{room}/" for room in ("simulation", "threats", "audit"))
    assert all(path.startswith(rooms_of_trials) for path in importing), importing


# -- run_local ---------------------------------------------


def local(course: str, **options: Any) -> LocalRun:
    torch.set_num_threads(1)
    train, test = load_digits_data(0)
    shards = [train.subset(np.arange(30 * number, 30 * number + 30)) for number in range(options.pop("clients", 3))]
    models = [build("mlp", channels=1, size=8, classes=10, seed=number) for number in range(len(shards))]
    learning = {"warm_up_epochs": 3, "distil_epochs": 1, "local_epochs": 1, "local_steps": 2}
    return run_local(
        models,
        shards,
        test.subset(np.arange(100)),
        classes=10,
        device="cpu",
        federation={"course": course, "rounds": 2},
        learning=learning,
        **{"seed": 1, "dreams": {"batch": 8, "steps": 1}, **options},
    )


FAST = {"fast": {"batches": 1, "noise": 8, "local_steps": 1}, "dreams": {"batch": 8}}


@pytest.mark.parametrize("course", ["codream", "codream-fast", "fedavg", "fedprox", "scaffold", "moon"])
def test_every_course_of_learning_runs_and_repeats(course: str) -> None:
    tables: dict[str, Any] = FAST if course == "codream-fast" else {}
    run, again = local(course, **tables), local(course, **tables)
    assert run.accuracies.shape == (3, 3) and (run.accuracies > 0).all()
    assert np.array_equal(run.accuracies, again.accuracies)
    assert (run.bytes_up, run.bytes_down) == (again.bytes_up, again.bytes_down) and run.bytes_up > 0
    assert len(run.dreams) == (2 if course == "codream" else 0)
    averages = course not in ("codream", "codream-fast")
    assert (len(set(run.accuracies[-1])) == 1) is averages, "everybody has the global model"


def test_a_run_without_a_seed_starts_elsewhere() -> None:
    first, second = (local("codream", seed=None).dreams[0][0] for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"clients": 2}, "found 2 clients; 3 or more are needed"),
        ({"aggregation": {"colluders": 2}}, "found 3 clients; 4 or more are needed"),
        ({"aggregation": {"threshold": 2}}, "aggregation.threshold"),
        ({"course": "fedavg", "privacy": {"epsilon": 1.0}}, r"\[privacy\]"),
        ({"course": "fedsgd"}, "found 'fedsgd'"),
    ],
)
def test_what_cannot_be_run_is_said_at_once(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        local(**{"course": "codream", **tables})


def test_own_starts_and_modes_reach_the_dreams() -> None:
    dreams = {
        start: local("codream", dreams={"batch": 8, "steps": 0, "start": start}).dreams[0][0]
        for start in ("noise", "shapes")
    }
    assert np.abs(dreams["shapes"]).max() <= 1.0 < np.abs(dreams["noise"]).max()
    resilient = local("codream", clients=6, aggregation={"mode": "resilient"})
    assert resilient.accuracies.shape == (3, 6)


def test_every_class_gets_dreams_where_a_batch_has_fewer_than_there_are_classes() -> None:
    """Of ten classes five dreams a round: those that their labels name are the first five, then the others."""
    torch.set_num_threads(1)
    train, test = load_digits_data(0)
    shards = [train.subset(np.arange(150 * number, 150 * number + 150)) for number in range(3)]
    models = [build("mlp", channels=1, size=8, classes=10, seed=number) for number in range(3)]
    run = run_local(
        models,
        shards,
        test.subset(np.arange(50)),
        classes=10,
        device="cpu",
        seed=1,
        federation={"rounds": 2},
        learning={"warm_up_epochs": 30, "distil_epochs": 1, "local_epochs": 1},
        dreams={"batch": 5, "steps": 5},
    )
    named = [set(labels.argmax(1).tolist()) for _, labels in run.dreams]
    assert named == [{0, 1, 2, 3, 4}, {5, 6, 7, 8, 9}]
