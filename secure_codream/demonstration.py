"""The demonstration: a federation of real processes on this machine, from provisioning to the report.

One server process, one process for each client, over ZeroMQ with CURVE on loopback; beside them one process that
computes the references. The demonstration itself only starts them, watches the server's events, and gathers the
results.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import tomli_w

from codream_clients.data.datasets import DIGITS_MEAN, DIGITS_STD, Augment
from codream_protocols.charter import Charter, default_threshold
from secure_codream.configuration.client import ClientConfig, DataTable
from secure_codream.configuration.federation import FederationConfig
from secure_codream.configuration.reading import check
from secure_codream.deployment.provision import provision
from secure_codream.membership.accepted import load_roster
from secure_codream.reports.metrics import read_metrics
from secure_codream.reports.panel import LivePanel
from secure_codream.reports.report import write_report
from secure_codream.reports.run_folder import RunFolder
from secure_codream.reports.statement import (
    RecordLevel,
    mechanisms_of,
    privacy_statement,
    record_level,
    write_statement,
)
from secure_codream.reports.summary import (
    Accuracy,
    ClientResult,
    CoDreamAccuracy,
    IndependentAccuracy,
    Summary,
    Timing,
    Traffic,
    write_client_result,
    write_summary,
)
from secure_codream.reports.versions import versions_of

MODELS = ("cnn2", "cnn3", "resnet8", "mlp", "cnn2_wide")
START_SECONDS = 120.0
POLL_SECONDS = 0.02
LOST_AFTER = 10.0  # nothing hangs on it but how soon a killed client is missed


class DemoError(RuntimeError):
    """The federation did not come to its end; the text says which log to read."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What a person may choose.

    Attributes:
        clients: how many clients, 3 or more.
        rounds: dream batches.
        alpha: Dirichlet's concentration; None means IID.
        seed: seed of data, models and dreams.
        drop: how many client processes to kill in the middle of a step, and to start again once they are missed.
        mode: "lockstep" or "resilient"; None takes what fits the number of clients.
        per_client: images a client; None takes 30, and for a private run all that there are, dealt out evenly.
        steps: secure steps of dream updates a round; None takes 5, and for a private run, which dreams from noise, 10.
        batch: dreams a batch.
        epsilon: record-level budget of each client for the whole run; None runs without differential privacy.
        out: where the run's folder is made.
    """

    clients: int = 5
    rounds: int = 4
    alpha: float | None = 0.5
    seed: int = 0
    drop: int = 0
    mode: str | None = None
    per_client: int | None = None
    steps: int | None = None
    batch: int = 128
    epsilon: float | None = None
    out: Path = Path("runs")

    @property
    def names(self) -> list[str]:
        """The clients' names."""
        return [f"client-{number}" for number in range(1, self.clients + 1)]

    @property
    def models(self) -> list[str]:
        """The clients' models, of five kinds in turn; no layer of a private one mixes records."""
        variant = "" if self.epsilon is None else "_gn"
        return [MODELS[number % len(MODELS)] + variant for number in range(self.clients)]

    @property
    def images(self) -> int | None:
        """How many images each client has; None deals all of them out evenly."""
        return 30 if self.per_client is None and self.epsilon is None else self.per_client

    @property
    def updates(self) -> int:
        """Secure steps of dream updates a round."""
        if self.steps is not None:
            return self.steps
        return 5 if self.epsilon is None else 10

    @property
    def augment(self) -> Augment:
        """How images are varied in every training; docs/findings.md has what it is worth."""
        return "affine" if self.epsilon is None else "none"

    @property
    def tables(self) -> dict[str, Any]:
        """The federation's tables of what is dreamt and learnt, and of the privacy that `epsilon` asks for."""
        dreams = {"steps": self.updates, "batch": self.batch}
        if self.epsilon is None:
            learning = {"training_rounds": self.rounds - 1}  # what the last dreams taught stays as it is
            return {"dreams": {"start": "strokes", **dreams}, "learning": learning}
        table = {"epsilon": self.epsilon, "delta": 1e-4, "batch_size": 64, "warm_up_epochs": 20, "lr": 1.0}
        # Small images bear the rate that is usual without privacy, and learn more at it (docs/findings.md).
        rates = {"distil_lr": 0.02, "distil_noise": 0.3}
        return {"dreams": dreams, "privacy": table, "learning": {"own_weight": 0.0, "max_count": 64, **rates}}

    @property
    def exhibit(self) -> tuple[int, int]:
        """The (epoch, step) that the report shows from both sides; step 0 has the metrics."""
        return (0, 1 + self.updates // 2)

    @property
    def drop_at(self) -> tuple[int, int]:
        """The (round, step) in which clients are killed."""
        return (min(1, self.rounds - 1), 1 + self.updates // 2)


@dataclass
class _Processes:
    """The processes of a run; whatever happens, none is left behind."""

    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, arguments: list[str], log: Path, *, nice: int = 0) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "secure_codream", *arguments]
        if nice and os.name == "posix":
            command = ["nice", "-n", str(nice), *command]
        with log.open("ab") as file:
            process = subprocess.Popen(  # noqa: S603 - our own command, no shell
                command, stdin=subprocess.PIPE, stdout=file, stderr=file, env=environment
            )
        self.running[name] = process
        return process

    def stop(self) -> None:
        for process in self.running.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + 5
        for process in self.running.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()


