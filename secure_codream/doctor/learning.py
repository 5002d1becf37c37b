"""A client's images, its model and what the run will cost its records: read as `client` reads them, and no further.

Nothing is trained, reserved, downloaded or sent. Imports torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from codream_clients.data.pixels import HALF
from codream_clients.data.understanding import lines
from codream_clients.devices import pick_device
from codream_clients.masking.device import why_not
from codream_clients.models.gate import trial_images
from codream_clients.models.refusals import ModelRefused
from codream_clients.own_parts import load_own_part
from codream_clients.privacy.accounting import concentrated_rho
from codream_clients.privacy.gate import examine_private, modes_of
from codream_clients.privacy.index import known_index
from codream_clients.privacy.ledger import Ledger
from codream_clients.words import visible
from codream_protocols.charter import Charter, Offer, derive_plan
from codream_protocols.course import Course
from codream_protocols.zcdp import rho_of
from secure_codream.configuration.assembly import build_model, load_client_data
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.federation import (
    FederationConfig,
    privacy_settings,
)
from secure_codream.configuration.images import what_was_understood
from secure_codream.configuration.limits import (
    charges_sums,
    check_budget,
    client_level_budget,
    look_uncharged,
    sums_spender,
)
from secure_codream.configuration.weights import first_weights
from secure_codream.deployment.budget import dry_run
from secure_codream.deployment.exposure import off_scale
from secure_codream.doctor.findings import Finding, ok, warning
from secure_codream.reports.words import counted

DATA, MODEL, MASKS, BUDGET = "data", "model", "masks", "budget"


def of_data(client: ClientConfig, federation: FederationConfig) -> Iterator[Finding]:
    """What is understood of a client's images; of what answers sums, that it can be loaded. Raises as `client` does."""
    if federation.federation.course == "sums":
        if client.answers is None:
            raise ValueError("found no answers in client.toml; module:function, (task) -> {block: numbers}, is needed")
        load_own_part(client.answers)
        yield ok(DATA, f"{client.answers} is there, and answers")
        return
    here = _without_download(client)
    understood = what_was_understood(here.data, federation.task, private=federation.record_private)
    text = "; ".join(line.strip() for line in lines(replace(understood, warnings=())))
    train, _ = load_client_data(here, federation)
    yield ok(DATA, f"{text}; this client takes {counted(len(train), 'training image')}")
    for found in understood.warnings:
        yield warning(DATA, visible(found, most=None))
    pictures, scale = off_scale(federation), train.scale
    if pictures is not None and scale is not None and scale != HALF:
        found, do = pictures
        yield warning(
            DATA, f"{found}; these images are standardised by {scale}", "one scale for both", f"{do}, in the charter"
        )


class Weighed:
    """Remembers the bytes of the model that was looked at, for the disk."""

    def __init__(self) -> None:
        self.bytes = 0

    def of_model(self, client: ClientConfig, federation: FederationConfig) -> Iterator[Finding]:
        """The gate's page, in short. Raises as `client` does."""
        course = federation.federation.course
        if course == "sums":
            return
        name = federation.common_model or client.model
        first_weights(client, federation, given=False)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model = build_model(name, federation, seed=client.seed, device=client.device)
            if federation.record_private:
                settings, task = privacy_settings(federation.privacy or {"epsilon": 1.0}), federation.task
                try:
                    examine_private(
                        model,
                        trial_images(task.shape, classes=task.classes, device=pick_device(client.device)),
                        classes=task.classes,
                        name=name,
                        modes=modes_of(settings),
                        statistics=bool(settings.statistics_share),
                    )
                except ModelRefused as error:
                    raise ValueError(f"model: {error}") from error
        weights = sum(tensor.numel() for tensor in model.parameters())
        self.bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        found = f"{name}, {weights:,} weights, on {pick_device(client.device)}; it goes through the gate"
        private = " and its gradients are each record's own" if federation.record_private else ""
        yield ok(MODEL, found + private)
        for one in said:
            yield warning(MODEL, str(one.message), "a model all of which is trained")


