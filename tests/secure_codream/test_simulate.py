"""Virtual clients: the same numbers from every engine, honest clocks, and a lost worker is a dropout."""

from __future__ import annotations

import io
import os
import runpy
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from codream_protocols.charter import Aggregation, Offer
from codream_protocols.client import ClientProtocol, Send
from codream_protocols.errors import AggregationFailed, BadSignature, LocalProtocolError
from codream_protocols.keyschedule import agree, public_key
from codream_protocols.messages import (
    Advertisement,
    Advertisements,
    Invitation,
    MaskedInput,
    OpenedStarts,
    Seals,
    SurvivorSignature,
    UnmaskShares,
)
from codream_protocols.resilient import make_keys
from codream_protocols.server import StepFinished
from secure_codream.cli import app
from secure_codream.simulation.rings import small_rings
from secure_codream.simulation.virtual import host as host_module
from secure_codream.simulation.virtual.engines import Lost, Spared, errands, shares
from secure_codream.simulation.virtual.host import Answer, Letter, VirtualHost
from secure_codream.simulation.virtual.network import Clocks, Network
from secure_codream.simulation.virtual.processes import LocalEngine
from secure_codream.simulation.virtual.remembered import Remembered
from secure_codream.simulation.virtual.run import Outcome, Run
from secure_codream.simulation.virtual.scene import BLOCK, Scene
from secure_codream.simulation.virtual.view import SimulationView, degree_line
from secure_codream.simulation.virtual.work import Work
from tests.pages import ROOT


class Inline:
    """An engine within the test's process; `lose` takes a worker away before a letter of this number."""

    def __init__(self, scene: Scene, workers: int = 2, lose: dict[int, int] | None = None) -> None:
        self._hosts = {share: VirtualHost(scene, range(*share)) for share in shares(scene.members, workers)}
        self._lose, self._count = lose or {}, 0

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *details: object) -> None:
        pass

    def exchange(self, letters: Sequence[Letter]) -> Iterator[Answer | Lost]:
        self._count += 1
        if (worker := self._lose.get(self._count)) is not None:
            share = list(self._hosts)[worker]
            del self._hosts[share]
            yield Lost(tuple(range(*share)), "lost by the test")
        for share, host in self._hosts.items():
            for errand in errands(letters, *share):
                yield from host.answer(errand)

    def spared(self) -> Spared:
        return sum((Spared.by(host.remembered) for host in self._hosts.values()), start=Spared())


def scene(members: int = 6, *, mode: Any = "resilient", **options: Any) -> Scene:
    return Scene(members=members, dimension=50, steps=2, aggregation=Aggregation(mode=mode), **options)


def run(of: Scene, network: Network | None = None, **options: Any) -> tuple[Outcome, Run]:
    with Inline(of, **options) as engine:
        made = Run(of, engine, network or Network())
        return made.epoch(), made


def numbers(outcome: Outcome) -> tuple[Any, ...]:
    return outcome.head, [(step.digest, step.survivors) for step in outcome.steps]


def _plain(remembered: Remembered, **options: Any) -> ClientProtocol:
    return ClientProtocol(**options)


