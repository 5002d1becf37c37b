"""What the network may send: floods, oversized and nested messages, and strangers."""

from __future__ import annotations

import asyncio
import resource
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from codream_protocols.errors import HelloNeeded, MalformedMessage, VectorRefused
from codream_protocols.keyschedule import PROTOCOL
from codream_protocols.messages import (
    Beat,
    EpochRecord,
    Hello,
    MaskedInput,
    Published,
    Refusal,
    Vote,
    decode_to_server,
    encode_message,
    largest_message,
)
from codream_protocols.parcels import Outgoing
from codream_protocols.server import SendTo, ServerProtocol
from codream_server import inbound, peers
from codream_server.inbound import Bounds
from codream_server.outbox import Outbox
from codream_server.settings import Timing
from tests.server.toy import RESILIENT, Federation, ToyClient, ToyCourse, computing, go_on, run

HOURS = Timing(step=7200.0, beat=1.0, lost_after=3600.0)


def nested(size: int) -> bytes:
    """Arrays within arrays, `size` bytes of them."""
    return b"\x91" * (size - 1) + b"\xc0"


async def raw(federation: Federation, *, member: int | None = 0, key: tuple[bytes, bytes] | None = None) -> Any:
    """A connection that says what a test makes it say, with a member's key or with another."""
    context = zmq.asyncio.Context.instance()
    socket = context.socket(zmq.DEALER)
    socket.curve_publickey, socket.curve_secretkey = key or federation.keys[member or 0]
    socket.curve_serverkey = federation.server_public
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(federation.address)
    return socket


# -- sizes ---------------------------------------------


@pytest.mark.parametrize("build", [nested, lambda size: b"\xdd" + (size - 5).to_bytes(4, "big") + b"\xc0" * (size - 5)])
def test_large_nested_message_is_refused_in_milliseconds(build: Callable[[int], bytes]) -> None:
    """Version 1 took 12.6 s and 2.4 GB for such a message (F6)."""
    data = build(32 << 20)
    begun = time.process_time()
    with pytest.raises(MalformedMessage):
        decode_to_server(data)  # even where the bound of the phase is taken away
    assert time.process_time() - begun < 0.05
    begun = time.process_time()
    federation = Federation(3)
    with pytest.raises(MalformedMessage, match="33554432 bytes"):
        Bounds(ServerProtocol(federation.charter, federation.roster, federation.course)).parse(data)
    assert time.process_time() - begun < 0.05


def test_message_larger_than_the_phase_allows_is_refused_and_one_of_that_size_is_looked_at() -> None:
    federation = Federation(3)
    protocol = ServerProtocol(federation.charter, federation.roster, federation.course)
    most = protocol.largest_message
    assert most < 1 << 17
    bounds = Bounds(protocol)
    with pytest.raises(MalformedMessage, match=f"{most + 1} bytes"):
        bounds.parse(nested(most + 1))
    with pytest.raises(MalformedMessage, match="schema"):
        bounds.parse(nested(most))
    record = b"\x96" + msgspec.msgpack.encode("epoch-record")
    with pytest.raises(MalformedMessage, match="schema"):
        bounds.parse(record + nested(most - len(record)))


def test_oversized_message_of_one_member_delays_nobody_and_it_can_come_back() -> None:
    federation = Federation(3, course=ToyCourse(1, 2))

    async def scenario() -> None:
        async with federation.serving() as server:
            client = await computing(federation)
            attacker = await raw(federation, member=2)
            begun = time.monotonic()
            for _ in range(4):
                await attacker.send(nested(4 << 20))  # beyond what the socket takes: the connection goes
            await asyncio.sleep(0.2)
            attacker.close()
            go_on(client)
            await server
            assert time.monotonic() - begun < 5.0

    run(scenario)
    assert len(federation.published) == 1


