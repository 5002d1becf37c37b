"""What a run would cost a client's records, and whether that buys any learning: worked out, and nothing reserved.

Imports torch.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from codream_clients.privacy.accounting import epsilon_of
from codream_clients.privacy.ledger import BudgetExceeded, Ledger
from codream_clients.privacy.plan import Planned, PrivacyPlan, plan_privacy
from codream_clients.privacy.ring_plan import RingPlan
from codream_clients.privacy.sums_plan import SumsPlan
from secure_codream.configuration.assembly import charged_images, held_back, load_client_data
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.federation import FederationConfig, learning_settings, privacy_settings
from secure_codream.configuration.limits import (
    anchor_path,
    charges_sums,
    check_planned,
    continued,
    ledger_path,
    own_budget,
    spender,
)
from secure_codream.configuration.reading import ConfigError
from secure_codream.membership.accepted import load_roster
from secure_codream.reports.words import counted

FEW_STEPS = 50
"""Of DP-SGD: a budget spent in fewer buys noise and hardly any learning."""
SEEN = 10.0
"""Held-back images, in deviations of the noise on their count, from which on a fall of less than half is seen."""
HIGH_RATE = 0.5
"""From here on sampling hides hardly anybody, and each step costs nearly what it would with everybody in it."""


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a run would charge, beside what its ledger has.

    Attributes:
        ledger: where it lies, or will lie.
        federation, member: who spends.
        sums: whether noised sums of clients' vectors are what is charged, and no training.
        records: n that the rate follows from.
        batch_size: records expected in a step.
        sample_rate: of Poisson sampling.
        steps: of DP-SGD in the whole run.
        noise_multiplier: of DP-SGD.
        epsilon, delta: the budget of the ledger.
        planned: epsilon of the whole run by itself.
        spent: epsilon of what the ledger has, reserved or begun.
        together: epsilon of both, what this run has begun or reserved counted once.
        begun: whether this run has begun to spend.
        earlier: epsilon of what this member has begun in other runs of this federation, of other settings or images, or
            under the charter before: this run is paid for beside it.
        remarks: what is wise to change, each (found, allowed, what to do).
    """

    ledger: str
    federation: str
    member: str
    sums: bool
    records: int
    batch_size: int
    sample_rate: float
    steps: int
    noise_multiplier: float
    epsilon: float
    delta: float
    planned: float
    spent: float
    together: float
    begun: bool
    earlier: float
    remarks: tuple[tuple[str, str, str], ...]

    @property
    def left(self) -> float:
        """Epsilon up to the budget once the run is over, at least 0."""
        return max(self.epsilon - self.together, 0.0)


def dry_run(folder: Path, client: ClientConfig, federation: FederationConfig) -> DryRun:
    """Work out a run of the client of `folder`; nothing is downloaded, written or reserved.

    Raises:
        ConfigError: a federation that charges nothing, or images that do not fit.
        BudgetExceeded: the run does not fit into the budget, or not beside what the ledger has.
        LedgerError: the ledger cannot be used.
    """
    sums = charges_sums(client, federation)
    if not federation.record_private and not sums:
        raise ConfigError(
            "found neither [privacy] nor [dp_sgd] in config.toml, nor [client_privacy] there with [budget] in "
            "client.toml; without them no budget is spent"
        )
    data = client.data.model_copy(update={"download": False})
    whole, _ = load_client_data(client.model_copy(update={"data": data}), federation)
    train, judge = held_back(federation, whole, seed=client.seed, device=client.device)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        plan, training = _planned(folder, client, federation, len(whole if sums else train))
    charged_on = whole if sums else charged_images(plan, train, judge)
    budget, path = own_budget(client, plan), ledger_path(folder / "privacy.jsonl", client)
    by = spender(client, federation, charged_on, plan.charter)
    ledger = Ledger.look(path, by=by, budget=budget, anchor=anchor_path(client))
    charged = () if ledger is None else ledger.charges
    together = plan.charges if ledger is None else ledger.with_plan(plan.charges, **continued(plan, federation))
    begun = ledger is not None and bool(ledger.own.begun)
    goes_on = begun or federation.predecessor is not None
    planned = epsilon_of(plan.charges, budget.delta, budget.accountant) if goes_on else check_planned(plan, budget)
    found = DryRun(
        ledger=str(path),
        federation=federation.federation.name,
        member=client.name,
        sums=sums,
        records=training.records,
        batch_size=training.batch_size,
        sample_rate=training.sample_rate,
        steps=training.steps,
        noise_multiplier=training.noise_multiplier,
        epsilon=budget.epsilon,
        delta=budget.delta,
        planned=planned,
        spent=epsilon_of(charged, budget.delta, budget.accountant),
        together=epsilon_of(together, budget.delta, budget.accountant),
        begun=begun,
        earlier=epsilon_of(() if ledger is None else ledger.earlier, budget.delta, budget.accountant),
        remarks=(
            *(() if sums else _remarks(training, 0 if judge is None else judge.images)),
            *((str(one.message), "a delta well below 1/n", "") for one in said),
        ),
    )
    if found.together > budget.epsilon:
        raise BudgetExceeded(
            f"{path}: epsilon {found.spent:.4g} of {budget.epsilon:g} at delta {budget.delta:g} is spent or reserved, "
            f"{found.together:.4g} with this run; a federation that plans less, or other images, are needed"
        )
    return found


