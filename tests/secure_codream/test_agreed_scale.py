"""`mean` and `std` of `[task]` are everybody's scale: whoever comes with another is brought to it, or says so."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")

from codream_clients.data.datasets import DatasetError, LabelledImages, load_digits_data
from codream_clients.data.pixels import Scale
from codream_clients.data.understanding import DataWarning, lines
from codream_clients.privacy.records import stored_digests
from secure_codream import Client, cli
from secure_codream.configuration.client import ClientConfig, DataTable
from secure_codream.configuration.federation import FederationConfig, TaskTable
from secure_codream.configuration.images import load_data, load_shards, standardised, what_was_understood
from secure_codream.configuration.reading import ConfigError, check
from secure_codream.deployment.provision import provision
from secure_codream.doctor.examination import examine
from secure_codream.doctor.findings import State
from tests.secure_codream.test_data_command import local

AGREED = Scale((0.1307,), (0.3081,))
TASK = TaskTable(shape=(1, 8, 8), classes=10, mean=AGREED.mean, std=AGREED.std)
LOW, HIGH = -0.4242, 2.821
OWN = """
import numpy as np
from codream_clients.data.datasets import LabelledImages
from codream_clients.data.pixels import Scale

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8))
LABELS = np.arange(60) % 10


def on(mean, std, scale):
    images = ((PIXELS / 255 - mean) / std).astype(np.float32)
    part = LabelledImages(images, LABELS, 10, scale=scale)
    return part.subset(np.arange(40)), part.subset(np.arange(40, 60))


def known(): return on(0.5, 0.25, Scale((0.5,), (0.25,)))
def unknown(): return on(0.1307, 0.3081, None)
def denied(): return on(0.5, 0.25, None)
def wrong(): return on(0.5, 0.125, Scale((0.5,), (0.25,)))
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the own functions, in which a process is started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("mine_on_a_scale.py").write_text(OWN)
    sys.modules.pop("mine_on_a_scale", None)
    return tmp_path


def table(source: str, **values: Any) -> DataTable:
    found: DataTable = check("data", DataTable, {"source": source, **values})
    return found


def said(source: str, task: TaskTable | None = TASK) -> str:
    return "\n".join(lines(what_was_understood(table(source), task)))


@pytest.mark.parametrize("source", ["digits", "mine_on_a_scale:known"])
def test_images_of_a_known_scale_are_brought_to_the_agreed_one(source: str) -> None:
    own, agreed = (load_data(table(source, augment="shift"), task) for task in (None, TASK))
    for before, after in zip(own, agreed, strict=True):
        assert after.scale == AGREED != before.scale and after.augment == before.augment
        assert before.scale is not None
        fractions = before.images * before.scale.std[0] + before.scale.mean[0]
        np.testing.assert_allclose(after.images, (fractions - 0.1307) / 0.3081, atol=0.01)
        assert stored_digests(after) == stored_digests(before), "the same records in every ledger"
    assert f"are brought to the scale of [task], {AGREED}" in said(source)
    assert "[task]" not in said(source, None) and own[0].scale is not None
    theirs = TASK.model_copy(update={"mean": own[0].scale.mean, "std": own[0].scale.std})
    assert "[task]" not in said(source, theirs), "nothing to say"
    np.testing.assert_array_equal(load_data(table(source), theirs)[0].images, load_data(table(source))[0].images)


def test_all_clients_of_a_set_and_its_test_are_on_one_scale() -> None:
    shards, test = load_shards(table("digits", clients=3), TASK)
    assert {part.scale for part in (*shards, test)} == {AGREED}
    assert min(part.images.min() for part in shards) == pytest.approx(LOW, abs=1e-3)


def test_values_on_a_scale_that_nobody_said_are_used_as_they_are_and_that_is_said() -> None:
    source = "mine_on_a_scale:unknown"
    before, after = load_data(table(source))[0], load_data(table(source), TASK)[0]
    np.testing.assert_array_equal(after.images, before.images)
    assert after.scale is None, "so that ledgers know the same images by the same values"
    text = said(source)
    assert (
        f"taken to be on the scale of [task], {AGREED}, and used as they are: if they are not, give bytes, or" in text
    )
    assert "warning" not in text
    assert "[task]" not in said(source, None)