@pytest.mark.parametrize("frames", [(), (b"",), (b"x",), (bytes(9), bytes(9)), (bytes(1 << 15),)])
def test_frames_of_another_number_or_size_than_the_plans_are_refused(frames: tuple[bytes, ...]) -> None:
    federation = Federation(3, course=ToyCourse(1, 2))

    async def scenario() -> None:
        async with federation.serving() as server:
            client = await computing(federation)
            plan, public = client.protocol.plan, client.protocol._epoch.public
            assert plan is not None and public is not None
            client.send(MaskedInput(plan.digest, 0, public.chain, bytes(16), public.start), *frames)
            client.send(Beat(*client.protocol.progress), b"a frame where none belongs")
            client.send(Vote(plan.digest, bytes(32), bytes(64)), b"and another")
            await federation.until(lambda: federation.server.story.refusals[2] >= 3)
            go_on(client)
            await server

    run(scenario)
    assert {event["code"] for event in federation.of("refused")} == {VectorRefused.code}
    assert federation.published[0][1]["total"] == pytest.approx(federation.total([0, 1, 2]), abs=1e-3)


@pytest.mark.parametrize("aggregation", [None, RESILIENT], ids=["lockstep", "resilient"])
def test_record_with_other_frames_than_its_plan_has_is_refused_before_it_is_replayed(aggregation: Any) -> None:
    federation = Federation(3, course=ToyCourse(2, 2, length=100), aggregation=aggregation)

    async def scenario() -> None:
        async with federation.serving():
            federation.start_all()
            await federation.until(lambda: len(federation.published) == 2)

    run(scenario)
    record, frames = federation.diaries[0].kept[0]
    fresh = Bounds(ServerProtocol(federation.charter, federation.roster, federation.course))
    fresh.check_frames(record, frames)  # the control
    for wrong in (frames[:1], (*frames, frames[0]), (frames[0], frames[1] + b"\0"), (b"", b"")):
        with pytest.raises(VectorRefused):
            fresh.check_frames(record, wrong)
    data = encode_message(record)
    assert isinstance(fresh.parse(data), EpochRecord)
    assert len(data) <= largest_message(3, 2, resilient=aggregation is not None)


def test_a_record_with_more_members_in_its_steps_than_the_federation_has_is_refused_unread() -> None:
    federation = Federation(3)
    bounds = Bounds(ServerProtocol(federation.charter, federation.roster, federation.course))
    fields = [[], [], b"", [[[199] * 200, bytes(16)]] * 10, []]
    with pytest.raises(MalformedMessage, match="a record whose steps have"):
        bounds.parse(msgspec.msgpack.encode(["epoch-record", *fields]))


def test_message_of_very_many_parts_is_refused_and_not_kept() -> None:
    federation, parts = Federation(3, course=ToyCourse(1, 2)), 100_000

    async def scenario() -> int:
        async with federation.serving() as server:
            client = await computing(federation)
            tracemalloc.start()
            try:
                client.send_raw(encode_message(Beat(*client.protocol.progress)), *[b"xx"] * parts)
                await asyncio.sleep(0)
                before = tracemalloc.get_traced_memory()[0]
                tracemalloc.reset_peak()
                await federation.until(lambda: federation.server.story.refusals[2])
                peak = tracemalloc.get_traced_memory()[1] - before
            finally:
                tracemalloc.stop()
            go_on(client)
            await server
            return peak

    peaks: list[int] = []

    async def measured() -> None:
        peaks.append(await scenario())

    run(measured)
    (refused,) = (one for one in federation.of("refused") if one["code"] == MalformedMessage.code)
    assert "parts or more" in refused["found"]
    assert peaks[0] < 40 * parts  # a frame each takes more than ten times as much
    assert len(federation.published) == 1


# -- rates ---------------------------------------------


