"""Folders and arrays that Hypothesis makes: what is understood is what a plain second reading says.

The second readings below are a few lines of Pillow and NumPy each, and share nothing with the gate. A case may be
refused with a `DatasetError` only if something doubtful was put into it; anything else that is raised is a fault.
"""

import os
import sys
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from codream_clients.data.datasets import DatasetError
from codream_clients.data.image_folders import load_image_folder
from codream_clients.data.npz_files import load_npz
from codream_clients.data.understanding import lines

NORMAL, EXHAUSTIVE, PARTS = 150, 10_000, 10  # cases of each of the two kinds, and parts of the exhaustive run

NAMES = ("cat", "dog", "10", "9", "Lésion", "no finding", "Zebra", "images", "a.b", "Ärger")
PART_NAMES = {
    "train": ("train", "Train", "TRAINING"),
    "test": ("test", "Testing"),
    "val": ("val", "valid", "Validation"),
}
MODES = ("L", "RGB", "1", "P", "LA opaque", "RGBA opaque", "CMYK", "grey P")
DOUBTFUL_MODES = ("LA", "RGBA", "I;16", "F", "P transparent", "stack")
ENDINGS = {
    "L": (".png", ".jpg", ".JPEG", ".bmp", ".tif", ".pgm", ".gif", ".webp"),
    "RGB": (".png", ".jpeg", ".PNG", ".bmp", ".tiff", ".ppm", ".webp", ".jfif"),
    "1": (".png", ".bmp", ".tif", ".pbm"),
    "P": (".png", ".gif", ".bmp"),
    "grey P": (".png", ".gif"),
    "LA opaque": (".png", ".tif"),
    "RGBA opaque": (".png", ".tif", ".webp"),
    "CMYK": (".jpg", ".tif"),
    "LA": (".png",),
    "RGBA": (".png", ".webp"),
    "I;16": (".png", ".tif"),
    "F": (".tif",),
    "P transparent": (".png",),
    "stack": (".tif", ".gif"),
}
FORMATS = {".jfif": "JPEG", ".pbm": "PPM"}
LITTER = (
    ".DS_Store",
    "._im0.png",
    "Thumbs.db",
    "notes.txt",
    "scan.dcm",
    "README",
    ".ipynb_checkpoints/x.png",
    "@eaDir/y.png",
)


# -- folders ---------------------------------------------


@st.composite
def files(draw):
    """How one file is to be made: mode, ending, orientation, depth of folders, and what is done to it."""
    mode = draw(st.sampled_from(MODES) if draw(st.integers(0, 19)) else st.sampled_from(DOUBTFUL_MODES))
    return {
        "mode": mode,
        "ending": draw(st.sampled_from(ENDINGS[mode])),
        "orientation": draw(st.sampled_from((None, None, 1, 2, 3, 4, 5, 6, 7, 8))),
        "below": draw(st.sampled_from((0, 0, 0, 1, 2))),
        "damage": draw(st.sampled_from(("cut", "flip", "empty"))) if not draw(st.integers(0, 79)) else None,
        "seed": draw(st.integers(0, 1 << 16)),
    }


