"""Small federations at random, with lying members and a wire that alters, drops, repeats and reorders.

Clients and servers are killed and started again, with their journals or, a server, with nothing. Whatever happens: a
sum that an honest client takes is the sum over the members that it is told; no mask is used twice, and a question has
one answer; honest clients certify the same history, and a server has all of it in the end; what is refused is refused
with a typed error and changes nothing; and an epoch that is not certified has a stated end. Everything follows from the
seed, which a failure names.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any, cast
from unittest.mock import patch

import msgspec
import numpy as np
import pytest

from codream_protocols import client as client_module
from codream_protocols import hybrid, identity, keyschedule
from codream_protocols import masks as masks_module
from codream_protocols import record as record_module
from codream_protocols import server as server_module
from codream_protocols.client import ClientProtocol, State
from codream_protocols.lockstep import seal_statement
from codream_protocols.messages import (
    Advertisement,
    Beat,
    Complaint,
    EpochRecord,
    Invitation,
    MaskedInput,
    Refusal,
    Seal,
    Seals,
    SurvivorSignature,
    UnmaskShares,
    Vote,
    Welcome,
)
from codream_protocols.packing import unpack
from codream_protocols.record import Kept
from codream_protocols.server import Phase
from codream_protocols.specs import Block, VectorSpec
from secure_codream.simulation.packets import Packet, packet
from secure_codream.simulation.snapshots import snapshot
from secure_codream.simulation.toy_course import LaboratoryCourse
from secure_codream.simulation.wire import Federation, Tape
from secure_codream.threats.laboratory.adversary import transcript_of
from secure_codream.threats.laboratory.switches import without

SPECS = (
    VectorSpec("update", (Block("dream", 3, 1.0),)),
    VectorSpec("count", (Block("seen", 2, 300, "count"), Block("dream", 2, 0.5))),
)
NORMAL, EXHAUSTIVE, CHAOS = 800, 20_000, 10_000


class World:
    """One federation, who lies in it, and what the wire does.

    Args:
        seed: of everything.
        client_class: the members' machine.
        kills: how often, of all that happens, a server or a client is killed besides, and started again.
    """

    def __init__(self, seed: int, client_class: type[ClientProtocol] = ClientProtocol, *, kills: float = 0.0) -> None:
        chance = self.chance = random.Random(seed)
        mode = chance.choice(["lockstep", "resilient"])
        members = chance.choice([3, 3, 3, 4, 5] if mode == "lockstep" else [3, 3, 3, 4, 6])
        steps = chance.choice([1, 1, 1, 2, 3])
        specs = SPECS if chance.random() < 0.5 else SPECS[:1]
        losses = "allow" if mode == "resilient" and chance.random() < 0.3 else "blocks"
        course = LaboratoryCourse(specs, steps, epochs=2)
        courses = [course] * members
        if chance.random() < 0.05:  # a member whose machine computes another state
            courses[chance.randrange(members)] = LaboratoryCourse(specs, steps, epochs=2, bias=0.25)
        self.federation = Federation(
            members,
            mode=mode,
            seed=seed,
            client_class=client_class,
            course=course,
            courses=courses,
            value_bits=8,
            losses=losses,
            attempts=chance.choice([2, 20]),
        )
        self.federation.tells_refusals = chance.random() < 0.7
        self.liars = {chance.randrange(members)} if chance.random() < 0.4 else set()
        self.noise = chance.choice([0.0, 0.005, 0.02, 0.1])
        self.orderly = chance.random() < 0.5
        self.crashes = chance.random() < 0.3
        self.kills, self.fate = kills, random.Random(f"fate {seed}")
        self.lies_left = chance.choice([1, 3, 100])
        self.looks = seed % 20 == 0  # whether refusals are compared with what was before
        self.happened: Counter[str] = Counter()
        self.masks: Counter[tuple[bytes, bool]] = Counter()  # how often each was added, and taken off, by members

    @property
    def honest(self) -> list[int]:
        """Members that follow the protocol."""
        return [member for member in self.federation.everybody if member not in self.liars]

    # -- what happens ---------------------------------------------

    def play(self) -> None:
        """Up to three attempts at an epoch."""
        federation, chance = self.federation, self.chance
        for _ in range(3):
            federation.hello(member for member in federation.everybody if chance.random() > self.noise)
            self.pump(60)
            cohort = federation.server.cohort()
            if federation.server.phase is Phase.IDLE and cohort and not federation.server.done:
                federation.emit(federation.server.open_epoch(cohort))
            self.pump(400)
            if federation.server.done:
                break
        self.noise, self.crashes, self.kills = 0.0, False, 0.0
        for _ in range(3):  # with a quiet wire, what can end ends
            federation.hello()
            self.pump(400)
            federation.emit(federation.server.expire())
            self.pump(400)

    def pump(self, most: int) -> None:
        """Deliver, compute, and let time pass, until nothing is on its way."""
        federation, chance = self.federation, self.chance
        for _ in range(most):
            if self.crashes and chance.random() < 0.01:
                self.crash()
            if self.kills and self.fate.random() < self.kills:
                self.kill()
            if federation.computing and (not federation.wire or chance.random() < 0.3):
                federation.compute([chance.choice(sorted(federation.computing))])
            elif federation.wire:
                place = 0 if self.orderly or chance.random() < 0.7 else chance.randrange(len(federation.wire))
                for item in self.meddle(federation.wire.pop(place)):
                    self.deliver(item)
            elif federation.server.phase in (Phase.IDLE, Phase.VOTING):
                return
            else:
                self.time_passes()

    def time_passes(self) -> None:
        federation, chance = self.federation, self.chance
        event = chance.random()
        if event < 0.4:
            federation.emit(federation.server.expire())
        elif event < 0.7:
            federation.hello([chance.choice(federation.everybody)])
        elif event < 0.8:
            federation.emit(federation.server.lost(chance.choice(federation.everybody)))
        else:
            member = chance.choice(federation.everybody)
            federation.put(packet(member, Beat(*federation.clients[member].progress), to_server=True))

    def crash(self) -> None:
        federation, chance = self.federation, self.chance
        if chance.random() < 0.2:
            federation.restart_server(remembers=chance.random() < 0.7)
            self.happened["server restarted"] += 1
        else:
            member = chance.choice(federation.everybody)
            federation.restart(member)
            federation.hello([member])
            self.happened["client restarted"] += 1

    def kill(self) -> None:
        """A server nine times in ten with its journal; who is there says Hello, in some order."""
        federation, fate = self.federation, self.fate
        if fate.random() < 0.5:
            federation.restart_server(remembers=fate.random() < 0.9)
            federation.hello(fate.sample(federation.everybody, len(federation.everybody)))
            self.happened["server killed"] += 1
        else:
            member = fate.choice(federation.everybody)
            federation.restart(member)
            federation.hello([member])
            self.happened["client killed"] += 1

    def deliver(self, item: Packet) -> None:
        """Deliver a packet; now and then see that a refusal has changed nothing."""
        federation = self.federation
        before, refused = None, len(federation.refusals)
        if self.looks:
            before = snapshot(federation.server if item.to_server else federation.clients[item.member])
        federation.deliver(item)
        if before is not None and len(federation.refusals) > refused:
            after = snapshot(federation.server if item.to_server else federation.clients[item.member])
            assert after == before, f"a refused {item.kind.__name__} has changed something: {federation.refusals[-1]}"

    # -- what is done to messages ---------------------------------------------

    def meddle(self, item: Packet) -> list[Packet]:
        """What arrives of a packet."""
        chance = self.chance
        if item.to_server and item.member in self.liars and self.lies_left and chance.random() < 0.3:
            self.lies_left -= 1
            item = self.lie(item)
        if chance.random() >= self.noise:
            return [item]
        kind = chance.choice(["drop", "repeat", "bit", "frame", "byte", "reroute", "old"])
        self.happened[kind] += 1
        if kind == "drop":
            return []
        if kind == "repeat":
            return [item, item]
        if kind == "bit" and item.data:
            return [replace(item, data=_flipped(item.data, chance))]
        if kind == "byte":
            place = chance.randrange(len(item.data))
            return [replace(item, data=item.data[:place] + bytes([chance.randrange(256)]) + item.data[place + 1 :])]
        if kind == "frame":
            if not item.frames or chance.random() < 0.2:
                return [replace(item, frames=(*item.frames, b"x"))]
            return [replace(item, frames=(_flipped(item.frames[0], chance), *item.frames[1:]))]
        if kind == "reroute" and not item.to_server:  # a server may tell anybody anything; who speaks is known to it
            return [item, replace(item, member=chance.choice(self.federation.everybody))]
        earlier = chance.choice(self.federation.sent)
        return [item, replace(earlier)]

    def lie(self, item: Packet) -> Packet:
        """A lying member's message: rightly signed where that is up to it, and wrong."""
        chance, federation, message = self.chance, self.federation, item.message
        self.happened[f"lie: {item.kind.__name__}"] += 1
        signer = federation.signers[item.member]
        changes = msgspec.structs.replace
        if isinstance(message, Advertisement):
            fake = changes(message, commitment=chance.randbytes(32))
            return _with(item, changes(fake, signature=signer.sign("advertisement", *fake.signed_parts())))
        if isinstance(message, Seals):
            seals = []
            transcript = transcript_of(federation, self.shown(message.plan))
            for seal in message.items:
                if chance.random() < 0.5:
                    garbage = _flipped(seal.ciphertext, chance)
                    statement = seal_statement(transcript, item.member, seal.member, seal.kem, garbage)
                    seal = Seal(seal.member, seal.kem, garbage, signer.sign("seal", *statement))
                seals.append(seal)
            return _with(item, changes(message, items=tuple(seals)))
        if isinstance(message, MaskedInput):
            if chance.random() < 0.5:
                return replace(item, frames=(_flipped(item.frames[0], chance),))
            field = chance.choice(["chain", "tag", "start"])
            value = getattr(message, field)
            return _with(item, changes(message, **{field: chance.randbytes(len(value))}), item.frames)
        if isinstance(message, UnmaskShares):
            return _with(item, changes(message, shares=chance.randbytes(len(message.shares))))
        if isinstance(message, SurvivorSignature | Vote):
            return _with(item, changes(message, signature=signer.sign("vote", b"", b"", b"")))
        if chance.random() < 0.5:
            return packet(
                item.member, Complaint(self.plan_digest(), chance.choice(federation.everybody)), to_server=True
            )
        code = chance.choice(["wrong-sum", "policy", "cohort", "diverged"])
        return packet(item.member, Refusal(code, "lies", "", self.plan_digest()), to_server=True)

    def plan_digest(self) -> bytes:
        """The running plan, or none."""
        plan = self.federation.server.plan
        return plan.digest if plan else bytes(32)

    def shown(self, plan: bytes) -> dict[int, Advertisement] | None:
        """The advertisements that the server has shown of a plan."""
        running = self.federation.server._epoch
        if running is None or running.plan.digest != plan:
            return None
        return {item.member: item for item in running.shown}

    # -- what must hold ---------------------------------------------

    def check(self) -> None:
        """See the module."""
        federation = self.federation
        for member in self.honest:
            for plan, step, members, frame in self.taken(member):
                expected = federation.plain_sum(step, members, plan)
                words = unpack(frame, len(expected), federation.plan.modulus_bits(step)).astype(np.int64)
                assert (words == expected).all(), f"member {member} took a sum of step {step} that is not true"
        heads = [client.history.heads for client in federation.clients]
        for member in self.honest:
            for other in self.honest:
                shorter = min(len(heads[member]), len(heads[other]))
                assert heads[member][:shorter] == heads[other][:shorter], (
                    "two honest clients certified different things"
                )
        assert federation.server.phase in (Phase.IDLE, Phase.VOTING), f"no end: {federation.server.phase}"
        self.check_used_once()
        most = max(federation.clients[member].certified for member in self.honest)
        assert federation.server.certified >= most, "what was finished is lost"
        published = {(effect.number, effect.kept[0].advertisements) for effect in federation.certified}
        assert len(published) == len({number for number, _ in published}), "two epochs of one number"
        if federation.server.phase is Phase.VOTING:
            voters = {member for member in self.honest if federation.clients[member].state is State.VOTED}
            assert voters or self.liars, "it waits for votes, and nobody has voted"

    def check_used_once(self) -> None:
        """By what was on the wire, and by what the masks were made of."""
        twice = [key.hex() for (key, _), count in self.masks.items() if count > 1]
        assert not twice, f"masks used twice: {twice}"
        answers: dict[tuple[Any, ...], set[Any]] = {}
        keys: dict[bytes, set[bytes]] = {}
        for item in self.federation.sent:
            if not item.to_server or item.member in self.liars:
                continue
            message = item.message
            if isinstance(message, MaskedInput | UnmaskShares):
                answers.setdefault((item.member, item.kind, message.plan, message.step), set()).add(
                    (item.data, item.frames)
                )
            elif isinstance(message, Advertisement) and message.member == item.member:
                for key in (message.share_key, message.kem_key, *_pieces(message.mask_keys)):
                    keys.setdefault(key, set()).add(message.plan)
        assert all(len(said) == 1 for said in answers.values()), "two answers to one question"
        assert all(len(plans) == 1 for plans in keys.values()), "a key of two epochs"

    def taken(self, member: int) -> Iterator[tuple[bytes, int, tuple[int, ...], bytes]]:
        """Each sum that a client has taken: plan, step, members, frame."""
        federation = self.federation
        memory, running = federation.diaries[member].memory, federation.clients[member]._epoch
        kept: list[Kept] = [*memory.certified, *([memory.vote] if memory.vote else [])]
        for record, frames in kept:
            plan = self.plan_of(record)
            for step, (one, frame) in enumerate(zip(record.steps, frames, strict=True)):
                yield plan, step, one.members, frame
        if running is not None and running.public is not None:
            public = running.public
            for step, (one, frame) in enumerate(zip(public.steps, public.frames, strict=True)):
                yield public.plan.digest, step, one.members, frame

    def plan_of(self, record: EpochRecord) -> bytes:
        """The plan that a record names: that of its advertisements."""
        return record.advertisements[0].plan


