"""Where a model's first weights come from is asked where records are private, said in the statement, and believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("torch")

from codream_clients.models.zoo import build
from secure_codream import Client
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.federation import FederationConfig
from secure_codream.configuration.reading import ConfigError, check
from secure_codream.configuration.weights import BUILT_IN, DECLARED, first_weights
from secure_codream.deployment.provision import provision
from secure_codream.reports.statement import FIRST_WEIGHTS, privacy_statement
from tests.secure_codream.test_ledger_commands import DATA, federation
from tests.secure_codream.test_statement import page, record

OPEN = federation().model_copy(update={"privacy": None})
RING: FederationConfig = check(
    "config.toml",
    FederationConfig,
    {
        "federation": {"course": "dp-sgd"},
        "task": {"shape": (1, 8, 8), "classes": 10},
        "dp_sgd": {"model": "hospital:build", "epsilon": 8.0, "delta": 1e-4, "sample_rate": 0.2, "batch_size": 100},
    },
)


def client(**more: Any) -> ClientConfig:
    found: ClientConfig = check("client.toml", ClientConfig, {"name": "alice", "model": "mlp_gn", **more})
    return found


@pytest.mark.parametrize(
    ("own", "whole", "given"),
    [
        ({"model": "hospital:build"}, federation(), False),
        ({}, federation(), True),
        ({}, RING, False),
    ],
    ids=["code of one's own", "a script's", "the ring's common model"],
)
def test_a_private_federation_asks_where_first_weights_come_from(
    own: dict[str, str], whole: FederationConfig, given: bool
) -> None:
    with pytest.raises(ConfigError, match=r"no word of where its first weights come from.*'charged'"):
        first_weights(client(**own), whole, given=given)
    for said, words in DECLARED.items():
        assert first_weights(client(**own, weights=said), whole, given=given) == words


def test_who_needs_not_be_asked() -> None:
    assert first_weights(client(), federation(), given=False) == BUILT_IN
    assert first_weights(client(model="hospital:build"), OPEN, given=True) == ""
    with pytest.raises(ConfigError, match="weights"):
        client(weights="imagenet")


def test_a_client_with_a_scripts_model_ends_before_anything_is_spent(tmp_path: Path) -> None:
    provision(
        tmp_path / "out",
        config=federation(),
        clients=[client(name=name) for name in "abc"],
        address="tcp://127.0.0.1:1",
    )
    folder = tmp_path / "out" / "clients" / "a"
    model = build("mlp_gn", channels=1, size=8, classes=10, seed=0)
    with pytest.raises(ConfigError, match="found a model of a script"):
        Client(folder, model=model, train=(DATA.images, DATA.labels)).run(address="there")
    assert not (folder / "privacy.jsonl").exists()


def test_the_statement_says_whose_word_it_is(tmp_path: Path) -> None:
    for words in (BUILT_IN, DECLARED["public"], ""):
        said = privacy_statement("a-run", record=msgspec.structs.replace(record(), weights=words))
        assert (FIRST_WEIGHTS in said.not_covered) is (words != BUILT_IN)
        assert words in page(tmp_path, said)
