"""From nothing to a prediction, as three sites, an administrator and an aggregator would go: every command, in order.

Each site has its images in a file with MedMNIST's keys, in its own folder, and pictures to predict beside it.
"""

from __future__ import annotations

import csv
import json
import math
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from PIL import Image
from sklearn.datasets import load_digits

from tests.scenarios.study import Study, refused, run
from tests.system.processes import ENVIRONMENT, SECURE_CODREAM, client_command

CONFIG = """
[federation]
name = "study"
rounds = {rounds}
[task]
shape = [1, 8, 8]
classes = 10
[dreams]
steps = 5
batch = 64
[learning]
temperature = 2.0
warm_up_epochs = 10
local_epochs = 2
"""
CLIENT = """
name = "{name}"
model = "mlp"
device = "cpu"
[data]
source = "scans.npz"
"""
SITES, TRAIN, TEST = "abc", 200, 100
SECRETS = ("identity.key", "transport.key", "administrator.key")


def images_of(number: int) -> dict[str, np.ndarray]:
    """A site's own images: (N, 8, 8) uint8 and (N, 1) labels, nobody else's; the test images are common."""
    digits = load_digits()
    pixels = (digits.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(pixels))
    test, own = order[:TEST], order[TEST + number * TRAIN :][:TRAIN]
    return {
        "train_images": pixels[own],
        "train_labels": digits.target[own, None],
        "test_images": pixels[test],
        "test_labels": digits.target[test, None],
    }


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("keys") / "study", CONFIG, CLIENT)


def failing(folder: Path, *options: str) -> set[str]:
    """The checks of `doctor` that failed."""
    done = subprocess.run(
        [*SECURE_CODREAM, "doctor", folder, "--json", *options], capture_output=True, text=True, env=ENVIRONMENT
    )
    findings = json.loads(done.stdout)
    failed = {one["check"] for one in findings["checks"] if one["state"] == "failed"}
    assert done.returncode == bool(failed) and findings["ok"] != bool(failed), done.stderr
    return failed


@pytest.mark.system
def test_keys_to_prediction(study: Study) -> None:
    fingerprint = study.begin(SITES)
    offered = study.charter(2)
    run("roster", "verify", study.server, offered, "--administrator", fingerprint, "--accept")
    for number, name in enumerate(SITES):
        np.savez(study.site(name) / "scans.npz", **images_of(number))
        study.accept(name, offered, "--administrator", fingerprint)
        said = run("data", study.site(name) / "scans.npz")
        assert f"{TRAIN}" in said and "8 x 8" in said
        assert failing(study.site(name)) == {"reachability"}  # the server does not run

    # One site edits what all agreed on: named, by doctor and by its own start; put back, nothing is wrong.
    config = study.site("b") / "config.toml"
    kept = config.read_text()
    config.write_text(kept.replace("temperature = 2.0", "temperature = 3.5", 1))
    assert "charter" in failing(study.site("b"))
    assert "learning.temperature is 3.5, accepted was 2.0" in run("doctor", study.site("b"), code=1)
    assert "learning.temperature is 3.5, accepted was 2.0" in refused("client", study.site("b"))
    config.write_text(kept)

    running = [subprocess.Popen([*SECURE_CODREAM, "server", study.server, "--listen", "tcp://127.0.0.1:*"])]
    try:
        endpoint = study.server / "endpoint"
        while not endpoint.exists():
            assert running[0].poll() is None
            time.sleep(0.05)
        for name in SITES:
            assert failing(study.site(name), "--address", endpoint.read_text()) == set()
        for name in SITES:
            command = client_command(study.site(name), endpoint.read_text())
            running.append(subprocess.Popen(command, env=ENVIRONMENT))
        assert [process.wait(timeout=900) for process in running] == 4 * [0]
    finally:
        for process in running:
            process.kill()
            process.wait()

    for folder, whose in ((study.server, "the aggregator"), *((study.site(name), name) for name in SITES)):
        assert f"<h1>study: {whose}</h1>" in (folder / "report.html").read_text()
    for number, name in enumerate(SITES):
        no_worse_than_alone(study.site(name))
        predicted(study.site(name), number)

    # Anybody, without a secret: one head everywhere; one flipped byte is found.
    found = json.loads(run("verify", study.server, "--json"))
    assert found["accepted"] == list(SITES)
    assert {json.loads(run("verify", study.site(name), "--json"))["head"] for name in SITES} == {found["head"]}
    record = max(study.server.glob("record/epoch-*.record"))
    content = bytearray(record.read_bytes())
    content[len(content) // 2] ^= 1
    record.write_bytes(content)
    assert record.name in run("verify", study.server, code=1)
    private_keys_are_in_one_place(study)


def no_worse_than_alone(folder: Path) -> None:
    """On the common test images, the model that is kept is not below what its site had alone by two standard errors."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    alone = next(row["accuracy"] for row in rows if row.get("rounds") == 0)
    measured = json.loads(run("evaluate", folder, folder / "scans.npz", "--json"))
    now = measured["figures"]["accuracy"]["value"]
    assert now >= alone - 2 * math.sqrt(alone * (1 - alone) / TEST), (alone, now)


def predicted(folder: Path, number: int) -> None:
    """Rows of the table are files, in order; the right class stands in most of them."""
    pictures = folder / "new"
    pictures.mkdir()
    images = images_of(number)
    for index in range(20):
        Image.fromarray(images["test_images"][index]).save(pictures / f"{index:02}.png")
    out = folder / "predicted.csv"
    run("predict", folder, pictures, "--out", out)
    with out.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [Path(row["input"]).name for row in rows] == [f"{index:02}.png" for index in range(20)]
    right = sum(int(row["predicted"]) == label for row, label in zip(rows, images["test_labels"][:20, 0], strict=True))
    assert right >= 12


def private_keys_are_in_one_place(study: Study) -> None:
    """No file of any party has another party's private key in it; its own stands in its own file alone."""
    secrets = {path: path.read_bytes() for name in SECRETS for path in study.folder.rglob(name)}
    assert len(secrets) == 2 * len(SITES) + 2
    for path in study.folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [where for where, secret in secrets.items() if where != path and secret in content], path
