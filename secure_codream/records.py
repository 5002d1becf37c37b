"""The folder of a run: what lies where, and in what form.

A run leaves one folder, `runs/<time>-<name>/`:

    config.toml               the whole configuration
    summary.json              results, traffic, time (`Summary`)
    report.html               the report for a person
    server/events.jsonl       what the server did, one JSON object a line (`Event`)
    server/rounds/round-000.npz   dreams and soft labels of each round (`Dreams`)
    server/record/            what anybody can verify: `secure-codream verify RUN`
    clients/<name>/result.json    a client's own figures (`ClientResult`)
    exhibit.npz               one step seen from both sides (`Exhibit`); demonstration runs only

Writers and readers share the names and types below, so that a file is checked when it is written and
again when it is read. Rounds and steps count from 0 in files and from 1 where a person reads them.
Additional keys and unknown kinds of events are passed over: a later version may say more. A change of
meaning raises `schema`.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

SCHEMA: Final = 1

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Amount = Annotated[float, msgspec.Meta(ge=0)]

_T = TypeVar("_T")


class RecordError(Exception):
    """A file of a run's folder cannot be used."""


class MissingRecord(RecordError):
    """A file is not there."""

    def __init__(self, path: Path, expected: str) -> None:
        super().__init__(f"{path} does not exist; expected {expected}")
        self.path = path


class MalformedRecord(RecordError):
    """A file is there, but does not hold what it should."""

    def __init__(self, path: Path, found: str, expected: str) -> None:
        super().__init__(f"{path}: found {found}; expected {expected}")
        self.path = path


