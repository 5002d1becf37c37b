"""One ledger for all federations on a site's images: how a client opens it, what is refused, and its commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from codream_clients.data.datasets import LabelledImages
from codream_clients.privacy.accounting import epsilon_of
from codream_clients.privacy.index import SpentElsewhere, users_index
from codream_clients.privacy.ledger import Budget, BudgetExceeded, Ledger, LedgerMismatch, Spender
from codream_clients.privacy.plan import PrivacyPlan, PrivacySettings, plan_privacy
from secure_codream import cli
from secure_codream.configuration import limits
from secure_codream.configuration.assembly import load_client_data
from secure_codream.configuration.client import ClientConfig, read_client
from secure_codream.configuration.federation import FederationConfig, read_federation
from secure_codream.configuration.limits import LedgerVanishes, open_ledger
from secure_codream.configuration.reading import check
from secure_codream.deployment.budget import dry_run

PRIVACY = {"epsilon": 2.0, "delta": 1e-3, "batch_size": 16, "warm_up_epochs": 2, "accountant": "rdp"}
BUDGET = {"epsilon": 2.5, "delta": 1e-3, "accountant": "rdp"}
DATA = LabelledImages(np.random.default_rng(0).normal(size=(40, 1, 8, 8)).astype(np.float32), np.arange(40) % 10, 10)


def federation(name: str = "lungs", **privacy: Any) -> FederationConfig:
    tables = {
        "federation": {"name": name, "rounds": 2},
        "task": {"shape": (1, 8, 8), "classes": 10},
        "dreams": {"batch": 4, "steps": 1},
        "privacy": {**PRIVACY, **privacy},
    }
    found: FederationConfig = check("config.toml", FederationConfig, tables)
    return found


def client(**budget: Any) -> ClientConfig:
    own = {**BUDGET, **budget}
    found: ClientConfig = check("client.toml", ClientConfig, {"name": "alice", "model": "mlp_gn", "budget": own})
    return found


def plan(**privacy: Any) -> PrivacyPlan:
    return plan_privacy(PrivacySettings(**{**PRIVACY, **privacy}), records=40, rounds=2)


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(cli.app, ["ledger", *map(str, arguments)], env={"COLUMNS": "200"})


# -- opening it -----------------------------------------------------------------------------------------------------


def test_two_federations_share_the_ledger_that_client_toml_names(tmp_path: Path) -> None:
    """Each reserves its whole plan at once; what does not fit does not even begin. Two of epsilon 2 are not 2."""
    shared = client(ledger=tmp_path / "images.jsonl", anchor=tmp_path / "anchor")
    first = open_ledger(tmp_path / "a" / "privacy.jsonl", shared, federation(), plan(), DATA)
    assert first.own.open == list(plan().charges) and (tmp_path / "anchor").exists()
    with first, pytest.raises(BudgetExceeded, match="all that 'hearts' plans"):
        open_ledger(tmp_path / "b" / "privacy.jsonl", shared, federation("hearts"), plan(), DATA)
    small = plan(epsilon=0.5)
    with open_ledger(tmp_path / "b" / "privacy.jsonl", shared, federation("hearts", epsilon=0.5), small, DATA) as other:
        assert 2.0 < other.spent <= 2.5 and len(other.charges) == len(plan().charges) + len(small.charges)


def test_paths_of_a_budget_start_at_the_folder_of_client_toml(tmp_path: Path) -> None:
    path = tmp_path / "client.toml"
    path.write_text(
        'name = "a"\nmodel = "mlp"\n[budget]\nepsilon = 1\ndelta = 1e-5\nledger = "../l"\nanchor = "/x/y"\n'
    )
    budget = read_client(path).budget
    assert budget is not None and (budget.ledger, budget.anchor) == (tmp_path / "../l", Path("/x/y"))


def test_the_same_images_in_another_folder_are_noticed(tmp_path: Path) -> None:
    """Another client.toml, another folder, no word of the first ledger: the budget would start anew."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    with open_ledger(tmp_path / "one/privacy.jsonl", client(), federation(), plan(), DATA, index=users_index()):
        pass
    place = tmp_path / "other/privacy.jsonl"
    part = DATA.subset(np.arange(5))
    with pytest.raises(SpentElsewhere, match=r"5 of 5 images have spent in the ledger .*one/privacy\.jsonl"):
        open_ledger(place, client(), federation("hearts"), plan(), part, index=users_index())
    looked = Ledger.look(place, by=Spender("hearts", "alice"), budget=None)
    assert looked is not None and looked.charges == ()  # given back: nothing ran
    open_ledger(place, client(), federation("livers"), plan(), part).close()  # control: without an index


def test_other_images_or_settings_in_the_same_folder_are_another_run(tmp_path: Path) -> None:
    """Else what was released of the old images would stand for the new ones, and they would be told nothing."""
    path, grown = tmp_path / "privacy.jsonl", client(epsilon=9.0)
    names = []
    for images, seed in ((DATA, 0), (DATA, 0), (DATA.subset(np.arange(1, 40)), 0), (DATA, 1)):
        with open_ledger(path, grown.model_copy(update={"seed": seed}), federation(), plan(), images) as ledger:
            names.append(len(ledger.accounts))
            ledger.reserve(plan().histogram)
    assert names == [1, 1, 2, 3]


