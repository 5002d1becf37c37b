"""A federation on MNIST by real processes, each of which keeps its spans: what the sum takes beside the learning.

python benchmarks/mnist_processes.py ../shared/data runs/mnist-4x50     # 4 clients of 50 images, 3 rounds
secure-codream bench --run runs/mnist-4x50

The processes are those of the commands `server` and `client`, on loopback; settings are the defaults.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from secure_codream.configuration.client import ClientConfig, DataTable
from secure_codream.configuration.federation import FederationConfig
from secure_codream.configuration.reading import check
from secure_codream.deployment.provision import provision

MODELS = ("cnn2", "cnn3", "resnet8", "mlp")
COMMAND = (sys.executable, "-m", "secure_codream")


def main() -> None:
    """Provision, start all processes, and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="where MNIST/raw lies")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    federation: FederationConfig = check(
        "mnist",
        FederationConfig,
        {
            "federation": {"name": "mnist", "rounds": options.rounds},
            "task": {"shape": (1, 28, 28), "classes": 10},
        },
    )
    clients = [
        ClientConfig(
            name=f"client-{number + 1}",
            model=model,
            seed=number,
            device="cpu",
            data=DataTable(
                source="mnist",
                root=str(options.root.resolve()),
                clients=len(MODELS),
                part=number,
                per_client=options.images,
                test_limit=1000,
            ),
        )
        for number, model in enumerate(MODELS)
    ]
    provision(options.out, config=federation, clients=clients, address="tcp://127.0.0.1:7447")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = options.out / "server"
    started = [
        subprocess.Popen([*COMMAND, "server", str(server), "--listen", "tcp://127.0.0.1:*", "--spans"], env=environment)
    ]
    endpoint = server / "endpoint"
    while not endpoint.exists() and started[0].poll() is None:
        time.sleep(0.2)
    for client in clients:
        words = ["client", str(options.out / "clients" / client.name), "--address", endpoint.read_text()]
        started.append(subprocess.Popen([*COMMAND, *words, "--spans", "--threads", "1"], env=environment))
    sys.exit(max(process.wait() for process in started))


if __name__ == "__main__":
    main()
