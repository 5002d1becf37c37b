"""Questions as oracles: other clips asked again and again, refusals listened to, a sum of few figures taken apart.

In version 1 of the protocol a server could ask one thing twice with other bounds, or find out from a refusal what a sum
hides. Now clips are constants of the charter; whoever has begun a step answers it; and what is told of accuracies is
counts. The clients are CoDream's own, as in `state`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from codream_clients.dream_learner import DreamLearner, metrics_values
from codream_clients.refusals import refusal
from codream_protocols import client as client_module
from codream_protocols import encoding
from codream_protocols.course import Task
from codream_protocols.courses.codream import CoDream, DreamSettings
from codream_protocols.courses.labels import LOGITS
from codream_protocols.courses.metrics import METRICS, metrics_spec
from codream_protocols.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from codream_protocols.messages import Published, Survivors, Vote, encode_message
from codream_protocols.specs import Block, VectorSpec
from codream_protocols.starts import start_rule
from secure_codream.simulation.toy_course import LaboratoryCourse
from secure_codream.simulation.wire import Federation, Stuck
from secure_codream.threats.attacks.dropouts import VICTIM
from secure_codream.threats.attacks.state import (
    BATCH,
    CLASSES,
    CLIENTS,
    DREAMS,
    LEARNING,
    SIDE,
    dreaming,
    images_of,
    learners,
)
from secure_codream.threats.laboratory.attack import Attack, Evidence
from secure_codream.threats.laboratory.defences import Defences
from secure_codream.threats.laboratory.evidence import Vector, counted
from secure_codream.threats.laboratory.laboratory import Laboratory
from secure_codream.threats.laboratory.switches import SWITCHES as COMMON
from secure_codream.threats.laboratory.switches import Switch

# -- other clips ---------------------------------------------


class ClipLadder(Attack):
    """One state asked again and again, each time with another clip."""

    name = "ladder-of-clips"
    adversary = "malicious server"
    goal = "Read every client's label counts off sums of clipped weights, each with a kink at every client's value."
    paper = ""
    promises = ("P6",)
    defences = ("own-charter",)
    label = 0

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Plan each clip of the ladder; clients keep to their charter's, or in the control take the server's.

        Class-aware weights depend on no state, so that it need not stand still.
        """
        most, prior = LEARNING.max_count, LEARNING.prior
        weights = [learner.compute(_labelling(), _LABELS)["denominators"] for learner in learners(laboratory.seed)]
        truth = sorted(int(data.class_counts[self.label]) for data in images_of(laboratory.seed))
        highest = max(truth)
        clips = [(count + 0.5 + prior) / (most + prior) for count in range(highest + 1)]
        own = None if not defences.stands("own-charter") else 1.0
        sums = [self._sum(laboratory, defences, weights, clip, own or clip) for clip in clips]
        opened = [total for total in sums if total is not None]
        found = sorted_counts(np.array(opened) * (most + prior), len(weights)) if len(opened) == len(clips) else []
        share = float(np.mean([one == true for one, true in zip(found, truth, strict=True)])) if found else 0.0
        return Evidence(
            measure="clients' counts of one class read exactly, share",
            value=share,
            success=0.5,
            learned=f"{share:.0%} of the clients' counts of a class, from {len(opened)} sums of {len(clips)} planned",
        )

    def _sum(
        self, laboratory: Laboratory, defences: Defences, weights: Sequence[Vector], wished: float, own: float
    ) -> float | None:
        """The sum of a class's weights with the clip that the server wishes for; None if none opens."""
        server, client = (
            LaboratoryCourse((VectorSpec(LOGITS, (Block("denominators", CLASSES, clip),)),), 1)
            for clip in (wished, own)
        )
        federation = laboratory.federation(
            defences, members=CLIENTS, mode="lockstep", course=server, courses=[client] * CLIENTS, value_bits=20
        )
        federation.input_of = lambda member, effect: {"denominators": weights[member]}
        if not federation.set_up():
            return None
        reveal = federation.step()
        return None if reveal is None else float(reveal.sums["denominators"][self.label])


_LABELS = CoDream(DreamSettings(**DREAMS), start_rule("noise"))._spec(LOGITS, CLIENTS)


def _labelling() -> Task:
    return Task(LOGITS, {"dreams": np.zeros((BATCH, 1, SIDE, SIDE), dtype=np.float32)})


def sorted_counts(totals: NDArray[np.float64], clients: int) -> list[int]:
    """Sorted counts of clients from the sums of their counts, cut at 1/2, 3/2, ... in turn.

    Between two cuts a client with more adds 1, one whose count lies between them 1/2.
    """
    found: list[int] = []
    for count in range(len(totals) - 1, 0, -1):
        rise = float(totals[count] - totals[count - 1])
        found += [count] * max(0, min(clients - len(found), round(2 * (rise - len(found)))))
    return sorted([0] * (clients - len(found)) + found)


# -- silence ---------------------------------------------