@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
def test_processes_workers_and_no_memory_at_all_give_the_same_numbers(
    mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = scene(mode=mode)
    with LocalEngine(of, 2) as engine:
        found = Run(of, engine, Network()).epoch()
    inline, _ = run(of, workers=1)
    assert numbers(found) == numbers(inline)
    assert inline.agreements_spared > 0 and inline.alike_spared > 0

    monkeypatch.setattr(host_module, "VirtualClient", _plain)
    without, _ = run(of)
    assert numbers(without) == numbers(inline) and without.alike_spared == without.agreements_spared == 0


def test_on_a_ring_too_what_is_remembered_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    of = scene(14, drop=0.1, seed=3)
    of = msgspec.structs.replace(of, aggregation=Aggregation(mode="resilient", losses="allow"))
    with small_rings(8, 5):
        found, _ = run(of)
        monkeypatch.setattr(host_module, "VirtualClient", _plain)
        without, _ = run(of)
    assert numbers(found) == numbers(without) and found.alike_spared > without.alike_spared == 0
    assert any(step.survivors < 14 for step in found.steps)


@pytest.mark.parametrize("drop", [0.0, 0.2])
def test_the_sums_are_of_the_inputs_of_who_was_not_silent(drop: float, monkeypatch: pytest.MonkeyPatch) -> None:
    of = scene(9, drop=drop, seed=3)
    found: list[Any] = []
    finish = Run._finish

    def noted(self: Run, step: StepFinished) -> None:
        found.append(step)
        finish(self, step)

    monkeypatch.setattr(Run, "_finish", noted)
    outcome, _ = run(of)
    assert len(found) == of.steps and (drop == 0 or any(step.survivors < 9 for step in outcome.steps))
    for step in found:
        assert not of.silent(step.step) & set(step.survivors)
        expected = sum(of.inputs(member, step.step)[BLOCK].astype(np.float64) for member in step.survivors)
        np.testing.assert_allclose(step.sums[BLOCK], expected, atol=9 * 2.0**-14)


def test_on_a_ring_it_is_said_how_many_neighbours_each_has() -> None:
    of = Scene(members=201, dimension=1, steps=1, aggregation=Aggregation(mode="resilient", losses="allow"))
    degree = of.plan().degree
    assert degree is not None and scene().plan().degree is None
    said = degree_line(of, degree)
    assert f"each of 201 members has {degree.neighbours} neighbours, of whom {degree.threshold} open" in said
    assert "with 1 colluder," in said and "2^-40" in said and "2^128" in said


@pytest.mark.exhaustive
def test_members_with_numbers_of_four_bytes_sum_on_a_ring_as_deployed() -> None:
    of = Scene(members=260, dimension=10, steps=1, aggregation=Aggregation(mode="resilient", losses="allow"), drop=0.03)
    outcome, _ = run(of, workers=1)
    assert outcome.steps[0].survivors == 260 - len(of.silent(0)) < 260


def test_sampled_machines_of_a_large_set_up_see_a_sum_of_all_and_its_certificate(tmp_path: Path) -> None:
    """The others are played cheaply, and the server and the machines take what they say for what machines say."""
    benchmark = runpy.run_path(str(ROOT / "benchmarks" / "large_set_up.py"))
    of = Scene(members=30, dimension=50, steps=1, aggregation=Aggregation(mode="resilient", losses="allow"))
    cast = benchmark["Cast"](of, (5, 17), (0, 9, 28))
    here, there = Pipe()
    members = threading.Thread(target=benchmark["play"], args=(cast, there), daemon=True)
    with small_rings(8, 5):
        members.start()
        found = list(benchmark["Epoch"](cast, tmp_path, here).run())
        here.send_bytes(b"")
        assert here.recv() == 2
    members.join(10)
    (summed,) = [one for one in found if "inputs in the sum" in one]
    assert summed["inputs in the sum"] == 27 and summed["off by rounding"] < 0.01
    assert {"certified": 1} in found


def test_a_lost_worker_is_a_dropout_of_its_clients_and_lockstep_has_none() -> None:
    of = msgspec.structs.replace(scene(12), steps=3)
    outcome, _ = run(of, workers=4, lose={5: 3})
    assert outcome.lost == 3 and outcome.steps[-1].survivors == 9
    with pytest.raises(AggregationFailed):
        run(scene(12, mode="lockstep"), workers=4, lose={5: 3})


@pytest.mark.parametrize("losses", ["blocks", "allow"])
def test_advice_after_too_many_silences_names_no_flag_that_is_set(losses: Any) -> None:
    of = msgspec.structs.replace(scene(12, drop=0.9), aggregation=Aggregation(mode="resilient", losses=losses))
    with pytest.raises(AggregationFailed, match=r"let fewer fall silent \(--drop\)") as refused:
        run(of)
    assert ("--losses allow" in str(refused.value)) is (losses == "blocks")


def test_a_worker_that_is_killed_is_noticed() -> None:
    with LocalEngine(scene(6), 2) as engine:
        first, _ = engine._workers.values()
        os.kill(first[0].pid, signal.SIGKILL)
        found = list(engine.exchange([Letter([*range(6)], None)]))
    (lost,) = [one for one in found if isinstance(one, Lost)]
    assert lost.members == (0, 1, 2) and "-9" in lost.reason
    assert sorted(one.member for one in found if isinstance(one, Answer)) == [3, 4, 5]


def test_ray_gives_the_numbers_of_this_machine() -> None:
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    from secure_codream.simulation.virtual.on_ray import RayEngine

    of = scene(6, drop=0.1, seed=1)
    with RayEngine(of, 2) as engine:
        found = Run(of, engine, Network()).epoch()
        assert numbers(found) == numbers(run(of)[0])
        engine._ray.kill(engine._workers[0].actor)
        lost = [one for one in engine.exchange([Letter([*range(6)], None)]) if isinstance(one, Lost)]
    assert [one.members for one in lost] == [(0, 1, 2)]


def test_what_is_remembered_is_only_what_was_computed_of_the_very_same() -> None:
    """Bytes that differ, and other objects, are computed anew; what raises is raised again; agreements are X25519's."""
    remembered, same, other = Remembered(), (1, 2), (1, 3)
    made: list[object] = []

    def compute(on: object) -> int:
        made.append(on)
        return len(made)

    for on in ((b"a", same), (bytes(bytearray(b"a")), same), (b"b", same), (b"a", other), (b"a", same)):
        remembered.once("what", on, lambda on=on: compute(on))  # type: ignore[misc]
    remembered.once("else", (b"a", same), lambda: compute("else"))
    assert made == [(b"a", same), (b"b", same), (b"a", other), "else"] and remembered.alike == 2
    for length in ("10000", "10000", "10001"):
        remembered.once("length", (int(length),), lambda: compute(length))  # noqa: B023 - at once
    assert made[4:] == ["10000", "10001"] and remembered.alike == 3
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            remembered.once("fails", (), lambda: 1 // 0)
    mine, theirs = bytes(range(32)), bytes(range(1, 33))
    for _ in range(2):  # their owners are played elsewhere, as far as is known: nothing is kept for them
        assert remembered.agree(mine, public_key(theirs)) == agree(mine, public_key(theirs))
    assert remembered.agreements < 1 and not remembered._agreed
    mask_keys = bytes(32) + public_key(theirs)
    remembered.played(Advertisement(b"", 0, public_key(mine), b"", b"", b"", mask_keys, b"", bytes(64)))
    agreed = remembered.agree(mine, public_key(theirs))
    assert agreed == remembered.agree(theirs, public_key(mine)) == agree(mine, public_key(theirs))
    assert remembered.agreements == 1 and remembered.seconds > 0 and not remembered._agreed


def test_a_false_signature_is_refused_by_every_virtual_client_of_a_process() -> None:
    of = scene()
    host = VirtualHost(of, range(3))
    clients = [host._clients[member] for member in range(3)]
    offer = Offer(0, clients[0].charter.everybody, clients[0].head)
    plan = clients[0].history.plan(offer)
    items: list[Advertisement] = []
    for member in range(3):
        (sent,) = clients[member].receive(Invitation(offer))
        assert isinstance(sent, Send) and isinstance(sent.message, Advertisement)
        items.append(sent.message)
    for member in range(3, 6):
        keys = make_keys(plan, member, of.random(member))
        items.append(keys.advertise(of.signer(member)))
    items[5] = msgspec.structs.replace(items[5], signature=bytes(64))
    shown = Advertisements(plan.digest, tuple(items))
    for client in clients:
        with pytest.raises(BadSignature):
            client.receive(shown)


def test_the_virtual_network_counts_latency_and_each_clients_own_link() -> None:
    clocks = Clocks(Network(latency=0.1, bandwidth=100.0), 2)
    clocks.told(0, 50)  # there at 0.6
    clocks.told(0, 50)  # behind it on the same link: there at 1.1
    clocks.told(1, 50)
    for member in (0, 1):
        clocks.computed(member, 2.0)
        clocks.answered(member, 10)  # of member 0: 1.1 + 2 + 0.1 + 0.1, of member 1: 0.6 + ...
    clocks.worked(0.5)
    clocks.goes_on()
    assert clocks.now == pytest.approx(3.3)  # the work was done while the last was awaited
    clocks.worked(0.25)
    clocks.goes_on()
    assert clocks.now == pytest.approx(3.55)


def test_a_slower_network_predicts_longer_rounds() -> None:
    near, far = (run(scene(), Network(latency))[0] for latency in (0.0, 1.0))
    # A set-up is four ways each way, and so is a resilient step: vector, survivors and shares, then the sum.
    assert far.predicted > near.predicted + 8 and far.steps[1].predicted > near.steps[1].predicted + 3


def test_progress_says_how_long_the_rest_takes() -> None:
    written = io.StringIO()
    times = iter((0.0, 0.0, 20.0, 21.0))
    with SimulationView(Console(file=written, width=100), clock=lambda: next(times)) as view:
        for part in (0.0, 0.01, 0.25, 0.26):
            view.feed("step 1 of 2", part)
    first, second = written.getvalue().splitlines()  # no line for each answer
    assert "time left unknown" in first and "25% done, about 60 s left" in second


def test_of_less_than_a_twentieth_of_the_work_nothing_follows_for_the_rest() -> None:
    written = io.StringIO()
    times = iter((0.0, 20.0))
    with SimulationView(Console(file=written, width=100), clock=lambda: next(times)) as view:
        for part in (0.0, 0.049):
            view.feed("set-up", part)
    assert "set-up: 5% done, time left unknown" in written.getvalue()


@pytest.mark.parametrize(
    ("mode", "members", "drop", "on_ring"),
    [("lockstep", 6, 0.0, False), ("resilient", 6, 0.0, False), ("resilient", 14, 0.1, True)],
)
def test_the_work_is_done_when_the_last_member_has_voted_and_not_before(
    mode: Any, members: int, drop: float, on_ring: bool
) -> None:
    of = scene(members, mode=mode, drop=drop, seed=3)
    if on_ring:
        of = msgspec.structs.replace(of, aggregation=Aggregation(mode=mode, losses="allow"))
    parts: list[float] = []
    with small_rings(8, 5) if on_ring else nullcontext(), Inline(of) as engine:
        Run(of, engine, Network(), lambda phase, part: parts.append(part)).epoch()
    voted = next(number for number, part in enumerate(parts) if part == pytest.approx(1))
    assert parts == sorted(parts) and parts[voted - 1] < 1 - 1e-4
    assert voted == len(parts) - 1 - 2 * of.members  # after the votes each is shown the certificate and welcomed


def test_the_set_up_of_many_members_counts_for_what_it_takes() -> None:
    # Measured at 10,000 members, 226 neighbours: 338 s the set-up, 258 the first step, 1,232 in all (decision 14).
    of = Scene(members=10_000, dimension=10_000, steps=10, aggregation=Aggregation(mode="resilient"))
    work = Work(of, 226)
    set_up = work.of(Seals)
    first = work.of(OpenedStarts) + sum(work.of(kind) for kind in (MaskedInput, SurvivorSignature, UnmaskShares))
    assert of.members * set_up / work.total == pytest.approx(338 / 1232, abs=0.05)
    assert of.members * first / work.total == pytest.approx(258 / 1232, abs=0.08)
    longer = Work(msgspec.structs.replace(of, dimension=1_000_000), 226)
    assert longer.total > 3 * work.total and longer.of(Seals) == set_up


def test_the_command_prints_one_object_and_refuses_silences_in_lockstep() -> None:
    runner = CliRunner()
    flags = ["simulate", "--members", "6", "--dimension", "20", "--steps", "1", "--workers", "1"]
    found = runner.invoke(app, [*flags, "--json"])
    told = msgspec.json.decode(found.stdout)
    assert told["engine"] == "local" and len(told["outcome"]["steps"]) == 1 and told["outcome"]["lost"] == 0
    assert told["scene"]["aggregation"]["losses"] == "blocks" and told["scene"]["aggregation"]["colluders"] == 1
    refused = runner.invoke(app, [*flags, "--mode", "lockstep", "--drop", "0.1"])
    assert refused.exit_code == 2 and "resilient" in refused.output
    for wrong in ("--seed", "--latency", "--bandwidth"):
        assert runner.invoke(app, [*flags, wrong, "9" * 30]).exit_code == 2
    with pytest.raises(LocalProtocolError, match="100001 members"):
        scene(100_001).plan()
