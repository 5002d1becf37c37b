"""Folders as people have them: each case is understood rightly, or refused with its reason."""

import os
import re
import unicodedata
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from codream_clients.data import folder_layouts
from codream_clients.data.datasets import DatasetError
from codream_clients.data.folder_layouts import MAX_DEPTH
from codream_clients.data.image_folders import load_image_folder
from codream_clients.data.understanding import lines


def grey(number=0, size=(12, 12)):
    return np.random.default_rng(number).integers(0, 256, size[::-1], np.uint8)


def picture(file, pixels=None, number=0, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey(number) if pixels is None else pixels).save(file, **options)


def fill(folder, count=10, suffix=".png", **options):
    first = zlib.crc32("/".join(folder.parts[-2:]).encode(errors="replace"))  # no two folders have the same pictures
    for number in range(count):
        picture(folder / f"im{number:02}{suffix}", number=first + number, **options)


def classes(root, names=("a", "b"), count=10, **options):
    for name in names:
        fill(root / name, count, **options)


def everything(train, test):
    return np.bincount(np.concatenate([train.labels, test.labels]), minlength=train.classes).tolist()


def empty_folder(name):
    return lambda root: (root / name).mkdir(parents=True)


def with_pictures(name, count=3, **options):
    return lambda root: fill(root / name, count, **options)


def with_file(name, content=b"\0"):
    def make(root):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)

    return make


def dead_links(root):
    for number in range(8):
        (root / "b" / f"l{number}.png").symlink_to("/nowhere/x.png")


def circle(root):
    (root / "a" / "me.png").symlink_to(root / "a" / "me.png")


def linked_patients(root):
    for name in "ab":
        for person in range(5):
            fill(root.parent / "elsewhere" / name / f"p{person}", 4)
            (root / name / f"p{person}").symlink_to(root.parent / "elsewhere" / name / f"p{person}")


def loop(root):
    (root / "a" / "loop").symlink_to(root / "a")


def linked_twice(root):
    (root / "a" / "again.png").symlink_to(root / "a" / "im00.png")


def pipe(root):
    os.mkfifo(root / "a" / "pipe.png")


# -- beside classes a and b of ten images each ---------------------------------------------

BESIDE = {
    "nothing": (lambda root: None, [10, 10], ""),
    "jupyter's folder": (empty_folder(".ipynb_checkpoints"), [10, 10], "hidden entries .*: 1 "),
    "a hidden folder of pictures": (with_pictures(".thumbs"), [10, 10], r"hidden entries .*\(.thumbs\)"),
    "macOS's folder of an archive": (with_pictures("__MACOSX/a"), [10, 10], "hidden entries"),
    "a NAS's folder": (with_pictures("a/@eaDir"), [10, 10], r"hidden entries .*\(a/@eaDir\)"),
    "AppleDouble": (with_file("a/._im00.png", b"\0\5\x16\7Mac OS X"), [10, 10], "hidden entries"),
    "Thumbs.db": (with_file("a/Thumbs.db"), [10, 10], "hidden entries"),
    ".DS_Store": (with_file(".DS_Store"), [10, 10], "hidden entries"),
    "a table beside the classes": (with_file("labels.csv"), [10, 10], r"files beside the class folders: 1 \(labels"),
    "a class of GIFs": (with_pictures("c", 10, suffix=".gif"), [10, 10, 10], ""),
    "upper case and .jfif": (
        lambda root: (fill(root / "c", 5, ".PNG"), fill(root / "c" / "d", 5, ".jfif", format="JPEG")),
        [10, 10, 10],
        "",
    ),
    "files of another kind in a class": (
        with_file("b/scan.dcm"),
        [10, 10],
        r"files ending in .dcm: 1 \(b/scan.dcm\), since they are no images that can be read here",
    ),
    "files without an ending": (with_file("b/scan"), [10, 10], "files without an ending: 1"),
    "dead links": (dead_links, [10, 10], r"links that lead nowhere: 8 \(b/l0.png, b/l1.png, b/l2.png, \.\.\.\)"),
    "a link to itself": (circle, [10, 10], "links that lead nowhere: 1"),
    "linked patients": (linked_patients, [30, 30], "10 folders lie below the class folders"),
    "a loop": (loop, [10, 10], r"reached again: 1 \(a/loop\)"),
    "a file linked twice": (linked_twice, [10, 10], r"reached again: 1 \(a/im00.png|reached again: 1 \(a/again.png"),
    "a pipe": (pipe, [10, 10], "neither files nor folders: 1"),
    "a folder named .png": (empty_folder("a/folder.png"), [10, 10], ""),
    "an empty class": (empty_folder("c"), [10, 10], "left out: empty folders: 1 \\(c\\)"),
    "a vehicle": (with_pictures("train", 10), [10, 10, 10], "'train' is a class, since it holds images"),
    "black and white": (
        lambda root: picture(root / "a" / "bw.bmp", grey() > 127),
        [11, 10],
        "",
    ),
    "an opaque alpha channel": (
        lambda root: picture(
            root / "a" / "rgba.png", np.dstack([grey(n) for n in range(3)] + [np.full_like(grey(), 255)])
        ),
        [11, 10],
        "without their alpha channel, which is opaque: 1 images",
    ),
    "colours for print": (
        lambda root: Image.new("CMYK", (12, 12)).save(root / "a" / "c.jpg"),
        [11, 10],
        r"CMYK.*: 1 images",
    ),
    "a picture in colour": (
        lambda root: picture(root / "b" / "rgb.png", np.dstack([grey(n) for n in range(3)])),
        [10, 11],
        "20 of 21 images are grey; all are taken as colour",
    ),
}