def run_demo(options: DemoOptions, panel: LivePanel) -> tuple[Summary, RunFolder]:
    """Run the whole demonstration and write `summary.json`, `report.html` and the privacy statement.

    Raises:
        DemoError: a process failed, or the federation came to no end.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    run = RunFolder.create(options.out, "demo", started)
    federation = _provision(run, options)
    panel.phase(f"starting the server and {options.clients} clients")
    with _processes() as processes:
        references = processes.start(
            "references", ["reference", str(run.path), *options.names], run.path / "references.log", nice=5
        )
        killed = _run_federation(run, options, processes, panel)
        panel.phase("training the references: alone, all data in one place, a student from dreams alone")
        assert references.stdin is not None  # noqa: S101 - it is a pipe
        try:
            references.stdin.write(b"dreams are ready\n")
            references.stdin.flush()
        except BrokenPipeError:
            pass  # its exit status says more
        if references.wait() != 0:
            raise DemoError(f"the references failed; read {run.path / 'references.log'}")
    _gather_exhibit(run)
    summary = _summarise(run, options, federation, killed, started, time.monotonic() - clock)
    write_summary(run, summary)
    write_statement(
        run.path,
        privacy_statement(
            "demo",
            record=_record_level(run, options, federation),
            colluders=federation.aggregation.colluders,
            dealt_out=True,
        ),
    )
    write_report(run.path)
    return summary, run


def _provision(run: RunFolder, options: DemoOptions) -> FederationConfig:
    federation: FederationConfig = check(
        "demo",
        FederationConfig,
        {
            "federation": {"name": "demo", "rounds": options.rounds, "seed": options.seed},
            "task": {"shape": (1, 8, 8), "classes": 10, "mean": (DIGITS_MEAN,), "std": (DIGITS_STD,)},
            "timing": {"lost_after": LOST_AFTER},
            **({} if options.mode is None else {"aggregation": {"mode": options.mode}}),
            **options.tables,
        },
    )
    clients = [
        ClientConfig(
            name=name,
            model=options.models[number],
            seed=options.seed * 1000 + number,
            device="cpu",
            tell_accuracy=True,  # the test images are public
            data=DataTable(
                source="digits",
                partition="iid" if options.alpha is None else "dirichlet",
                alpha=options.alpha or 0.5,
                clients=options.clients,
                part=number,
                per_client=options.images,
                seed=options.seed,
                augment=options.augment,
            ),
        )
        for number, name in enumerate(options.names)
    ]
    provision(run.path, config=federation, clients=clients, address="tcp://127.0.0.1:7447")
    run.config.write_text(tomli_w.dumps(federation.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    return federation


@contextmanager
def _processes() -> Iterator[_Processes]:
    processes = _Processes()
    try:
        yield processes
    finally:
        processes.stop()


def _run_federation(run: RunFolder, options: DemoOptions, processes: _Processes, panel: LivePanel) -> list[str]:
    """Start server and clients, show the events, kill whom the options say and start them again once they are missed.

    Returns:
        Who was killed.
    """
    exhibit = "{}:{}".format(*options.exhibit)
    server = processes.start(
        "server",
        ["server", str(run.server), "--listen", "tcp://127.0.0.1:*", "--exhibit", exhibit, "--spans"],
        run.server / "process.log",
    )
    endpoint = _wait_for_endpoint(run, server)

    def start(name: str) -> None:
        folder = run.client(name)
        arguments = ["client", str(folder), "--address", endpoint, "--exhibit", exhibit, "--spans", "--threads", "1"]
        processes.start(name, arguments, folder / "process.log")

    for name in options.names:
        start(name)
    victims = options.names[len(options.names) - options.drop :]
    killed: list[str] = []
    down: set[str] = set()
    for event in _follow(run.events, server):
        _check_alive(run, options, processes, down)
        if event is None:
            continue
        panel.feed(event)
        at = (event.get("round"), event.get("step"))
        if victims and not killed and event["event"] == "step_started" and at == options.drop_at:
            for name in victims:
                processes.running[name].send_signal(signal.SIGKILL)
            killed, down = victims, set(victims)
        elif event["event"] == "client_lost" and event["client"] in down:
            processes.running[event["client"]].wait()
            start(event["client"])
            down.remove(event["client"])
            panel.phase(f"{event['client']} is missed, and started again")
    if server.wait() != 0:
        raise DemoError(f"the server failed; read {run.server / 'process.log'}")
    for name in options.names:
        if processes.running[name].wait() != 0:
            raise DemoError(f"{name} failed; read {run.client(name) / 'process.log'}")
    return killed


def _wait_for_endpoint(run: RunFolder, server: subprocess.Popen[bytes]) -> str:
    path, deadline = run.server / "endpoint", time.monotonic() + START_SECONDS
    while not path.exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise DemoError(f"the server did not start; read {run.server / 'process.log'}")
        time.sleep(POLL_SECONDS)
    return path.read_text(encoding="utf-8")


def _check_alive(run: RunFolder, options: DemoOptions, processes: _Processes, down: set[str]) -> None:
    for name in options.names:
        if name not in down and processes.running[name].poll() not in (None, 0):
            raise DemoError(f"{name} failed; read {run.client(name) / 'process.log'}")


def _follow(path: Path, server: subprocess.Popen[bytes]) -> Iterator[dict[str, Any] | None]:
    """The events as they are written, and None now and then, until the server's process ends."""
    position = 0
    while True:
        ended = server.poll() is not None  # asked first, so that what was written before the end is still read
        if path.exists():
            with path.open("rb") as file:
                file.seek(position)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    position += len(line)
                    yield json.loads(line)
        if ended:
            return
        yield None
        time.sleep(POLL_SECONDS)


