"""What a check has to say: what was found and, unless all is well, what is allowed and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from codream_protocols.errors import ProtocolError

MENDABLE = (OSError, ValueError, ProtocolError, RuntimeError)
"""What a look at somebody's files may raise."""


class State(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name.
        state: how it came out; with FAILED the party would not run, or its run would come to nothing.
        found: what there is.
        allowed: what there should be.
        do: what a person can do.
    """

    check: str
    state: State
    found: str
    allowed: str = ""
    do: str = ""


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, State.OK, found)


def warning(check: str, found: str, allowed: str = "", do: str = "") -> Finding:
    """It runs, and somebody should know."""
    return Finding(check, State.WARNING, found, allowed, do)


def failed(check: str, found: str, allowed: str, do: str = "") -> Finding:
    """It would not run, or for nothing."""
    return Finding(check, State.FAILED, found, allowed, do)


def failure(check: str, error: BaseException) -> Finding:
    """A check that ended with an error; its words are the error's."""
    if isinstance(error, ProtocolError):
        return failed(check, error.found, error.allowed, error.remedy)
    if isinstance(error, OSError) and error.filename is not None:
        return failed(check, f"{error.filename}: {error.strerror}", "a file that can be read")
    return failed(check, str(error).removeprefix("found "), "")


def looked(check: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """What a look finds; an error that it raises is a finding of the check."""
    findings: list[Finding] = []
    try:
        for finding in look():
            findings.append(finding)
    except MENDABLE as error:
        findings.append(failure(check, error))
    return findings