def _pieces(keys: bytes) -> list[bytes]:
    return [keys[at : at + 32] for at in range(0, len(keys), 32)]


def _with(item: Packet, message: Any, frames: tuple[bytes, ...] = ()) -> Packet:
    return packet(item.member, message, frames, to_server=item.to_server)


def _flipped(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]


@contextmanager
def remembered(masks: Counter[tuple[bytes, bool]]) -> Iterator[None]:
    """Primitives whose results depend on their arguments alone are computed once: all members verify the same keys.

    Each mask that a member adds is counted by its key and sign in `masks`.
    """

    def counted(vector: Any, keys: Any, *, suite: Any) -> None:
        masks.update(keys)
        masks_module.add_masks(vector, keys, suite=suite)

    verify, agree = cache(identity.verify), cache(keyschedule.agree)
    with (
        patch.object(client_module, "verify", verify),
        patch.object(client_module, "add_masks", counted),
        patch.object(server_module, "verify", verify),
        patch.object(record_module, "verify", verify),
        patch.object(keyschedule, "agree", agree),
        patch.object(keyschedule, "public_key", cache(keyschedule.public_key)),
        patch.object(hybrid, "check_kem_key", cache(hybrid.check_kem_key)),
    ):
        yield


def play(
    seeds: Iterable[int], client_class: type[ClientProtocol] = ClientProtocol, *, kills: float = 0.0
) -> Counter[str]:
    """Play these federations; what came of them."""
    outcomes: Counter[str] = Counter()
    for seed in seeds:
        world = World(seed, client_class, kills=kills)
        try:
            with remembered(world.masks):
                world.play()
                world.check()
        except (Exception, AssertionError) as error:
            error.add_note(f"seed {seed}, liars {world.liars}: {dict(world.happened)}")
            raise
        federation = world.federation
        outcomes["certified"] += len(federation.certified)
        outcomes["given up"] += len(federation.given_up)
        outcomes["waits for votes"] += federation.server.phase is Phase.VOTING
        outcomes["wrong sums"] += sum(ended.wrong_sum for news in federation.news for ended in news.ended)
        outcomes["refused"] += len(federation.refusals)
        outcomes.update({f"end: {effect.reason.split(':')[0][-40:]}": 1 for effect in federation.given_up})
        outcomes.update(world.happened)
    return outcomes


