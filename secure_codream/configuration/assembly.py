"""From configuration to learning: a client's data, model, settings and policy.

Imports torch; `party` loads it on demand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from codream_clients.data.datasets import DatasetError, LabelledImages, pool
from codream_clients.data.held_back import hold_back
from codream_clients.devices import pick_device
from codream_clients.learning.judge import Judge
from codream_clients.learning.participant import Participant
from codream_clients.models.gate import examine, trial_images
from codream_clients.models.refusals import GIVEN, ModelRefused
from codream_clients.models.zoo import ModelShapeError, UnknownModelError, build
from codream_clients.own_parts import OwnPartError
from codream_clients.privacy.noise import NoiseSource
from codream_clients.privacy.plan import Planned, PlannedCharges, PrivacyPlan, plan_privacy, warn_of_weak_delta
from codream_clients.privacy.releases import Releases
from secure_codream.configuration.client import ClientConfig, DataTable
from secure_codream.configuration.federation import FederationConfig, learning_settings, privacy_settings
from secure_codream.configuration.images import load_data as load_data
from secure_codream.configuration.images import require_names
from secure_codream.configuration.limits import charges_sums, check_budget
from secure_codream.configuration.reading import ConfigError


def build_model(name: str, federation: FederationConfig, *, seed: int, device: str = "cpu") -> nn.Module:
    """A model for the federation's task, initialised from a seed, on the CPU; `device` is where it is to be used.

    A user's own has been through the gate, but for one that is to be trained under `[privacy]`: `examine_private` asks
    the same of it, and more.

    Raises:
        ConfigError: a model that cannot take them, or a user's own that is refused.
    """
    channels, height, width = federation.task.shape
    try:
        return build(
            name,
            channels=channels,
            size=(height, width),
            classes=federation.task.classes,
            seed=seed,
            device=pick_device(device),
            examined=federation.record_private,
        )
    except (UnknownModelError, ModelShapeError, OwnPartError) as error:
        raise ConfigError(f"model: {error}") from error


def make_model(client: ClientConfig, federation: FederationConfig) -> nn.Module:
    """The client's model, initialised from its seed; raises as `build_model`."""
    return build_model(client.model, federation, seed=client.seed, device=client.device)


def take_model(model: nn.Module, federation: FederationConfig, *, device: str) -> nn.Module:
    """A model that was given, through the gate.

    Raises:
        ConfigError: it cannot take part.
    """
    images = trial_images(federation.task.shape, classes=federation.task.classes, device=pick_device(device))
    try:
        examine(model, images, classes=federation.task.classes)
    except ModelRefused as error:
        raise ConfigError(f"model: {error}") from error
    return model


def make_participant(
    client: ClientConfig,
    federation: FederationConfig,
    *,
    model: nn.Module | None = None,
    data: tuple[LabelledImages, LabelledImages | None] | None = None,
    releases: Callable[[PrivacyPlan, LabelledImages], Releases] | None = None,
    warmed_up: bool = False,
) -> Participant:
    """Everything a client learns with. Warns `WeakDelta` if the delta of its own budget is 1/n or more.

    Args:
        client: the client's configuration.
        federation: the federation's.
        model: replaces the configured model; (N, C, H, W) float32 to logits (N, K).
        data: replaces the configured data: (train, test or None).
        releases: of a plan and the images that its mechanisms see, where charges are reserved; in memory alone unless
            given.
        warmed_up: whether the model is to be that of an earlier process, which goes on with `begin`.

    Raises:
        ConfigError: a model or data of another form than the federation's task, a client with a budget in a federation
            without privacy, or a private one whose images would be standardised by their own statistics or are a
            random part of more.
        LedgerError: the budget does not allow the label histogram.
    """
    train, test = load_client_data(client, federation, data)
    if model is None:
        model = make_model(client, federation)
    elif federation.privacy is None:  # else `private_participant` examines it, and more
        take_model(model, federation, device=client.device)
    check_budget(client, federation)
    train, judge = held_back(federation, train, seed=client.seed, device=client.device)
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
        judge=judge,
    )