@pytest.mark.parametrize("kind", ["Hello", "Refusal", "Beat"])
def test_flood_is_dropped_counted_and_written_down_in_a_few_lines(kind: str) -> None:
    federation = Federation(3, course=ToyCourse(1, 2), timing=HOURS)
    number = 2000

    async def scenario() -> None:
        async with federation.serving() as server:
            client = await computing(federation)
            message = {
                "Hello": client.protocol.hello(),
                "Refusal": Refusal("made-up", "\x1b[2J\u202e", "nothing"),
                "Beat": Beat(*client.protocol.progress),
            }[kind]
            flooder = await raw(federation, member=2)  # beside the client, which is told to say Hello now and then
            sent = federation.server.traffic.down
            for _ in range(number):
                await flooder.send(encode_message(client.protocol.hello() if kind == "Hello" else message))
            await federation.until(lambda: federation.server.story.dropped[2] > number * 0.9)
            assert federation.server.traffic.down - sent < 200_000
            flooder.close()
            client.send(client.protocol.hello())
            if kind == "Refusal":  # in lockstep that is the end of an epoch, and its member is waited for
                return
            await asyncio.sleep(1.1)
            client.send(client.protocol.hello())
            go_on(client)
            await server

    run(scenario)
    limited = [event for event in federation.of("rate_limited") if event["kind"] == kind]
    assert 5 < len(limited) <= 11 and [event["count"] for event in limited][:4] == [1, 2, 4, 8]
    shown = [event for event in federation.of("refused") if event["code"] == "made-up"]
    assert len(shown) <= 40 and all("\x1b" not in event["found"] for event in shown)
    assert kind != "Refusal" or shown[0]["found"] == "\\x1b[2J\\u202e"


def test_what_is_over_its_rate_on_a_members_own_line_is_dropped_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A member's answer lies behind its 2,000 Hellos, and lockstep waits for it: a step took 615 ms in place of 27."""
    federation, read, sent_out = Federation(3, course=ToyCourse(1, 2), timing=HOURS), list[str](), list[int]()
    flush = Outbox.flush

    def decoding(data: bytes, *bounds: Any) -> Any:
        message = decode_to_server(data, *bounds)
        read.append(type(message).__name__)
        return message

    async def flushing(self: Outbox, socket: Any) -> None:
        sent_out.append(1)
        await flush(self, socket)

    async def scenario() -> None:
        async with federation.serving() as server:
            client = await computing(federation)
            monkeypatch.setattr(inbound, "decode_to_server", decoding)
            monkeypatch.setattr(Outbox, "flush", flushing)
            for _ in range(2000):
                client.send(client.protocol.hello())
            dropped = federation.server.story.dropped  # the slower the machine, the more are within the rate
            await federation.until(lambda: dropped[2] + read.count("Hello") >= 2000)
            assert dropped[2] > read.count("Hello") and len(sent_out) < 2000
            go_on(client)
            await server

    run(scenario)
    assert len(federation.published) == 1


@pytest.mark.parametrize("beginning", [b"\xdc\x00\x07\xa5hello", b"\x97\xd9\x05hello", b"\x97\xda\x00\x05hello"])
def test_a_longer_beginning_does_not_go_past_a_rate(beginning: bytes) -> None:
    federation = Federation(3)
    bounds = Bounds(ServerProtocol(federation.charter, federation.roster, federation.course))
    data = encode_message(Hello((PROTOCOL,), federation.charter.digest, bytes(32), 0, b"", 0))
    assert data.startswith(b"\x97\xa5hello") and isinstance(bounds.parse(data), Hello)
    with pytest.raises(MalformedMessage, match="Hello with a longer beginning"):
        bounds.parse(beginning + data[len(b"\x97\xa5hello") :])


def test_refusals_of_a_member_that_refuses_without_end_are_written_down_in_a_few_short_lines() -> None:
    """Within its rate it filled the operator's disk, with ten characters for each of its own."""
    federation = Federation(3)
    server = federation.make_server()
    for _ in range(3000):
        server._on_refusal(2, Refusal("made-up", "\U0010ffff" * 512, "\x1b" * 512, bytes(32)))
    server._on_refusal(1, Refusal("made-up", "found", "allowed", bytes(32)))
    of_two = [event for event in federation.of("refused") if event["client"] == "site-2"]
    assert len(of_two) == 100 + 5 and of_two[-1]["count"] == 2048  # of all members, and so is the next one's
    assert federation.events[-1]["count"] == 3001
    assert all(len(event["found"]) == len(event["allowed"]) == 512 for event in of_two)
    assert federation.events[-1]["client"] == "site-1"  # another's are said all the same


