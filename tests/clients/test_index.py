"""The same images under another path or configuration, older copies of ledgers, and ledgers that would vanish."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from codream_clients.data.datasets import LabelledImages
from codream_clients.data.pixels import Scale
from codream_clients.privacy import turns, volumes
from codream_clients.privacy.accounting import SampledGaussian
from codream_clients.privacy.index import Index, SpentElsewhere, known_index, users_index
from codream_clients.privacy.ledger import (
    Budget,
    Ledger,
    LedgerBusy,
    LedgerDamaged,
    LedgerError,
    LedgerRolledBack,
    Seen,
    Spender,
)
from codream_clients.privacy.records import digest_of, stored_digests
from codream_clients.privacy.volumes import vanishing

BUDGET = Budget(epsilon=4.0, delta=1e-5, accountant="rdp")
CHARGE = SampledGaussian(10.0, 1.0, 1, "label histogram")


@pytest.fixture
def index() -> Index:
    return users_index()


def opened(path: Path, index: Index | None) -> Ledger:
    return Ledger.open(path, by=Spender("example", "alice"), budget=BUDGET, memory=index)


def test_who_has_no_place_for_the_index_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(LedgerError, match=r"no place.*Not a directory.*XDG_STATE_HOME"):
        users_index()
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home")))
    with pytest.raises(LedgerError, match=r"Could not determine home.*XDG_STATE_HOME"):
        users_index()


def test_images_that_have_spent_in_one_ledger_spend_in_no_other(index: Index, tmp_path: Path) -> None:
    images = [bytes([number]) * 40 for number in range(20)]
    with opened(tmp_path / "one", index) as one, opened(tmp_path / "other", index) as other:
        index.claim(one.name, images[:10])
        index.claim(one.name, images[:12])  # grown: it may go on
        with pytest.raises(
            SpentElsewhere, match=r"2 of 10 images have spent in the ledger .*/one, .* name it as ledger"
        ):
            index.claim(other.name, images[10:])
        index.claim(other.name, images[12:])  # control: what has spent nowhere
        with pytest.raises(SpentElsewhere):
            Index(index.path).claim(one.name, images)  # another process's


def test_the_file_says_nothing_of_the_images_and_is_its_owners(index: Index, tmp_path: Path) -> None:
    image = os.urandom(64)
    with opened(tmp_path / "one", index) as one:
        index.claim(one.name, [image])
    content = index.path.read_bytes()
    assert image not in content and stat.S_IMODE(index.path.stat().st_mode) == 0o600
    shutil.rmtree(index.path.parent)
    fresh = users_index()
    with opened(tmp_path / "two", fresh) as two:
        fresh.claim(two.name, [image])
    assert stored_key(index.path) not in content  # each user's digests are under a key of their own


def stored_key(path: Path) -> bytes:
    import sqlite3

    with sqlite3.connect(path) as rows:
        key: bytes = rows.execute("SELECT key FROM key").fetchone()[0]
    return key


@pytest.mark.parametrize("known", [True, False], ids=["index", "control: no index"])
def test_a_folder_that_was_restored_whole_is_noticed(index: Index, tmp_path: Path, known: bool) -> None:
    """The anchor lies beside the ledger, and comes back with it; what the index has seen does not."""
    memory = index if known else None
    with opened(tmp_path / "ledger", memory) as ledger:
        ledger.reserve(CHARGE)
    copies = {path: path.read_bytes() for path in tmp_path.glob("ledger*")}
    with opened(tmp_path / "ledger", memory) as ledger:
        ledger.reserve(CHARGE)
    for path, content in copies.items():
        path.write_bytes(content)
    if known:
        with pytest.raises(LedgerRolledBack, match=r"found 2 entries, but .*ledgers\.sqlite has seen 3"):
            opened(tmp_path / "ledger", memory)
    else:
        opened(tmp_path / "ledger", memory).close()


def test_a_ledger_may_move_and_two_copies_of_it_may_not_both_go_on(index: Index, tmp_path: Path) -> None:
    with opened(tmp_path / "ledger", index) as ledger:
        ledger.reserve(CHARGE)
    for name in ("ledger", "ledger.anchor"):
        shutil.copy(tmp_path / name, tmp_path / f"copy{name.removeprefix('ledger')}")
    with opened(tmp_path / "copy", index) as moved:
        moved.reserve(CHARGE)
    with pytest.raises(LedgerRolledBack):
        opened(tmp_path / "ledger", index)


def test_what_was_seen_never_goes_back(index: Index, tmp_path: Path) -> None:
    for entries in (1, 3, 2):
        index.saw("a" * 64, tmp_path / "ledger", Seen(entries, f"{entries}" * 64))
    assert index.seen("a" * 64) == Seen(3, "3" * 64) and index.seen("b" * 64) is None


def test_an_index_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "index").write_bytes(b"no database" * 1000)
    with pytest.raises(LedgerDamaged, match="index: file is not a database"):
        Index(tmp_path / "index")


@pytest.mark.parametrize("begun", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "BEGIN"])
def test_an_index_that_another_process_holds_is_not_called_damaged(
    index: Index, tmp_path: Path, begun: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written, committed or read: whoever believed that would move it away, and what it remembers with it."""
    monkeypatch.setattr(turns, "PATIENCE", 0.0)
    monkeypatch.setattr(turns, "SAID_AFTER", 0.01)
    with closing(sqlite3.connect(index.path, isolation_level=None)) as other:
        other.execute(begun)
        other.execute("SELECT * FROM ledger").fetchall()
        with pytest.raises(LedgerBusy, match="another process h"):
            index.saw("a" * 64, tmp_path / "ledger", Seen(1, "1" * 64))
        other.execute("ROLLBACK")
    index.saw("a" * 64, tmp_path / "ledger", Seen(1, "1" * 64))


