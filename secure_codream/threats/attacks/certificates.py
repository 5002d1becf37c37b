"""Attacks on an epoch's end: votes, certificates, records, and epochs without end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec
import numpy as np

from codream_protocols.charter import Policy
from codream_protocols.client import Certified
from codream_protocols.messages import Certificate, EpochRecord, SignedBy, Vote
from codream_protocols.packing import pack, unpack
from codream_protocols.record import Kept
from codream_protocols.server import InMemory, ServerProtocol
from secure_codream.simulation.wire import Federation, Stuck
from secure_codream.threats.attacks.broadcasts import as_told, raise_refusal
from secure_codream.threats.attacks.charters import noised
from secure_codream.threats.attacks.dropouts import VICTIM, all_but, in_mode, lockstep
from secure_codream.threats.attacks.enrolment import COLLUDER
from secure_codream.threats.laboratory.adversary import (
    altered,
    said,
    told_group_key,
    without_block,
)
from secure_codream.threats.laboratory.attack import Attack, Evidence
from secure_codream.threats.laboratory.defences import Defences
from secure_codream.threats.laboratory.evidence import Try, counted, first_said
from secure_codream.threats.laboratory.laboratory import Laboratory


def votes_of(federation: Federation) -> dict[int, SignedBy]:
    """The newest vote of each member, off the wire."""
    found = {}
    for item in federation.sent:
        message = item.message if item.kind is Vote else None
        if isinstance(message, Vote):
            found[item.member] = SignedBy(item.member, message.signature)
    return found


class LastStepSplit(Attack):
    """The last sum, told in two ways."""

    name = "last-step-split"
    adversary = "malicious server with a colluding client"
    goal = "Have one half of the clients learn other labels than the other half."
    promises = ("P4",)
    defences = ("_rule_certificate",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """A colluder tags a second last sum; each half is handed its own votes as the certificate."""

        def attempt() -> bool:
            federation = lockstep(laboratory, defences, steps=2).masked(1)
            item = federation.published(1)
            key = told_group_key(federation, COLLUDER)
            told = {0: as_told(item, item.frames[0]), 1: altered(federation, item, {0: 1}, key)}
            halves: dict[int, list[SignedBy]] = {0: [], 1: []}
            for member in federation.everybody:
                message, frame = told[member % 2]
                vote = said(federation.tell(member, message, (frame,)))
                halves[member % 2].append(SignedBy(member, vote.signature))
            heads = set()
            for member in federation.everybody:
                effects = federation.tell(member, Certificate(federation.plan.digest, tuple(halves[member % 2])))
                heads |= {effect.head for effect in effects if isinstance(effect, Certified)}
            return len(heads) == 2

        return counted({"each half with its own votes": attempt}, what="split ends")


class TwoCertificates(Attack):
    """Two epochs at one head, both voted for by everybody."""

    name = "two-certificates-at-one-head"
    adversary = "malicious server"
    goal = "Withhold a certificate, have a second epoch voted for at the same head, and let clients learn either."
    promises = ("P3", "P4")
    defences = ("_rule_bound_by_vote",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Two epochs to their votes; then one half is shown the first record and the other half the second."""

        def attempt() -> bool:
            federation = lockstep(laboratory, defences, steps=1).voted()
            kept = [_certified(federation)]
            federation.wire.clear()
            federation.server = ServerProtocol(
                federation.charter, federation.roster, federation.course, journal=InMemory()
            )
            federation.server._next_epoch = 1
            federation.emit(federation.server.open_epoch(federation.everybody))
            federation.drain()
            raise_refusal(federation)
            federation.compute()
            federation.drain(hold=(Vote,))
            kept.append(_certified(federation))
            for member in federation.everybody:
                federation.tell(member, *kept[member % 2])
            return len({client.head for client in federation.clients}) == 2

        return counted({"a second epoch at the head of a vote": attempt}, what="second certificates")


def _certified(federation: Federation) -> Kept:
    """The record of the epoch that everybody has just voted for, with all votes."""
    public = federation.clients[VICTIM]._vote
    if public is None:
        raise Stuck("the victim has not voted")
    return public[0].record([vote for _, vote in sorted(votes_of(federation).items())])


