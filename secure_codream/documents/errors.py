"""docs/errors.md: exit codes, and the codes of typed errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from inspect import cleandoc

from codream_clients.journal import JournalError
from codream_protocols.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from codream_server.record_folder import RecordFolderRefused
from codream_server.unwritten import ResultsUnwritten
from secure_codream.cli import EXIT_CODES, exit_code
from secure_codream.configuration.reference import markdown

HEAD = """# Errors and exit codes

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


def page() -> str:
    """The whole page."""
    remote = [kind for kind in all_errors() if issubclass(kind, RemoteProtocolError)]
    local = [kind for kind in all_errors() if issubclass(kind, LocalProtocolError)]
    codes = markdown(("code", "when"), [(str(code), text) for code, text in EXIT_CODES.items()])
    parts = [
        HEAD,
        "## Exit codes",
        codes,
        CODES,
        f"### `{RemoteProtocolError.__name__}`",
        REMOTE,
        _table(remote),
        f"### `{LocalProtocolError.__name__}`",
        LOCAL,
        _table(local),
    ]
    return "\n\n".join(parts) + "\n"


def _table(kinds: Iterable[type[ProtocolError]]) -> str:
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
