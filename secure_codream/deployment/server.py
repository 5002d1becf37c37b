"""The aggregator's process: from its folder (see `provision`) to a finished federation. It needs no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from codream_protocols.charter import Charter, first_plan
from codream_protocols.course import Course, Publication
from codream_protocols.courses.sums import Sums
from codream_protocols.errors import RemoteProtocolError
from codream_protocols.identity import Roster
from codream_protocols.record import certified_epochs
from codream_protocols.server import ServerProtocol
from codream_server.events import Events, kept_of, rounds_of
from codream_server.feddream import FedDreamDataset, batch_name
from codream_server.record_folder import RUNNING, RecordFolder, RecordFolderRefused
from codream_server.runner import ServerRunner
from secure_codream.configuration.charter_file import charter_bytes
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.federation import read_federation
from secure_codream.deployment.cores import shared_by
from secure_codream.deployment.exposure import exposures
from secure_codream.deployment.files import Appended, EventLog, never_fails, sums_bytes
from secure_codream.deployment.rounds import on_round_of
from secure_codream.deployment.signals import Stop, run_until_stopped, stopped_by_sigterm
from secure_codream.deployment.spans import watched
from secure_codream.deployment.statements import own_statement
from secure_codream.deployment.status import StatusFiles
from secure_codream.membership.accepted import (
    ACCEPTANCES,
    check_accepted,
    expiry_warning,
    keep_in_record,
    load_roster,
    own_keys,
)
from secure_codream.membership.passphrase import Passphrase
from secure_codream.reports.files import write_whole
from secure_codream.reports.statement import write_statement


@stopped_by_sigterm()
def run_server(
    folder: Path,
    *,
    listen: str | None = None,
    exhibit: tuple[int, int] | None = None,
    spans: bool = False,
    threads: int | None = None,
    watch: Callable[[dict[str, Any]], object] | None = None,
    on_round: Callable[[dict[str, Any]], object] | None = None,
    stop: Stop | None = None,
) -> None:
    """Run the aggregator of `folder` until its federation is over.

    Writes into the folder `events.jsonl`, `record/` (what anybody can verify), `rounds/`, `endpoint` (where it
    listens), `status.json` and `metrics.prom` (how it stands) and at the end `server.json`; with course `sums` also
    `sums.json`; with `[client_privacy]` also `privacy.json` and `privacy.html`. A server that starts again goes on from
    its record, and writes what an earlier process had recorded and not written. An `events.jsonl` that cannot be
    written ends nothing: events go to standard error then.

    Args:
        folder: the server's folder.
        listen: endpoint; None takes the roster's address.
        exhibit: (epoch, step) of which one masked vector is kept as `exhibit.npz`, for a report.
        spans: whether `spans.json` is written, where the time went; for all machines of this process.
        threads: of all machines of this process, which share long vectors among them; None takes one for each core.
        watch: called with each event; with what was found in a refused message too, which is not written.
        on_round: called with each `round_finished` event (docs/events.md), in the thread that serves, so briefly; what
            it raises is logged by `secure_codream`'s logger, and ends nothing.
        stop: asks it to end, from another thread.

    Raises:
        Stopped: by SIGTERM, in the main thread, or by `stop`.
        AggregationFailed: too few clients, or none that takes part.
        ResultsUnwritten: all is certified, and the disk does not take the results.
        NotAccepted: `config.toml` is not what was accepted in this folder.
        UnsafePlan: its settings could never run.
        ConfigError, KeyFileError, RosterRefused, BadSignature, RecordFolderRefused: as their names say.
        RecordFolderBusy: another process serves from this folder.
    """
    passphrase = Passphrase()  # before any code of the charter is run
    roster, config = load_roster(folder), read_federation(folder / "config.toml")
    transport_secret, _ = own_keys(folder, roster, None, passphrase)
    check_accepted(folder, config, roster, None)
    charter, course = config.charter(roster), make_course(config)
    first_plan(charter, course)  # before clients wait for what can never run
    timing = config.timing
    rounds = folder / "rounds"
    rounds.mkdir(exist_ok=True)
    dataset = FedDreamDataset(config.dreams.window, lambda name, content: write_whole(rounds / name, content))

    def certified(number: int, publication: Publication) -> None:
        if isinstance(course, Sums):
            write_whole(folder / "sums.json", sums_bytes(publication))
        if "dreams" in publication:
            dataset.add(number - 1, np.array(publication["dreams"]), np.array(publication["soft_labels"]))

    with ExitStack() as opened:
        opened.enter_context(watched(folder, spans))
        opened.enter_context(shared_by(threads))
        record = RecordFolder(
            folder / "record",
            roster=(folder / "roster.json").read_bytes(),
            charter=charter_bytes(config, roster),
            first=charter.earlier,
        )
        opened.callback(record.close)
        log = EventLog(opened.enter_context(Appended(folder / "events.jsonl")), _and_rounds(watch, on_round), kept_of)
        events = Events(log)
        for line in exposures(config, roster):
            events.say("exposure", text=line)
        for line in _accepted_by(folder, charter, roster):
            events.say("acceptances", text=line)
        if (warning := expiry_warning(roster)) is not None:
            events.say("expiry", text=warning)
        protocol = _protocol(charter, roster, course, record, timing.beat)
        runner = ServerRunner(
            protocol,
            roster=roster,
            transport_secret=transport_secret,
            endpoint=listen or roster.server.address,
            timing=timing,
            emit=log,
            certified=certified,
            missed=_missed(protocol, roster, record, rounds),
            exhibit=exhibit,
            stands=lambda found: status.of_server(runner, found),
            spool=record.folder,
        )
        status = StatusFiles(folder, "server", config.federation.name, charter, course.epochs)
        try:
            run_until_stopped(runner.run(lambda endpoint: _announce(folder, endpoint)), stop)
        finally:
            status.of_server(runner, runner.standing())
    if runner.exhibition.exhibit is not None:
        seen = runner.exhibition.exhibit
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
        "secure_steps": runner.story.secure_steps,
        "seconds": runner.story.seconds,
        "traffic": vars(runner.traffic),
    }
    write_whole(folder / "server.json", json.dumps(report, indent=2).encode())
    if config.client_privacy is not None:
        write_statement(folder, own_statement(config, "the federation", None, charter, course, runner.story.spent_rho))


def _protocol(
    charter: Charter, roster: Roster, course: Course, record: RecordFolder, beat_seconds: float
) -> ServerProtocol:
    """The machine, in the epoch that was running.

    Raises:
        RecordFolderRefused: what was written of that epoch does not fit; it names the file.
        UnsafePlan, LocalProtocolError, RemoteProtocolError: charter, roster or record are not what they should be.
    """
    made = partial(
        ServerProtocol, charter, roster, course, beat_seconds=beat_seconds, certified=record.epochs(), journal=record
    )
    if not (entries := record.unfinished()):
        return made()
    try:
        return made(running=entries)
    except RemoteProtocolError as error:
        made()  # what else is wrong is said as it is
        raise RecordFolderRefused(
            f"{record.folder / RUNNING}: {error.found}",
            error.allowed,
            "take that file away: the epoch that was running begins anew",
        ) from error


def _missed(
    protocol: ServerProtocol, roster: Roster, record: RecordFolder, rounds: Path
) -> Iterator[tuple[int, Publication]]:
    """What earlier processes recorded, and did not live to write, or had no room for: their last sums, and dreams."""
    charter, course, kept = protocol.charter, protocol.course, record.epochs()
    if not kept:
        return
    if isinstance(course, Sums):
        assert protocol.publication is not None  # noqa: S101 - of the newest epoch
        yield protocol.certified, protocol.publication  # an older file may be there: it is written in any case
        return
    numbers = range(protocol.certified - len(kept), min(protocol.certified, rounds_of(protocol)))
    if all((rounds / batch_name(number)).exists() for number in numbers):
        return
    for number, _, public in certified_epochs(charter, roster, course, kept):
        publication = public.publication()
        if number - 1 in numbers and "dreams" not in publication:
            return  # a course of other things: none of its epochs has a file
        if number - 1 in numbers and not (rounds / batch_name(number - 1)).exists():
            yield number, publication


def _accepted_by(folder: Path, charter: Charter, roster: Roster) -> list[str]:
    """Copy acceptances to the record; who has accepted, and which files are no acceptances, in words."""
    found, wrong = keep_in_record(folder, folder / "record", charter, roster)
    missing = ", ".join(member.name for member in roster.members if member.name not in found)
    if missing:
        wrong.append(f"No acceptance in {folder / ACCEPTANCES} of {missing}; put in what their operators send.")
    return wrong


def _and_rounds(
    watch: Callable[[dict[str, Any]], object] | None, on_round: Callable[[dict[str, Any]], object] | None
) -> Callable[[dict[str, Any]], object] | None:
    if on_round is None:
        return watch
    tell, tell_round = never_fails(watch), on_round_of(on_round)

    def both(event: dict[str, Any]) -> None:
        tell(event)
        if event["event"] == "round_finished":
            tell_round(event)

    return both


def _announce(folder: Path, endpoint: str) -> None:
    write_whole(folder / "endpoint", endpoint.encode())