def _gather_exhibit(run: RunFolder) -> None:
    """Put what the server saw beside what the clients hold; only on one machine can anybody do that."""
    seen_path = run.server / "exhibit.npz"
    if not seen_path.exists():
        return
    with np.load(seen_path, allow_pickle=False) as seen:
        names = [str(name) for name in seen["survivors"]]
        paths = {name: run.client(name) / "exhibit.npz" for name in names}
        if not all(path.exists() for path in paths.values()):
            return
        plain = {name: dict(np.load(path, allow_pickle=False)) for name, path in paths.items()}
        client = str(seen["client"])
        bits = int(plain[client]["modulus_bits"])
        total = sum(vectors["plain"].astype(np.uint64) for vectors in plain.values()) % (1 << bits)
        np.savez_compressed(
            run.exhibit,
            client=client,
            round=seen["round"],
            step=seen["step"],
            plain=plain[client]["plain"].astype(np.uint32),
            masked=seen["masked"].astype(np.uint32),
            recovered_sum=seen["recovered_sum"].astype(np.uint32),
            plain_sum=np.asarray(total).astype(np.uint32),
            modulus_bits=bits,
            top=plain[client]["top"],
        )


def _record_level(run: RunFolder, options: DemoOptions, federation: FederationConfig) -> RecordLevel | None:
    """What every client's ledger says, also of one that was killed; only on one machine can anybody read them all."""
    if federation.privacy is None:
        return None
    from codream_clients.privacy.ledger import Ledger, Spender

    members = []
    for name in options.names:
        by = Spender(federation.federation.name, name)
        ledger = Ledger.look(run.client(name) / "privacy.jsonl", by=by, budget=None)
        if ledger is not None:
            members.append((name, ledger.budget, mechanisms_of(ledger)))
    return record_level(members, federation.privacy)


