"""An older copy of a client's folder, or of its ledger, is noticed by what the federation and the journal remember."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from codream_clients.journal import FileJournal, JournalError
from codream_clients.privacy.ledger import LedgerRolledBack
from codream_protocols.record import Kept
from secure_codream.configuration.limits import open_ledger
from secure_codream.deployment.client import ChargedJournal
from secure_codream.simulation.in_process import Simulation
from tests.clients.test_journal import make_epochs
from tests.clients.test_journal import opened as journal_in
from tests.secure_codream.test_ledger_commands import DATA, client, federation, plan


@pytest.fixture(scope="module")
def epochs() -> tuple[Simulation, list[Kept]]:
    return make_epochs()


def charged(journal: FileJournal, member: int = 0) -> ChargedJournal:
    return ChargedJournal(journal, None, lambda: None, member)


def test_a_vote_that_the_journal_does_not_remember_shows_a_restored_folder(
    tmp_path: Path, epochs: tuple[Simulation, list[Kept]]
) -> None:
    """Controls: who joined the epoch, and who was away and never voted, take the same certificate."""
    first, _ = epochs[1][0]
    voter = first.votes[0].member
    away = len(first.votes) + 7
    with journal_in(tmp_path / "restored") as journal, pytest.raises(JournalError, match="own vote for epoch 0"):
        charged(journal, voter).certified(epochs[1][0])
    with journal_in(tmp_path / "restored") as journal:
        assert not journal.memory.certified, "nothing was taken"
    with journal_in(tmp_path / "there") as journal:
        present = charged(journal, voter)
        present.joined(first.offer.epoch, b"p" * 32)
        present.certified(epochs[1][0])
    with journal_in(tmp_path / "away") as journal:
        charged(journal, away).certified(epochs[1][0])
    with journal_in(tmp_path / "away") as journal:
        assert len(journal.memory.certified) == 1


def test_a_ledger_that_knows_nothing_of_what_the_journal_joined_is_refused(tmp_path: Path) -> None:
    """An older copy with its anchor, or a new path: it would begin at nothing. Control: before the first epoch."""
    path = tmp_path / "privacy.jsonl"
    with open_ledger(path, client(), federation(), plan(), DATA) as ledger:
        ledger.end()
    with pytest.raises(LedgerRolledBack, match="found nothing that 'alice' has begun for 'lungs'"):
        open_ledger(path, client(), federation(), plan(), DATA, took_part=True)
    with open_ledger(path, client(), federation(), plan(), DATA) as ledger:
        ledger.reserve(plan().histogram)
    with open_ledger(path, client(), federation(), plan(), DATA, took_part=True) as ledger:
        assert ledger.own.begun == [plan().histogram]