def test_a_ledger_in_memory_is_refused_before_anything_is_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "vanishing", lambda path: "tmpfs")
    path = tmp_path / "privacy.jsonl"
    with pytest.raises(LedgerVanishes, match="found a tmpfs"):
        open_ledger(path, client(), federation(), plan(), DATA, index=users_index())
    assert not path.exists()
    open_ledger(path, client(), federation(), plan(), DATA).close()  # control: a known set protects nobody


# -- commands -------------------------------------------------------------------------------------------------------


@pytest.fixture
def spent(tmp_path: Path) -> Path:
    path = tmp_path / "privacy.jsonl"
    with open_ledger(path, client(), federation(), plan(), DATA, index=users_index()) as ledger:
        ledger.reserve(plan().histogram)
        ledger.released(plan().histogram)
    return path


def test_show_says_what_is_spent_and_reserved(spent: Path) -> None:
    before = spent.read_bytes()
    text = run("show", spent)
    assert text.exit_code == 0 and "label histogram" in text.output and "reserved" in text.output
    content = json.loads(run("show", spent, "--json").output)
    assert [(row["purpose"], row["began"] is not None, row["released"]) for row in content["charges"]] == [
        ("label histogram", True, True),
        ("warm-up", False, False),
    ]
    assert (content["epsilon"], content["entries"]) == (2.5, 4) and 1.9 < content["spent"] <= 2.0
    assert spent.read_bytes() == before


def test_a_folder_names_its_ledger(spent: Path) -> None:
    (spent.parent / "client.toml").write_text(
        'name = "alice"\nmodel = "mlp_gn"\n[budget]\nepsilon = 2.5\ndelta = 1e-3\naccountant = "rdp"\n'
    )
    assert run("show", spent.parent, "--json").output == run("show", spent, "--json").output
    spent.unlink()
    spent.with_name("privacy.jsonl.anchor").unlink()
    assert isinstance(run("show", spent.parent).exception, LedgerMismatch)


def test_verify_finds_an_older_copy_even_with_its_anchor(spent: Path) -> None:
    anchor = spent.with_name("privacy.jsonl.anchor")
    older = spent.read_bytes(), anchor.read_bytes()
    assert run("verify", spent).exit_code == 0
    with open_ledger(spent, client(), federation(), plan(), DATA, index=users_index()) as ledger:
        ledger.end()
    assert json.loads(run("verify", spent, "--json").output)["entries"] == 5
    spent.write_bytes(older[0])
    anchor.write_bytes(older[1])
    assert run("verify", spent).exit_code == 1
    assert run("show", spent).exit_code == 0  # control: the files alone fit each other


def test_reissue_changes_the_budget_and_leaves_what_is_spent(spent: Path) -> None:
    assert run("reissue", spent, "--epsilon", 5, "--delta", 1e-4).exit_code == 0
    found = Ledger.look(spent, by=Spender("lungs", "alice"), budget=Budget(5.0, 1e-4, "rdp"))
    assert found is not None and len(found.charges) == len(plan().charges)
    with pytest.raises(LedgerMismatch, match="Only reissue"):
        open_ledger(spent, client(), federation(), plan(), DATA)
    open_ledger(spent, client(epsilon=5.0, delta=1e-4), federation(), plan(), DATA).close()


def test_end_gives_back_what_a_federation_never_began(spent: Path) -> None:
    assert run("end", spent, "--federation", "hearts").exit_code != 0
    assert run("end", spent, "--federation", "lungs").exit_code == 0
    content = json.loads(run("show", spent, "--json").output)
    assert [row["purpose"] for row in content["charges"]] == ["label histogram"]


def site(folder: Path, **privacy: Any) -> Path:
    folder.mkdir()
    tables = {**PRIVACY, **privacy}
    private = "".join(f"{key} = {value!r}\n".replace("'", '"') for key, value in tables.items())
    (folder / "config.toml").write_text(
        '[federation]\nname = "lungs"\nrounds = 1\n[task]\nshape = [1, 8, 8]\nclasses = 10\n[dreams]\nbatch = 4\n'
        f"steps = 1\n[learning]\nheld_back = 0.0\n[privacy]\n{private}"
    )
    (folder / "client.toml").write_text(
        'name = "alice"\nmodel = "mlp_gn"\n[data]\nclients = 4\nper_client = 40\n'
        '[budget]\nepsilon = 2.5\ndelta = 1e-3\naccountant = "rdp"\n'
    )
    return folder


