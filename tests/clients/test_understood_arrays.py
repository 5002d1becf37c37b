"""Arrays as people have them, in files and in scripts: understood rightly, or refused with the reason."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from codream_clients.data.arrays import Told
from codream_clients.data.datasets import DatasetError, LabelledImages
from codream_clients.data.given import given_images
from codream_clients.data.npz_files import load_npz
from codream_clients.data.sources import Reading, load_source
from codream_clients.data.understanding import Notes, lines

N, T, K = 60, 30, 3
RNG = np.random.default_rng(0)


def images(count, *form):
    return RNG.integers(0, 256, (count, *form), np.uint8)


def labels(count, classes=K):
    return (np.arange(count) % classes).reshape(-1, 1).astype(np.uint8)


def both(image=lambda count: images(count, 28, 28), label=labels):
    """The four arrays of a file, each by the number of its images."""
    return {
        f"{part}_{kind}": make(count)
        for part, count in (("train", N), ("test", T))
        for kind, make in (("images", image), ("labels", label))
    }


def words(count):
    return np.array(["covid", "normal", "other"])[labels(count)[:, 0]]


UNDERSTOOD = {
    "as it should be": (both(), (1, 28, 28), ()),
    "channels first": (both(lambda n: images(n, 3, 28, 28)), (3, 28, 28), ("channels stand first: 3 channels",)),
    "one channel first": (both(lambda n: images(n, 1, 28, 28)), (1, 28, 28), ("channels stand first: 1 channel of",)),
    "one channel last": (both(lambda n: images(n, 28, 28, 1)), (1, 28, 28), ()),
    "rectangles": (both(lambda n: images(n, 28, 32)), (1, 28, 32), ()),
    "fractions": (both(lambda n: images(n, 28, 28) / 255), (1, 28, 28), ("fractions from 0 to 1",)),
    "half precision": (both(lambda n: (images(n, 8, 8) / 255).astype(np.float16)), (1, 8, 8), ("fractions from 0",)),
    "bytes as floats": (both(lambda n: images(n, 28, 28).astype(">f8")), (1, 28, 28), ("whole numbers from 0 to 255",)),
    "bytes as integers": (both(lambda n: images(n, 28, 28).astype(np.int64)), (1, 28, 28), ()),
    "truth values": (both(lambda n: images(n, 28, 28) > 127), (1, 28, 28), ("truth values",)),
    "labels that are floats": (both(label=lambda n: labels(n).astype(float)), (1, 28, 28), ("floats that are whole",)),
    "labels that are words": (both(label=words), (1, 28, 28), ("labels are words",)),
    "labels that are bytes": (both(label=lambda n: words(n).astype("S")), (1, 28, 28), ("labels are words",)),
    "one-hot": (both(label=lambda n: np.eye(K, dtype=np.uint8)[labels(n)[:, 0]]), (1, 28, 28), ("one-hot",)),
    "one-hot floats": (both(label=lambda n: np.eye(K)[labels(n)[:, 0]]), (1, 28, 28), ("one-hot",)),
    "big-endian": (both(label=lambda n: labels(n).astype(">i4")), (1, 28, 28), ()),
    "a row of labels": (both(label=lambda n: labels(n).T), (1, 28, 28), ()),
    "a flat row of labels": (both(label=lambda n: labels(n)[:, 0]), (1, 28, 28), ()),
    "other keys": (
        {key.replace("train_images", "x_train").replace("train_labels", "y_train"): a for key, a in both().items()},
        (1, 28, 28),
        (),
    ),
    "val for test": (
        {key.replace("test", "val"): array for key, array in both().items()},
        (1, 28, 28),
        ("val_images is the test part",),
    ),
}


@pytest.mark.parametrize("case", UNDERSTOOD)
def test_files_of_arrays_are_understood(tmp_path, case):
    arrays, shape, readings = UNDERSTOOD[case]
    np.savez(tmp_path / "a.npz", **arrays)
    train, test, found = load_npz(tmp_path / "a.npz")
    assert train.shape == test.shape == shape
    assert train.labels.tolist() == [number % K for number in range(N)]
    assert [part.by_class for part in found.parts] == [(20, 20, 20), (10, 10, 10)]
    assert found.class_names == (("covid", "normal", "other") if "words" in str(found.readings) else None)
    assert len(found.readings) == len(readings)
    assert all(wanted in reading for wanted, reading in zip(readings, found.readings, strict=True))


def test_truth_values_as_labels_are_two_classes(tmp_path):
    np.savez(tmp_path / "a.npz", **both(label=lambda n: labels(n, 2).astype(bool)))
    assert load_npz(tmp_path / "a.npz")[0].labels.tolist() == [number % 2 for number in range(N)]


def test_values_stay_what_they_are(tmp_path):
    pixels = images(N, 5, 5)
    for stored in (pixels, pixels / 255, (pixels / 255).astype(np.float32), pixels.astype(float), pixels[:, None]):
        np.savez(tmp_path / "a.npz", **both(lambda n, stored=stored: stored[:n], labels))
        assert np.array_equal(load_npz(tmp_path / "a.npz")[0].pixels[..., 0], pixels)
    colours = images(N, 5, 6, 3)
    np.savez(tmp_path / "b.npz", **both(lambda n: colours[:n].transpose(0, 3, 1, 2)))
    assert np.array_equal(load_npz(tmp_path / "b.npz")[0].pixels, colours)


REFUSED = {
    "several labels an image": (
        both(label=lambda n: np.ones((n, 14), np.uint8)),
        "one class for each image, not several",
    ),
    "a volume": (both(lambda n: images(n, 28, 28, 28)), "28 channels of 28 x 28, or first, .* or a volume of slices"),
    "16 slices": (both(lambda n: images(n, 16, 16, 16)), "or a volume of slices"),
    "RGBA": (both(lambda n: images(n, 28, 28, 4)), "or colours with transparency"),
    "NCHW or NHWC": (both(lambda n: images(n, 3, 28, 3)), "1 or 3 channels in one reading alone"),
    "16 bits": (both(lambda n: images(n, 28, 28).astype(np.uint16) * 16), "uint16 .* values from .*; uint8"),
    "negative numbers": (both(lambda n: images(n, 28, 28).astype(int) - 7), "values from -7 to"),
    "fractions of bytes": (both(lambda n: images(n, 28, 28) * 0.5), "choose a window"),
    "0 and 1": (both(lambda n: (images(n, 28, 28) > 127).astype(np.uint8)), "black and white, or nearly black"),
    "NaN in a pixel": (both(lambda n: np.where(images(n, 8, 8) > 250, np.nan, 0.5)), "train_images holds NaN"),
    "complex numbers": (both(lambda n: images(n, 8, 8) * 1j), "complex128 of shape"),
    "one dimension too many": (both(lambda n: images(n, 28, 28, 1, 1)), r"of shape \(60, 28, 28, 1, 1\)"),
    "grey and colour": (
        both() | {"test_images": images(T, 28, 28, 3)},
        r"\(1, 28, 28\), test images of \(3, 28, 28\)",
    ),
    "channels first and last": (
        both(lambda n: images(n, 3, 28, 28)) | {"test_images": images(T, 28, 28, 3)},
        "channels stand first in train_images, last in test_images",
    ),
    "fractions and bytes": (both() | {"test_images": images(T, 28, 28) / 255}, "differ in what their values mean"),
    "labels from 1": (both(label=lambda n: labels(n) + 1), "3 labels up to 3, but none is 0; labels 0 to 2"),
    "gaps": (both(label=lambda n: labels(n) * 2), "3 labels up to 4, but none is 1"),
    "-1": (both(label=lambda n: labels(n).astype(int) - 1), r"train_labels lies in \[-1, 1\]; .* left out of the file"),
    "huge labels": (both(label=lambda n: labels(n).astype(np.uint64) + np.uint64(2**63)), r"\[0, 9999\] is allowed"),
    "NaN as a label": (both(label=lambda n: np.where(labels(n) == 1, np.nan, labels(n))), "train_labels holds NaN"),
    "fractions as labels": (both(label=lambda n: labels(n) + 0.9), "with fractions such as 0.9"),
    "a label too few": (both() | {"train_labels": labels(N - 1)}, r"shape \(59,\), for 60 images"),
    "one class": (both(label=lambda n: np.zeros((n, 1), int)), "1 classes; 2 to"),
    "words that are twins": (both(label=lambda n: np.array(["Sick", "sick"])[labels(n, 2)[:, 0]]), "differ in case"),
    "an empty word": (both(label=lambda n: np.array(["", "a"])[labels(n, 2)[:, 0]]), "with the name ''"),
    "words and numbers": (both() | {"test_labels": words(T)}, "numbers in one part and words in another"),
    "no test image": (both() | {"test_images": images(0, 28, 28), "test_labels": labels(0)}, "test_images: no images"),
    "two names": (both() | {"x_train": images(N, 28, 28)}, "train_images and x_train; one array is needed"),
    "groups of one part": (both() | {"train_groups": np.arange(N)}, "lacks test_groups"),
    "groups too few": (
        both() | {"train_groups": np.arange(3), "test_groups": np.arange(T)},
        r"train_groups is int64 of shape \(3,\)",
    ),
    "one piece and parts": (both() | {"images": images(N, 28, 28), "labels": labels(N)}, "in one piece, or in parts"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_of_arrays_are_refused_with_the_reason(tmp_path, case):
    arrays, message = REFUSED[case]
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DatasetError, match=message) as caught:
        load_npz(tmp_path / "a.npz")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!doctype html><title>quota exceeded</title>", "it looks like a web page"),
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"\x93NUMPY\1\0", "a single array"),
        (b"PK\3\4cut", "cut short or damaged"),
    ],
)
def test_files_that_are_no_archive_are_told_by_their_look(tmp_path, content, message):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        load_npz(tmp_path / "a.npz")


def test_a_single_npy_is_refused_and_a_folder_of_them_is_read(tmp_path):
    arrays = both()
    for key, array in arrays.items():
        np.save(tmp_path / f"{key}.npy", array)
    with pytest.raises(DatasetError, match=r"found a single array, without labels; .* train_images.npy"):
        load_source(str(tmp_path / "train_images.npy"))
    found = load_source(str(tmp_path))
    assert np.array_equal(found.train.pixels[..., 0], arrays["train_images"])
    assert found.understanding.kind == "a folder of arrays"
    np.save(tmp_path / "train_labels.npy", np.array([{}] * N, object), allow_pickle=True)
    with pytest.raises(DatasetError, match="train_labels holds Python objects"):
        load_source(str(tmp_path))


def test_an_array_stored_twice_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", **both())
    stream = io.BytesIO()
    np.save(stream, labels(N)[::-1])
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("train_labels.npy", stream.getvalue())
    with pytest.raises(DatasetError, match="found train_labels and train_labels"):
        load_npz(tmp_path / "a.npz")


def test_arrays_that_are_not_used_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", **both(), val_images=images(3, 28, 28), val_labels=labels(3), age=np.zeros(3))
    found = load_npz(tmp_path / "a.npz")[2]
    assert {one.what: one.examples for one in found.left_out} == {
        "arrays of the validation part": ("val_images", "val_labels"),
        "arrays under other names": ("age",),
    }


def test_what_the_federation_or_the_user_says_settles_what_is_in_doubt(tmp_path):
    stored = images(N, 3, 8, 3)
    np.savez(tmp_path / "a.npz", **both(lambda n: stored[:n]))
    last = load_source(str(tmp_path / "a.npz"), Reading(channels="last"))
    first = load_source(str(tmp_path / "a.npz"), Reading(shape=(3, 8, 3)))
    assert (last.train.shape, first.train.shape) == ((3, 3, 8), (3, 8, 3))
    assert np.array_equal(first.train.pixels, stored.transpose(0, 2, 3, 1))
    np.savez(tmp_path / "b.npz", **both(lambda n: images(n, 13, 8, 8)))
    with pytest.raises(DatasetError, match="volume"):
        load_source(str(tmp_path / "b.npz"))
    assert load_source(str(tmp_path / "b.npz"), Reading(shape=(13, 8, 8))).train.shape == (13, 8, 8)


def test_words_are_numbered_as_the_federation_does(tmp_path):
    np.savez(tmp_path / "a.npz", **both(label=words))
    names = ("other", "never", "covid", "normal")
    train, _, found = load_npz(tmp_path / "a.npz", classes=4, class_names=names)
    assert found.class_names == names
    assert train.labels[:3].tolist() == [2, 3, 0]
    with pytest.raises(DatasetError, match=r"labels are words: 'covid', .* 3 of 4 classes; all classes must be named"):
        load_npz(tmp_path / "a.npz", classes=4)
    with pytest.raises(DatasetError, match=r"found labels \['covid'\]; the classes are"):
        load_npz(tmp_path / "a.npz", class_names=("normal", "other"))


def test_groups_of_a_file_are_known_and_watched(tmp_path):
    persons = {"train_groups": np.arange(N) // 6, "test_groups": np.arange(T) // 6 + 8}
    np.savez(tmp_path / "a.npz", **both(), **persons)
    train, test, found = load_npz(tmp_path / "a.npz")
    assert train.groups is not None and test.groups is not None
    assert (train.groups[:7].tolist(), test.groups[:7].tolist()) == ([0] * 6 + [1], [8] * 6 + [9])
    assert "2 of 5 groups of the test part, 12 of its images" in found.warnings[0]
    named = {key: np.array([f"p{number}" for number in array]) for key, array in persons.items()}
    np.savez(tmp_path / "b.npz", **both(), **named)
    assert load_npz(tmp_path / "b.npz")[2].warnings == found.warnings


def test_one_piece_is_split_and_divides_no_group(tmp_path):
    pixels = images(N, 8, 8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=labels(N), groups=np.arange(N) // 6)
    for seed in range(4):
        train, test, found = load_npz(tmp_path / "a.npz", seed=seed)
        assert not set(train.groups) & set(test.groups)
        assert (len(train), len(test)) == (48, 12)
        assert "split off" in found.readings[-1]
    np.savez(tmp_path / "b.npz", images=pixels, labels=labels(N))
    train, test, _ = load_npz(tmp_path / "b.npz")
    place = {image.tobytes(): number % K for number, image in enumerate(pixels)}
    for part in (train, test):
        assert part.labels.tolist() == [place[image.tobytes()] for image in part.pixels]


# -- arrays from a script ---------------------------------------------


def given(train, test=None, **known):
    notes = Notes()
    parts = {"training": train} if test is None else {"training": train, "test": test}
    return given_images(parts, notes=notes, **known), notes


def standard(count, *form):
    return RNG.normal(size=(count, *form)).astype(np.float32)


def test_standardised_floats_stay_and_channels_are_found():
    values = standard(6, 3, 8, 9)
    found, notes = given((values, np.arange(6) % 2))
    assert np.array_equal(found["training"].images, values)
    found, _ = given((values.transpose(0, 2, 3, 1), np.arange(6) % 2))
    assert np.array_equal(found["training"].images, values)
    assert notes.readings[0].startswith("channels stand first")


def test_words_of_a_list_and_of_pandas_are_labels():
    for said in (["cat", "dog"] * 3, np.array(["cat", "dog"] * 3, object)):
        found, _ = given((images(6, 8, 8), said))
        assert (found["training"].labels.tolist(), found["training"].class_names) == ([0, 1] * 3, ("cat", "dog"))


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ((images(6, 8, 8), np.arange(6) % 2 + 0.9), None, "fractions such as 0.9"),
        ((standard(6, 1, 8, 8) * np.nan, np.arange(6) % 2), None, "NaN or infinite"),
        ((standard(6, 1, 8, 8) * 1000, np.arange(6) % 2), None, "or standardised floats"),
        (
            (images(6, 8, 8), np.arange(6) % 2),
            (standard(6, 1, 8, 8), np.arange(6) % 2),
            "differ in what their values mean",
        ),
        ((images(6, 8, 8), np.arange(6) % 2), (images(6, 8, 9), np.arange(6) % 2), "one kind is needed"),
        ((images(6, 8, 8), [0, 1, 2, None, 1, 1]), None, "no array of numbers"),
        (images(6, 8, 8), None, "found ndarray of shape"),
        ((np.zeros((6, 8, 8), np.float32), np.arange(5)), None, "for 6 images"),
    ],
)
def test_arrays_from_a_script_are_refused_with_the_reason(train, test, message):
    with pytest.raises(DatasetError, match=message):
        given(train, test)


def test_ready_images_and_standardised_arrays_go_together_and_bytes_do_not():
    values = standard(6, 1, 8, 8)
    ready = LabelledImages(values, np.arange(6) % 2, 2, augment="shift")
    found, _ = given((values, np.arange(6) % 2), ready)
    assert found["test"] is ready
    assert np.array_equal(found["training"].images, values)
    with pytest.raises(DatasetError, match="test is standardised, training is not"):
        given((images(6, 8, 8), np.arange(6) % 2), ready)
    with pytest.raises(DatasetError, match="values up to 1000; standardised ones are needed"):
        given(LabelledImages(values / np.abs(values).max() * 1000, np.arange(6) % 2, 2))


def test_the_number_of_classes_may_be_told_and_is_held_to():
    found, _ = given((images(6, 8, 8), np.arange(6) % 2), classes=5)
    assert found["training"].classes == 5
    with pytest.raises(DatasetError, match=r"lies in \[1, 5\]; \[0, 4\] is allowed for 5 classes; .* subtract 1"):
        given((images(6, 8, 8), [1, 2, 3, 4, 5, 5]), classes=5)
    with pytest.raises(DatasetError, match="one-hot of 2 classes; 5 classes is needed"):
        given((images(6, 8, 8), np.eye(2)[np.arange(6) % 2]), classes=5)
    assert given((images(6, 3, 8, 3), np.arange(6) % 2), told=Told(channels="first"))[0]["training"].shape == (3, 8, 3)


# -- whose images are, and choices that say nothing ----------------------


def whole(**arrays: Any) -> dict[str, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    return {"images": pixels, "labels": np.arange(40) % 2, **arrays}


@pytest.mark.parametrize("twin", ["P1", "p1 "])
def test_a_person_in_two_spellings_is_refused(tmp_path: Path, twin: str) -> None:
    np.savez(tmp_path / "a.npz", **whole(groups=np.array(["p1", twin, "p2", "p3"] * 10)))
    with pytest.raises(DatasetError, match=r"found groups '.1 ?' and '.1 ?', which differ in case or spaces alone"):
        load_source(str(tmp_path / "a.npz"))


def test_a_person_whose_name_unicode_spells_in_two_ways_is_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **whole(groups=np.array(["jos\u00e9", "jose\u0301", "p2", "p3"] * 10)))
    found = load_source(str(tmp_path / "a.npz"), Reading(split=False)).understanding
    assert [part.groups for part in found.parts] == [3]


@pytest.mark.parametrize("name", ["patient", "patient_id", "subjectIDs", "group", "id"])
def test_arrays_that_may_say_whose_images_are_do_not_go_unnoticed(tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "a.npz", **whole(**{name: np.arange(40)}))
    assert f"the array {name} is not used" in "\n".join(lines(load_source(str(tmp_path / "a.npz")).understanding))


def test_validation_arrays_as_keras_names_them_are_left_out_as_such(tmp_path: Path) -> None:
    x, y = whole()["images"], whole()["labels"]
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y, x_val=x, y_val=y)
    said = "\n".join(lines(load_source(str(tmp_path / "a.npz")).understanding))
    assert "arrays of the validation part: 2 (x_val, y_val)" in said and "other names" not in said


@pytest.mark.parametrize(
    ("option", "applies"),
    [({"size": 8}, 1), ({"groups": "folder"}, 1), ({"pages": "first"}, 1), ({"channels": "last"}, 0)],
)
def test_a_choice_that_a_source_does_not_leave_is_refused(tmp_path: Path, option: dict[str, Any], applies: int) -> None:
    np.savez(tmp_path / "a.npz", **whole())
    for name in ("a", "b"):
        for number in range(5):
            (tmp_path / "f" / name / "p" / f"{number}.png").parent.mkdir(parents=True, exist_ok=True)
            image = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(image).save(tmp_path / "f" / name / "p" / f"{number}.png")
    sources = [str(tmp_path / "a.npz"), f"{tmp_path}/f"]
    with pytest.raises(DatasetError, match=f"found {next(iter(option))} = .*; it says nothing there"):
        load_source(sources[1 - applies], Reading(**option))
    load_source(sources[applies], Reading(**option, split=False))
    with pytest.raises(DatasetError, match="it says nothing there"):
        load_source("digits", Reading(**option))


def test_what_numbers_mean_is_said_where_classes_have_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **whole())
    found = load_source(str(tmp_path / "a.npz"), Reading(classes=2, class_names=("cat", "dog"))).understanding
    assert "  read: labels are numbers, in the order of class_names: 0 is 'cat', 1 is 'dog'" in lines(found)
