"""Federations of private clients: in one process, through a client's folder, and as real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from codream_clients.data.datasets import LabelledImages, load_digits_data, pool
from codream_clients.dream_learner import DreamLearner
from codream_clients.journal import FileJournal
from codream_clients.learning.participant import LearningSettings, Participant
from codream_clients.models.zoo import build
from codream_clients.privacy.accounting import SampledGaussian, epsilon_of
from codream_clients.privacy.judge import NoisedJudge
from codream_clients.privacy.ledger import Budget, BudgetExceeded, Ledger, LedgerError, Spender
from codream_clients.privacy.noise import NoiseSource
from codream_clients.privacy.participant import private_participant
from codream_clients.privacy.plan import PlannedCharges, PrivacyPlan, PrivacySettings, WeakDelta, plan_privacy
from codream_clients.privacy.releases import Charge, Releases
from codream_protocols.course import Task
from codream_protocols.courses.codream import CoDream, DreamSettings
from codream_protocols.courses.metrics import METRICS, metrics_spec
from codream_protocols.settings import SettingsError
from codream_protocols.starts import start_rule
from secure_codream.api.local import run_local
from secure_codream.configuration.assembly import held_back, load_client_data, make_participant
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.federation import FederationConfig
from secure_codream.configuration.limits import open_ledger
from secure_codream.configuration.reading import ConfigError, check
from secure_codream.deployment.provision import provision
from secure_codream.membership.accepted import load_roster
from secure_codream.reports.metrics import read_metrics
from secure_codream.simulation.in_process import DreamFederation

CPU = torch.device("cpu")
PRIVACY: dict[str, Any] = {"epsilon": 8.0, "batch_size": 16, "warm_up_epochs": 2, "accountant": "rdp"}
COMMAND = [sys.executable, "-m", "secure_codream"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SMALL: dict[str, Any] = {
    "federation": {"name": "private", "rounds": 2},
    "task": {"shape": (1, 8, 8), "classes": 10},
    "dreams": {"batch": 16, "steps": 2, "views": 1},
    "learning": {"distil_epochs": 2, "local_steps": 2},
    "privacy": PRIVACY,
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits() -> tuple[list[LabelledImages], LabelledImages]:
    train, test = load_digits_data(0)
    return [train.subset(np.arange(40 * n, 40 * n + 40)) for n in range(4)], test.subset(np.arange(100))


def model(name: str = "mlp_gn") -> torch.nn.Module:
    return build(name, channels=1, size=8, classes=10, seed=0)


def federation(**tables: Any) -> FederationConfig:
    return FederationConfig.model_validate({**SMALL, **tables})


def client(name: str = "a", **more: Any) -> ClientConfig:
    data = {"clients": 4, "per_client": 40}
    return ClientConfig.model_validate({"name": name, "model": "mlp_gn", "device": "cpu", "data": data, **more})


# -- in one process -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistics_share", [0.0, 0.2])
def test_a_private_federation_in_one_process(digits: Any, statistics_share: float) -> None:
    shards, test = digits
    tables = {**SMALL, "privacy": {**PRIVACY, "statistics_share": statistics_share}}
    tables.pop("task")
    run = run_local([model("cnn2_gn") for _ in range(3)], shards[:3], test, classes=10, device="cpu", **tables)
    assert run.accuracies.shape == (3, 3) and len(run.dreams) == 2


@pytest.mark.parametrize("judge_noise", [0.0, 20.0])
def test_what_is_held_back_rolls_back_what_answers_by_noised_counts_alone(digits: Any, judge_noise: float) -> None:
    """Nothing is held back unless it is given; then training is planned for what is left, and a judge that is told
    nothing with noise keeps a copy alone."""
    shards, test = digits
    data = (pool(shards), test)
    assert make_participant(client(), federation(), data=data, model=model()).judge is None
    plans: list[PrivacyPlan] = []

    def releases(plan: PrivacyPlan, images: LabelledImages) -> Releases:
        plans.append(plan)
        seen.append(len(images))
        return Releases(PlannedCharges(plan).reserve)

    seen: list[int] = []
    given = federation(
        learning={**SMALL["learning"], "held_back": 0.2}, privacy={**PRIVACY, "judge_noise": judge_noise}
    )
    private = make_participant(client(), given, data=data, model=model(), releases=releases)
    assert private.judge is not None and private.judge.held_back
    assert private._rolls_back is isinstance(private.judge, NoisedJudge) is bool(judge_noise)
    assert len([charge for charge in plans[0].charges if charge.noise_multiplier == 20]) == (3 if judge_noise else 0)
    trained_on = len(data[0]) - private.judge.images
    assert trained_on < len(data[0]) and plans[0].sample_rate == plans[0].settings.batch_size / trained_on
    assert seen == [len(data[0]) if judge_noise else trained_on], "what is counted is charged, and claimed"
    control = make_participant(client(), federation(privacy=None), data=data, model=model())
    assert control.judge is not None and control._rolls_back


def test_only_the_noisy_histogram_is_used_and_no_figure_of_the_records_leaves(digits: Any) -> None:
    shards, test = digits
    participant = make_participant(client(), federation(), data=(shards[0], test), model=model())
    metrics = participant.warm_up()
    assert not np.array_equal(participant._class_counts, shards[0].class_counts)
    assert np.array_equal(participant._seen, participant._class_counts > 0)
    dreams = np.random.default_rng(0).standard_normal((16, 1, 8, 8)).astype(np.float32)
    seen = np.minimum(participant._class_counts, participant.settings.max_count) + participant.settings.prior
    assert np.allclose(
        participant.soft_labels(dreams).denominators,
        seen / (participant.settings.max_count + participant.settings.prior),
    )
    assert metrics.train_accuracy is None and metrics.accuracy is not None
    sent = DreamLearner(participant).compute(Task(METRICS, {}), metrics_spec())
    assert sent["train_correct"][0] == sent["trained"][0] == 0 < sent["tested"][0]
    # Control: without privacy the same participant shows both.
    open_one = make_participant(client(), federation(privacy=None), data=(shards[0], test), model=model())
    assert open_one.warm_up().train_accuracy is not None
    assert DreamLearner(open_one).compute(Task(METRICS, {}), metrics_spec())["trained"][0] == len(shards[0])
    assert np.array_equal(open_one._class_counts, shards[0].class_counts)


def test_two_clients_of_one_configuration_draw_different_noise(digits: Any) -> None:
    """The client's seed is known to whoever wrote its configuration; its noise must not follow from it."""
    shards, test = digits
    one, two = (make_participant(client(), federation(), data=(shards[0], test), model=model()) for _ in range(2))
    assert not np.array_equal(one._class_counts, two._class_counts)


