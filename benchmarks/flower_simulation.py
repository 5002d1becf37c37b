"""A round of secure aggregation among virtual clients: Flower's simulation with secagg+, and `secure-codream simulate`.

    pip install "flwr[simulation]"
    python benchmarks/flower_simulation.py --members 100 --dimension 100000

Both play all clients on this machine, one after the other, with one worker for each core; nobody drops out, and the
vectors are there without any work. Flower's server runs the workflow that it ships, all clients being neighbours, and
its clients its own modifier; a round is all its stages, from the invitation to the sum. Ours are run through the
command, with complete graphs, too: whole epochs of one step and of `--steps`, for each of its sums. Times are the
clock's, starts excluded, but that Flower's workers load their libraries in its first round.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def _flower(members: int, dimension: int, rounds: int, shares: int) -> list[float]:
    """Seconds of each of Flower's rounds."""
    from flwr.client import NumPyClient
    from flwr.client.mod import secaggplus_mod
    from flwr.clientapp import ClientApp
    from flwr.common import Context, ndarrays_to_parameters
    from flwr.server import LegacyContext, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    values = np.random.default_rng(0).normal(size=dimension).astype(np.float32)

    class Client(NumPyClient):  # type: ignore[misc]
        def fit(self, parameters: Any, config: Any) -> Any:
            return [values], 1, {}

    begun: list[float] = []
    folder = Path(tempfile.mkdtemp())

    class Workflow(SecAggPlusWorkflow):  # type: ignore[misc]
        def __call__(self, grid: Any, context: Any) -> None:
            started = time.perf_counter()
            super().__call__(grid, context)
            begun.append(time.perf_counter() - started)
            (folder / "rounds.json").write_text(json.dumps(begun))

    server, client = ServerApp(), ClientApp(client_fn=lambda context: Client().to_client(), mods=[secaggplus_mod])

    @server.main()  # type: ignore[untyped-decorator]
    def main(grid: Any, context: Context) -> None:
        strategy = FedAvg(
            fraction_evaluate=0.0,
            min_fit_clients=members,
            min_available_clients=members,
            initial_parameters=ndarrays_to_parameters([values]),
        )
        legacy = LegacyContext(context=context, config=ServerConfig(num_rounds=rounds), strategy=strategy)
        DefaultWorkflow(fit_workflow=Workflow(num_shares=shares, reconstruction_threshold=2 * shares // 3 + 1))(
            grid, legacy
        )

    run_simulation(
        server, client, num_supernodes=members, backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    )
    return [float(seconds) for seconds in json.loads((folder / "rounds.json").read_text())]


def _ours(members: int, dimension: int, steps: int) -> float:
    """Seconds of an epoch over its steps."""
    command = ["simulate", "--members", members, "--dimension", dimension, "--steps", steps, "--json"]
    printed = subprocess.run(
        [sys.executable, "-m", "secure_codream", *map(str, command)], check=True, capture_output=True
    ).stdout
    return float(json.loads(printed)["outcome"]["seconds"]) / steps


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=100)
    parser.add_argument("--dimension", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=2, help="Flower's")
    parser.add_argument("--shares", type=int, help="of each of Flower's secrets; of everybody unless given")
    parser.add_argument("--steps", type=int, default=10, help="of our longer epoch")
    asked = parser.parse_args()
    seconds: dict[str, Any] = {
        f"ours, a sum of {steps}": _ours(asked.members, asked.dimension, steps) for steps in (1, asked.steps)
    }
    seconds["flower, each round"] = _flower(asked.members, asked.dimension, asked.rounds, asked.shares or asked.members)
    print(json.dumps(seconds, indent=2))


if __name__ == "__main__":
    main()