def test_flood_of_nonsense_is_not_answered_by_a_flood() -> None:
    federation = Federation(3, course=ToyCourse(1, 2), timing=HOURS)
    number = 3000

    async def scenario() -> None:
        async with federation.serving() as server:
            client = await computing(federation)
            for _ in range(number):
                client.send_raw(b"nonsense")
            await federation.until(lambda: federation.server.story.refusals[2] == number)
            answers = [message for message in client.received if isinstance(message, Refusal)]
            assert len(answers) < 120
            go_on(client)
            await server

    run(scenario)
    assert len(federation.of("refused")) <= 100 + 6
    assert len(federation.published) == 1


def test_honest_beats_after_a_pause_of_the_server_are_no_flood() -> None:
    federation = Federation(3)
    rates = inbound.Rates(1.0, lambda: 0.0)
    beats = [rates.over_limit(Beat) for _ in range(20)]  # ten seconds of them, at twice the rate asked for
    assert beats == [0] * 20 and rates.over_limit(Beat) == 1
    assert federation.timing.beat < 1  # toy clients beat more often, and are not over the limit either


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory of a process is read from Linux' /proc")
def test_silent_connections_hold_up_nobody_and_take_little_memory() -> None:
    federation, number = Federation(3, course=ToyCourse(2, 2), timing=HOURS), 200

    async def scenario() -> None:
        async with federation.serving() as server:
            client = await computing(federation)
            before = resident()
            host, port = federation.address.removeprefix("tcp://").split(":")
            silent = [await asyncio.open_connection(host, int(port)) for _ in range(number)]
            await asyncio.gather(*(reader.readexactly(10) for reader, _ in silent))  # each has been accepted
            grown = resident() - before
            go_on(client)
            await server
            for _, writer in silent:
                writer.close()
            assert grown < number * 160_000, grown  # 2,000 are so at most 320 MB; they take a tenth of that

    run(scenario)
    assert len(federation.published) == 2 and federation.of("epoch_given_up") == []


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# -- members that do not read ---------------------------------------------


def test_member_for_whom_too_much_waits_is_lost_and_told_all_again_after_its_hello(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "MOST_QUEUED_BYTES", 1 << 16)
    federation = Federation(3, course=ToyCourse(1, 2), timing=HOURS)
    word = encode_message(Refusal("made-up", "x" * 512, "y" * 512))

    async def scenario() -> None:
        async with federation.serving() as server:
            client = await computing(federation)
            peer = federation.server._peers[2]
            fits = [peer.put([peer.route, word], shared=False) for _ in range(100)]
            assert fits[0] and not fits[-1]
            federation.server._outbox.overflowed.append(2)
            lost = await federation.until_event("client_lost", client="site-2")
            assert "does not take" in lost["reason"] and not peer.queue
            await federation.until_event("client_joined", count=2, client="site-2")
            go_on(client)
            await server

    run(scenario)
    assert federation.of("epoch_given_up") == []


