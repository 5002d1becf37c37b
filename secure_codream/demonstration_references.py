"""The references of a run: what clients reach alone, what pooled data reach, what a student learns from dreams alone.

They run in a process of their own beside a demonstration, on this machine, where all clients' data can be had. In a
deployment nobody could compute them. Those of a private federation train under the same `[privacy]` table.
"""

from __future__ import annotations

import json
from statistics import fmean
from typing import TextIO

import torch

from codream_clients.data.datasets import LabelledImages, pool
from codream_clients.learning.distillation import distil
from codream_clients.learning.local_work import train_epochs
from codream_clients.learning.settings import LearningSettings
from codream_clients.learning.training import evaluate
from codream_clients.models.zoo import build
from codream_server.feddream import read_batches
from secure_codream.configuration.assembly import assemble, make_model
from secure_codream.configuration.client import ClientConfig, read_client
from secure_codream.configuration.federation import FederationConfig, learning_settings, read_federation
from secure_codream.configuration.images import load_data
from secure_codream.deployment.files import CLIENT_FILE
from secure_codream.reports.files import write_whole
from secure_codream.reports.run_folder import RunFolder

STUDENT_MODEL = "cnn2"


def compute_references(run: RunFolder, names: list[str], dreams_ready: TextIO) -> None:
    """Write `references.json` into the run's folder: `independent` by client, `centralised`, `student`.

    Args:
        run: the folder of a provisioned run.
        names: the clients, in the roster's order.
        dreams_ready: a line arrives here when all rounds are over; its end without one means that nobody waits.
    """
    torch.set_num_threads(1)
    clients = [read_client(run.client(name) / CLIENT_FILE) for name in names]
    federation = read_federation(run.config)
    settings, rounds = learning_settings(federation), federation.federation.rounds
    data = [load_data(client.data, federation.task, private=federation.record_private) for client in clients]
    shards, test = [train for train, _ in data], data[0][1]
    seeds, device = [client.seed for client in clients], torch.device("cpu")

    def fresh() -> list[torch.nn.Module]:
        return [make_model(client, federation) for client in clients]

    if federation.privacy is None:
        pooled = [pool(shards)] * len(shards)
        independent, centralised = (
            [_trained(*one, settings, rounds, test) for one in zip(fresh(), data, seeds, strict=True)]
            for data in (shards, pooled)
        )
    else:
        independent = _privately(federation, clients, shards, test)
        centralised = _privately(federation, clients, [pool(shards)] * len(clients), test)
    if not dreams_ready.readline():
        return
    channels, height, width = federation.task.shape
    seed = federation.federation.seed
    student = build(STUDENT_MODEL, channels=channels, size=(height, width), classes=federation.task.classes, seed=seed)
    distil(
        student,
        read_batches(run.rounds),
        settings,
        epochs=settings.distil_epochs * rounds,
        seed=seed,
        device=device,
    )
    found = {
        "independent": independent,
        "centralised": fmean(centralised),
        "student": evaluate(student, test, device),
        "label_counts": [train.class_counts.tolist() for train in shards],
    }
    write_whole(run.path / "references.json", json.dumps(found).encode())


def _trained(
    model: torch.nn.Module,
    data: LabelledImages,
    seed: int,
    settings: LearningSettings,
    rounds: int,
    test: LabelledImages,
) -> float:
    """Accuracy after as many epochs on `data` alone as a client of the federation has in all, and the same loss."""
    device = torch.device("cpu")
    train_epochs(model, data, settings, epochs=settings.epochs_in_all(rounds), seed=seed, device=device)
    return evaluate(model, test, device)


def _privately(
    federation: FederationConfig, clients: list[ClientConfig], data: list[LabelledImages], test: LabelledImages
) -> list[float]:
    """Accuracies of the clients' models, each trained on its entry of `data` alone with the whole budget."""
    accuracies = []
    for client, train in zip(clients, data, strict=True):
        participant = assemble(
            federation,
            make_model(client, federation),
            (train, test),
            seed=client.seed,
            device="cpu",
            name=client.model,
        )
        accuracies.append(float(participant.warm_up().accuracy or 0.0))
    return accuracies
