"""The dreams of a round as a page shows them: how many of each class; a selection, with its starts and its labels."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secure_codream.reports.pictures import data_uri, picture
from secure_codream.reports.run_folder import Dreams

DREAMS_SHOWN = 20


@dataclass(frozen=True)
class DreamView:
    """A dream with what it began as, where that is known, and its three likeliest classes and their probabilities."""

    start: str | None
    uri: str
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class DreamRound:
    """The dreams of a round: how many in all, how many of each class, and a selection."""

    number: int
    total: int
    shape: str
    by_class: list[tuple[int, float]]
    shown: list[DreamView]


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def dream_round(number: int, dreams: Dreams, starts: npt.NDArray[np.float32] | None = None) -> DreamRound:
    """The dreams of round `number`, from 0, and what they began as; half-way dreams began as the final ones did."""
    probabilities = _softmax(dreams.logits)
    predicted = probabilities.argmax(axis=1)
    counts = np.bincount(predicted, minlength=probabilities.shape[1])
    chosen = _most_confident_in_turn(probabilities)
    return DreamRound(
        number=number,
        total=len(predicted),
        shape=" × ".join(map(str, dreams.images.shape[1:])),
        by_class=[(int(count), float(count) / max(1, int(counts.max()))) for count in counts],
        shown=[
            DreamView(
                start=None if starts is None else data_uri(picture(starts[i % len(starts)])),
                uri=data_uri(picture(dreams.images[i])),
                top=[(int(k), float(probabilities[i, k])) for k in np.argsort(-probabilities[i])[:3]],
            )
            for i in chosen
        ],
    )


def _most_confident_in_turn(probabilities: npt.NDArray[np.float64]) -> list[int]:
    """Of each class the most confident, then of each the second, and so on; the result is by class."""
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    ranks: Counter[int] = Counter()
    ranked = []
    for i in np.argsort(-confidence, kind="stable"):
        k = int(predicted[i])
        ranked.append((ranks[k], k, int(i)))
        ranks[k] += 1
    taken = sorted(ranked)[:DREAMS_SHOWN]
    return [i for _, _, i in sorted(taken, key=lambda entry: (entry[1], entry[0]))]
