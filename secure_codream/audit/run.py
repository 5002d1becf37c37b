"""One audit, from settings to figures."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import msgspec
import numpy as np

from codream_clients.learning.participant import LearningSettings
from codream_clients.privacy.accounting import SampledGaussian, epsilon_of, solve_noise_multiplier
from codream_clients.privacy.plan import PrivacyPlan, PrivacySettings, plan_privacy
from codream_protocols.charter import Aggregation
from secure_codream.audit.attacked_federation import Scene, attack_federation, under_plan
from secure_codream.audit.canaries import make_canaries
from secure_codream.audit.ring import audit_ring, ring_course
from secure_codream.audit.scores import Coins, Scores, best_guesses, most_that_can_be_shown, separation
from secure_codream.audit.settings import AuditConfig, AuditTable
from secure_codream.audit.two_worlds import audit_two_worlds, one_step
from secure_codream.configuration.client import DataTable
from secure_codream.configuration.images import load_shards
from secure_codream.reports.audit_results import AuditResult, AuditRow
from secure_codream.reports.files import write_whole
from secure_codream.reports.run_folder import RunFolder

NO_NOISE = 1e-6
"""A noise multiplier that hides nothing; 0 is none that an accountant takes."""
ADVERSARIES = 4


def run_audit(config: AuditConfig) -> AuditResult:
    """Attack one federation and the mechanism alone; deterministic from the settings.

    Raises:
        ConfigError: data that are missing or too few.
        AccountingError: a claim that no noise keeps.
        ModelRefused: a model that cannot be trained privately.
    """
    started, audit = time.perf_counter(), config.audit
    rows, noise_multiplier = _of_ring(audit) if audit.course == "dp-sgd" else _of_training(config)
    return AuditResult(
        confidence=audit.confidence,
        delta=audit.delta,
        noise_multiplier=noise_multiplier,
        without_noise=audit.without_noise,
        rows=rows,
        seconds=time.perf_counter() - started,
        settings=config.model_dump(mode="json"),
    )


def _of_ring(audit: AuditTable) -> tuple[list[AuditRow], float]:
    course = ring_course(audit.epsilon, audit.delta, audit.steps)
    honest = audit.clients - Aggregation().colluders
    row = audit_ring(
        course,
        members=audit.clients,
        runs=audit.runs,
        confidence=audit.confidence,
        seed=audit.seed,
        silent=honest if audit.without_noise else 0,
    )
    return [row], course.noise_multiplier


def _of_training(config: AuditConfig) -> tuple[list[AuditRow], float]:
    audit = config.audit
    data = DataTable(
        source=config.data.source,
        root=config.data.root,
        clients=audit.clients,
        per_client=config.data.per_client,
        seed=audit.seed,
    )
    (genuine, *others), _ = load_shards(data)
    plan = _plan(audit, config.data.per_client)
    claimed = epsilon_of(plan.charges, audit.delta) if audit.noise_multiplier is not None else audit.epsilon
    alone = solve_noise_multiplier(target_epsilon=claimed, delta=audit.delta, sample_rate=1.0, steps=1)
    canaries = make_canaries(audit.canaries, genuine.shape, genuine.classes, np.random.default_rng([audit.seed, 1]))
    scene = Scene(
        model=audit.model,
        genuine=genuine,
        others=tuple(others),
        learning=LearningSettings(own_weight=0.0, warm_up_epochs=15, local_epochs=0, distil_epochs=5),
        rounds=audit.rounds,
        steps=audit.steps,
        batch=audit.batch,
        seed=audit.seed,
    )
    each = 1 - (1 - audit.confidence) / ADVERSARIES
    scores = attack_federation(
        scene, canaries, under_plan(_broken(plan) if audit.without_noise else plan, scene.learning)
    )
    rows = [_one_run(name, found, canaries.included, claimed, audit.delta, each) for name, found in scores.items()]
    rows.append(
        audit_two_worlds(
            one_step(NO_NOISE if audit.without_noise else alone, audit.seed),
            runs=audit.runs,
            claimed=epsilon_of([SampledGaussian(alone, 1.0, 1, "one step")], audit.delta),
            delta=audit.delta,
            confidence=each,
        )
    )
    return rows, plan.noise_multiplier


def keep_audit(runs: Path, result: AuditResult) -> Path:
    """Write `summary.json` into a new folder under `runs`; returns its path."""
    run = RunFolder.create(runs, "audit", datetime.now())
    return write_whole(run.summary, msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


def _plan(audit: AuditTable, genuine: int) -> PrivacyPlan:
    """The audited client's; its number of records is the expected one, so that no rate tells how the coins fell."""
    settings = PrivacySettings(
        epsilon=audit.epsilon,
        delta=audit.delta,
        records=genuine + audit.canaries // 2,
        batch_size=audit.batch_size,
        warm_up_epochs=audit.epochs,
        max_grad_norm=audit.max_grad_norm,
        lr=audit.lr,
    )
    plan = plan_privacy(settings, records=genuine, rounds=audit.rounds)
    if audit.noise_multiplier is None:
        return plan
    return replace(plan, noise_multiplier=audit.noise_multiplier)


def _broken(plan: PrivacyPlan) -> PrivacyPlan:
    return replace(plan, noise_multiplier=NO_NOISE, histogram=replace(plan.histogram, noise_multiplier=NO_NOISE))


def _one_run(name: str, scores: Scores, included: Coins, claimed: float, delta: float, confidence: float) -> AuditRow:
    found = separation(scores, included)
    guesses = best_guesses(scores, included, delta=delta, confidence=confidence)
    return AuditRow(
        adversary=name,
        method="one run",
        auc=found.auc,
        advantage=found.advantage,
        tpr_at_1_fpr=found.tpr_at_1_fpr,
        trials=len(scores),
        right=guesses.right,
        guesses=guesses.made,
        epsilon_lower=guesses.epsilon,
        epsilon_claimed=claimed,
        epsilon_most=most_that_can_be_shown(len(scores), delta=delta, confidence=confidence),
    )
