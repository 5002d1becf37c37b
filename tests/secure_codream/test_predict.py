"""Predictions: one line for each input, whatever it is, in a file that is whole or not there."""

from __future__ import annotations

import csv
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image
from typer.testing import CliRunner

from secure_codream import cli
from secure_codream.use.inputs import Form, InputsError, read_inputs
from secure_codream.use.model import OpenedModel, UseError
from secure_codream.use.predict import predict
from tests.secure_codream.models import DESCRIBED, HALF, opened

GREY = Form((1, 8, 8), resized=False)


@pytest.fixture
def model(tmp_path: Path) -> OpenedModel:
    return opened(tmp_path / "client")


def drawing(seed: int = 0, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)


def picture(path: Path, seed: int = 0, *, side: int = 8, mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawing(seed, side)).convert(mode).save(path)
    return path


def lines_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# -- what is read ---------------------------------------------


def test_a_folder_is_read_in_order_and_nothing_in_it_is_passed_over(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    for name in ("b.png", "a.png", "deep/c.png"):
        picture(scans / name)
    picture(scans / "large.png", side=9)
    (scans / "notes.txt").write_text("no picture")
    (scans / "half.png").write_bytes(picture(scans / "a.png").read_bytes()[:60])
    (scans / "empty.png").touch()
    (scans / "dead.png").symlink_to("nowhere")
    (scans / "linked").symlink_to(tmp_path)
    Image.fromarray(drawing()).save(scans / "two.tif", save_all=True, append_images=[Image.fromarray(drawing(1))])
    Image.fromarray(drawing().astype(np.uint16) * 256).save(scans / "deep.tif")
    found = {one.name.removeprefix(f"{scans}/"): one.problem for one in read_inputs([scans], GREY)}
    assert list(found) == [
        "a.png", "b.png", "dead.png", "deep.tif", "empty.png", "half.png", "large.png", "notes.txt", "two.tif",
        "linked", "deep/c.png",
    ]  # fmt: skip
    assert [name for name, problem in found.items() if not problem] == ["a.png", "b.png", "deep/c.png"]
    assert found["dead.png"] == "a link that leads nowhere" and "not followed" in found["linked"]
    assert found["large.png"] == "9 x 9 pixels; 8 x 8 are needed, as in training"
    assert "2 pages" in found["two.tif"] and "8 bits a channel" in found["deep.tif"]
    assert all("no image that can be read" in found[name] for name in ("notes.txt", "empty.png", "half.png"))


def test_pictures_are_made_grey_or_coloured_as_the_model_needs(tmp_path: Path) -> None:
    (grey,) = read_inputs([picture(tmp_path / "a.png")], Form((3, 8, 8), resized=False))
    assert grey.pixels is not None and (grey.pixels == drawing()[:, :, None]).all() and grey.pixels.shape == (8, 8, 3)
    (colour,) = read_inputs([picture(tmp_path / "b.png", mode="RGB")], GREY)
    assert colour.pixels is not None and colour.pixels.shape == (8, 8, 1)
    (odd,) = read_inputs([tmp_path / "a.png"], Form((4, 8, 8), resized=False))
    assert "this model takes 4: an .npz is needed" in odd.problem


def test_pictures_are_resized_only_where_they_were_in_training(tmp_path: Path) -> None:
    large = picture(tmp_path / "large.png", side=20)
    (refused,) = read_inputs([large], GREY)
    assert refused.pixels is None and "20 x 20 pixels; 8 x 8 are needed" in refused.problem
    (taken,) = read_inputs([large], Form((1, 8, 8), resized=True))
    expected = np.asarray(Image.open(large).resize((8, 8), Image.Resampling.BILINEAR))
    assert taken.pixels is not None and (taken.pixels[:, :, 0] == expected).all()


def test_arrays_are_read_one_image_at_a_time(tmp_path: Path) -> None:
    path, images = tmp_path / "scans.npz", np.stack([drawing(seed) for seed in range(3)])
    np.savez(path, test_images=images, labels=np.arange(3), images=images[:1], other=images)
    found = list(read_inputs([path], GREY))
    assert [one.name for one in found] == [
        f"{path}:{name}" for name in ("test_images:0", "test_images:1", "test_images:2", "images:0")
    ]
    assert all(one.pixels is not None and (one.pixels[:, :, 0] == images[at % 3]).all() for at, one in enumerate(found))


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "many.npz", images=np.zeros((3_000, 100, 100), np.uint8))  # 30 MB
    tracemalloc.start()
    assert (
        sum(one.pixels is not None for one in read_inputs([tmp_path / "many.npz"], Form((1, 100, 100), False))) == 3_000
    )
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2 << 20


