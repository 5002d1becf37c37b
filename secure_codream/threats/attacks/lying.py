"""A lying member: what one client with any numbers, or any ring elements, that it likes does to everybody's result.

A sum hides its parts, so nobody can tell an honest input from a lie (limit L2). What a lie can do is bounded all the
same: a client's own program keeps to the clip; a changed one that leaves the sum's range is noticed, and nothing of the
epoch is learnt; one that stays within the range moves the sum by as much as all others could together. What a state is
made of stays within public bounds, whatever was summed. What is left is measured here, on dreams, labels and accuracy.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from codream_clients.data.datasets import load_digits_data
from codream_clients.dream_learner import DreamLearner
from codream_clients.learning.participant import LearningSettings, Participant
from codream_clients.models.zoo import build
from codream_protocols import client as client_module
from codream_protocols.charter import Plan
from codream_protocols.client import ClientProtocol
from codream_protocols.course import Publication, Task
from codream_protocols.courses import codream as codream_module
from codream_protocols.courses.codream import UPDATE, CoDream, DreamSettings
from codream_protocols.courses.labels import LOGITS
from codream_protocols.encoding import decode, integers
from codream_protocols.errors import AggregationFailed
from codream_protocols.masks import word_type
from codream_protocols.specs import VectorSpec
from codream_protocols.starts import start_rule
from secure_codream.simulation.in_process import Simulation
from secure_codream.simulation.toy_course import UPDATE_SPEC, LaboratoryCourse
from secure_codream.simulation.wire import Stuck
from secure_codream.threats.attacks.dropouts import VICTIM, lockstep
from secure_codream.threats.laboratory.attack import Attack, Evidence
from secure_codream.threats.laboratory.defences import Defences
from secure_codream.threats.laboratory.evidence import Vector, numbered
from secure_codream.threats.laboratory.laboratory import Laboratory
from secure_codream.threats.laboratory.switches import Switch

LIAR = VICTIM
Lie = Callable[[Plan, int, Vector], Vector]
"""The integers that a liar sends in place of its encoded vector; below 0 or beyond the ring, too."""


@contextmanager
def lying(client: ClientProtocol, lie: Lie, *, tagged: Lie | None = None) -> Iterator[None]:
    """A client that masks what `lie` makes of its vector, and makes the tag of these very integers, or of `tagged`.

    An integer and its remainder modulo 2^m are masked alike, and have different tags; the right one is the liar's
    choice, and only with it the sum's tag fits.
    """
    encode, provide = client._encode, client.provide
    sent: list[Vector] = []

    def encode_lie(plan: Plan, step: int, values: Any) -> tuple[Vector, int]:
        vector = encode(plan, step, values)[0]
        sent[:] = [np.asarray(made(plan, step, vector), dtype=np.int64) for made in (lie, tagged or lie)]
        return _whole(plan, step, sent[0]), 0

    def provide_lie(plan: bytes, step: int, values: Any) -> Any:
        with patch.object(client_module, "integers", lambda *arguments: sent[1]):
            return provide(plan, step, values)

    client._encode, client.provide = encode_lie, provide_lie  # type: ignore[method-assign]
    try:
        yield
    finally:
        del client._encode, client.provide


def _whole(plan: Plan, step: int, values: Vector) -> Vector:
    """These integers as ring elements."""
    bits = plan.modulus_bits(step)
    return (np.asarray(values, dtype=np.int64) % (1 << bits)).astype(word_type(bits))


# -- one sum ---------------------------------------------


@dataclass(frozen=True)
class _Shift:
    """What a lie did to a sum: by how many clips its mean coordinate moved, and how many clients certified it."""

    clips: float
    taken: int
    reason: str


def shifted_by(laboratory: Laboratory, defences: Defences, lie: Lie | None, *, fed: float | None = None) -> _Shift:
    """Run an epoch of one step with a liar among honest clients.

    Args:
        laboratory: of the cohort.
        defences: which stand.
        lie: what it sends; None leaves its program as it is.
        fed: clips, in every coordinate, that its program is given for its own values.
    """
    federation = lockstep(laboratory, defences, steps=1)
    chance = laboratory.generator("honest inputs")
    spec = federation.plan.spec(0)
    clip = spec.blocks[0].clip
    values = {member: chance.uniform(-0.5, 0.5, spec.blocks[0].length) * clip for member in federation.everybody}
    if fed is not None:
        values[LIAR] = np.full(spec.blocks[0].length, fed * clip)
    federation.input_of = lambda member, compute: {spec.blocks[0].name: values[member]}
    if not federation.set_up():
        raise Stuck(f"the set-up failed: {federation.failures}")
    with nullcontext() if lie is None else lying(federation.clients[LIAR], lie):
        reveal = federation.step()
    certified = federation.finish() if reveal is not None else None
    taken = sum(bool(news.certified) for news in federation.news)
    if certified is None or reveal is None:
        return _Shift(0.0, taken, next(iter(federation.failures), "a member refused the sum"))
    found = decode(federation.plan, 0, reveal.total, len(reveal.survivors))[spec.blocks[0].name]
    others = np.sum([values[member] for member in federation.everybody if member != LIAR], axis=0)
    return _Shift(float(np.mean(found - others)) / clip, taken, "")


def _shift_evidence(laboratory: Laboratory, shift: _Shift, success: float) -> Evidence:
    clients = laboratory.cohort.clients
    return Evidence(
        measure="shift of each coordinate of the sum by one client, in clips",
        value=abs(shift.clips),
        success=success,
        learned=f"nothing: {shift.reason}"
        if shift.reason
        else f"every coordinate of the sum moves by {shift.clips:+.2f} clips, that of the mean by "
        f"{shift.clips / clients:+.3f}",
    )


class PoisonedValues(Attack):
    """The package as it is, fed with huge values."""

    name = "poisoned-values"
    adversary = "client with poisoned data"
    goal = "Shift the sum as far as an unchanged client lets hostile values go."
    paper = "Bagdasaryan et al., AISTATS 2020 (model replacement)"
    promises = ("L2",)
    defences = ("clip",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Give the client's own program three clips in every coordinate; the control encodes them without a clip."""

        def unclipped(plan: Plan, step: int, vector: Vector) -> Vector:
            clip = plan.spec(step).blocks[0].clip
            return np.round(np.full(len(vector), 4 * clip) * (plan.top(step) / (2 * clip)))

        lie = None if defences.stands("clip") else unclipped
        return _shift_evidence(laboratory, shifted_by(laboratory, defences, lie, fed=3.0), 0.5)


