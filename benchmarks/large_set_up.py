"""One epoch of very many members through the server as it is deployed, whole and on disk; some are real machines.

    python benchmarks/large_set_up.py --members 100000 --sample 100 --folder /tmp/set-up

The server has a process of its own, and its record folder. It takes, checks, shows and writes down everybody's
advertisement, takes and checks everybody's seals, hands each member those of its partners, and makes one secure sum,
in which some members fall silent, up to the certificate. The other process plays the members:

- The sampled ones are the clients' machines, whole: they check all that they are shown, seal, open, mask, sign, answer,
  check the sum, and vote. What is alike for all of them is computed once, and charged to each.
- All others stand in. They advertise, sign and commit as a machine does, with keys of their own, and seal for the
  sampled ones and mask with them as a machine does. What no machine will ever see is made cheaply: what one of them
  seals for another holds no ciphertext, but a size and a valid signature; between two of them that both send there is
  no mask, since it would cancel; the shares of whoever has no sampled neighbour are all its secret itself, which is a
  polynomial of degree 0. Of their signatures over survivors and of their votes as many are made as are needed. They
  check nothing that they are shown. For the server all this is as much work as of machines.

Seconds are of a process's processor. A member's are what its own machine would take.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from codream_protocols import chain as links
from codream_protocols import hybrid, keyschedule
from codream_protocols.charter import Aggregation, Plan
from codream_protocols.client import ClientProtocol
from codream_protocols.encoding import encode, integers
from codream_protocols.identity import Signer
from codream_protocols.keyschedule import KEY_BYTES, PROTOCOL, StepKeys
from codream_protocols.lockstep import plain_seal_bytes, seal_statement
from codream_protocols.masks import add_masks
from codream_protocols.messages import (
    Advertisements,
    Hello,
    Invitation,
    MaskedInput,
    OpenedStarts,
    Published,
    Seal,
    SealDelivery,
    Seals,
    Starts,
    Survivors,
    SurvivorSignature,
    SurvivorSignatures,
    ToServer,
    UnmaskShares,
    Vote,
    decode_to_client,
    decode_to_server,
    encode_message,
    survivor_statement,
)
from codream_protocols.packing import pack
from codream_protocols.resilient import ResilientKeys
from codream_protocols.server import (
    Effect,
    EpochCertified,
    EpochGivenUp,
    SendSeals,
    SendTo,
    ServerProtocol,
    StepBegan,
    StepFinished,
)
from codream_protocols.tag import TagKey, tag_bytes
from codream_server.record_folder import RecordFolder
from secure_codream.simulation.virtual.host import Errand, VirtualHost
from secure_codream.simulation.virtual.scene import BLOCK, Scene

PACKET_BYTES = 1 << 20
SAID_EVERY = 5_000  # answers, on the error's line


class Sent(NamedTuple):
    """A message of the server for members, or of one member for it, encoded; and its frames."""

    members: list[int]
    data: bytes
    frames: tuple[bytes, ...] = ()


class Packet(NamedTuple):
    """Some of them; with the last one of an answer, processor seconds of all members, and of a sampled one."""

    sent: list[Sent]
    last: bool = True
    seconds: float = 0.0
    sampled: float = 0.0


_PACKET: msgspec.msgpack.Decoder[Packet] = msgspec.msgpack.Decoder(Packet)


class Answer(NamedTuple):
    """What a stand-in says."""

    member: int
    message: ToServer
    frames: tuple[bytes, ...] = ()


class Cast(NamedTuple):
    """Who plays what."""

    scene: Scene
    sampled: tuple[int, ...]
    silent: tuple[int, ...]


# -- the members' process ---------------------------------------------


class StandIns:
    """All members that are no machines: see above.

    Args:
        cast: who plays what.
        host: the machines, of which it is read what everybody knows.
    """

    def __init__(self, cast: Cast, host: VirtualHost) -> None:
        self._scene, self._host = cast.scene, host
        self._sampled, self._silent = frozenset(cast.sampled), frozenset(cast.silent)
        self.everybody = [member for member in range(cast.scene.members) if member not in self._sampled]
        count = cast.scene.members
        self._self_masks, self._mask_keys, self._starts = (np.zeros((count, KEY_BYTES), np.uint8) for _ in range(3))
        self._signers: dict[int, Signer] = {}
        self._shares: dict[int, dict[int, bytes]] = {}  # of who has a sampled neighbour, or is one: by holder
        self._filler = os.urandom(hybrid.KEM_CIPHERTEXT_BYTES), os.urandom(1 << 16)
        self._first = b""
        self._survived = np.ones(count, np.bool_)

    def _keys(self, member: int) -> ResilientKeys:
        return ResilientKeys(self._plan, member, self._scene.random(member))

    @property
    def _machine(self) -> ClientProtocol:
        """One, of which is read what everybody knows."""
        return self._host._clients[min(self._sampled)]

    def invited(self, plan: Plan) -> Iterator[Answer]:
        """Everybody's advertisement."""
        self._plan = plan
        for member in self.everybody:
            keys, signer = self._keys(member), self._scene.signer(member)
            step, value = StepKeys(keys._seed, plan.digest, 0), keys._value.reveal()
            self._self_masks[member] = np.frombuffer(step.self_mask.reveal(), np.uint8)
            self._mask_keys[member] = np.frombuffer(step.mask_private.reveal(), np.uint8)
            self._starts[member] = np.frombuffer(hybrid.start_share(value), np.uint8)
            self._signers[member] = signer
            self._first = self._first or value
            yield Answer(member, keys.advertise(signer))

    def shown(self, message: Advertisements) -> Iterator[Answer]:
        """Everybody's seals."""
        epoch = self._machine._epoch
        assert epoch is not None and epoch.ring is not None
        self._transcript, self._ring, self._advertised = epoch.transcript, epoch.ring, epoch.advertised
        for member in self.everybody:
            yield Answer(member, Seals(self._plan.digest, tuple(self._sealed(member))))

    def _sealed(self, member: int) -> Iterator[Seal]:
        partners, signer = self._ring.partners(member), self._signers[member]
        near = set(self._ring.of(member))
        real: dict[int, Seal] = {}
        if machines := self._sampled.intersection(partners):
            keys = self._keys(member)
            keys.stand_on(self._ring)
            chosen = {one: self._advertised[one] for one in sorted((member, *machines))}
            real = {seal.member: seal for seal in keys.seal(signer, self._transcript, chosen)}
        if near & self._sampled:
            again = self._keys(member)  # the same draws, so the same polynomials
            again.stand_on(self._ring)
            self._shares[member] = {one: rest[KEY_BYTES:] for one, rest in again._plaintexts(tuple(near)).items()}
        kem, filler = self._filler
        sizes = [plain_seal_bytes(self._plan, shares=shares) for shares in (False, True)]
        for other in partners:
            if other in real:
                yield real[other]
                continue
            ciphertext = filler[: sizes[other in near]]
            statement = seal_statement(self._transcript, member, other, kem, ciphertext)
            yield Seal(other, kem, ciphertext, signer.sign("seal", *statement))

    def delivered(self, member: int, message: SealDelivery) -> None:
        """Open what machines have sealed for a member."""
        for item in message.items:
            if item.member not in self._sampled:
                continue
            keys = self._keys(member)
            assert keys._kem is not None
            private = keyschedule.prepared(keys._share_private.reveal())
            agreed = keyschedule.agree(private, self._advertised[item.member].share_key)
            secret = keys._kem.decapsulate(item.kem)
            key = hybrid.seal_key(
                agreed, secret, transcript=self._transcript, sender=item.member, receiver=member, ciphertext=item.kem
            )
            additional = keys._additional(item.member, member)
            plaintext = ChaCha20Poly1305(key).decrypt(bytes(12), item.ciphertext, additional)
            self._starts[item.member] = np.frombuffer(hybrid.start_share(plaintext[:KEY_BYTES]), np.uint8)
            if plaintext[KEY_BYTES:]:
                self._shares.setdefault(item.member, {})[member] = plaintext[KEY_BYTES:]

    def opened(self) -> Iterator[Answer]:
        """Everybody's start shares."""
        for member in self.everybody:
            known = sorted((member, *self._ring.partners(member)))
            yield Answer(member, OpenedStarts(self._plan.digest, self._starts[known].tobytes()))

    def started(self) -> Iterator[Answer]:
        """Everybody's masked vector."""
        epoch, plan = self._machine._epoch, self._plan
        assert epoch is not None and epoch.public is not None
        self._chain = epoch.public.chain
        group = hybrid.group_key(self._transcript, self._ring.members, [self._first])
        tag_key = TagKey(hybrid.tag_secret(group, 0, self._chain), plan.spec(0).words)
        bits, real = plan.modulus_bits(0), self._sampled | self._silent
        for member in self.everybody:
            if member in self._silent:
                continue
            vector, _ = encode(plan, 0, self._scene.inputs(member, 0), os.urandom)
            product = tag_key.of(integers(plan, 0, vector))
            own = self._self_masks[member].tobytes()
            keys = [(keyschedule.self_mask_key(own, plan.digest, 0, self._chain), False)]
            private = keyschedule.prepared(self._mask_keys[member].tobytes())
            for other in real.intersection(self._ring.of(member)):
                key = keyschedule.pairwise_mask_key(
                    private,
                    self._advertised[other].mask_key(0),
                    plan=plan.digest,
                    transcript=self._transcript,
                    step=0,
                    broadcast=self._chain,
                    pair=(member, other),
                )
                keys.append((key, member > other))
            add_masks(vector, keys, suite=plan.aggregation.suite)
            vector &= vector.dtype.type((1 << bits) - 1)
            tag = product + tag_key.pad(member) + hybrid.tag_masks(keys)
            message = MaskedInput(plan.digest, 0, self._chain, tag_bytes(tag % (1 << 128)), b"")
            yield Answer(member, message, (pack(vector, bits),))

    def _there(self, count: int | None = None) -> Iterator[int]:
        return islice((member for member in self.everybody if member not in self._silent), count)

    def named(self, message: Survivors) -> Iterator[Answer]:
        """As many signatures over survivors as are needed beside the machines'."""
        self._survived[:] = False
        self._survived[list(message.members)] = True
        statement = survivor_statement(self._chain, 0, message.members)
        for member in self._there(self._plan.least_signers - len(self._sampled)):
            signature = self._signers[member].sign("survivors", *statement)
            yield Answer(member, SurvivorSignature(self._plan.digest, 0, signature))

    def asked(self) -> Iterator[Answer]:
        """Everybody's shares."""
        for member in self._there():
            owners = self._ring.rows[self._ring.place(member)]  # places are numbers: everybody is in the epoch
            survived = self._survived[owners]
            answer = np.where(survived[:, None], self._self_masks[owners], self._mask_keys[owners])
            for at, owner in enumerate(owners.tolist()):
                if (shares := self._shares.get(owner)) is not None:
                    row = 0 if survived[at] else KEY_BYTES
                    answer[at] = np.frombuffer(shares[member][row : row + KEY_BYTES], np.uint8)
            yield Answer(member, UnmaskShares(self._plan.digest, 0, answer.tobytes()))

    def summed(self) -> Iterator[Answer]:
        """As many votes as are needed beside the machines'."""
        assert self._machine._vote is not None
        public, _ = self._machine._vote
        statement = links.vote_statement(public.plan.offer.head, public.plan.digest, public.chain)
        for member in self._there(public.plan.charter.quorum - len(self._sampled)):
            signature = self._signers[member].sign("vote", *statement)
            yield Answer(member, Vote(public.plan.digest, public.chain, signature))