@dataclass(frozen=True)
class _Training:
    """What is told of DP-SGD, at a client alone or through the ring."""

    records: int
    batch_size: int
    sample_rate: float
    steps: int
    noise_multiplier: float
    smaller: str
    judged_with: float = 0.0  # noise of the counts of images held back; 0 where none is charged


def _planned(
    folder: Path, client: ClientConfig, federation: FederationConfig, records: int
) -> tuple[Planned, _Training]:
    """All that the run will charge; a client's public number of its records has precedence over what was counted."""
    own = client.budget.records if client.budget is not None else None
    if not federation.record_private:
        noised = SumsPlan.of(make_course(federation, client.policy.code), federation.charter(load_roster(folder)))
        least = min(charge.noise_multiplier for charge in noised.charges)
        return noised, _Training(own or records, own or records, 1.0, len(noised.charges), least, "")
    if federation.dp_sgd is not None:
        ring = RingPlan.of(make_course(federation, client.policy.code), federation.charter(load_roster(folder)))
        course = ring.course
        if own is not None:
            records = own
        rate, noise = course.settings.sample_rate, ring.step.noise_multiplier
        smaller = "a smaller sample_rate and batch_size under [dp_sgd], which all parties agree on"
        return ring, _Training(records, round(rate * records), rate, len(ring.charges), noise, smaller)
    settings = privacy_settings(federation.privacy or {})
    count = own or settings.records or records
    judged = learning_settings(federation).held_back > 0
    plan = plan_privacy(settings, records=count, rounds=federation.federation.rounds, held_back=judged)
    smaller = "a smaller batch_size under [privacy], which all parties agree on"
    judge_noise = settings.judge_noise if plan.judgements else 0.0
    noise = plan.noise_multiplier
    return plan, _Training(count, settings.batch_size, plan.sample_rate, _steps(plan), noise, smaller, judge_noise)


def _remarks(plan: _Training, held_back: int) -> tuple[tuple[str, str, str], ...]:
    steps, smaller, records = plan.steps, plan.smaller, plan.records
    remarks = []
    if steps < FEW_STEPS:
        remarks.append(
            (
                f"the whole budget is spent in {counted(steps, 'step')}: batches of {plan.batch_size} of "
                f"{records:,} images, noise of {plan.noise_multiplier:.3g} times the clipping bound in each",
                f"{FEW_STEPS} steps or more",
                f"{smaller}; the model will hardly learn as it is",
            )
        )
    if plan.sample_rate >= HIGH_RATE:
        remarks.append(
            (
                f"each image takes part in a step with probability {plan.sample_rate:.3g}: {records:,} images are few "
                f"for batches of {plan.batch_size}",
                f"a rate below {HIGH_RATE:g}",
                f"{smaller}, or more images; sampling hides hardly anybody as it is, so the noise is larger",
            )
        )
    seen = SEEN * plan.judged_with
    if held_back < seen:
        remarks.append(
            (
                f"{counted(held_back, 'image')} held back, noise of {plan.judged_with:g} on how many are right: no "
                "failed round will be seen",
                f"{seen:.0f} images or more",
                "a smaller judge_noise under [privacy], or held_back = 0 under [learning]",
            )
        )
    return tuple(remarks)


def _steps(plan: PrivacyPlan) -> int:
    apart = (plan.histogram, plan.statistics, *map(plan.judgement, range(plan.judgements)))
    return sum(charge.steps for charge in plan.charges if charge not in apart)