def lowest(share: float) -> Lie:
    """Aim at the sum that lies `share` of its range above the lowest, from the others' expected one."""

    def lie(plan: Plan, step: int, vector: Vector) -> Vector:
        top, members = plan.top(step), plan.charter.members
        aim = round(share * members * top) - round((members - 1) * top / 2)
        return np.full(len(vector), aim)

    return lie


class PoisonedRing(Attack):
    """A changed client sends whatever ring element it likes, within the sum's range."""

    name = "poisoned-ring-elements"
    adversary = "malicious client"
    goal = "Shift the sum by as much as its range allows, which has to have room for everybody's clip."
    paper = "Bagdasaryan et al., AISTATS 2020 (model replacement)"
    promises = ("L2",)
    defences = ("beyond-the-clip",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Aim a good way above the lowest sum that there is, to be safe; the control keeps to its clip."""

        def within(plan: Plan, step: int, vector: Vector) -> Vector:
            return np.zeros_like(vector)

        lie = lowest(0.2) if defences.stands("beyond-the-clip") else within
        return _shift_evidence(laboratory, shifted_by(laboratory, defences, lie), 1.2)


class PoisonedNoisedSum(Attack):
    """A changed client under client-level noise, where no range is checked: noise has none."""

    name = "poisoned-noised-sum"
    adversary = "malicious client"
    goal = "Shift a noised sum, which no range bounds, by as much as the ring has room for."
    paper = "Bagdasaryan et al., AISTATS 2020 (model replacement)"
    promises = ("L2",)
    defences = ("beyond-the-clip",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Send a quarter of the ring in every rotated coordinate; the control sends what an honest client would."""

        def lie(plan: Plan, step: int, vector: Vector) -> Vector:
            quarter = np.full(len(vector), 1 << (plan.modulus_bits(step) - 2))
            return quarter if defences.stands("beyond-the-clip") else integers(plan, step, vector)

        clients = laboratory.cohort.clients
        spec = UPDATE_SPEC.with_noise(1.0, 1.0, clients - 1)
        federation = lockstep(laboratory, defences, course=LaboratoryCourse((spec,), 1))
        federation.input_of = lambda member, compute: {"dream": np.zeros(20)}
        federation.set_up()
        with lying(federation.clients[LIAR], lie):
            reveal = federation.step()
        if reveal is None:
            raise Stuck(f"the step failed: {federation.failures}")
        moved = float(np.linalg.norm(reveal.sums["dream"]))
        noise = spec.noise
        assert noise is not None  # noqa: S101 - made above
        usual = float(np.sqrt(20 * clients / (clients - 1)))
        return Evidence(
            measure="length of the sum of zeros, beyond that of the noise, in norms of a client's vector",
            value=max(0.0, moved - usual),
            success=5.0,
            learned=f"the sum of zeros has length {moved:.1f}, where the noise alone has about {usual:.1f}",
        )


class OutOfRange(Attack):
    """A liar that leaves the range of the sum."""

    name = "out-of-range-elements"
    adversary = "malicious client"
    goal = "Shift a sum beyond what honest inputs add up to, and have it learnt from."
    promises = ("P10",)
    defences = ("_rule_true_sum", "range-check")

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Send half the ring in every coordinate, with the tag that fits; it counts how many clients take the sum."""

        def lie(plan: Plan, step: int, vector: Vector) -> Vector:
            return np.full(len(vector), 1 << (plan.modulus_bits(step) - 1))

        return _taken(laboratory, shifted_by(laboratory, defences, lie), "out of range")


class FalseTag(Attack):
    """A liar whose tag is another vector's."""

    name = "tag-of-another-vector"
    adversary = "malicious client"
    goal = "Have a sum taken whose tag does not fit, by sending one vector and the tag of another."
    promises = ("P10",)
    defences = ("_rule_true_sum",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Shift the masked vector behind the tag's back; it counts how many other clients take the sum."""
        federation = lockstep(laboratory, defences, steps=1)
        if not federation.set_up():
            raise Stuck(f"the set-up failed: {federation.failures}")
        with lying(federation.clients[LIAR], lambda plan, step, vector: vector.astype(np.int64) + 1, tagged=integers):
            federation.step()
        federation.finish()
        taken = sum(bool(news.certified) for news in federation.news)
        noticed = sum(any(ended.wrong_sum for ended in news.ended) for news in federation.news)
        return numbered(
            "clients that take a sum with another vector's tag",
            taken,
            found=f"{taken} clients learn from the sum",
            otherwise=f"nothing: {noticed} clients see that it is wrong",
        )


def _taken(laboratory: Laboratory, shift: _Shift, what: str) -> Evidence:
    return numbered(
        f"clients that take a sum {what}",
        shift.taken,
        found=f"{shift.taken} clients learn from a sum that moved by {shift.clips:+.1f} clips",
        otherwise=f"nothing: {shift.reason}",
    )


# -- dreams, labels, accuracy ---------------------------------------------

CLIENTS, EACH, ROUNDS, STEPS, BATCH, SIDE, CLASSES = 4, 60, 2, 3, 60, 8, 10
_LEARNING = LearningSettings(warm_up_epochs=40, distil_epochs=10, local_epochs=2, balanced=False, own_weight=0.0)
_COURSE = DreamSettings(rounds=ROUNDS, steps=STEPS, batch=BATCH, shape=(1, SIDE, SIDE), classes=CLASSES)


@lru_cache(maxsize=2)
def _warmed_up(seed: int) -> tuple[Participant, ...]:
    train, test = load_digits_data(seed)
    order = np.random.default_rng([seed, EACH]).permutation(len(train))
    clients = []
    for number in range(CLIENTS):
        data = train.subset(order[number * EACH : (number + 1) * EACH])
        model = build("mlp", channels=1, size=SIDE, classes=CLASSES, seed=1000 * seed + number)
        client = Participant(_LEARNING, model, data, test, 1000 * seed + number, torch.device("cpu"))
        client.warm_up()
        clients.append(client)
    return tuple(clients)


def participants(seed: int) -> list[Participant]:
    """Clients of digits after their warm-up, the same each time, each time anew."""
    return copy.deepcopy(list(_warmed_up(seed)))


@dataclass(frozen=True)
class Outcome:
    """What a federation came to."""

    accuracy: float  # mean of the honest clients, after the last round
    publications: tuple[Publication, ...]
    failed: str


def play(seed: int, lie: Lie | None) -> Outcome:
    """A small CoDream federation on digits, with or without a liar; only what the honest clients come to counts."""
    clients = participants(seed)
    course = CoDream(_COURSE, start_rule("noise"))
    learners = [DreamLearner(client) for client in clients]
    simulation = Simulation(course, learners, seed=seed)
    publications: list[Publication] = []
    failed = ""
    with warnings.catch_warnings(), lying(simulation.clients[LIAR], lie or (lambda plan, step, vector: vector)):
        warnings.simplefilter("ignore")  # what learns from lies may come to nothing
        try:
            publications += [simulation.run_epoch() for _ in range(ROUNDS)]
        except AggregationFailed as error:
            failed = error.found
    accuracies = [client.measure().accuracy or 0.0 for place, client in enumerate(clients) if place != LIAR]
    return Outcome(float(np.mean(accuracies)), tuple(publications), failed)


@lru_cache(maxsize=2)
def _honestly(seed: int) -> Outcome:
    return play(seed, None)


def wrong_labels(*, beyond: bool) -> Lie:
    """Leave updates alone, and call each dream the class after the one it is of, as loudly as can be.

    A dream's target class follows from its place, and everybody knows it. Within the clip that is a value at its end;
    `beyond` it, whatever brings the expected sum near the end of its range.
    """

    def lie(plan: Plan, step: int, vector: Vector) -> Vector:
        if plan.spec(step).task != LOGITS:
            return vector
        top, members = plan.top(step), plan.charter.members
        expected = round((members - 1) * top / 2)
        low, high = (round(end * members * top) - expected for end in (0.1, 0.9)) if beyond else (0, top)
        labels = np.full((BATCH, CLASSES), low, dtype=np.int64)
        labels[np.arange(BATCH), (np.arange(BATCH) + 1) % CLASSES] = high
        return np.concatenate([labels.reshape(-1), vector[labels.size :]])

    return lie


class LyingInCoDream(Attack):
    """One member that says of every dream what it likes."""

    name = "lying-member-in-codream"
    adversary = "malicious client"
    goal = "Spoil what the others learn from dreams, by soft labels that are as loud as a clip lets them be."
    paper = "Bagdasaryan et al., AISTATS 2020 (model replacement)"
    promises = ("L2",)
    defences = ("honest",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Two rounds of four clients on digits, beside the same without a liar; in full, also one beyond its clip."""
        honest = _honestly(laboratory.seed)
        lies = defences.stands("honest")
        liar = play(laboratory.seed, wrong_labels(beyond=False)) if lies else honest
        more = ""
        if lies and not laboratory.quick:
            louder = play(laboratory.seed, wrong_labels(beyond=True))
            more = f" ({louder.accuracy:.1%} where the liar leaves its clip)"
        same = _same_labels(liar.publications[0], honest.publications[0])
        labels, dreams = (
            max(float(np.abs(found[name]).max()) for found in liar.publications) for name in ("soft_labels", "dreams")
        )
        return Evidence(
            measure="accuracy that the honest clients lose by one liar in two rounds, percentage points",
            value=100 * (honest.accuracy - liar.accuracy),
            success=5.0,
            learned=f"the honest clients come to {liar.accuracy:.1%} instead of {honest.accuracy:.1%}{more}; "
            f"{same:.0%} of the first labels stay what they were; pixels within {dreams:.1f} of "
            f"{_COURSE.pixel_bound:g}, logits within {labels:.1f} of {_COURSE.logit_clip:g}",
        )


def _same_labels(found: Publication, true: Publication) -> float:
    return float((found["soft_labels"].argmax(1) == true["soft_labels"].argmax(1)).mean())


def far_dreams(plan: Plan, step: int, vector: Vector) -> Vector:
    """Push every pixel as far up as the sum's range lets it, with the least weight that a client may have."""
    spec: VectorSpec = plan.spec(step)
    if spec.task != UPDATE:
        return vector
    top, members = plan.top(step), plan.charter.members
    changed = np.full(len(vector), round(0.9 * members * top) - round((members - 1) * top / 2))
    changed[spec.blocks[0].length :] = vector[spec.blocks[0].length :]
    return changed


class BeyondThePixelBound(Attack):
    """A liar that drives the dreams to where models overflow."""

    name = "pixels-beyond-their-bound"
    adversary = "malicious client"
    goal = "Drive the dreams, step by step, to pixels at which one model overflows and another does not."
    promises = ("P8",)
    defences = ("pixel-bound",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Push in every update of a long round, with a clip of half the bound; the largest pixel that others saw."""
        clip = 5.0
        settings = DreamSettings(rounds=1, steps=6, batch=4, shape=(1, 4, 4), classes=3, update_clip=clip)
        seen = [0.0]

        class Watching:
            """Answers zeros, and notes what it is shown."""

            def compute(self, task: Task, spec: VectorSpec) -> Mapping[str, Vector]:
                seen.append(float(max((np.abs(array).max() for array in task.arrays.values()), default=0.0)))
                values = {block.name: np.zeros(block.length) for block in spec.blocks}
                return values | ({"weight": np.ones(1)} if task.name == UPDATE else {})

            def learn(self, number: int, publication: Publication) -> None:
                """Nothing."""

        simulation = Simulation(CoDream(settings, start_rule("noise")), [Watching() for _ in range(4)], seed=0)
        with lying(simulation.clients[LIAR], far_dreams):
            simulation.run_epoch()
        return Evidence(
            measure="largest pixel that clients are shown, over the public bound",
            value=max(seen) / settings.pixel_bound,
            success=1.0,
            learned=f"pixels of up to {max(seen):.1f}, where {settings.pixel_bound:g} is the bound",
        )


def _unbounded() -> AbstractContextManager[Any]:
    def as_it_is(values: Vector, bound: Any, low: Any = None) -> Vector:
        return values.astype(np.float32)

    return patch.object(codream_module, "bounded", as_it_is)


SWITCHES = {
    "clip": Switch("Values are clipped before they are encoded."),
    "beyond-the-clip": Switch("The control's client keeps to its clip; under noise, it is honest."),
    "honest": Switch("The control's client is honest."),
    "pixel-bound": Switch("Pixels of a state stay within a public bound, whatever was summed.", _unbounded),
}

ATTACKS: Sequence[Attack] = (
    PoisonedValues(),
    PoisonedRing(),
    PoisonedNoisedSum(),
    OutOfRange(),
    FalseTag(),
    BeyondThePixelBound(),
    LyingInCoDream(),
)