@pytest.mark.parametrize("part", range(4))
def test_every_sum_taken_is_true_or_the_epoch_has_a_stated_end(part: int) -> None:
    """A quarter of the usual federations each; and the play is rough enough to be worth something."""
    size = NORMAL // 4
    outcomes = play(range(part * size, (part + 1) * size))
    assert outcomes["certified"] > size // 4
    assert min(outcomes["given up"], outcomes["wrong sums"], outcomes["refused"]) > 0


@pytest.mark.parametrize("part", range(2))
def test_killed_again_and_again_nothing_is_lost_or_used_twice(part: int) -> None:
    outcomes = play(range(part * 100, (part + 1) * 100), kills=0.02)
    assert outcomes["certified"] > 20 and min(outcomes["server killed"], outcomes["client killed"]) > 50


def test_a_member_that_was_left_out_says_hello_while_others_vote() -> None:
    """It holds keys of the epoch, but nobody sealed anything for it: once a KeyError that ended the server."""
    assert sum(play([6470, 17161, 17974]).values()) > 0


def test_the_play_finds_a_rule_that_is_missing() -> None:
    """Without the check of sums, one that is not true is soon taken."""
    with pytest.raises(AssertionError, match=r"not true|different things"):
        play(range(200), without("_rule_true_sum"))