def trained(
    digits: Any, reserve: Callable[[int], Charge], rounds: int
) -> tuple[DreamFederation, PrivacyPlan, list[tuple[int, Exception]]]:
    """Four clients that train in every round, planned for one round, and run for `rounds`; and what failed."""
    shards, test = digits
    settings = PrivacySettings(**PRIVACY, round_epochs=2)
    plan = plan_privacy(settings, records=40, rounds=1)
    learning = LearningSettings(distil_epochs=1, local_steps=1, own_weight=0.0)
    participants = [
        private_participant(
            learning, plan, model(), shard, test, n, CPU, releases=partial(Releases, reserve(n)), noise=NoiseSource(n)
        )
        for n, shard in enumerate(shards)
    ]
    dreams = DreamSettings(rounds=rounds, shape=(1, 8, 8), classes=10, batch=8, steps=1)
    failed: list[tuple[int, Exception]] = []
    local = DreamFederation(
        participants,
        CoDream(dreams, start_rule("noise")),
        seed=0,
        failed=lambda member, error: failed.append((member, error)),
    )
    local.warm_up()
    for _ in range(rounds):
        local.round()
    return local, plan, failed


@pytest.mark.parametrize("enforced", [True, False], ids=["ledger", "control: no ledger"])
def test_training_beyond_the_budget_is_refused_and_all_go_on_dreaming(
    digits: Any, tmp_path: Path, enforced: bool
) -> None:
    charges: list[SampledGaussian] = []
    budget = Budget(epsilon=8.0, delta=1e-2, accountant="rdp")
    with Ledger.open(tmp_path / "ledger", by=Spender("f", "m"), budget=budget) as ledger:

        def reserve(number: int) -> Charge:
            def of_the_first(charge: SampledGaussian) -> None:
                if enforced:
                    ledger.reserve(charge)
                charges.append(charge)

            return of_the_first if number == 0 else lambda charge: None

        local, plan, failed = trained(digits, reserve, rounds=6)
        assert (epsilon_of(charges, budget.delta, "rdp") <= budget.epsilon) is enforced
        assert local.simulation.server.certified == 7  # six rounds, and the closing metrics
    assert bool(failed) is enforced
    assert all(member == 0 and isinstance(error, LedgerError) for member, error in failed)
    rounds = [participant.metrics.rounds for participant in local.participants if participant.metrics]
    assert rounds == [6, 6, 6, 6], "who may not train on its images learns from the dreams all the same"
    assert len(plan.charges) <= len(charges) <= 8 and (len(charges) < 8) is enforced


