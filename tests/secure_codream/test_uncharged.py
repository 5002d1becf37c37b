"""A federation that charges nothing, on images that have a ledger: refused, or permitted and never forgotten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")

from codream_clients.data.datasets import LabelledImages
from codream_clients.models.zoo import build
from codream_clients.privacy.index import known_index, users_index
from codream_clients.privacy.ledger import Ledger
from codream_protocols.courses.codream import ClientPrivacy
from secure_codream import Client, cli, run_local
from secure_codream.api.local import NotCovered
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.federation import FederationConfig
from secure_codream.configuration.limits import HasLedger, look_uncharged, open_ledger
from secure_codream.configuration.reading import ConfigError, check
from secure_codream.deployment.provision import provision
from secure_codream.deployment.statements import own_statement
from secure_codream.deployment.verify_statement import verify_statement
from secure_codream.simulation.wire import Federation
from tests.secure_codream.test_ledger_commands import DATA, client, federation, plan

OPEN: FederationConfig = check(
    "config.toml",
    FederationConfig,
    {
        "federation": {"name": "hearts", "rounds": 1},
        "task": {"shape": (1, 8, 8), "classes": 10},
        "dreams": {"batch": 4, "steps": 1},
        "learning": {"warm_up_epochs": 1},
    },
)


@pytest.fixture
def spent(tmp_path: Path) -> Ledger:
    """What a federation with `[privacy]` has spent on the images."""
    with open_ledger(tmp_path / "privacy.jsonl", client(), federation(), plan(), DATA, index=users_index()) as ledger:
        ledger.reserve(plan().histogram)
        return ledger


def site(folder: Path, *, permitted: bool = False) -> Path:
    """A client's folder in another federation, one without `[privacy]`."""
    clients: list[ClientConfig] = [
        check("client.toml", ClientConfig, {"name": name, "model": "mlp", "policy": {"uncharged": permitted}})
        for name in ("alice", "bob", "carol")
    ]
    provision(folder, config=OPEN, clients=clients, address="tcp://127.0.0.1:1")
    return folder / "clients" / "alice"


def test_nothing_is_said_where_no_image_has_a_ledger(tmp_path: Path) -> None:
    own = client().model_copy(update={"budget": None})
    assert known_index() is None, "to look makes none"
    assert look_uncharged(own, OPEN, DATA, DATA, users_index()) == []


def test_images_with_a_ledger_are_not_trained_on_without_a_charge(spent: Ledger, tmp_path: Path) -> None:
    """Before anything is trained. Control: where `[policy]` permits it the client goes on, to its socket."""
    five = (DATA.images[:5], DATA.labels[:5])
    with pytest.raises(HasLedger, match=r"5 of 5 images have spent in the ledger .*privacy\.jsonl.*uncharged = true"):
        Client(site(tmp_path / "refused"), train=five).run(address="there")
    index = known_index()
    assert index is not None and index.uncharged(spent.name) == []
    permitted = site(tmp_path / "permitted", permitted=True)
    with pytest.raises(Exception, match="allowed: tcp://HOST:PORT"):
        Client(permitted, train=five).run(address="there")
    (said,) = index.uncharged(spent.name)
    assert said.startswith("alice in hearts, since 20")
    assert "[policy] permits it" in (permitted / "log.jsonl").read_text()
    assert verify_statement(permitted).statement.uncharged == []  # of a run that has no ledger


