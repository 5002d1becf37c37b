"""What the set-up of one epoch of very many members costs, of whom some are sampled.

    python benchmarks/large_set_up.py --members 100000 --sample 100 --colluders 5000 --folder /tmp/set-up

One process. All members advertise, and the server takes, checks, shows and writes down all of it, as it is deployed.
The sampled members are real machines that take what everybody is shown, seal for all their partners, open what these
sealed for them, and begin the first step. Seals between members of whom none is sampled are not made: their time and
bytes are those of the sampled ones, times all that there are, and are said to be so. Seconds are of this thread's
processor; a client's are what its own machine would take.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from codream_protocols import hybrid
from codream_protocols.advertisements import check_start_shares
from codream_protocols.charter import Aggregation
from codream_protocols.messages import (
    Advertisement,
    Advertisements,
    OpenedStarts,
    Seal,
    SealDelivery,
    Starts,
    ToServer,
    decode_to_server,
    encode_message,
)
from codream_protocols.neighbours import Ring
from codream_protocols.resilient import make_keys
from codream_protocols.server import SendTo, ServerProtocol
from codream_server.record_folder import RecordFolder
from secure_codream.simulation.virtual.host import Errand, VirtualHost
from secure_codream.simulation.virtual.scene import Scene


class Clock:
    """Seconds of this thread's processor since it was asked last."""

    def __init__(self) -> None:
        self._last = time.thread_time()

    def lap(self) -> float:
        """They."""
        last, self._last = self._last, time.thread_time()
        return self._last - last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=100_000)
    parser.add_argument("--sample", type=int, default=100)
    parser.add_argument("--colluders", type=int, default=5_000)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--folder", type=Path, required=True, help="Of the server's record; made, and taken away.")
    given = parser.parse_args()
    aggregation = Aggregation(
        mode="resilient",
        losses="allow",
        colluders=given.colluders,
        least_survivors=given.colluders + 2,
        value_bits=14,  # with 17 for so many members, within 32
    )
    scene = Scene(members=given.members, dimension=1, steps=given.steps, aggregation=aggregation)
    # Evenly over the roster, without the first member, who seals for everybody.
    sampled = tuple(1 + (given.members - 1) * number // given.sample for number in range(given.sample))
    given.folder.mkdir()
    try:
        for name, value in set_up(scene, sampled, given.folder):
            print(json.dumps({name: value}), flush=True)
    finally:
        shutil.rmtree(given.folder)


def set_up(scene: Scene, sampled: tuple[int, ...], folder: Path) -> Iterator[tuple[str, float | int]]:
    """What each part of it costs, as it is done.

    Args:
        scene: whose first epoch.
        sampled: members, ascending, without the first.
        folder: of the server's record.
    """
    clock, count = Clock(), len(sampled)
    roster = scene.roster()
    charter, course = scene.charter(roster), scene.course()
    journal = RecordFolder(folder, roster=roster.hash, charter=charter.digest)
    server = ServerProtocol(charter, roster, course, journal=journal)
    host = VirtualHost(scene, sampled)
    yield "roster and machines, s", round(clock.lap(), 3)

    # -- everybody advertises
    clients, taken, shares = 0.0, 0.0, list[bytes]()
    for member in charter.everybody:
        server.absent.discard(member)
        server._at[member] = server.head  # as its Hello says
    effects = server.open_epoch(server.cohort())
    plan = server.plan
    assert plan is not None
    yield "server, the plan and who is there, s", round(clock.lap(), 3)
    invitation = next(encode_message(effect.message) for effect in effects if isinstance(effect, SendTo))
    own = {answer.member: answer.sent[0].data for answer in host.answer(Errand(sampled, invitation))}
    clock.lap()
    shown: list[SendTo] = []
    size = 0
    for member in charter.everybody:
        keys = make_keys(plan, member, scene.random(member))
        made = keys.advertise(scene.signer(member))
        shares.append(hybrid.start_share(keys._value.reveal()))
        data = own.get(member) or encode_message(made)
        clients += clock.lap()
        message = decode_to_server(data)
        assert isinstance(message, Advertisement) and message == made
        answered = server.receive(member, message)
        shown += [effect for effect in answered if isinstance(effect, SendTo)]
        taken += clock.lap()
        size += len(data)
    yield "a member, to advertise, s", round(clients / len(shares), 6)
    yield "a member, its advertisement, bytes", size // len(shares)
    yield "server, all advertisements taken, shown and on disk, s", round(taken, 1)
    yield "server, on disk, bytes", sum(path.stat().st_size for path in folder.iterdir())
    yield "server, memory so far, MB", _peak()

    # -- what everybody is shown
    everybody = shown[0].message
    assert isinstance(everybody, Advertisements) and len(shown) == len(shares)
    data = encode_message(everybody)
    yield "a member, all advertisements, bytes", len(data)
    yield "server, encoded once, s", round(clock.lap(), 3)
    ring = server._epoch.ring if server._epoch else None
    assert ring is not None
    yield "neighbours", ring.degree.neighbours
    yield "threshold", ring.degree.threshold
    answers = list(host.answer(Errand(sampled, data)))
    yield (
        "a member, to check all of them and seal for its partners, s",
        round(_mean(answer.seconds for answer in answers), 3),
    )
    yield "a member, its seals, bytes", sum(len(answer.sent[0].data) for answer in answers) // count
    clock.lap()
    for answer in answers:
        found = decode_to_server(answer.sent[0].data)
        server.receive(answer.member, found)
    each = clock.lap() / count
    yield "server, one member's seals, s", round(each, 4)
    yield "server, all seals as many times as there are members, s", round(each * len(shares))
    yield (
        "server, all seals, bytes, reckoned alike",
        sum(len(answer.sent[0].data) for answer in answers) // count * len(shares),
    )

    # -- what the partners sealed
    _end_of_seals(server)
    delivered = {member: _delivery(scene, server, ring, member) for member in sampled}
    clock.lap()
    opened: list[tuple[int, ToServer]] = []
    spent = 0.0
    for member, delivery in delivered.items():
        for answer in host.answer(Errand((member,), encode_message(delivery))):
            spent += answer.seconds
            opened += [(member, decode_to_server(sent.data)) for sent in answer.sent]
    yield "a member, to open its seals, s", round(spent / count, 4)
    clock.lap()
    for member, one in opened:
        assert isinstance(one, OpenedStarts)
        server.receive(member, one)
    yield "server, one member's start shares, s", round(clock.lap() / count, 5)
    start = b"".join(shares)
    check_start_shares(plan, everybody.items, start)
    yield "server, all start shares, s", round(clock.lap(), 3)
    told = encode_message(Starts(plan.digest, start))
    begun = list(host.answer(Errand(sampled, told)))
    yield "a member, all start shares, bytes", len(told)
    yield "a member, to check them and begin the first step, s", round(_mean(answer.seconds for answer in begun), 3)
    yield "members that stand before their first step", sum(host._clients[one].members != () for one in sampled)
    yield "memory of the one process, MB", _peak()
    journal.close()


def _end_of_seals(server: ServerProtocol) -> None:
    """The server goes on as if all had sealed: who is not sampled has not."""
    epoch = server._epoch
    assert epoch is not None
    server._deliver(epoch, tuple(item.member for item in epoch.shown))


def _delivery(scene: Scene, server: ServerProtocol, ring: Ring, member: int) -> SealDelivery:
    """What a member's partners seal for it, as their machines do."""
    epoch = server._epoch
    assert epoch is not None
    seals = []
    for partner in ring.partners(member):
        keys, signer = make_keys(epoch.plan, partner, scene.random(partner)), scene.signer(partner)
        keys.advertise(signer)
        keys.stand_on(ring)
        near = {one: epoch.advertised[one] for one in sorted((partner, member))}
        (seal,) = keys.seal(signer, epoch.transcript, near)
        seals.append(Seal(partner, seal.kem, seal.ciphertext, seal.signature))
    return SealDelivery(epoch.plan.digest, tuple(seals))


def _mean(seconds: Iterator[float]) -> float:
    found = list(seconds)
    return sum(found) / len(found)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
