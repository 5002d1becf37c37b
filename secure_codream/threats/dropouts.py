"""A server that lies about who dropped out: both kinds of share, two sets, small sets, late inputs, no agreement."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from codream_protocols.identity import Signer
from codream_protocols.messages import (
    Broadcast,
    MaskedInput,
    SignedBy,
    Survivors,
    SurvivorSignature,
    SurvivorSignatures,
    UnmaskShares,
    decode_to_client,
    survivor_statement,
)
from secure_codream.threats import adversary
from secure_codream.threats.adversary import agree_and_answer, announce, open_sum, rebuild, said
from secure_codream.threats.attack import Attack, Defences, Evidence
from secure_codream.threats.evidence import Vector, counted, recovered
from secure_codream.threats.federation import Federation, Stuck
from secure_codream.threats.laboratory import Laboratory

VICTIM = 0
ONE_SET = ("_rule_one_survivor_set", "_rule_erase_answered")


def all_but(federation: Federation, *members: int) -> tuple[int, ...]:
    """Everyone else."""
    return tuple(member for member in range(len(federation.clients)) if member not in members)


class BothKindsOfShare(Attack):
    """First everybody survived, then all but the victim."""

    name = "both-kinds-of-share"
    adversary = "malicious server"
    goal = "Collect shares of one client's self mask and of its mask key in the same step, and unmask its input."
    paper = "Bonawitz et al., CCS 2017, section 4"
    promises = ("P1",)
    defences = ONE_SET

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Announce two sets, collect both answers, open the victim's input alone."""
        laboratory.need(laboratory.cohort.spare >= 1, "nobody may be missing")

        def attempt() -> tuple[Vector, Vector]:
            federation = laboratory.federation(defences).masked()
            rest = all_but(federation, VICTIM)
            first = {member: announce(federation, member, all_but(federation)) for member in rest}
            second = agree_and_answer(federation, rest)
            self_mask, mask_key = (rebuild(federation, answers)[VICTIM] for answers in (first, second))
            opened = open_sum(federation, 0, [VICTIM], {VICTIM: self_mask}, {VICTIM: mask_key})
            return opened, federation.vectors[0, VICTIM]

        return recovered(attempt)


class TwoSurvivorSets(Attack):
    """A second set while the first is being signed."""

    name = "two-survivor-sets"
    adversary = "malicious server"
    goal = "Open two sums of one step, over sets that differ by one client: their difference is its input."
    paper = "Bonawitz et al., CCS 2017, section 4"
    promises = ("P1",)
    defences = ONE_SET

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Have one set signed, then a second one before the first is answered."""
        laboratory.need(laboratory.cohort.spare >= 2, "two cannot be missing")

        def attempt() -> tuple[Vector, Vector]:
            federation = laboratory.federation(defences).masked()
            gone = len(federation.clients) - 1
            larger, smaller = all_but(federation, gone), all_but(federation, VICTIM, gone)
            for member in larger:
                announce(federation, member, larger)
            answers = [agree_and_answer(federation, survivors) for survivors in (smaller, larger)]
            sums = []
            for survivors, collected in zip((smaller, larger), answers, strict=True):
                secrets = rebuild(federation, collected)
                sums.append(open_sum(federation, 0, survivors, secrets, without(secrets, survivors)))
            return adversary.reduce(federation, sums[1] - sums[0]), federation.vectors[0, VICTIM]

        return recovered(attempt)


class RerunWithOneFewer(Attack):
    """A finished step is asked again, of one client fewer."""

    name = "rerun-with-one-fewer"
    adversary = "malicious server"
    goal = "Rerun a finished step on the same inputs without one client: the difference of both sums is its input."
    paper = "Bonawitz et al., CCS 2017, section 4"
    promises = ("P1", "P3")
    defences = ONE_SET

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Finish a step honestly, repeat its broadcast, and claim that the victim is gone."""
        laboratory.need(laboratory.cohort.spare >= 1, "nobody may be missing")

        def attempt() -> tuple[Vector, Vector]:
            federation = laboratory.federation(defences)
            federation.set_up()
            reveal = federation.step()
            if reveal is None:
                raise Stuck("the honest step failed")
            rest = all_but(federation, VICTIM)
            for item in [item for item in federation.sent if item.kind is Broadcast and item.member in rest]:
                said(federation.clients[item.member].receive(decode_to_client(item.data), item.frames))
            secrets = rebuild(federation, agree_and_answer(federation, rest))
            fewer = open_sum(federation, 0, rest, secrets, without(secrets, rest))
            return adversary.reduce(federation, reveal.total - fewer), federation.vectors[0, VICTIM]

        return recovered(attempt)


