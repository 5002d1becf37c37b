"""`summary.json` and `result.json`: what came of a run, and of a client."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from secure_codream.reports.events import Amount, Count
from secure_codream.reports.files import bytes_of, decode_record, write_struct
from secure_codream.reports.run_folder import RunFolder

SCHEMA: Final = 1


Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


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
    were killed in the middle of a step, and started again. `rolled_back` has the rounds after which a client's own
    judge found its model worse, and the client took its best weights back. `head` is the digest of everything that was
    certified.
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
    rolled_back: dict[str, list[Count]] = {}
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
        for key, names in {"dropped": self.dropped, "rolled_back": self.rolled_back}.items():
            if strangers := set(names) - set(self.client_names):
                raise ValueError(f"{key} names {sorted(strangers)}, which are not in client_names")


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
    return decode_record(bytes_of(path, "the summary of a finished run"), path, Summary)


def write_summary(folder: RunFolder | Path, summary: Summary) -> Path:
    """Check `summary` against its schema, then write it in one piece; returns the file's path.

    Raises MalformedRecord, and leaves an earlier summary as it was, if a value does not fit.
    """
    path = (folder if isinstance(folder, RunFolder) else RunFolder(folder)).summary
    return write_struct(path, summary, Summary)


def write_client_result(path: Path, result: ClientResult) -> Path:
    """Check `result` against its schema, then write it in one piece; returns the file's path."""
    return write_struct(path, result, ClientResult)
