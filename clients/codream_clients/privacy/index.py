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
from contextlib import contextmanager
from pathlib import Path

from codream_clients.privacy.ledger import LedgerDamaged, LedgerError, Seen

PATIENCE = 10.0
"""Seconds that one process waits for another."""
DIGEST_BYTES = 16
_TABLES = """
    CREATE TABLE IF NOT EXISTS key (key BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS ledger (name TEXT PRIMARY KEY, path TEXT NOT NULL, entries INTEGER, digest TEXT);
    CREATE TABLE IF NOT EXISTS record (
        digest BLOB NOT NULL, ledger TEXT NOT NULL, PRIMARY KEY (digest, ledger)
    ) WITHOUT ROWID;
"""


class SpentElsewhere(LedgerError):
    """Some of the images have spent in another ledger."""


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
            (key,) = rows.execute("SELECT key FROM key").fetchone()
            digests = {hashlib.blake2b(image, digest_size=DIGEST_BYTES, key=key).digest() for image in images}
            rows.execute("CREATE TEMP TABLE asked (digest BLOB PRIMARY KEY) WITHOUT ROWID")
            rows.executemany("INSERT INTO asked VALUES (?)", ((digest,) for digest in digests))
            elsewhere = rows.execute(
                "SELECT path, count(*) FROM asked JOIN record USING (digest) JOIN ledger ON name = record.ledger "
                "WHERE record.ledger != ? GROUP BY record.ledger ORDER BY count(*) DESC",
                (ledger,),
            ).fetchall()
            if elsewhere:
                path, count = elsewhere[0]
                raise SpentElsewhere(
                    f"{count} of {len(digests)} images have spent in the ledger {path}, and would spend here, too; "
                    "one ledger for all federations on the same images is needed: name it as ledger under [budget] of "
                    "client.toml, with the epsilon that all may cost together; where the data grew, and that ledger is "
                    "an earlier part's, leave its images out of this one"
                )
            rows.execute("INSERT OR IGNORE INTO record SELECT digest, ? FROM asked", (ledger,))

    def images(self, ledger: str) -> int:
        """How many images spend in the ledger of that name, as far as this index knows."""
        with self._turn() as rows:
            (found,) = rows.execute("SELECT count(*) FROM record WHERE ledger = ?", (ledger,)).fetchone()
        return int(found)

    @contextmanager
    def _turn(self) -> Iterator[sqlite3.Connection]:
        """All of what is done, or nothing, while no other process does anything."""
        connection = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            with connection:
                yield connection
        except sqlite3.Error as error:
            raise LedgerDamaged(f"{self.path}: {error}; put it back from a copy, or move it away") from error
        finally:
            connection.close()


def users_index() -> Index:
    """This user's.

    Raises:
        LedgerError: this user has no place for it, as one without a home.
        LedgerDamaged: it cannot be read.
    """
    state = os.environ.get("XDG_STATE_HOME")
    try:
        home = Path(state) if state else Path.home() / ".local" / "state"
        return Index(home / "secure-codream" / "ledgers.sqlite")
    except LedgerDamaged:
        raise
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody's home
        raise LedgerError(
            f"found no place for what this user's images have spent ({error}); a folder that it can write, and that "
            "lasts, is needed: name it in XDG_STATE_HOME"
        ) from error
