"""`secure-codream data`, names that sites must share, and the gate for data from everywhere that learns."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from codream_clients.data.datasets import LabelledImages
from codream_clients.data.understanding import DataWarning
from secure_codream import Client, run_local
from secure_codream.cli import app
from secure_codream.configuration.assembly import make_participant
from secure_codream.configuration.client import ClientConfig, DataTable
from secure_codream.configuration.federation import FederationConfig, read_federation
from secure_codream.configuration.images import load_data, what_was_understood, who_holds_what
from secure_codream.configuration.reading import ConfigError, check
from secure_codream.deployment.provision import provision
from secure_codream.experiments.cell import problem_of
from secure_codream.experiments.grid import read_grid


def folder(root: Path, names: tuple[str, ...] = ("ill", "well"), count: int = 20, below: int = 0) -> Path:
    rng = np.random.default_rng(0)
    for name in names:
        for number in range(count):
            place = root / name / (f"p{number // below}" if below else "")
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (9, 12), np.uint8)).save(place / f"{number:02}.png")
    return root


def said(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["data", *arguments], env={"COLUMNS": "300"})
    assert result.exception is None, result.exception
    return result.stdout


# -- the command ---------------------------------------------


def test_the_command_says_what_it_found_counted_and_left_out(tmp_path: Path) -> None:
    root = folder(tmp_path / "scans")
    (root / ".thumbs").mkdir()
    (root / "ill" / "notes.txt").write_text("x")
    again = (root / "ill" / "00.png").read_bytes()
    (root / "ill" / "copy.png").write_bytes(again)
    (root / "well" / "copy.png").write_bytes(again)
    text = said(str(root), "--sheet", str(tmp_path / "sheet.png"))
    for words in (
        "2 classes, images of 1 x 9 x 12",
        "training: 34 images (ill 17, well 17)",
        "test: 8 images (ill 4, well 4)",
        "left out: hidden entries or entries of a tool: 1 (.thumbs), since they are no data",
        "left out: files ending in .txt: 1 (ill/notes.txt)",
        "stored as: 12 x 9 pixels, 8 bits, L: 42",
        "warning: 1 images are there with more than one label",
        'class_names = ["ill", "well"]',
    ):
        assert words in text, text
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (240 + 10 * 76, 2 * 76)
        assert len(set(np.asarray(sheet.convert("L")).ravel().tolist())) > 100


def test_a_clients_own_folder_is_no_images_and_the_command_for_its_images_is_said(tmp_path: Path) -> None:
    """A newcomer typed the folder that all other commands take, and was told of a lack of class folders."""
    (tmp_path / "client.toml").write_text('name = "alice"\nmodel = "mlp"\n[data]\nsource = "scans.npz"\n')
    result = CliRunner().invoke(app, ["data", str(tmp_path)])
    assert result.exit_code == 2
    assert f"secure-codream data {tmp_path / 'scans.npz'}" in result.stderr.replace("\n", "")


def test_a_sheet_replaces_nothing_and_lies_beside_what_is_read(tmp_path: Path) -> None:
    root = folder(tmp_path / "scans")
    content = b"something dear"
    (tmp_path / "dear").write_bytes(content)
    for place, words in (("dear", "--force to replace a file"), ("scans/ill/new.png", "a place outside what is read")):
        refused = CliRunner().invoke(app, ["data", str(root), "--sheet", str(tmp_path / place)])
        assert words in str(refused.exception)
    assert (tmp_path / "dear").read_bytes() == content
    said(str(root), "--sheet", str(tmp_path / "dear"), "--force")
    assert (tmp_path / "dear").read_bytes() != content
    assert not list(tmp_path.glob("runs"))


def test_a_sheet_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(image: Any, file: Any, *form: Any) -> None:
        with file.open("wb") if isinstance(file, Path) else nullcontext(file) as opened:
            opened.write(b"half of it")
        raise OSError("the disk is full")

    (tmp_path / "dear").write_bytes(b"something dear")
    monkeypatch.setattr(Image.Image, "save", fails)
    failed = CliRunner().invoke(app, ["data", "digits", "--sheet", str(tmp_path / "dear"), "--force"])
    assert "the disk is full" in str(failed.exception)
    assert (tmp_path / "dear").read_bytes() == b"something dear" and len(list(tmp_path.iterdir())) == 1


def test_copies_have_one_figure_on_a_screen(tmp_path: Path) -> None:
    images, labels = arrays(6, 0, 8, 8)
    images[3:] = images[0]
    name = tmp_path / "copied.npz"
    np.savez(name, train_images=images, train_labels=labels, test_images=images[2:], test_labels=labels[2:])
    text = said(str(name))
    assert "4 images of the test part are in the training part too" in text
    assert "duplicates of training images in the test part: 4" in text
    assert "3 images of the training part are copies" in text and "duplicates within the training part: 3" in text


def test_the_command_as_json(tmp_path: Path) -> None:
    found = json.loads(said(str(folder(tmp_path / "scans", below=4)), "--json", "--groups", "folder"))
    assert found["class_names"] == ["ill", "well"]
    assert [part["by_class"] for part in found["parts"]] == [[16, 16], [4, 4]]
    assert [part["groups"] for part in found["parts"]] == [4, 1]
    assert found["survey"] == {
        "duplicates": {"training": 0, "test": 0},
        "in_both": 0,
        "two_labels": 0,
        "few": {},
        "groups_in_both": 0,
        "mean": [pytest.approx(0.5, abs=0.01)],
        "std": [pytest.approx(0.29, abs=0.01)],
    }


def test_what_a_scale_is_to_be_made_of_is_said(tmp_path: Path) -> None:
    """Of bytes; what came standardised has none of its own."""
    dark, labels = arrays(12, 0, 8, 8)
    dark[:, :4], dark[:, 4:] = 51, 102
    dark[np.arange(12), 0, 0] = np.arange(12) + 45  # no copies
    np.savez(tmp_path / "dark.npz", train_images=dark, train_labels=labels, test_images=dark, test_labels=labels)
    assert "training pixels, divided by 255: mean 0.3, deviation 0.1" in said(str(tmp_path / "dark.npz"))
    assert "divided by 255" not in said("digits")


def test_the_command_reads_by_the_federations_task_and_names_what_is_wrong(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[task]\nshape = [3, 9, 12]\nclasses = 2\nclass_names = ["well", "ill"]\n')
    text = said(str(folder(tmp_path / "scans")), "--config", str(config))
    assert "images of 3 x 9 x 12" in text
    assert "training: 32 images (well 16, ill 16)" in text
    result = CliRunner().invoke(app, ["data", str(tmp_path / "none.npz")])
    assert isinstance(result.exception, ConfigError)
    assert "found no such file" in str(result.exception)


def test_a_path_needs_no_slash_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "scans")
    monkeypatch.chdir(tmp_path)
    assert "./scans, a folder of image folders" in said("scans").replace("data: scans,", "./scans,")
    assert "a known set: 10 classes" in said("digits")


# -- names that all sites share ---------------------------------------------


def participant(source: Path, **task: Any) -> Any:
    client: ClientConfig = check(
        "client.toml",
        ClientConfig,
        {"name": "alice", "model": "mlp", "device": "cpu", "data": {"source": f"{source}/", "size": 12}},
    )
    federation: FederationConfig = check(
        "config.toml", FederationConfig, {"task": {"shape": (1, 12, 12), "classes": 2, **task}}
    )
    return make_participant(client, federation)


def test_images_that_name_their_classes_need_the_federations_names(tmp_path: Path) -> None:
    root = folder(tmp_path / "scans")
    with pytest.raises(ConfigError, match=r'needs under \[task\]: class_names = \["ill", "well"\]'):
        participant(root)
    with pytest.raises(ConfigError, match=r"found folders \['ill', 'well'\]; the classes are \['sick', 'sound'\]"):
        participant(root, class_names=["sick", "sound"])
    swapped = participant(root, class_names=["well", "ill"])
    assert swapped is not None
    participant(root, class_names=["ill", "well"])


def test_names_of_given_images_must_be_the_federations(tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(8, 1, 12, 12)).astype(np.float32)
    named = LabelledImages(images, np.arange(8) % 2, 2, class_names=("b", "a"))
    client = check("client.toml", ClientConfig, {"name": "alice", "model": "mlp", "device": "cpu"})
    task = {"shape": (1, 12, 12), "classes": 2, "class_names": ["a", "b"]}
    federation = check("config.toml", FederationConfig, {"task": task})
    with pytest.raises(ConfigError, match=r"the images' classes are \['b', 'a'\]; \[task\] class_names are"):
        make_participant(client, federation, data=(named, None))


def test_provision_warns_where_classes_have_no_names(tmp_path: Path) -> None:
    def provisioned(out: str, line: str) -> str:
        config = tmp_path / "config.toml"
        config.write_text(f"[task]\nshape = [1, 8, 8]\nclasses = 2\n{line}\n")
        clients = [word for name in "abc" for word in ("--client", f"{name}=mlp")]
        address = ["--address", "tcp://127.0.0.1:7447", "--out", str(tmp_path / out)]
        result = CliRunner().invoke(app, ["provision", str(config), *clients, *address], env={"COLUMNS": "300"})
        assert result.exception is None, result.exception
        return result.stdout

    assert "[task] has no class_names" in provisioned("one", "")
    assert "class_names" not in provisioned("two", 'class_names = ["ill", "well"]')


# -- groups ---------------------------------------------


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "dirichlet-by-label", "shards"])
def test_no_partition_divides_a_person(tmp_path: Path, partition: str) -> None:
    root = folder(tmp_path / "scans", count=40, below=4)
    options = {"source": f"{root}/", "groups": "folder", "partition": partition, "clients": 3, "alpha": 1.0}
    tables = [check("data", DataTable, {**options, "part": part}) for part in range(3)]
    shards = [load_data(table)[0] for table in tables]
    groups = [set(shard.groups.tolist()) for shard in shards if shard.groups is not None]
    assert len(groups) == 3
    assert not any(groups[one] & groups[other] for one in range(3) for other in range(one))
    assert who_holds_what(tables[0]).sum() == sum(len(shard) for shard in shards)


def test_more_clients_than_persons_are_refused(tmp_path: Path) -> None:
    root = folder(tmp_path / "scans", count=12, below=4)
    with pytest.raises(ConfigError, match="2 groups for 7 clients leave some without an image"):
        load_data(check("data", DataTable, {"source": f"{root}/", "groups": "folder", "clients": 7}))


# -- arrays from a script ---------------------------------------------


def arrays(count: int, seed: int, *form: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *form), np.uint8), np.arange(count) % 2


def model(classes: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, classes))


def local(shards: list[Any], test: Any, classes: int = 2, **tables: Any) -> Any:
    return run_local(
        [model(classes) for _ in shards],
        shards,
        test,
        classes=classes,
        device="cpu",
        seed=1,
        federation={"rounds": 1},
        dreams={"batch": 4, "steps": 1},
        learning={"warm_up_epochs": 1, "distil_epochs": 1, "local_epochs": 1, "local_steps": 1},
        **tables,
    )


def test_images_that_are_not_square_are_taken_everywhere(tmp_path: Path) -> None:
    parts = [arrays(12, seed, 4, 16) for seed in range(4)]
    assert local(parts[:3], parts[3]).accuracies.shape == (2, 3)
    (tmp_path / "config.toml").write_text("[task]\nshape = [1, 4, 16]\nclasses = 2\n")
    data = Client(tmp_path, train=parts[0])._data
    client = check("client.toml", ClientConfig, {"name": "alice", "model": "mlp", "device": "cpu"})
    participant = make_participant(client, read_federation(tmp_path / "config.toml"), model=model(), data=data)
    assert participant.warm_up().train_accuracy is not None
    source = folder(tmp_path / "scans")
    grid = read_grid(None, {"compare": {"models": ["cnn2"], "clients": 3}, "data": {"source": f"{source}/"}})
    problem = problem_of(grid.cells[0])
    assert problem.test.shape == (1, 9, 12)
    assert problem.fresh_model(0)(torch.zeros(2, 1, 9, 12)).shape == (2, 2)
    assert problem.federation("fedavg").task.class_names == ("ill", "well")


# -- what the screens say ---------------------------------------------


def test_a_clients_start_says_what_numbers_mean_and_counts_copies(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[task]\nshape = [1, 4, 16]\nclasses = 2\nclass_names = ["ill", "well"]\n')
    pixels, labels = arrays(12, 0, 4, 16)
    twice = (np.concatenate([pixels, pixels[:3]]), np.concatenate([labels, labels[:3]]))
    with pytest.warns(DataWarning, match="3 images of the training part are copies of others in it"):
        found = Client(tmp_path, train=twice)._understood
    np.savez(tmp_path / "a.npz", images=pixels, labels=labels)
    task = read_federation(tmp_path / "config.toml").task
    started = what_was_understood(DataTable(source=str(tmp_path / "a.npz")), task)
    assert found is not None
    for understood in (found, started):
        assert "labels are numbers, in the order of class_names: 0 is 'ill', 1 is 'well'" in understood.readings
    assert "0 is 'ill', 1 is 'well'" in said(str(tmp_path / "a.npz"), "--config", str(tmp_path / "config.toml"))


def test_a_comparison_says_what_it_understood_before_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("secure_codream.experiments.compare.run_comparison", stopped)
    root = folder(tmp_path / "scans")
    (root / "ill" / "scan.dcm").write_bytes(b"")
    arguments = ["compare", "--data", f"{root}/", "--clients", "3", "--out", str(tmp_path / "runs"), "--no-plots"]
    text = CliRunner().invoke(app, arguments, env={"COLUMNS": "300"}).output
    assert "training: 32 images (ill 16, well 16)" in text
    assert "left out: files ending in .dcm: 1 (ill/scan.dcm)" in text


def test_a_client_says_what_it_understood_before_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "scans")
    config: FederationConfig = check(
        "config.toml",
        FederationConfig,
        {"task": {"shape": (1, 9, 12), "classes": 2, "class_names": ["ill", "well"]}},
    )
    clients = [
        check("client.toml", ClientConfig, {"name": name, "model": "mlp", "data": {"source": f"{root}/"}})
        for name in ("alice", "bob", "carol")
    ]
    provision(tmp_path / "out", config=config, clients=clients, address="tcp://127.0.0.1:7447")

    def stopped(*arguments: Any, **options: Any) -> None:
        raise ConfigError("enough")

    monkeypatch.setattr("secure_codream.deployment.client.make_learner", stopped)
    result = CliRunner().invoke(app, ["client", str(tmp_path / "out" / "clients" / "alice")], env={"COLUMNS": "300"})
    assert "training: 32 images (ill 16, well 16)" in result.output


def floats(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    return pair[0][:, None].astype(np.float32) / 127.5 - 1, pair[1]


def test_run_local_takes_bytes_words_and_standardised_floats_alike() -> None:
    parts = [arrays(12, seed, 8, 8) for seed in range(4)]
    runs = [
        local(parts[:3], parts[3]),
        local([floats(part) for part in parts[:3]], floats(parts[3])),
        local(
            [(images, np.array(["cat", "dog"])[labels]) for images, labels in parts[:3]],
            (parts[3][0], ["cat", "dog"] * 6),
        ),
    ]
    assert np.array_equal(runs[0].accuracies, runs[2].accuracies)
    assert np.array_equal(runs[0].accuracies, runs[1].accuracies)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda images, labels: (np.rint((images + 1) * 127.5), labels),
            "test images standardised already, client 0 images",
        ),
        (
            lambda images, labels: ((images + 1) / 2, labels),
            "standardised already, client 0 images fractions",
        ),
        (lambda images, labels: (images, labels + 0.9), "fractions such as 0.9"),
        (lambda images, labels: (images, labels - 1), r"client 0 labels lies in \[-1, 0\]"),
        (lambda images, labels: (images, labels + 1), r"client 0 labels lies in \[1, 2\]; .* subtract 1"),
        (lambda images, labels: (images * np.nan, labels), "NaN"),
        (lambda images, labels: (images[:, :, :7], labels), "one kind is needed"),
        (lambda images, labels: (images, ["cat"] * 12), "numbers in one part and words in another"),
    ],
)
def test_run_local_refuses_what_it_once_took(change: Any, message: str) -> None:
    parts = [arrays(12, seed, 8, 8) for seed in range(4)]
    with pytest.raises(ConfigError, match=message):
        local([change(*floats(parts[0])), *(floats(part) for part in parts[1:3])], floats(parts[3]))


def test_a_client_in_a_script_goes_through_the_same_gate(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[task]\nshape = [1, 8, 8]\nclasses = 2\nmean = [0.25]\nstd = [0.5]\n")
    train, test = arrays(12, 0, 8, 8), arrays(6, 1, 8, 8)
    client = Client(tmp_path, train=train, test=test)
    assert client._data is not None
    assert np.allclose(client._data[0].images[:, 0], (train[0] / 255 - 0.25) / 0.5, atol=1e-6)
    assert client._data[1] is not None and len(client._data[1]) == 6
    without = Client(tmp_path, train=train)
    assert without._data is not None and without._data[1] is None
    with pytest.raises(ConfigError, match=r"fractions such as 0.9"):
        Client(tmp_path, train=(train[0], train[1] + 0.9))
    with pytest.warns(DataWarning, match="the training part has no image of 1"):
        Client(tmp_path, train=(train[0], train[1] * 0))