@st.composite
def trees(draw):
    """A folder: its parts, its classes in their spellings, their files, and what else lies about."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=2, max_size=4, unique=True))
    layout = draw(
        st.sampled_from((("",), ("",), ("train", "test"), ("train", "val"), ("train", "test", "val"), ("train",)))
    )
    return {
        "parts": {part: draw(st.sampled_from(PART_NAMES[part])) if part else "" for part in layout},
        "names": names,
        "forms": draw(st.lists(st.sampled_from(("NFC", "NFD")), min_size=3, max_size=3)),
        "files": {(part, name): draw(st.lists(files(), min_size=3, max_size=5)) for part in layout for name in names},
        "side": draw(st.sampled_from((6, 9))),
        "litter": draw(st.lists(st.sampled_from(LITTER), max_size=3)),
        "linked": draw(st.sampled_from((None, None, "folder", "dead", "loop"))),
        "size": draw(st.sampled_from((None, None, None, 8))),
        "twin": not draw(st.integers(0, 29)),
        "seed": draw(st.integers(0, 3)),
    }


def make_file(path, how, side):
    rng = np.random.default_rng(how["seed"])
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = Image.fromarray(rng.integers(0, 256, (side, side), np.uint8))
    colours = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
    opaque = Image.new("L", (side, side), 255)
    holes = Image.fromarray((rng.integers(0, 2, (side, side)) * 255).astype(np.uint8))
    mode = how["mode"]
    options: dict[str, Any] = {}
    if how["orientation"] is not None and how["ending"].lower() in (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"):
        exif = Image.Exif()
        exif[0x0112] = how["orientation"]
        options["exif"] = exif
    image = {
        "L": lambda: grey,
        "RGB": lambda: colours,
        "1": lambda: grey.convert("1"),
        "P": lambda: colours.quantize(8),
        "grey P": lambda: grey.convert("P"),
        "LA opaque": lambda: Image.merge("LA", (grey, opaque)),
        "RGBA opaque": lambda: Image.merge("RGBA", (*colours.split(), opaque)),
        "CMYK": lambda: colours.convert("CMYK"),
        "LA": lambda: Image.merge("LA", (grey, holes)),
        "RGBA": lambda: Image.merge("RGBA", (*colours.split(), holes)),
        "I;16": lambda: Image.fromarray(rng.integers(0, 1 << 16, (side, side)).astype(np.uint16)),
        "F": lambda: Image.fromarray(rng.random((side, side)).astype(np.float32)),
        "P transparent": lambda: colours.quantize(8),
        "stack": lambda: grey,
    }[mode]()
    if mode == "P transparent":
        options["transparency"] = int(np.asarray(image).flat[0])
    if mode == "stack":
        options |= {"save_all": True, "append_images": [image.transpose(Image.Transpose.ROTATE_90)]}
    image.save(path, format=FORMATS.get(how["ending"]), **options)
    content = path.read_bytes()
    if how["damage"] == "cut":
        path.write_bytes(content[: int(rng.integers(len(content)))])
    elif how["damage"] == "empty":
        path.write_bytes(b"")
    elif how["damage"] == "flip":
        place = int(rng.integers(len(content)))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << int(rng.integers(8))]) + content[place + 1 :])


def make_tree(root, tree):
    """Write the folder; whether something doubtful is in it."""
    for number, (part, folder) in enumerate(tree["parts"].items()):
        for name in tree["names"]:
            place = root / folder / unicodedata.normalize(tree["forms"][number], name)
            for count, how in enumerate(tree["files"][part, name]):
                below = "/".join(f"p{count % 2}" for _ in range(how["below"]))
                make_file(place / below / f"im{count}{how['ending']}", how, tree["side"])
    first = root / next(iter(tree["parts"].values())) / unicodedata.normalize(tree["forms"][0], tree["names"][0])
    for litter in tree["litter"]:
        for place in (root, first):
            (place / litter).parent.mkdir(parents=True, exist_ok=True)
            (place / litter).write_bytes(b"\0")
    if tree["linked"] == "folder":
        plain = {"mode": "L", "ending": ".png", "orientation": None, "damage": None, "seed": 7}
        make_file(root.parent / "elsewhere" / "x.png", plain, tree["side"])
        (first / "linked").symlink_to(root.parent / "elsewhere")
    elif tree["linked"] == "dead":
        (first / "dead.png").symlink_to("/nowhere")
    elif tree["linked"] == "loop":
        (first / "loop").symlink_to(first)
    if tree["twin"]:
        twin = first.parent / first.name.swapcase()
        twin.mkdir(exist_ok=True)
    return tree["twin"] or any(
        how["damage"] or how["mode"] in DOUBTFUL_MODES
        for (part, _), of_class in tree["files"].items()
        for how in of_class
        if part != "val" or "test" not in tree["parts"]
    )


ENDINGS_READ = {ending.lower() for of_mode in ENDINGS.values() for ending in of_mode}


def second_reading(root, channels, size):
    """Part -> Counter of (class name, pixels), by walking the folder plainly; and the class names in order."""

    def visible(path):
        return not path.name.startswith(".") and path.name not in ("@eaDir", "__MACOSX", "Thumbs.db")

    folders = {path.name.lower(): path for path in root.iterdir() if path.is_dir() and visible(path)}
    train = next((path for name, path in folders.items() if name in ("train", "training")), None)
    test = next((folders[name] for name in ("test", "testing", "val", "valid", "validation") if name in folders), None)
    parts = {"whole": root} if train is None else {"train": train, "test": test} if test else {"whole": train}
    found: dict[str, Counter[tuple[str, bytes]]] = {}
    names = set()
    for part, place in parts.items():
        found[part] = Counter()
        for folder in place.iterdir():
            if not (folder.is_dir() and visible(folder)):
                continue
            name = unicodedata.normalize("NFC", folder.name)
            if any(visible(entry) for entry in folder.rglob("*") if not entry.is_dir()):
                names.add(name)  # an empty folder is no class
            seen = set()
            for here, inner, held in os.walk(folder, followlinks=True):
                inner[:] = [one for one in inner if visible(Path(here, one)) and Path(here, one).resolve() not in seen]
                inner[:] = [one for one in inner if Path(here, one).resolve() != folder.resolve()]
                seen |= {Path(here, one).resolve() for one in inner}
                for file in (Path(here, one) for one in held):
                    if visible(file) and file.is_file() and file.suffix.lower() in ENDINGS_READ:
                        found[part][name, plain_pixels(file, channels, size)] += 1
    order = sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)
    return found, tuple(order)


def has_copies_alone(root, size):
    """Whether no class of a source in one piece has three different pictures, of which one could be for testing."""
    found, _ = second_reading(root, 3, size)
    different = Counter(name for name, _ in found.get("whole", ()))
    return "whole" in found and max(different.values(), default=0) < 3


def may_be_parts(tree):
    """Whether several classes have folders below them: parts, or persons?"""
    return sum(any(file["below"] for file in files) for files in tree["files"].values()) > 1


def plain_pixels(file, channels, size):
    with Image.open(file) as image:
        turned = ImageOps.exif_transpose(image).convert("RGB")
    pixels = turned if channels == 3 else turned.convert("L")
    if size is not None:
        pixels = pixels.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(pixels).tobytes()


def as_counter(part):
    return Counter(
        (part.class_names[label], image.tobytes()) for label, image in zip(part.labels, part.pixels, strict=True)
    )


def check_tree(tree):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        doubtful = make_tree(root, tree)
        try:
            train, test, found = load_image_folder(root, seed=tree["seed"], size=tree["size"])
        except DatasetError as error:
            assert doubtful or has_copies_alone(root, tree["size"]) or may_be_parts(tree), error
            return
        expected, names = second_reading(root, train.shape[0], tree["size"])
        assert found.class_names == names
        held = {"train": as_counter(train), "test": as_counter(test)}
        if "whole" in expected:
            assert held["train"] + held["test"] == expected["whole"]
        else:
            assert held == expected
        assert sum(part.images for part in found.parts) == sum(sum(counts.values()) for counts in held.values())
        assert lines(found)


# -- arrays ---------------------------------------------

PIXELS = ("uint8", "int64", ">i4", "float32 bytes", "float64 unit", "bool")
DOUBTFUL_PIXELS = ("uint16 deep", "negative", "fractions", "nan", "ones")
LABELS = ("flat", "column", "row", "float", "big-endian", "one-hot", "words", "bytes", "bool")
DOUBTFUL_LABELS = ("from 1", "gap", "minus", "nan", "several", "short", "fraction")
ORDERS = ("grey", "last", "first", "one last", "one first")
DOUBTFUL_ORDERS = ("volume", "rgba", "both")


@st.composite
def arrays(draw):
    """How the arrays of a file are to be made."""
    plain, doubtful = st.integers(0, 9).map(bool), {}
    for key, usual, rare in (
        ("pixels", PIXELS, DOUBTFUL_PIXELS),
        ("labels", LABELS, DOUBTFUL_LABELS),
        ("order", ORDERS, DOUBTFUL_ORDERS),
    ):
        doubtful[key] = draw(st.sampled_from(usual) if draw(plain) else st.sampled_from(rare))
    classes = 2 if doubtful["labels"] == "bool" else draw(st.integers(2, 5))
    return {
        **doubtful,
        "classes": classes,
        "sides": draw(st.tuples(st.integers(4, 9), st.integers(4, 9))),
        "counts": (draw(st.integers(classes, 12)), draw(st.integers(classes, 9))),
        "keys": draw(st.sampled_from(("medmnist", "keras", "val", "whole"))),
        "seed": draw(st.integers(0, 1 << 16)),
    }


def stored_pixels(how, count, rng):
    """(what is stored, what it means as bytes (N, H, W, C))."""
    height, width = how["sides"]
    channels = {"grey": 1, "one last": 1, "one first": 1, "volume": 7, "rgba": 4}.get(how["order"], 3)
    if how["order"] == "both":
        height = width = 3
    meant = rng.integers(0, 256, (count, height, width, channels), np.uint8)
    meant.flat[:2] = 0, 255
    stored = {
        "uint8": lambda: meant,
        "int64": lambda: meant.astype(np.int64),
        ">i4": lambda: meant.astype(">i4"),
        "float32 bytes": lambda: meant.astype(np.float32),
        "float64 unit": lambda: meant / 255,
        "bool": lambda: meant > 127,
        "uint16 deep": lambda: meant.astype(np.uint16) * 257,
        "negative": lambda: meant.astype(int) - 128,
        "fractions": lambda: meant * 0.7,
        "nan": lambda: np.where(meant == 255, np.nan, meant / 255),
        "ones": lambda: (meant > 127).astype(np.uint8),
    }[how["pixels"]]()
    if how["pixels"] == "bool":
        meant = np.where(stored, 255, 0).astype(np.uint8)
    if how["order"] == "grey":
        stored = stored[..., 0]
    elif how["order"] in ("first", "one first"):
        stored = stored.transpose(0, 3, 1, 2)
    return stored, meant


def stored_labels(how, count, rng):
    """(what is stored, which label each image has)."""
    classes = how["classes"]
    meant = rng.permutation(np.arange(count) % classes)
    words = np.array(["ant", "Bee", "cow 2", "dög", "emu"])[:classes]
    order = np.argsort(np.argsort(words))
    stored = {
        "flat": lambda: meant,
        "column": lambda: meant[:, None].astype(np.uint8),
        "row": lambda: meant[None].astype(np.int16),
        "float": lambda: meant.astype(np.float32),
        "big-endian": lambda: meant.astype(">u2"),
        "one-hot": lambda: np.eye(classes)[meant],
        "words": lambda: words[meant],
        "bytes": lambda: np.char.encode(words[meant], "utf-8"),
        "bool": lambda: meant.astype(bool),
        "from 1": lambda: meant + 1,
        "gap": lambda: meant * 2,
        "minus": lambda: meant - 1,
        "nan": lambda: np.where(meant == 1, np.nan, meant),
        "several": lambda: np.ones((count, classes), int),
        "short": lambda: meant[:-1],
        "fraction": lambda: meant + 0.5,
    }[how["labels"]]()
    return stored, order[meant] if how["labels"] in ("words", "bytes") else meant


def check_arrays(how):
    rng = np.random.default_rng(how["seed"])
    keys = {
        "medmnist": [("train_images", "train_labels"), ("test_images", "test_labels")],
        "keras": [("x_train", "y_train"), ("x_test", "y_test")],
        "val": [("train_images", "train_labels"), ("val_images", "val_labels")],
        "whole": [("images", "labels")],
    }[how["keys"]]
    held, meant = {}, []
    for (images, labels), count in zip(keys, how["counts"], strict=False):
        count = max(count, 3 * how["classes"]) if how["keys"] == "whole" else count
        held[images], pixels = stored_pixels(how, count, rng)
        held[labels], numbers = stored_labels(how, count, rng)
        meant.append(Counter(zip(numbers.tolist(), (image.tobytes() for image in pixels), strict=True)))
        in_order = numbers.tolist()
    doubtful = how["pixels"] in DOUBTFUL_PIXELS or how["labels"] in DOUBTFUL_LABELS or how["order"] in DOUBTFUL_ORDERS
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "a.npz", **held)
        try:
            train, test, found = load_npz(Path(folder) / "a.npz")
        except DatasetError as error:
            assert doubtful, error
            return
    assert not doubtful
    read = [
        Counter(zip(part.labels.tolist(), (image.tobytes() for image in part.pixels), strict=True))
        for part in (train, test)
    ]
    assert (read == meant and test.labels.tolist() == in_order) if len(meant) == 2 else read[0] + read[1] == meant[0]
    assert train.shape[1:] == how["sides"]
    assert lines(found)


# -- runs ---------------------------------------------

KINDS = {"folders": (trees(), check_tree), "arrays": (arrays(), check_arrays)}


def play(kind, cases, number, shrink=True):
    """So many cases of a kind; how many there were."""
    strategy, check = KINDS[kind]
    played = 0

    @seed(number)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        report_multiple_bugs=False,
    )
    @given(strategy)
    def one(case):
        nonlocal played
        check(case)
        played += 1

    one()
    return played


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_understood_is_what_a_second_reading_says(kind):
    assert play(kind, NORMAL, 0) >= NORMAL


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_thousand_folders_and_files(kind, part):
    assert play(kind, EXHAUSTIVE // PARTS, 1 + part) >= EXHAUSTIVE // PARTS


def test_the_second_reading_notices_pictures_that_are_not_turned(monkeypatch):
    monkeypatch.setattr("PIL.ImageOps.exif_transpose", _as_it_is(ImageOps.exif_transpose))
    with pytest.raises(AssertionError):
        play("folders", NORMAL, 0, shrink=False)


def _as_it_is(turn):
    """Turns for the second reading, and for the gate not."""

    def exif_transpose(image, **options):
        return turn(image, **options) if sys._getframe(1).f_code.co_name != "_pixels" else image

    return exif_transpose


def test_the_second_reading_notices_classes_in_another_order(monkeypatch):
    monkeypatch.setattr("codream_clients.data.class_names.in_order", lambda names: tuple(sorted(names, reverse=True)))
    for kind in KINDS:
        with pytest.raises(AssertionError):
            play(kind, NORMAL, 0, shrink=False)
