"""torchvision's sets, from synthetic files in their very layouts: nothing is downloaded here."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from scipy.io import savemat

from codream_clients.data.datasets import DatasetError
from codream_clients.data.image_sets import IMAGE_SETS, load_image_set

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
COUNTS = {"train": 20, "test": 10}


def pixels(part, shape):
    return np.random.default_rng(len(part)).integers(0, 256, (COUNTS[part], *shape), np.uint8)


def labels(part, classes=10):
    return (np.arange(COUNTS[part]) % classes).astype(np.uint8)


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    sides = b"".join(side.to_bytes(4, "big") for side in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sides + array.tobytes())


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_mnist(root, folder, names):
    for part, name in names.items():
        write_idx(root / folder / "raw" / f"{name}-images-idx3-ubyte", pixels(part, (28, 28)))
        write_idx(root / folder / "raw" / f"{name}-labels-idx1-ubyte", labels(part))


def write_cifar(root, monkeypatch, kind, folder, key):
    """CIFAR's pickles; torchvision's list of checksums is made to fit them."""
    (root / folder).mkdir()
    for part in ("train", "test"):
        flat = pixels(part, (32, 32, 3)).transpose(0, 3, 1, 2).reshape(COUNTS[part], -1)
        (root / folder / part).write_bytes(pickle.dumps({"data": flat, key: labels(part).tolist()}))
        monkeypatch.setattr(kind, f"{part}_list", [[part, md5(root / folder / part)]])
    (root / folder / "meta").write_bytes(pickle.dumps({"names": list("abcdefghij")}))
    meta = {"filename": "meta", "key": "names", "md5": md5(root / folder / "meta")}
    monkeypatch.setattr(kind, "meta", meta)


def write_svhn(root, monkeypatch):
    listed = {}
    for part in ("train", "test"):
        path = root / f"{part}_32x32.mat"
        ones = np.where(labels(part) == 0, 10, labels(part))  # its files write a zero as 10
        savemat(path, {"X": pixels(part, (32, 32, 3)).transpose(1, 2, 3, 0), "y": ones[:, None]})
        listed[part] = ["", path.name, md5(path)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", listed)


@pytest.fixture
def written(tmp_path, monkeypatch):
    sets = torchvision.datasets
    for folder in ("MNIST", "FashionMNIST"):
        write_mnist(tmp_path, folder, {"train": "train", "test": "t10k"})
    write_mnist(tmp_path, "EMNIST", {"train": "emnist-balanced-train", "test": "emnist-balanced-test"})
    write_cifar(tmp_path, monkeypatch, sets.CIFAR10, "cifar-10-batches-py", "labels")
    write_cifar(tmp_path, monkeypatch, sets.CIFAR100, "cifar-100-python", "fine_labels")
    write_svhn(tmp_path, monkeypatch)
    return tmp_path


@pytest.mark.parametrize("name", IMAGE_SETS)
def test_every_set_is_read_from_its_layout(written, name):
    train, test, scale = load_image_set(name, written)
    side, channels = (28, 1) if "mnist" in name else (32, 3)
    assert train.shape == test.shape == (channels, side, side)
    assert (len(train), len(test)) == (20, 10)
    assert train.classes == {"emnist": 47, "cifar100": 100}.get(name, 10)
    assert train.labels.tolist() == labels("train").tolist()
    assert len(scale.mean) == channels
    expected = pixels("train", (28, 28) if channels == 1 else (32, 32, 3)).reshape(20, side, side, channels)
    if name == "emnist":
        expected = expected.transpose(0, 2, 1, 3)
    assert np.array_equal(train.pixels, expected)
    images = test.standardised(scale).images
    assert np.allclose(images[:, 0] * scale.std[0] + scale.mean[0], test.pixels[..., 0] / 255, atol=1e-6)


@pytest.mark.parametrize("name", IMAGE_SETS)
def test_missing_files_are_named_and_nothing_is_fetched(tmp_path, monkeypatch, name):
    def fetch(*arguments, **options):
        raise AssertionError("the network was touched")

    monkeypatch.setattr("urllib.request.urlopen", fetch)
    with pytest.raises(DatasetError, match=r"are needed, undamaged \(nothing is downloaded unless") as caught:
        load_image_set(name, tmp_path)
    assert IMAGE_SETS[name].files in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_download_is_passed_on_only_when_asked_for(monkeypatch, written):
    asked = []
    original = torchvision.datasets.MNIST.__init__

    def noted(self, **options):
        asked.append(options["download"])
        original(self, **options)

    monkeypatch.setattr(torchvision.datasets.MNIST, "__init__", noted)
    load_image_set("mnist", written)
    load_image_set("mnist", written, download=True)  # all is there: nothing to fetch
    assert asked == [False, False, True, True]


def test_damaged_files_are_refused(written):
    path = written / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DatasetError, match="no MNIST under"):
        load_image_set("mnist", written)
    (written / "cifar-10-batches-py" / "train").write_bytes(b"changed")  # its checksum no longer fits
    with pytest.raises(DatasetError, match="no CIFAR10 under"):
        load_image_set("cifar10", written)


def test_an_unknown_set_is_refused_with_those_allowed(tmp_path):
    with pytest.raises(DatasetError, match="'imagenet'; allowed are mnist, fashion-mnist"):
        load_image_set("imagenet", tmp_path)


def test_mnist_without_its_files_says_where_they_are_wanted(tmp_path):
    with pytest.raises(DatasetError, match="MNIST/raw"):
        load_image_set("mnist", tmp_path)


@pytest.mark.skipif(not (SHARED_DATA / "MNIST").is_dir(), reason="needs MNIST in ../shared/data/MNIST/raw")
def test_mnist_has_its_shape_and_scale():
    train, test, scale = load_image_set("mnist", SHARED_DATA)
    assert (len(train), len(test), train.classes) == (60_000, 10_000, 10)
    images = test.standardised(scale).images
    assert images.shape == (10_000, 1, 28, 28)
    assert np.array_equal(images, (test.pixels[..., 0][:, None].astype(np.float32) / 255.0 - 0.1307) / 0.3081)
    assert abs(images.mean()) < 0.02 and abs(images.std() - 1) < 0.02