@pytest.mark.parametrize(
    ("arrays", "count", "said"),
    [
        ({"images": np.zeros((2, 8, 9), np.uint8)}, 2, r"images of shape \(8, 9, 1\); \(8, 8, 1\)"),
        ({"images": np.zeros((2, 8, 8))}, 2, "float64; uint8"),
        ({"images": np.asfortranarray(np.zeros((2, 8, 8), np.uint8))}, 2, "Fortran"),
        ({"images": np.zeros(64, np.uint8)}, 1, r"uint8 of shape \(64,\)"),
        ({"images": np.zeros((9, 0, 8), np.uint8)}, 1, r"shape \(9, 0, 8\)"),
        ({"images": np.array([[[{}]]])}, 1, "object"),
        ({"labels": np.zeros(2)}, 1, "no array named images"),
    ],
)
def test_arrays_that_are_no_images_are_named(
    tmp_path: Path, arrays: dict[str, np.ndarray], count: int, said: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    found = list(read_inputs([tmp_path / "a.npz"], GREY))
    assert len(found) == count and all(one.pixels is None for one in found)
    assert re.search(said, found[0].problem)


def test_an_archive_cut_anywhere_gives_what_is_whole_and_says_that_it_ends(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", images=np.stack([drawing(seed) for seed in range(3)]))
    whole = (tmp_path / "whole.npz").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        assert "no sound .npz archive" in list(read_inputs([tmp_path / "cut.npz"], GREY))[-1].problem
    for at in range(0, len(whole), 5):
        (tmp_path / "bit.npz").write_bytes(whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :])
        assert len(list(read_inputs([tmp_path / "bit.npz"], GREY))) >= 1


def test_a_path_with_nothing_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputsError, match="found nothing there"):
        list(read_inputs([tmp_path / "nowhere"], GREY))


# -- what is written ---------------------------------------------


def test_one_line_an_input_with_class_and_probabilities(tmp_path: Path, model: OpenedModel) -> None:
    scans = picture(tmp_path / "scans" / "a.png", 3).parent
    (scans / "b.png").write_text("no picture")
    found = predict(model, [scans], tmp_path / "out.csv")
    first, second = lines_of(tmp_path / "out.csv")
    expected = model.probabilities_of_pixels(drawing(3)[None, :, :, None])[0]
    assert first["input"] == str(scans / "a.png") and first["predicted"] == str(expected.argmax())
    assert [float(first[f"p_{number}"]) for number in range(10)] == pytest.approx(expected.tolist(), rel=1e-5)
    assert first["problem"] == "" and second["problem"].startswith("found no image that can be read")
    assert second["predicted"] == second["p_0"] == ""
    assert (found.inputs, found.without, len(found.named)) == (2, 1, 1)
    assert list(first) == ["input", "predicted", *(f"p_{number}" for number in range(10)), "problem"]


def test_order_is_kept_over_batches(tmp_path: Path, model: OpenedModel) -> None:
    images = np.stack([drawing(seed) for seed in range(600)])
    np.savez(tmp_path / "many.npz", images=images)
    predict(model, [tmp_path / "many.npz", picture(tmp_path / "a.png", 7)], tmp_path / "out.csv")
    lines = lines_of(tmp_path / "out.csv")
    assert [line["input"].rpartition(":")[2] for line in lines[:600]] == [str(number) for number in range(600)]
    expected = model.probabilities_of_pixels(images[..., None])
    assert np.array([[float(line[f"p_{k}"]) for k in range(10)] for line in lines[:600]]) == pytest.approx(
        expected, abs=1e-5
    )
    assert lines[600]["p_0"] == lines[7]["p_0"]


def test_names_stand_for_classes_where_they_are_known(tmp_path: Path) -> None:
    named = opened(tmp_path / "named", replace(HALF, class_names=(*"abcdefghi", "=evil, \n(j)")))
    predict(named, [picture(tmp_path / "a.png")], tmp_path / "out.csv")
    (line,) = lines_of(tmp_path / "out.csv")
    assert list(line)[2] == "p_a" and list(line)[11] == r"p_=evil, \n(j)"
    assert line["predicted"].removeprefix("'") in {name.removeprefix("p_") for name in list(line)[2:-1]}


