"""Pages that the code says itself: `python -m secure_codream.documents docs` writes them, a test holds them.

configuration.md has every key of every file that people write; errors.md has exit codes, and the codes of typed errors.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any

from codream_clients.journal import JournalError
from codream_clients.learning.settings import DreamLoss, Learning
from codream_clients.privacy.settings import PrivacySettings
from codream_protocols.courses.codream import ClientPrivacy, Dreams
from codream_protocols.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from codream_server.record_folder import RecordFolderRefused
from codream_server.settings import Timing
from codream_server.unwritten import ResultsUnwritten
from secure_codream.audit.settings import AuditConfig, AuditTable
from secure_codream.audit.settings import SourceTable as AuditSource
from secure_codream.cli import EXIT_CODES, exit_code
from secure_codream.configuration.client import BudgetTable, ClientConfig, DataTable, PolicyTable
from secure_codream.configuration.federation import (
    AggregationTable,
    AveragingTable,
    DPSGDTable,
    FastTable,
    FederationConfig,
    FederationTable,
    NumbersTable,
    PredecessorTable,
    SumsTable,
    TaskTable,
)
from secure_codream.configuration.reference import markdown, table_in_markdown
from secure_codream.experiments.grid import (
    CommunicationTable,
    CompareConfig,
    CompareTable,
    SourceTable,
    VariantTable,
)
from secure_codream.experiments.sweep import SweepTable

CONFIGURATION = """# Configuration

Every key of every file that people write, from the declarations in the code: `python -m secure_codream.documents docs`
writes this page, and a test holds it to them. A value out of its range is refused with the key, what was found and what
is allowed; so is a key that no table has. [federations.md](federations.md) has complete examples, and
the folder `examples` files to start from."""

FILES: dict[str, tuple[str, tuple[tuple[str, type[Any]], ...]]] = {
    "config.toml": (
        "What all parties of a federation agree on. All of it but `[timing]` is the charter.",
        (
            ("The whole file", FederationConfig),
            ("`[federation]`", FederationTable),
            ("`[task]`", TaskTable),
            ("`[dreams]`", Dreams),
            ("`[learning]`", Learning),
            ("`[learning.loss]`", DreamLoss),
            ("`[averaging]`", AveragingTable),
            ("`[dp_sgd]`", DPSGDTable),
            ("`[fast]`", FastTable),
            ("`[sums]`", SumsTable),
            ("`[sums.vectors.NAME.BLOCK]`", NumbersTable),
            ("`[aggregation]`", AggregationTable),
            ("`[privacy]`", PrivacySettings),
            ("`[client_privacy]`", ClientPrivacy),
            ("`[predecessor]`", PredecessorTable),
            ("`[timing]`", Timing),
        ),
    ),
    "client.toml": (
        "A client's own. `provision` writes it; its owner completes it.",
        (
            ("The whole file", ClientConfig),
            ("`[data]`", DataTable),
            ("`[policy]`", PolicyTable),
            ("`[budget]`", BudgetTable),
        ),
    ),
    "A comparison's or a sweep's file": (
        "For `secure-codream compare` and `sweep`. `[dreams]`, `[learning]` and `[aggregation]` are config.toml's.",
        (
            ("The whole file", CompareConfig),
            ("`[compare]`", CompareTable),
            ("`[data]`", SourceTable),
            ("`[variants.NAME]`", VariantTable),
            ("`[communication]`", CommunicationTable),
            ("`[sweep]`", SweepTable),
        ),
    ),
    "An audit's file": (
        "For `secure-codream audit`.",
        (
            ("The whole file", AuditConfig),
            ("`[audit]`", AuditTable),
            ("`[data]`", AuditSource),
        ),
    ),
}
"""File -> what it is, and the title and the class of each of its tables."""


# -- configuration.md ---------------------------------------------


def configuration_page() -> str:
    """The whole of configuration.md."""
    parts = [CONFIGURATION]
    for file, (about, tables) in FILES.items():
        parts += [f"## {file}", about, *(table_in_markdown(title, table) for title, table in tables)]
    return "\n\n".join(parts) + "\n"


# -- errors.md ---------------------------------------------

ERRORS = """# Errors and exit codes

Made from the code by `python -m secure_codream.documents docs`; a test holds this page to it. Every error says what was
found, what is allowed and, where a person can do something, what to do. None holds a secret."""

CODES = """## Error codes

A code is stable. It stands in a refusal that one party sends another, in the `refused` events of a server
([events.md](events.md)) and in a client's `log.jsonl`. *exit* is what a command returns that ends with the error."""

REMOTE = "What a peer did, or a file from outside holds. Where it answers a message, its code travels in a refusal."
LOCAL = "What is wrong with this party's own files, addresses or code."
OUTSIDE = (JournalError, RecordFolderRefused, ResultsUnwritten)
"""Errors of other rooms, named so that they are loaded."""


def all_errors() -> tuple[type[ProtocolError], ...]:
    """Every typed error of the package, each after what it is derived from."""
    return tuple(kind for kind in _below(ProtocolError) if kind.__module__.startswith(("codream_", "secure_codream")))


def _below(kind: type[ProtocolError]) -> Iterator[type[ProtocolError]]:
    yield kind
    for one in sorted(kind.__subclasses__(), key=lambda one: one.__module__):  # not as they happened to be imported
        yield from _below(one)


def errors_page() -> str:
    """The whole of errors.md."""
    remote = [kind for kind in all_errors() if issubclass(kind, RemoteProtocolError)]
    local = [kind for kind in all_errors() if issubclass(kind, LocalProtocolError)]
    codes = markdown(("code", "when"), [(str(code), text) for code, text in EXIT_CODES.items()])
    parts = [
        ERRORS,
        "## Exit codes",
        codes,
        CODES,
        f"### `{RemoteProtocolError.__name__}`",
        REMOTE,
        _errors(remote),
        f"### `{LocalProtocolError.__name__}`",
        LOCAL,
        _errors(local),
    ]
    return "\n\n".join(parts) + "\n"


def _errors(kinds: Iterable[type[ProtocolError]]) -> str:
    rows = [
        (
            f"`{kind.code}`",
            f"`{kind.__name__}`",
            str(exit_code(kind.__new__(kind))),
            " ".join(cleandoc(kind.__doc__ or "").split()).rstrip("."),
        )
        for kind in kinds
    ]
    return markdown(("code", "error", "exit", "what it says"), rows)


# -- both ---------------------------------------------

PAGES = {"configuration.md": configuration_page, "errors.md": errors_page}


def write(folder: Path) -> None:
    """Write every page into a folder."""
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("python -m secure_codream.documents FOLDER")
    write(Path(sys.argv[1]))