class Oracle(Attack):
    """What a client says depends on nothing that its data decide."""

    name = "refusal-oracle"
    adversary = "malicious server"
    goal = "Learn of a client's model, without any sum, from whether it answers, refuses, or what it says then."
    paper = ""
    promises = ("P8",)
    defences = ("silence",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Two worlds each, in which the victim's data or model differ and nothing else; compare all that it says."""
        base = learners(laboratory.seed)
        usual = self._heard(laboratory, base)

        def tells(changed: Any) -> bool:
            with nullcontext() if defences.stands("silence") else _outspoken():
                return self._heard(laboratory, [changed, *base[1:]]) != usual

        other = learners(laboratory.seed + 1)[VICTIM]
        tries = {
            "a model that overflows": lambda: tells(_with_model(base[VICTIM], 1e30)),
            "a model that answers with no number": lambda: tells(_with_model(base[VICTIM], float("nan"))),
            "a computation that fails": lambda: tells(_Failing(base[VICTIM])),
        }
        if tells(other):
            raise Stuck("two honest clients with other data can be told apart by what they say")
        return counted(tries, what="models told apart by what their clients say", defences=defences)

    def _heard(self, laboratory: Laboratory, of: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Kinds and sizes of all that the victim sends in an epoch, and its refusals of hostile messages."""
        federation = dreaming(laboratory, Defences(), of, {})
        said: list[tuple[Any, ...]] = []
        if not federation.set_up():
            raise Stuck(f"the set-up failed: {federation.failures}")
        for step in range(federation.plan.steps):
            said += self._provoked(federation, step)
            for member in sorted(federation.computing):
                try:
                    federation.compute([member])
                except ProtocolError as error:
                    said.append(("refusal", member, error.code))
            federation.drain(hold=(Vote,))
            if federation.server.step == step:
                break  # somebody did not answer: the step never ends
        federation.finish()
        for item in federation.sent:
            if item.to_server and item.member == VICTIM:
                said.append((item.kind.__name__, len(item.data), *map(len, item.frames)))
        return said

    def _provoked(self, federation: Federation, step: int) -> list[tuple[Any, ...]]:
        plan = federation.plan
        said = []
        for message, frames in (
            (Published(plan.digest, step, federation.everybody, bytes(16)), (bytes(40),)),
            (Published(plan.digest, step + 1, federation.everybody, bytes(16)), (bytes(40),)),
            (Published(bytes(32), step, federation.everybody, bytes(16)), ()),
            (Survivors(plan.digest, step, (0, 1)), ()),
        ):
            try:
                federation.tell(VICTIM, message, frames)
            except RemoteProtocolError as error:
                said.append(("refusal", encode_message(refusal(error.code, type(message).__name__))))
        return said


class _Failing:
    """A learner whose computations raise."""

    def __init__(self, learner: DreamLearner) -> None:
        self._learner = learner

    def compute(self, task: Task, spec: VectorSpec) -> Mapping[str, Vector]:
        """Raises, as for an image that cannot be read."""
        raise RuntimeError("an image that cannot be read")


def _with_model(learner: DreamLearner, scale: float) -> DreamLearner:
    """The same learner, with a model whose every weight is scaled."""
    changed = copy.deepcopy(learner)
    with torch.no_grad():
        for weight in changed._participant.model.parameters():
            weight.mul_(scale)
    return changed


@contextmanager
def _outspoken() -> Iterator[None]:
    """A client that refuses to encode what is not finite, or what was not computed."""
    quiet = encoding.encode

    def encode(plan: Any, step: int, values: Any, random_bytes: Any) -> Any:
        if values is None or not all(np.isfinite(np.asarray(part, dtype=np.float64)).all() for part in values.values()):
            raise LocalProtocolError("values that are not finite", "finite values")
        return quiet(plan, step, values, random_bytes)

    with patch.object(client_module, "encode", encode):
        yield


# -- figures ---------------------------------------------

TESTED = (97, 101, 103)


class AccuraciesFromASum(Attack):
    """One sum of metrics, and the sizes of everybody's test set."""

    name = "accuracies-from-a-sum"
    adversary = "server that knows how many test images each client has"
    goal = "Read every client's accuracy off one sum of metrics."
    paper = ""
    promises = ("P1",)
    defences = ("counts",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Sum what three clients tell, and count which accuracies fit; fractions, in the control, of 24 bits."""
        chance = laboratory.generator(self.name)
        right = [int(chance.integers(size // 2, size)) for size in TESTED]
        counts = defences.stands("counts")
        if counts:
            spec = metrics_spec()
            told = [metrics_values((one, size, 0, 0), tells=True) for one, size in zip(right, TESTED, strict=True)]
        else:
            spec = VectorSpec(METRICS, (Block("accuracy", 1, 1.0),))
            told = [{"accuracy": np.array([one / size])} for one, size in zip(right, TESTED, strict=True)]
        federation = laboratory.federation(
            defences, members=len(TESTED), mode="lockstep", course=LaboratoryCourse((spec,), 1), value_bits=24
        )
        federation.input_of = lambda member, effect: told[member]
        federation.set_up()
        reveal = federation.step()
        if reveal is None:
            raise Stuck(f"the step failed: {federation.failures}")
        first, second, third = (np.arange(size + 1) for size in TESTED)
        if counts:
            fits = first[:, None, None] + second[None, :, None] + third[None, None, :] == reveal.sums["correct"][0]
        else:
            fractions = [np.arange(size + 1) / size for size in TESTED]
            summed = fractions[0][:, None, None] + fractions[1][None, :, None] + fractions[2][None, None, :]
            fits = np.abs(summed - reveal.sums["accuracy"][0]) <= len(TESTED) * 2.0 / ((1 << 24) - 1)
        ways = int(fits.sum())
        return Evidence(
            measure="chance to guess all accuracies from the sum",
            value=1 / ways if ways and fits[tuple(right)] else 0.0,
            success=0.05,
            learned=f"that the accuracies are one of {ways:,} possible triples"
            if ways > 1
            else "every client's accuracy, exactly",
        )


SWITCHES = {
    "own-charter": Switch(COMMON["own-charter"].what),
    "silence": Switch("Who has begun a step answers it: what is not finite counts 0, what fails sends zeros."),
    "counts": Switch("Accuracies are told as counts of images, whose sum many counts fit."),
}

ATTACKS: tuple[Attack, ...] = (
    ClipLadder(),
    Oracle(),
    AccuraciesFromASum(),
)
