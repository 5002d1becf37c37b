"""From configuration to learning: a client's data, model, settings and policy.

Imports torch; `party` loads it on demand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from codream_clients.accounting import epsilon_of
from codream_clients.datasets import LabelledImages
from codream_clients.devices import pick_device
from codream_clients.dreaming import DreamLoss
from codream_clients.ledger import Budget, BudgetExceeded, Ledger
from codream_clients.models import ModelShapeError, UnknownModelError, build, check_model
from codream_clients.own_parts import OwnPartError
from codream_clients.participant import LearningSettings, Participant
from codream_clients.privacy_plan import (
    PRIVACY_KEYS,
    PlannedCharges,
    PrivacyPlan,
    PrivacySettings,
    plan_privacy,
    warn_of_weak_delta,
)
from codream_clients.private_noise import NoiseSource
from codream_clients.private_participant import private_participant
from codream_clients.private_training import PrivateModelError
from codream_clients.releases import Releases
from codream_protocols.plan import Policy
from codream_protocols.rotation import padded_length
from codream_protocols.tasks import LEARN, LOGITS, METRICS, UPDATE
from codream_protocols.zcdp import rho_of
from codream_server.privacy_statement import noise_multiplier_of
from secure_codream.config import ClientConfig, ConfigError, FederationConfig, check
from secure_codream.data import load_data as load_data


def learning_settings(federation: FederationConfig) -> LearningSettings:
    """The `[learning]` table as settings; `way`, views, clips and window follow `[dreams]`.

    Raises:
        ConfigError: a key or value that does not fit.
    """
    dreams = federation.dreams
    shared = {
        "way": dreams.way,
        "views": dreams.views,
        "logit_clip": dreams.logit_clip,
        "window": dreams.window,
    }
    loss = federation.learning.get("loss")
    own: dict[str, Any] = {} if federation.privacy is None else {"own_weight": 0.0}  # would be refused
    _check_keys("learning", federation.learning, {field.name for field in fields(LearningSettings)} - set(shared))
    if isinstance(loss, Mapping):
        _check_keys("learning.loss", loss, {field.name for field in fields(DreamLoss)})
    settings = {**own, **federation.learning, **shared}
    try:
        return check("[learning]", LearningSettings, settings)  # type: ignore[no-any-return]
    except ConfigError:
        raise
    except ValueError as error:  # the settings' own check of a combination
        raise ConfigError(f"[learning]: {error}") from None


def privacy_settings(table: Mapping[str, Any]) -> PrivacySettings:
    """A `[privacy]` table as settings: differential privacy for each record of a client.

    Raises:
        ConfigError: a key or value that does not fit.
    """
    _check_keys("privacy", table, set(PRIVACY_KEYS))
    try:
        return check("[privacy]", PrivacySettings, dict(table))  # type: ignore[no-any-return]
    except ConfigError:
        raise
    except ValueError as error:  # the settings' own check
        raise ConfigError(f"[privacy]: {error}") from None


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
    releases: Callable[[PrivacyPlan], Releases] | None = None,
    warmed_up: bool = False,
) -> Participant:
    """Everything a client learns with. Warns `WeakDelta` if the delta of its own budget is 1/n or more.

    Args:
        client: the client's configuration.
        federation: the federation's.
        model: replaces the configured model; (N, C, H, W) float32 to logits (N, K).
        data: replaces the configured data: (train, test or None).
        releases: where a private client's charges are reserved; only the plan's, in memory, unless given.
        warmed_up: whether the model is to be that of an earlier process, which goes on with `begin`.

    Raises:
        ConfigError: a model or data of another form than the federation's task, a client with a budget in a federation
            without privacy, or a private one whose images would be standardised by their own statistics or are a
            random part of more.
        LedgerError: the budget does not allow the label histogram.
    """
    if federation.privacy is not None and client.data.standardise == "train" and federation.task.mean is None:
        raise ConfigError(
            "[data]: standardise 'train' in a federation with [privacy]; 'public' is allowed, or mean and std in "
            "[task], since statistics of the images without noise would go into everything that is learnt"
        )
    if federation.privacy is not None and client.data.train_limit is not None:
        raise ConfigError(
            f"[data]: train_limit {client.data.train_limit} in a federation with [privacy]; a file of the images that "
            "take part is needed, since with one more or less, others would be taken, and the budget is for one record"
        )
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
    if client.budget is not None and federation.privacy is None:
        raise ConfigError("[budget]: this client trains privately or not at all; the federation has no [privacy]")
    if client.budget is not None:
        warn_of_weak_delta(client.budget.delta, client.budget.records or len(train))
    return assemble(
        federation,
        model,
        (train, test),
        seed=client.seed,
        device=client.device,
        name=client.model,
        records=client.budget.records if client.budget is not None else None,
        releases=releases,
        warmed_up=warmed_up,
    )


def assemble(
    federation: FederationConfig,
    model: nn.Module,
    data: tuple[LabelledImages, LabelledImages | None],
    *,
    seed: int,
    device: str,
    name: str = "the model given",
    records: int | None = None,
    releases: Callable[[PrivacyPlan], Releases] | None = None,
    warmed_up: bool = False,
) -> Participant:
    """A participant from its parts: a private one in a federation with `[privacy]`.

    Args:
        federation: the federation's configuration.
        model: what is trained.
        data: (train, test or None).
        seed: the client's.
        device: as `pick_device` takes it.
        name: the model's, for errors.
        records: how many images the client is known to have; `[privacy]` says it, or their number, unless given.
        releases: see `make_participant`.
        warmed_up: see `make_participant`.

    Raises:
        ConfigError: settings that do not fit, or a model that cannot be trained privately.
        LedgerError: the budget does not allow the label histogram.
    """
    settings, chosen = learning_settings(federation), pick_device(device)
    if federation.privacy is None:
        return Participant(settings, model, *data, seed, chosen)
    privacy = privacy_settings(federation.privacy)
    if records is not None:
        privacy = replace(privacy, records=records)
    plan = plan_privacy(privacy, records=len(data[0]), rounds=federation.federation.rounds)
    try:
        return private_participant(
            settings,
            plan,
            model,
            *data,
            seed,
            chosen,
            releases=releases(plan) if releases is not None else Releases(PlannedCharges(plan).reserve),
            noise=NoiseSource(secure=privacy.secure_mode),
            name=name,
            warmed_up=warmed_up,
        )
    except PrivateModelError as error:
        raise ConfigError(str(error)) from error


def open_ledger(path: Path, client: ClientConfig, federation: FederationConfig, plan: PrivacyPlan) -> Ledger:
    """The client's ledger: its own `[budget]`, or the plan's where it has none.

    Raises:
        BudgetExceeded: nothing is spent yet, and the whole plan would not fit: better not to begin.
        LedgerError: it is another client's, damaged, rolled back, or open elsewhere.
    """
    own = client.budget
    budget = (
        Budget(epsilon=plan.epsilon, delta=plan.delta, accountant=plan.settings.accountant)
        if own is None
        else Budget(epsilon=own.epsilon, delta=own.delta, accountant=own.accountant)
    )
    ledger = Ledger.open(path, federation=federation.federation.name, member=client.name, budget=budget)
    planned = epsilon_of(plan.charges, budget.delta, budget.accountant)
    if not ledger.charges and planned > budget.epsilon:
        ledger.close()
        raise BudgetExceeded(
            f"the federation plans epsilon {planned:.4g} at delta {budget.delta:g}; this client's own budget is "
            f"{budget.epsilon:g}"
        )
    return ledger


def open_client_ledger(path: Path, client: ClientConfig, federation: FederationConfig) -> Ledger:
    """What the client has spent of its client-level budget, in this process and earlier ones; raises `LedgerError`.

    Its budget lies above the federation's by what the rounding of many sums takes: `Policy.most_rho` decides first.
    """
    privacy = federation.client_privacy
    assert privacy is not None  # noqa: S101 - only a federation with client-level noise has one
    budget = Budget(epsilon=privacy.epsilon * (1 + 1e-8), delta=privacy.delta, accountant="zcdp")
    return Ledger.open(path, federation=federation.federation.name, member=client.name, budget=budget)


def client_policy(client: ClientConfig, federation: FederationConfig) -> Policy:
    """The client's policy: its own table, and the vectors that the federation's configuration implies."""
    dreams = federation.dream_settings()
    coordinates = max(dreams.coordinates + 3, 2 * dreams.labels * federation.task.classes)
    largest = max(1.0, float(np.log(federation.task.classes)))
    limits = client.policy.model_dump()
    least_noise, most_rho, last = limits.pop("least_noise"), None, METRICS
    privacy = federation.client_privacy_settings()
    if privacy is not None:
        # The noise that everybody calibrates alike, but for rounding; and without noise, only the constant of LEARN.
        least_noise = max(least_noise, noise_multiplier_of(privacy, dreams) * (1 - 1e-9))
        most_rho, last = rho_of(privacy.epsilon, privacy.delta), LEARN
    return Policy(
        **limits,
        most_coordinates=padded_length(coordinates),
        tasks={UPDATE: max(dreams.update_clip, largest), LOGITS: max(dreams.logit_clip, 1.0), last: 1.0},
        least_noise={UPDATE: least_noise, LOGITS: least_noise, METRICS: least_noise},
        most_rho=most_rho,
        recipe=federation.recipe,
    )
