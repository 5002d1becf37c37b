"""A server that lies about who dropped out (resilient mode): both kinds of share, two sets, small sets, forgeries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from codream_protocols.charter import even_blocks
from codream_protocols.identity import Signer
from codream_protocols.messages import (
    MaskedInput,
    SignedBy,
    SurvivorSignature,
    SurvivorSignatures,
    UnmaskShares,
    survivor_statement,
)
from secure_codream.simulation.toy_course import LaboratoryCourse
from secure_codream.simulation.wire import Federation, Stuck
from secure_codream.threats.laboratory import adversary
from secure_codream.threats.laboratory.adversary import (
    agree_and_answer,
    announce,
    chain_of,
    open_sum,
    rebuild,
    said,
    shares_of,
    without_block,
)
from secure_codream.threats.laboratory.attack import Attack, Evidence
from secure_codream.threats.laboratory.defences import Defences
from secure_codream.threats.laboratory.evidence import Try, Vector, counted, recovered
from secure_codream.threats.laboratory.laboratory import Laboratory

VICTIM = 0
ONE_SET = ("_rule_one_survivor_set", "_rule_erase_answered")


def all_but(federation: Federation, *members: int) -> tuple[int, ...]:
    """Everyone else."""
    return tuple(member for member in range(len(federation.clients)) if member not in members)


def resilient(laboratory: Laboratory, defences: Defences, **options: Any) -> Federation:
    """The laboratory's cohort in the resilient mode, in blocks as small as they may be.

    Raises:
        Inapplicable: it is one block, so that nobody can drop out of a sum.
    """
    cohort = laboratory.cohort
    laboratory.need(len(even_blocks(cohort.clients, cohort.colluders)) > 1, "all clients are one block")
    return laboratory.federation(defences, **{"mode": "resilient", **options})


def lockstep(laboratory: Laboratory, defences: Defences, **options: Any) -> Federation:
    """The laboratory's cohort in lockstep."""
    return laboratory.federation(defences, **{"mode": "lockstep", **options})


def in_mode(mode: str, laboratory: Laboratory, defences: Defences) -> Federation:
    """The laboratory's cohort in this mode. Raises as `resilient` does."""
    return (lockstep if mode == "lockstep" else resilient)(laboratory, defences)


def lost_keys(secrets: dict[int, bytes], survivors: Sequence[int]) -> dict[int, bytes]:
    """The mask keys among rebuilt secrets: those of members outside the survivors."""
    return {member: secret for member, secret in secrets.items() if member not in survivors}


def opened_over(federation: Federation, survivors: Sequence[int], step: int = 0) -> Vector:
    """The sum that the answers of all open, once they have been told that these survived."""
    secrets = rebuild(federation, agree_and_answer(federation, survivors, step=step))
    return open_sum(federation, step, survivors, secrets, lost_keys(secrets, survivors))


def victims_input(federation: Federation, self_mask: bytes, mask_key: bytes) -> tuple[Vector, Vector]:
    """What both kinds of the victim's masks open, and its input."""
    opened = open_sum(federation, 0, [VICTIM], {VICTIM: self_mask}, {VICTIM: mask_key})
    return opened, federation.vectors[0, VICTIM]


def victims_block(federation: Federation) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The members of the victim's block, and all others."""
    rest = without_block(federation, VICTIM)
    return tuple(member for member in federation.everybody if member not in rest), rest


def signs(laboratory: Laboratory, purpose: str, federation: Federation) -> dict[int, Vector]:
    """An input for each member, of the clips' ends alone: they are encoded without rounding, so it can be repeated."""
    length = federation.plan.spec(0).length
    return {
        member: laboratory.generator(f"{purpose} {member}").choice([-1.0, 1.0], length)
        for member in federation.everybody
    }


class BothKindsOfShare(Attack):
    """First everybody survived, then all but the victim's block."""

    name = "both-kinds-of-share"
    adversary = "malicious server"
    goal = "Collect shares of one client's self mask and of its mask key in the same step, and unmask its input."
    paper = "Bonawitz et al., CCS 2017, section 4"
    promises = ("P1",)
    defences = ONE_SET

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Announce two sets, collect both answers, open the victim's input alone."""
        federation = resilient(laboratory, defences).masked()

        def attempt() -> tuple[Vector, Vector]:
            first = agree_and_answer(federation, federation.everybody)
            second = agree_and_answer(federation, without_block(federation, VICTIM))
            self_mask, mask_key = (rebuild(federation, answers)[VICTIM] for answers in (first, second))
            return victims_input(federation, self_mask, mask_key)

        return recovered(attempt)


