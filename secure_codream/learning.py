"""From configuration to learning: a client's data, model, settings and policy.

Imports torch; `party` loads it on demand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from torch import nn

from codream_clients.datasets import LabelledImages
from codream_clients.devices import pick_device
from codream_clients.dreaming import DreamLoss
from codream_clients.models import ModelShapeError, UnknownModelError, build, check_model
from codream_clients.own_parts import OwnPartError
from codream_clients.participant import LearningSettings, Participant
from codream_protocols.plan import Policy
from codream_protocols.tasks import LOGITS, METRICS, UPDATE
from secure_codream.config import ClientConfig, ConfigError, FederationConfig, check
from secure_codream.data import load_data as load_data


def learning_settings(federation: FederationConfig) -> LearningSettings:
    """The `[learning]` table as settings; `way`, clips and window follow `[dreams]`.

    Raises:
        ConfigError: a key or value that does not fit.
    """
    dreams = federation.dreams
    shared = {
        "way": dreams.way,
        "logit_clip": dreams.logit_clip,
        "window": dreams.window,
    }
    loss = federation.learning.get("loss")
    _check_keys("learning", federation.learning, {field.name for field in fields(LearningSettings)} - set(shared))
    if isinstance(loss, Mapping):
        _check_keys("learning.loss", loss, {field.name for field in fields(DreamLoss)})
    settings = {**federation.learning, **shared}
    try:
        return check("[learning]", LearningSettings, settings)  # type: ignore[no-any-return]
    except ConfigError:
        raise
    except ValueError as error:  # the settings' own check of a combination
        raise ConfigError(f"[learning]: {error}") from None


def _check_keys(table: str, found: Mapping[str, Any], allowed: set[str]) -> None:
    """Pydantic passes over a dataclass's unknown keys; a misspelt setting must not be passed over."""
    for key in found:
        if key not in allowed:
            raise ConfigError(f"[{table}]: found the key {key!r}; allowed are {', '.join(sorted(allowed))}")


def make_model(client: ClientConfig, federation: FederationConfig) -> nn.Module:
    """The client's model, initialised from its seed.

    Raises:
        ConfigError: images that are not square, a model that cannot take them, or a user's own that fails.
    """
    channels, size, width = federation.task.shape
    if size != width:
        raise ConfigError(f"[task]: images of {size} x {width} pixels; square ones are needed")
    try:
        return build(client.model, channels=channels, size=size, classes=federation.task.classes, seed=client.seed)
    except (UnknownModelError, ModelShapeError, OwnPartError) as error:
        raise ConfigError(f"model: {error}") from error


def make_participant(
    client: ClientConfig,
    federation: FederationConfig,
    *,
    model: nn.Module | None = None,
    data: tuple[LabelledImages, LabelledImages | None] | None = None,
) -> Participant:
    """Everything a client learns with.

    Args:
        client: the client's configuration.
        federation: the federation's.
        model: replaces the configured model; (N, C, H, W) float32 to logits (N, K).
        data: replaces the configured data: (train, test or None).

    Raises:
        ConfigError: a model or data of another form than the federation's task.
    """
    train, test = data or load_data(client.data, federation.task)
    if train.shape != federation.task.shape or train.classes != federation.task.classes:
        raise ConfigError(
            f"[data]: images of shape {train.shape} in {train.classes} classes; the federation's [task] has "
            f"{federation.task.shape} in {federation.task.classes}"
        )
    if model is None:
        model = make_model(client, federation)
    else:
        channels, size, _ = federation.task.shape
        try:
            check_model(model, channels=channels, size=size, classes=federation.task.classes, name="the model given")
        except (ModelShapeError, OwnPartError) as error:
            raise ConfigError(f"model: {error}") from error
    return Participant(
        learning_settings(federation),
        model,
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
