"""The folder of a run: what lies where, and in what form.

A run leaves one folder, `runs/<time>-<name>/`:

    config.toml               the whole configuration
    summary.json              results, traffic, time (`Summary`)
    report.html               the report for a person
    server/events.jsonl       what the server did, one JSON object a line (`Event`)
    server/rounds/round-000.npz   dreams and soft labels of each round (`Dreams`)
    server/record/            what anybody can verify: `secure-codream verify RUN`
    clients/<name>/result.json    a client's own figures (`ClientResult`)
    server/spans.json, clients/<name>/spans.json   where each party's time went (`Spans`), if it was to keep it
    exhibit.npz               one step seen from both sides (`Exhibit`); demonstration runs only

Writers and readers share the names and types below, so that a file is checked when it is written and
again when it is read. Rounds and steps count from 0 in files and from 1 where a person reads them.
Additional keys and unknown kinds of events are passed over: a later version may say more. A change of
meaning raises `schema`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from secure_codream.reports.files import MalformedRecord, arrays_of

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
    def record(self) -> Path:
        """The folder of the record."""
        return self.server / "record"

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


# --- server/events.jsonl ---------------------------------------------------------------------------


# --- arrays ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Dreams:
    """The dreams of one round, `images` (B, C, H, W), with their soft labels, `logits` (B, K); views are left out."""

    images: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Exhibit:
    """One step seen from both sides: vectors (N,) of the ring of integers modulo 2 ** modulus_bits.

    `plain` and `masked` are one client's update before and after masking; `recovered_sum` is what the
    server rebuilt, `plain_sum` what adding all clients' plain vectors gives. It exists only where all
    clients run on one machine for demonstration: in a deployment nobody holds both sides. `top` is what a real's bound
    becomes.
    """

    client: str
    round: int
    step: int
    plain: npt.NDArray[np.uint32]
    masked: npt.NDArray[np.uint32]
    recovered_sum: npt.NDArray[np.uint32]
    plain_sum: npt.NDArray[np.uint32]
    modulus_bits: int
    top: int


def read_dreams(path: Path) -> Dreams:
    """Read the dreams of a round. Raises MissingRecord or MalformedRecord."""
    expected = "`dreams` (B, C, H, W) and `soft_labels` (B, K), or with views a multiple of B, finite float32"
    arrays = arrays_of(path, ("dreams", "soft_labels"), expected)
    images, logits = arrays["dreams"], arrays["soft_labels"]
    if images.ndim != 4 or logits.ndim != 2 or 0 in images.shape + logits.shape or len(logits) % len(images):
        raise MalformedRecord(path, f"shapes {images.shape} and {logits.shape}", expected)
    if images.dtype != np.float32 or logits.dtype != np.float32:
        raise MalformedRecord(path, f"types {images.dtype} and {logits.dtype}", expected)
    if not (np.isfinite(images).all() and np.isfinite(logits).all()):
        raise MalformedRecord(path, "values that are not finite", expected)
    return Dreams(images=images, logits=logits[: len(images)])


def read_exhibit(path: Path) -> Exhibit:
    """Read the exhibit of a demonstration run. Raises MissingRecord or MalformedRecord."""
    vectors = ("plain", "masked", "recovered_sum", "plain_sum")
    numbers = ("round", "step", "modulus_bits", "top")
    expected = "four uint32 vectors of one length with client, round, step, modulus_bits and top"
    arrays = arrays_of(path, (*vectors, *numbers, "client"), expected)
    if len({arrays[key].shape for key in vectors}) != 1 or arrays["plain"].ndim != 1 or not len(arrays["plain"]):
        raise MalformedRecord(path, f"shapes {[arrays[key].shape for key in vectors]}", expected)
    if any(arrays[key].dtype != np.uint32 for key in vectors):
        raise MalformedRecord(path, f"types {[str(arrays[key].dtype) for key in vectors]}", expected)
    if any(arrays[key].size != 1 or arrays[key].dtype.kind not in "iu" for key in numbers):
        raise MalformedRecord(path, f"something else than one whole number in one of {numbers}", expected)
    number = {key: int(arrays[key].item()) for key in numbers}
    if not (1 <= number["modulus_bits"] <= 32 and 1 <= number["top"] < 1 << number["modulus_bits"]):
        found = f"values up to {number['top']} of {number['modulus_bits']} bits"
        raise MalformedRecord(path, found, "1 to 32 bits, and values from 1 to below 2 ** modulus_bits")
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
        top=number["top"],
    )
