"""Figures of a model, each beside another way to compute it, and intervals, beside the truth."""

from __future__ import annotations

import json
from dataclasses import replace as changed
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from rich.console import Console
from sklearn import metrics
from typer.testing import CliRunner

from codream_clients.data.datasets import DatasetError, LabelledImages, load_digits_data
from codream_clients.data.sources import load_source
from secure_codream import cli
from secure_codream.deployment.description import Standardisation
from secure_codream.deployment.files import MODEL
from secure_codream.use.evaluate import FEW, Evaluation, evaluate, measure
from secure_codream.use.intervals import Figure, Samples, areas, exact
from secure_codream.use.labelled import labelled_images
from secure_codream.use.model import OpenedModel, UseError, open_model
from secure_codream.use.table import MOST_CLASSES, tables
from tests.secure_codream.models import DESCRIBED, opened, small_model, write_checkpoint

NAMES = tuple("abcd")
DIGITS = replace(DESCRIBED, standardisation=Standardisation((0.3053,), (0.3761,)))


def answers(count: int = 300, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that know something of the labels, with ties among them, and the labels, of unequal frequency."""
    random = np.random.default_rng(seed)
    labels = random.choice(classes, count, p=np.arange(1, classes + 1) / (classes * (classes + 1) / 2))
    logits = np.round(random.normal(size=(count, classes)) + 1.5 * (labels[:, None] == np.arange(classes)), 1)
    shares = np.exp(logits)
    return shares / shares.sum(axis=1, keepdims=True), labels


def measured(classes: int = 4, **options: Any) -> Evaluation:
    return measure(*answers(classes=classes), tuple("abcdefghijklmnop"[:classes]), resamples=200, **options)


def value(figure: Figure) -> float:
    assert figure.value is not None
    return figure.value


def holds(figure: Figure, truth: float) -> bool:
    assert figure.low is not None and figure.high is not None
    return figure.low <= truth <= figure.high


# -- each figure, computed another way ---------------------------------------------


@pytest.mark.parametrize("classes", [2, 4])
def test_figures_are_those_of_scikit_learn(classes: int) -> None:
    probabilities, labels = answers(classes=classes)
    taken, found = probabilities.argmax(axis=1), measured(classes)
    assert value(found.accuracy) == pytest.approx(metrics.accuracy_score(labels, taken))
    assert value(found.balanced_accuracy) == pytest.approx(metrics.balanced_accuracy_score(labels, taken))
    each = [metrics.roc_auc_score(labels == k, probabilities[:, k]) for k in range(classes)]
    assert [value(one.auc) for one in found.by_class] == pytest.approx(each)
    assert value(found.auc) == pytest.approx(np.mean(each))
    if classes > 2:
        assert value(found.auc) == pytest.approx(metrics.roc_auc_score(labels, probabilities, multi_class="ovr"))
    assert np.array(found.confusion).tolist() == metrics.confusion_matrix(labels, taken).tolist()
    sensitivities = metrics.recall_score(labels, taken, average=None)
    assert [value(one.sensitivity) for one in found.by_class] == pytest.approx(sensitivities)
    specificities = [metrics.recall_score(labels != k, taken != k) for k in range(classes)]
    assert [value(one.specificity) for one in found.by_class] == pytest.approx(specificities)
    squares = ((probabilities - np.eye(classes)[labels]) ** 2).sum(axis=1).mean()
    assert value(found.brier) == pytest.approx(squares / (2 if classes == 2 else 1))
    if classes == 2:
        assert value(found.brier) == pytest.approx(metrics.brier_score_loss(labels, probabilities[:, 1]))


def test_the_calibration_error_is_its_definition() -> None:
    probabilities, labels = answers()
    confidences = probabilities.max(axis=1)
    order = np.argsort(confidences, kind="stable")
    expected = 0.0
    for rows in np.array_split(order, 15):  # 300 in 15 bins: 20 each
        right = (probabilities[rows].argmax(axis=1) == labels[rows]).mean()
        expected += len(rows) / len(labels) * abs(right - confidences[rows].mean())
    assert value(measured().calibration_error) == pytest.approx(expected)


def test_the_area_of_a_published_example() -> None:
    """Hanley and McNeil, Radiology 1982, tables I and II: 109 images rated from 1 to 5, an area of 0.893."""
    normal, abnormal = (33, 6, 6, 11, 2), (3, 2, 2, 11, 33)
    ratings = np.repeat(np.tile(np.arange(1.0, 6), 2), (*normal, *abnormal))
    positive = np.repeat([False, True], [sum(normal), sum(abnormal)])
    found = areas(ratings[:, None], positive[:, None])(np.ones((1, 109)))
    assert found[0, 0] == pytest.approx(0.893, abs=5e-4)


def test_weights_count_as_that_many_images() -> None:
    """What resampling rests on: an image drawn twice is two images, one not drawn is none."""
    probabilities, labels = answers(60, 3)
    weights = np.random.default_rng(1).multinomial(60, np.full(60, 1 / 60), 5)
    found = areas(probabilities, labels[:, None] == np.arange(3))(weights.astype(float))
    for row, drawn in zip(found, weights, strict=True):
        rows = np.repeat(np.arange(60), drawn)
        expected = [metrics.roc_auc_score(labels[rows] == k, probabilities[rows, k]) for k in range(3)]
        assert row == pytest.approx(expected)


def test_a_perfect_model_is_perfect_and_a_guess_is_a_guess() -> None:
    labels = np.arange(400) % 4
    perfect = measure(np.eye(4)[labels], labels, NAMES, resamples=200)
    assert [value(one) for one in (perfect.accuracy, perfect.balanced_accuracy, perfect.auc)] == [1.0, 1.0, 1.0]
    assert value(perfect.brier) == value(perfect.calibration_error) == 0.0
    assert holds(perfect.accuracy, 0.991) and perfect.accuracy.high == 1.0
    assert perfect.balanced_accuracy.low is None  # all samples are alike, which is no certainty
    guess = measure(np.full((400, 4), 0.25), labels, NAMES, resamples=200)
    assert value(guess.auc) == 0.5 and value(guess.accuracy) == 0.25 and value(guess.brier) == 0.75
    assert value(guess.calibration_error) == pytest.approx(0.0, abs=0.11)


def test_a_class_without_images_has_no_figures_and_harms_no_others() -> None:
    probabilities, labels = answers(classes=4)
    kept = labels != 2
    found = measure(probabilities[kept], labels[kept], NAMES, resamples=200)
    lacking = found.by_class[2]
    assert (lacking.images, lacking.sensitivity, lacking.auc) == (0, Figure(None), Figure(None))
    assert value(lacking.specificity) < 1 and lacking.few
    others = [found.by_class[k] for k in (0, 1, 3)]
    assert value(found.balanced_accuracy) == pytest.approx(np.mean([value(one.sensitivity) for one in others]))
    assert value(found.auc) == pytest.approx(np.mean([value(one.auc) for one in others]))


def test_no_images_and_answers_that_are_not_finite_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UseError, match="found no images to measure on"):
        measure(np.empty((0, 4)), np.empty(0, np.int64), NAMES)
    monkeypatch.setattr(OpenedModel, "probabilities", lambda self, images: np.full((len(images), 10), np.nan))
    digits, _ = load_digits_data(0)
    with pytest.raises(UseError, match="not finite to 5 of 5 images"):
        evaluate(opened(tmp_path, DIGITS), digits.subset(np.arange(5)))


# -- intervals ---------------------------------------------


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [(81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0.0, 0.1684), (1, 29, 0.0009, 0.1776)],
)
def test_exact_intervals_are_those_that_were_published(right: int, of: int, low: float, high: float) -> None:
    """Newcombe, Statistics in Medicine 1998, table I, method 5."""
    found = exact(right, of)
    assert [found.low, found.high] == pytest.approx([low, high], abs=5e-5)


def test_one_seed_gives_one_interval() -> None:
    assert measured() == measured() and measured().auc != measured(seed=1).auc


def binary(count: int, sharpness: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Answers of a model whose log odds are `sharpness` times what they should be."""
    random = np.random.default_rng(seed)
    odds = random.normal(0, 1.5, count)
    labels = (random.random(count) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    said = 1 / (1 + np.exp(-sharpness * odds))
    return np.stack([1 - said, said], axis=1), labels


@pytest.mark.parametrize(
    "sharpness", [pytest.param(1.0, id="calibrated", marks=pytest.mark.exhaustive), pytest.param(3.0, id="too sure")]
)
def test_intervals_hold_the_truth_as_often_as_they_say(sharpness: float) -> None:
    """Of 150 seeded samples of 200 images, at least 88 %: with a true 95 %, fewer happen once in 2,000 times."""
    truth = measure(*binary(100_000, sharpness, 9_999), ("no", "yes"), resamples=2)
    truly = {name: value(getattr(truth, name)) for name in ("accuracy", "balanced_accuracy", "auc", "brier")}
    truly["calibration_error"] = 0.0 if sharpness == 1 else value(truth.calibration_error)
    right = dict.fromkeys(truly, 0)
    for seed in range(150):
        found = measure(*binary(200, sharpness, seed), ("no", "yes"), resamples=200, seed=seed)
        for name, true in truly.items():
            right[name] += holds(getattr(found, name), true)
    assert all(count >= 0.88 * 150 for count in right.values()), right
    assert all(count < 150 for name, count in right.items() if name in ("auc", "brier")), right  # nor always


def persons(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ten images of each person, on all of which the model is right, or on none: a true accuracy of 0.7."""
    random = np.random.default_rng(seed)
    label = random.integers(0, 2, count)
    groups, labels = np.repeat(np.arange(count), 10), np.repeat(label, 10)
    answer = np.repeat(np.where(random.random(count) < 0.7, label, 1 - label), 10)
    return np.where(answer[:, None] == np.arange(2), 0.8, 0.2), labels, groups


def test_images_of_one_person_are_not_counted_as_independent() -> None:
    """40 persons' 400 images. The control, without their groups, holds the truth far less often than it says."""
    known = unknown = 0
    for seed in range(100):
        probabilities, labels, groups = persons(40, seed)
        found = measure(probabilities, labels, ("no", "yes"), groups=groups, resamples=200, seed=seed)
        known += holds(found.accuracy, 0.7)
        unknown += holds(exact(round(value(found.accuracy) * 400), 400), 0.7)
    assert known >= 86 and unknown < 60, (known, unknown)


def test_a_person_has_one_answer_of_all_its_images() -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.6, 0.4], [0.6, 0.4], [0.3, 0.7], [0.1, 0.9]])
    labels = np.array([0, 0, 1, 1, 1, 0, 1])
    groups = np.array([7, 7, 3, 3, 9, 5, 5])  # 5 is of two classes
    found = measure(probabilities, labels, ("no", "yes"), groups=groups, resamples=200).persons
    assert found is not None and (found.groups, found.mixed) == (3, 1)
    assert value(found.accuracy) == pytest.approx(2 / 3)  # 7: 0.65 for no; 3: 0.6 for yes; 9: 0.6 for no
    assert value(found.balanced_accuracy) == pytest.approx((1 + 0.5) / 2)


