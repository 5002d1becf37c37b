"""Hostile and mistaken `.npz` files are refused with what was found; sound ones come in as they are."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from codream_clients.data.datasets import DatasetError
from codream_clients.data.npz_files import KEYS, load_npz
from codream_clients.data.pixels import HALF, Scale

CIFAR10 = Path(__file__).parents[3] / "shared" / "data" / "cifar10_jpeg.npz"


def arrays(count=12, tests=6, shape=(9, 9, 3), classes=3, column=True):
    rng = np.random.default_rng(0)
    labels = {"train_labels": np.arange(count) % classes, "test_labels": np.arange(tests) % classes}
    return {
        "train_images": rng.integers(0, 256, (count, *shape), np.uint8),
        "test_images": rng.integers(0, 256, (tests, *shape), np.uint8),
        **{key: (value[:, None] if column else value).astype(np.uint8) for key, value in labels.items()},
    }


def write(path, **changed):
    held = {key: value for key, value in (arrays() | changed).items() if value is not None}
    np.savez_compressed(path, **held)
    return path


def with_member(path, key, content):
    """A sound file, but for one member's bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays().items():
            if name != key:
                stream = io.BytesIO()
                np.save(stream, array)
                archive.writestr(f"{name}.npy", stream.getvalue())
        archive.writestr(f"{key}.npy", content)
    return path


def header(shape, descr="|u1"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


@pytest.mark.parametrize("column", [True, False])
@pytest.mark.parametrize(("shape", "form"), [((9, 9, 3), (3, 9, 9)), ((9, 9), (1, 9, 9)), ((9, 9, 1), (1, 9, 9))])
def test_labels_in_a_column_or_a_row_and_images_grey_or_coloured(tmp_path, shape, form, column):
    held = arrays(shape=shape, column=column)
    train, test, _ = load_npz(write(tmp_path / "a.npz", **held, val_images=np.zeros(3), val_labels=np.zeros(3)))
    assert (train.shape, train.classes, len(train), len(test)) == (form, 3, 12, 6)
    assert train.labels.tolist() == [0, 1, 2] * 4
    images = train.standardised(HALF).images
    assert np.allclose(images, held["train_images"].reshape(12, 9, 9, -1).transpose(0, 3, 1, 2) / 127.5 - 1, atol=1e-6)


def test_uncompressed_and_fortran_order_are_read_alike(tmp_path):
    held = arrays()
    np.savez(tmp_path / "a.npz", **(held | {"train_images": np.asfortranarray(held["train_images"])}))
    assert np.array_equal(load_npz(tmp_path / "a.npz")[0].pixels, held["train_images"])


def test_classes_can_be_more_than_the_file_holds_but_not_fewer(tmp_path):
    path = write(tmp_path / "a.npz")
    assert load_npz(path, classes=5)[0].classes == 5
    gap = write(tmp_path / "gap.npz", train_labels=np.arange(12) % 2 * 2, test_labels=np.zeros(6, int))
    assert load_npz(gap, classes=3)[0].classes == 3  # a hospital that never saw class 1
    with pytest.raises(DatasetError, match=r"train_labels lies in \[0, 2\]; \[0, 1\] is allowed for 2 classes"):
        load_npz(path, classes=2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_images": None}, "lacks train_images; found test_images, test_labels, train_labels; needed are"),
        (
            {"train_images": np.full((12, 9, 9, 3), 7.5)},
            r"train_images: found float64 of shape \(12, 9, 9, 3\), values from 7.5 to 7.5; uint8 \(0 to 255",
        ),
        ({"train_images": np.zeros((12, 9), np.uint8)}, r"uint8 of shape \(12, 9\); .*\(N, H, W\)"),
        ({"train_images": np.zeros((12, 28, 28, 28), np.uint8)}, "28 channels of 28 x 28, .*volume of slices"),
        (
            {"train_images": np.zeros((0, 9, 9, 3), np.uint8), "train_labels": np.zeros(0, int)},
            "train_images: no images",
        ),
        ({"test_images": np.zeros((6, 8, 8, 3), np.uint8)}, r"of shape \(3, 9, 9\), test images of \(3, 8, 8\)"),
        ({"train_labels": np.zeros((12, 14), np.uint8)}, "one class for each image, not several"),
        ({"train_labels": np.full(12, 0.5)}, r"train_labels is float64 with fractions such as 0.5; integers"),
        ({"train_labels": np.zeros(11, int)}, r"train_labels has shape \(11,\), for 12 images; one label"),
        ({"train_labels": np.full(12, -1)}, r"train_labels lies in \[-1, -1\]; \[0, 9999\] is allowed"),
        ({"train_labels": np.full(12, 2**62)}, r"\[0, 9999\] is allowed"),
        ({"train_labels": np.zeros(12, int), "test_labels": np.zeros(6, int)}, "1 classes; 2 to 10000"),
        (
            {"train_labels": np.arange(12) % 3 * 1000, "test_labels": np.zeros(6, int)},
            r"3 labels up to 2000, but none is 1; labels 0 to 2, each on at least one image, are needed",
        ),
        (
            {"train_labels": np.arange(12) % 3 + 1, "test_labels": np.arange(6) % 3 + 1},
            "3 labels up to 3, but none is 0",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_what_was_found(tmp_path, changed, message):
    path = write(tmp_path / "a.npz", **changed)
    with pytest.raises(DatasetError, match=message) as caught:
        load_npz(path)
    assert str(path) in str(caught.value)


class Exploit:
    ran = False

    def __reduce__(self):
        return setattr, (Exploit, "ran", True)


def test_pickled_objects_are_never_unpickled(tmp_path):
    objects = np.array([Exploit()] * 12, dtype=object)
    for key in ("train_labels", "train_images"):
        np.savez(tmp_path / "a.npz", **(arrays() | {key: objects}))
        with pytest.raises(DatasetError, match=f"{key} holds Python objects"):
            load_npz(tmp_path / "a.npz")
    with pytest.raises(DatasetError, match="train_labels is no sound array"):  # a bare pickle, as old NumPy reads it
        load_npz(with_member(tmp_path / "b.npz", "train_labels", pickle.dumps(Exploit())))
    assert not Exploit.ran
    with np.load(tmp_path / "a.npz", allow_pickle=True) as control:
        control["train_images"]
    assert Exploit.ran


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header((2**40, 28, 28)), "claims shape .* bytes, but 0 are stored"),
        (header((2**62, 2**62, 2**62)), "claims shape"),
        (header((12, 9, 9, 3)) + bytes(7), "2916 bytes, but 7 are stored"),
        (header((12, 9, 9, 3)) + bytes(3000), "2916 bytes, but 3000 are stored"),
        (header((-1, 9, 9)), "sides of at least 0|no sound array"),
        (header((12, 9, 9), "|O") + b"x", "holds Python objects"),
        (b"\x93NUMPY\x01\x00" + (60_000).to_bytes(2, "little") + b"(" * 60_000, "no sound array"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "no sound array"),
        (b"\x93NUMPY\x09\x00", "version"),
        (b"", "no sound array"),
    ],
)
def test_headers_that_lie_take_no_memory(tmp_path, content, message):
    with pytest.raises(DatasetError, match=message):
        load_npz(with_member(tmp_path / "a.npz", "train_images", content))