class Members:
    """All members: they take what the server sends, and answer."""

    def __init__(self, cast: Cast) -> None:
        self._sampled = cast.sampled
        self._host = VirtualHost(cast.scene, cast.sampled)
        self._others = StandIns(cast, self._host)
        self.seconds = 0.0  # of a sampled machine, of the last message

    def take(self, sent: Sent) -> Iterator[Sent]:
        """Hand a message to its members."""
        addressed = set(sent.members)
        machines = tuple(member for member in self._sampled if member in addressed)
        spent = 0.0
        if machines:
            for answer in self._host.answer(Errand(machines, sent.data, sent.frames)):
                spent += answer.seconds
                yield from (Sent([answer.member], *one) for one in answer.sent)
            self.seconds += spent / len(self._sampled)
        if len(addressed) == len(machines):
            return
        message = self._host._message if machines else decode_to_client(sent.data)
        for own in self._stand_ins(sent.members, message):
            yield Sent([own.member], encode_message(own.message), own.frames)

    def _stand_ins(self, members: list[int], message: object) -> Iterable[Answer]:
        others = self._others
        if isinstance(message, Invitation):
            plan = self._host._clients[self._sampled[0]].plan
            assert plan is not None
            return others.invited(plan)
        if isinstance(message, Advertisements):
            return others.shown(message)
        if isinstance(message, SealDelivery):
            others.delivered(members[0], message)
            # Once all are delivered, everybody's start shares follow.
            return others.opened() if members[0] == others.everybody[-1] else ()
        if isinstance(message, Starts):
            return others.started()
        if isinstance(message, Survivors):
            return others.named(message)
        if isinstance(message, SurvivorSignatures):
            return others.asked()
        return others.summed() if isinstance(message, Published) else ()

    @property
    def certified(self) -> int:
        """How many machines have seen the certificate."""
        return sum(client.certified for client in self._host._clients.values())


