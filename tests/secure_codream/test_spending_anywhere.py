"""No sequence of federations, crashes, folders, copies and grown data has an image cost more than its budget.

A site with a few images and two places for ledgers. Whoever runs it means no harm, and has forgotten what ran where:
names any place, trains on any images, names earlier parts or does not, moves, deletes and puts back ledgers with their
anchors. Two federations train at the client, one of them beside the other; a third goes by DP-SGD through the ring, and
has a charter that follows it. Trainings are made up, and so is the time that a disk takes; ledger, index and what opens
them are real. `Overspent` is raised when what others have seen of one image has cost more than the budget; each control
takes one defence away and must find it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from codream_clients.data.datasets import LabelledImages
from codream_clients.privacy import ledger_entries
from codream_clients.privacy.accounting import SampledGaussian, epsilon_of
from codream_clients.privacy.index import Index
from codream_clients.privacy.ledger import Account, Budget, Ledger, LedgerError, Seen
from codream_clients.privacy.ring_plan import STEP
from secure_codream.configuration import limits
from secure_codream.configuration.client import BudgetTable, ClientConfig
from secure_codream.configuration.federation import FederationConfig
from secure_codream.configuration.limits import LedgerVanishes, open_ledger
from tests.clients.test_ledger import settings_for

BUDGET = Budget(epsilon=4.0, delta=1e-5, accountant="rdp")
TRAINING = (SampledGaussian(4.0, 1.0, 1, "warm-up"), SampledGaussian(1.6, 1.0, 1, "round 1"))
IN_THE_RING = SampledGaussian(1.7, 0.9, 1, STEP, discrete=True)
CHOICES = [(0,), (1,), (0, 1)]
"""Of images: few, so that the same come again, and others that share some with them."""
DATA = LabelledImages(np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2), np.zeros(2, np.int64), 2)
ACTS_EACH = 10
IN_MEMORY = Path("/dev/shm")


class Overspent(AssertionError):
    """What others have seen of one image has cost more than the budget."""


@dataclass(frozen=True)
class Plan:
    """What a federation says that it will charge, one at least and a spare one."""

    charges: tuple[SampledGaussian, ...]
    budget: Budget = BUDGET
    spare: int = 0
    judgements: int = 0
    charter: bytes = b""


@cache
def federation(name: str) -> FederationConfig:
    tables: dict[str, Any] = {"task": {"shape": (1, 2, 2), "classes": 2}}
    if not name.startswith("ring"):
        return FederationConfig.model_validate({**tables, "federation": {"name": name}, "privacy": {"epsilon": 4.0}})
    if name == "ring, after it":
        tables["predecessor"] = {"charter": "0" * 64, "head": "1" * 64, "certified": 1}
    return FederationConfig.model_validate({**tables, "federation": {"name": "ring"}})


@dataclass(frozen=True)
class Run:
    """A federation at the site: where, on which images, how much; at which charge it is killed, or over early."""

    place: int
    name: str
    images: tuple[int, ...]
    charges: int
    names_part: bool
    stops_at: int | None
    killed: bool


RUNS = st.builds(
    Run,
    place=st.sampled_from([0, 0, 0, 1]),
    name=st.sampled_from(["lungs", "hearts", "ring", "ring, after it"]),
    images=st.sampled_from(CHOICES),
    charges=st.integers(1, 2),
    names_part=st.sampled_from([False, False, True]),
    stops_at=st.sampled_from([None, None, 0, 1]),
    killed=st.booleans(),
)
ACTS = [*["runs"] * 4, *["is put back"] * 4, "is deleted"]


class Site(RuleBasedStateMachine):
    """See the module."""

    index_class: type[Index] = Index
    writes_releases = True
    charges_steps_anew = True
    charges_before = True

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=IN_MEMORY if IN_MEMORY.is_dir() else None))
        self.index = self.index_class(self.folder / "state" / "ledgers.sqlite")
        self.seen: dict[int, list[SampledGaussian]] = {image: [] for image in range(len(DATA))}
        self.copies: list[dict[str, bytes]] = []
        self.last: Run | None = None
        for place in range(2):
            (self.folder / str(place)).mkdir()

    def _path(self, place: int) -> Path:
        return self.folder / str(place) / "privacy.jsonl"

    @rule(
        act=st.sampled_from(ACTS),
        run=RUNS,
        again=st.integers(0, 2),
        aside=st.sampled_from([False, False, True]),
        age=st.integers(0, 2),
    )
    def somebody_acts(self, act: str, run: Run, again: int, aside: bool, age: int) -> None:
        """One rule for all, since Hypothesis leaves rules out of most examples, and without one nothing is found."""
        if act == "runs":
            self.last = run
            self._runs(run, replace(run, name="hearts") if aside else None)
        elif act in ("is put back", "is deleted") and self.last is not None:
            place = 1 - self.last.place if aside else self.last.place
            self._put_back(place, age if act == "is put back" else len(self.copies))
        if self.last is not None:  # the last one goes on, which may have been killed
            for _ in range(again):
                self._runs(replace(self.last, stops_at=run.stops_at, killed=run.killed), None)

    def _put_back(self, place: int, age: int) -> None:
        """What one of the last copies had, its anchor with it, in the place of a ledger or beside it; or nothing."""
        for file in self._path(place).parent.iterdir():
            file.unlink()
        if age < len(self.copies):
            for name, content in self.copies[-1 - age].items():
                (self._path(place).parent / name).write_bytes(content)

    def _runs(self, run: Run, beside: Run | None) -> None:
        """It plans, and begins some or all of it; halfway another one runs."""
        path, part = self._path(run.place), self._path(1 - run.place)
        client = ClientConfig(
            name="alice",
            model="mlp_gn",
            budget=BudgetTable(
                epsilon=4.0,
                delta=1e-5,
                accountant="rdp",
                ledger=path,
                parts=(part,) if run.names_part and part.exists() else (),
            ),
        )
        ring, name = run.name.startswith("ring"), run.name.encode()
        kinds = (IN_THE_RING,) * run.charges if ring else TRAINING[: run.charges]
        plan = Plan(kinds, charter=name if ring else b"")
        if run.name == "ring, after it":
            plan = Plan((*kinds, IN_THE_RING), spare=1, charter=name)
        data = DATA.subset(np.array(run.images))
        with (
            suppress(LedgerError),
            open_ledger(path, client, federation(run.name), plan, data, index=self.index) as ledger,
        ):
            for number, charge in enumerate(plan.charges):
                killed = run.killed and run.stops_at == number
                if killed or run.stops_at != number:
                    (self._step if charge.discrete else self._mechanism)(ledger, charge, run.images, killed)
                if run.stops_at == number:
                    break
                if beside is not None:
                    self._runs(beside, None)
            if not killed:
                ledger.end()
        self.copies.append({file.name: file.read_bytes() for file in sorted(path.parent.glob("privacy.jsonl*"))})

    def _mechanism(self, ledger: Ledger, charge: SampledGaussian, images: Iterable[int], killed: bool) -> None:
        """At a client: others see what comes of it once that is written down, and else nothing."""
        if charge in ledger.own.released:
            return  # it is kept
        if charge not in ledger.own.unreleased:
            ledger.reserve(charge)
        if killed:
            return
        if self.writes_releases:
            ledger.released(charge)
        self._see(charge, images)

    def _step(self, ledger: Ledger, charge: SampledGaussian, images: Iterable[int], killed: bool) -> None:
        """Through the ring: once it is charged its vector may be out, killed or not."""
        if not self.charges_before:
            self._see(charge, images)
            if not killed:
                ledger.reserve(charge)
            return
        if self.charges_steps_anew or charge not in ledger.own.unreleased:
            ledger.reserve(charge)
        self._see(charge, images)

    def _see(self, charge: SampledGaussian, images: Iterable[int]) -> None:
        for image in images:
            self.seen[image].append(charge)
            if epsilon_of(self.seen[image], BUDGET.delta, BUDGET.accountant) > BUDGET.epsilon:
                raise Overspent(self.seen[image])

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


class ForgetsImages(Index):
    def claim(self, ledger: str, images: Iterable[bytes]) -> None:
        pass


class ForgetsLedgers(Index):
    def seen(self, ledger: str) -> Seen | None:
        return None


class GivesBackWhatBegan(Account):
    def take(self, entry: Any) -> None:
        super().take(entry)
        if isinstance(entry, ledger_entries.Ended):
            self.begun, self.times = [], []


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No example waits for a disk: what a crash of the machine leaves is `test_ledger`'s."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(limits, "vanishing", lambda path: None)
    yield


def run(examples: int, *phases: Phase, **attributes: Any) -> None:
    machine = type("Machine", (Site,), attributes)
    few_acts = settings(
        settings_for(examples, *phases), stateful_step_count=ACTS_EACH
    )  # images of a lost ledger stay so
    run_state_machine_as_test(machine, settings=few_acts)


def test_no_sequence_of_runs_crashes_copies_and_places_overspends() -> None:
    run(25)


@pytest.mark.exhaustive
def test_no_long_sequence_overspends() -> None:
    run(1000)


@pytest.mark.parametrize(
    "fault",
    [
        {"index_class": ForgetsImages},
        {"index_class": ForgetsLedgers},
        {"writes_releases": False},
        {"charges_steps_anew": False},
        {"charges_before": False},
    ],
    ids=[
        "images forgotten",
        "no memory of ledgers",
        "releases not written",
        "steps of the ring made again for nothing",
        "steps charged once they are out",
    ],
)
def test_controls_without_one_defence_an_image_overspends(fault: dict[str, Any]) -> None:
    with pytest.raises(Overspent):
        run(100, Phase.generate, **fault)


def test_control_where_an_end_gives_back_what_began_an_image_overspends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codream_clients.privacy.ledger.Account", GivesBackWhatBegan)
    with pytest.raises(Overspent):
        run(100, Phase.generate)


def test_the_machine_really_spends_and_a_ledger_in_memory_does_not_pass_in_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What `LedgerError` keeps from running is not all there is: a refusal of every ledger would be no test."""
    site = Site()
    site.begin()
    one = Run(0, "lungs", (0, 1), 1, False, None, False)
    for name in ("lungs", "ring", "ring, after it"):
        site.somebody_acts("runs", replace(one, name=name), 0, False, 0)
    assert [charge.purpose for charge in site.seen[0]] == ["warm-up", STEP, STEP] and len(site.copies) == 3
    own = ClientConfig(name="alice", model="mlp_gn")
    monkeypatch.setattr(limits, "vanishing", lambda path: "tmpfs")
    with pytest.raises(LedgerVanishes):
        open_ledger(site._path(1), own, federation("hearts"), Plan(TRAINING), DATA, index=site.index)
    site.teardown()
