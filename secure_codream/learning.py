"""From configuration to learning: a client's data, model, settings and policy.

Imports torch; `party` loads it on demand.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from torch import nn

from codream_clients.datasets import LabelledImages, load_digits_data, load_mnist
from codream_clients.devices import pick_device
from codream_clients.models import build
from codream_clients.participant import LearningSettings, Participant
from codream_clients.partitions import dirichlet, iid
from codream_protocols.plan import Policy
from codream_protocols.tasks import LOGITS, METRICS, UPDATE
from secure_codream.config import ClientConfig, ConfigError, DataTable, FederationConfig, check

TEST_SIZE = 600


def learning_settings(federation: FederationConfig) -> LearningSettings:
    """The `[learning]` table as settings; `way`, clips and window follow `[dreams]`.

    Raises:
        ConfigError: a key or value that does not fit.
    """
    dreams = federation.dreams
    settings = {
        **federation.learning,
        "way": dreams.way,
        "delta_clip": dreams.update_clip,
        "logit_clip": dreams.logit_clip,
        "window": dreams.window,
    }
    try:
        return check("[learning]", LearningSettings, settings)  # type: ignore[no-any-return]
    except ConfigError:
        raise
    except ValueError as error:  # the settings' own check of a combination
        raise ConfigError(f"[learning]: {error}") from None


@lru_cache(maxsize=4)
def _whole(source: str, root: Path | None, seed: int) -> tuple[LabelledImages, LabelledImages]:
    if source == "digits":
        return load_digits_data(seed, TEST_SIZE)
    if root is None:
        raise ConfigError("[data]: root is missing; the folder that holds MNIST/raw is needed for source 'mnist'")
    return load_mnist(root)


def load_data(table: DataTable) -> tuple[LabelledImages, LabelledImages]:
    """A client's own images, and test images that all share.

    Raises:
        ConfigError: a part that does not exist, or missing files.
    """
    train, test = _whole(table.source, table.root, table.seed)
    if table.part >= table.clients:
        raise ConfigError(f"[data]: part {table.part} of {table.clients}; 0 to {table.clients - 1} is allowed")
    parts = (
        iid(train.labels, table.clients, table.per_client, table.seed)
        if table.partition == "iid"
        else dirichlet(train.labels, table.clients, table.per_client, table.alpha, table.seed)
    )
    return train.subset(parts[table.part]), test


def make_model(client: ClientConfig, federation: FederationConfig) -> nn.Module:
    """The client's model, initialised from its seed."""
    channels, size, _ = federation.task.shape
    return build(client.model, channels=channels, size=size, classes=federation.task.classes, seed=client.seed)


def make_participant(client: ClientConfig, federation: FederationConfig) -> Participant:
    """Everything a client learns with.

    Raises:
        ConfigError: data of another form than the federation's task.
    """
    train, test = load_data(client.data)
    if train.shape != federation.task.shape or train.classes != federation.task.classes:
        raise ConfigError(
            f"[data]: images of shape {train.shape} in {train.classes} classes; the federation's [task] has "
            f"{federation.task.shape} in {federation.task.classes}"
        )
    return Participant(
        learning_settings(federation),
        make_model(client, federation),
        train,
        test,
        client.seed,
        pick_device(client.device),
    )


def client_policy(client: ClientConfig, federation: FederationConfig) -> Policy:
    """The client's policy: its own table, and the vectors that the federation's configuration implies."""
    dreams = federation.dreams
    channels, height, width = federation.task.shape
    coordinates = max(dreams.batch * channels * height * width + 3, dreams.batch * federation.task.classes * 2)
    largest = max(1.0, float(np.log(federation.task.classes)))
    return Policy(
        **client.policy.model_dump(),
        most_coordinates=coordinates,
        tasks={UPDATE: max(dreams.update_clip, largest), LOGITS: max(dreams.logit_clip, 1.0), METRICS: 1.0},
        recipe=federation.recipe,
    )