def test_archives_that_unpack_to_too_much_are_refused(tmp_path):
    bomb = header((20_000, 28, 28)) + bytes(20_000 * 28 * 28)  # 15 MB out of 15 kB
    path = with_member(tmp_path / "a.npz", "train_images", bomb)
    assert path.stat().st_size < 60_000
    with pytest.raises(DatasetError, match="takes 15680000 bytes; 1000000 are allowed for all arrays"):
        load_npz(path, max_bytes=1_000_000)


def test_files_that_are_no_archives_or_are_damaged(tmp_path):
    with pytest.raises(DatasetError, match="found no such file"):
        load_npz(tmp_path / "none.npz")
    with pytest.raises(DatasetError, match="no sound"):
        load_npz(tmp_path)
    (tmp_path / "text.npz").write_text("images")
    with pytest.raises(DatasetError, match=r"found no sound \.npz archive"):
        load_npz(tmp_path / "text.npz")
    content = bytearray(write(tmp_path / "a.npz").read_bytes())
    rng = np.random.default_rng(0)
    refused = 0
    for cut in rng.integers(1, len(content), 30):
        (tmp_path / "cut.npz").write_bytes(content[:cut])
        with pytest.raises(DatasetError):
            load_npz(tmp_path / "cut.npz")
    for place in rng.integers(0, len(content), 200):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "damaged.npz").write_bytes(damaged)
        try:
            load_npz(tmp_path / "damaged.npz")  # a date's bit may flip without harm
        except DatasetError:
            refused += 1
    assert refused > 100


@pytest.mark.skipif(not CIFAR10.is_file(), reason="needs CIFAR-10 (JPEG) in ../shared/data/cifar10_jpeg.npz")
def test_cifar10_jpeg_has_its_shape_and_its_published_scale():
    train, test, _ = load_npz(CIFAR10)
    assert (train.shape, train.classes, len(train), len(test)) == ((3, 32, 32), 10, 15_000, 5_000)
    measured = Scale.of(train.pixels[:5000])
    assert np.allclose(measured.mean, (0.4914, 0.4822, 0.4465), atol=0.01)
    assert np.allclose(measured.std, (0.2470, 0.2435, 0.2616), atol=0.01)
    images = train.subset(np.arange(500)).standardised(measured).images
    assert abs(images.mean()) < 0.05
    assert abs(images.std() - 1) < 0.05


def test_keys_are_medmnists():
    assert set(KEYS) == {"train_images", "train_labels", "test_images", "test_labels"}