def test_values_that_deny_their_scale_are_warned_of_with_both_ranges() -> None:
    for source, values, pixels in (
        ("denied", "-2 to 2", f"on the scale of [task], {AGREED}, pixels are {LOW} to {HIGH}"),
        ("wrong", "-4 to 4", "on their scale, mean (0.5,) and std (0.25,), pixels are -2 to 2"),
    ):
        for part in ("training", "test"):
            assert f"warning: values of the {part} part are {values}; {pixels}" in said(f"mine_on_a_scale:{source}")


def test_a_script_is_told_the_same(here: Path) -> None:
    Path("config.toml").write_text("[task]\nshape = [1, 8, 8]\nclasses = 10\nmean = [0.1307]\nstd = [0.3081]\n")
    digits, test = load_digits_data(0)
    client = Client(here, train=digits, test=test)
    assert client._data is not None and client._understood is not None
    assert {part.scale for part in client._data if part is not None} == {AGREED}
    assert any("are brought to the scale of [task]" in reading for reading in client._understood.readings)
    nobodys = LabelledImages(digits.images, digits.labels, 10)
    with pytest.warns(DataWarning, match=rf"values of the training part are -0.81.* to 1.847; .* pixels are {LOW} to"):
        client = Client(here, train=nobodys)
    assert client._data is not None and client._data[0].scale is None and client._understood is not None
    assert any("are taken to be on the scale of [task]" in reading for reading in client._understood.readings)
    Path("config.toml").write_text(
        "[task]\nshape = [3, 8, 8]\nclasses = 10\nmean = [0.1, 0.2, 0.3]\nstd = [0.2, 0.2, 0.2]\n"
    )
    with pytest.raises(ConfigError, match="images: a scale of 3 channels"):
        Client(here, train=digits)


def test_a_federation_in_a_script_is_on_one_scale() -> None:
    digits, test = load_digits_data(0)
    parts = [LabelledImages(digits.images[part::30], digits.labels[part::30], 10) for part in range(3)]
    task = {"shape": (1, 8, 8), "classes": 10, "mean": AGREED.mean, "std": AGREED.std}
    nobodys = LabelledImages(test.images[:20], test.labels[:20], 10)
    with pytest.warns(DataWarning, match=rf"values of the client 0 part are .* pixels are {LOW} to"):
        local(parts, nobodys, classes=10, task=task)


def test_bytes_go_by_the_agreed_scale_as_ever() -> None:
    digits, _ = load_digits_data(0)
    assert standardised(digits, None).scale == digits.scale
    assert standardised(digits, TASK).scale == AGREED
    with pytest.raises(DatasetError, match="a scale of 3 channels"):
        standardised(digits, TaskTable(shape=(3, 8, 8), classes=10, mean=(0.1, 0.2, 0.3), std=(0.2,) * 3))


def test_doctor_and_data_say_it(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    tables = {"task": TASK.model_dump(), "dreams": {"batch": 2, "steps": 1}, "federation": {"rounds": 1}}
    config: FederationConfig = check("config.toml", FederationConfig, tables)
    sources = {"a": "digits", "b": "mine_on_a_scale:unknown", "c": "mine_on_a_scale:denied"}
    clients = [
        check("client", ClientConfig, {"name": name, "model": "mlp", "data": {"source": source}})
        for name, source in sources.items()
    ]
    provision(tmp_path / "f", config=config, clients=clients, address=address)

    def found(name: str, state: State) -> list[str]:
        findings = examine(tmp_path / "f" / "clients" / name)
        return [one.found for one in findings if one.check == "data" and one.state is state]

    (fine,) = found("a", State.OK)
    assert "are brought to the scale of [task]" in fine and not found("a", State.WARNING)
    (taken,) = found("b", State.OK)
    assert "are taken to be on the scale of [task]" in taken and not found("b", State.WARNING)
    assert [one for one in found("c", State.WARNING) if f"-2 to 2; on the scale of [task], {AGREED}, pixels are" in one]
    config_file = tmp_path / "f" / "server" / "config.toml"
    shown = CliRunner().invoke(cli.app, ["data", sources["c"], "--config", str(config_file)])
    text = " ".join(shown.output.split())
    assert (
        "are taken to be on the scale of [task]" in text and "warning: values of the training part are -2 to 2" in text
    )
    assert "[task]" not in CliRunner().invoke(cli.app, ["data", sources["c"]]).output
