"""A party's process: from its folder (see `provision`) to a finished federation.

`run_server` and `run_client` are what `secure-codream server FOLDER` and `secure-codream client FOLDER` do. The
client's half imports torch only when it runs, so that an aggregator without torch can run the server's half.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import msgspec
import numpy as np

from codream_protocols.charter import Charter
from codream_protocols.course import Course, Publication
from codream_protocols.courses.codream import CoDream
from codream_protocols.courses.sums import Sums
from codream_protocols.identity import Roster, read_roster
from codream_protocols.server import ServerProtocol
from codream_server.feddream import FedDreamDataset
from codream_server.privacy_statement import client_privacy_statement
from codream_server.record_folder import RecordFolder
from codream_server.runner import ServerRunner
from secure_codream.charter_file import charter_bytes
from secure_codream.config import FederationConfig, read_federation
from secure_codream.courses import make_course
from secure_codream.exposure import exposures
from secure_codream.provision import KeyFileError, public_transport_key, read_private_key, read_public_key
from secure_codream.records import write_whole
from secure_codream.statement import (
    PrivacyStatement,
    client_level,
    privacy_statement,
    record_level,
    write_statement,
)

if TYPE_CHECKING:
    from torch import nn

    from codream_clients.data.datasets import LabelledImages
    from codream_clients.privacy.ledger import Ledger


def load_roster(folder: Path, *, least_serial: int = 1) -> Roster:
    """Read and verify a party's roster under the administrator's key that the party pins.

    Raises:
        KeyFileError, RosterRefused, BadSignature: as their names say.
    """
    data = (folder / "roster.json").read_bytes()
    return read_roster(data, read_public_key(folder / "administrator.pub"), least_serial=least_serial)


class EventLog:
    """Appends events as JSON lines, each flushed, so that whoever watches sees it at once."""

    def __init__(self, file: TextIO, watch: Callable[[dict[str, Any]], object] | None = None) -> None:
        self._file, self._watch = file, never_fails(watch)

    def __call__(self, event: dict[str, Any]) -> None:
        """Write one event with its time; a number that is not finite becomes null, since JSON has none."""
        written = _finite({"time": time.time(), **event})
        self._file.write(json.dumps(written, allow_nan=False) + "\n")
        self._file.flush()
        self._watch(written)


def never_fails(watch: Callable[[dict[str, Any]], object] | None) -> Callable[[dict[str, Any]], None]:
    """The same, but that a screen or a pipe that is gone takes nothing down with it."""

    def safe(event: dict[str, Any]) -> None:
        with contextlib.suppress(OSError, ValueError, SystemExit):  # rich leaves by SystemExit where a pipe is broken
            if watch is not None:
                watch(event)

    return safe


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- server ---------------------------------------------


def run_server(
    folder: Path,
    *,
    listen: str | None = None,
    exhibit: tuple[int, int] | None = None,
    watch: Callable[[dict[str, Any]], object] | None = None,
) -> None:
    """Run the aggregator of `folder` until its federation is over.

    Writes `events.jsonl`, `record/` (what anybody can verify), `rounds/`, `endpoint` (where it listens) and at the end
    `server.json` into the folder; with course `sums` also `sums.json`; with `[client_privacy]` also `privacy.json` and
    `privacy.html`. A server that starts again goes on from its record.

    Args:
        folder: the server's folder.
        listen: endpoint; None takes the roster's address.
        exhibit: (epoch, step) of which the first masked vector is kept as `exhibit.npz`, for a report.
        watch: called with each event that is written.

    Raises:
        AggregationFailed: too few clients, or none that takes part.
        ConfigError, KeyFileError, RosterRefused, BadSignature, RecordFolderRefused: as their names say.
    """
    config, roster = read_federation(folder / "config.toml"), load_roster(folder)
    transport_secret = read_private_key(folder / "transport.key")
    if public_transport_key(transport_secret) != roster.server.transport_key:
        path = folder / "transport.key"
        raise KeyFileError(f"{path}: found another key than the roster has for the server; the server's is needed")
    charter, course = config.charter(roster), make_course(config)
    timing = config.timing_settings()
    dataset = FedDreamDataset(config.dreams.window, folder / "rounds")

    def certified(number: int, publication: Publication) -> None:
        if isinstance(course, Sums):
            write_sums(folder / "sums.json", publication)
        if "dreams" in publication:
            dataset.add(number - 1, np.array(publication["dreams"]), np.array(publication["soft_labels"]))

    with ExitStack() as opened:
        record = RecordFolder(
            folder / "record",
            roster=(folder / "roster.json").read_bytes(),
            charter=charter_bytes(config, roster),
            first=0 if charter.predecessor is None else charter.predecessor.certified,
        )
        opened.callback(record.close)
        events = opened.enter_context((folder / "events.jsonl").open("a", encoding="utf-8"))
        log = EventLog(events, watch)
        for line in exposures(config, roster):
            log({"event": "exposure", "text": line})
        protocol = ServerProtocol(
            charter, roster, course, beat_seconds=timing.beat, certified=record.epochs(), journal=record
        )
        runner = ServerRunner(
            protocol,
            roster=roster,
            transport_secret=transport_secret,
            endpoint=listen or roster.server.address,
            timing=timing,
            emit=log,
            certified=certified,
            exhibit=exhibit,
        )
        asyncio.run(until_signal(runner.run(lambda endpoint: _announce(folder, endpoint))))
    if runner.exhibit is not None:
        seen = runner.exhibit
        np.savez_compressed(
            folder / "exhibit.npz",
            client=roster.members[seen.member].name,
            round=seen.round,
            step=seen.step,
            masked=seen.masked,
            recovered_sum=seen.total,
            survivors=[roster.members[member].name for member in seen.survivors],
        )
    report = {
        "head": protocol.head.hex(),
        "secure_steps": runner.secure_steps,
        "seconds": runner.seconds,
        "traffic": {member.name: vars(traffic) for member, traffic in zip(roster.members, runner.traffic, strict=True)},
    }
    write_whole(folder / "server.json", json.dumps(report, indent=2).encode())
    if config.client_privacy is not None:
        write_statement(folder, own_statement(config, "the federation", None, charter, course, runner.spent_rho))


def _announce(folder: Path, endpoint: str) -> None:
    write_whole(folder / "endpoint", endpoint.encode())


# -- client ---------------------------------------------


def run_client(
    folder: Path,
    *,
    address: str | None = None,
    exhibit: tuple[int, int] | None = None,
    threads: int | None = None,
    model: nn.Module | None = None,
    data: tuple[LabelledImages, LabelledImages | None] | None = None,
    watch: Callable[[dict[str, Any]], object] | None = None,
) -> None:
    """Take part with the client of `folder` until the federation is over.

    Writes into the folder: `log.jsonl`; round by round, `metrics.jsonl` and `model.pt` (a `state_dict` under
    `weights`); `journal/`, what it has joined, voted for and seen certified, which anybody can verify; at the end
    `privacy.json` and `privacy.html`, what the run may say about privacy. In a federation with `[privacy]` also its
    ledger, `privacy.jsonl`, and what its mechanisms have released, `releases/`; in one with `[client_privacy]` the
    ledger of noised sums, `client_privacy.jsonl`. Nothing of it leaves the machine.

    A client that starts again goes on with its model, learns what was certified meanwhile, and takes part in no epoch
    twice. A model of another federation or other settings is not overwritten: it is refused.

    Args:
        folder: the client's folder.
        address: where the server listens; None takes the roster's.
        exhibit: (epoch, step) of which the plain encoded vector is written to `exhibit.npz` IN THIS FOLDER; for
            demonstrations on one machine, where the report shows it beside what the server saw.
        threads: threads for torch; None leaves torch's own choice.
        model: replaces the configured model.
        data: replaces the configured data: (train, test or None).
        watch: called with what each line of `log.jsonl` has.

    Raises:
        AggregationFailed: the server has fallen silent.
        LedgerError: the privacy budget does not allow what is planned, or the ledger cannot be used.
        JournalError: this client is running already, or its journal is damaged or another charter's.
        CheckpointError: a model of another federation, or with other settings.
        ConfigError, KeyFileError, RosterRefused, BadSignature, CharterRefused: as their names say.
    """
    from secure_codream.client_process import run

    run(folder, address=address, exhibit=exhibit, threads=threads, model=model, data=data, watch=watch)


def own_statement(
    federation: FederationConfig,
    name: str,
    ledger: Ledger | None,
    charter: Charter,
    course: Course,
    spent_rho: float,
    *,
    metrics_reported: bool = False,
) -> PrivacyStatement:
    """What a party may say of its own records and of all that it has sent."""
    privacy, noised = federation.client_privacy_settings(), None
    if privacy is not None and isinstance(course, CoDream):
        noised = client_level(client_privacy_statement(privacy, course.settings, charter, spent_rho=spent_rho))
    return privacy_statement(
        federation.federation.name,
        record=None if ledger is None else record_level([(name, ledger.budget, ledger.charges)], federation.privacy),
        client=noised,
        colluders=federation.aggregation.colluders,
        metrics_reported=metrics_reported,
    )


async def until_signal(work: Any) -> None:
    """Run until done; SIGINT and SIGTERM cancel it, so that sockets are closed and secrets erased."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    await task


def write_sums(path: Path, publication: Publication) -> None:
    """Write what the course `sums` published: task -> block -> numbers, `members` among them."""
    tables: dict[str, dict[str, Any]] = {}
    for name, numbers in publication.items():
        task, _, block = name.rpartition(".")
        tables.setdefault(task, {})[block] = numbers.tolist()
    write_whole(path, json.dumps(tables, indent=2).encode() + b"\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a client's `metrics.jsonl`; the first is the warm-up's."""
    if not path.exists():
        return []
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines() if line.endswith(b"}")]
