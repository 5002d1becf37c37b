"""Client-level noise in the ledger of a client's records: what is reserved, charged and stated."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codream_clients.data.datasets import LabelledImages
from codream_clients.privacy.accounting import epsilon_of
from codream_clients.privacy.groups import group_epsilon
from codream_clients.privacy.ledger import BudgetExceeded, Ledger
from codream_clients.privacy.sums_plan import SUM, SumsPlan
from codream_protocols.client import Memory
from codream_protocols.zcdp import epsilon_of as concentrated
from codream_protocols.zcdp import rho_of
from secure_codream import Client
from secure_codream.configuration.assembly import load_client_data
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.federation import FederationConfig, PredecessorTable
from secure_codream.configuration.limits import charges_sums, check_budget, open_ledger
from secure_codream.configuration.reading import ConfigError, check
from secure_codream.deployment.client import ChargedJournal, has_charged
from secure_codream.deployment.provision import provision
from secure_codream.deployment.statements import own_statement
from secure_codream.deployment.verify_statement import verify_statement
from secure_codream.simulation.wire import Federation
from tests.secure_codream.small import roster_of
from tests.secure_codream.test_client_level_ledger import VICTIM, policy_of

DATA = LabelledImages(np.random.default_rng(0).normal(size=(40, 1, 8, 8)).astype(np.float32), np.arange(40) % 10, 10)
DELTA = 1e-6


def federation(epsilon: float = 2.0, *, rounds: int = 2, **dreams: Any) -> FederationConfig:
    votes = dreams.get("label_by") == "votes"
    norms = {} if votes else {"update_norm": 20.0, "logit_norm": 1.0}
    tables = {
        "federation": {"name": "noised", "rounds": rounds},
        "task": {"shape": (1, 8, 8), "classes": 10},
        "dreams": {"batch": 4, "steps": 0 if votes else 2, **dreams},
        "client_privacy": {"epsilon": epsilon, "delta": DELTA, "spare_rounds": 1, **norms},
    }
    found: FederationConfig = check("config.toml", FederationConfig, tables)
    return found


def client(epsilon: float = 8.0, **more: Any) -> ClientConfig:
    tables = {
        "name": "client-0",
        "model": "mlp",
        "budget": {"epsilon": epsilon, "delta": DELTA, "accountant": "rdp"},
        "policy": {"shared_noise": True},
        **more,
    }
    found: ClientConfig = check("client.toml", ClientConfig, tables)
    return found


def plan_of(config: FederationConfig) -> SumsPlan:
    return SumsPlan.of(make_course(config), config.charter(roster_of(4)[1]))


def test_a_record_pays_four_times_what_its_client_does() -> None:
    """All rounds and the spare one; in zCDP, whatever orders the ledger counts by."""
    plan = plan_of(federation())
    assert len(plan.charges) == 3 * 3 and {charge.purpose for charge in plan.charges} == {SUM}
    exact = concentrated(4 * rho_of(2.0, DELTA), DELTA)
    assert 0.99 * exact <= epsilon_of(plan.charges, DELTA, "rdp") <= 1.05 * exact
    assert 18.5 < plan_of(federation(8.0)).budget.epsilon < 22  # docs/client-level-privacy.md, there at 1e-5: 19
    assert plan.budget.epsilon == epsilon_of(plan.charges, DELTA, "prv"), "no continuous Gaussian's composition"


def test_votes_cost_a_record_less_and_more_than_twice() -> None:
    plan = plan_of(federation(label_by="votes"))
    (charge,) = set(plan.charges)
    of_client = rho_of(2.0, DELTA) / 3
    assert 2.0 < 1 / (2 * charge.noise_multiplier**2) / of_client < 2.8


def test_several_records_of_a_person_cost_what_one_does() -> None:
    """Whatever of a client's data changes, its vector is within its bound."""
    charges = plan_of(federation()).charges
    assert group_epsilon(charges, DELTA, 20) == group_epsilon(charges, DELTA, 1) >= epsilon_of(charges, DELTA, "rdp")


def charged(folder: Path, config: FederationConfig, own: ClientConfig, *, took_part: bool = False) -> Ledger:
    return open_ledger(folder / "privacy.jsonl", own, config, plan_of(config), DATA, took_part=took_part)


