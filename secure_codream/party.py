"""A party's process: from its folder (see `provision`) to a finished federation.

`run_server` and `run_client` are what `secure-codream server FOLDER` and `secure-codream client FOLDER` do. The
client's half imports torch only when it runs, so that an aggregator without torch can run the server's half.
"""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import msgspec
import numpy as np
import structlog

from codream_protocols.identity import Roster, Signer, read_roster
from codream_protocols.plan import Plan
from codream_server.coordinator import Coordinator
from codream_server.feddream import FedDreamDataset
from codream_server.privacy_statement import client_privacy_statement
from codream_server.runner import ServerRunner
from secure_codream.config import FederationConfig, read_client, read_federation
from secure_codream.provision import public_transport_key, read_private_key, read_public_key
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

    from codream_clients.datasets import LabelledImages
    from codream_clients.ledger import Ledger
    from codream_clients.participant import Metrics


def load_roster(folder: Path, *, least_serial: int = 1) -> Roster:
    """Read and verify a party's roster under the administrator's key that the party pins.

    Raises:
        KeyFileError, RosterRefused, BadSignature: as their names say.
    """
    data = (folder / "roster.json").read_bytes()
    return read_roster(data, read_public_key(folder / "administrator.pub"), least_serial=least_serial)


class EventLog:
    """Appends events as JSON lines, each flushed, so that whoever watches sees it at once."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __call__(self, event: dict[str, Any]) -> None:
        """Write one event with its time; a number that is not finite becomes null, since JSON has none."""
        self._file.write(json.dumps(_finite({"time": time.time(), **event}), allow_nan=False) + "\n")
        self._file.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- server ---------------------------------------------


def run_server(folder: Path, *, listen: str | None = None, exhibit: tuple[int, int] | None = None) -> None:
    """Run the aggregator of `folder` until its federation is over.

    Writes `events.jsonl`, `rounds/`, `endpoint` (where it listens) and at the end `server.json` into the folder; with
    `[client_privacy]` also `privacy.json` and `privacy.html`.

    Args:
        folder: the server's folder.
        listen: endpoint; None takes the roster's address.
        exhibit: (epoch, step) of which the first masked vector is kept as `exhibit.npz`, for a report.

    Raises:
        AggregationFailed: too few clients, or too many failed epochs.
        ConfigError, KeyFileError, RosterRefused, BadSignature: as their names say.
    """
    config, roster = read_federation(folder / "config.toml"), load_roster(folder)
    dreams = config.dream_settings()
    coordinator = Coordinator(
        dreams=dreams,
        aggregation=config.aggregation_settings(),
        roster=roster,
        recipe=config.recipe,
        session=secrets.token_bytes(16),
        seed=config.federation.seed,
        dataset=FedDreamDataset(dreams.window, folder / "rounds"),
        student=_make_student(config) if dreams.adaptive_weight > 0 else None,
        privacy=config.client_privacy_settings(),
    )
    with (folder / "events.jsonl").open("a", encoding="utf-8") as events:
        runner = ServerRunner(
            coordinator=coordinator,
            roster=roster,
            transport_secret=read_private_key(folder / "transport.key"),
            endpoint=listen or roster.server.address,
            timing=config.timing_settings(),
            emit=EventLog(events),
            exhibit=exhibit,
        )
        asyncio.run(_until_signal(runner.run(lambda endpoint: _announce(folder, endpoint))))
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
    statement = coordinator.client_privacy
    report = {
        "client_privacy": None if statement is None else vars(statement),
        "secure_steps": runner.secure_steps,
        "seconds": runner.seconds,
        "traffic": {member.name: vars(traffic) for member, traffic in zip(roster.members, runner.traffic, strict=True)},
    }
    write_whole(folder / "server.json", json.dumps(report, indent=2).encode())
    if statement is not None:
        write_statement(
            folder,
            privacy_statement(
                config.federation.name, client=client_level(statement), colluders=config.aggregation.colluders
            ),
        )


def _announce(folder: Path, endpoint: str) -> None:
    write_whole(folder / "endpoint", endpoint.encode())


def _make_student(config: FederationConfig) -> Any:
    from codream_clients.models import build
    from codream_server.student import Student

    channels, size, _ = config.task.shape
    seed = config.federation.seed
    model = build("cnn2", channels=channels, size=size, classes=config.task.classes, seed=seed)
    return Student(model, seed=seed)


# -- client ---------------------------------------------


def run_client(
    folder: Path,
    *,
    address: str | None = None,
    exhibit: tuple[int, int] | None = None,
    threads: int | None = None,
    resume: bool = False,
    model: nn.Module | None = None,
    data: tuple[LabelledImages, LabelledImages | None] | None = None,
) -> None:
    """Take part with the client of `folder` until the federation is over.

    Writes into the folder: `log.jsonl`; round by round, `metrics.jsonl` and `model.pt` (a `state_dict` under
    `weights`); at the end `privacy.json` and `privacy.html`, what the run may say about privacy. In a federation with
    `[privacy]` also its ledger, `privacy.jsonl`, and what its mechanisms have released, `releases/`, so that a client
    that starts again goes on with it; in one with `[client_privacy]` the ledger of noised sums,
    `client_privacy.jsonl`. `answered_steps` has a byte for each step that it has answered, in earlier processes too,
    which its policy limits. Nothing of it leaves the machine.

    Args:
        folder: the client's folder.
        address: where the server listens; None takes the roster's.
        exhibit: (epoch, step) of which the plain encoded vector is written to `exhibit.npz` IN THIS FOLDER; for
            demonstrations on one machine, where the report shows it beside what the server saw.
        threads: threads for torch; None leaves torch's own choice.
        resume: begin with the weights in `model.pt` instead of the warm-up.
        model: replaces the configured model.
        data: replaces the configured data: (train, test or None).

    Raises:
        AggregationFailed: the server has fallen silent.
        LedgerError: the privacy budget does not allow what is planned, or the ledger cannot be used.
        CheckpointError: nothing to resume, or another model's weights.
        ConfigError, KeyFileError, RosterRefused, BadSignature: as their names say.
    """
    import torch

    from codream_clients.accounting import SampledGaussian, concentrated_rho, of_rho
    from codream_clients.privacy_plan import PrivacyPlan
    from codream_clients.releases import Releases
    from codream_clients.runner import ClientRunner
    from codream_clients.step_count import StepCount
    from codream_clients.tasks import DreamLearner
    from codream_clients.training import convergence_warnings_to
    from codream_protocols.client import ClientProtocol
    from secure_codream.checkpoint import read_weights, write_weights
    from secure_codream.learning import client_policy, make_participant, open_client_ledger, open_ledger

    if threads is not None:
        torch.set_num_threads(threads)
    client, federation = read_client(folder / "client.toml"), read_federation(folder / "config.toml")
    roster = load_roster(folder, least_serial=client.least_roster_serial)
    transport_secret = read_private_key(folder / "transport.key")
    with (
        (folder / "log.jsonl").open("a", encoding="utf-8") as log_file,
        (folder / "metrics.jsonl").open("a" if resume else "w") as figures,
        ExitStack() as opened,
    ):
        log = structlog.wrap_logger(
            structlog.WriteLogger(log_file),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(),
            ],
        )

        ledger: Ledger | None = None

        def releases(plan: PrivacyPlan) -> Releases:
            nonlocal ledger
            ledger = own = opened.enter_context(open_ledger(folder / "privacy.jsonl", client, federation, plan))

            def reserve(charge: SampledGaussian) -> None:
                own.reserve(charge)
                log.info("privacy", **vars(charge))

            key = f"{federation.recipe.hex()}|{client.model}|{client.seed}"
            return Releases(reserve, folder / "releases", key, spent=own.charges)

        participant = make_participant(client, federation, model=model, data=data, releases=releases, warmed_up=resume)
        record = EventLog(figures)

        def keep(metrics: Metrics) -> None:
            record({"event": "metrics", **vars(metrics)})
            write_weights(folder / "model.pt", participant.model, federation.recipe.hex())

        if resume:
            read_weights(folder / "model.pt", participant.model, federation.recipe.hex())
        opened.enter_context(convergence_warnings_to(lambda text: log.warning("training", found=text)))
        log.info("resume" if resume else "warm-up", model=client.model)
        keep(participant.begin() if resume else participant.warm_up())
        spent, charge = 0.0, None
        if federation.client_privacy is not None:
            sums = opened.enter_context(open_client_ledger(folder / "client_privacy.jsonl", client, federation))
            spent = concentrated_rho(sums.charges)

            def charge(rho: float) -> None:
                sums.reserve(of_rho(rho, "noised sum"))

        tells_accuracy = federation.privacy is None if client.tell_accuracy is None else client.tell_accuracy
        count = StepCount(folder / "answered_steps")
        protocol = ClientProtocol(
            member=roster.number_of(client.name),
            signer=Signer(read_private_key(folder / "identity.key")),
            roster=roster,
            policy=client_policy(client, federation),
            answered_steps=count.steps,
            count=count.add,
            spent_rho=spent,
            charge=charge,
        )
        runner = ClientRunner(
            protocol=protocol,
            learner=DreamLearner(
                participant,
                shape=federation.task.shape,
                classes=federation.task.classes,
                weight=client.weight,
                noised=federation.client_privacy is not None,
                tells_accuracy=tells_accuracy,
                on_metrics=keep,
            ),
            roster=roster,
            transport_secret=transport_secret,
            transport_public=public_transport_key(transport_secret),
            address=address,
            rounding=np.random.default_rng([client.seed, roster.number_of(client.name)]),
            patience=client.patience,
            log=log,
            on_encoded=_exhibitor(folder, exhibit) if exhibit is not None else None,
        )
        try:
            asyncio.run(_until_signal(runner.run()))
        finally:  # whatever has been spent is stated, also of a run that was cut short
            write_statement(
                folder,
                _own_statement(
                    federation,
                    client.name,
                    ledger,
                    len(roster.members),
                    protocol.spent_rho,
                    metrics_reported=tells_accuracy and federation.client_privacy is None,
                ),
            )
        log.info("finished", compute_seconds=round(runner.compute_seconds, 3))


def _own_statement(
    federation: FederationConfig,
    name: str,
    ledger: Ledger | None,
    members: int,
    spent_rho: float,
    *,
    metrics_reported: bool,
) -> PrivacyStatement:
    """What a client may say of its own records and of all that it has sent."""
    privacy = federation.client_privacy_settings()
    return privacy_statement(
        federation.federation.name,
        record=None if ledger is None else record_level([(name, ledger.budget, ledger.charges)], federation.privacy),
        client=None
        if privacy is None
        else client_level(
            client_privacy_statement(
                privacy,
                federation.dream_settings(),
                federation.aggregation_settings(),
                members=members,
                spent_rho=spent_rho,
            )
        ),
        colluders=federation.aggregation.colluders,
        metrics_reported=metrics_reported,
    )


def _exhibitor(folder: Path, at: tuple[int, int]) -> Callable[[Plan, int, Any], None]:
    def keep(plan: Plan, step: int, vector: Any) -> None:
        if (plan.epoch, step) == at:
            np.savez_compressed(
                folder / "exhibit.npz", plain=vector, modulus_bits=plan.modulus_bits, value_bits=plan.value_bits
            )

    return keep


async def _until_signal(work: Any) -> None:
    """Run until done; SIGINT and SIGTERM cancel it, so that sockets are closed and secrets erased."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    await task


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a client's `metrics.jsonl`; the first is the warm-up's."""
    if not path.exists():
        return []
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines() if line.endswith(b"}")]
