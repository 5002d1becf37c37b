"""Vectors larger than a piece: cut on the wire, spooled, and to the machines as if they had come at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from codream_clients.freight import Freight
from codream_protocols.client import Send
from codream_protocols.durable import FileSpool
from codream_protocols.errors import VectorRefused
from codream_protocols.messages import Ask, EpochRecord, MaskedInput, Parcel, Piece, Published, encode_message
from codream_protocols.parcels import WINDOW, Incoming, Outgoing, parcel_name
from codream_protocols.server import Phase
from codream_server.arrivals import Arrivals
from codream_server.exhibition import Exhibition
from codream_server.inbound import Bounds, Rates
from codream_server.patience import RateLimit
from codream_server.peers import Peer
from codream_server.turns import GRACE, LONGEST, MOST_TURNS, Turns
from secure_codream.simulation.sockets import Network

PIECE = 4096
LENGTH = 4000  # 9 to 10 kB: 3 pieces

Tamper = Callable[[int, list[bytes]], list[list[bytes]]]


def over_network(net: Network, *, piece_bytes: int = PIECE, server: dict[str, Any] | None = None) -> None:
    async def scenario() -> None:
        async with net.serving(net.make_server(piece_bytes=piece_bytes, **(server or {}))) as serving:
            tasks = net.start_all(piece_bytes=piece_bytes)
            await serving
            await asyncio.gather(*tasks)

    net.run(scenario)


def arriving(folder: Path, frames: tuple[bytes, ...] = (bytes(range(256)) * 40,)) -> tuple[Outgoing, Incoming]:
    """A parcel of three pieces, at both ends."""
    out = Outgoing(b"message", frames, PIECE)
    return out, Incoming(b"message", [len(frame) for frame in frames], FileSpool(folder), PIECE)


def data_of(out: Outgoing, number: int) -> bytes:
    return out.piece(number)[1]


@pytest.mark.parametrize(("mode", "piece"), [("lockstep", PIECE), ("resilient", PIECE), ("lockstep", 1 << 19)])
def test_vectors_go_in_pieces_and_sums_are_the_same(mode: Any, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces larger than any message, too: what the line adds to them must fit through the socket."""
    taken: list[int] = []
    take = Incoming.take

    def watched(self: Incoming, number: int, data: bytes) -> bool:
        assert len(data) <= piece
        taken.append(number)
        return take(self, number, data)

    monkeypatch.setattr(Incoming, "take", watched)
    net = Network(4, mode=mode, length=LENGTH * piece // PIECE)
    over_network(net, piece_bytes=piece)
    assert net.wrong_sums() == [] and len(net.published) == 1 and not net.refusals()
    assert len(taken) == 2 * 2 * 4 * 3  # both ways, two steps, four members, three pieces


def test_parcels_that_come_whole_are_as_many_as_there_are_steps() -> None:
    """Fast steps would be over the rate of what is announced, and each wait until its member is asked again."""
    net = Network(3, length=LENGTH, steps=4)

    async def scenario() -> None:
        server = net.make_server(piece_bytes=PIECE)
        for rates in server._rates:
            rates.kinds[Parcel] = RateLimit(2, 0.0)
        async with net.serving(server) as serving:
            tasks = net.start_all(piece_bytes=PIECE)
            await serving
            await asyncio.gather(*tasks)

    net.run(scenario, seconds=20)
    assert net.wrong_sums() == [] and len(net.published) == 1 and not net.of("rate_limited")


def test_what_fits_into_a_piece_goes_as_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Outgoing, "__init__", None)
    net = Network(3, length=1000)
    over_network(net)
    assert net.wrong_sums() == [] and len(net.published) == 1


def test_pieces_count_in_order_once_and_only_where_they_were_asked_for(tmp_path: Path) -> None:
    out, parcel = arriving(tmp_path)
    assert not parcel.take(0, data_of(out, 0))  # nothing was asked for
    assert [ask.piece for ask in parcel.asks()] == [0, 1, 2] and parcel.asks() == []
    assert not parcel.take(1, data_of(out, 1))  # out of order
    assert parcel.take(0, data_of(out, 0)) and not parcel.take(0, data_of(out, 0))  # twice
    with pytest.raises(VectorRefused, match="4096 bytes"):
        parcel.take(1, bytes(PIECE - 1))
    assert parcel.take(1, data_of(out, 1)) and parcel.take(2, data_of(out, 2)) and parcel.is_whole
    assert not parcel.take(3, b"") and parcel.asks() == [Ask(parcel.name, 3)]
    assert bytes(parcel.frames()[0]) == bytes(range(256)) * 40
    assert list(tmp_path.iterdir()) == []


