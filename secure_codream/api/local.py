"""A whole federation in a person's own process, with the machines of a deployment."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from codream_clients.data.datasets import LabelledImages
from codream_clients.data.understanding import DataWarning
from codream_clients.learning.participant import Metrics
from codream_clients.models.gate import require_own_weights
from codream_clients.models.layouts import layout_of, trained_layout
from codream_clients.models.refusals import ModelRefused
from codream_clients.privacy.index import known_index
from codream_clients.privacy.records import stored_digests
from codream_server.feddream import Batch
from codream_server.privacy_statement import ClientPrivacyStatement, client_privacy_statement
from secure_codream.api.images import Images, given
from secure_codream.configuration.client import ClientConfig, PolicyTable
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.federation import PARAMETER_COURSES, AveragingTable, FederationConfig
from secure_codream.configuration.images import not_covered, said_of_scale, standardised
from secure_codream.configuration.learners import make_learner
from secure_codream.configuration.reading import ConfigError, check
from secure_codream.simulation.in_process import Simulation


class NotCovered(UserWarning):
    """What is trained on these images is charged to no ledger, so no epsilon covers it."""


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
    public: bool = False,
    on_round: Callable[[tuple[Metrics, ...]], object] | None = None,
    **config: dict[str, Any],
) -> LocalRun:
    """A whole federation in this process: the course, the learners and the protocol machines of a deployment.

    What it spends under `privacy` is charged to no ledger, so no client's epsilon covers it: models and figures of
    images that are not public are to stay where the images may be seen. It warns `NotCovered` of that, and of a ledger
    that some of the images have. `Client` charges.

    Args:
        models: one for each client, trained in place; architectures may differ, unless parameters are averaged.
        shards: each client's own images.
        test: images that nobody trains on.
        classes: K.
        seed: makes the run repeatable, keys included, but for the noise of `privacy`; without it starts and keys are
            the operating system's.
        device: "auto", "cpu", "cuda" or "mps".
        public: whether the images protect nobody; then there is no warning.
        on_round: called after each round with every client's figures; what it raises ends the run.
        config: tables of `config.toml`: `federation` (its course and rounds), `dreams`, `learning`, `aggregation`,
            `averaging`, `fast`, `dp_sgd`, `privacy`, `client_privacy`.

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
    found, _ = given(images, classes=classes, class_names=config.get("task", {}).get("class_names"))
    first = found["test"]
    task = {"shape": first.shape, "classes": classes, "class_names": first.class_names}
    federation: FederationConfig = check("run_local", FederationConfig, {"task": task, **config})
    for text in said_of_scale(found.items(), federation.task)[1]:
        warnings.warn(text, DataWarning, stacklevel=2)
    held_out, *owned = (standardised(part, federation.task) for part in found.values())
    if not public:
        warnings.warn(_not_covered(owned), NotCovered, stacklevel=2)
    aggregation = federation.aggregation_settings(len(shards))
    averages = federation.federation.course in PARAMETER_COURSES
    if averages:
        table = federation.averaging or AveragingTable()
        layout = replace(table, layout=layout_of(models[0]))
        federation = federation.model_copy(update={"averaging": layout})
    elif federation.dp_sgd is not None:
        common = replace(federation.dp_sgd, layout=trained_layout(models[0]))
        federation = federation.model_copy(update={"dp_sgd": common})
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
                policy=PolicyTable(shared_noise=True),
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
        if on_round is not None and len(accuracies) <= federation.federation.rounds + 1:
            on_round(tuple(found[-1] for found in figures))
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


def _not_covered(shards: Sequence[LabelledImages]) -> str:
    said, index = not_covered("nothing says that the images are public (public = True)"), known_index()
    known = [] if index is None else index.ledgers_of([one for shard in shards for one in stored_digests(shard)])
    return said + "".join(f"; {one.images:,} of them have spent in the ledger {one.path}" for one in known)


def _accuracy(metrics: Metrics | None) -> float:
    return float(metrics.accuracy or 0.0) if metrics is not None else 0.0
