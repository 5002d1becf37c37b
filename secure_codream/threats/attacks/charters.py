"""Attacks on what was agreed: charters, offers and cohorts that do not fit, and a client that was started again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from unittest.mock import patch

import msgspec

from codream_protocols.charter import Charter, Offer, Policy, Predecessor, even_blocks
from codream_protocols.identity import Roster
from codream_protocols.masks import SUITES
from codream_protocols.messages import Advertisement, Invitation, Seals
from codream_protocols.server import ServerProtocol
from codream_protocols.specs import Block, VectorSpec
from secure_codream.simulation.toy_course import UPDATE_SPEC, LaboratoryCourse
from secure_codream.simulation.wire import Federation, Stuck
from secure_codream.threats.attacks.dropouts import VICTIM, in_mode, lockstep, resilient
from secure_codream.threats.laboratory import adversary
from secure_codream.threats.laboratory.adversary import (
    advertised,
    said,
    shown,
)
from secure_codream.threats.laboratory.attack import Attack, Evidence
from secure_codream.threats.laboratory.defences import Defences
from secure_codream.threats.laboratory.evidence import Try, counted
from secure_codream.threats.laboratory.laboratory import Laboratory
from secure_codream.threats.laboratory.switches import SWITCHES as COMMON


class CharterBelowPolicy(Attack):
    """Charters that ask for more, or protect less, than the client's own policy allows."""

    name = "charter-below-policy"
    adversary = "malicious server with a malicious administrator"
    goal = "Have a client take part under settings that its policy rules out."
    promises = ("P6",)
    defences = ("_rule_policy",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """One charter that is just within the policy, which is then tightened by each of its limits."""
        (other,) = set(SUITES) - {"aes-256-ctr"}
        within: dict[str, Any] = {
            "least_cohort": 9,
            "least_survivors": 4,
            "colluders": 2,
            "modes": ("resilient",),
            "suites": ("aes-256-ctr",),
            "most_steps": 3,
            "most_coordinates": 20,
            "most_value_bits": 16,
            "losses": True,
        }
        beyond: dict[str, dict[str, Any]] = {
            "fewer members": {"least_cohort": 10},
            "fewer survivors": {"least_survivors": 5},
            "fewer colluders": {"colluders": 3},
            "another mode": {"modes": ("lockstep",)},
            "another mask suite": {"suites": (other,)},
            "more steps": {"most_steps": 2},
            "more coordinates": {"most_coordinates": 19},
            "finer values": {"most_value_bits": 15},
            "parts of blocks": {"losses": False},
        }

        def attempt(changed: Mapping[str, Any], standing: Defences) -> bool:
            federation = laboratory.federation(
                standing,
                members=9,
                mode="resilient",
                colluders=2,
                least_survivors=4,
                value_bits=16,
                suite="aes-256-ctr",
                losses="allow",
                blocks=even_blocks(9, 2),
                policy=Policy(**{**within, **changed}),
            )
            return isinstance(adversary.invite(federation, VICTIM), Advertisement)

        if not attempt({}, Defences()):
            raise Stuck("a charter within the policy was refused")
        tries = {
            how: Try(lambda standing, what=what: attempt(what, standing), self.defences)  # type: ignore[misc]
            for how, what in beyond.items()
        }
        return counted(tries, what="charters beyond the policy", defences=defences)


def noised(multiplier: float, shares: int) -> tuple[VectorSpec, ...]:
    """Vectors that carry noise, of which `shares` clients' make up the whole."""
    return (UPDATE_SPEC.with_noise(1.0, multiplier, shares),) if multiplier else (UPDATE_SPEC,)


class LessNoise(Attack):
    """Sums that would carry less noise than the client demands."""

    name = "less-noise-than-demanded"
    adversary = "malicious server with a malicious administrator"
    goal = (
        "Have a client take part in sums with less noise than its policy demands, against all survivors or colluders."
    )
    paper = "Kairouz, Liu, Steinke, ICML 2021"
    promises = ("P15", "P6")
    defences = ("_rule_policy",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """No noise, half of it, and shares that make up the whole only if nobody drops out and nobody colludes."""
        cohort = laboratory.cohort
        honest = resilient(laboratory, Defences()).charter.least_honest

        def attempt(multiplier: float, shares: int, standing: Defences) -> bool:
            policy = Policy(least_noise=1.0)
            federation = resilient(laboratory, standing, policy=policy, specs=noised(multiplier, shares))
            return isinstance(adversary.invite(federation, VICTIM), Advertisement)

        if not attempt(1.0, honest, Defences()):
            raise Stuck("the noise that is demanded was refused")
        tries = {
            "no noise": Try(partial(attempt, 0.0, honest), self.defences),
            "half the noise": Try(partial(attempt, 0.5, honest), self.defences),
            "noise that counts on everybody": Try(partial(attempt, 1.0, cohort.clients), self.defences),
        }
        return counted(tries, what="courses with too little noise", defences=defences)


class UnsafeCharter(Attack):
    """Charters under which a promise fails, whatever a policy says."""

    name = "unsafe-charter"
    adversary = "malicious server with a malicious administrator"
    goal = "Agree on blocks or numbers with which c colluders and a few sums give one client's input."
    paper = "So et al., AAAI 2023"
    promises = ("P1", "P2", "P9")
    defences = ("charter-check",)
    ways: Mapping[str, Mapping[str, Any]] = {
        "blocks of c + 1": {"members": 6, "mode": "resilient", "blocks": ((0, 1), (2, 3), (4, 5))},
        "blocks that overlap": {"members": 6, "mode": "resilient", "blocks": ((0, 1, 2), (2, 3, 4, 5))},
        "a member in no block": {"members": 7, "mode": "resilient", "blocks": ((0, 1, 2), (3, 4, 5))},
        "fewer survivors than c + 2": {"members": 9, "mode": "lockstep", "colluders": 2, "least_survivors": 3},
        "more survivors than members": {"members": 3, "mode": "lockstep", "least_survivors": 4},
        "a lockstep of too many": {"members": 65, "mode": "lockstep"},
    }

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Make a client with each, and invite it."""

        def attempt(options: Mapping[str, Any], standing: Defences) -> bool:
            with patch.object(Charter, "check_summed", lambda self, members: None):  # the charter itself is on trial
                usual = {"colluders": 1, "least_survivors": 3, "blocks": None}
                federation = laboratory.federation(standing, **{**usual, **options})
                return isinstance(adversary.invite(federation, VICTIM), Advertisement)

        tries = {
            how: Try(lambda standing, options=options: attempt(options, standing), self.defences)  # type: ignore[misc]
            for how, options in self.ways.items()
        }
        return counted(tries, what="unsafe charters", defences=defences)


CHANGES: Mapping[str, Mapping[str, Any]] = {
    "roster": {"roster": bytes(31) + b"r"},
    "members": {"members": 1},
    "settings": {"settings": bytes(31) + b"s"},
    "blocks": {"blocks": True},
    "predecessor": {"predecessor": Predecessor(bytes(32), bytes(32), 0)},
    "aggregation.mode": {"mode": "lockstep"},
    "aggregation.colluders": {"colluders": 1},
    "aggregation.least_survivors": {"least_survivors": 4},
    "aggregation.value_bits": {"value_bits": 24},
    "aggregation.suite": {"suite": "chacha20"},
    "aggregation.losses": {"losses": "allow"},
    "aggregation.attempts": {"attempts": 999},
    "course: a larger clip": {"course": LaboratoryCourse((VectorSpec("update", (Block("dream", 20, 2.0),)),))},
    "course: more coordinates": {"course": LaboratoryCourse((VectorSpec("update", (Block("dream", 21, 1.0),)),))},
    "course: another task": {"course": LaboratoryCourse((VectorSpec("gradient", (Block("dream", 20, 1.0),)),))},
    "course: another block": {"course": LaboratoryCourse((VectorSpec("update", (Block("image", 20, 1.0),)),))},
    "course: counts": {"course": LaboratoryCourse((VectorSpec("update", (Block("dream", 20, 1.0, "count"),)),))},
    "course: noise": {"course": LaboratoryCourse(noised(1.0, 3))},
    "course: more steps": {"course": LaboratoryCourse(steps=4)},
    "course: another start": {"course": LaboratoryCourse(), "shifted": True},
}
"""What a server could wish otherwise: every field of the charter, and what a course asks."""


class _Shifted(LaboratoryCourse):
    """A course that starts elsewhere."""

    def start(self, seed: bytes, certified: int, last: Any) -> Any:
        """See `Course`."""
        return {"state": super().start(seed, certified, last)["state"] + 1.0}


def changed_world(federation: Federation, change: Mapping[str, Any]) -> tuple[Charter, Any, Roster]:
    """The charter, the course and the roster of a server that has changed this."""
    charter, course, roster = federation.charter, federation.course, federation.roster
    replace = msgspec.structs.replace
    aggregation = {name: value for name, value in change.items() if hasattr(charter.aggregation, name)}
    charter = replace(charter, aggregation=replace(charter.aggregation, **aggregation))
    if "roster" in change:
        roster = replace(roster, serial=2)
    if "members" in change:
        roster = replace(roster, members=roster.members[:-1])
        charter = replace(charter, members=len(roster.members), blocks=even_blocks(len(roster.members), 2))
    if "settings" in change:
        charter = replace(charter, settings=change["settings"])
    if "blocks" in change:
        charter = replace(charter, blocks=(charter.everybody,))
    if "predecessor" in change:
        charter = replace(charter, predecessor=change["predecessor"])
    return (
        replace(charter, roster=roster.hash),
        _Shifted() if "shifted" in change else change.get("course", course),
        roster,
    )


class ChangedCharter(Attack):
    """A server with another charter, or another course, than was agreed."""

    name = "changed-charter"
    adversary = "malicious server"
    goal = "Choose what decides what a client reveals: who is summed, how finely, behind how many, and what is asked."
    promises = ("P4", "P6")
    defences = ("own-charter",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Change every field in turn at a server that lets any client in; a sum must never open."""

        def attempt(change: Mapping[str, Any], standing: Defences) -> bool:
            federation = laboratory.federation(
                standing,
                members=9,
                mode="resilient",
                colluders=2,
                least_survivors=5,
                blocks=even_blocks(9, 2),
                value_bits=16,
                suite="aes-256-ctr",
            )
            charter, course, roster = changed_world(federation, change)
            federation.server = ServerProtocol(charter, roster, course)
            if not standing.stands("own-charter"):
                federation.charter, federation.roster, federation.course = charter, roster, course
                federation.courses = [course] * charter.members
                federation.clients = [
                    federation._client(member, charter, federation.diaries[member].memory)
                    for member in charter.everybody
                ]
            with COMMON["charter-at-hello"].off():
                federation.hello(charter.everybody)
            federation.drain()
            federation.emit(federation.server.open_epoch(charter.everybody))
            federation.drain()
            federation.compute()
            federation.drain()
            return bool(federation.reveals)

        tries = {
            field: Try(lambda standing, change=change: attempt(change, standing), self.defences)  # type: ignore[misc]
            for field, change in CHANGES.items()
        }
        return counted(tries, what="changed settings", defences=defences)


def _answers(federation: Federation, offer: Offer) -> bool:
    answer = federation.tell(VICTIM, Invitation(offer))
    return isinstance(said(answer), Advertisement)


def _old_epoch(federation: Federation) -> bool:
    _answers(federation, federation.offer(epoch=4))
    return _answers(federation, federation.offer(epoch=3))


def _far_epoch(federation: Federation) -> bool:
    return _answers(federation, federation.offer(epoch=1 << 52))


def _earlier_head(federation: Federation) -> bool:
    first = federation.server.head
    federation.run()
    return _answers(federation, federation.offer(head=first))


def _after_the_vote(federation: Federation) -> bool:
    federation.voted()
    return _answers(federation, federation.offer())


def _too_often(federation: Federation) -> bool:
    return all(_answers(federation, federation.offer(epoch=epoch)) for epoch in range(4))


def _after_wrong_sums(federation: Federation) -> bool:
    federation.masked()
    item = federation.published(0)
    message, frame = adversary.altered(federation, item, {0: 1})
    federation.tell(VICTIM, message, (frame,))
    return _answers(federation, federation.offer())


def _beyond_the_budget(federation: Federation) -> bool:
    federation.run()
    return _answers(federation, federation.offer())


OFFERS: Mapping[str, tuple[Callable[[Federation], bool], tuple[str, ...], dict[str, Any]]] = {
    "an epoch before one that was joined": (_old_epoch, ("_rule_fresh_epoch",), {}),
    "an epoch that uses up all numbers": (_far_epoch, ("_rule_fresh_epoch",), {}),
    "an earlier history, asked again": (_earlier_head, ("_rule_same_head",), {}),
    "another epoch after a vote": (_after_the_vote, ("_rule_bound_by_vote",), {}),
    "one start more than the charter permits": (_too_often, ("_rule_attempts",), {"attempts": 3}),
    "going on after a wrong sum": (_after_wrong_sums, ("_rule_wrong_sums",), {"policy": Policy(most_wrong_sums=0)}),
    "more steps than the policy's total": (
        _beyond_the_budget,
        ("_rule_budget",),
        {"policy": Policy(most_total_steps=5)},
    ),
}


class OffersThatDoNotFit(Attack):
    """Offers that do not fit where a client stands."""

    name = "offers-that-do-not-fit"
    adversary = "malicious server"
    goal = "Have a client begin an epoch that is old, elsewhere, after the end, or one more than was agreed."
    promises = ("P3", "P6")
    defences = tuple(dict.fromkeys(rule for _, rules, _ in OFFERS.values() for rule in rules))

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Each offer, against a client that has lived through what it needs."""

        def attempt(say: Callable[[Federation], bool], options: dict[str, Any], standing: Defences) -> bool:
            return say(lockstep(laboratory, standing, **options))

        tries = {how: Try(partial(attempt, say, options), rules) for how, (say, rules, options) in OFFERS.items()}
        return counted(tries, what="offers that do not fit", defences=defences)


class StrangeCohorts(Attack):
    """Cohorts that the charter does not let be summed."""

    name = "strange-cohorts"
    adversary = "malicious server"
    goal = "Invite a part of a block, too few, or in lockstep not everybody: sums over these separate members."
    paper = "So et al., AAAI 2023"
    promises = ("P2",)
    defences = ("summed-check",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Offer each to the victim."""

        def attempt(mode: str, missing: int, standing: Defences) -> bool:
            federation = in_mode(mode, laboratory, standing)
            everybody = federation.everybody
            return _answers(federation, federation.offer(cohort=everybody[: len(everybody) - missing]))

        tries = {
            "in lockstep, everybody but one": Try(partial(attempt, "lockstep", 1), self.defences),
            "everybody but one": Try(partial(attempt, "resilient", 1), self.defences),
            "everybody but two": Try(partial(attempt, "resilient", 2), self.defences),
        }
        return counted(tries, what="strange cohorts", defences=defences)


class PartsShown(Attack):
    """Fewer members than were invited, though all have advertised."""

    name = "parts-of-the-cohort-shown"
    adversary = "malicious server"
    goal = "Leave members out of an epoch so that what is summed is a part of a block, or in lockstep not everybody."
    paper = "So et al., AAAI 2023"
    promises = ("P2",)
    defences = ("_rule_members",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Show the victim some of the advertisements, and see whether it seals for them."""

        def attempt(mode: str, missing: int, standing: Defences) -> bool:
            federation = in_mode(mode, laboratory, standing)
            items = advertised(federation)
            chosen = federation.everybody[: len(items) - missing]
            answer = federation.tell(VICTIM, shown(federation, {one: items[one] for one in chosen}))
            return isinstance(said(answer), Seals)

        tries = {
            "in lockstep, everybody but one": Try(partial(attempt, "lockstep", 1), self.defences),
            "in lockstep, everybody but three": Try(partial(attempt, "lockstep", 3), self.defences),
            "everybody but one of a block": Try(partial(attempt, "resilient", 1), self.defences),
        }
        return counted(tries, what="parts of the cohort", defences=defences)


class RestartedClient(Attack):
    """Clients that were killed and started again."""

    name = "restarted-client"
    adversary = "malicious server that can make clients crash"
    goal = "Have a client forget what it joined or voted for, and do it once more."
    promises = ("P3", "P6")
    defences = ("memory",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Kill the victim at several points, and ask again."""

        def again(standing: Defences) -> bool:
            federation = lockstep(laboratory, standing)
            federation.set_up()
            federation.restart(VICTIM, remembers=standing.stands("memory"))
            return _answers(federation, federation.plan.offer)

        def after_its_vote(standing: Defences) -> bool:
            federation = lockstep(laboratory, standing).voted()
            federation.restart(VICTIM, remembers=standing.stands("memory"))
            return _answers(federation, federation.offer())

        def attempts(standing: Defences) -> bool:
            federation = lockstep(laboratory, standing, attempts=2)
            for epoch in range(3):
                federation.restart(VICTIM, remembers=standing.stands("memory"))
                _answers(federation, federation.offer(epoch=epoch))
            return True

        def budget(standing: Defences) -> bool:
            federation = lockstep(laboratory, standing, policy=Policy(most_total_steps=4))
            federation.set_up()
            federation.restart(VICTIM, remembers=standing.stands("memory"))
            for _ in range(2):
                federation.set_up()
                federation.restart(VICTIM, remembers=standing.stands("memory"))
            return _answers(federation, federation.offer(epoch=3))

        def rolled_back(standing: Defences) -> bool:
            federation = lockstep(laboratory, standing)
            first = federation.server.head
            federation.run()
            federation.restart(VICTIM, remembers=standing.stands("memory"))
            return _answers(federation, federation.offer(head=first))

        ways = {
            "the plan that it had joined": again,
            "another epoch after its vote": after_its_vote,
            "one start more than the charter permits": attempts,
            "more steps than the policy's total": budget,
            "a history that is over": rolled_back,
        }
        tries = {how: Try(attempt, self.defences) for how, attempt in ways.items()}
        return counted(tries, what="questions to a client that was started again", defences=defences)


ATTACKS: tuple[Attack, ...] = (
    StrangeCohorts(),
    PartsShown(),
    ChangedCharter(),
    CharterBelowPolicy(),
    LessNoise(),
    UnsafeCharter(),
    OffersThatDoNotFit(),
    RestartedClient(),
)