@pytest.mark.parametrize("case", BESIDE)
def test_what_lies_beside_classes_is_taken_or_left_out_and_named(tmp_path, case):
    make, counts, words = BESIDE[case]
    root = tmp_path / "data"
    classes(root)
    make(root)
    train, test, found = load_image_folder(root)
    assert everything(train, test) == counts
    assert found.class_names == train.class_names
    assert found.class_names is not None and found.class_names[:2] == ("a", "b")
    told = "\n".join(lines(found))
    if words:
        assert re.search(words, told), told
    else:
        assert "left out" not in told


def alpha_mask(root):
    for number in range(3):
        pixels = np.zeros((12, 12, 4), np.uint8)
        pixels[: 4 + number, :, 3] = 255
        picture(root / "a" / f"x{number}.png", pixels)


def stack(root, suffix=".tif"):
    pages = [Image.fromarray(grey(number)) for number in range(4)]
    pages[0].save(root / "a" / f"stack{suffix}", save_all=True, append_images=pages[1:])


def deep_colour(root):
    """16 bits a channel in colour, of which Pillow drops half in silence."""
    (root / "a" / "deep.ppm").write_bytes(b"P6 12 12 65535\n" + bytes(2 * 3 * 144))


def palette(root):
    image = Image.fromarray(grey() % 4).convert("P")
    image.save(root / "a" / "p.png", transparency=0)


def two_places(root):
    (root / "a" / "b").symlink_to(root / "b")


def linked_into_test(root):
    classes(root / "train")
    (root / "test").mkdir()
    for name in "ab":
        (root / "test" / name).symlink_to(root / "train" / name)


def names(*found, parts=("",)):
    return lambda root: [fill(root / part / name, 6) for part in parts for name in found]


def deep_folders(root):
    classes(root)
    place = root / "a"
    for _ in range(MAX_DEPTH + 2):
        place = place / "d"
    fill(place, 1)


def beside(make):
    return lambda root: (classes(root), make(root))