class RepeatsItself(ClientProtocol):
    """Draws the same keys for each epoch."""

    def receive(self, message: Any, frames: tuple[bytes, ...] = ()) -> Any:
        if isinstance(message, Invitation):
            cast(Tape, self._random).draw = random.Random(self._member).randbytes  # the tape of a laboratory
        return super().receive(message, frames)


class GivesNothingBack(ClientProtocol):
    """Leaves a server that lost its disk alone."""

    def receive(self, message: Any, frames: tuple[bytes, ...] = ()) -> Any:
        return [] if isinstance(message, Welcome) else super().receive(message, frames)


@pytest.mark.parametrize(
    ("kind", "found"), [(RepeatsItself, "a key of two epochs"), (GivesNothingBack, "what was finished is lost")]
)
def test_the_play_finds_keys_used_twice_and_what_is_lost(kind: type[ClientProtocol], found: str) -> None:
    with pytest.raises(AssertionError, match=found):
        play(range(400), kind, kills=0.05)


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(20))
def test_twenty_thousand_federations(part: int) -> None:
    size = EXHAUSTIVE // 20
    play(range(NORMAL + part * size, NORMAL + (part + 1) * size))


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(20))
def test_ten_thousand_schedules_of_kills(part: int) -> None:
    size = CHAOS // 20
    play(range(part * size, (part + 1) * size), kills=0.02)