def test_what_was_asked_for_and_lost_is_asked_for_again_and_may_still_come(tmp_path: Path) -> None:
    out, parcel = arriving(tmp_path)
    parcel.asks()
    assert parcel.take(0, data_of(out, 0))
    parcel.ask_again()
    assert parcel.take(1, data_of(out, 1))  # it was only late
    assert [ask.piece for ask in parcel.asks()] == [2]


def test_no_more_than_a_window_is_asked_for(tmp_path: Path) -> None:
    _, parcel = arriving(tmp_path, (bytes(PIECE * 50),))
    assert len(parcel.asks()) == WINDOW


def test_frames_are_cut_anew_where_they_were_joined(tmp_path: Path) -> None:
    frames = (b"a" * 5000, b"", b"b" * 3, b"c" * 4000)
    out, parcel = arriving(tmp_path, frames)
    parcel.asks()
    for number in range(out.pieces):
        assert parcel.take(number, data_of(out, number))
    assert tuple(map(bytes, parcel.frames())) == frames


def test_another_total_is_another_parcel() -> None:
    names = {parcel_name(b"message", sizes) for sizes in ((10,), (11,), (5, 5), (10, 0))}
    assert len(names | {parcel_name(b"other", (10,))}) == 5


# -- whose turn it is ---------------------------------------------


def test_so_many_have_a_turn_at_once_and_each_gives_it_back() -> None:
    turns, wanting = Turns[int](), list(range(10))
    assert turns.holders(wanting, 0.0) == wanting[:MOST_TURNS]
    assert turns.holders(wanting[1:], 1.0) == wanting[1 : MOST_TURNS + 1]


def test_who_drips_stands_behind_all_that_wait_and_keeps_its_turn_if_nobody_does() -> None:
    turns, wanting = Turns[int](), list(range(10))
    held = turns.holders(wanting, 0.0)
    for second in range(int(GRACE) + 1):
        turns.moved(held[0], second)  # a piece a second is fast enough
    assert turns.holders(wanting, GRACE + 1) == [0, *wanting[MOST_TURNS : 2 * MOST_TURNS - 1]]
    alone = Turns[int]()
    assert alone.holders([1, 2], 0.0) == alone.holders([1, 2], 1000.0) == [1, 2]


def test_many_that_drip_do_not_keep_the_others_out() -> None:
    """Sixty colluders send nothing; every honest member has its turn within a few seconds for each four of them."""
    turns, wanting, served, now = Turns[int](), set(range(80)), set[int](), 0.0
    while not set(range(60, 80)) <= served:
        now += 1.0
        for who in turns.holders(sorted(wanting), now):
            if who >= 60:
                served.add(who)
                wanting.discard(who)
    assert now <= (60 / MOST_TURNS + 2) * (GRACE + 1)


def test_nobody_holds_its_turn_for_long_while_others_wait_whatever_it_sends() -> None:
    """A member may ask for the same piece ten times a second, or announce ever new parcels and send their first one."""
    turns, wanting, held = Turns[int](), list(range(MOST_TURNS + 1)), list[int]()
    for second in range(int(LONGEST) + 2):
        held = turns.holders(wanting, float(second))
        for who in held * 10:
            turns.moved(who, float(second))
    assert MOST_TURNS in held


