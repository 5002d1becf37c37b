"""How a running party stands, in two files that it replaces as a whole, once a second at most: nothing listens.

`status.json` is read by `secure-codream status`; `metrics.prom` has the same figures in Prometheus' text format, for a
collector of text files. Of one member a server says the name, whether it is there and when it was last heard; of others
a client says what the server has told it, as the server's word. What they hold is of the moment: they are not synced,
and nothing goes on from them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from secure_codream.reports.files import bytes_of, decode_record

STATUS, METRICS = "status.json", "metrics.prom"
SERVER = "the server"
_Count = Annotated[int, msgspec.Meta(ge=0)]


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """A member, or the server: whether it is there, and when it was last heard (seconds since 1970)."""

    name: str
    present: bool
    heard: float | None = None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """A party at one moment; times are seconds since 1970.

    Attributes:
        party: a client's name, or "server".
        federation: the federation's name.
        charter: the charter's digest, hexadecimal.
        process: the process's number.
        began: when it started.
        written: when this was written.
        phase: what it is at.
        certified: epochs that are certified, those of predecessors counted.
        epochs: of the whole course.
        step: of the present epoch, from 0; None outside one.
        steps: of the present epoch.
        waiting: who is waited for and may be named; nobody while the server waits for some that are there.
        since: since when it is waited, for them or for those; None if for nobody.
        told: a client's: whether `waiting` is the server's word, of others; nothing proves that.
        members: the server's: everybody of the roster.
        secure_steps: the server's: sums made by this process.
        given_up: the server's: epochs that this process gave up.
        refused: the server's: messages that it or members refused, all together.
        bytes_up: the server's: from all members together, until the present phase began.
        bytes_down: the server's: to all of them.
    """

    party: str
    federation: str
    charter: str
    process: int
    began: float
    written: float
    phase: str
    certified: _Count
    epochs: _Count
    step: int | None = None
    steps: int | None = None
    waiting: tuple[Person, ...] = ()
    since: float | None = None
    told: bool = False
    members: tuple[Person, ...] = ()
    secure_steps: _Count | None = None
    given_up: _Count | None = None
    refused: _Count | None = None
    bytes_up: _Count | None = None
    bytes_down: _Count | None = None


def read_status(folder: Path) -> Status:
    """What a party wrote last. Raises `MissingRecord`, `MalformedRecord`."""
    path = folder / STATUS
    return decode_record(bytes_of(path, "the status of a party that has run"), path, Status)


def replace_status(folder: Path, status: Status) -> None:
    """Replace both files, each as a whole. Raises `OSError`."""
    for name, content in (
        (STATUS, msgspec.json.format(msgspec.json.encode(status), indent=2) + b"\n"),
        (METRICS, metrics_text(status).encode()),
    ):
        partial = folder / f".{name}.partial"
        partial.write_bytes(content)
        partial.replace(folder / name)


# -- metrics ---------------------------------------------

_FIGURES = (
    ("epochs_certified", "gauge", "Epochs that are certified.", "certified"),
    ("epochs_planned", "gauge", "Epochs of the whole course.", "epochs"),
    ("start_time_seconds", "gauge", "When the process started, seconds since 1970.", "began"),
    ("written_time_seconds", "gauge", "When this file was written, seconds since 1970.", "written"),
    ("secure_steps_total", "counter", "Sums made by this process.", "secure_steps"),
    ("epochs_given_up_total", "counter", "Epochs that this process gave up.", "given_up"),
    ("messages_refused_total", "counter", "Messages refused, all members together.", "refused"),
    ("received_bytes_total", "counter", "From all members together.", "bytes_up"),
    ("sent_bytes_total", "counter", "To all members together.", "bytes_down"),
)


def metrics_text(status: Status) -> str:
    """Prometheus' text format, version 0.0.4."""
    labels = _labels(federation=status.federation, party=status.party)
    lines: list[str] = []

    def family(name: str, kind: str, about: str, *samples: tuple[str, float]) -> None:
        lines.extend([f"# HELP codream_{name} {about}", f"# TYPE codream_{name} {kind}"])
        lines.extend(f"codream_{name}{where} {_number(value)}" for where, value in samples)

    for name, kind, about, field in _FIGURES:
        if (value := getattr(status, field)) is not None:
            family(name, kind, about, (labels, value))
    waited = 0.0 if status.since is None else max(0.0, status.written - status.since)
    family("waiting_seconds", "gauge", "How long somebody has been waited for; 0 if nobody is.", (labels, waited))
    if status.members:
        named = [
            (_labels(federation=status.federation, party=status.party, member=one.name), one) for one in status.members
        ]
        family(
            "member_present", "gauge", "Whether a member is there.", *((at, float(one.present)) for at, one in named)
        )
        heard = [(at, one.heard) for at, one in named if one.heard is not None]
        family("member_heard_time_seconds", "gauge", "When a member was last heard, seconds since 1970.", *heard)
    return "\n".join(lines) + "\n"


def _labels(**values: str) -> str:
    escaped = (
        (name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for name, value in values.items()
    )
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"