def test_own_images_in_distillation_are_refused(digits: Any) -> None:
    shards, test = digits
    with pytest.raises(SettingsError, match="own_weight"):
        make_participant(client(), federation(learning={"own_weight": 1.0}), data=(shards[0], test), model=model())


# -- a client's folder ----------------------------------------------------------------------------------------------


def test_client_with_a_budget_takes_no_part_without_privacy() -> None:
    budget = {"epsilon": 8.0, "delta": 1e-3}
    with pytest.raises(ConfigError, match=r"the federation has no \[privacy\]"):
        make_participant(client(budget=budget), federation(privacy=None))
    assert isinstance(make_participant(client(), federation(privacy=None)), Participant)  # control


def test_batch_norm_and_unknown_keys_are_refused_before_anything_is_spent() -> None:
    with pytest.raises(ConfigError, match="take mlp_gn"):
        make_participant(client(model="mlp"), federation())
    with pytest.raises(ConfigError, match=r"\[privacy\]: epsilom: found 1; there is no such key; did you mean epsilon"):
        check("config.toml", FederationConfig, {**SMALL, "privacy": {"epsilom": 1}})
    with pytest.raises(ConfigError, match=r"\[privacy\]: epsilon: found -1"):
        check("config.toml", FederationConfig, {**SMALL, "privacy": {**PRIVACY, "epsilon": -1}})


def test_scale_measured_on_the_records_is_refused(digits: Any) -> None:
    own, shards = {"source": "digits", "standardise": "train"}, digits[0]
    with pytest.raises(ConfigError, match=r"standardise 'train' in a federation with \[privacy\]; 'public' is allowed"):
        make_participant(client(data=own), federation(), data=(shards[0], None))
    agreed = {**SMALL["task"], "mean": (0.3,), "std": (0.4,)}  # controls: agreed on by all, or not private
    for tables in ({"task": agreed}, {"privacy": None}):
        make_participant(client(data=own), federation(**tables), data=(shards[0], None))


def test_random_part_of_the_records_is_refused(digits: Any) -> None:
    own, shards = {"source": "digits", "train_limit": 40}, digits[0]
    with pytest.raises(
        ConfigError, match=r"train_limit 40, in a federation that charges a budget of records; a folder"
    ):
        make_participant(client(data=own), federation(), data=(shards[0], None))
    make_participant(client(data=own), federation(privacy=None), data=(shards[0], None))  # control: not private


@pytest.mark.parametrize("table", [{"clients": 2}, {"per_client": 20}])
def test_who_is_trained_on_is_never_drawn_from_private_records(tmp_path: Path, table: dict[str, int]) -> None:
    """One record more would move others. Controls: not private; a test part of its own; a set that is public."""
    pixels, labels = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8), np.arange(60) % 10
    np.savez(tmp_path / "a.npz", images=pixels, labels=labels)
    own = client(data={"source": str(tmp_path / "a.npz"), **table})
    with pytest.raises(
        ConfigError, match=r"in a federation that charges a budget of records; a folder or file of the images that take"
    ):
        load_client_data(own, federation())
    load_client_data(own, federation(privacy=None))
    load_client_data(client(data={"source": "digits", **table}), federation())
    np.savez(tmp_path / "b.npz", train_images=pixels, train_labels=labels, test_images=pixels, test_labels=labels)
    load_client_data(client(data={"source": str(tmp_path / "b.npz")}), federation())