REFUSED = {
    "a folder that is not there": (lambda root: None, "found no such folder"),
    "no classes": (fill, "found no class folders"),
    "one class": (names("benign"), r"found class folders \['benign'\]; at least 2"),
    "an archive's own folder": (names("a", "b", parts=("scans",)), r"scans is the folder that is meant, with 'a', 'b'"),
    "train and something else": (names("a", "b", parts=("train", "more")), "found 'train' and beside them 'more'"),
    "test alone": (names("a", "b", parts=("test",)), "found 'test', but no training part"),
    "two folders for training": (names("a", "b", parts=("train", "Training")), "one folder is needed for the training"),
    "parts without classes": (lambda root: (fill(root / "train"), fill(root / "test")), "found no class folders"),
    "case twins": (names("Normal", "NORMAL"), "'NORMAL' and 'Normal', which differ in case"),
    "case twins in two parts": (
        lambda root: (classes(root / "train", ("Normal", "Sick")), classes(root / "test", ("NORMAL", "Sick"))),
        "'NORMAL' and 'Normal', which differ in case",
    ),
    "a name that is no text": (names("a", os.fsdecode(b"b\xfc")), "names of letters that can be read"),
    "one image a class": (lambda root: classes(root, "abc", 1), "no test images: 3 images are too few"),
    "two images a class": (lambda root: classes(root, "abc", 2), "no test images: 6 images are too few"),
    "a class of another kind": (
        beside(lambda root: with_file("c/im00.dcm")(root)),
        r"class 'c' has no image, but '.dcm' files",
    ),
    "masks as if a class": (beside(with_pictures("masks", 10)), "masks: found the file names of other classes"),
    "masks within a class": (
        lambda root: (fill(root / "a" / "images"), fill(root / "a" / "masks"), fill(root / "b")),
        "found a mask, as it seems, of 'im00'",
    ),
    "masks beside images": (
        beside(lambda root: picture(root / "a" / "im03_mask.png")),
        "a mask, as it seems, of 'im03'",
    ),
    "links to another class": (beside(two_places), "leads to what is|cannot be"),
    "a test part linked to training": (linked_into_test, "cannot be 'a' of the test part too"),
    "folders without an end": (deep_folders, "32 folders within each other"),
    "a picture in the alpha channel": (beside(alpha_mask), r"x\d.png: found transparent pixels"),
    "grey with alpha": (
        beside(lambda root: Image.new("LA", (12, 12), (7, 100)).save(root / "a" / "la.png")),
        "la.png: found transparent pixels",
    ),
    "a transparent palette": (beside(palette), "p.png: found transparent pixels"),
    "a stack": (beside(stack), r"stack.tif: found 4 pages; .* pages = "),
    "an animation": (beside(lambda root: stack(root, ".webp")), r"stack.webp: found 4 pages"),
    "16 bits grey": (
        beside(lambda root: picture(root / "a" / "d.png", grey().astype(np.uint16) * 200)),
        "d.png: found mode 'I;16' of more than 8 bits",
    ),
    "16 bits in colour": (beside(deep_colour), "deep.ppm: found mode 'RGB' of more than 8 bits"),
    "floats": (
        beside(lambda root: picture(root / "a" / "f.tif", grey().astype(np.float32))),
        "f.tif: found mode 'F'",
    ),
    "an empty file": (beside(with_file("a/z.png", b"")), "z.png: found no image that can be read"),
    "a page of the web": (beside(with_file("a/z.jpg", b"<html>404</html>")), "z.jpg: found no image"),
    "PostScript under another name": (
        beside(with_file("a/z.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")),
        "z.png: found no image",
    ),
    "sizes that differ": (beside(lambda root: picture(root / "a" / "w.png", grey(size=(20, 8)))), "one size is needed"),
    "too many pixels": (
        beside(lambda root: Image.new("L", (9000, 2)).save(root / "a" / "w.png")),
        "9000 x 2 pixels; at most 8192",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_two_readings_or_none_is_refused_with_the_reason(tmp_path, case):
    make, words = REFUSED[case]
    make(tmp_path / "data")
    with pytest.raises(DatasetError, match=words) as caught:
        load_image_folder(tmp_path / "data")
    assert str(tmp_path) in str(caught.value)


# -- parts by their usual names ---------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        ("train", "test"),
        ("Train", "Test"),
        ("Training", "Testing"),
        ("train", "val"),
        ("TRAIN", "valid"),
        ("train", "Validation"),
    ],
)
def test_parts_are_known_by_their_usual_names(tmp_path, parts):
    for number, part in enumerate(parts):
        classes(tmp_path / part, ("glioma", "meningioma", "none"), 4 + number)
    train, test, found = load_image_folder(tmp_path)
    assert found.class_names == ("glioma", "meningioma", "none")
    assert [part.by_class for part in found.parts] == [(4, 4, 4), (5, 5, 5)]
    assert any("is the test part" in reading for reading in found.readings) == parts[1].lower().startswith("val")
    assert (len(train), len(test)) == (12, 15)