def test_test_images_with_a_ledger_are_not_told_of_without_a_charge(spent: Ledger, tmp_path: Path) -> None:
    """How many of them are right follows from images that others have an epsilon for. Control: nothing is told."""
    others = DATA.subset(np.arange(20)).images + 1.0
    own, known = client().model_copy(update={"budget": None}), users_index()
    apart = LabelledImages(others, DATA.labels[:20], 10)
    with pytest.raises(HasLedger, match=r"40 of 40 test images have spent .*is told how many.*tell_accuracy = false"):
        look_uncharged(own, OPEN, apart, DATA, known)
    for silent in (federation(), OPEN.model_copy(update={"client_privacy": ClientPrivacy(epsilon=1.0, delta=1e-6)})):
        assert look_uncharged(own, silent, apart, DATA, known) == []
    telling = own.model_copy(update={"tell_accuracy": True})
    with pytest.raises(HasLedger, match="test images"):
        look_uncharged(telling, federation(), DATA, DATA, known)  # trained on for a charge, and told of without one
    given = {"train": (apart.images, apart.labels), "test": (DATA.images, DATA.labels)}
    with pytest.raises(HasLedger, match="test images"):
        Client(site(tmp_path / "refused"), **given).run(address="there")
    with pytest.raises(Exception, match="allowed: tcp://HOST:PORT"):
        Client(site(tmp_path / "permitted", permitted=True), **given).run(address="there")
    assert [said[:15] for said in known.uncharged(spent.name)] == ["alice in hearts"]


def test_a_ledgers_statement_says_who_charged_nothing(spent: Ledger, tmp_path: Path) -> None:
    whole, index = Federation(3), users_index()
    index.note_uncharged(spent.name, "hearts", "alice")
    index.note_uncharged(spent.name, "hearts", "alice")
    said = own_statement(
        federation(), "alice", spent, whole.charter, whole.course, 0.0, uncharged=index.uncharged(spent.name)
    )
    assert "WITHOUT A BOUND, some of the same images were used by alice in hearts, since 20" in said.headline
    shown: Any = CliRunner().invoke(cli.app, ["ledger", "show", str(tmp_path / "privacy.jsonl"), "--json"])
    assert len(json.loads(shown.output)["uncharged"]) == 1
    shown = CliRunner().invoke(cli.app, ["ledger", "show", str(tmp_path / "privacy.jsonl")], env={"COLUMNS": "200"})
    assert "without a bound, and charged nothing: alice in hearts" in shown.output


def test_doctor_says_it_before_the_run_does(spent: Ledger, tmp_path: Path) -> None:
    from secure_codream.configuration.client import read_client
    from secure_codream.doctor.learning import of_budget

    path = tmp_path / "scans.npz"
    raw = np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype(np.uint8)
    np.savez(path, train_images=raw, train_labels=np.arange(40) % 10, test_images=raw, test_labels=np.arange(40) % 10)
    (tmp_path / "client.toml").write_text('name = "alice"\nmodel = "mlp"\n[data]\nsource = "./scans.npz"\n')
    own, whole = read_client(tmp_path / "client.toml"), Federation(3)
    (fine,) = of_budget(tmp_path, own, OPEN, whole.charter, whole.course)  # control: no ledger of these
    assert "none is spent" in fine.found
    from secure_codream.configuration.assembly import load_client_data

    images, _ = load_client_data(own, OPEN)
    with open_ledger(tmp_path / "l.jsonl", client(), federation(), plan(), images, index=users_index()):
        pass
    with pytest.raises(HasLedger):
        list(of_budget(tmp_path, own, OPEN, whole.charter, whole.course))


@pytest.mark.parametrize("known", [False, True])
def test_run_local_says_that_it_charges_nothing(known: bool, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Of images that are not said to be public; a ledger of theirs is named. Control: public ones."""
    if known:
        with open_ledger(tmp_path / "l.jsonl", client(), federation(), plan(), DATA, index=users_index()):
            pass
    shards = [DATA.subset(np.arange(part, 40, 2)) for part in range(2)]
    models = [build("mlp_gn", channels=1, size=8, classes=10, seed=seed) for seed in range(2)]
    for public in (False, True):
        with pytest.raises(ConfigError, match="clients"):  # two are too few, and nothing is trained here
            run_local(models, shards, DATA, classes=10, public=public)
    (said,) = [str(one.message) for one in recwarn if one.category is NotCovered]
    assert said.startswith("not covered: nothing says that the images are public")
    assert (f"40 of them have spent in the ledger {tmp_path / 'l.jsonl'}" in said) is known