def play(cast: Cast, line: Connection) -> None:
    """The members' process, until nothing is sent."""
    members = Members(cast)
    while data := line.recv_bytes():
        began, waiting, size = time.process_time(), list[Sent](), 0
        members.seconds = 0.0
        for sent in _PACKET.decode(data).sent:
            for answer in members.take(sent):
                waiting.append(answer)
                size += len(answer.data)
                if size > PACKET_BYTES:
                    line.send_bytes(msgspec.msgpack.encode(Packet(waiting, last=False)))
                    waiting, size = [], 0
        spent = time.process_time() - began
        line.send_bytes(msgspec.msgpack.encode(Packet(waiting, True, spent, members.seconds)))
    line.send(members.certified)


# -- the server's process ---------------------------------------------


class Epoch:
    """The server, and what it costs.

    Args:
        cast: who plays what.
        folder: of its record.
        line: to the members' process.
    """

    def __init__(self, cast: Cast, folder: Path, line: Connection) -> None:
        roster = cast.scene.roster()
        charter = cast.scene.charter(roster)
        self._cast, self._folder, self._line = cast, folder, line
        self._journal = RecordFolder(folder, roster=roster.hash, charter=charter.digest)
        self._server = ServerProtocol(charter, roster, cast.scene.course(), journal=self._journal)
        self._effects: list[Effect] = []
        self._up = self._down = self._heard = 0
        self._watched = Counter[str]()  # what one machine is sent

    def run(self) -> Iterator[dict[str, object]]:
        """What each part of it costs, as it is done."""
        server = self._server
        began = time.process_time()
        for member in server.charter.everybody:
            server.hello(member, Hello((PROTOCOL,), server.charter.digest, server.head, 0, b"", 0))
        self._effects = server.open_epoch(server.cohort())
        plan = server.plan
        assert plan is not None and plan.degree is not None
        yield {"members": server.charter.members, "neighbours": plan.degree.neighbours, "threshold": plan.threshold}
        while self._effects:
            effects, self._effects = self._effects, []
            for kind, told in groupby(effects, _kind):
                if kind is not None:
                    seconds, sampled = self._tell(told)
                    yield self._cost(kind, time.process_time() - began, seconds, sampled)
                    began = time.process_time()
                else:
                    yield from filter(None, map(self._happened, told))
        yield {"a member is sent, bytes": dict(self._watched)}
        self._journal.close()

    def _tell(self, effects: Iterable[Effect]) -> tuple[float, float]:
        """Tell members, and hear what they answer, in order; returns their seconds."""
        seconds, sampled, waiting, size = 0.0, 0.0, list[Sent](), 0
        for sent in self._sent(effects):
            self._down += len(sent.members) * (len(sent.data) + sum(map(len, sent.frames)))
            waiting.append(sent)
            size += len(sent.data)
            if size > PACKET_BYTES:
                spent = self._exchange(waiting)
                seconds, sampled, waiting, size = seconds + spent[0], sampled + spent[1], [], 0
        spent = self._exchange(waiting)
        return seconds + spent[0], sampled + spent[1]

    def _sent(self, effects: Iterable[Effect]) -> Iterator[Sent]:
        for _, group in groupby((one for one in effects if isinstance(one, SendTo)), _same):
            first, *others = group
            message = first.message
            sent = Sent([first.member, *(one.member for one in others)], encode_message(message), first.frames)
            if self._cast.sampled[0] in sent.members:
                self._watched[type(message).__name__] += len(sent.data) + sum(map(len, sent.frames))
            yield sent

    def _exchange(self, sent: list[Sent]) -> tuple[float, float]:
        self._line.send_bytes(msgspec.msgpack.encode(Packet(sent)))
        while True:
            packet = _PACKET.decode(self._line.recv_bytes())
            for (member,), data, frames in packet.sent:
                self._up += len(data) + sum(map(len, frames))
                self._heard += 1
                if self._heard % SAID_EVERY == 0:
                    print(f"{self._heard:,} answers, {time.process_time():.1f} s", file=sys.stderr, flush=True)
                message = decode_to_server(data)
                if isinstance(message, Hello):  # of a machine that has all it wanted
                    self._server.hello(member, message)
                else:
                    self._effects += self._server.receive(member, message, frames)
            if packet.last:
                return packet.seconds, packet.sampled

    def _happened(self, effect: Effect) -> dict[str, object]:
        if isinstance(effect, EpochGivenUp):
            raise RuntimeError(effect.reason)
        if isinstance(effect, StepBegan):
            for member in self._cast.silent:
                self._effects += self._server.lost(member)
            return {"silent": len(self._cast.silent)}
        if isinstance(effect, StepFinished):
            wanted = sum(self._cast.scene.inputs(member, 0)[BLOCK] for member in effect.survivors)
            off = float(np.abs(effect.sums[BLOCK] - wanted).max())
            return {"inputs in the sum": len(effect.survivors), "off by rounding": round(off, 3)}
        return {"certified": effect.number} if isinstance(effect, EpochCertified) else {}

    def _cost(self, kind: str, server: float, members: float, sampled: float) -> dict[str, object]:
        disk = sum(path.stat().st_blocks * 512 for path in self._folder.iterdir())
        return {
            "sent": kind,
            "server, s, answers taken": round(server, 2),
            "server, memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000,
            "on disk, MB": disk // 1_000_000,
            "up so far, MB": self._up // 1_000_000,
            "down so far, MB": self._down // 1_000_000,
            "a machine, s": round(sampled, 4),
            "all members here, s": round(members, 1),
        }