def test_every_noised_sum_is_charged_within_what_was_reserved_and_anew_after_a_restart(tmp_path: Path) -> None:
    config = federation()
    plan = plan_of(config)
    with charged(tmp_path, config, client()) as ledger:
        before = ledger.spent
        whole = Federation(4, charter=config.charter(roster_of(4)[1]), course=plan.course, policy=policy_of())
        diary, rhos = whole.diaries[VICTIM], [whole.plan.rho(whole.plan.spec(step)) for step in range(3)]
        journal = ChargedJournal(
            diary, None, lambda: None, VICTIM, of_records=lambda rho: ledger.reserve(plan.charge_of(rho))
        )
        whole.clients[VICTIM]._journal = journal
        whole.epoch()
        assert ledger.own.begun == [plan.charge_of(rho) for rho in rhos] and ledger.spent == before
        assert not Counter(ledger.own.begun) - Counter(plan.charges), "each was planned"
        kept = diary.memory
    assert has_charged(kept, config) and not has_charged(Memory(), config)
    with charged(tmp_path, config, client(), took_part=True) as again:
        assert len(again.own.begun) == 3 and again.spent == before
        again.end()
        assert again.spent < before


def following(config: FederationConfig, certified: int) -> FederationConfig:
    """A charter of the same settings that follows one with so many rounds certified."""
    table = {"charter": "0" * 64, "head": "1" * 64, "certified": certified}
    return config.model_copy(update={"predecessor": PredecessorTable.model_validate(table)})


@pytest.mark.parametrize("members", [4, 5])
def test_a_charter_that_follows_reserves_all_that_it_has_before_it(members: int, tmp_path: Path) -> None:
    """What was begun before it is no part of that, with the same noise or another; what was not, is given back."""
    config, own = federation(rounds=5), client(epsilon=8.0)
    first = plan_of(config)
    with charged(tmp_path, config, own) as ledger:
        for charge in first.charges[:6]:
            ledger.reserve(charge)
        assert len(ledger.own.open) == 12  # of five rounds and the spare one
    after = following(config, 2)
    plan = SumsPlan.of(make_course(after), after.charter(roster_of(members)[1]))
    assert len(plan.charges) == 12 and plan.spare == 3
    with open_ledger(tmp_path / "privacy.jsonl", own, after, plan, DATA) as ledger:
        assert len(ledger.own.open) == 12 and len(ledger.charges) == 18 and list(ledger.earlier) == first.charges[:6]
        ledger.reserve(plan.charges[0])
    with open_ledger(tmp_path / "privacy.jsonl", own, after, plan, DATA) as again:
        assert len(again.own.open) == 11 and len(again.charges) == 18


def test_what_another_charter_has_begun_is_no_part_of_a_plan_whichever_it_follows(tmp_path: Path) -> None:
    """One begun anew, with another roster, that follows none; and two that follow the same one."""
    config, own = federation(rounds=5), client(epsilon=30.0)
    after = following(config, 2)
    plans = [
        (of, SumsPlan.of(make_course(of), of.charter(roster_of(members)[1])))
        for of, members in ((config, 4), (config, 5), (after, 4), (after, 5))
    ]
    for of, plan in plans:
        with open_ledger(tmp_path / "privacy.jsonl", own, of, plan, DATA) as ledger:
            assert Counter(ledger.own.open) == Counter(plan.charges)
            assert sum(len(account.open) for account in ledger.accounts.values()) == len(plan.charges)
            for charge in plan.charges[:4]:
                ledger.reserve(charge)
        with open_ledger(tmp_path / "privacy.jsonl", own, of, plan, DATA) as again:  # control: the same one
            assert len(again.own.begun) == 4 and len(again.own.open) == len(plan.charges) - 4


def test_a_charter_that_follows_goes_on_without_the_spare_rounds_that_no_longer_fit(tmp_path: Path) -> None:
    """One failed before it, in a budget of the whole plan and no more: all that are left are reserved all the same."""
    config = federation(rounds=5)
    plan = plan_of(config)
    own = client(epsilon=plan.budget.epsilon * 1.001)
    with charged(tmp_path, config, own) as ledger:
        for charge in plan.charges[:7]:  # two rounds certified, and a third of one that failed
            ledger.reserve(charge)
    after = following(config, 2)
    rest = SumsPlan.of(make_course(after), after.charter(roster_of(4)[1]))
    for _ in range(2):
        with open_ledger(tmp_path / "privacy.jsonl", own, after, rest, DATA) as ledger:
            assert len(ledger.own.open) == 9 + 2 and ledger.spent <= ledger.budget.epsilon
            entries = ledger.entries
    assert entries == 11, "written once"
    with open_ledger(tmp_path / "privacy.jsonl", own, after, rest, DATA) as ledger:
        for charge in rest.charges[:9]:
            ledger.reserve(charge)


