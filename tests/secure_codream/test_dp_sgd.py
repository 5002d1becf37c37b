"""DP-SGD through the ring, from a configuration: what it learns, what it charges, and what a client says of it."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codream_clients.data.datasets import LabelledImages, load_digits_data
from codream_clients.models.fronts import PASS
from codream_clients.models.scattering import Scattering
from codream_clients.models.zoo import build
from codream_clients.privacy.accounting import SampledGaussian, epsilon_of
from codream_clients.privacy.ledger import BudgetExceeded, Ledger, LedgerBusy, Spender
from codream_clients.privacy.ledger_entries import MAX_CHARGES
from codream_clients.privacy.ring_plan import RingPlan
from codream_protocols.client import Memory
from codream_protocols.courses.dp_sgd import DPSGD, MOST_PLANNED, DPSGDSettings
from codream_protocols.record_noise import RecordNoise
from codream_protocols.settings import SettingsError
from secure_codream.api.local import run_local
from secure_codream.configuration.client import ClientConfig, read_client
from secure_codream.configuration.courses import make_course, written_out
from secure_codream.configuration.federation import FederationConfig, PredecessorTable
from secure_codream.configuration.learners import make_learner
from secure_codream.configuration.limits import check_budget, check_planned, open_ledger, own_budget
from secure_codream.configuration.reading import ConfigError, check
from secure_codream.deployment.client import has_charged
from secure_codream.deployment.statements import own_statement
from secure_codream.experiments import known_features
from secure_codream.experiments.cell import problem_of
from secure_codream.experiments.grid import read_grid
from secure_codream.experiments.registry import USUAL_RING, find
from secure_codream.reports.statement import read_statement, ring_level, write_statement
from secure_codream.simulation.in_process import Simulation
from tests.secure_codream.small import roster_of
from tests.secure_codream.test_crashes_under_privacy import Fuse, Killed

pytestmark = pytest.mark.usefixtures("one_thread")
TABLE = {
    "model": "mlp_gn",
    "epsilon": 8.0,
    "delta": 1e-4,
    "sample_rate": 0.2,
    "batch_size": 100,
    "steps": 5,
    "spare_rounds": 1,
}
FEDERATION = {"name": "ring", "course": "dp-sgd", "rounds": 2}


@pytest.fixture(scope="module")
def digits() -> tuple[list[LabelledImages], LabelledImages]:
    train, test = load_digits_data(0)
    return [train.subset(np.arange(150 * n, 150 * n + 150)) for n in range(4)], test.subset(np.arange(200))


def federation(**changed: Any) -> FederationConfig:
    tables = {"task": {"shape": (1, 8, 8), "classes": 10}, "federation": FEDERATION, "dp_sgd": {**TABLE, **changed}}
    found: FederationConfig = check("config.toml", FederationConfig, tables)
    return written_out(found)


def client(**more: Any) -> ClientConfig:
    usual = {"name": "client-0", "model": "mlp_gn", "device": "cpu", "policy": {"shared_noise": True}}
    found: ClientConfig = check("client.toml", ClientConfig, {**usual, **more})
    return found


def course_of(config: FederationConfig) -> DPSGD:
    course = make_course(config)
    assert isinstance(course, DPSGD)
    return course


def test_a_federation_learns_together_within_a_budget_in_which_nobody_would_alone(digits: Any) -> None:
    shards, test = digits
    models = [build("cnn2_gn", channels=1, size=8, classes=10, seed=number) for number in range(4)]
    table = {**TABLE, "model": "cnn2_gn", "steps": 12, "spare_rounds": 0, "lr": 6.0}
    run = run_local(models, shards, test, classes=10, device="cpu", seed=0, federation=FEDERATION, dp_sgd=table)
    assert (run.accuracies[-1] == run.accuracies[-1, 0]).all() and run.accuracies[-1, 0] > 0.5
    same = [torch.cat([weight.flatten() for weight in model.parameters()]) for model in models]
    assert all(torch.equal(same[0], other) for other in same[1:])


def test_tables_that_do_not_fit_are_named(digits: Any) -> None:
    with pytest.raises(ConfigError, match=r"course 'dp-sgd' without \[dp_sgd\]"):
        check("c", FederationConfig, {"task": {"shape": (1, 8, 8), "classes": 10}, "federation": FEDERATION})
    with pytest.raises(ConfigError, match=r"course 'codream' with \[dp_sgd\]"):
        check("c", FederationConfig, {"task": {"shape": (1, 8, 8), "classes": 10}, "dp_sgd": TABLE})
    both = federation().model_copy(update={"privacy": {"epsilon": 1.0}})
    with pytest.raises(ConfigError, match=r"\[privacy\] with course 'dp-sgd'; \[dp_sgd\] is allowed"):
        make_course(both)
    config = federation(model="mlp")
    with pytest.raises(ConfigError, match="BatchNorm1d"):
        make_learner(client(), config, make_course(config), data=(digits[0][0], None))
    with pytest.raises(ConfigError, match=r"held_back above 0 with \[dp_sgd\]"):
        check(
            "c",
            FederationConfig,
            {"federation": FEDERATION, "task": {"shape": (1, 8, 8), "classes": 10}, "dp_sgd": TABLE}
            | {"learning": {"held_back": 0.1}},
        )
    with pytest.raises(SettingsError, match=r"4,200 steps are planned.*4,096 or fewer"):
        DPSGDSettings(
            layout=(("weight", (2, 2)),), rounds=41, steps=100, spare_rounds=1,
            **{key: TABLE[key] for key in ("epsilon", "delta", "sample_rate", "batch_size")},
        )  # fmt: skip
    assert MOST_PLANNED <= MAX_CHARGES
    with pytest.raises(ConfigError, match=r"no shared_noise with course 'dp-sgd'.*shared_noise = true permits it"):
        make_learner(client(policy={}), federation(), make_course(federation()), data=(digits[0][0], None))
    with pytest.raises(ConfigError, match="standardise 'train'"):
        table = {"standardise": "train"}
        make_learner(client(data=table), federation(), make_course(federation()), data=(digits[0][0], None))


# -- the ledger ---------------------------------------------------------------------------------------------------


def ring(config: FederationConfig) -> RingPlan:
    return RingPlan(course_of(config), 3)


def test_the_whole_plan_is_reserved_and_is_what_was_asked_for() -> None:
    plan = ring(federation())
    assert len(plan.charges) == 15 and set(plan.charges) == {plan.step} and plan.step.discrete
    assert 7.9 < epsilon_of(plan.charges, 1e-4) <= 8.0
    assert epsilon_of(plan.charges, 1e-4, "prv") == epsilon_of(plan.charges, 1e-4, "rdp")
    mixed = [*plan.charges, SampledGaussian(4.0, 0.1, 20, "elsewhere")]
    assert epsilon_of(mixed, 1e-4) == epsilon_of(list(reversed(mixed)), 1e-4) > 8.0
    continuous = [SampledGaussian(plan.step.noise_multiplier, 0.2, 15, "as if continuous")]
    assert epsilon_of(continuous, 1e-4) < epsilon_of(plan.charges, 1e-4)  # no bound for what is discrete


@pytest.mark.parametrize("members", [4, 5])
def test_a_charter_that_follows_plans_the_rounds_that_are_left(members: int, digits: Any, tmp_path: Path) -> None:
    """Also with the shares of another roster, whose steps cost another number; of spare ones as many as fit."""
    config, data = federation(), digits[0][0]
    first = RingPlan.of(course_of(config), config.charter(roster_of(4)[1]))
    own = client(budget={"epsilon": 8.0, "delta": 1e-4})
    with open_ledger(tmp_path / "privacy.jsonl", own, config, first, data) as ledger:
        for _ in range(7):  # a round of five is certified, and one has failed after two steps
            ledger.reserve(first.step)
    table = PredecessorTable.model_validate({"charter": "0" * 64, "head": "1" * 64, "certified": 1})
    after = config.model_copy(update={"predecessor": table})
    plan = RingPlan.of(course_of(config), after.charter(roster_of(members)[1]))
    assert (plan.step == first.step) is (members == 4) and len(plan.charges) == 10
    with open_ledger(tmp_path / "privacy.jsonl", own, after, plan, data) as ledger:
        assert len(ledger.own.open) == 8 and 7.5 < ledger.spent <= 8.0


def test_a_step_is_spent_before_it_is_handed_over_and_never_refunded(digits: Any, tmp_path: Path) -> None:
    """A process that ends after any step goes on within what is reserved; what was never begun is given back."""
    config, data = federation(), digits[0][0]
    plan = ring(config)
    for process in range(3):
        with open_ledger(tmp_path / "privacy.jsonl", client(), config, plan, data) as ledger:
            assert len(ledger.own.open) == 15 - 2 * process
            with pytest.raises(LedgerBusy):
                open_ledger(tmp_path / "privacy.jsonl", client(), config, plan, data)
            learner = make_learner(
                client(), config, plan.course, data=(data, None), ring=lambda images: ledger.reserve
            ).learner
            state = plan.course.start(bytes(32), 0, None)
            (spec,) = plan.course.specs(3)
            for step in range(2):
                learner.compute(plan.course.task(state, step), spec)
                assert len(ledger.own.begun) == 2 * process + step + 1  # before its vector is anybody's
    with open_ledger(tmp_path / "privacy.jsonl", client(), config, plan, data) as ledger:
        ledger.end()
        assert Counter(ledger.charges) == Counter({plan.step: 6})


def test_killed_at_any_write_no_step_is_handed_over_unpaid_and_none_is_refused(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, before and after writes, syncs and renamings; begun and not handed over is at most one step a kill."""
    config, data = federation(), digits[0][0]
    plan, fuse = ring(config), Fuse(monkeypatch)

    def process(folder: Path, handed: list[int]) -> None:
        with open_ledger(folder / "privacy.jsonl", client(), config, plan, data) as ledger:
            while len(handed) < 5:
                ledger.reserve(plan.step)
                handed.append(1)
            ledger.end()

    process(tmp_path, [])
    whole = fuse.burnt
    for point in range(0, whole, 11):
        folder, handed = tmp_path / str(point), list[int]()
        folder.mkdir()
        for fuse.left in (point, point // 2):
            with pytest.raises(Killed):
                process(folder, handed)
                raise Killed
        fuse.left = None
        process(folder, handed)
        found = Ledger.look(folder / "privacy.jsonl", by=Spender("ring", "client-0"), budget=None)
        assert found is not None and 5 == len(handed) <= len(found.charges) <= 7 and found.spent <= 8.0


def test_a_spent_ledger_sends_noise_and_the_others_go_on(digits: Any) -> None:
    config, told = federation(), []
    course = course_of(config)

    def spent(charge: SampledGaussian) -> None:
        raise BudgetExceeded("nothing is left")

    learners = [
        make_learner(
            client(),
            config,
            course,
            data=(shard, digits[1]),
            ring=(lambda images: spent) if number == 0 else (lambda images: lambda charge: None),
        ).learner
        for number, shard in enumerate(digits[0])
    ]
    simulation = Simulation(course, learners, seed=0, failed=lambda member, error: told.append((member, type(error))))
    published = simulation.run_epoch()
    assert np.isfinite(published["weights"]).all() and told == [(0, BudgetExceeded)] * 5


def test_where_nobody_can_answer_the_sum_is_the_noise_of_all_shares(digits: Any) -> None:
    """Ledgers that are spent and learners that fail: others count on the noise of each, whatever became of the rest."""
    course = course_of(federation())

    class Failing:
        def compute(self, task: Any, spec: Any) -> Any:
            raise ZeroDivisionError

        def learn(self, number: int, publication: Any) -> None:
            pass

    def spent(charge: SampledGaussian) -> None:
        raise BudgetExceeded("nothing is left")

    learner = make_learner(client(), federation(), course, data=(digits[0][0], None), ring=lambda images: spent).learner
    simulation = Simulation(course, [learner, *[Failing()] * 3], seed=0, failed=lambda member, error: None)
    published = simulation.run_epoch()
    (spec,) = course.specs(simulation.charter.least_honest)
    assert isinstance(spec.noise, RecordNoise)
    ring_unit = spec.noise.norm / spec.noise.radius / course.settings.batch_size
    assert published["velocity"].std() == pytest.approx(ring_unit * (4 * spec.noise.variance) ** 0.5, rel=0.05)


def test_another_architecture_has_the_common_model_handed_down_without_a_look_at_records(digits: Any) -> None:
    tables = {
        "task": {"shape": (1, 8, 8), "classes": 10},
        "federation": {**FEDERATION, "rounds": 1},
        "dp_sgd": {**TABLE, "epsilon": 500.0, "steps": 20, "lr": 6.0},
        "dreams": {"start": "strokes", "batch": 256},
        "learning": {"distil_epochs": 8},
    }
    config: FederationConfig = written_out(check("config.toml", FederationConfig, tables))
    told: list[Any] = []
    course = course_of(config)
    clients = [
        make_learner(
            client(model="cnn2" if number == 0 else "mlp_gn"),
            config,
            course,
            data=(shard, digits[1]),
            on_metrics=told.append if number == 0 else lambda metrics: None,
        )
        for number, shard in enumerate(digits[0])
    ]
    Simulation(course, [one.learner for one in clients], seed=0).run_epoch()
    common, own = told
    assert common.accuracy > 0.6 and own.accuracy > 0.25 and own.distil_loss > 0
    assert own.train_accuracy is None and clients[0].model is not clients[1].model
    assert any(isinstance(layer, torch.nn.BatchNorm2d) for layer in clients[0].model.modules())


def test_the_statement_has_the_ring_and_who_might_undo_it(digits: Any, tmp_path: Path) -> None:
    config = federation()
    _, roster = roster_of(4)
    charter, course = config.charter(roster), course_of(config)
    plan = RingPlan(course, charter.least_honest)
    with open_ledger(tmp_path / "privacy.jsonl", client(), config, plan, digits[0][0]) as ledger:
        for _ in range(4):
            ledger.reserve(plan.step)
        statement = own_statement(config, "client-0", ledger, charter, course, 0.0)
    assert statement.record is not None
    (member,) = statement.record.members
    assert [part.steps for part in member.mechanisms] == [4, 11] and member.accountant == "rdp at integer orders"
    assert member.spent == pytest.approx(plan.epsilon_with(3)) and member.persons[20] > member.persons[2] > 8
    table = statement.record.by_colluders
    assert len(table) == 4 and table == sorted(table) and table[1] == pytest.approx(member.spent) and table[3] > 12
    table_of_one = {"charter": "0" * 64, "head": "1" * 64, "certified": 1}
    after = config.model_copy(update={"predecessor": PredecessorTable.model_validate(table_of_one)})
    level = ring_level([], course, after.charter(roster))
    assert level.earlier == 1 and statement.record.earlier == 0 and "earlier charters" not in statement.headline
    assert any("who really adds noise" in line for line in statement.not_covered)
    assert "the server and up to 1 client colluding with it" in statement.headline
    assert "everybody" not in statement.headline and "what 1 client added" in statement.reading
    write_statement(tmp_path, statement)
    assert read_statement(tmp_path) == statement
    assert "0: " in (tmp_path / "privacy.html").read_text() and ">none<" in (tmp_path / "privacy.html").read_text()


def test_a_client_that_joined_and_sent_nothing_may_come_back_without_a_charge() -> None:
    """It was killed while the others were waited for; under `[privacy]` the first charge comes before it joins."""
    joined, began = Memory(next_epoch=1), Memory(next_epoch=1, steps=1)
    assert not has_charged(joined, federation()) and has_charged(began, federation())
    task = {"task": {"shape": (1, 8, 8), "classes": 10}}
    private = check("config.toml", FederationConfig, {**task, "privacy": {"epsilon": 4.0}})
    assert has_charged(joined, private) and not has_charged(Memory(), private)


def test_a_comparison_has_the_ring_and_asks_a_front_once_for_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its cells are: with the rule for comparisons that nobody holds images back, as the ring needs it."""
    compare = {"algorithms": ["dp-sgd"], "models": ["scattering_linear"], "clients": 3, "per_client": 20}
    grid = read_grid(None, {"compare": {**compare, "test_limit": 30, "rounds": 1, "seeds": "0"}})
    table = {**USUAL_RING, "steps": 3, "batch_size": 12.0}
    problem, passes, usual = problem_of(grid.cells[0]), list[int](), Scattering.forward
    known: dict[Any, Any] = {}
    monkeypatch.setattr(known_features, "_KNOWN", known)

    def counted(layer: Scattering, images: torch.Tensor) -> torch.Tensor:
        passes.append(len(images))
        return usual(layer, images)

    def run() -> tuple[list[tuple[float, ...]], int]:
        passes.clear()
        rows = [row.accuracies for row in find("dp-sgd", {"table": table}).make().run(problem)]
        return rows, passes.count(PASS)

    monkeypatch.setattr(Scattering, "forward", counted)
    (rows, first), images = run(), len(known)
    assert rows[1][0] == rows[1][1] != rows[0][0] and images >= 3 * 20 + 30
    again, later = run()
    assert again == rows and first - later >= 3 * 20 // PASS + 30 // PASS and len(known) == images


def test_the_fragments_of_the_page_are_a_federation_and_its_client(tmp_path: Path) -> None:
    """docs/privacy.md: the plan of `config.toml` fits into the budget of `client.toml`; both are read as they stand."""
    page = (
        (Path(__file__).parents[2] / "docs" / "privacy.md").read_text().partition("## Record level through the ring")[2]
    )
    whole, own = (text for text in re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[:2])
    (tmp_path / "client.toml").write_text(own)
    found = read_client(tmp_path / "client.toml")
    tables = {**tomllib.loads(whole), "task": {"shape": (1, 28, 28), "classes": 10}}
    config = written_out(check("config.toml", FederationConfig, tables))
    check_budget(found, config)
    plan = RingPlan(course_of(config), config.charter(roster_of(4)[1]).least_honest)
    assert 0.9 * 4.0 < check_planned(plan, own_budget(found, plan)) <= 4.0
    assert found.model == config.common_model and found.budget is not None and found.budget.anchor is not None