class TwoSurvivorSets(Attack):
    """A second set while the first is being signed."""

    name = "two-survivor-sets"
    adversary = "malicious server"
    goal = "Open two sums of one step, over everybody and over all but a block: their difference is that block's sum."
    paper = "Bonawitz et al., CCS 2017, section 4"
    promises = ("P1",)
    defences = ONE_SET

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Have one set signed, then a second one before the first is answered."""
        federation = resilient(laboratory, defences).masked()
        block, rest = victims_block(federation)

        def attempt() -> tuple[Vector, Vector]:
            for member in federation.everybody:
                announce(federation, member, rest)
            total, fewer = (opened_over(federation, survivors) for survivors in (federation.everybody, rest))
            return adversary.reduce(federation, total - fewer), federation.plain_sum(0, block)

        return recovered(attempt, whose="the sum over the victim's block alone")


class SeizedAfterTheAnswer(Attack):
    """Clients that are taken over once they have answered."""

    name = "seized-after-the-answer"
    adversary = "malicious server that takes clients over later"
    goal = "Find the other kind of share in clients that have answered, and unmask a client's input."
    paper = "Bonawitz et al., CCS 2017, section 4"
    promises = ("P1", "P11")
    defences = ("_rule_erase_answered",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Let everybody answer for the self masks; then read what the clients still hold of the victim's mask key."""
        federation = resilient(laboratory, defences).masked()

        def attempt() -> tuple[Vector, Vector]:
            answers = agree_and_answer(federation, federation.everybody)
            held = {member: adversary.confession(federation, member, 0)[1][VICTIM] for member in answers}
            self_mask = rebuild(federation, answers)[VICTIM]
            mask_key = adversary.combine(held, federation.plan.threshold)
            return victims_input(federation, self_mask, mask_key)

        return recovered(attempt)


class RerunWithoutABlock(Attack):
    """A finished step is asked again, of one block fewer."""

    name = "rerun-without-a-block"
    adversary = "malicious server"
    goal = "Rerun a finished step on the same inputs without a block: the difference of both sums is that block's sum."
    paper = "Bonawitz et al., CCS 2017, section 4"
    promises = ("P1", "P3")
    defences = ONE_SET

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Finish a step honestly but for the sum, which is withheld; then claim that the victim's block is gone."""
        federation = resilient(laboratory, defences).masked()
        block, rest = victims_block(federation)

        def attempt() -> tuple[Vector, Vector]:
            total = opened_over(federation, federation.everybody)
            fewer = opened_over(federation, rest)
            return adversary.reduce(federation, total - fewer), federation.plain_sum(0, block)

        return recovered(attempt, whose="the sum over the victim's block alone")


