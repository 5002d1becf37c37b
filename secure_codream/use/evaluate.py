"""What a model is worth on labelled images, in figures of which each has an interval.

With K classes, and p the probabilities that the model gives:

    accuracy            the share of images whose class has the largest p
    balanced accuracy   the mean of the classes' sensitivities, over those that have images: a rare class counts as much
    AUC                 of each class against all others, and the mean over classes
    sensitivity         of a class: the share of its images that are taken for it
    specificity         of a class: the share of all other images that are not
    Brier score         mean of sum_k (p_k - y_k)^2, halved for two classes, as is usual (Brier, Monthly Weather Review
                        1950)
    calibration error   mean of |accuracy - largest p| over 15 bins of equally many images (Naeini et al., AAAI 2015;
                        Nixon et al., CVPR workshops 2019): how far what the model is sure of is from how often it is
                        right

A calibration error is never 0 on few images, nor are its samples. Beside it stands what a model that is perfectly
calibrated would stay below on these images in 95 of 100 cases (Broecker and Smith, Weather and Forecasting 2007), the
images taken as independent; up to there 0 is in its interval.

Where it is known whose each image is, a person has figures, too: the mean of p over a person's images is one answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from codream_clients.data.datasets import LabelledImages
from secure_codream.use.intervals import (
    AT_ONCE,
    CONFIDENCE,
    RESAMPLES,
    Figure,
    Floats,
    Samples,
    Statistic,
    areas,
    exact,
    shares,
)
from secure_codream.use.model import OpenedModel, UseError

BINS = 15
FEW = 30
"""A class with fewer images than this is marked: its figures say little."""


class ClassFigures(msgspec.Struct, frozen=True):
    """One class against all others."""

    name: str
    images: int
    few: bool
    sensitivity: Figure
    specificity: Figure
    auc: Figure


class PersonFigures(msgspec.Struct, frozen=True):
    """Each group of images as one answer. `mixed` groups, whose images have several labels, are left out."""

    groups: int
    mixed: int
    accuracy: Figure
    balanced_accuracy: Figure


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """All figures; `confusion` has a row for each class as it is, and a column for each that it is taken for."""

    images: int
    confidence: float = CONFIDENCE
    resamples: int
    seed: int
    accuracy: Figure
    balanced_accuracy: Figure
    auc: Figure
    brier: Figure
    calibration_error: Figure
    calibrated_up_to: float
    by_class: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]
    persons: PersonFigures | None


def evaluate(
    model: OpenedModel,
    images: LabelledImages,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> Evaluation:
    """Measure a model.

    Args:
        model: the model.
        images: on its scale, as `OpenedModel.standardised` gives them.
        resamples: samples of each resampled interval.
        seed: of these.
        names: of the classes, where the model's file has none.

    Raises:
        UseError: there are no images, or an answer is not finite.
    """
    probabilities = model.probabilities(images.images)
    if bad := int((~np.isfinite(probabilities)).any(axis=1).sum()):
        raise UseError(f"found answers that are not finite to {bad} of {len(images)} images; finite ones are needed")
    shown = model.description.names if names is None else names
    return measure(probabilities, images.labels, shown, groups=images.groups, resamples=resamples, seed=seed)


def measure(
    probabilities: Floats,
    labels: NDArray[np.int64],
    names: Sequence[str],
    *,
    groups: NDArray[np.int64] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """The figures of probabilities (N, K), finite, for images with these labels (N,); K names.

    Raises:
        UseError: N is 0.
    """
    if not len(labels):
        raise UseError("found no images to measure on; at least one is needed")
    known = groups is not None
    units = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1].astype(np.int64)
    samples = Samples(units, resamples, seed)
    answers = probabilities.argmax(axis=1)
    each = np.arange(len(names))
    truly, taken = labels[:, None] == each, answers[:, None] == each
    right, everything = (answers == labels)[:, None], np.ones((len(labels), 1), bool)
    counted, of = np.hstack([right, taken, ~taken]), np.hstack([everything, truly, ~truly])
    balance, area, resampled_shares = (
        _balanced(truly, taken),
        _with_mean(areas(probabilities, truly)),
        shares(counted, of),
    )
    squares = ((probabilities - truly) ** 2).sum(axis=1) / (2 if len(names) == 2 else 1)
    surplus, bins = _calibration(probabilities, answers == labels)
    chance = _calibrated_up_to(probabilities.max(axis=1), bins, resamples, seed)
    balanced, brier, error, *others = samples.figures(  # of all, on the same samples
        lambda weights: np.hstack(
            [
                balance(weights),
                (weights @ squares / weights.sum(axis=1))[:, None],
                _error(weights * surplus, weights, bins),
                area(weights),
                *([resampled_shares(weights)] if known else []),
            ]
        )
    )
    class_areas, mean_area = others[: len(names)], others[len(names)]
    accuracy, *of_classes = (
        [_of_groups(figure, units[of[:, number]]) for number, figure in enumerate(others[len(names) + 1 :])]
        if known
        else [exact(int(one.sum()), int(other.sum())) for one, other in zip((counted & of).T, of.T, strict=True)]
    )
    sensitivities, specificities = of_classes[: len(names)], of_classes[len(names) :]
    if error.value is not None and error.value <= chance:
        error = Figure(error.value, 0.0, error.high)
    return Evaluation(
        images=len(labels),
        resamples=resamples,
        seed=seed,
        accuracy=accuracy,
        balanced_accuracy=balanced,
        auc=mean_area,
        brier=brier,
        calibration_error=error,
        calibrated_up_to=chance,
        by_class=tuple(
            ClassFigures(
                name=name,
                images=int(truly[:, number].sum()),
                few=bool(truly[:, number].sum() < FEW),
                sensitivity=sensitivities[number],
                specificity=specificities[number],
                auc=class_areas[number],
            )
            for number, name in enumerate(names)
        ),
        confusion=tuple(
            tuple(np.bincount(answers[truly[:, number]], minlength=len(names)).tolist()) for number in each
        ),
        persons=_of_persons(probabilities, labels, units, names, resamples, seed) if known else None,
    )


def _of_groups(share: Figure, units: NDArray[np.int64]) -> Figure:
    """A resampled share of images that are of these units; exact, of whole groups, where no sample says otherwise."""
    if share.value in (0.0, 1.0) and share.low is None:
        persons = len(np.unique(units))
        return exact(round(share.value) * persons, persons)
    return share


def _of_persons(
    probabilities: Floats,
    labels: NDArray[np.int64],
    units: NDArray[np.int64],
    names: Sequence[str],
    resamples: int,
    seed: int,
) -> PersonFigures:
    count = np.bincount(units)
    mean = np.stack([np.bincount(units, column) for column in probabilities.T], axis=1) / count[:, None]
    label = np.zeros(len(count), np.int64)
    label[units] = labels
    mixed = np.zeros(len(count), bool)
    np.logical_or.at(mixed, units, labels != label[units])
    whole = ~mixed
    if not whole.any():
        return PersonFigures(0, int(mixed.sum()), Figure(None), Figure(None))
    answers, truth = mean[whole].argmax(axis=1), label[whole]
    samples = Samples(np.arange(len(truth)), resamples, seed)
    each = np.arange(len(names))
    return PersonFigures(
        groups=len(truth),
        mixed=int(mixed.sum()),
        accuracy=exact(int((answers == truth).sum()), len(truth)),
        balanced_accuracy=samples.figures(_balanced(truth[:, None] == each, answers[:, None] == each))[0],
    )


def _balanced(truly: NDArray[np.bool_], taken: NDArray[np.bool_]) -> Statistic:
    right = (truly & taken).astype(np.float64)
    of_class = truly.astype(np.float64)

    def statistic(weights: Floats) -> Floats:
        counts = weights @ of_class
        found = np.divide(weights @ right, counts, out=np.zeros_like(counts), where=counts > 0)
        means: Floats = found.sum(axis=1) / (counts > 0).sum(axis=1)
        return means[:, None]

    return statistic


def _with_mean(class_areas: Statistic) -> Statistic:
    """The areas of the classes, and their mean over those that have one."""

    def statistic(weights: Floats) -> Floats:
        found = class_areas(weights)
        defined = ~np.isnan(found)
        counts = defined.sum(axis=1, keepdims=True)
        total = np.where(defined, found, 0.0).sum(axis=1, keepdims=True)
        return np.hstack([found, np.divide(total, counts, out=np.full_like(total, np.nan), where=counts > 0)])

    return statistic


def _calibration(probabilities: Floats, right: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """By how much each image (N,) is right beyond what was said, and which bin it is in, (N, bins)."""
    confidences = probabilities.max(axis=1)
    number = np.empty(len(confidences), np.int64)
    bins = min(BINS, len(confidences))
    number[np.argsort(confidences, kind="stable")] = np.arange(len(confidences)) * bins // len(confidences)
    return right - confidences, (number[:, None] == np.arange(bins)).astype(np.float64)


def _error(surplus: Floats, weights: Floats, bins: Floats) -> Floats:
    """Calibration error (R, 1) of weighted surpluses (R, N)."""
    error: Floats = np.abs(surplus @ bins).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
    return error


def _calibrated_up_to(confidences: Floats, bins: Floats, resamples: int, seed: int) -> float:
    random, rows = np.random.default_rng(seed), max(1, AT_ONCE // len(confidences))
    drawn = []
    for first in range(0, resamples, rows):
        shape = (min(rows, resamples - first), len(confidences))
        drawn.append(_error((random.random(shape) < confidences) - confidences, np.ones(shape), bins))
    return float(np.quantile(np.concatenate(drawn), CONFIDENCE))