def test_a_validation_part_beside_a_test_part_is_counted_and_left_out(tmp_path):
    for part, count in (("train", 4), ("test", 3), ("val", 2)):
        classes(tmp_path / part, count=count)
    _, test, found = load_image_folder(tmp_path)
    assert len(test) == 6
    assert [(one.what, one.count) for one in found.left_out] == [("images of the validation part", 4)]


def test_a_training_part_alone_is_split(tmp_path):
    classes(tmp_path / "train")
    train, test, found = load_image_folder(tmp_path)
    assert (len(train), len(test)) == (16, 4)
    assert "a test part is split off the training part" in found.readings[0]


def test_spellings_that_unicode_calls_the_same_are_one_class(tmp_path):
    for part, form in (("train", "NFC"), ("test", "NFD")):
        classes(tmp_path / part, (unicodedata.normalize(form, "Lésion"), "gesund"), 8)
    train, test, found = load_image_folder(tmp_path)
    assert found.class_names == (unicodedata.normalize("NFC", "Lésion"), "gesund")
    assert [np.bincount(part.labels).tolist() for part in (train, test)] == [[8, 8], [8, 8]]
    assert "2 spellings of 'Lésion'" in found.readings[0]
    told = load_image_folder(tmp_path, class_names=("gesund", unicodedata.normalize("NFD", "Lésion")))[0]
    assert told.class_names == ("gesund", "Lésion")


def test_numbers_are_ordered_as_numbers(tmp_path):
    classes(tmp_path, [str(number) for number in range(11)], 3)
    assert load_image_folder(tmp_path)[2].class_names == tuple(map(str, range(11)))


def test_a_class_may_be_named_in_the_task_and_lack_a_folder_but_no_folder_a_name(tmp_path):
    classes(tmp_path, ("Normal", "Sick"))
    assert load_image_folder(tmp_path, class_names=("Normal", "Other", "Sick"))[2].parts[0].by_class == (8, 0, 8)
    with pytest.raises(DatasetError, match=r"found folders \['Sick'\]; the classes are \['Normal', 'Other'\]"):
        load_image_folder(tmp_path, class_names=("Normal", "Other"))
    with pytest.raises(DatasetError, match="'NORMAL' and 'Normal', which differ in case"):
        load_image_folder(tmp_path, class_names=("NORMAL", "Sick"))


