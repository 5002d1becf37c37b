"""The public API: take part with your own model and data, run the aggregator, or run everything in one process.

    from secure_codream import Client

    client = Client("federation/clients/alice", model=model, train=(images, labels), test=(images, labels))
    client.run()

Images are bytes (N, H, W) or (N, H, W, C), or standardised floats (N, C, H, W); labels (N,) integers from 0 to K - 1,
or words; the federation's `[task]` says C, H, W, K and the words. Arrays go through the same gate as files
(`codream_clients.data`): they are understood, or refused with the reason.
`LabelledImages` with a `scale` let the model's file say how pixels are standardised. `open_model` opens that file:

    probabilities = open_model("federation/clients/alice").probabilities_of_pixels(pixels)  # uint8 (N, H, W, C)
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from codream_clients.data.arrays import Told
from codream_clients.data.datasets import DatasetError, LabelledImages
from codream_clients.data.given import given_images
from codream_clients.data.pixels import HALF, RawImages
from codream_clients.data.understanding import DataWarning, Notes, Understanding, numbers_mean, understood
from codream_clients.learning.participant import Metrics
from codream_clients.models.gate import require_own_weights
from codream_clients.models.layouts import layout_of
from codream_clients.models.refusals import ModelRefused
from codream_server.feddream import Batch
from codream_server.privacy_statement import ClientPrivacyStatement, client_privacy_statement
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.federation import PARAMETER_COURSES, AveragingTable, FederationConfig, read_federation
from secure_codream.configuration.images import agreed_scale, standardised
from secure_codream.configuration.learners import make_learner
from secure_codream.configuration.reading import ConfigError, check
from secure_codream.deployment.server import run_server
from secure_codream.simulation.in_process import Simulation
from secure_codream.use.model import open_model as open_model

Images = LabelledImages | tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


class Client:
    """A client of a federation, from the folder that `secure-codream provision` made for it.

    Args:
        folder: the client's folder.
        model: an `nn.Module`, (N, C, H, W) to logits (N, K), trained in place; None takes the configured one.
        train: the client's own images; None takes the configured data, `test` included.
        test: images to report accuracy on, never to train on; they may be left out.

    Raises:
        ConfigError: images that are none, or could be understood in two ways.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        model: nn.Module | None = None,
        train: Images | None = None,
        test: Images | None = None,
    ) -> None:
        self._folder, self._model = Path(folder), model
        self._data: tuple[LabelledImages, LabelledImages | None] | None = None
        self._understood: Understanding | None = None
        if train is not None:
            task = read_federation(self._folder / "config.toml").task
            parts = {"training": train, **({} if test is None else {"test": test})}
            found, notes = _given(
                parts, classes=task.classes, class_names=task.class_names, told=Told(shape=task.shape)
            )
            if task.class_names is not None and found["training"].class_names is None:
                notes.reads(numbers_mean(task.class_names))
            self._understood = understood("the arrays given", "in a script", list(found.items()), notes)
            for warning in self._understood.warnings:
                warnings.warn(warning, DataWarning, stacklevel=2)
            ready = [standardised(part, agreed_scale(task) or HALF) for part in found.values()]
            self._data = (ready[0], ready[1] if len(ready) > 1 else None)

    def run(self, *, address: str | None = None) -> None:
        """Take part until the federation is over; the model holds what was learnt.

        Args:
            address: where the server listens; None takes the roster's.

        Raises:
            ProtocolError, ConfigError, KeyFileError: see `secure_codream.deployment.client.run_client`.
        """
        from secure_codream.deployment.client import run_client

        run_client(self._folder, address=address, model=self._model, data=self._data, understood=self._understood)