def _summarise(
    run: RunFolder,
    options: DemoOptions,
    federation: FederationConfig,
    killed: list[str],
    started: datetime,
    seconds: float,
) -> Summary:
    references = json.loads((run.path / "references.json").read_text())
    server = json.loads((run.server / "server.json").read_text())
    figures = {name: read_metrics(run.client(name) / "metrics.jsonl") for name in options.names}
    accuracies = [_by_round(figures[name], options.rounds) for name in options.names]
    final = [rows[-1] if rows else None for rows in accuracies]
    alone: list[float] = references["independent"]
    for name, model, rows, accuracy, counts in zip(
        options.names, options.models, accuracies, alone, references["label_counts"], strict=True
    ):
        result = ClientResult(
            name=name,
            model=model,
            independent=accuracy,
            accuracy_by_round=rows,
            samples=sum(counts),
            label_counts=counts,
        )
        write_client_result(run.result(name), result)
    together = [accuracy for accuracy in final if accuracy is not None]
    # The gap is measured over the clients that finished, alone and together.
    alone_finished = fmean(value for value, last in zip(alone, final, strict=True) if last is not None)
    gap = references["centralised"] - alone_finished
    roster = load_roster(run.server)
    means = {key: total / options.clients for key, total in server["traffic"].items()}
    charter = federation.charter(roster)
    return Summary(
        name=federation.federation.name,
        started=started,
        versions=_versions(),
        seed=options.seed,
        clients=options.clients,
        client_names=options.names,
        models=options.models,
        data="digits",
        partition="iid" if options.alpha is None else f"dirichlet {options.alpha:g}",
        label_counts=references["label_counts"],
        rounds=options.rounds,
        secure_steps=server["secure_steps"],
        accuracy=Accuracy(
            independent=IndependentAccuracy(mean=fmean(alone), clients=alone),
            codream=CoDreamAccuracy(mean=fmean(together), clients=final),
            centralised=references["centralised"],
            student=references["student"],
            by_round=[
                [rows[number] if number < len(rows) else None for rows in accuracies]
                for number in range(options.rounds)
            ],
        ),
        gap_closure=(fmean(together) - alone_finished) / gap if gap > 0 else None,
        bytes=Traffic(
            up_per_client=means["up"],
            down_per_client=means["down"],
            setup_per_client=means["setup"],
            payload_per_client=means["payload"],
            overhead=means["up"] / means["payload"],
        ),
        seconds=Timing(total=seconds, **server["seconds"]),
        dropped=killed,
        rolled_back={
            name: sorted(rounds)
            for name, lines in figures.items()
            if (rounds := {line["rounds"] for line in lines if line.get("rolled_back")})
        },
        colluders=federation.aggregation.colluders,
        threshold=_threshold(charter),
        min_survivors=charter.aggregation.least_survivors,
        mode=charter.aggregation.mode,
        blocks=[[options.names[member] for member in block] for block in charter.blocks],
        head=server["head"],
    )


def _by_round(lines: list[dict[str, Any]], rounds: int) -> list[float]:
    """A client's accuracy after each round; a client that was started again has lines twice, and the later counts."""
    found: dict[int, float] = {}
    for line in lines:
        found[line["rounds"]] = line["accuracy"]
    return [found[number] for number in range(1, rounds + 1) if number in found]


def _threshold(charter: Charter) -> int:
    if charter.aggregation.mode == "lockstep":
        return charter.members
    return default_threshold(charter.members, charter.aggregation.colluders)


def _versions() -> dict[str, str]:
    names = ("secure-codream", "torch", "numpy", "cryptography", "pyzmq", "msgpack", "msgspec")
    return versions_of(*names)