def test_groups_are_numbered_anyhow() -> None:
    probabilities, labels, groups = persons(20, 0)
    other = np.array([-5, 7, *range(100, 117), 10**12])[groups]
    one, two = (measure(probabilities, labels, ("no", "yes"), groups=given, resamples=200) for given in (groups, other))
    assert one == two


def test_a_class_that_is_all_right_is_as_sure_as_its_persons_are_many() -> None:
    groups = np.repeat(np.arange(4), 50)
    labels = np.repeat([0, 0, 1, 1], 50)
    found = measure(np.eye(2)[labels], labels, ("no", "yes"), groups=groups, resamples=200)
    assert found.by_class[0].sensitivity == exact(2, 2) and found.accuracy == exact(4, 4)


def test_samples_in_which_a_figure_is_often_undefined_give_no_interval() -> None:
    labels = np.array([1] + 30 * [0])
    found = measure(np.eye(2)[labels], labels, ("no", "yes"), resamples=200)
    assert value(found.by_class[1].auc) == 1.0 and found.by_class[1].auc.low is None
    assert Samples(np.arange(3), 50).figures(lambda weights: weights[:, :1] * np.nan) == [Figure(None)]


# -- the screen and the command ---------------------------------------------


def screen_of(found: Evaluation, width: int) -> str:
    console = Console(width=width, record=True, file=StringIO())
    for table in tables(found):
        console.print(table)
    return console.export_text()