def of_masks(client: ClientConfig, charter: Charter) -> Iterator[Finding]:
    """Where a client that has a GPU masks its vectors; of others there is nothing to say."""
    device = pick_device(client.device)
    if device.type == "cuda":
        reason = why_not(device, charter.aggregation.suite)
        yield ok(MASKS, reason or f"CoDream's updates are masked on {device}, once it has proven that it can")


def of_budget(
    folder: Path, client: ClientConfig, federation: FederationConfig, charter: Charter, course: Course
) -> Iterator[Finding]:
    """What the run will charge, what is left, and whether that buys any learning. Raises `LedgerError`."""
    check_budget(client, federation)
    if federation.record_private or charges_sums(client, federation):
        yield from _of_records(folder, client, federation)
    if federation.client_privacy is not None:
        yield from _of_sums(folder, client, federation, charter, course)
    yield from _of_others(client, federation)
    if not federation.record_private and federation.client_privacy is None:
        yield ok(BUDGET, "none is spent: no differential privacy in this federation")


def _of_others(client: ClientConfig, federation: FederationConfig) -> Iterator[Finding]:
    """Whether images have a ledger, and are used without a charge."""
    index = known_index()
    if client.data.public or federation.federation.course == "sums" or index is None:
        return
    images = load_client_data(_without_download(client), federation)
    for found in look_uncharged(client, federation, *images, index):
        yield warning(BUDGET, found.text, "a federation that charges it", "leave uncharged out of [policy]")


def _of_records(folder: Path, client: ClientConfig, federation: FederationConfig) -> Iterator[Finding]:
    run = dry_run(folder, client, federation)
    of = f"of {run.epsilon:g} at delta {run.delta:g}"
    if run.begun and run.spent >= run.epsilon * (1 - 1e-3):
        yield warning(
            BUDGET,
            f"epsilon {run.spent:.4g} {of} is spent",
            "some of it left",
            "this client learns nothing more from its own data",
        )
    elif run.begun:
        yield ok(BUDGET, f"epsilon {run.spent:.4g} {of} is spent or reserved; the run goes on within the rest")
    else:
        already = f"{run.spent:.4g} is spent or reserved" if run.spent else "none is spent yet"
        yield ok(BUDGET, f"the run will charge epsilon {run.planned:.4g} {of}; {already}")
    for found, allowed, do in run.remarks:
        yield warning(BUDGET, found, allowed, do)


def _of_sums(
    folder: Path, client: ClientConfig, federation: FederationConfig, charter: Charter, course: Course
) -> Iterator[Finding]:
    privacy = federation.client_privacy
    assert privacy is not None  # noqa: S101 - only a federation with client-level noise is asked
    ledger = Ledger.look(
        folder / "client_privacy.jsonl", by=sums_spender(client, federation), budget=client_level_budget(federation)
    )
    charged = () if ledger is None else ledger.charges
    offer = Offer(0, charter.everybody, charter.first_head)
    planned = sum(
        derive_plan(charter, course, offer, number).total_rho for number in range(charter.earlier, course.epochs)
    )
    allowed, spent = rho_of(privacy.epsilon, privacy.delta), concentrated_rho(charged)
    text = f"noised sums will charge rho {planned:.3g} of {allowed:.3g} (epsilon {privacy.epsilon:g} at delta "
    text += f"{privacy.delta:g}); {spent:.3g} is spent"
    if spent + planned > allowed * (1 + 1e-8) and not spent:
        yield warning(BUDGET, text, "a plan within the budget", "fewer rounds or steps; the client stops where it ends")
    else:
        yield ok(BUDGET, text)


def _without_download(client: ClientConfig) -> ClientConfig:
    return client.model_copy(update={"data": client.data.model_copy(update={"download": False})})
