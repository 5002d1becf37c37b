"""How clients fare, as sums of counts of images.

Counts, never fractions: a fraction with a small denominator can be told apart in a sum, and three accuracies on test
sets of 97, 101 and 103 images all follow from one. A client that has no test images, or does not tell, sends zeros.
"""

from __future__ import annotations

from codream_protocols.course import Sums
from codream_protocols.specs import MAX_COUNT, Block, VectorSpec

METRICS = "metrics"
HELD = ("held_correct", "held")
"""Images that clients hold back from training and get right, of how many; where the charter ends the run by them."""
COUNTS = ("correct", "tested", "train_correct", "trained")
"""Test images that the model gets right, of how many; images of its own training likewise."""


def metrics_spec(*, held: bool = False) -> VectorSpec:
    """One exact sum for each of `COUNTS`, and with `held` of `HELD`."""
    names = (*COUNTS, *HELD) if held else COUNTS
    return VectorSpec(METRICS, tuple(Block(name, 1, MAX_COUNT, "count") for name in names))


def metrics_figures(sums: Sums) -> dict[str, float | int | None]:
    """Accuracies over all images of all clients together, in [0, 1], None where there are none; and `tested`."""
    correct, tested, train_correct, trained = (int(sums[name][0]) for name in COUNTS)
    return {
        "accuracy": _share(correct, tested),
        "train_accuracy": _share(train_correct, trained),
        "tested": tested,
    }


def _share(part: int, whole: int) -> float | None:
    """A client may lie about its counts, so the part may be more than the whole."""
    return min(part / whole, 1.0) if whole > 0 else None
