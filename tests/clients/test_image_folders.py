import numpy as np
import pytest
from PIL import Image

from codream_clients.data.datasets import DatasetError
from codream_clients.data.image_folders import load_image_folder


def fill(folder, counts, size=(12, 10), mode="RGB"):
    """`counts`: images by class; each image's first byte tells its number."""
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{number:03}.png")
    return folder


def test_train_and_test_folders_are_read_in_order(tmp_path):
    fill(tmp_path / "train", {"cat": 3, "ant": 2})
    fill(tmp_path / "test", {"cat": 1, "ant": 1})
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    train, test, _ = load_image_folder(tmp_path)
    assert train.shape == test.shape == (3, 10, 12)
    assert train.labels.tolist() == [0, 0, 1, 1, 1]  # ant, cat
    with Image.open(tmp_path / "train" / "ant" / "000.png") as first:
        assert np.array_equal(train.pixels[0], np.asarray(first))


def test_one_folder_is_split_by_class_and_seed(tmp_path):
    fill(tmp_path, {"a": 20, "b": 10})
    train, test, _ = load_image_folder(tmp_path, seed=1, test_share=0.2)
    assert np.bincount(train.labels).tolist() == [16, 8]
    assert np.bincount(test.labels).tolist() == [4, 2]
    everything = {image.tobytes() for part in (train, test) for image in part.pixels}
    assert len(everything) == 30
    assert np.array_equal(load_image_folder(tmp_path, seed=1)[1].pixels, test.pixels)
    assert not np.array_equal(load_image_folder(tmp_path, seed=2)[1].pixels, test.pixels)


def test_grey_stays_grey_and_can_be_coloured(tmp_path):
    fill(tmp_path, {"a": 5, "b": 5}, mode="L")
    assert load_image_folder(tmp_path)[0].shape == (1, 10, 12)
    coloured = load_image_folder(tmp_path, channels=3)[0]
    assert coloured.shape == (3, 10, 12)
    assert np.array_equal(coloured.pixels[..., 0], coloured.pixels[..., 2])


def test_sizes_that_differ_need_a_size(tmp_path):
    fill(tmp_path, {"a": 5})
    fill(tmp_path, {"b": 5}, size=(20, 30))
    with pytest.raises(DatasetError, match=r"has 12 x 10 pixels, .* has 20 x 30; one size is needed, or `size`"):
        load_image_folder(tmp_path)
    assert load_image_folder(tmp_path, size=16)[0].shape == (3, 16, 16)


def test_class_names_fix_the_order_for_a_client_that_lacks_some(tmp_path):
    fill(tmp_path, {"a": 5, "c": 5})
    with pytest.raises(DatasetError, match=r"found folders \['c'\]; the classes are"):
        load_image_folder(tmp_path, class_names=("a", "b"))
    (tmp_path / "b").mkdir()
    assert load_image_folder(tmp_path)[0].class_names == ("a", "c"), (
        "an empty folder is a class where it is named alone"
    )
    train, *_ = load_image_folder(tmp_path, class_names=("c", "b", "a"))
    assert np.bincount(train.labels).tolist() == [4, 0, 4]


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"no image"])
def test_files_that_are_no_images_are_named(tmp_path, content):
    fill(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "a" / "broken.png").write_bytes(content)
    with pytest.raises(DatasetError, match=r"broken\.png: found no image that can be read"):
        load_image_folder(tmp_path)


def test_a_truncated_image_is_named(tmp_path):
    fill(tmp_path, {"a": 5, "b": 5}, size=(64, 64))
    victim = tmp_path / "a" / "000.png"
    victim.write_bytes(victim.read_bytes()[:2000])
    with pytest.raises(DatasetError, match=r"000\.png: found no image"):
        load_image_folder(tmp_path)


def test_an_image_that_unpacks_to_too_much_is_refused_by_its_header(tmp_path):
    fill(tmp_path, {"a": 5, "b": 5})
    Image.new("1", (9000, 10)).save(tmp_path / "a" / "wide.png")
    with pytest.raises(DatasetError, match=r"wide\.png: found 9000 x 10 pixels; at most 8192"):
        load_image_folder(tmp_path, size=16)
    (tmp_path / "a" / "wide.png").unlink()
    with pytest.raises(DatasetError, match="3000 bytes are allowed"):
        load_image_folder(tmp_path, max_bytes=3000)


def test_layouts_that_do_not_fit(tmp_path):
    with pytest.raises(DatasetError, match="found no such folder"):
        load_image_folder(tmp_path / "none")
    fill(tmp_path, {"only": 5})
    (tmp_path / "other").mkdir()
    with pytest.raises(DatasetError, match=r"found class folders \['only'\]; at least 2"):
        load_image_folder(tmp_path)
    (tmp_path / "only").rename(tmp_path / ".only")
    with pytest.raises(DatasetError, match="no training images"):
        load_image_folder(tmp_path, class_names=("other", "third"))
    fill(tmp_path / "x", {"a": 1, "b": 1})
    with pytest.raises(DatasetError, match="no test images"):
        load_image_folder(tmp_path / "x")
    fill(tmp_path / "y", {"a": 5, "b": 5})
    Image.new("I;16", (12, 10)).save(tmp_path / "y" / "a" / "deep.png")
    with pytest.raises(DatasetError, match="'I;16' of more than 8 bits; 8 bits a channel"):
        load_image_folder(tmp_path / "y")