@pytest.mark.parametrize("classes", [2, MOST_CLASSES, 16])
def test_tables_are_whole_on_80_columns(classes: int) -> None:
    labels = np.arange(5 * classes) % classes
    shares = np.full((len(labels), classes), 0.5 / classes) + 0.5 * np.eye(classes)[(labels + (labels == 1)) % classes]
    names = [f"a long name of a class, {number}" for number in range(classes)]
    shown = screen_of(measure(shares, labels, names, resamples=200), 80)
    assert (
        "…" not in shown.replace("a long name o…", "").replace("a long name …", "")
        and max(map(len, shown.splitlines())) <= 80
    )
    assert "100.0 (47.8-100.0)" in shown and "5*" in shown and f"* fewer than {FEW} images" in shown
    assert ("What is confused most" in shown) == (classes > MOST_CLASSES)


def test_parts_of_a_source(tmp_path: Path) -> None:
    model = opened(tmp_path, DIGITS)
    sizes = {part: len(labelled_images(model, "digits", part=part).images) for part in ("test", "train", "all")}
    assert sizes == {"test": 600, "train": 1197, "all": 1797}
    read = labelled_images(model, "digits")
    assert read.part == "test" and len(read.images) == 600


def test_a_folder_without_a_test_part_is_measured_whole(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(50):
        place = tmp_path / "scans" / "0123456789"[number % 10] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 5 * number, np.uint8)).save(place)
    read = labelled_images(opened(tmp_path, DIGITS), str(tmp_path / "scans"))
    assert read.part == "all" and len(read.images) == 50 and read.images.class_counts.tolist() == 10 * [5]


