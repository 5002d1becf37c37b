"""No sequence of federations, folders, copies and grown data has an image cost more than its budget.

A site with a few images and a few places for ledgers; whoever runs it names any place, trains on any images, copies
ledgers with their anchors, puts older copies back, moves and deletes them. `Overspent` is raised when the mechanisms
that ran on one image have cost more than the budget; each control takes one defence away and must find it.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from codream_clients.privacy.accounting import SampledGaussian, epsilon_of
from codream_clients.privacy.index import Index
from codream_clients.privacy.ledger import Budget, Ledger, LedgerError, Spender
from tests.clients.test_ledger import settings_for

BUDGET = Budget(epsilon=4.0, delta=1e-5, accountant="rdp")
CHARGES = [SampledGaussian(3.0, 1.0, 1, "small"), SampledGaussian(1.6, 1.0, 1, "large")]
PLACES, IMAGES = 3, 4


class Overspent(AssertionError):
    """What ran on one image has cost more than the budget."""


class Site(RuleBasedStateMachine):
    """Whoever runs it means no harm, and has forgotten what ran where."""

    index_class: type[Index] = Index
    remembers = True

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.index = self.index_class(self.folder / "state" / "ledgers.sqlite")
        self.ran: dict[int, list[SampledGaussian]] = {image: [] for image in range(IMAGES)}
        self.copies: list[dict[str, bytes]] = []

    def _files(self, place: int) -> list[Path]:
        path = self.folder / str(place) / "privacy.jsonl"
        return [path, path.with_name(path.name + ".anchor")]

    @rule(
        place=st.integers(0, PLACES - 1),
        federation=st.sampled_from(["lungs", "hearts"]),
        images=st.sets(st.integers(0, IMAGES - 1), min_size=1),
        charges=st.lists(st.sampled_from(CHARGES), min_size=1, max_size=3),
        ends=st.booleans(),
    )
    def federation_runs(
        self, place: int, federation: str, images: set[int], charges: list[SampledGaussian], ends: bool
    ) -> None:
        """It plans, begins some or all of it, and ends or breaks off."""
        path = self._files(place)[0]
        path.parent.mkdir(exist_ok=True)
        memory = self.index if self.remembers else None
        by = Spender(federation, "alice", f"{sorted(images)}")
        with suppress(LedgerError), Ledger.open(path, by=by, budget=BUDGET, memory=memory) as ledger:
            ledger.plan(charges)
            self.index.claim(ledger.name, [b"image %d" % image for image in images])
            for charge in charges:
                ledger.reserve(charge)
                for image in images:
                    self.ran[image].append(charge)
                if not ends:
                    break
            if ends:
                ledger.end()

    @rule(place=st.integers(0, PLACES - 1))
    def folder_is_copied(self, place: int) -> None:
        self.copies.append({file.name: file.read_bytes() for file in self._files(place) if file.exists()})

    @rule(place=st.integers(0, PLACES - 1), which=st.integers(0, 9))
    def copy_is_put_somewhere(self, place: int, which: int) -> None:
        """An older one in its place, or beside what it was copied from; its anchor comes with it."""
        if self.copies:
            self.folder_is_deleted(place)
            (self.folder / str(place)).mkdir(exist_ok=True)
            for name, content in self.copies[which % len(self.copies)].items():
                (self.folder / str(place) / name).write_bytes(content)

    @rule(place=st.integers(0, PLACES - 1))
    def folder_is_deleted(self, place: int) -> None:
        shutil.rmtree(self.folder / str(place), ignore_errors=True)

    @invariant()
    def no_image_has_cost_more_than_the_budget(self) -> None:
        for charges in self.ran.values():
            if epsilon_of(charges, BUDGET.delta, BUDGET.accountant) > BUDGET.epsilon:
                raise Overspent(charges)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


class ForgetsImages(Index):
    def claim(self, ledger: str, images: Any) -> None:
        pass


def machine(**attributes: Any) -> type[Site]:
    return type("Machine", (Site,), attributes)


def test_no_sequence_of_runs_copies_and_places_overspends() -> None:
    run_state_machine_as_test(machine(), settings=settings_for(20))


@pytest.mark.exhaustive
def test_no_long_sequence_overspends() -> None:
    run_state_machine_as_test(machine(), settings=settings_for(1000))


@pytest.mark.parametrize(
    "attributes",
    [{"index_class": ForgetsImages}, {"remembers": False}],
    ids=["images forgotten", "no memory of ledgers"],
)
def test_controls_without_one_defence_an_image_overspends(attributes: dict[str, Any]) -> None:
    with pytest.raises(Overspent):
        run_state_machine_as_test(machine(**attributes), settings=settings_for(300, Phase.generate))
