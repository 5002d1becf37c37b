"""The public API: take part with your own model and data, run the aggregator, or run everything in one process.

    from secure_codream import Client

    client = Client("federation/clients/alice", model=model, train=(images, labels), test=(images, labels))
    client.run()

Images are (N, C, H, W) float32, labels (N,) integers from 0 to K - 1; the federation's `[task]` says C, H, W and K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from codream_clients.datasets import LabelledImages
from codream_server.feddream import Batch
from codream_server.privacy_statement import ClientPrivacyStatement
from secure_codream.config import FederationConfig, check, read_federation
from secure_codream.learning import assemble
from secure_codream.local import LocalFederation
from secure_codream.party import run_client, run_server

Images = LabelledImages | tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


class Client:
    """A client of a federation, from the folder that `secure-codream provision` made for it.

    Args:
        folder: the client's folder.
        model: an `nn.Module`, (N, C, H, W) to logits (N, K), trained in place; None takes the configured one.
        train: the client's own images; None takes the configured data, `test` included.
        test: images to report accuracy on, never to train on; they may be left out.
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
        classes = read_federation(self._folder / "config.toml").task.classes
        self._data = None if train is None else (_labelled(train, classes), _labelled_or_none(test, classes))

    def run(self, *, address: str | None = None) -> None:
        """Take part until the federation is over; the model holds what was learnt.

        Args:
            address: where the server listens; None takes the roster's.

        Raises:
            ProtocolError, ConfigError, KeyFileError: see `secure_codream.party.run_client`.
        """
        run_client(self._folder, address=address, model=self._model, data=self._data)


class Server:
    """The aggregator of a federation, from its folder."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    def run(self, *, listen: str | None = None) -> None:
        """Serve until the federation is over; raises as `secure_codream.party.run_server`."""
        run_server(self._folder, listen=listen)


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalRun:
    """What `run_local` gives back.

    Attributes:
        accuracies: test accuracy of each client, after the warm-up and after each round: shape (rounds + 1, clients).
        dreams: the FedDream dataset: (dreams (B, C, H, W), soft labels (B, K)) by round.
        bytes_up: application bytes sent by all clients.
        bytes_down: the same, received.
        client_privacy: what may be said about client-level privacy; None without `client_privacy`.
    """

    accuracies: np.ndarray[Any, np.dtype[np.float64]]
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
    seed: int = 0,
    device: str = "auto",
    **config: dict[str, Any],
) -> LocalRun:
    """A whole federation in this process, over the same protocol machines as in deployment.

    Args:
        models: one for each client, trained in place; architectures may differ.
        shards: each client's own images.
        test: images that nobody trains on.
        classes: K.
        seed: seed of dreams and mini-batches.
        device: "auto", "cpu", "cuda" or "mps".
        config: tables of `config.toml`: `federation` (its rounds), `dreams`, `learning`, `aggregation`,
            `privacy`, `client_privacy`.

    Raises:
        ConfigError: a value that does not fit.
        AggregationFailed: fewer clients than the aggregation's settings need.
    """
    held_out = _labelled(test, classes)
    federation: FederationConfig = check(
        "run_local", FederationConfig, {"task": {"shape": held_out.shape, "classes": classes}, **config}
    )
    participants = [
        assemble(federation, model, (_labelled(shard, classes), held_out), seed=seed * 1000 + number, device=device)
        for number, (model, shard) in enumerate(zip(models, shards, strict=True))
    ]
    local = LocalFederation(
        participants,
        dreams=federation.dream_settings(),
        aggregation=federation.aggregation_settings(),
        seed=seed,
        privacy=federation.client_privacy_settings(),
    )
    accuracies = [local.warm_up()]
    accuracies += [local.round() for _ in range(federation.federation.rounds)]
    return LocalRun(
        accuracies=np.array(accuracies),
        dreams=local.coordinator.dataset.batches,
        bytes_up=local.parties.traffic.up,
        bytes_down=local.parties.traffic.down,
        client_privacy=local.coordinator.client_privacy,
    )


def _labelled(images: Images, classes: int) -> LabelledImages:
    if isinstance(images, LabelledImages):
        return images
    pixels, labels = images
    return LabelledImages(np.asarray(pixels, dtype=np.float32), np.asarray(labels, dtype=np.int64), classes)


def _labelled_or_none(images: Images | None, classes: int) -> LabelledImages | None:
    return None if images is None else _labelled(images, classes)
