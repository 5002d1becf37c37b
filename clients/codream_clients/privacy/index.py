"""What this user's ledgers have spent on which images: the same images are noticed under any path and configuration.

One SQLite file a user, `$XDG_STATE_HOME/secure-codream/ledgers.sqlite`, or `~/.local/state/...`, which its owner alone
may read. Of each image it has a digest under a key of its own, so that the file by itself tells nobody which images
they are; of each ledger its name, where it was last seen, and how far it had got, so that an older copy is noticed even
where its anchor was put back with it.

It is a memory, not the ledger: who deletes it, or works as another user or on another machine, is not noticed.
"""

import hashlib
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from codream_clients.privacy import turns
from codream_clients.privacy.ledger import LedgerDamaged, LedgerError, Seen

DIGEST_BYTES = 16
_TABLES = """
    CREATE TABLE IF NOT EXISTS key (key BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS ledger (name TEXT PRIMARY KEY, path TEXT NOT NULL, entries INTEGER, digest TEXT);
    CREATE TABLE IF NOT EXISTS record (
        digest BLOB NOT NULL, ledger TEXT NOT NULL, PRIMARY KEY (digest, ledger)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS uncharged (
        ledger TEXT NOT NULL, federation TEXT NOT NULL, member TEXT NOT NULL, since TEXT NOT NULL,
        PRIMARY KEY (ledger, federation, member)
    ) WITHOUT ROWID;
"""


_HAVE = "SELECT ledger, path, count(*) FROM asked JOIN record USING (digest) JOIN ledger ON name = record.ledger"
_LEDGERS = f"{_HAVE} GROUP BY ledger ORDER BY count(*) DESC"
_OTHER_LEDGERS = f"{_HAVE} WHERE ledger != ? GROUP BY ledger ORDER BY count(*) DESC"


class SpentElsewhere(LedgerError):
    """Some of the images have spent in another ledger."""


@dataclass(frozen=True)
class Known:
    """A ledger that some images have: its name, where it was last seen, and how many of them it has."""

    ledger: str
    path: str
    images: int