def test_plan_is_a_dry_run(tmp_path: Path) -> None:
    folder = site(tmp_path / "alice", batch_size=2, warm_up_epochs=4)
    before = {path.name for path in folder.iterdir()}
    content = json.loads(run("plan", folder, "--json").output)
    assert {path.name for path in folder.iterdir()} == before
    asked = plan(batch_size=2, warm_up_epochs=4)
    assert (content["steps"], content["sample_rate"]) == (80, 0.05)
    assert content["noise_multiplier"] == asked.noise_multiplier and content["remarks"] == []
    assert content["spent"] == 0 and content["left"] == pytest.approx(2.5 - content["together"])
    text = run("plan", folder).output
    assert "80 steps of DP-SGD, batches of 2 of 40 images" in text and "warning" not in text


def test_plan_warns_of_few_steps_and_of_a_rate_near_one(tmp_path: Path) -> None:
    text = run("plan", site(tmp_path / "alice", batch_size=30)).output
    assert "the whole budget is spent in 3 steps" in text and "with probability 0.75: 40 images are few" in text


def test_plan_counts_what_others_have_reserved(tmp_path: Path) -> None:
    folder = site(tmp_path / "alice")
    with Ledger.open(folder / "privacy.jsonl", by=Spender("hearts", "a"), budget=Budget(2.5, 1e-3, "rdp")) as ledger:
        ledger.plan(plan().charges)
    result = run("plan", folder)
    assert isinstance(result.exception, BudgetExceeded) and "is spent or reserved" in str(result.exception)
    with Ledger.open(folder / "privacy.jsonl", by=Spender("hearts", "a"), budget=Budget(2.5, 1e-3, "rdp")) as ledger:
        ledger.end()
    assert run("plan", folder).exit_code == 0  # control


def test_a_dry_run_of_a_run_that_has_begun_counts_it_once(tmp_path: Path) -> None:
    folder = site(tmp_path / "alice")
    own, whole = read_client(folder / "client.toml"), read_federation(folder / "config.toml")
    images, _ = load_client_data(own, whole)
    before = dry_run(folder, own, whole)
    asked = plan_privacy(PrivacySettings(**PRIVACY), records=40, rounds=1)
    with open_ledger(folder / "privacy.jsonl", own, whole, asked, images) as ledger:
        ledger.reserve(asked.histogram)
    after = dry_run(folder, own, whole)
    assert (before.begun, after.begun, before.spent, after.earlier) == (False, True, 0.0, 0.0)
    assert before.together == after.together == after.spent == pytest.approx(before.planned)


def test_a_charter_that_trains_anew_is_reserved_in_the_place_of_the_rest_and_shown(tmp_path: Path) -> None:
    """Other settings are another training: the first one's histogram stays spent, what it had not begun is free."""
    folder = site(tmp_path / "alice", lr=1.0)
    own, whole = read_client(folder / "client.toml"), read_federation(folder / "config.toml")
    images, _ = load_client_data(own, whole)
    once = plan()
    with open_ledger(folder / "privacy.jsonl", own, federation(), once, images) as ledger:
        ledger.reserve(once.histogram)
    with pytest.raises(BudgetExceeded, match="is spent or reserved"):  # a first charter does not follow it
        dry_run(folder, own, whole)
    table = f'\n[predecessor]\ncharter = "{"0" * 64}"\nhead = "{"1" * 64}"\ncertified = 0\n'
    (folder / "config.toml").write_text((folder / "config.toml").read_text() + table)
    whole = read_federation(folder / "config.toml")
    found = dry_run(folder, own, whole)
    assert found.spent < found.together < 2.1 and found.earlier == epsilon_of([once.histogram], 1e-3, "rdp")
    assert f"epsilon {found.earlier:.4g} of that alice has begun in lungs before" in run("plan", folder).output
    again = plan(lr=1.0)
    with open_ledger(folder / "privacy.jsonl", own, whole, again, images) as ledger:
        assert ledger.own.open == list(again.charges) and ledger.spent == found.together


# -- what is charged to no ledger -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["compare", "audit"])
@pytest.mark.parametrize("public", [False, True], ids=["own images", "control: a known set"])
def test_what_trains_on_own_images_without_a_ledger_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, public: bool
) -> None:
    """No client's epsilon covers it, and nobody would think of it."""

    def stopped(*arguments: Any, **options: Any) -> None:
        raise ValueError("nothing is trained here")

    monkeypatch.setattr("secure_codream.experiments.compare.run_comparison", stopped)
    monkeypatch.setattr("secure_codream.audit.run.run_audit", stopped)
    rng, path = np.random.default_rng(0), tmp_path / "scans.npz"
    parts = {f"{part}_images": rng.integers(0, 256, (60, 8, 8)).astype(np.uint8) for part in ("train", "test")}
    labels = {f"{part}_labels": np.arange(60) % 3 for part in ("train", "test")}
    np.savez(path, **parts, **labels)
    flags = ["--algorithms", "isolated", "--per-client", "10", "--clients", "3"] if command == "compare" else []
    source = "digits" if public else str(path)
    found = CliRunner().invoke(cli.app, [command, "--data", source, *flags, "--out", str(tmp_path / "runs")])
    assert str(found.exception) == "nothing is trained here"
    assert ("not covered: " in found.output) is not public