PIXELS = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)


def test_a_small_file_in_one_piece_needs_no_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS[:10], labels=np.arange(10))
    assert len(labelled_images(opened(tmp_path, DIGITS), str(tmp_path / "a.npz")).images) == 10
    with pytest.raises(DatasetError, match="too few to split off"):
        labelled_images(opened(tmp_path, DIGITS), str(tmp_path / "a.npz"), part="test")  # the control


def test_new_images_need_no_training_part_beside_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "later.npz", test_images=PIXELS, test_labels=np.arange(20) % 10)
    read = labelled_images(opened(tmp_path, DIGITS), str(tmp_path / "later.npz"))
    assert read.part == "all" and len(read.images) == 20
    with pytest.raises(DatasetError, match="lacks train_images"):  # the control: what a client learns from
        load_source(str(tmp_path / "later.npz"))


def test_a_person_in_both_parts_is_one(tmp_path: Path) -> None:
    parts = {
        f"{part}_{kind}": value
        for part in ("train", "test")
        for kind, value in (("images", PIXELS), ("labels", np.arange(20) % 10), ("groups", np.arange(20) // 2))
    }
    np.savez(tmp_path / "a.npz", **parts)
    images = labelled_images(opened(tmp_path, DIGITS), str(tmp_path / "a.npz"), part="all").images
    assert images.groups is not None and len(images) == 40 and len(np.unique(images.groups)) == 10


def test_what_a_models_numbers_mean_is_never_guessed(tmp_path: Path) -> None:
    words = np.array([f"kind {number}" for number in range(10)])
    np.savez(tmp_path / "a.npz", images=PIXELS[:10], labels=words)
    without, source = opened(tmp_path, DIGITS), str(tmp_path / "a.npz")
    with pytest.raises(UseError, match=r"has numbers alone, .*: --class-names with the names in the order"):
        labelled_images(without, source)
    told = tuple(reversed(words.tolist()))
    assert labelled_images(without, source, class_names=told).images.labels.tolist() == list(range(9, -1, -1))
    with pytest.raises(UseError, match="10 different ones are needed"):
        labelled_images(without, source, class_names=told[:3])


def test_what_numbers_mean_to_a_model_with_names_is_on_the_screen(tmp_path: Path) -> None:
    names = tuple(f"kind {number}" for number in range(10))
    write_checkpoint(tmp_path / MODEL, small_model(1), replace(DIGITS, class_names=names))
    np.savez(tmp_path / "a.npz", images=PIXELS[:10], labels=np.arange(10))
    with pytest.raises(UseError, match="has its own"):
        labelled_images(open_model(tmp_path, device="cpu"), str(tmp_path / "a.npz"), class_names=names)
    command = ["evaluate", str(tmp_path), str(tmp_path / "a.npz"), "--resamples", "200"]
    shown = CliRunner().invoke(cli.app, command)
    assert shown.exit_code == 0, shown.output
    assert "labels are numbers, in the order of class_names: 0 is 'kind 0', 1 is 'kind 1'" in shown.output


def test_names_that_are_told_are_shown_for_a_source_of_numbers(tmp_path: Path) -> None:
    opened(tmp_path, DIGITS)
    told = [f"kind {number}" for number in range(10)]
    command = ["evaluate", str(tmp_path), "digits", "--class-names", ",".join(told), "--resamples", "200"]
    found = json.loads(CliRunner().invoke(cli.app, [*command, "--json"]).stdout)
    assert [one["name"] for one in found["figures"]["by_class"]] == told
    assert "9 kind 9" in CliRunner().invoke(cli.app, command).stdout


def test_the_command_takes_a_bare_folder_and_what_data_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    for number in range(20):
        place = tmp_path / "scans" / str(number % 10) / f"p{number // 10}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[number]).save(place)
    model = opened(tmp_path, DIGITS)
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(
        cli.app, ["evaluate", str(model.path), "scans", "--groups", "folder", "--resamples", "200"]
    )
    assert shown.exit_code == 0, shown.output
    assert "of 2 groups" in shown.output
    with pytest.raises(DatasetError, match=r"a folder here is written \./scans"):
        labelled_images(model, "scans")


def test_the_command_prints_tables_or_json(tmp_path: Path) -> None:
    model = opened(tmp_path, DIGITS)
    command = ["evaluate", str(model.path), "digits", "--resamples", "200"]
    shown = CliRunner().invoke(cli.app, command)
    assert shown.exit_code == 0, shown.output
    assert "mlp of alice, federation federation, after 0 epochs" in shown.output
    assert "digits, its test part: 600 images" in shown.output
    found = json.loads(CliRunner().invoke(cli.app, [*command, "--json"]).stdout)
    digits = load_digits_data(0)[1]
    expected = evaluate(model, digits, resamples=200)
    assert found["figures"]["accuracy"]["value"] == value(expected.accuracy)
    assert found["figures"]["auc"]["low"] == expected.auc.low and found["part"] == "test"
    assert found["description"]["standardisation"] == {"mean": [0.3053], "std": [0.3761]}


def own_data() -> tuple[LabelledImages, LabelledImages]:
    train, test = load_digits_data(0)
    return train, changed(test, groups=np.arange(len(test)) // 3)


def test_the_command_counts_persons_where_the_source_knows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codream_clients.data.own_data.load_own_part", lambda reference: own_data)
    model = opened(tmp_path, DIGITS)
    done = CliRunner().invoke(cli.app, ["evaluate", str(model.path), "hospital:load", "--resamples", "200", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["figures"]["persons"]
    assert found["groups"] + found["mixed"] == 200