def _kind(effect: Effect) -> str | None:
    if isinstance(effect, SendSeals):
        return "SealDelivery"
    return type(effect.message).__name__ if isinstance(effect, SendTo) else None


def _same(effect: SendTo) -> int:
    """Effects with the very same message, one behind the other."""
    return id(effect) if isinstance(effect, SendSeals) else id(effect.message)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=1_000)
    parser.add_argument("--sample", type=int, default=100)
    parser.add_argument("--silent", type=int, default=10, help="Members that send no vector.")
    parser.add_argument("--colluders", type=int, default=1)
    parser.add_argument("--folder", type=Path, required=True, help="Of the server's record; made, and taken away.")
    given = parser.parse_args()
    aggregation = Aggregation(
        mode="resilient",
        losses="allow",
        colluders=given.colluders,
        least_survivors=given.colluders + 2,
        value_bits=14,  # with 17 for so many members, within 32
    )
    scene = Scene(members=given.members, dimension=1, steps=1, aggregation=aggregation)
    # Evenly over the roster, without the first member, who seals for everybody.
    sampled = tuple(1 + (given.members - 1) * number // given.sample for number in range(given.sample))
    rest = [member for member in range(1, given.members) if member not in set(sampled)]
    silent = tuple(rest[len(rest) * number // max(1, given.silent)] for number in range(given.silent))
    cast = Cast(scene, sampled, silent)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=play, args=(cast, there), daemon=True)
    process.start()
    there.close()
    given.folder.mkdir()
    try:
        for found in Epoch(cast, given.folder, here).run():
            print(json.dumps(found), flush=True)
        here.send_bytes(b"")
        print(json.dumps({"machines that saw the certificate": here.recv()}), flush=True)
    finally:
        shutil.rmtree(given.folder)
        process.join(10)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