class Index:
    """The index at `path`, which is made if it is not there; a `Memory` of ledgers. Raises `LedgerDamaged`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        with self._turn() as rows:
            for table in _TABLES.split(";"):
                rows.execute(table)
            if rows.execute("SELECT count(*) FROM key").fetchone()[0] == 0:
                rows.execute("INSERT INTO key VALUES (?)", (secrets.token_bytes(32),))

    def __str__(self) -> str:
        return str(self.path)

    def seen(self, ledger: str) -> Seen | None:
        """See `Memory`."""
        with self._turn() as rows:
            found = rows.execute("SELECT entries, digest FROM ledger WHERE name = ?", (ledger,)).fetchone()
        return None if found is None else Seen(*found)

    def saw(self, ledger: str, path: Path, seen: Seen) -> None:
        """See `Memory`; what is older than what was seen before changes nothing."""
        with self._turn() as rows:
            rows.execute(
                "INSERT INTO ledger VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET path = excluded.path, "
                "entries = excluded.entries, digest = excluded.digest WHERE excluded.entries >= entries",
                (ledger, str(path.absolute()), seen.entries, seen.digest),
            )

    def claim(self, ledger: str, images: Iterable[bytes]) -> None:
        """Have images, as any bytes that tell them apart, spend in one ledger alone.

        Raises:
            SpentElsewhere: some have spent in another one; nothing has changed.
        """
        with self._turn() as rows:
            asked = _ask(rows, images)
            elsewhere = rows.execute(_OTHER_LEDGERS, (ledger,)).fetchall()
            if elsewhere:
                _, path, count = elsewhere[0]
                raise SpentElsewhere(
                    f"{count} of {asked} images have spent in the ledger {path}, and would spend here, too; "
                    "one ledger for all federations on the same images is needed: name it as ledger under [budget] of "
                    "client.toml, with the epsilon that all may cost together; where the data grew, and that ledger is "
                    "an earlier part's, leave its images out of this one"
                )
            rows.execute("INSERT OR IGNORE INTO record SELECT digest, ? FROM asked", (ledger,))

    def ledgers_of(self, images: Iterable[bytes]) -> list[Known]:
        """The ledgers that some of the images spend in, the most images first; nothing is claimed."""
        with self._turn() as rows:
            _ask(rows, images)
            return [Known(*row) for row in rows.execute(_LEDGERS)]

    def note_uncharged(self, ledger: str, federation: str, member: str) -> None:
        """Remember that a federation trains on images of this ledger, and charges nothing to it. Repeats do nothing."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._turn() as rows:
            rows.execute("INSERT OR IGNORE INTO uncharged VALUES (?, ?, ?, ?)", (ledger, federation, member, now))

    def uncharged(self, ledger: str) -> list[str]:
        """Who has trained on images of this ledger without any charge, and since when, in words; by time."""
        with self._turn() as rows:
            found = rows.execute(
                "SELECT federation, member, since FROM uncharged WHERE ledger = ? ORDER BY since", (ledger,)
            ).fetchall()
        return [f"{member} in {federation}, since {since}" for federation, member, since in found]

    def images(self, ledger: str) -> int:
        """How many images spend in the ledger of that name, as far as this index knows."""
        with self._turn() as rows:
            (found,) = rows.execute("SELECT count(*) FROM record WHERE ledger = ?", (ledger,)).fetchone()
        return int(found)

    @contextmanager
    def _turn(self) -> Iterator[sqlite3.Connection]:
        """All of what is done, or nothing, while no other process does anything."""
        try:
            # Not made anew where it is gone: it would be empty, and anybody's to read.
            there = f"{self.path.absolute().as_uri()}?mode=rw"
            with closing(sqlite3.connect(there, turns.SAID_AFTER, isolation_level=None, uri=True)) as connection:
                turns.wait_for_turn(lambda: _begun(connection), self.path)
                with connection:
                    yield connection
        except sqlite3.Error as error:
            if _code(error) not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):  # a full disk, say
                raise LedgerError(
                    f"{self.path}: {error}; nothing has changed in it; it must be there, and its disk take more"
                ) from error
            raise LedgerDamaged(f"{self.path}: {error}; put it back from a copy, or move it away") from error


def _begun(connection: sqlite3.Connection) -> bool:
    """Begin, unless another process has."""
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN EXCLUSIVE")  # so that nobody is in the way of what is written in the end
    except sqlite3.Error as error:
        if _code(error) == sqlite3.SQLITE_BUSY:
            return False
        raise
    return True


def _code(error: sqlite3.Error) -> int:
    """SQLite's, without what it adds to it."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _ask(rows: sqlite3.Connection, images: Iterable[bytes]) -> int:
    """Put the images' digests into a table of their own, `asked`; how many there are."""
    (key,) = rows.execute("SELECT key FROM key").fetchone()
    digests = {hashlib.blake2b(image, digest_size=DIGEST_BYTES, key=key).digest() for image in images}
    rows.execute("CREATE TEMP TABLE asked (digest BLOB PRIMARY KEY) WITHOUT ROWID")
    rows.executemany("INSERT INTO asked VALUES (?)", ((digest,) for digest in digests))
    return len(digests)


def known_index() -> Index | None:
    """This user's, if it is there: who has none has no ledger of private images. Raises as `users_index` does."""
    try:
        path = _users_path()
    except RuntimeError:  # nobody's home
        return None
    return users_index() if path.exists() else None


def users_index() -> Index:
    """This user's.

    Raises:
        LedgerError: this user has no place for it, as one without a home; another process holds it; or its disk fails.
        LedgerDamaged: it cannot be read.
    """
    try:
        return Index(_users_path())
    except LedgerError:  # which another place would not help: there nothing is known of what was spent
        raise
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody's home
        raise LedgerError(
            f"found no place for what this user's images have spent ({error}); a folder that it can write, and that "
            "lasts, is needed: name it in XDG_STATE_HOME"
        ) from error


def _users_path() -> Path:
    """Where this user's lies; raises `RuntimeError` for nobody's home."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "secure-codream" / "ledgers.sqlite"