class Server:
    """The aggregator of a federation, from its folder."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    def run(self, *, listen: str | None = None) -> None:
        """Serve until the federation is over; raises as `secure_codream.deployment.server.run_server`."""
        run_server(self._folder, listen=listen)


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalRun:
    """What `run_local` gives back.

    Attributes:
        accuracies: test accuracy of each client, after the warm-up and after each round: shape (rounds + 1, clients).
            Where parameters are averaged, all clients use the global model, and the first row shows each one's own
            half-way through its first round.
        rolled_back: of each client, the rounds whose training its own judge found worse than the best before, so that
            the model has the best weights again; where parameters are averaged the model is everybody's and stays.
        dreams: the FedDream dataset: (dreams (B, C, H, W), soft labels (B, K)) by round; of the course "codream" alone.
        bytes_up: application bytes sent by all clients.
        bytes_down: the same, received.
        client_privacy: what may be said about client-level privacy; None without `client_privacy`.
    """

    accuracies: np.ndarray[Any, np.dtype[np.float64]]
    rolled_back: tuple[tuple[int, ...], ...]
    dreams: tuple[Batch, ...]
    bytes_up: int
    bytes_down: int
    client_privacy: ClientPrivacyStatement | None = None


def run_local(
    models: Sequence[nn.Module],
    shards: Sequence[Images],
    test: Images,
    *,
    classes: int,
    seed: int | None = None,
    device: str = "auto",
    **config: dict[str, Any],
) -> LocalRun:
    """A whole federation in this process: the course, the learners and the protocol machines of a deployment.

    Args:
        models: one for each client, trained in place; architectures may differ, unless parameters are averaged.
        shards: each client's own images.
        test: images that nobody trains on.
        classes: K.
        seed: makes the run repeatable, keys included, but for the noise of `privacy`; without it starts and keys are
            the operating system's.
        device: "auto", "cpu", "cuda" or "mps".
        config: tables of `config.toml`: `federation` (its course and rounds), `dreams`, `learning`, `aggregation`,
            `averaging`, `fast`, `privacy`, `client_privacy`.

    Raises:
        ConfigError: a value that does not fit, images that are none or could be understood in two ways, a model that
            cannot take part or shares weights with another, or fewer clients than can be summed.
    """
    if len(models) != len(shards):
        raise ConfigError(
            f"run_local: found {len(models)} models and {len(shards)} shards; one of each a client is needed"
        )
    try:
        require_own_weights(models)
    except ModelRefused as error:
        raise ConfigError(f"run_local: {error}") from error
    images = {"test": test, **{f"client {number}": shard for number, shard in enumerate(shards)}}
    found, _ = _given(images, classes=classes, class_names=config.get("task", {}).get("class_names"))
    first = found["test"]
    task = {"shape": first.shape, "classes": classes, "class_names": first.class_names}
    federation: FederationConfig = check("run_local", FederationConfig, {"task": task, **config})
    scale = agreed_scale(federation.task) or HALF
    held_out, *owned = (standardised(part, scale) for part in found.values())
    aggregation = federation.aggregation_settings(len(shards))
    averages = federation.federation.course in PARAMETER_COURSES
    if averages:
        table = federation.averaging or AveragingTable()
        layout = replace(table, layout=layout_of(models[0]))
        federation = federation.model_copy(update={"averaging": layout})
    course = make_course(federation)
    largest = max(len(shard) for shard in owned)
    figures: list[list[Metrics]] = [[] for _ in owned]
    clients = [
        make_learner(
            ClientConfig(
                name=f"client-{number}",
                model="run_local:models",
                seed=(seed or 0) * 1000 + number,
                device=device,
                weight=len(shard) / largest if averages else 1.0,
            ),
            federation,
            course,
            model=model,
            data=(shard, held_out),
            on_metrics=figures[number].append,
        )
        for number, (model, shard) in enumerate(zip(models, owned, strict=True))
    ]
    simulation = Simulation(course, [client.learner for client in clients], aggregation=aggregation, seed=seed)
    for client in clients:
        client.warm_up()
    accuracies = [[_accuracy(found[-1] if found else None) for found in figures]]
    dreams: deque[Batch] = deque(maxlen=federation.dreams.window)
    while not simulation.server.done:
        published = simulation.run_epoch()
        accuracies.append([_accuracy(found[-1]) for found in figures])
        if "dreams" in published:
            dreams.append((np.array(published["dreams"]), np.array(published["soft_labels"])))
    if averages:
        accuracies[0] = [_accuracy(getattr(client.learner, "warm_up_metrics", None)) for client in clients]
    privacy, statement = federation.client_privacy, None
    if privacy is not None:
        spent = max(client.spent_rho for client in simulation.clients)
        statement = client_privacy_statement(privacy, federation.dream_settings(), simulation.charter, spent_rho=spent)
    return LocalRun(
        accuracies=np.array(accuracies[: federation.federation.rounds + 1]),  # a last epoch may be of metrics alone
        rolled_back=tuple(tuple(metrics.rounds for metrics in found if metrics.rolled_back) for found in figures),
        dreams=tuple(dreams),
        bytes_up=simulation.traffic.up,
        bytes_down=simulation.traffic.down,
        client_privacy=statement,
    )


def _accuracy(metrics: Metrics | None) -> float:
    return float(metrics.accuracy or 0.0) if metrics is not None else 0.0


def _given(parts: dict[str, Images], **known: Any) -> tuple[dict[str, RawImages] | dict[str, LabelledImages], Notes]:
    """The parts as `given_images` understands them, and what it noticed."""
    notes = Notes()
    try:
        return given_images(parts, notes=notes, **known), notes
    except DatasetError as error:
        raise ConfigError(f"images: {error}") from error