def held_back(
    federation: FederationConfig, train: LabelledImages, *, seed: int, device: str
) -> tuple[LabelledImages, Judge | None]:
    """The images that a client trains on, and what judges its rounds: those held back, or with too few the same.

    There is no judge where `held_back` is 0. In a federation with `[privacy]` the settings say whether there is one,
    and no image does; but one that is told nothing with noise, and so never answers, is left out where it has none.

    Raises:
        ConfigError: images in groups, of which none can be held back in a federation with `[privacy]`.
    """
    share, private = learning_settings(federation).held_back, federation.record_private
    try:
        trained, held = hold_back(train, share, seed, one_by_one=private)
    except DatasetError as error:
        raise ConfigError(f"[learning]: held_back {share}: {error}") from error
    told = federation.privacy is not None and privacy_settings(federation.privacy).judge_noise > 0
    if held is not None and (told or len(held)):
        return trained, Judge(held, pick_device(device), held_back=True)
    return train, None if private or share == 0 else Judge(train, pick_device(device), held_back=False)


def charged_images(plan: Planned, train: LabelledImages, judge: Judge | None) -> LabelledImages:
    """All that the plan's mechanisms see: what is trained on, and what is held back where counts of it are charged."""
    return pool([train, judge.data]) if judge is not None and plan.judgements else train


def load_client_data(
    client: ClientConfig,
    federation: FederationConfig,
    data: tuple[LabelledImages, LabelledImages | None] | None = None,
) -> tuple[LabelledImages, LabelledImages | None]:
    """The client's images, checked against the federation's task; `data` replaces the configured ones.

    Raises:
        ConfigError: images of another form, or a choice of them that a private federation does not allow.
    """
    if federation.record_private and client.data.standardise == "train" and federation.task.mean is None:
        raise ConfigError(
            "[data]: standardise 'train' in a federation with [privacy]; 'public' is allowed, or mean and std in "
            "[task], since statistics of the images without noise would go into everything that is learnt"
        )
    private = federation.record_private or charges_sums(client, federation)
    if private:
        _refuse_a_random_part(client.data)
    train, test = data or load_data(client.data, federation.task, private=private)
    require_names(train.class_names, federation.task)
    if train.shape != federation.task.shape or train.classes != federation.task.classes:
        source = "" if data is not None else f" source {client.data.source!r}"
        raise ConfigError(
            f"[data]{source}: images of shape {train.shape} in {train.classes} classes; the federation's [task] has "
            f"{federation.task.shape} in {federation.task.classes}"
        )
    return train, test


def _refuse_a_random_part(table: DataTable) -> None:
    """Where a draw among the records says who is trained on, one record more or less moves others.

    Known sets are public, and their dealing out is an experiment's; the privacy statement says it.
    """
    found = f"train_limit {table.train_limit}" if table.train_limit is not None else None
    if found is None and not table.public:
        if table.clients > 1:
            found = f"clients {table.clients}"
        elif table.per_client is not None:
            found = f"per_client {table.per_client}"
    if found is not None:
        raise ConfigError(
            f"[data]: {found}, in a federation that charges a budget of records; a folder or file of the images that "
            "take part is needed, since with one more or less, others would be taken, and the budget is for one record"
        )


def assemble(
    federation: FederationConfig,
    model: nn.Module,
    data: tuple[LabelledImages, LabelledImages | None],
    *,
    seed: int,
    device: str,
    name: str = GIVEN,
    records: int | None = None,
    releases: Callable[[PrivacyPlan, LabelledImages], Releases] | None = None,
    warmed_up: bool = False,
    judge: Judge | None = None,
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
        judge: of its rounds.

    Raises:
        ConfigError: settings that do not fit, or a model that cannot be trained privately.
        LedgerError: the budget does not allow the label histogram.
    """
    settings, chosen = learning_settings(federation), pick_device(device)
    if federation.privacy is None:
        return Participant(settings, model, *data, seed, chosen, judge=judge)
    from codream_clients.privacy.participant import private_participant  # Opacus takes longer to import than torch

    privacy = privacy_settings(federation.privacy)
    if records is not None:
        privacy = replace(privacy, records=records)
    plan = plan_privacy(
        privacy, records=len(data[0]), rounds=federation.federation.rounds, held_back=settings.held_back > 0
    )
    charged = charged_images(plan, data[0], judge)
    try:
        return private_participant(
            settings,
            plan,
            model,
            *data,
            seed,
            chosen,
            releases=lambda: (
                releases(plan, charged) if releases is not None else Releases(PlannedCharges(plan).reserve)
            ),
            noise=NoiseSource(),
            name=name,
            warmed_up=warmed_up,
            judge=judge,
        )
    except ModelRefused as error:
        raise ConfigError(f"model: {error}") from error
