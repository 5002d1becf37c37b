"""State across steps and epochs: a server that has clients at other states, or another history shown.

In version 1 of the protocol a server chose what clients were asked, and so could ask all but one of them for nothing
(Pasquini, Francati, Ateniese, CCS 2022). Now clients compute each state themselves, and masks hold only among those who
stand at the same one. The clients here are CoDream's own: course, participants with models, learners.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import torch

from codream_clients.data.datasets import LabelledImages, load_digits_data
from codream_clients.dream_learner import DreamLearner
from codream_clients.learning.participant import LearningSettings, Participant
from codream_clients.models.zoo import build
from codream_protocols import hybrid
from codream_protocols import record as record_module
from codream_protocols.charter import Plan
from codream_protocols.client import Compute
from codream_protocols.courses.codream import UPDATE, CoDream, DreamSettings
from codream_protocols.courses.labels import LOGITS
from codream_protocols.encoding import decode
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.masks import add_mask
from codream_protocols.messages import Certificate, Published, Seals, SignedBy, Vote
from codream_protocols.packing import unpack
from codream_protocols.record import Kept, certified_epochs
from codream_protocols.starts import start_rule
from secure_codream.simulation.packets import packet
from secure_codream.simulation.toy_course import LaboratoryCourse
from secure_codream.simulation.wire import Federation, Stuck
from secure_codream.threats.attacks.clients import Contexts, alone
from secure_codream.threats.attacks.dropouts import VICTIM, all_but
from secure_codream.threats.attacks.lying import lying
from secure_codream.threats.laboratory import adversary
from secure_codream.threats.laboratory.attack import Attack, Evidence
from secure_codream.threats.laboratory.defences import Defences
from secure_codream.threats.laboratory.evidence import Try, Vector, counted, numbered
from secure_codream.threats.laboratory.laboratory import Laboratory
from secure_codream.threats.laboratory.measures import correlation
from secure_codream.threats.laboratory.switches import Switch

CLIENTS, COLLUDER, EACH, BATCH, SIDE, CLASSES = 5, 4, 20, 30, 8, 10
LEARNING = LearningSettings(warm_up_epochs=20, distil_epochs=5, local_epochs=0, balanced=False, own_weight=0.0)
DREAMS: Mapping[str, Any] = {"rounds": 2, "steps": 1, "batch": BATCH, "shape": (1, SIDE, SIDE), "classes": CLASSES}


@lru_cache(maxsize=4)
def images_of(seed: int) -> tuple[LabelledImages, ...]:
    """Images of digits for each client, of skewed classes."""
    train, _ = load_digits_data(seed)
    draws = np.random.default_rng([seed, CLIENTS])
    parts = []
    for _ in range(CLIENTS):
        share = draws.dirichlet(np.full(CLASSES, 0.7))
        labels = draws.choice(CLASSES, EACH, p=share)
        parts.append(np.array([draws.choice(np.flatnonzero(train.labels == label)) for label in labels]))
    return tuple(train.subset(part) for part in parts)


@lru_cache(maxsize=4)
def _warmed_up(seed: int) -> tuple[Participant, ...]:
    found = []
    for number, data in enumerate(images_of(seed)):
        model = build("mlp", channels=1, size=SIDE, classes=CLASSES, seed=1000 * seed + number)
        client = Participant(LEARNING, model, data, None, 1000 * seed + number, torch.device("cpu"))
        client.warm_up()
        found.append(client)
    return tuple(found)


def learners(seed: int) -> list[DreamLearner]:
    """A learner for each client, after its warm-up; the same each time, each time anew."""
    return [DreamLearner(client) for client in copy.deepcopy(_warmed_up(seed))]


def dreaming(
    laboratory: Laboratory, defences: Defences, of: Sequence[DreamLearner], settings: Mapping[str, Any], **options: Any
) -> Federation:
    """Real machines of CoDream's course, whose clients are these learners."""
    course = CoDream(DreamSettings(**{**DREAMS, **settings}), start_rule("noise"))
    federation = laboratory.federation(
        defences, **{"members": len(of), "mode": "lockstep", "course": course, **options}
    )
    federation.input_of = lambda member, effect: _computed(of[member], effect)
    return federation


def _computed(learner: DreamLearner, effect: Compute) -> Any:
    """What a learner answers; None where it fails, as the runner has it."""
    try:
        return learner.compute(effect.task, effect.spec)
    except Exception:
        return None


def up_to(federation: Federation, task: str) -> int:
    """Run to the step of this task, whose vectors are then asked for; returns its number."""
    if not federation.set_up():
        raise Stuck(f"the set-up failed: {federation.failures}")
    while federation.plan.spec(federation.server.step or 0).task != task:
        if federation.step() is None:
            raise Stuck(f"a step failed: {federation.failures}")
    return federation.server.step or 0