class OneFewer(Attack):
    """Two sums of one trajectory whose survivors differ by one client."""

    name = "one-fewer-survivor"
    adversary = "malicious server"
    goal = "Have a state asked twice, once without the victim: the difference of both sums is its input."
    paper = "So et al., AAAI 2023 (multi-round privacy leakage)"
    promises = ("P2",)
    defences = ("_rule_whole_blocks",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """In a course whose state stands still, sum everybody in one step and all but the victim in the next."""
        federation = resilient(laboratory, defences, course=LaboratoryCourse(gain=0.0))
        inputs = signs(laboratory, self.name, federation)
        federation.input_of = lambda member, compute: {"dream": inputs[member]}
        federation.masked(1)
        rest = all_but(federation, VICTIM)

        def attempt() -> tuple[Vector, Vector]:
            fewer = opened_over(federation, rest, step=1)
            first = federation.reveals[0].total
            return adversary.reduce(federation, first - fewer), federation.vectors[1, VICTIM]

        return recovered(attempt)


class SurvivorsBelowMinimum(Attack):
    """A sum over one block, where more are demanded."""

    name = "survivors-below-minimum"
    adversary = "malicious server"
    goal = "Open a sum over fewer clients than charter and policy allow."
    paper = "Bonawitz et al., CCS 2017, section 6"
    promises = ("P2",)
    defences = ("_rule_enough_survivors", "_rule_whole_blocks")

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Claim that only the victim's block survived, where one more is the least."""
        clients, colluders = laboratory.cohort.clients, laboratory.cohort.colluders
        few = even_blocks(clients, colluders)[0]
        laboratory.need(len(few) < clients, "all clients are one block")
        least = len(few) + 1
        federation = resilient(laboratory, defences, least_survivors=least).masked()

        def attempt() -> tuple[Vector, Vector]:
            return opened_over(federation, few), federation.plain_sum(0, few)

        return recovered(attempt, whose=f"the sum over {len(few)} clients (minimum: {least})")


class LateInput(Attack):
    """A masked input that comes, or is held back, until its sender was declared gone."""

    name = "late-masked-input"
    adversary = "malicious server"
    goal = "Declare a client dropped while holding its masked input, and unmask it with its rebuilt mask key."
    paper = "Bonawitz et al., CCS 2017, section 4.0.2"
    promises = ("P1",)
    defences = ("self-mask",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Ask for the mask keys of the victim's block, as after a real dropout, and take off what they explain."""
        federation = resilient(laboratory, defences).masked()

        def attempt() -> tuple[Vector, Vector]:
            mask_key = rebuild(federation, agree_and_answer(federation, without_block(federation, VICTIM)))[VICTIM]
            return victims_input(federation, bytes(32), mask_key)

        return recovered(attempt)


class SkippedConsistencyRound(Attack):
    """Clients hear of different survivors."""

    name = "skipped-consistency-round"
    adversary = "malicious server with a colluding client"
    goal = "Tell clients different survivor sets, each large enough, and open a sum below the minimum from all answers."
    paper = "Bonawitz et al., CCS 2017, section 6.2"
    promises = ("P1", "P2")
    defences = ("_rule_signed_survivors",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Fifteen clients in five blocks, two of which must survive: each client is told that three others are gone."""
        federation = resilient(
            laboratory, defences, members=15, colluders=1, least_survivors=6, blocks=even_blocks(15, 1)
        ).masked()
        blocks, everybody, plan = federation.charter.blocks, federation.everybody, federation.plan
        target, colluder = blocks[0], everybody[-1]
        views = _different_sets(federation, [one for one in everybody if one != colluder])
        own, key = adversary.confession(federation, colluder, 0)

        def attempt() -> tuple[Vector, Vector]:
            self_masks = {whose: {colluder: own[whose]} for whose in everybody}
            mask_keys = {whose: {colluder: key[whose]} for whose in everybody}
            signatures = {member: announce(federation, member, view).signature for member, view in views.items()}
            for member, view in views.items():
                same = tuple(SignedBy(other, signatures[other]) for other in sorted(views) if views[other] == view)
                answer = said(federation.tell(member, SurvivorSignatures(plan.digest, 0, same)))
                for whose, share in shares_of(answer, everybody).items():
                    (self_masks if whose in view else mask_keys)[whose][member] = share
            opened = open_sum(
                federation,
                0,
                target,
                {whose: adversary.combine(self_masks[whose], plan.threshold) for whose in target},
                {whose: adversary.combine(mask_keys[whose], plan.threshold) for whose in everybody[len(target) :]},
            )
            return opened, federation.plain_sum(0, target)

        return recovered(attempt, whose=f"the sum over {len(target)} clients (minimum: 6)")


def _different_sets(federation: Federation, honest: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """For each client a set with the first block and one other, so that each other block is often missing."""
    blocks = federation.charter.blocks
    counts = dict.fromkeys(range(1, len(blocks)), 0)
    told = {}
    for member in honest:
        missing = sorted(counts, key=lambda place: (counts[place], place))[: len(blocks) - 2]
        for place in missing:
            counts[place] += 1
        told[member] = tuple(one for place, block in enumerate(blocks) if place not in missing for one in block)
    return told


def _forgeries(how: str, federation: Federation, good: dict[int, bytes], survivors: tuple[int, ...]) -> Any:
    """Signatures over a survivor set that do not make an agreement."""
    threshold = federation.plan.threshold
    gone = next(member for member in federation.everybody if member not in survivors)
    others = tuple(member for member in federation.everybody if member != VICTIM)
    some = others[:threshold]
    chain = chain_of(federation, 0)
    stranger = Signer(bytes(32)).sign("survivors", b"", b"", b"")
    everyone = federation.signers[1].sign("survivors", *survivor_statement(chain, 0, federation.everybody))
    later = federation.signers[1].sign("survivors", *survivor_statement(chain, 1, survivors))
    elsewhere = federation.signers[1].sign("survivors", *survivor_statement(bytes(32), 0, survivors))
    voted = federation.signers[1].sign("vote", *survivor_statement(chain, 0, survivors))

    def with_first(signature: bytes) -> tuple[SignedBy, ...]:
        return (SignedBy(1, signature), *(SignedBy(one, good[one]) for one in others if one != 1))

    return {
        "none at all": (),
        "too few": tuple(SignedBy(member, good[member]) for member in others[: threshold - 2]),
        "one under many names": tuple(SignedBy(member, good[gone]) for member in some),
        "one many times": tuple(SignedBy(1, good[1]) for _ in some),
        "the server's own": tuple(SignedBy(member, stranger) for member in some),
        "over another set": with_first(everyone),
        "over another step": with_first(later),
        "at another history": with_first(elsewhere),
        "under another label": with_first(voted),
        "of a stranger": (*(SignedBy(one, good[one]) for one in others), SignedBy(len(good), good[1])),
    }[how]


FORGERIES = (
    "none at all",
    "too few",
    "one under many names",
    "one many times",
    "the server's own",
    "over another set",
    "over another step",
    "at another history",
    "under another label",
    "of a stranger",
)


class ForgedSignatures(Attack):
    """Consistency claimed with signatures that nobody gave."""

    name = "forged-survivor-signatures"
    adversary = "malicious server"
    goal = "Get shares after a dropout with survivor signatures that are missing, too few, copied or made up."
    paper = "Bonawitz et al., CCS 2017, section 6.2"
    promises = ("P1", "P2")
    defences = ("_rule_signed_survivors",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Try each forgery on a client that has signed a survivor set."""

        def attempt(how: str, standing: Defences) -> bool:
            federation = resilient(laboratory, standing).masked()
            survivors = without_block(federation, federation.everybody[-1])
            good = {member: announce(federation, member, survivors).signature for member in federation.everybody}
            forged = _forgeries(how, federation, good, survivors)
            message = SurvivorSignatures(federation.plan.digest, 0, forged)
            return isinstance(said(federation.tell(VICTIM, message)), UnmaskShares)

        tries = {
            how: Try(lambda standing, how=how: attempt(how, standing), self.defences)  # type: ignore[misc]
            for how in FORGERIES
        }
        return counted(tries, what="forgeries", defences=defences)


class ReplayedSignatures(Attack):
    """Signatures that were good in an earlier step."""

    name = "replayed-survivor-signatures"
    adversary = "malicious server"
    goal = "Get shares after a dropout with the very survivors' signatures over the same set in an earlier step."
    paper = "Bonawitz et al., CCS 2017, section 6.2"
    promises = ("P1", "P3")
    defences = ("_rule_signed_survivors",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Collect real signatures in step 0, and present them in step 1."""

        def attempt() -> bool:
            federation = resilient(laboratory, defences, course=LaboratoryCourse(gain=0.0))
            gone = federation.everybody[-1]
            federation.set_up()
            if federation.step(lost={(gone, MaskedInput)}) is None:
                raise Stuck("the step with a dropout failed")
            signed = {}
            for item in federation.sent:
                if isinstance(item.message, SurvivorSignature):
                    signed[item.member] = item.message.signature
            federation.compute()
            announce(federation, VICTIM, without_block(federation, gone), step=1)
            items = tuple(SignedBy(member, signature) for member, signature in sorted(signed.items()))
            message = SurvivorSignatures(federation.plan.digest, 1, items)
            return isinstance(said(federation.tell(VICTIM, message)), UnmaskShares)

        return counted({"signatures of step 0 in step 1": attempt}, what="replays")


def _set(how: str, federation: Federation) -> tuple[int, ...]:
    blocks, everybody = federation.charter.blocks, federation.everybody
    return {
        "everybody but one": everybody[:-1],
        "half of each block": tuple(sorted(one for block in blocks for one in block[: (len(block) + 1) // 2])),
        "a block and one more": (*blocks[0], blocks[1][0]),
        "all but the client itself": everybody[1:],
    }[how]


class PartsOfBlocks(Attack):
    """Survivor sets that split a block."""

    name = "parts-of-blocks"
    adversary = "malicious server"
    goal = "Have clients agree to a survivor set that separates members of one block, whatever it is summed with."
    paper = "So et al., AAAI 2023"
    promises = ("P2",)
    defences = ("_rule_whole_blocks",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Announce each such set to the victim, which must not sign it."""

        def attempt(how: str, standing: Defences) -> bool:
            federation = resilient(laboratory, standing).masked()
            return isinstance(announce(federation, VICTIM, _set(how, federation)), SurvivorSignature)

        ways = ("everybody but one", "half of each block", "a block and one more", "all but the client itself")
        tries = {
            how: Try(lambda standing, how=how: attempt(how, standing), self.defences)  # type: ignore[misc]
            for how in ways
        }
        return counted(tries, what="sets that split a block", defences=defences)


ATTACKS: tuple[Attack, ...] = (
    BothKindsOfShare(),
    TwoSurvivorSets(),
    SeizedAfterTheAnswer(),
    RerunWithoutABlock(),
    OneFewer(),
    PartsOfBlocks(),
    SurvivorsBelowMinimum(),
    LateInput(),
    SkippedConsistencyRound(),
    ForgedSignatures(),
    ReplayedSignatures(),
)