@pytest.mark.parametrize(("kind", "share"), [("file", 0.0), ("folder", 0.3)])
def test_one_record_more_moves_no_other_between_the_parts_of_a_private_client(
    tmp_path: Path, kind: str, share: float
) -> None:
    """Which images a private client trains on, judges by and tests on is settled image by image. Control: without
    privacy the split meets each class's share, and one more moves others."""
    pixels, labels = np.random.default_rng(0).integers(0, 256, (200, 8, 8), np.uint8), np.arange(200) % 10

    def parts(name: str, whole: FederationConfig, first: int) -> dict[bytes, str]:
        path = tmp_path / f"{name}{first}.npz"
        if kind == "folder":
            path = tmp_path / f"{name}{first}"
            for number in range(first, 200):
                (path / str(labels[number])).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[number]).save(path / str(labels[number]) / f"{number}.png")
        else:
            np.savez(path, images=pixels[first:], labels=labels[first:])
        train, test = load_client_data(client(data={"source": str(path)}), whole)
        assert test is not None
        trained, judge = held_back(whole, train, seed=0, device="cpu")
        named = {"train": trained, "test": test, **({} if judge is None else {"held": judge.data})}
        return {image.tobytes(): name for name, found in named.items() for image in found.images}

    learning, task = {**SMALL["learning"], "held_back": share}, {**SMALL["task"], "class_names": tuple("0123456789")}
    tables = {"learning": learning, "task": task}
    for name, whole in (("a", federation(**tables)), ("b", federation(**tables, privacy=None))):
        more, fewer = parts(name, whole, 0), parts(name, whole, 1)
        assert len(more) == len(fewer) + 1 == 200 and set(more.values()) >= {"train", "test"}
        assert any(more[image] != name for image, name in fewer.items()) is (whole.privacy is None)


