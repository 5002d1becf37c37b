"""Dreams that start from photographs: all sign the digest of the pixels, and who decodes others begins nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from codream_clients.data.datasets import LabelledImages
from codream_clients.data.photographs import photographs_digest, public_photographs
from codream_clients.learning.settings import LearningSettings
from codream_clients.models.zoo import build
from codream_protocols.courses.codream import Dreams
from codream_protocols.errors import LocalProtocolError, MalformedMessage, NotAccepted
from codream_protocols.settings import SettingsError
from secure_codream import cli
from secure_codream.api.local import run_local
from secure_codream.configuration.charter_file import charter_bytes, read_charter
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.courses import make_course, public_images, written_out
from secure_codream.configuration.federation import AggregationTable, FederationConfig, read_federation
from secure_codream.configuration.reading import ConfigError, check
from secure_codream.deployment.charter import config_file, following, sign
from secure_codream.deployment.client import run_client
from secure_codream.deployment.provision import provision
from secure_codream.deployment.server import run_server
from secure_codream.deployment.verify import RecordRefused, verify_record
from secure_codream.doctor.examination import examine
from secure_codream.doctor.findings import State
from secure_codream.experiments.algorithms.codream import CoDream
from secure_codream.experiments.problem import Problem
from secure_codream.membership import administration
from secure_codream.membership.passphrase import Passphrase
from secure_codream.reports.files import RecordError
from secure_codream.reports.starts import starts_of
from tests.secure_codream.small import SUMS, codream, record_of, roster_of

NAMES = ("a", "b", "c")
PHOTOS = {"start": "photos", "batch": 2, "steps": 1}
REFUSED = r"found photographs of digest [0-9a-f]{64}; allowed: digest [0-9a-f]{64}; .*install the Pillow"
DIGEST = photographs_digest(public_photographs()).hex()


def config_of(**tables: Any) -> FederationConfig:
    found: FederationConfig = check(
        "config.toml", FederationConfig, {"task": {"shape": (1, 8, 8), "classes": 10}, "dreams": PHOTOS, **tables}
    )
    return found


@pytest.fixture
def provisioned(tmp_path: Path) -> Path:
    clients = [
        check("client", ClientConfig, {"name": name, "model": "mlp", "data": {"clients": 3, "part": part}})
        for part, name in enumerate(NAMES)
    ]
    provision(tmp_path / "f", config=config_of(), clients=clients, address="tcp://127.0.0.1:7447")
    return tmp_path / "f"


@pytest.fixture
def another_pillow(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Called, it makes this machine decode one level of one pixel otherwise."""
    images = [image.copy() for image in public_photographs()]
    images[0][0, 0, 0] ^= 1
    return lambda: monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: SimpleNamespace(images=images))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


# -- the charter ---------------------------------------------


def test_provision_writes_the_digest_which_all_sign(provisioned: Path) -> None:
    written = [read_federation(path) for path in provisioned.rglob("config.toml")]
    assert len(written) == 4 and {one.dreams.photographs for one in written} == {DIGEST}
    for path in provisioned.rglob("charter.json"):
        assert json.loads(path.read_bytes())["settings"]["dreams"]["photographs"] == DIGEST


def test_a_charter_that_is_signed_later_has_it_too(provisioned: Path) -> None:
    folder = provisioned / "administrator"
    out, _, config = sign(folder, administration.administrator_of(folder, Passphrase()), config_of())
    assert config.dreams.photographs == DIGEST and DIGEST in (out / "charter.json").read_text()


def test_other_pixels_are_another_charter() -> None:
    _, roster = roster_of(3)
    one, other = (config_of(dreams={**PHOTOS, "photographs": found}) for found in (DIGEST, "ab" * 32))
    assert one.charter(roster).digest != other.charter(roster).digest
    again, _ = read_charter(charter_bytes(one, roster), roster)
    assert again.dreams.photographs == DIGEST


def test_who_makes_the_charter_does_not_overrule_a_digest_that_is_given() -> None:
    assert written_out(config_of(dreams={**PHOTOS, "photographs": DIGEST})).dreams.photographs == DIGEST
    with pytest.raises(ConfigError, match=REFUSED):
        written_out(config_of(dreams={**PHOTOS, "photographs": "ab" * 32}))


def test_what_cannot_be_decoded_is_said_before_a_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"secure-codream\[client\]"):
        provision(
            tmp_path / "f",
            config=config_of(),
            clients=[check("client", ClientConfig, {"name": name, "model": "mlp"}) for name in NAMES],
            address="tcp://127.0.0.1:7447",
        )
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("start", ["noise", "strokes", "shapes", "mine:start"])
def test_another_start_has_no_digest(start: str) -> None:
    code = {"code": {start: "ef" * 32}} if ":" in start else {}
    assert written_out(config_of(dreams={"start": start}, **code)).dreams.photographs is None
    with pytest.raises(ConfigError, match="photographs is given with start"):
        config_of(dreams={"start": start, "photographs": DIGEST}, **code)