def test_no_cell_is_run_as_a_formula_and_no_name_makes_a_line(
    tmp_path: Path, model: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "x"
    names = ["=1+1.png", "+a.png", "-a.png", "@a.png", "new\nline.png", "\x1b[31m.png", "tab\t.png", 'quo"te,.png']
    for name in names:
        picture(folder / name)
    monkeypatch.chdir(folder)
    predict(model, [Path(name) for name in names], tmp_path / "out.csv")
    lines = lines_of(tmp_path / "out.csv")
    assert [line["input"] for line in lines] == [
        "'=1+1.png", "'+a.png", "'-a.png", "'@a.png", r"new\nline.png", r"\x1b[31m.png", r"tab\t.png", 'quo"te,.png',
    ]  # fmt: skip
    assert len((tmp_path / "out.csv").read_bytes().splitlines()) == len(names) + 1


def test_nothing_finished_is_overwritten(tmp_path: Path, model: OpenedModel) -> None:
    out, one = tmp_path / "out.csv", picture(tmp_path / "scans" / "a.png")
    out.write_text("precious")
    with pytest.raises(UseError, match="--force to replace a file"):
        predict(model, [one], out)
    assert out.read_text() == "precious"
    predict(model, [one], out, force=True)
    assert len(lines_of(out)) == 1
    for place in (model.path, one, one.parent / "new.csv"):
        before = place.read_bytes() if place.exists() else None
        with pytest.raises(UseError, match="a place outside what is read is needed"):
            predict(model, [one.parent, one], place, force=True)
        assert (place.read_bytes() if place.exists() else None) == before


def test_what_fails_on_the_way_leaves_no_file(
    tmp_path: Path, model: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def fails(self: OpenedModel, given: np.ndarray) -> np.ndarray:
        calls.append(len(given))
        if len(calls) == 2:
            raise RuntimeError("no memory")
        return np.full((len(given), 10), 0.1)

    monkeypatch.setattr(OpenedModel, "probabilities_of_pixels", fails)
    np.savez(tmp_path / "many.npz", images=np.zeros((600, 8, 8), np.uint8))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="no memory"):
        predict(model, [tmp_path / "many.npz"], tmp_path / "out.csv")
    assert sorted(tmp_path.iterdir()) == before and calls == [256, 256]


def test_an_answer_that_is_not_finite_is_a_problem_of_its_image_alone(
    tmp_path: Path, model: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = np.array([[0.1] * 10, [np.nan] * 10, [0.1] * 10])
    monkeypatch.setattr(OpenedModel, "probabilities_of_pixels", lambda self, given: answers)
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 8, 8), np.uint8))
    assert predict(model, [tmp_path / "a.npz"], tmp_path / "out.csv").without == 1
    assert [bool(line["problem"]) for line in lines_of(tmp_path / "out.csv")] == [False, True, False]


def test_an_empty_folder_is_said(tmp_path: Path, model: OpenedModel) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UseError, match="found no input; at least one file is needed"):
        predict(model, [tmp_path / "empty"], tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


# -- the command ---------------------------------------------


def test_the_command_names_what_it_could_not_read(tmp_path: Path, model: OpenedModel) -> None:
    scans = picture(tmp_path / "scans" / "a.png").parent
    (scans / "b.png").write_text("no picture")
    out = tmp_path / "out.csv"
    done = CliRunner().invoke(cli.app, ["predict", str(model.path.parent), str(scans), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert f"not read: {scans / 'b.png'}: found no image that can be read" in done.stderr
    assert done.stdout == f"1 of 2 inputs: {out}\n"


def test_the_command_fails_where_nothing_can_be_read(tmp_path: Path, model: OpenedModel) -> None:
    (tmp_path / "b.png").write_text("no picture")
    out = tmp_path / "out.csv"
    done = CliRunner().invoke(cli.app, ["predict", str(model.path), str(tmp_path / "b.png"), "--out", str(out)])
    assert done.exit_code == 1 and "none of 1 input could be read" in done.stderr
    assert len(lines_of(out)) == 1


def test_the_command_takes_a_scale_that_the_file_lacks(tmp_path: Path) -> None:
    opened(tmp_path / "unknown", DESCRIBED), picture(tmp_path / "a.png")
    command = ["predict", str(tmp_path / "unknown"), str(tmp_path / "a.png"), "--out", str(tmp_path / "out.csv")]
    refused = CliRunner().invoke(cli.app, command)
    assert isinstance(refused.exception, UseError) and "--mean and --std" in str(refused.exception)
    assert CliRunner().invoke(cli.app, [*command, "--mean", "0.5", "--std", "0.25"]).exit_code == 0
    for wrong in (["--mean", "0.5"], ["--mean", "half", "--std", "1"]):
        assert CliRunner().invoke(cli.app, [*command, *wrong]).exit_code == 2