def test_images_in_groups_are_not_split_one_by_one(tmp_path: Path) -> None:
    pixels, labels = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8), np.arange(60) % 10
    np.savez(tmp_path / "a.npz", images=pixels, labels=labels, groups=np.arange(60) // 2)
    own = client(data={"source": str(tmp_path / "a.npz")})
    with pytest.raises(ConfigError, match=r"found images in groups, .* under \[privacy\] a test part, or images"):
        load_client_data(own, federation())
    load_client_data(own, federation(privacy=None))


def test_settings_and_no_coin_say_whether_a_client_has_a_judge(digits: Any) -> None:
    """So that one record more changes neither noise nor charges; control: without noise on its counts there is none."""
    shards, test = digits

    def planned(share: float, noise: float) -> tuple[PrivacyPlan, Participant]:
        plans: list[PrivacyPlan] = []

        def releases(plan: PrivacyPlan, images: LabelledImages) -> Releases:
            assert len(images) == len(shards[0])
            plans.append(plan)
            return Releases(PlannedCharges(plan).reserve)

        tables = {"learning": {**SMALL["learning"], "held_back": share}, "privacy": {**PRIVACY, "judge_noise": noise}}
        whole = federation(**tables)
        participant = make_participant(client(), whole, data=(shards[0], test), model=model(), releases=releases)
        return plans[0], participant

    plan, none_held = planned(1e-9, 20.0)
    assert plan.judgements == planned(0.2, 20.0)[0].judgements > 0
    none_held.warm_up()
    metrics = none_held.measure(number=1)
    assert isinstance(none_held.judge, NoisedJudge) and metrics.judged_by == 0 and not metrics.worse
    assert planned(1e-9, 0.0)[1].judge is None


def test_images_in_groups_are_not_held_back_under_privacy(digits: Any) -> None:
    shards, test = digits
    grouped = replace(shards[0], groups=np.arange(len(shards[0])) // 2)
    share = {"learning": {**SMALL["learning"], "held_back": 0.2}}
    with pytest.raises(ConfigError, match=r"\[learning\]: held_back 0.2: found images in groups"):
        make_participant(client(), federation(**share), data=(grouped, test), model=model())


@pytest.mark.parametrize(("delta", "warned"), [(0.1, True), (1e-3, False)])
def test_own_budget_with_a_weak_delta_is_warned_of(digits: Any, delta: float, warned: bool) -> None:
    shards, test = digits
    config = client(budget={"epsilon": 8.0, "delta": delta})
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        make_participant(config, federation(), data=(shards[0], test), model=model())
    assert any(warning.category is WeakDelta for warning in heard) is warned


def test_settings_of_privacy_are_part_of_the_recipe() -> None:
    assert federation().recipe != federation(privacy=None).recipe
    assert federation().recipe != federation(privacy={**PRIVACY, "epsilon": 9.0}).recipe


def releases_in(folder: Path, ledger: Ledger, *, told: bool = True) -> Releases:
    own = ledger.own
    spent, open_ones = (own.released, own.unreleased) if told else ((), ())
    return Releases(
        ledger.reserve, folder, "key", released=ledger.released, spent=spent, unreleased=open_ones, resumes=True
    )


def releases_of(folder: Path, config: ClientConfig, whole: FederationConfig, ledgers: list[Ledger]) -> Any:
    def make(plan: PrivacyPlan, images: LabelledImages) -> Releases:
        ledgers.append(open_ledger(folder / "privacy.jsonl", config, whole, plan, images))
        return releases_in(folder / "releases", ledgers[-1])

    return make


def test_client_that_starts_again_goes_on_without_paying_twice(digits: Any, tmp_path: Path) -> None:
    shards, test = digits
    reached, charged = [], []
    for _ in range(2):
        ledgers: list[Ledger] = []
        participant = make_participant(
            client(), federation(), data=(shards[0], test), model=model(),
            releases=releases_of(tmp_path, client(), federation(), ledgers),
        )  # fmt: skip
        participant.warm_up()
        reached.append(torch.cat([weight.detach().flatten() for weight in participant.model.parameters()]))
        with ledgers[0] as ledger:
            charged.append(ledger.charges)
    assert torch.equal(*reached)
    assert charged[0] == charged[1] and [charge.purpose for charge in charged[0]] == ["label histogram", "warm-up"]
    # Control: had the releases been lost, the second start would have to pay, and is refused.
    for kept in (tmp_path / "releases").iterdir():
        kept.unlink()
    ledgers = []
    with pytest.raises(BudgetExceeded):
        make_participant(
            client(), federation(), data=(shards[0], test), model=model(),
            releases=releases_of(tmp_path, client(), federation(), ledgers),
        ).warm_up()  # fmt: skip
    ledgers[0].close()


def test_the_clients_own_budget_is_the_last_word(digits: Any, tmp_path: Path) -> None:
    shards, test = digits
    strict = client(budget={"epsilon": 2.0, "delta": 1e-3, "accountant": "rdp"})
    with pytest.raises(BudgetExceeded, match="this client's own budget is 2"):
        make_participant(
            strict, federation(), data=(shards[0], test), model=model(),
            releases=releases_of(tmp_path, strict, federation(), []),
        )  # fmt: skip
    with Ledger.open(tmp_path / "privacy.jsonl", by=Spender("private", "a"), budget=Budget(2.0, 1e-3, "rdp")) as ledger:
        assert not ledger.charges


def test_the_declared_number_of_records_fixes_the_rate(digits: Any) -> None:
    shards, test = digits
    plans: list[PrivacyPlan] = []
    declared = client(budget={"epsilon": 8.0, "delta": 1e-3, "records": 50})

    def keep(plan: PrivacyPlan, images: LabelledImages) -> Releases:
        plans.append(plan)
        return Releases(lambda charge: None)

    with warnings.catch_warnings():
        for config in (declared, client()):
            make_participant(config, federation(), data=(shards[0], test), model=model(), releases=keep)
    assert [plan.sample_rate for plan in plans] == [16 / 50, 16 / 40]


@pytest.mark.parametrize("resume", [True, False], ids=["resumed", "started anew"])
@pytest.mark.parametrize("told", [True, False], ids=["told what is spent", "control: not told"])
def test_a_client_whose_rounds_of_training_are_spent_goes_on_learning_from_dreams(
    digits: Any, tmp_path: Path, resume: bool, told: bool
) -> None:
    """Else whoever makes it start again takes it out of the federation: the ledger refuses the same training again."""
    shards, test = digits
    settings = federation(privacy={**PRIVACY, "round_epochs": 2, "training_rounds": 1})
    dreams = np.random.default_rng(0).standard_normal((16, 1, 8, 8)).astype(np.float32)
    published = {"dreams": dreams, "soft_labels": np.zeros((2 * 16, 10), np.float32)}
    charged: list[tuple[SampledGaussian, ...]] = []

    def process(again: bool) -> None:
        ledgers: list[Ledger] = []

        def releases(plan: PrivacyPlan, images: LabelledImages) -> Releases:
            ledger = open_ledger(tmp_path / "ledger", client(), settings, plan, images)
            ledgers.append(ledger)
            return releases_in(tmp_path / "kept", ledger, told=told)

        warmed_up = resume and again
        participant = make_participant(
            client(), settings, data=(shards[0], test), model=model(), releases=releases, warmed_up=warmed_up
        )
        _ = participant.begin() if warmed_up else participant.warm_up()
        try:
            for number in (1, 2):
                DreamLearner(participant).learn(number, published)
        finally:
            charged.append(tuple(ledgers[0].charges))
            ledgers[0].close()

    process(again=False)
    assert [charge.purpose for charge in charged[0]] == ["label histogram", "warm-up", "round 1"]
    if told:
        process(again=True)
    else:
        with pytest.raises(LedgerError):
            process(again=True)
    assert charged[1] == charged[0]


# -- real processes ---------------------------------------------------------------------------------------------------


@pytest.mark.system
@pytest.mark.exhaustive
def test_private_clients_over_the_network(tmp_path: Path) -> None:
    tables = {**SMALL, "privacy": {**PRIVACY, "round_epochs": 1}}
    clients = [client(name) for name in ("a", "b", "c")]
    provision(tmp_path, config=FederationConfig.model_validate(tables), clients=clients, address="tcp://127.0.0.1:1")
    server = subprocess.Popen([*COMMAND, "server", tmp_path / "server", "--listen", "tcp://127.0.0.1:*"])
    running = [server]
    try:
        while not (tmp_path / "server" / "endpoint").exists():
            assert server.poll() is None
            time.sleep(0.05)
        endpoint = (tmp_path / "server" / "endpoint").read_text()
        for config in clients:
            start = [*COMMAND, "client", tmp_path / "clients" / config.name, "--address", endpoint, "--threads", "1"]
            running.append(subprocess.Popen(start, env=ENVIRONMENT))
        assert [process.wait(timeout=900) for process in running] == [0, 0, 0, 0]
    finally:
        for process in running:
            process.kill()
            process.wait()
    report = json.loads((tmp_path / "server" / "server.json").read_text())
    for config in clients:
        folder = tmp_path / "clients" / config.name
        figures = read_metrics(folder / "metrics.jsonl")
        assert len(figures) == 3 and all(line["train_accuracy"] is None for line in figures)
        charter = FederationConfig.model_validate(tables).charter(load_roster(folder)).digest
        with FileJournal.open(folder / "journal", charter=charter, member=config.name) as journal:
            assert journal.memory.steps == report["secure_steps"]
        plan = plan_privacy(PrivacySettings(**tables["privacy"]), records=40, rounds=2)
        budget = Budget(plan.epsilon, plan.delta, "rdp")
        ledger = Ledger.look(folder / "privacy.jsonl", by=Spender("private", config.name), budget=budget)
        assert ledger is not None and ledger.charges == plan.charges and 0.98 * 8 < ledger.spent <= 8
