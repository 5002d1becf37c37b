"""The run ends where held-back figures no longer rise: by certified sums, alike for server, clients and record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from codream_clients.learning.participant import Metrics
from codream_protocols.charter import Offer
from codream_protocols.client import ClientProtocol, InMemory, Memory
from codream_protocols.course import Array, Publication, Task
from codream_protocols.courses.codream import ClientPrivacy, CoDream, DreamSettings
from codream_protocols.courses.metrics import HELD, METRICS
from codream_protocols.errors import WrongContext
from codream_protocols.messages import Invitation
from codream_protocols.record import Kept, certified_epochs
from codream_protocols.server import ServerProtocol
from codream_protocols.settings import SettingsError
from codream_protocols.specs import VectorSpec
from codream_protocols.starts import start_rule
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.federation import FederationConfig
from secure_codream.configuration.reading import ConfigError
from tests.clients.network import CLASSES, SHAPE, FakeLearner, Federation, over_network, take_part

SETTINGS = DreamSettings(rounds=6, steps=1, batch=2, shape=SHAPE, classes=CLASSES)


class Held(FakeLearner):
    """A learner whose model gets so many of ten held-back images right, epoch after epoch."""

    def __init__(self, right: list[int]) -> None:
        super().__init__()
        self.right, self.asked = right, 0

    def compute(self, task: Task, spec: VectorSpec) -> Mapping[str, Array]:
        values = dict(super().compute(task, spec))
        if task.name == METRICS:
            right = self.right[min(self.asked, len(self.right) - 1)]
            values |= {name: np.array([count]) for name, count in zip(HELD, (right, 10), strict=True)}
            self.asked += 1
        return values


def course(stop_after: int) -> CoDream:
    return CoDream(SETTINGS, start_rule("noise"), stop_after=stop_after)


@pytest.mark.parametrize(
    ("right", "stop_after", "epochs"),
    [
        ([5, 6, 6, 6, 6, 6, 6], 2, 4),  # warm-up, better, and twice no better
        ([5, 6, 5, 7, 7, 7, 7], 2, 6),  # a rise begins anew
        ([5, 6, 6, 6, 6, 6, 6], 0, 7),
        ([0, 0, 0, 0, 0, 0, 0], 3, 4),
    ],
)
def test_the_run_ends_for_everybody_after_so_many_rounds_without_a_rise(
    right: list[int], stop_after: int, epochs: int
) -> None:
    whole, learners = Federation(course=course(stop_after)), [Held(right) for _ in range(3)]
    runners: list[Any] = []

    async def scenario(whole: Federation) -> None:
        runners.extend(whole.runner(number, learner) for number, learner in enumerate(learners))
        await take_part(whole, runners)

    over_network(whole, scenario)
    assert whole.server.done and whole.server.certified == epochs
    for learner in learners:
        assert [call for call in learner.calls if "learn" in call] == [
            f"learn {number + 1}" for number in range(epochs)
        ]


class Keeping(InMemory):
    """A journal in memory of what is certified."""

    def __init__(self, kept: list[Kept]) -> None:
        super().__init__()
        self._all = kept

    def certified(self, kept: Kept) -> None:
        self._all.append(kept)

    def recall(self, place: int) -> Kept:
        return self._all[place]


class Endless(CoDream):
    """As a server and members would have it that go on all the same."""

    def over(self, publication: Publication) -> bool:
        return False


def run_to_its_end(whole: Federation, kept: list[Kept]) -> ClientProtocol:
    """All of it, from what is kept on; returns the first member's machine, which keeps what is certified."""
    whole.server = ServerProtocol(whole.charter, whole.roster, whole.course, beat_seconds=0.2, certified=tuple(kept))
    memory = Memory(next_epoch=2 * len(kept), certified=tuple(kept))
    protocols = [whole.protocol(number, memory=memory) for number in (1, 2)]
    first = whole.protocol(0, memory=memory, journal=Keeping(kept))

    async def scenario(whole: Federation) -> None:
        machines = enumerate([first, *protocols])
        await take_part(whole, [whole.runner(number, Held([5]), protocol=machine) for number, machine in machines])

    over_network(whole, scenario)
    return first


def test_nothing_follows_an_early_end_whoever_says_so() -> None:
    whole, kept = Federation(course=course(1)), list[Kept]()
    protocol = run_to_its_end(whole, kept)
    assert protocol.history.over and len(kept) == 2
    with pytest.raises(WrongContext, match="ended early"):
        protocol.receive(Invitation(Offer(9, whole.charter.everybody, protocol.head)))
    going_on = Federation(course=Endless(SETTINGS, start_rule("noise"), stop_after=1))
    for name in ("signers", "roster", "charter", "transport", "server_secret", "server_public"):
        setattr(going_on, name, getattr(whole, name))
    run_to_its_end(going_on, kept)
    assert len(kept) == going_on.course.epochs
    with pytest.raises(WrongContext, match="ended early"):
        list(certified_epochs(whole.charter, whole.roster, whole.course, kept))


def test_held_back_figures_are_asked_for_only_where_the_charter_ends_by_them() -> None:
    asked = [{block.name for block in made.specs(2)[0].blocks} for made in (course(0), course(1))]
    assert not asked[0].intersection(HELD) and asked[1].issuperset(HELD)


def test_an_end_by_figures_that_nobody_tells_is_refused() -> None:
    with pytest.raises(SettingsError, match="0 is allowed"):
        CoDream(
            SETTINGS,
            start_rule("noise"),
            ClientPrivacy(epsilon=1.0, delta=1e-5, update_norm=1.0, logit_norm=1.0),
            stop_after=1,
        )
    task = {"shape": (1, 8, 8), "classes": 3}
    privacy = {"epsilon": 8.0}
    for tables, words in (
        ({"federation": {"course": "fedavg", "stop_after": 1}}, "'codream' is allowed"),
        ({"federation": {"stop_after": 1}, "learning": {"held_back": 0.0}}, "a share above 0"),
        ({"federation": {"stop_after": 1}, "privacy": privacy}, r"\[privacy\]; 0 is allowed"),
    ):
        config = FederationConfig.model_validate({"task": task, **tables})
        with pytest.raises(ConfigError, match=words):
            make_course(config)


def test_counts_are_of_the_model_that_goes_on() -> None:
    from codream_clients.learning.participant import Participant

    class Told(Participant):
        def __init__(self, metrics: Metrics) -> None:
            self._metrics = metrics

    told = {"rounds": 1, "accuracy": None, "train_accuracy": None, "distil_loss": 0.0, "judged_by": 20}
    after = {"held_accuracy": 0.5, "best_accuracy": 0.9}
    assert Told(Metrics(**told, held_back=True, **after)).held_counts == (10, 20)
    assert Told(Metrics(**told, held_back=True, rolled_back=True, **after)).held_counts == (18, 20)
    assert Told(Metrics(**told, held_back=False, **after)).held_counts == (0, 0)