# --- names -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunFolder:
    """The names of a run's files. Nothing is created except by `create`."""

    path: Path

    @classmethod
    def create(cls, runs: Path, name: str, started: datetime) -> RunFolder:
        """Make a new `<time>-<name>` under `runs`; a number is added where that name is taken."""
        stem = f"{started:%Y%m%d-%H%M%S}-{_file_name(name)}"
        attempt = 1
        while True:
            path = runs / (stem if attempt == 1 else f"{stem}-{attempt}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                attempt += 1
            else:
                return cls(path)

    @property
    def config(self) -> Path:
        """The configuration, TOML."""
        return self.path / "config.toml"

    @property
    def summary(self) -> Path:
        """The results, JSON."""
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        """The report, self-contained HTML."""
        return self.path / "report.html"

    @property
    def exhibit(self) -> Path:
        """One step seen from both sides, NPZ."""
        return self.path / "exhibit.npz"

    @property
    def server(self) -> Path:
        """The server's folder."""
        return self.path / "server"

    @property
    def events(self) -> Path:
        """The server's events, JSON lines."""
        return self.server / "events.jsonl"

    @property
    def rounds(self) -> Path:
        """The folder of the dreams."""
        return self.server / "rounds"

    @property
    def clients(self) -> Path:
        """The folder of the clients' folders."""
        return self.path / "clients"

    def round(self, number: int) -> Path:
        """The dreams of round `number`, from 0, NPZ."""
        return self.rounds / f"round-{number:03d}.npz"

    def client(self, name: str) -> Path:
        """The folder of the client `name`."""
        return self.clients / _file_name(name)

    def result(self, name: str) -> Path:
        """The figures of the client `name`, JSON."""
        return self.client(name) / "result.json"

    def finished_rounds(self) -> list[int]:
        """The rounds whose dreams are there, in order."""
        numbers = (path.stem.removeprefix("round-") for path in self.rounds.glob("round-*.npz"))
        return sorted(int(number) for number in numbers if number.isdecimal())


def _file_name(name: str) -> str:
    if name in {"", ".", ".."} or "/" in name or "\\" in name or not name.isprintable():
        raise ValueError(f"found {name!r}; expected a name that can be a folder's: printable, no slashes")
    return name


# --- summary.json ----------------------------------------------------------------------------------


class IndependentAccuracy(msgspec.Struct, frozen=True, kw_only=True):
    """Test accuracy of each client that learns alone, by client, and the mean."""

    mean: Share
    clients: list[Share]


class CoDreamAccuracy(msgspec.Struct, frozen=True, kw_only=True):
    """Test accuracy of each client at the end of the federation; None for one that was lost."""

    mean: Share
    clients: list[Share | None]


class Accuracy(msgspec.Struct, frozen=True, kw_only=True):
    """All accuracies of a run, between 0 and 1; `by_round[r][i]` is client i after round r."""

    independent: IndependentAccuracy
    codream: CoDreamAccuracy
    centralised: Share
    student: Share | None
    by_round: list[list[Share | None]]

    @property
    def finishers_alone(self) -> float:
        """Mean accuracy alone of the clients that finished: what `codream.mean` is to be compared with."""
        pairs = zip(self.independent.clients, self.codream.clients, strict=True)
        finishers = [alone for alone, together in pairs if together is not None]
        return sum(finishers) / len(finishers) if finishers else self.independent.mean


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of a run, mean over clients. `up` contains set-up and payload; `overhead` is up over payload."""

    up_per_client: Amount
    down_per_client: Amount
    setup_per_client: Amount
    payload_per_client: Amount
    overhead: Amount


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Wall-clock seconds of a run."""

    total: Amount
    compute: Amount
    aggregation: Amount


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The results of a run. Lists by client stand in the order of `client_names`.

    `gap_closure` compares clients that finished with the same clients alone (`Accuracy.finishers_alone`). `dropped`
    were killed in the middle of a step, and started again. `head` is the digest of everything that was certified.
    """

    name: str
    started: datetime
    versions: dict[str, str]
    seed: int
    clients: Annotated[int, msgspec.Meta(ge=1)]
    client_names: list[str]
    models: list[str]
    data: str
    partition: str
    label_counts: list[list[Count]]
    rounds: Count
    secure_steps: Count
    accuracy: Accuracy
    gap_closure: float | None
    bytes: Traffic
    seconds: Timing
    dropped: list[str]
    colluders: Count
    threshold: Count
    min_survivors: Count
    mode: str = "lockstep"
    blocks: list[list[str]] = []
    head: str = ""
    schema: Literal[1] = SCHEMA

    def __post_init__(self) -> None:
        by_client: dict[str, int] = {
            "client_names": len(self.client_names),
            "models": len(self.models),
            "label_counts": len(self.label_counts),
            "accuracy.independent.clients": len(self.accuracy.independent.clients),
            "accuracy.codream.clients": len(self.accuracy.codream.clients),
        } | {f"accuracy.by_round[{r}]": len(row) for r, row in enumerate(self.accuracy.by_round)}
        for key, length in by_client.items():
            if length != self.clients:
                raise ValueError(f"{key} has {length} entries, one for each of {self.clients} clients needed")
        if len({len(counts) for counts in self.label_counts}) != 1:
            raise ValueError("label_counts has rows of unequal length, one entry a class needed")
        if strangers := set(self.dropped) - set(self.client_names):
            raise ValueError(f"dropped names {sorted(strangers)}, which are not in client_names")


class ClientResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one client found out about itself; it stays in that client's folder."""

    name: str
    model: str
    independent: Share
    accuracy_by_round: list[Share]
    samples: Count
    label_counts: list[Count]


def read_summary(path: Path) -> Summary:
    """Read `summary.json`. Raises MissingRecord or MalformedRecord."""
    return _decode(_bytes_of(path, "the summary of a finished run"), path, Summary)


def write_summary(folder: RunFolder | Path, summary: Summary) -> Path:
    """Check `summary` against its schema, then write it in one piece; returns the file's path.

    Raises MalformedRecord, and leaves an earlier summary as it was, if a value does not fit.
    """
    path = (folder if isinstance(folder, RunFolder) else RunFolder(folder)).summary
    return _write_struct(path, summary, Summary)


def read_client_result(path: Path) -> ClientResult:
    """Read a client's `result.json`. Raises MissingRecord or MalformedRecord."""
    return _decode(_bytes_of(path, "the figures of a client that finished"), path, ClientResult)


def write_client_result(path: Path, result: ClientResult) -> Path:
    """Check `result` against its schema, then write it in one piece; returns the file's path."""
    return _write_struct(path, result, ClientResult)


def write_whole(path: Path, content: bytes) -> Path:
    """Write `content` so that a reader finds the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _write_struct(path: Path, record: msgspec.Struct, kind: type[msgspec.Struct]) -> Path:
    try:
        content = msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"
    except (TypeError, msgspec.MsgspecError) as error:
        raise MalformedRecord(path, str(error), f"values of {kind.__name__}") from error
    _decode(content, path, kind)
    return write_whole(path, content)


def _decode(content: bytes, path: Path, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRecord(path, str(error), f"JSON of {kind.__name__}") from error


def _bytes_of(path: Path, expected: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise MissingRecord(path, expected) from error
    except OSError as error:
        raise MalformedRecord(path, error.strerror or type(error).__name__, expected) from error


# --- server/events.jsonl ---------------------------------------------------------------------------

StepPath = Literal["fast", "dropout"]


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    time: float


class FederationStarted(_Event, frozen=True, kw_only=True, tag="federation_started"):
    """The server is there; it waits for the clients of the roster."""

    clients: list[str]
    rounds: Count
    steps_per_round: Count
    mode: str = "lockstep"


class ClientJoined(_Event, frozen=True, kw_only=True, tag="client_joined"):
    """A client of the roster connected."""

    client: str


class ClientLost(_Event, frozen=True, kw_only=True, tag="client_lost"):
    """A client no longer answers."""

    client: str


class EpochStarted(_Event, frozen=True, kw_only=True, tag="epoch_started"):
    """Keys are set up with a cohort for the steps to come."""

    round: Count
    epoch: Count
    cohort: list[str]


class EpochGivenUp(_Event, frozen=True, kw_only=True, tag="epoch_given_up"):
    """An epoch was given up: nothing of it is learnt. `wrong_sum`: because a client saw a sum fail its check."""

    round: Count
    epoch: Count
    reason: str
    wrong_sum: bool = False


class Waiting(_Event, frozen=True, kw_only=True, tag="waiting"):
    """The server waits; of those it waits for, `lost` are silent, and `refusing` refuse (name -> code).

    `bound` have voted for sums that the server does not have.
    """

    clients: list[str]
    lost: list[str]
    phase: str
    seconds: Amount
    refusing: dict[str, str] = {}
    bound: list[str] = []


class StepStarted(_Event, frozen=True, kw_only=True, tag="step_started"):
    """The clients compute a step."""

    round: Count
    step: Count
    task: str


class StepFinished(_Event, frozen=True, kw_only=True, tag="step_finished"):
    """A sum was recovered. Entropy (nats) and the clipped share are securely aggregated means.

    `bytes_up` and `bytes_down` are totals of the run so far, over all clients.
    """

    round: Count
    step: Count
    task: str
    survivors: list[str]
    dropped: list[str]
    path: StepPath
    seconds: Amount
    entropy: float | None
    clipped: float | None
    bytes_up: Count
    bytes_down: Count


class RoundFinished(_Event, frozen=True, kw_only=True, tag="round_finished"):
    """An epoch is certified. Its metrics, quotients of summed counts, are of the models as they stood before it: after
    so many rounds as `metrics_round` says; after 0 they were trained alone.
    """

    round: Count
    metrics: dict[str, float | None]
    metrics_round: Count | None = None
    learnt: bool = True
    head: str = ""


class Refused(_Event, frozen=True, kw_only=True, tag="refused"):
    """A message was refused, by this side ("server") or by a client, with the refusal's code and what was found."""

    client: str
    code: str
    by: str = "server"
    found: str = ""

    @property
    def ordinary(self) -> bool:
        """Whether it is what a late message, or a party that was started again, comes to; nothing is wrong then."""
        return self.code in ("hello-needed", "unexpected", "wrong-context", "head")


class FederationFinished(_Event, frozen=True, kw_only=True, tag="federation_finished"):
    """The rounds are done."""

    rounds: Count


Event = (
    FederationStarted
    | ClientJoined
    | ClientLost
    | EpochStarted
    | EpochGivenUp
    | Waiting
    | StepStarted
    | StepFinished
    | RoundFinished
    | Refused
    | FederationFinished
)

_KNOWN_EVENTS = frozenset(
    {
        "federation_started",
        "client_joined",
        "client_lost",
        "epoch_started",
        "epoch_given_up",
        "waiting",
        "step_started",
        "step_finished",
        "round_finished",
        "refused",
        "federation_finished",
    }
)


def parse_event(event: Mapping[str, Any]) -> Event | None:
    """The typed form of an event; None for a kind that this version does not know.

    Raises ValueError if the event's fields do not fit its kind.
    """
    kind = event.get("event")
    if not isinstance(kind, str):
        raise ValueError(f"found {kind!r} under `event`; expected the kind of the event, a text")
    if kind not in _KNOWN_EVENTS:
        return None
    parsed: Event = msgspec.convert(event, type=Event)
    return parsed


def read_events(path: Path) -> list[Event]:
    """Read `events.jsonl`. Raises MissingRecord, or MalformedRecord with the line's number.

    A last line without its end was being written when the server was stopped: it is left out.
    """
    lines = _bytes_of(path, "the events of the server").split(b"\n")[:-1]
    events = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            event = parse_event(msgspec.json.decode(line, type=dict[str, Any]))
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            raise MalformedRecord(path, f"in line {number}: {error}", "one JSON event a line") from error
        if event is not None:
            events.append(event)
    return events


# --- arrays ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Dreams:
    """The dreams of one round, `images` (B, C, H, W), with their soft labels, `logits` (B, K)."""

    images: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Exhibit:
    """One step seen from both sides: vectors (N,) of the ring of integers modulo 2 ** modulus_bits.

    `plain` and `masked` are one client's update before and after masking; `recovered_sum` is what the
    server rebuilt, `plain_sum` what adding all clients' plain vectors gives. It exists only where all
    clients run on one machine for demonstration: in a deployment nobody holds both sides.
    """

    client: str
    round: int
    step: int
    plain: npt.NDArray[np.uint32]
    masked: npt.NDArray[np.uint32]
    recovered_sum: npt.NDArray[np.uint32]
    plain_sum: npt.NDArray[np.uint32]
    modulus_bits: int
    value_bits: int


def read_dreams(path: Path) -> Dreams:
    """Read the dreams of a round. Raises MissingRecord or MalformedRecord."""
    expected = "`dreams` (B, C, H, W) and `soft_labels` (B, K), finite float32"
    arrays = _arrays_of(path, ("dreams", "soft_labels"), expected)
    images, logits = arrays["dreams"], arrays["soft_labels"]
    if images.ndim != 4 or logits.ndim != 2 or len(images) != len(logits) or 0 in images.shape + logits.shape:
        raise MalformedRecord(path, f"shapes {images.shape} and {logits.shape}", expected)
    if images.dtype != np.float32 or logits.dtype != np.float32:
        raise MalformedRecord(path, f"types {images.dtype} and {logits.dtype}", expected)
    if not (np.isfinite(images).all() and np.isfinite(logits).all()):
        raise MalformedRecord(path, "values that are not finite", expected)
    return Dreams(images=images, logits=logits)


def read_exhibit(path: Path) -> Exhibit:
    """Read the exhibit of a demonstration run. Raises MissingRecord or MalformedRecord."""
    vectors = ("plain", "masked", "recovered_sum", "plain_sum")
    numbers = ("round", "step", "modulus_bits", "value_bits")
    expected = "four uint32 vectors of one length with client, round, step, modulus_bits and value_bits"
    arrays = _arrays_of(path, (*vectors, *numbers, "client"), expected)
    if len({arrays[key].shape for key in vectors}) != 1 or arrays["plain"].ndim != 1 or not len(arrays["plain"]):
        raise MalformedRecord(path, f"shapes {[arrays[key].shape for key in vectors]}", expected)
    if any(arrays[key].dtype != np.uint32 for key in vectors):
        raise MalformedRecord(path, f"types {[str(arrays[key].dtype) for key in vectors]}", expected)
    if any(arrays[key].size != 1 or arrays[key].dtype.kind not in "iu" for key in numbers):
        raise MalformedRecord(path, f"something else than one whole number in one of {numbers}", expected)
    number = {key: int(arrays[key].item()) for key in numbers}
    if not 1 <= number["value_bits"] <= number["modulus_bits"] <= 32:
        raise MalformedRecord(
            path, f"{number['value_bits']} of {number['modulus_bits']} bits", "1 <= value <= modulus <= 32"
        )
    if any(int(arrays[key].max()) >> number["modulus_bits"] for key in vectors):
        raise MalformedRecord(path, "a coordinate beyond the modulus", f"below 2 ** {number['modulus_bits']}")
    return Exhibit(
        client=str(arrays["client"]),
        round=number["round"],
        step=number["step"],
        plain=arrays["plain"],
        masked=arrays["masked"],
        recovered_sum=arrays["recovered_sum"],
        plain_sum=arrays["plain_sum"],
        modulus_bits=number["modulus_bits"],
        value_bits=number["value_bits"],
    )


def _arrays_of(path: Path, keys: tuple[str, ...], expected: str) -> dict[str, npt.NDArray[Any]]:
    if not path.exists():
        raise MissingRecord(path, expected)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in keys}
    except KeyError as error:
        raise MalformedRecord(path, f"no array {error.args[0]}", expected) from error
    except (
        OSError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        AttributeError,
        TypeError,
    ) as error:
        raise MalformedRecord(path, str(error) or type(error).__name__, expected) from error
