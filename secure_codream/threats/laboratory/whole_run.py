"""A whole run as its parties leave it on disk: keys, logs, events, models, exhibit, statements, summary, report.

Server and clients are a deployment's own, from a provisioned folder to the end, but for where they run: each in a
thread of this process. Accuracies of references, which the demonstration trains beside them, are made up.
"""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

from codream_protocols.client import ClientProtocol
from secure_codream import demonstration
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.federation import FederationConfig
from secure_codream.deployment import client as client_process
from secure_codream.deployment import server as party
from secure_codream.deployment.provision import provision
from secure_codream.reports.report import write_report
from secure_codream.reports.run_folder import RunFolder
from secure_codream.reports.summary import write_summary
from secure_codream.simulation.wire import Stuck

_CLIENTS, _PATIENCE_SECONDS = 3, 60.0
_EXHIBIT = (0, 1)  # the first step has the metrics


def write_run(folder: Path, *, seed: int, random_bytes: Callable[[int], bytes]) -> RunFolder:
    """Run a small federation to its end, and write everything that a demonstration writes.

    Args:
        folder: where the run's folder is made.
        seed: of data, models and dreams.
        random_bytes: every client's generator of secrets.

    Raises:
        Stuck: it came to no end.
    """
    started = datetime.now(UTC)
    run = RunFolder.create(folder, "scratch", started)
    options = demonstration.DemoOptions(clients=_CLIENTS, rounds=1, seed=seed, per_client=10, steps=1, batch=8)
    federation = FederationConfig.model_validate(
        {
            "federation": {"name": "scratch", "rounds": options.rounds, "seed": seed},
            "task": {"shape": (1, 8, 8), "classes": 10},
            "dreams": {"steps": options.steps, "batch": options.batch},
            "learning": {"warm_up_epochs": 1, "distil_epochs": 1, "local_steps": 1},
        }
    )
    clients = [
        ClientConfig.model_validate(
            {
                "name": name,
                "model": "mlp",
                "device": "cpu",
                "patience": _PATIENCE_SECONDS,
                "data": {"source": "digits", "clients": _CLIENTS, "part": number, "per_client": options.per_client},
            }
        )
        for number, name in enumerate(options.names)
    ]
    provision(run.path, config=federation, clients=clients, address="tcp://127.0.0.1:7447")
    _run_parties(run, options.names, random_bytes)
    figures = {"independent": [0.5] * _CLIENTS, "centralised": 0.9, "student": 0.8, "label_counts": [[1] * 10] * 3}
    (run.path / "references.json").write_text(json.dumps(figures), encoding="utf-8")
    demonstration._gather_exhibit(run)
    write_summary(run, demonstration._summarise(run, options, federation, [], started, 1.0))
    write_report(run.path)
    return run


def _run_parties(run: RunFolder, names: list[str], random_bytes: Callable[[int], bytes]) -> None:
    made = ClientProtocol.__init__

    def make(self: ClientProtocol, **arguments: Any) -> None:
        made(self, **arguments, random_bytes=random_bytes)

    with (
        patch.object(ClientProtocol, "__init__", make),
        ThreadPoolExecutor(len(names) + 1) as threads,
    ):
        server = threads.submit(party.run_server, run.server, listen="tcp://127.0.0.1:*", exhibit=_EXHIBIT)
        endpoint = run.server / "endpoint"
        while not endpoint.exists():
            if server.done():
                raise Stuck(f"the server ended before it listened: {server.exception()!r}")
            time.sleep(0.02)
        address = endpoint.read_text(encoding="utf-8")
        running = [
            threads.submit(client_process.run_client, run.client(name), address=address, exhibit=_EXHIBIT, threads=1)
            for name in names
        ]
        for thread in (*running, server):
            thread.result()


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file below a folder but the key files, whose content is meant to be there; archives unpacked."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".key" or not path.is_file():
            continue
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield path, b"".join(archive.read(name) for name in archive.namelist())
        else:
            yield path, path.read_bytes()