def test_an_index_that_is_held_is_not_put_elsewhere(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another place nothing would be known of what was spent."""
    monkeypatch.setattr(turns, "PATIENCE", 0.0)
    monkeypatch.setattr(turns, "SAID_AFTER", 0.01)
    with closing(sqlite3.connect(index.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for of_the_user in (users_index, known_index):
            with pytest.raises(LedgerBusy, match=r"held it for 0 s; end that one\Z"):
                of_the_user()


def test_an_index_that_cannot_be_opened_is_named(index: Index, tmp_path: Path) -> None:
    index.path.rename(tmp_path / "moved")
    with pytest.raises(LedgerError, match="unable to open database file"):
        index.seen("a" * 64)
    assert not index.path.exists()  # one made anew would know of nothing, and be anybody's to read
    index.path.symlink_to(tmp_path / "moved")
    for of_the_user in (users_index, known_index):
        with pytest.raises(LedgerError, match="no place"):
            of_the_user()


def test_who_looks_while_another_process_spends_sees_no_older_copy(index: Index, tmp_path: Path) -> None:
    with opened(tmp_path / "ledger", index) as spending:

        class Meanwhile(Index):
            def seen(self, ledger: str) -> Seen | None:
                spending.reserve(CHARGE)
                return super().seen(ledger)

        found = Ledger.look(
            tmp_path / "ledger", by=Spender("nobody", "nobody"), budget=BUDGET, memory=Meanwhile(index.path)
        )
        assert found is not None and CHARGE in found.charges


def test_what_fails_beside_the_index_is_not_its_damage(index: Index, tmp_path: Path) -> None:
    """Whoever moved it away for want of room would lose what it remembers."""
    with (
        pytest.raises(LedgerError, match="database or disk is full; nothing has changed") as caught,
        index._turn() as rows,
    ):
        rows.execute("PRAGMA max_page_count = 1")
        rows.executemany(
            "INSERT INTO uncharged VALUES (?, ?, ?, ?)", ((f"{n}" * 999, "a", "b", "c") for n in range(99))
        )
    assert not isinstance(caught.value, LedgerDamaged)
    assert index.seen("a" * 64) is None


def images(scale: Scale | None, seed: int = 0) -> LabelledImages:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 1, 4, 4))
    mean, std = (0.0, 1.0) if scale is None else (scale.mean[0], scale.std[0])
    standardised = ((pixels / 255 - mean) / std).astype(np.float32)
    return LabelledImages(standardised, np.arange(6) % 3, 3, scale=scale)


def test_images_are_known_on_every_scale_and_in_any_order() -> None:
    one, other = images(Scale((0.1307,), (0.3081,))), images(Scale((0.5,), (0.5,)))
    assert set(stored_digests(one)) == set(stored_digests(other)) != set(stored_digests(images(None, seed=1)))
    assert digest_of(one) == digest_of(one.subset(np.arange(6)[::-1])) != digest_of(other)
    assert digest_of(one) != digest_of(replace(one, labels=np.roll(one.labels, 1)))
    assert digest_of(one) != digest_of(replace(one, augment="shift"))
    assert digest_of(one) != digest_of(one.subset(np.arange(5)))


@pytest.mark.parametrize(("kind", "found"), [("tmpfs", "tmpfs"), ("ext4", None)], ids=["in memory", "control: a disk"])
def test_a_ledger_in_memory_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, found: str | None
) -> None:
    mounts = tmp_path / "mounts"
    place = str(tmp_path.resolve()).replace(" ", "\\040")
    mounts.write_text(
        f"21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n30 21 0:26 / {place} rw,nosuid - {kind} none rw\n"
    )
    monkeypatch.setattr(volumes, "MOUNTS", mounts)
    assert vanishing(tmp_path / "privacy.jsonl") == found
    assert vanishing(Path("/elsewhere/privacy.jsonl")) is None
    monkeypatch.setattr(volumes, "MOUNTS", tmp_path / "none")  # a system that does not say
    assert vanishing(tmp_path / "privacy.jsonl") is None