def test_what_does_not_fit_beside_the_rest_is_not_begun(tmp_path: Path) -> None:
    with pytest.raises(BudgetExceeded, match="this client's own budget is 2"):
        charged(tmp_path, federation(), client(epsilon=2.0))
    (tmp_path / "other").mkdir()
    charged(tmp_path / "other", federation(), client(epsilon=6.0)).close()  # control


def test_records_count_on_others_noise_where_the_client_says_so_alone() -> None:
    with pytest.raises(ConfigError, match=r"no shared_noise with \[budget\] and \[client_privacy\]"):
        check_budget(client(policy={}), federation())
    check_budget(client(), federation())
    check_budget(client(budget=None, policy={}), federation())  # without a budget nothing is charged
    with pytest.raises(ConfigError, match="trains privately or not at all"):
        check_budget(client(), federation().model_copy(update={"client_privacy": None}))


def test_a_course_of_ones_own_noises_what_it_likes_so_a_client_with_a_budget_stays_away() -> None:
    course = federation().federation.model_copy(update={"course": "mine:course"})
    own = federation().model_copy(update={"federation": course})
    with pytest.raises(ConfigError, match=r"nor \[client_privacy\] with course 'codream'"):
        check_budget(client(), own)
    assert not charges_sums(client(), own)


@pytest.mark.parametrize("drawn", [{"train_limit": 20}, {"clients": 2, "part": 0}, {"per_client": 20}])
def test_no_draw_among_the_records_says_who_is_charged(drawn: dict[str, Any], tmp_path: Path) -> None:
    """One image more would move others into what two clients send, of which four times one's cost says nothing."""
    path = tmp_path / "scans.npz"
    np.savez(path, train_images=np.zeros((40, 8, 8), np.uint8), train_labels=np.arange(40) % 10)
    own = client(data={"source": str(path), **drawn})
    with pytest.raises(ConfigError, match="charges a budget of records; a folder or file"):
        load_client_data(own, federation())


def test_what_follows_from_a_private_training_is_not_charged_twice() -> None:
    both = federation().model_copy(update={"privacy": {"epsilon": 1.0}})
    assert charges_sums(client(), federation()) and not charges_sums(client(), both)


def test_the_statement_says_what_noised_sums_leave_of_a_record(tmp_path: Path) -> None:
    config = federation()
    plan, charter = plan_of(config), config.charter(roster_of(4)[1])
    with charged(tmp_path, config, client()) as ledger:
        for charge in plan.charges:
            ledger.reserve(charge)
        said = own_statement(config, "client-0", ledger, charter, plan.course, rho_of(2.0, DELTA))
    assert said.record is not None and said.client is not None
    (member,) = said.record.members
    assert member.spent == ledger.spent > 2 * said.client.spent and member.head == ledger.head
    assert [(part.purpose, part.steps) for part in member.mechanisms] == [(SUM, 6), (SUM, 3)]
    assert member.persons[20] == member.persons[2]
    by = said.record.by_colluders
    assert len(by) == 4 and by == sorted(by) and by[1] == pytest.approx(member.spent)
    assert any("own model" in line for line in said.not_covered) and "colluding with it" in said.headline


def test_a_client_reserves_all_of_it_before_its_first_round_and_signs_what_it_says(tmp_path: Path) -> None:
    """The way of `client` itself, up to its socket."""
    clients = [client(name=name) for name in ("alice", "bob", "carol")]
    provision(tmp_path / "out", config=federation(), clients=clients, address="tcp://127.0.0.1:1")
    folder = tmp_path / "out" / "clients" / "alice"
    with pytest.raises(Exception, match="allowed: tcp://HOST:PORT"):
        Client(folder, train=(DATA.images, DATA.labels)).run(address="there")
    stated = verify_statement(folder).statement
    assert stated.record is not None and stated.record.sums and stated.client is not None
    (member,) = stated.record.members
    assert sum(part.steps for part in member.mechanisms) == 9 and member.spent > 4
    assert all(part.began is None for part in member.mechanisms)