# -- one picture ---------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_pictures_are_turned_as_a_viewer_turns_them(tmp_path, suffix, orientation):
    classes(tmp_path, count=5)
    upright = np.full((12, 12), 30, np.uint8)
    upright[:6, :3] = 220
    turns: dict[int, Any] = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose, 6: np.rot90}
    turns |= {7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, -1)}
    stored = np.ascontiguousarray(turns.get(orientation, lambda a: a)(upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if suffix in (".jpg", ".webp") else {}
    Image.fromarray(stored).save(tmp_path / "a" / f"turned{suffix}", exif=exif, **options)
    train, test, _ = load_image_folder(tmp_path, channels=1)
    found = np.concatenate([train.pixels, test.pixels])[..., 0].astype(int)
    assert np.abs(found - upright).mean(axis=(1, 2)).min() < 12


def test_a_picture_on_its_side_has_its_sides_exchanged(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in "ab":
        for number in range(5):
            picture(tmp_path / name / f"{number}.jpg", grey(number, (20, 12)))
            picture(tmp_path / name / f"turned{number}.jpg", grey(number, (12, 20)), exif=exif)
    assert load_image_folder(tmp_path)[0].shape == (1, 12, 20)


def test_pages_of_a_stack_are_taken_as_pages_says(tmp_path):
    classes(tmp_path, count=5)
    stack(tmp_path)
    assert everything(*load_image_folder(tmp_path, pages="first")[:2]) == [6, 5]
    train, test, found = load_image_folder(tmp_path, pages="each")
    assert everything(train, test) == [9, 5]
    assert train.groups is not None
    assert not set(train.groups) & set(test.groups)  # no stack is divided
    assert [part.groups for part in found.parts] == [len(set(train.groups)), len(set(test.groups))]
    wanted = {grey(number).tobytes() for number in range(4)}
    assert wanted <= {image.tobytes() for part in (train, test) for image in part.pixels}


def test_a_grey_palette_is_grey_and_a_coloured_one_is_not(tmp_path):
    classes(tmp_path, count=5)
    Image.fromarray(grey()).convert("P").save(tmp_path / "a" / "p.png")
    assert load_image_folder(tmp_path)[0].shape == (1, 12, 12)
    coloured = Image.fromarray(np.dstack([grey(1), grey(2), grey(3)])).quantize(8)
    coloured.save(tmp_path / "a" / "q.png")
    assert load_image_folder(tmp_path)[0].shape == (3, 12, 12)


# -- persons ---------------------------------------------


def persons(root, count=10, slices=4):
    for name in "ab":
        for person in range(count):
            fill(root / name / f"{name}{person}", slices)


def test_a_split_by_groups_divides_nobody(tmp_path):
    persons(tmp_path)
    for seed in range(5):
        train, test, found = load_image_folder(tmp_path, groups="folder", seed=seed)
        assert not set(train.groups) & set(test.groups)
        assert np.bincount(test.labels).tolist() == [8, 8]
        assert [part.groups for part in found.parts] == [16, 4]
        assert found.warnings == ()


def test_without_groups_folders_below_the_classes_are_pointed_at(tmp_path):
    persons(tmp_path)
    train, _, found = load_image_folder(tmp_path)
    assert train.groups is None
    assert 'if each is a person, groups = "folder"' in found.warnings[0]


def test_persons_on_both_sides_of_a_given_split_are_warned_of(tmp_path):
    for part, numbers in (("train", range(6)), ("test", range(4, 8))):
        for number in numbers:
            for name in "ab":
                fill(tmp_path / part / name / f"p{number}", 2)
    _, _, found = load_image_folder(tmp_path, groups="folder")
    assert "2 of 4 groups of the test part, 8 of its images, are in the training part too" in found.warnings[0]


def test_an_image_of_nobody_is_refused_where_persons_are_asked_for(tmp_path):
    persons(tmp_path)
    picture(tmp_path / "a" / "x.png")
    with pytest.raises(DatasetError, match=r"x.png: found in no person's folder"):
        load_image_folder(tmp_path, groups="folder")


def test_one_person_cannot_be_split(tmp_path):
    for name in "ab":
        fill(tmp_path / name / "p0")
    with pytest.raises(DatasetError, match="20 images of 1 groups are too few"):
        load_image_folder(tmp_path, groups="folder")


def test_words_of_strangers_move_no_cursor(tmp_path):
    classes(tmp_path, ("a", "b\x1b[2J"))
    assert all("\x1b" not in line for line in lines(load_image_folder(tmp_path)[2]))


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    classes(tmp_path)
    real = os.scandir

    def scandir(place):
        if Path(place).name == "a":
            raise PermissionError(13, "Permission denied")
        return real(place)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DatasetError, match=r"/a: cannot be read \(Permission denied\)"):
        load_image_folder(tmp_path)


# -- parts, persons and copies that are not what they seem ---------------


def tree(*places, count=5):
    def make(root):
        for place in places:
            fill(root / place, count)

    return make


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (tree("train_set/a", "train_set/b", "test_set/a", "test_set/b"), "'test_set', 'train_set' with folders of one"),
        (
            tree("images_train/a", "images_train/b", "images_test/a", "images_test/b"),
            "with folders of one name in each",
        ),
        (tree("tr/a", "tr/b", "ts/a", "ts/b"), "with folders of one name in each, 'a', 'b'"),
        (tree("_train/a", "_train/b", "_test/a", "_test/b"), "with folders of one name in each"),
        (tree("fold1/a", "fold1/b", "fold2/a", "fold2/b"), "with folders of one name in each"),
        (tree("a/train", "a/test", "b/train", "b/test"), "with folders of one name in each, 'test', 'train'"),
        (tree("a/Train ", "a/x", "b"), "found 'Train ' below a class folder"),
        (tree("train /a", "train /b", "train/a", "test /b"), "one folder is needed for the training part"),
    ],
)
def test_parts_under_other_names_are_not_taken_as_classes(tmp_path, make, words):
    make(tmp_path)
    with pytest.raises(DatasetError, match=words):
        load_image_folder(tmp_path)