@pytest.mark.parametrize("found", ["", "ab", "AB" * 32, "ab" * 33, "ab" * 32 + "\n", "zz" * 32])
def test_a_digest_has_its_form(found: str) -> None:
    with pytest.raises(SettingsError, match="64 hexadecimal digits"):
        Dreams(start="photos", photographs=found)


def test_sums_start_from_nothing() -> None:
    config = config_of(federation={"course": "sums", "rounds": 1}, sums=SUMS)
    _, roster = roster_of(3)
    assert written_out(config) == config and b"photos" not in charter_bytes(config, roster)


def test_a_charter_without_the_digest_is_none(provisioned: Path) -> None:
    _, roster = roster_of(3)
    with pytest.raises(ConfigError, match="found start 'photos' without photographs"):
        charter_bytes(config_of(), roster)
    signed = charter_bytes(config_of(dreams={**PHOTOS, "photographs": DIGEST}), roster)
    with pytest.raises(MalformedMessage, match="without photographs"):
        read_charter(signed.replace(f'"{DIGEST}"'.encode(), b"null"), roster)
    (provisioned / "server" / "config.toml").write_bytes(config_file(config_of()))
    with pytest.raises((ConfigError, NotAccepted), match="without photographs"):
        run_server(provisioned / "server")


# -- who decodes others ---------------------------------------------


def test_a_party_begins_nothing(provisioned: Path, another_pillow: Callable[[], None]) -> None:
    another_pillow()
    before = contents(provisioned)
    with pytest.raises(ConfigError, match=REFUSED):
        run_client(provisioned / "clients" / "a")
    with pytest.raises(ConfigError, match=REFUSED):
        run_server(provisioned / "server")
    assert contents(provisioned) == before


def test_doctor_says_it(provisioned: Path, another_pillow: Callable[[], None]) -> None:
    assert not any("photographs" in one.found for one in examine(provisioned / "server"))
    another_pillow()
    for folder in (provisioned / "server", provisioned / "clients" / "a"):
        (found,) = (one for one in examine(folder) if "photographs" in one.found)
        assert found.state is State.FAILED and "install the Pillow" in str(found)


def test_nobody_accepts_the_charter(provisioned: Path, another_pillow: Callable[[], None]) -> None:
    folder = provisioned / "administrator"
    out, _, _ = sign(folder, administration.administrator_of(folder, Passphrase()), config_of(federation={"rounds": 7}))
    command = ["roster", "verify", str(provisioned / "clients" / "a"), str(out), "--accept"]
    another_pillow()
    before = contents(provisioned)
    done = CliRunner().invoke(cli.app, command)
    assert isinstance(done.exception, NotAccepted) and "install the Pillow" in str(done.exception)
    assert contents(provisioned) == before


def test_a_record_is_verified_and_shown_with_the_photographs_it_was_made_with(
    tmp_path: Path, another_pillow: Callable[[], None]
) -> None:
    config = codream(dreams={**PHOTOS, "photographs": DIGEST}, task={"shape": (1, 8, 8), "classes": 3})
    record_of(tmp_path, config, epochs=2)
    assert verify_record(tmp_path).epochs == 2 and starts_of(tmp_path, 0) is not None
    another_pillow()
    with pytest.raises(RecordRefused, match=REFUSED):
        verify_record(tmp_path)
    with pytest.raises(RecordRefused, match=REFUSED):
        following(config, tmp_path)
    with pytest.raises(RecordError, match=REFUSED):
        starts_of(tmp_path, 0)


def test_one_process_is_refused_where_its_settings_have_another_digest(another_pillow: Callable[[], None]) -> None:
    dreams = {**PHOTOS, "photographs": DIGEST}
    generator = np.random.default_rng(0)
    labels = np.arange(6, dtype=np.int64) % 2
    images = LabelledImages(generator.normal(size=(6, 1, 8, 8)).astype(np.float32), labels, 2)
    problem = Problem(
        shards=(images,) * 3,
        test=images,
        models=("mlp",) * 3,
        learning=LearningSettings(),
        dreams=Dreams(**dreams),
        aggregation=AggregationTable(),
        rounds=1,
        seed=0,
        device=torch.device("cpu"),
    )
    models = [build("mlp", channels=1, size=(8, 8), classes=2, seed=seed) for seed in range(3)]
    weights = [parameter.clone() for model in models for parameter in model.parameters()]
    shard = (np.zeros((6, 8, 8), np.uint8), labels)
    assert make_course(problem.federation("codream")).epochs > 1
    another_pillow()
    with pytest.raises(ConfigError, match=REFUSED):
        next(CoDream().run(problem))
    with pytest.raises(ConfigError, match=REFUSED):
        run_local(models, [shard] * 3, shard, classes=2, public=True, dreams=dreams)
    found = [parameter for model in models for parameter in model.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(weights, found, strict=True))
    with pytest.raises(LocalProtocolError, match=REFUSED):
        public_images(config_of(dreams=dreams))