def test_who_is_waited_for_is_found_once_however_many_vectors_arrive(tmp_path: Path) -> None:
    """It is looked at with each message, a colluder's too: the members squared would be the work of each."""
    asked, members = list[int](), range(5)

    def waiting_for() -> tuple[int, ...]:
        asked.append(1)
        return tuple(members)

    charter = SimpleNamespace(aggregation=SimpleNamespace(mode="resilient"))
    running: dict[str, Any] = {"plan": SimpleNamespace(digest=bytes(32)), "step": 0, "phase": Phase.COLLECTING}
    protocol = SimpleNamespace(charter=charter, waiting_for=waiting_for, **running)
    bounds = Bounds(cast(Any, protocol))
    told = MaskedInput(bytes(32), 0, bytes(32), bytes(16), b"")
    bounds.told_of = lambda data, sizes: told  # type: ignore[method-assign]
    arrivals = Arrivals(bounds, {one: Peer(b"", 0.0) for one in members}, lambda: FileSpool(tmp_path), PIECE)
    for one in members:
        assert arrivals.receive(one, Parcel((9000,)), (b"message",), 0.0) is None
    asked.clear()
    assert {member for member, _ in arrivals.asks(0.0)} == set(members[:MOST_TURNS]) and len(asked) == 1
    protocol.phase = Phase.UNMASKING
    assert [ask.piece for _, ask in arrivals.asks(0.0)] == [3] * len(members)  # none is needed any more
    assert arrivals._turns._line == []  # the next step's turns begin anew


def test_record_that_comes_in_pieces_is_replayed_no_more_often_than_one_that_comes_at_once() -> None:
    rates, record = Rates(1.0, lambda: 0.0), EpochRecord(cast(Any, None), (), b"", (), ())
    assert [rates.over_limit(rates.counts_as(record, (b"sum",))) for _ in range(11)] == [0] * 10 + [1]
    assert rates.counts_as(record, ()) is None  # its frames were not asked for: it costs nothing


def test_vector_that_is_not_asked_for_is_not_exhibited() -> None:
    """Its message is handed on without a frame: one of a member that is gone from the step, or comes too late."""
    plan = SimpleNamespace(digest=bytes(32), offer=SimpleNamespace(epoch=1))
    exhibition = Exhibition(cast(Any, SimpleNamespace(plan=plan)), (1, 0))
    exhibition.saw(0, MaskedInput(bytes(32), 0, bytes(32), bytes(16), b""), ())
    assert exhibition.masked is None


# -- on the wire ---------------------------------------------


class Cutting:
    """A client that announces its vectors, and answers what it is asked as it likes."""

    def __init__(self, answer: Callable[[Outgoing, Ask], list[list[bytes]]]) -> None:
        self.answer = answer
        self.sending: list[asyncio.Future[Any]] = []

    def freight(self, runner: Any) -> None:
        asked = runner._freight.asked

        def lying(ask: Ask) -> list[bytes]:
            parcel = runner._freight._sent.get(ask.parcel)
            if parcel is not None and ask.piece < parcel.pieces:
                for parts in self.answer(parcel, ask):
                    self.sending.append(asyncio.ensure_future(runner._line.socket.send_multipart(parts)))
                return []
            found: list[bytes] = asked(ask)
            return found

        runner._freight.asked = lying


def out_of_order_and_twice(parcel: Outgoing, ask: Ask) -> list[list[bytes]]:
    later = [] if ask.piece else [parcel.piece(2), parcel.piece(1)]
    return [*later, parcel.piece(ask.piece), parcel.piece(ask.piece)]


def of_other_sizes(parcel: Outgoing, ask: Ask) -> list[list[bytes]]:
    head, data = parcel.piece(ask.piece)
    return [[head, data + b"x"], [head], [head, data, data], [head, data]]


@pytest.mark.parametrize("answer", [out_of_order_and_twice, of_other_sizes])
def test_pieces_that_do_not_fit_change_nothing(answer: Any) -> None:
    net = Network(4, length=LENGTH)

    async def scenario() -> None:
        async with net.serving(net.make_server(piece_bytes=PIECE)) as serving:
            tasks = net.start_all(piece_bytes=PIECE)
            Cutting(answer).freight(net.runners[1])
            await serving
            await asyncio.gather(*tasks)

    net.run(scenario)
    assert net.wrong_sums() == [] and len(net.published) == 1
    assert {code for _, code in net.refusals()} <= {VectorRefused.code}


@pytest.mark.parametrize("sizes", [(1,), (1 << 28,), (PIECE, PIECE), (PIECE,) * 3])
def test_parcel_of_other_sizes_than_the_plans_is_refused_before_anything_is_kept(sizes: tuple[int, ...]) -> None:
    net = Network(4, length=LENGTH)

    def lying(send: Send) -> list[list[bytes]]:
        data = encode_message(send.message)
        if not isinstance(send.message, MaskedInput):
            return [[data, *send.frames]]
        return [[encode_message(Parcel(sizes)), data], [encode_message(Parcel(sizes))], [data, *send.frames]]

    async def scenario() -> None:
        async with net.serving(net.make_server(piece_bytes=1 << 20)) as serving:
            tasks = net.start_all()
            await net.stop_clients([1])
            net.start(1, tamper=lying)
            await serving
            await asyncio.gather(*(net.tasks[number] for number in range(4)))
            assert tasks

    net.run(scenario)
    assert net.wrong_sums() == [] and sum(net.refusals().values()) >= 4, net.refusals()