def test_certified_sums_that_are_kept_anyway_do_not_count_as_waiting() -> None:
    peer = peers.Peer(b"route", 0.0)
    frame = bytes(peers.MOST_QUEUED_BYTES // 2)
    assert all(peer.put([b"route", b"record", frame], shared=True) for _ in range(8))
    peer.clear()
    assert [peer.put([b"route", b"sum", frame], shared=False) for _ in range(2)] == [True, False]


def test_what_is_larger_than_the_bound_is_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record beyond it, or several sums that one who comes back lacks: else it is lost at each Hello, for ever."""
    monkeypatch.setattr(peers, "MOST_QUEUED_BYTES", 1 << 16)
    peer, frame = peers.Peer(b"route", 0.0), bytes(1 << 17)
    assert peer.put([b"route", b"record", frame], shared=False)
    assert not peer.put([b"route", b"another", frame], shared=False)
    federation = Federation(3)
    server = federation.make_server()
    server._peers[2] = peers.Peer(b"route", 0.0)
    server._perform(SendTo(2, Published(bytes(32), step, (0, 1, 2), bytes(16)), (frame,)) for step in range(9))
    assert not server._outbox.overflowed and len(server._peers[2].queue) == 9


def test_record_behind_a_welcome_is_not_too_much_however_large_its_sums_are() -> None:
    """A member that was to vote by it was lost, said Hello, was welcomed, and lost again, for ever."""
    peer = peers.Peer(b"route", 0.0)
    assert peer.put([b"route", bytes(200)], shared=False)
    record = Outgoing(b"record", (bytes(8),) * 2)
    record.size = 2 * peers.MOST_QUEUED_BYTES
    assert peer.put(record, shared=False) and not peer.put([b"route", b"another"], shared=False)


def test_sums_of_candidates_count_as_waiting_and_certified_ones_do_not() -> None:
    """Each member may bring a candidate of its own, and its frames are kept for nobody else."""
    federation = Federation(3, course=ToyCourse(1, 1, length=20_000))

    async def scenario() -> None:
        async with federation.serving() as server:
            federation.start_all()
            await server

    run(scenario)
    (kept,) = federation.server.protocol._journal._certified  # type: ignore[attr-defined]
    server = federation.make_server()
    queued = []
    for votes in (kept[0].votes, kept[0].votes[:1]):
        server._peers[2] = peers.Peer(b"route", 0.0)
        server._send(SendTo(2, msgspec.structs.replace(kept[0], votes=votes), kept[1]))
        queued.append(server._peers[2]._queued)
    size = sum(map(len, kept[1]))
    assert queued[0] < size < queued[1]


# -- who may speak ---------------------------------------------


def test_stranger_is_not_let_in() -> None:
    federation = Federation(3)

    async def scenario() -> None:
        async with federation.serving():
            stranger = await raw(federation, key=zmq.curve_keypair())
            await stranger.send(encode_message(Beat(b"", 0)))
            refused = await federation.until_event("refused", code="unknown-identity")
            assert refused["client"].startswith("key ")
            assert not await stranger.poll(300)
            stranger.close()
            member = await raw(federation, member=1)  # the control: the same with a member's key is answered
            await member.send(encode_message(Beat(b"", 0)))
            assert await member.poll(2000)
            member.close()

    run(scenario)


def test_member_of_another_charter_is_refused_and_changes_nothing() -> None:
    federation = Federation(3)
    other = msgspec.structs.replace(federation.charter, settings=b"\1" * 32)

    async def scenario() -> None:
        async with federation.serving():
            federation.start(0, charter=other)
            refused = await federation.until_event("refused", code="charter")
            assert refused["by"] == "server" and refused["client"] == "site-0"
            assert federation.of("client_joined") == []

    run(scenario)


def test_who_speaks_before_hello_or_on_another_connection_is_asked_for_one() -> None:
    federation = Federation(3, course=ToyCourse(1, 2))

    async def scenario() -> None:
        async with federation.serving() as server:
            client = await computing(federation)
            client._socket.disconnect(federation.address)
            client._socket.connect(federation.address)  # as after a break of the line: nobody says Hello by itself
            await federation.until(lambda: any(getattr(m, "code", "") == HelloNeeded.code for m in client.received))
            go_on(client)
            client.beating = True
            await server

    run(scenario)
    assert federation.of("epoch_given_up") == []


def test_of_all_that_waited_for_a_line_one_answer_asks_for_hello() -> None:
    """Beats wait where a line is down, and each was answered: once 48 refusals when a server was back."""
    federation = Federation(3, course=ToyCourse(1, 1))

    async def scenario() -> None:
        async with federation.serving() as server:
            client = ToyClient(federation, 0)
            federation.clients[0] = client
            client.begin(hello=False)
            for _ in range(40):
                client.send(Beat(b"", 0))
            federation.start(1)
            federation.start(2)
            await server
            asked = [one for one in client.received if isinstance(one, Refusal) and one.code == "hello-needed"]
            assert 1 <= len(asked) <= 3
            assert not federation.of("rate_limited") or {one["kind"] for one in federation.of("rate_limited")} == {
                "Beat"
            }

    run(scenario)