def test_names_of_parts_count_without_spaces_at_their_ends(tmp_path):
    tree("train /a", "train /b", "test /a", "test /b")(tmp_path)
    assert [part.by_class for part in load_image_folder(tmp_path)[2].parts] == [(5, 5), (5, 5)]


def test_folders_of_one_name_within_classes_are_taken_where_somebody_says_what_they_are(tmp_path):
    tree("a/p1", "a/p2", "b/p1", "b/p2")(tmp_path)
    for told in ({"groups": "folder"}, {"class_names": ("a", "b")}):
        assert load_image_folder(tmp_path, **told)[2].class_names == ("a", "b")
    with pytest.raises(DatasetError, match='if the inner ones are persons, groups = "folder"'):
        load_image_folder(tmp_path)


@pytest.mark.parametrize("twin", ["P1", "p1 "])
def test_a_person_in_two_spellings_is_refused(tmp_path, twin):
    tree("a/p1", "a/p2", f"b/{twin}", "b/p3")(tmp_path)
    with pytest.raises(DatasetError, match=r"found groups '.1 ?' and '.1 ?', which differ in case or spaces alone"):
        load_image_folder(tmp_path, groups="folder")


def test_a_person_whose_name_unicode_spells_in_two_ways_is_one(tmp_path):
    name = "Jos\u00e9"
    tree(f"a/{name}", f"b/{unicodedata.normalize('NFD', name)}", "a/x", "b/y")(tmp_path)
    assert [part.groups for part in load_image_folder(tmp_path, groups="folder", split=False)[2].parts] == [3]


def test_copies_stay_on_one_side_of_a_split_made_here_and_are_counted(tmp_path):
    for name in "ab":
        fill(tmp_path / name, 40)
        for file in sorted((tmp_path / name).iterdir()):
            (tmp_path / name / f"{file.stem} (1).png").write_bytes(file.read_bytes())
    for seed in range(3):
        train, test, found = load_image_folder(tmp_path, seed=seed)
        assert not {image.tobytes() for image in train.pixels} & {image.tobytes() for image in test.pixels}
        assert np.bincount(test.labels).tolist() == [16, 16]
        assert "warning: 64 images of the training part are copies of others in it" in "\n".join(lines(found))


def test_copies_across_a_split_that_was_given_are_warned_of(tmp_path):
    for part in ("train", "test"):
        classes(tmp_path / part)
    for number in range(3):
        picture(tmp_path / "train" / "a" / f"x{number}.png", number=number)
        picture(tmp_path / "test" / "a" / f"y{number}.png", number=number)
    assert "3 images of the test part are in the training part too" in "\n".join(lines(load_image_folder(tmp_path)[2]))


def test_an_undivided_folder_is_both_parts(tmp_path):
    classes(tmp_path, count=1)
    train, test, found = load_image_folder(tmp_path, split=False)
    assert train is test and [part.name for part in found.parts] == ["whole"] and found.one_piece


@pytest.mark.parametrize("parts", [("",), ("train", "val"), ("train", "val", "test")])
def test_the_limit_is_on_the_entries_that_there_are_however_often_they_are_looked_at(tmp_path, monkeypatch, parts):
    for part in parts:
        classes(tmp_path / part, count=6)
        (tmp_path / part / "a" / ".hidden").touch()
    entries = sum(1 for _ in tmp_path.rglob("*"))
    monkeypatch.setattr(folder_layouts, "MAX_ENTRIES", entries)
    *_, found = load_image_folder(tmp_path)
    [hidden] = [left.count for left in found.left_out if left.what.startswith("hidden")]
    assert hidden == min(2, len(parts))  # nobody reads a validation part beside a test part
    monkeypatch.setattr(folder_layouts, "MAX_ENTRIES", entries - 1)
    with pytest.raises(DatasetError, match=f"found more than {entries - 1} files"):
        load_image_folder(tmp_path)