def without(secrets: dict[int, bytes], survivors: Sequence[int]) -> dict[int, bytes]:
    """The mask keys among rebuilt secrets: those of members outside the survivors."""
    return {member: secret for member, secret in secrets.items() if member not in survivors}


class SurvivorsBelowMinimum(Attack):
    """A sum over as few as the threshold allows."""

    name = "survivors-below-minimum"
    adversary = "malicious server"
    goal = "Open a sum over fewer clients than the plan and the policy allow."
    paper = "Bonawitz et al., CCS 2017, section 6"
    promises = ("P2",)
    defences = ("_rule_enough_survivors",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Claim that only `threshold` clients survived."""
        few = laboratory.cohort.threshold
        laboratory.need(few < laboratory.cohort.least, "the threshold alone demands as many as the minimum")

        def attempt() -> tuple[Vector, Vector]:
            federation = laboratory.federation(defences).masked()
            survivors = tuple(range(few))
            secrets = rebuild(federation, agree_and_answer(federation, survivors))
            opened = open_sum(federation, 0, survivors, secrets, without(secrets, survivors))
            return opened, federation.plain_sum(0, survivors)

        return recovered(attempt, whose=f"the sum over {few} clients (minimum: {laboratory.cohort.least})")


class LateInput(Attack):
    """A masked input that comes, or is held back, until its sender was declared gone."""

    name = "late-masked-input"
    adversary = "malicious server"
    goal = "Declare a client dropped while holding its masked input, and unmask it with its rebuilt mask key."
    paper = "Bonawitz et al., CCS 2017, section 4.0.2"
    promises = ("P1",)
    defences = ("self-mask",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Ask for the victim's mask key, as after a real dropout, and take off what it explains."""
        laboratory.need(laboratory.cohort.spare >= 1, "nobody may be missing")

        def attempt() -> tuple[Vector, Vector]:
            federation = laboratory.federation(defences).masked()
            rest = all_but(federation, VICTIM)
            mask_key = rebuild(federation, agree_and_answer(federation, rest))[VICTIM]
            opened = open_sum(federation, 0, [VICTIM], {VICTIM: bytes(32)}, {VICTIM: mask_key})
            return opened, federation.vectors[0, VICTIM]

        return recovered(attempt)


class SkippedConsistencyRound(Attack):
    """Each client hears of other survivors."""

    name = "skipped-consistency-round"
    adversary = "malicious server with colluding clients"
    goal = "Tell every client another survivor set, and open a sum below the minimum from what they answer."
    paper = "Bonawitz et al., CCS 2017, section 6.2"
    promises = ("P1", "P2")
    defences = ("_rule_signed_survivors",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Spread the exclusions so that each excluded member's mask key gets `threshold` shares."""
        cohort = laboratory.cohort
        told = different_sets(cohort.clients, cohort.threshold, cohort.colluders, cohort.least, cohort.least_survivors)
        laboratory.need(told is not None, "too few may be missing to spread the exclusions")
        views = told or {}
        target = tuple(sorted(set(cohort.members).intersection(*views.values())))

        def attempt() -> tuple[Vector, Vector]:
            federation = laboratory.federation(defences).masked()
            confessed = {m: adversary.confession(federation, m, 0) for m in cohort.members if m not in views}
            self_masks = {whose: {m: own[whose] for m, (own, _) in confessed.items()} for whose in cohort.members}
            mask_keys = {whose: {m: key[whose] for m, (_, key) in confessed.items()} for whose in cohort.members}
            signatures = {member: announce(federation, member, view).signature for member, view in views.items()}
            for member, view in views.items():
                same = tuple(SignedBy(other, signatures[other]) for other in sorted(views) if views[other] == view)
                message = SurvivorSignatures(federation.plan.digest, 0, same)
                answer = said(federation.tell(member, message))
                for whose, share in adversary.shares_of(answer, cohort.members).items():
                    (self_masks if whose in view else mask_keys)[whose][member] = share
            opened = open_sum(
                federation,
                0,
                target,
                {whose: adversary.combine(self_masks[whose], cohort.threshold) for whose in target},
                {
                    whose: adversary.combine(mask_keys[whose], cohort.threshold)
                    for whose in all_but(federation, *target)
                },
            )
            return opened, federation.plain_sum(0, target)

        return recovered(attempt, whose=f"the sum over {len(target)} clients (minimum: {cohort.least_survivors})")


def different_sets(
    clients: int, threshold: int, colluders: int, least: int, least_survivors: int
) -> dict[int, tuple[int, ...]] | None:
    """What to tell each honest client (the first ones), so that a sum below the minimum opens; None if nothing does.

    Every set holds `least` members or more and the client that hears it; each excluded member is missing from the sets
    of `threshold` clients, colluders included.
    """
    honest = range(clients - colluders)
    for excluded in range(clients - least_survivors + 1, len(honest) - 1):
        counts = dict.fromkeys(range(excluded), 0)
        told = {}
        for member in honest:
            fewest = sorted((one for one in counts if one != member), key=lambda one: (counts[one], one))
            missing = fewest[: clients - least]
            for one in missing:
                counts[one] += 1
            told[member] = tuple(one for one in range(clients) if one not in missing)
        if min(counts.values()) >= threshold - colluders:
            return told
    return None


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
        laboratory.need(laboratory.cohort.spare >= 1, "nobody may be missing")
        threshold = laboratory.cohort.threshold

        def attempt(how: str) -> bool:
            federation = laboratory.federation(defences).masked()
            gone = len(federation.clients) - 1
            survivors = all_but(federation, gone)
            good = {member: announce(federation, member, survivors).signature for member in survivors}
            some = survivors[1 : threshold + 1]
            stranger = Signer(bytes(32)).sign("survivors", b"", b"", b"")
            transcript = federation.server._transcript()
            dropped = federation.signers[gone].sign("survivors", *survivor_statement(transcript, 0, survivors))
            other = federation.signers[1].sign("survivors", *survivor_statement(transcript, 0, survivors[1:]))
            forged = {
                "none at all": (),
                "too few": tuple(SignedBy(member, good[member]) for member in survivors[1 : threshold - 1]),
                "one under many names": tuple(SignedBy(member, good[1]) for member in some),
                "one many times": tuple(SignedBy(1, good[1]) for _ in some),
                "the server's own": tuple(SignedBy(member, stranger) for member in some),
                "over another set": (SignedBy(1, other), *(SignedBy(member, good[member]) for member in some[1:])),
                "of the dropped": (*(SignedBy(one, good[one]) for one in some[:-1]), SignedBy(gone, dropped)),
            }[how]
            return isinstance(
                said(federation.tell(VICTIM, SurvivorSignatures(federation.plan.digest, 0, forged))), UnmaskShares
            )

        return counted({how: partial(attempt, how) for how in FORGERIES}, what="forgeries")


FORGERIES = (
    "none at all",
    "too few",
    "one under many names",
    "one many times",
    "the server's own",
    "over another set",
    "of the dropped",
)


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
        laboratory.need(laboratory.cohort.spare >= 1, "nobody may be missing")

        def attempt() -> bool:
            federation = laboratory.federation(defences)
            gone = len(federation.clients) - 1
            federation.set_up()
            if federation.step(lost={(gone, MaskedInput)}) is None:
                raise Stuck("the step with a dropout failed")
            signed = {}
            for item in federation.sent:
                if isinstance(item.message, SurvivorSignature):
                    signed[item.member] = item.message.signature
            federation.begin_step()
            federation.drain(lost={(member, Survivors) for member in all_but(federation)})
            announce(federation, VICTIM, all_but(federation, gone), step=1)
            items = tuple(SignedBy(member, signature) for member, signature in sorted(signed.items()))
            message = SurvivorSignatures(federation.plan.digest, 1, items)
            return isinstance(said(federation.tell(VICTIM, message)), UnmaskShares)

        return counted({"signatures of step 0 in step 1": attempt}, what="replays")


class SumWithoutTheClient(Attack):
    """A client is asked to help with a sum that it is not part of."""

    name = "help-from-a-dropped-client"
    adversary = "malicious server"
    goal = "Have a client help to open a sum that leaves it out, so that fewer survivors need to agree."
    promises = ("P1", "P2")
    defences = ("_rule_is_survivor",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Announce survivors without the client to the client itself."""
        laboratory.need(laboratory.cohort.spare >= 1, "nobody may be missing")

        def attempt() -> bool:
            federation = laboratory.federation(defences).masked()
            answer = announce(federation, VICTIM, all_but(federation, VICTIM))
            return isinstance(answer, SurvivorSignature)

        return counted({"a set without the client": attempt}, what="requests")


ATTACKS: tuple[Attack, ...] = (
    BothKindsOfShare(),
    TwoSurvivorSets(),
    RerunWithOneFewer(),
    SurvivorsBelowMinimum(),
    LateInput(),
    SkippedConsistencyRound(),
    ForgedSignatures(),
    ReplayedSignatures(),
    SumWithoutTheClient(),
)