def test_connection_that_breaks_in_the_middle_goes_on_where_it_was() -> None:
    """Pieces are lost on the way: what is there is not asked for again."""
    net, asked, lost, greeting = Network(3, length=LENGTH, steps=1), list[int](), list[int](), list[Any]()

    def losing(parcel: Outgoing, ask: Ask) -> list[list[bytes]]:
        asked.append(ask.piece)
        if ask.piece == 1 and not lost:
            lost.append(1)
            runner = net.runners[1]
            greeting.append(asyncio.ensure_future(runner._hello()))
            return []
        return [parcel.piece(ask.piece)]

    async def scenario() -> None:
        async with net.serving(net.make_server(piece_bytes=PIECE)) as serving:
            tasks = net.start_all(piece_bytes=PIECE)
            Cutting(losing).freight(net.runners[1])
            await serving
            await asyncio.gather(*tasks)

    net.run(scenario)
    assert net.wrong_sums() == [] and len(net.published) == 1
    assert asked == [0, 1, 2, 1, 2]


def test_full_disk_of_a_server_is_said_and_the_vector_comes_once_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    write, failed = FileSpool.write, list[int]()

    def full(self: FileSpool, piece: bytes) -> None:
        if len(failed) < 2:
            failed.append(1)
            raise OSError(28, "No space left on device")
        write(self, piece)

    monkeypatch.setattr(FileSpool, "write", full)
    net = Network(3, length=LENGTH, steps=1)
    over_network(net)
    assert net.wrong_sums() == [] and len(net.published) == 1
    assert net.of("storage_failed", what="spool")


def test_full_disk_of_a_client_is_told_as_nothing_needed_so_that_the_sum_comes_again() -> None:
    class Full(FileSpool):
        def write(self, piece: bytes | memoryview) -> None:
            raise OSError(28, "No space left on device")

    freight = Freight(lambda: Full(None), PIECE, lambda what, percent: None)
    data, sizes = b"message", (9000,)
    name = parcel_name(data, sizes)
    message = Published(bytes(32), 0, (0, 1, 2), bytes(16))
    assert [ask.piece for ask in freight.told_of(message, data, sizes, wanted=True)] == [0, 1, 2]
    with pytest.raises(OSError, match="No space"):
        freight.take(Piece(name, 0), [bytes(PIECE)])
    assert freight.failed() == [Ask(name, 3)] and freight.stalled() == []


def test_piece_of_a_step_that_is_over_is_of_no_use_and_its_file_is_let_go() -> None:
    net = Network(6, mode="resilient", length=LENGTH, steps=1, colluders=1)
    held: list[Outgoing] = []

    def hold(parcel: Outgoing, ask: Ask) -> list[list[bytes]]:
        held.append(parcel)
        return []

    async def scenario() -> None:
        server = net.make_server(piece_bytes=PIECE)
        async with net.serving(server) as serving:
            net.start_all(piece_bytes=PIECE)
            Cutting(hold).freight(net.runners[5])
            await asyncio.wait_for(_until(lambda: held), 20)
            server._lose(5, server._peers[5], "it drips")
            await net.happens("step_finished")
            await asyncio.wait_for(_until(lambda: not server._arrivals._arriving), 10)
            for number in range(3):
                await net.runners[5]._line.socket.send_multipart(held[0].piece(number))
            await asyncio.wait_for(_until(lambda: net.published), 20)
            serving.cancel()

    net.run(scenario)
    assert net.wrong_sums() == [] and isinstance(net.sums[0].finished.survivors, tuple)
    assert 5 not in net.sums[0].finished.survivors


async def _until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_a_piece_is_a_message_with_one_frame() -> None:
    out = Outgoing(b"message", (bytes(9000),), PIECE)
    head, data = out.piece(2)
    assert head == encode_message(Piece(out.name, 2)) and len(data) == 9000 - 2 * PIECE