class TooFewVotes(Attack):
    """Certificates without enough votes."""

    name = "too-few-votes"
    adversary = "malicious server with colluding clients"
    goal = "Have a client learn from an epoch that others may have seen otherwise."
    promises = ("P4",)
    defences = ("_rule_certificate",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """No vote, the victim's own, all but one of those that are needed; in both modes."""

        def attempt(mode: str, count: int, standing: Defences) -> bool:
            federation = in_mode(mode, laboratory, standing).voted()
            votes = tuple(vote for _, vote in sorted(votes_of(federation).items()))
            chosen = votes[: count if count >= 0 else federation.charter.quorum + count]
            effects = federation.tell(VICTIM, Certificate(federation.plan.digest, chosen))
            return isinstance(effects[0], Certified)

        tries = {
            f"{mode}, {how}": Try(partial(attempt, mode, count), self.defences)
            for mode in ("lockstep", "resilient")
            for how, count in (("none", 0), ("its own", 1), ("one too few", -1))
        }
        return counted(tries, what="certificates without enough votes", defences=defences)


class ForgedVotes(Attack):
    """Certificates whose votes nobody gave."""

    name = "forged-votes"
    adversary = "malicious server with colluding clients"
    goal = "Have a client learn with votes that are copied, of another epoch, for other sums or of another kind."
    promises = ("P4", "P5")
    defences = ("vote-signatures",)
    ways = ("one in all names", "of the epoch before", "for other sums", "under another label", "the server's own")

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Each forgery, in place of all votes but the victim's."""

        def attempt(how: str, standing: Defences) -> bool:
            federation = lockstep(laboratory, standing)
            federation.run()
            before = votes_of(federation)
            federation.voted()
            votes = votes_of(federation)
            public = federation.clients[VICTIM]._vote
            if public is None:
                raise Stuck("the victim has not voted")
            head, plan, chain = public[0].plan.offer.head, public[0].plan.digest, public[0].chain
            colluder = federation.signers[COLLUDER]
            ways: dict[str, Callable[[int], bytes]] = {
                "one in all names": lambda member: votes[VICTIM].signature,
                "of the epoch before": lambda member: before[member].signature,
                "for other sums": lambda member: federation.signers[member].sign("vote", head, plan, bytes(32)),
                "under another label": lambda member: federation.signers[member].sign("survivors", head, plan, chain),
                "the server's own": lambda member: colluder.sign("vote", head, plan, chain),
            }
            forged = ways[how]
            items = [votes[VICTIM], *(SignedBy(one, forged(one)) for one in all_but(federation, VICTIM))]
            effects = federation.tell(VICTIM, Certificate(federation.plan.digest, tuple(items)))
            return isinstance(effects[0], Certified)

        tries = {how: Try(partial(attempt, how), self.defences) for how in self.ways}
        return counted(tries, what="forged certificates", defences=defences)


def _misled(federation: Federation) -> tuple[int, ...]:
    """More voters than colluders: the colluder, and an honest member that was told the same other sums in time."""
    return COLLUDER, next(one for one in federation.everybody if one not in (VICTIM, COLLUDER))


def _forged_record(
    federation: Federation, voters: tuple[int, ...], place: int = 0, *, fitting: bool = False
) -> tuple[EpochRecord, Any]:
    """The record of the finished epoch with another last sum, its tag made to fit or not, and these members' votes."""
    server = federation.server
    epoch = server._epoch
    if epoch is None or epoch.public is None:
        raise Stuck("no epoch to forge")
    record, frames = epoch.public.record()
    item = federation.published(len(frames) - 1)
    message, frame = altered(federation, item, {place: 1}, told_group_key(federation, COLLUDER) if fitting else None)
    frames = (*frames[:-1], frame)
    steps = (*record.steps[:-1], msgspec.structs.replace(record.steps[-1], tag=message.tag))
    record = msgspec.structs.replace(record, steps=steps)
    public = server.history.replay((record, frames))
    statement = (server.head, public.plan.digest, public.chain)
    votes = [SignedBy(one, federation.signers[one].sign("vote", *statement)) for one in voters]
    return public.record(votes)


def _away(federation: Federation) -> None:
    """The victim is not in the epoch, whose sums are all out."""
    rest = without_block(federation, VICTIM)
    federation.hello()
    federation.drain()
    federation.emit(federation.server.open_epoch(rest))
    federation.drain()
    while federation.server.step is not None:
        federation.step()


def _nobody_voted(federation: Federation) -> bool:
    _away(federation)
    message, frames = _forged_record(federation, ())
    return isinstance(said(federation.tell(VICTIM, message, frames)), Vote)


def _strangers_voted(federation: Federation) -> bool:
    _away(federation)
    block = tuple(one for one in federation.everybody if one not in without_block(federation, VICTIM))
    message, frames = _forged_record(federation, (block[1],))
    return isinstance(said(federation.tell(VICTIM, message, frames)), Vote)


def _after_a_wrong_sum(federation: Federation) -> bool:
    federation.masked(2)
    item = federation.published(2)
    message, frame = altered(federation, item, {0: 1})
    federation.tell(VICTIM, message, (frame,))
    for member in all_but(federation, VICTIM):
        federation.perform(member, federation.tell(member, item.message, item.frames))  # type: ignore[arg-type]
    record, frames = _forged_record(federation, (COLLUDER,), place=1)
    return isinstance(said(federation.tell(VICTIM, record, frames)), Vote)


def _with_tags_that_fit(federation: Federation) -> bool:
    federation.masked(2)
    record, frames = _forged_record(federation, (COLLUDER,), fitting=True)
    return isinstance(said(federation.tell(VICTIM, record, frames)), Vote)


def _one_that_it_is_in(federation: Federation) -> bool:
    federation.masked(2)
    record, frames = _forged_record(federation, _misled(federation))
    return isinstance(said(federation.tell(VICTIM, record, frames)), Vote)


def _one_that_it_was_in(federation: Federation) -> bool:
    federation.masked(2)
    record, frames = _forged_record(federation, (COLLUDER,))
    # The first sum is another too, so that what the victim began of the last step was at another history.
    forged = list(frames)
    words = unpack(forged[0], federation.plan.spec(0).words, federation.plan.modulus_bits(0)).astype(np.int64)
    words[0] += 1 if words[0] == 0 else -1
    forged[0] = pack(words.astype(np.uint32), federation.plan.modulus_bits(0))
    public = federation.server.history.replay((record, tuple(forged)))
    statement = (federation.server.head, public.plan.digest, public.chain)
    votes = [SignedBy(one, federation.signers[one].sign("vote", *statement)) for one in _misled(federation)]
    federation.restart(VICTIM)
    return isinstance(said(federation.tell(VICTIM, *public.record(votes))), Vote)


def _never_masked(federation: Federation) -> bool:
    federation.masked(2)
    twin = federation.diaries[VICTIM].memory
    record, frames = _forged_record(federation, _misled(federation))
    federation.diaries[VICTIM].memory = type(twin)(next_epoch=twin.next_epoch, attempts=twin.attempts)
    federation.restart(VICTIM)  # killed in the set-up: it has begun no step of this epoch
    return isinstance(said(federation.tell(VICTIM, record, frames)), Vote)


RECORDS: Mapping[str, tuple[Callable[[Federation], bool], tuple[str, ...], str]] = {
    "an epoch that nobody has voted for": (_nobody_voted, ("_rule_others_vote",), "resilient"),
    "one that only a stranger to it has voted for": (_strangers_voted, ("_rule_others_vote",), "resilient"),
    "after a wrong sum, with a colluder's vote": (_after_a_wrong_sum, ("_rule_others_vote",), "lockstep"),
    "a last sum whose tag a colluder made to fit": (_with_tags_that_fit, ("_rule_others_vote",), "lockstep"),
    "another last sum, while it is in the epoch": (_one_that_it_is_in, ("_rule_known_epoch",), "lockstep"),
    "another history than it saw, once restarted": (_one_that_it_was_in, ("_rule_known_epoch",), "lockstep"),
    "a lockstep epoch whose steps it never began": (_never_masked, ("_rule_known_epoch",), "lockstep"),
}


class ForgedRecords(Attack):
    """Records of epochs as they were not."""

    name = "forged-records"
    adversary = "malicious server with a colluding client"
    goal = "Have a client vote for sums that it has not checked, and that the members it trusts have not voted for."
    promises = ("P4", "P10")
    defences = tuple(dict.fromkeys(rule for _, rules, _ in RECORDS.values() for rule in rules))

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Each record, to a client that stands where it might believe it."""

        def attempt(say: Callable[[Federation], bool], mode: str, standing: Defences) -> bool:
            return say(in_mode(mode, laboratory, standing))

        tries = {how: Try(partial(attempt, say, mode), rules) for how, (say, rules, mode) in RECORDS.items()}
        return counted(tries, what="forged records", defences=defences)


def _victims_refusal(federation: Federation) -> str:
    """What the victim refused first, if anything."""
    return first_said([error for member, error in federation.refusals if member == VICTIM])


class EndlessEpochs(Attack):
    """Ever new epochs, each within the policy."""

    name = "endless-epochs"
    adversary = "malicious server"
    goal = "Keep clients answering for ever, so that many sums together tell what one does not."
    promises = ("P6",)
    defences = ("_rule_budget",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Five epochs of three steps, where the policy allows seven steps in all."""
        allowed = 7
        federation = lockstep(laboratory, defences, policy=Policy(most_total_steps=allowed), steps=3)
        answered = 0
        for _ in range(5):
            if not federation.set_up():
                break
            while federation.server.step is not None:
                answered += federation.step() is not None
            federation.finish()
        return _beyond(federation, "steps answered", answered, f"{allowed} that the policy allows", allowed)


class StartsAsQueries(Attack):
    """Epochs that are given up, again and again."""

    name = "starts-as-queries"
    adversary = "malicious server with a colluding client"
    goal = "Give epochs up until one starts where the server would have it, or until many first steps have told enough."
    promises = ("P4", "P6")
    defences = ("_rule_attempts",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Give up eight epochs after their first sum, where the charter permits five starts."""
        allowed = 5
        federation = lockstep(laboratory, defences, attempts=allowed)
        for _ in range(8):
            if federation.set_up():
                federation.step()
            if federation.server.plan is not None:
                federation.emit(federation.server._give_up("it did not start where it should"))
                federation.drain()
        number = len(federation.reveals)
        return _beyond(federation, "first sums", number, f"{allowed} starts that the charter permits", allowed)


def _beyond(federation: Federation, what: str, number: int, limit: str, allowed: int) -> Evidence:
    """How many there are beyond a limit, and what the victim said to the next."""
    return Evidence(
        measure=f"{what} beyond the {limit}, number",
        value=float(max(0, number - allowed)),
        success=0.0,
        learned=f"{number} {what}, beyond the {limit}",
        refusal=_victims_refusal(federation),
    )


class OverspentBudget(Attack):
    """Ever new epochs of noised sums."""

    name = "overspent-privacy-budget"
    adversary = "malicious server"
    goal = "Keep clients adding to noised sums until the noise averages out, beyond the privacy budget of their policy."
    paper = "Bun and Steinke, TCC 2016 (composition of zCDP)"
    promises = ("P15", "P6")
    defences = ("_rule_privacy_budget",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Five epochs of one step, where the budget is for two and a half."""
        honest = lockstep(laboratory, Defences()).charter.least_honest
        options: dict[str, Any] = {"steps": 1, "specs": noised(1.0, honest)}
        budget = 2.5 * lockstep(laboratory, Defences(), **options).plan.total_rho
        federation = lockstep(laboratory, defences, policy=Policy(most_rho=budget), **options)
        for _ in range(5):
            if not federation.set_up():
                break
            federation.step()
            federation.finish()
        spent = federation.clients[VICTIM].spent_rho
        return Evidence(
            measure="zCDP spent over the policy's budget, ratio",
            value=spent / budget,
            success=1.0,
            learned=f"sums that cost the client {spent / budget:.0%} of its budget",
            refusal=_victims_refusal(federation),
        )


ATTACKS: tuple[Attack, ...] = (
    LastStepSplit(),
    TwoCertificates(),
    TooFewVotes(),
    ForgedVotes(),
    ForgedRecords(),
    EndlessEpochs(),
    StartsAsQueries(),
    OverspentBudget(),
)
