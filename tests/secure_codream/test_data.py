"""From `[data]` and `[task]` to images, models and a participant: every kind of source."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from secure_codream.configuration.assembly import make_model, make_participant
from secure_codream.configuration.client import ClientConfig, DataTable
from secure_codream.configuration.federation import FederationConfig, TaskTable
from secure_codream.configuration.images import load_data, load_shards, who_holds_what
from secure_codream.configuration.reading import ConfigError, check

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


def table(**values: Any) -> DataTable:
    found: DataTable = check("client.toml", DataTable, values)
    return found


def client(**values: Any) -> ClientConfig:
    found: ClientConfig = check(
        "client.toml", ClientConfig, {"name": "alice", "model": "mlp", "device": "cpu", **values}
    )
    return found


def federation(**task: Any) -> FederationConfig:
    learning = {"warm_up_epochs": 1}
    found: FederationConfig = check("config.toml", FederationConfig, {"task": task, "learning": learning})
    return found


@pytest.fixture
def scans(tmp_path: Path) -> str:
    """An `.npz` of 60 + 20 colour images, dark, in 4 classes."""
    rng = np.random.default_rng(0)
    arrays = {
        f"{part}_{kind}": rng.integers(20, 60, (count, 12, 12, 3), np.uint8)
        if kind == "images"
        else (np.arange(count) % 4)[:, None]
        for part, count in (("train", 60), ("test", 20))
        for kind in ("images", "labels")
    }
    np.savez(tmp_path / "scans.npz", **arrays)
    return str(tmp_path / "scans.npz")


# -- what a source may be ---------------------------------------------


@pytest.mark.parametrize(
    "source", ["digits", "cifar100", "./scans", "../a/scans.npz", "scans.NPZ", "~/s", "my.module:load"]
)
def test_names_paths_and_functions_are_sources(source: str) -> None:
    assert table(source=source).source == source


def test_a_misspelt_source_is_named_with_those_allowed() -> None:
    for source in ("cifra10", "", "scans", "a:b:c"):
        with pytest.raises(ConfigError, match=r"unknown data source '.*'; allowed are digits, .*module:function"):
            table(source=source)


def test_a_misspelt_model_is_named_with_those_allowed() -> None:
    with pytest.raises(ConfigError, match=r"client.toml: model: unknown model 'resnet19'; allowed are cnn2, .*wrn40_1"):
        client(model="resnet19")
    assert client(model="resnet18_gn").model == "resnet18_gn"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"partition": "by-label"}, "partition: found 'by-label'"),
        ({"augment": "rotate"}, "augment: found 'rotate'"),
        ({"shards": 0}, "shards: found 0"),
        ({"train_limit": 1}, "train_limit: found 1"),
        ({"standardise": "test"}, "standardise: found 'test'"),
    ],
)
def test_values_that_do_not_fit_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        table(**values)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mean": [0.5]}, "mean and std; both or neither"),
        ({"mean": [0.5, 0.5], "std": [0.5, 0.5]}, "2 means and 2 deviations; 1 or 3 of both are allowed"),
        ({"mean": [0.5], "std": [0.0]}, "std"),
        ({"class_names": ["a", "b", "c"]}, "3 class names; 4 are needed"),
        ({"class_names": ["a", "b", "b", "c"]}, "class_names has 'b' more than once; each name is allowed once"),
        ({"class_names": ["a", "b", "c", "d", "d"]}, "class_names has 'd' more than once"),
        ({"class_names": ["caf\u00e9", "b", "c", "cafe\u0301"]}, "class_names has 'caf\u00e9' more than once"),
        ({"class_names": ["a", "b", "c", ""]}, "a class name of 0 letters; 1 to 256 are allowed"),
        ({"class_names": ["a", "b", "c", "d" * 257]}, "a class name of 257 letters"),
    ],
)
def test_tasks_that_contradict_themselves_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check("config.toml", TaskTable, {"shape": (3, 12, 12), "classes": 4, **changed})


# -- from a source to a client's images ---------------------------------------------


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "dirichlet-by-label", "shards"])
def test_all_partitions_of_a_file(scans: str, partition: str) -> None:
    asked = table(source=scans, partition=partition, clients=3, alpha=1.0, seed=5)
    shards, test = load_shards(asked)
    counts = who_holds_what(asked)
    assert counts.shape == (3, 4)
    assert [shard.class_counts.tolist() for shard in shards] == counts.tolist()
    assert len({image.tobytes() for shard in shards for image in shard.images}) == counts.sum() == 60
    assert len(test) == 20
    assert np.array_equal(load_data(asked.model_copy(update={"part": 2}))[0].images, shards[2].images)


def test_one_client_takes_all_its_images_and_limits_reduce_them(scans: str) -> None:
    assert [len(part) for part in load_data(table(source=scans))] == [60, 20]
    first, second = (load_data(table(source=scans, train_limit=10, test_limit=5, seed=seed)) for seed in (0, 1))
    assert [len(part) for part in first] == [10, 5]
    assert not np.array_equal(first[1].images, second[1].images)


def test_scales_public_measured_and_agreed(scans: str) -> None:
    raw = np.load(scans)["test_images"].transpose(0, 3, 1, 2) / 255
    public, measured = (load_data(table(source=scans, standardise=how))[1].images for how in ("public", "train"))
    assert np.allclose(public, (raw - 0.5) / 0.5, atol=1e-6)
    assert abs(measured.mean()) < 0.1 and abs(measured.std() - 1) < 0.1
    task = TaskTable(shape=(3, 12, 12), classes=4, mean=(0.1, 0.2, 0.3), std=(0.2,) * 3)
    agreed = load_data(table(source=scans, standardise="train"), task)[1].images
    assert np.allclose(agreed[:, 2], (raw[:, 2] - 0.3) / 0.2, atol=1e-6)


def test_what_the_federation_agreed_on_is_in_the_recipe() -> None:
    form = {"shape": (3, 12, 12), "classes": 2}
    recipes = {
        federation(**form).recipe,
        federation(**form, mean=[0.5], std=[0.5]).recipe,
        federation(**form, mean=[0.4], std=[0.5]).recipe,
        federation(**form, class_names=["a", "b"]).recipe,
        federation(**form, class_names=["b", "a"]).recipe,
    }
    assert len(recipes) == 5


def test_augmentation_is_for_training_images_alone() -> None:
    train, test = load_data(table(augment="shift"))
    assert (train.augment, test.augment) == ("shift", "none")


@pytest.mark.parametrize("source", ["digits", "file"])
def test_a_participant_of_an_own_file_trains(scans: str, source: str) -> None:
    path, form = ("digits", ((1, 8, 8), 10)) if source == "digits" else (scans, ((3, 12, 12), 4))
    participant = make_participant(
        client(model="wrn16_1_gn", data={"source": path, "train_limit": 40, "test_limit": 10, "augment": "flip-crop"}),
        federation(shape=form[0], classes=form[1]),
    )
    assert participant.warm_up().accuracy is not None


def test_a_client_that_lacks_the_last_class_has_the_tasks_classes(scans: str) -> None:
    task = TaskTable(shape=(3, 12, 12), classes=6)
    train, _ = load_data(table(source=scans), task)
    assert (train.classes, train.class_counts.tolist()) == (6, [15, 15, 15, 15, 0, 0])


def test_data_that_do_not_fit_the_task_are_refused(scans: str) -> None:
    data = {"source": scans}
    with pytest.raises(ConfigError, match=r"images of shape \(3, 12, 12\) in 4 classes; .* \(3, 16, 16\) in 4"):
        make_participant(client(data=data), federation(shape=(3, 16, 16), classes=4))
    with pytest.raises(ConfigError, match=r"\[data\]: .*train_labels lies in \[0, 3\]; \[0, 2\] is allowed"):
        make_participant(client(data=data), federation(shape=(3, 12, 12), classes=3))


def test_images_that_are_not_square_are_taken(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (40, 8, 12), np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "a.npz", train_images=pixels, train_labels=labels, test_images=pixels, test_labels=labels)
    wide = client(model="resnet8", data={"source": str(tmp_path / "a.npz")})
    assert make_participant(wide, federation(shape=(1, 8, 12), classes=2)).warm_up().accuracy is not None


def test_sources_that_fail_are_a_configurations_errors(tmp_path: Path) -> None:
    for values, message in [
        ({"source": "cifar10"}, r"root is missing; the folder that holds cifar-10-batches-py/ is needed"),
        ({"source": "cifar10", "root": tmp_path}, "no CIFAR10 under"),
        ({"source": str(tmp_path / "none.npz")}, "found no such file"),
        ({"source": "not_there:load"}, "no module 'not_there'"),
        ({"clients": 100, "per_client": 100}, "100 clients of 100 images need 10000"),
    ]:
        with pytest.raises(ConfigError, match=rf"\[data\]: .*{message}"):
            load_data(table(**values))


def test_own_parts_stand_where_names_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("my_part_of_the_work.py").write_text(
        "import numpy as np\nfrom torch import nn\n"
        "def load():\n"
        "    part = np.random.default_rng(0).integers(0, 256, (20, 9, 9), np.uint8), np.arange(20) % 2\n"
        "    return part, part\n"
        "def build(channels, size, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size ** 2, classes))\n"
        "def wrong(channels, size, classes):\n"
        "    return nn.Flatten()\n"
    )
    task = federation(shape=(1, 9, 9), classes=2)
    own = client(model="my_part_of_the_work:build", data={"source": "my_part_of_the_work:load"})
    accuracy = make_participant(own, task).warm_up().train_accuracy
    assert accuracy is not None and accuracy >= 0
    with pytest.raises(ConfigError, match=r"model: my_part_of_the_work:wrong.*no weights to train"):
        make_model(client(model="my_part_of_the_work:wrong"), task)


@pytest.mark.skipif(not (SHARED_DATA / "MNIST").is_dir(), reason="needs MNIST in ../shared/data/MNIST/raw")
def test_mnist_by_name() -> None:
    asked = table(source="mnist", root=SHARED_DATA, clients=4, per_client=50, partition="dirichlet", alpha=0.1)
    shards, test = load_shards(asked)
    assert [len(shard) for shard in shards] == [50] * 4
    assert (test.shape, len(test)) == ((1, 28, 28), 10_000)