# -- other sums for others ---------------------------------------------


def forged(federation: Federation, step: int, block: str, value: int) -> tuple[Published, bytes]:
    """A step's true sum with every element of a block at this value, and the tag that a colluder makes fit."""
    item, plan = federation.published(step), federation.plan
    words = unpack(item.frames[0], plan.spec(step).words, plan.modulus_bits(step)).astype(np.int64)
    start = 0
    for one in plan.spec(step).blocks:
        if one.name == block:
            change = {place: value - int(words[place]) for place in range(start, start + one.words)}
        start += one.words
    return adversary.altered(federation, item, change, adversary.told_group_key(federation, COLLUDER))


class OthersElsewhere(Attack):
    """Model inconsistency across steps: all but the victim are told another sum, which a colluder makes fit."""

    name = "others-at-another-state"
    adversary = "malicious server with a client"
    goal = "Drive all others' dreams to one picture, so that the sum of soft labels varies with the victim's alone."
    paper = "Pasquini, Francati, Ateniese, CCS 2022"
    promises = ("P4",)
    defences = ("chain-binding",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Forge the update's sum for the others; add everybody's masked soft labels; correlate with the victim's."""
        federation = dreaming(laboratory, defences, learners(laboratory.seed), {"update_clip": 6.0, "pixel_bound": 3.0})
        step = up_to(federation, UPDATE)
        federation.compute()
        federation.drain(lost={(member, Published) for member in federation.everybody})
        item = federation.published(step)
        top = CLIENTS * federation.plan.top(step)
        message, frame = forged(federation, step, "dreams", top)
        federation.deliver(packet(VICTIM, item.message, item.frames, to_server=False))
        for member in all_but(federation, VICTIM):
            federation.deliver(packet(member, message, (frame,), to_server=False))
        if len(federation.computing) != CLIENTS:
            raise Stuck(f"not everybody went on: {federation.refusals}")
        federation.compute()
        federation.wire.clear()
        words = adversary.ring_sum(
            federation,
            (adversary.masked_input(federation, step + 1, member) for member in federation.everybody),
            step + 1,
        )
        own = federation.encoded[federation.plan.digest, step + 1, VICTIM]
        found, truth = (decode(federation.plan, step + 1, part, 1)["numerators"] for part in (words, own))
        apart = [part.reshape(BATCH, CLASSES) - part.reshape(BATCH, CLASSES).mean(axis=0) for part in (found, truth)]
        value = correlation(*apart)
        return Evidence(
            measure="correlation of what varies in the sum with the victim's soft labels",
            value=value,
            success=0.5,
            learned=f"the victim's soft labels with a correlation of {value:.3f}",
        )


class AnotherLesson(Attack):
    """The last sum of an epoch: all but the victim are to learn other labels."""

    name = "another-lesson"
    adversary = "malicious server with a client"
    goal = "Have some clients learn other soft labels than others do, and so steer their models."
    paper = "Pasquini, Francati, Ateniese, CCS 2022"
    promises = ("P17",)
    defences = ("_rule_certificate",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Forge the soft labels' sum for all but the victim; hand each group the certificate of its own votes."""
        federation = dreaming(laboratory, defences, learners(laboratory.seed), {})
        step = up_to(federation, LOGITS)
        federation.compute()
        federation.drain(lost={(member, Published) for member in federation.everybody})
        item = federation.published(step)
        message, frame = forged(federation, step, "numerators", 0)
        federation.deliver(packet(VICTIM, item.message, item.frames, to_server=False))
        for member in all_but(federation, VICTIM):
            federation.deliver(packet(member, message, (frame,), to_server=False))
        votes = {one.member: one.message for one in federation.sent if isinstance(one.message, Vote)}
        for group in ((VICTIM,), all_but(federation, VICTIM)):
            signed = tuple(SignedBy(member, votes[member].signature) for member in group if member in votes)
            for member in group:
                federation.deliver(packet(member, Certificate(federation.plan.digest, signed), to_server=False))
        lessons = {
            member: news.certified[-1].publication["soft_labels"].tobytes()
            for member, news in enumerate(federation.news)
            if news.certified
        }
        kinds = len(set(lessons.values()))
        return Evidence(
            measure="different lessons that clients learn from one epoch",
            value=float(kinds),
            success=1.0,
            learned=f"{len(lessons)} clients learn, {kinds} different lessons"
            if lessons
            else "nothing: nobody learns from an epoch without everybody's votes for the same sums",
        )


class SteeredState(Attack):
    """A colluder who hears the others' sum from the server before it answers."""

    name = "steered-dreams"
    adversary = "malicious server with a client that answers last"
    goal = "Choose the dreams that everybody sees next, within their public bounds."
    promises = ("L6",)
    defences = ("answers-last",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Add the others' vectors, take the colluder's own masks off, and send what is missing to the wished sum.

        In the control the colluder answers without having heard of the others, with its wish as its own input.
        """
        federation = dreaming(laboratory, defences, learners(laboratory.seed), {})
        step = up_to(federation, UPDATE)
        wish = laboratory.generator(self.name).uniform(-1, 1, (BATCH, 1, SIDE, SIDE))
        federation.compute(all_but(federation, COLLUDER))
        others = _sum_of_others(federation, step) if defences.stands("answers-last") else None
        before = _dreams(federation)

        def lie(plan: Plan, number: int, vector: Vector) -> Vector:
            top = plan.top(number)
            share = wish.reshape(-1) * 0.5 + 0.5
            if others is None:
                own = np.rint(share * top).astype(np.int64)
            else:
                own = np.rint(share * plan.charter.members * top).astype(np.int64) - others[: len(share)]
            return np.concatenate([own, vector[len(own) :]])

        with lying(federation.clients[COLLUDER], lie):
            federation.compute([COLLUDER])
        federation.drain(hold=(Vote,))
        moved = _dreams(federation) - before
        share = float((np.abs(moved - wish) < 0.01).mean())
        return Evidence(
            measure="pixels that move exactly as wished, to within 1 % of the clip, share",
            value=share,
            success=0.5,
            learned=f"how to move {share:.0%} of the pixels exactly as wished, within the clip, in one step",
        )


def _dreams(federation: Federation) -> Vector:
    """The dreams at which the victim stands."""
    epoch = federation.clients[VICTIM]._epoch
    if epoch is None or epoch.public is None:
        raise Stuck(f"the victim is in no epoch: {federation.failures}")
    return epoch.public.state["dreams"].astype(np.float64)


def _sum_of_others(federation: Federation, step: int) -> Vector:
    """The sum of all inputs but the colluder's, from their masked vectors and the colluder's keys."""
    epoch = federation.clients[COLLUDER]._epoch
    if epoch is None or epoch.public is None:
        raise Stuck("the colluder is in no epoch")
    total = adversary.ring_sum(
        federation, (adversary.masked_input(federation, step, one) for one in all_but(federation, COLLUDER)), step
    )
    for other, root in epoch.keys._roots.items():
        key = hybrid.pair_mask_key(root.reveal(), step, epoch.public.chain)
        add_mask(total, key, suite=federation.plan.aggregation.suite, negative=other < COLLUDER)
    return adversary.reduce(federation, total, step).astype(np.int64)


class GroupKeyFromSeals(Attack):
    """What members seal for each other, read by who carries it."""

    name = "group-key-from-seals"
    adversary = "malicious server"
    goal = "Read members' values off what they seal for each other, and with the group key make any sum's tag fit."
    promises = ("P10",)
    defences = ("sealed",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Take the first bytes of what is sealed for the values, as they would be without encryption."""
        federation = laboratory.federation(defences, members=CLIENTS, mode="lockstep", course=LaboratoryCourse())
        if not federation.set_up():
            raise Stuck(f"the set-up failed: {federation.failures}")
        sealed = {item.member: item.message for item in federation.sent if isinstance(item.message, Seals)}
        values = [sealed[member].items[0].ciphertext[:KEY_BYTES] for member in federation.everybody]
        transcript = adversary.transcript_of(federation)
        found = hybrid.group_key(transcript, federation.everybody, values)
        known = found == adversary.told_group_key(federation, VICTIM)
        return numbered(
            "group keys read off the seals, of 1",
            known,
            found="the group key, and so how to forge any sum",
            otherwise="nothing: what is sealed is no value",
        )


# -- starts and records ---------------------------------------------


class ShoppingForAStart(Attack):
    """A server that stops every epoch whose start it does not like."""

    name = "shopping-for-a-start"
    adversary = "malicious server"
    goal = "Look at starts, and give epochs up, until one comes that suits it."
    promises = ("P16",)
    defences = ("_rule_attempts",)
    attempts, tries = 4, 12

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Set epochs up to their start seeds and stop them; how many starts it sees beyond the charter's attempts."""
        federation = laboratory.federation(
            defences, members=CLIENTS, mode="lockstep", course=LaboratoryCourse(), attempts=self.attempts
        )
        starts = set()
        for _ in range(self.tries):
            if not federation.set_up():
                break
            epoch = federation.clients[VICTIM]._epoch
            if epoch is None or epoch.public is None:
                raise Stuck("the victim is in no epoch")
            starts.add(epoch.public.start)
            federation.emit(federation.server.expire())  # nobody has computed anything: given up
            federation.drain()
        beyond = max(0, len(starts) - self.attempts)
        return Evidence(
            measure=f"starts to choose from, beyond the {self.attempts} that the charter has",
            value=float(beyond),
            success=0.0,
            learned=f"{len(starts)} starts to choose from",
        )


def _kept(laboratory: Laboratory) -> tuple[Federation, list[Kept]]:
    federation = laboratory.federation(members=CLIENTS, mode="lockstep", course=LaboratoryCourse())
    return federation, [certified.kept for certified in federation.run(2)]


def _verified(federation: Federation, records: Sequence[Kept]) -> bytes:
    """The head that a record leads to, as anybody computes it; raises what it refuses."""
    heads = [head for _, head, _ in certified_epochs(federation.charter, federation.roster, federation.course, records)]
    return heads[-1]


def _believed_votes(roster: Any, trajectory: Any, votes: Any) -> dict[int, SignedBy]:
    return {vote.member: vote for vote in votes}


_RECORD_CHECKS: Contexts = {
    "signed-history": lambda: patch.object(record_module, "valid_votes", _believed_votes),
    "quorum": lambda: patch.object(record_module, "check_certificate", lambda charter, votes: None),
    "start-commitments": lambda: patch.object(record_module, "check_start_shares", lambda plan, items, shares: None),
}


class AlteredRecord(Attack):
    """A record that says something else than what happened."""

    name = "altered-record"
    adversary = "whoever keeps the record"
    goal = "Show somebody who was not there another sum, start or agreement than there was."
    promises = ("P18",)
    defences = tuple(_RECORD_CHECKS)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Change a part of one epoch's record, and verify it as anybody may."""
        federation, records = _kept(laboratory)
        (record, frames), *_ = records
        replace = msgspec.structs.replace
        first, *rest = record.steps
        size = len(record.start) // CLIENTS
        alterations: dict[str, tuple[Kept, tuple[str, ...]]] = {
            "another sum": ((record, (_flipped(frames[0]), *frames[1:])), ("signed-history",)),
            "another tag": (
                (replace(record, steps=(replace(first, tag=bytes(16)), *rest)), frames),
                ("signed-history",),
            ),
            "another start": (
                (replace(record, start=bytes(size) + record.start[size:]), frames),
                ("start-commitments", "signed-history"),
            ),
            "a vote of somebody else": (
                (replace(record, votes=(replace(record.votes[0], signature=bytes(64)), *record.votes[1:])), frames),
                ("signed-history",),
            ),
            "a vote less": ((replace(record, votes=record.votes[1:]), frames), ("quorum",)),
        }

        def attempt(altered: Kept, standing: Defences) -> bool:
            with alone(standing, _RECORD_CHECKS):
                return bool(_verified(federation, [altered]))

        tries = {how: Try(partial(attempt, altered), names) for how, (altered, names) in alterations.items()}
        return counted(tries, what="altered records", defences=defences)


def _flipped(frame: bytes) -> bytes:
    return bytes([frame[0] ^ 1]) + frame[1:]


class ShortenedRecord(Attack):
    """A record whose last epoch was cut off."""

    name = "shortened-record"
    adversary = "whoever keeps the record"
    goal = "Show a record that ends before its last epoch, as if that had never been."
    promises = ("L8",)
    defences = ("compared-head",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """A limit: whoever verifies it sees nothing wrong; the control compares the head with a member's."""
        federation, records = _kept(laboratory)
        head = _verified(federation, records[:-1])
        noticed = not defences.stands("compared-head") and head != federation.clients[VICTIM].head
        return Evidence(
            measure="shortened records that verify, of 1",
            value=0.0 if noticed else 1.0,
            success=0.5,
            learned="nothing: a member's head is another" if noticed else "that one epoch less verifies as well",
        )


SWITCHES = {
    "signed-history": Switch("Votes are signatures over the whole history, which the record must lead to."),
    "quorum": Switch("A record needs enough votes."),
    "start-commitments": Switch("Start shares are compared with what members had committed to."),
    "compared-head": Switch("The control compares the record's head with a member's."),
    "answers-last": Switch("The control's colluder answers without having heard of the others."),
}

ATTACKS: tuple[Attack, ...] = (
    OthersElsewhere(),
    AnotherLesson(),
    GroupKeyFromSeals(),
    SteeredState(),
    ShoppingForAStart(),
    AlteredRecord(),
    ShortenedRecord(),
)
