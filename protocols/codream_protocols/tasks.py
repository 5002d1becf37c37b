"""The three kinds of vector of CoDream, as blocks: the vocabulary that clients and server share.

- `update`: a client's change of the dreams (or its gradient), its weight, and two figures for the people who watch:
  the entropy of its teacher on the dreams, and which fraction of the change was clipped. Weighted sums; the weight
  is secret.
- `logits`: numerators (N x K) and denominators (K) of the soft labels, so that class-aware labels need no
  histogram. N is B, or with V views of each dream, which the clients make, (1 + V) x B. A plan may ask for them
  half-way through the updates too.
- `metrics`: how the client fares after it has learnt from the dreams. There is no other channel for it. What it learns
  from goes out with the step: all dreams of the round, in one array, and their soft labels.

With client-level noise, each number that is sent takes a part of the privacy budget, and a figure for people would
drown in noise that is made for thousands of coordinates. So weights are 1 for everybody, `update` carries the change of
the dreams and nothing else, and `learn` takes the place of `metrics`: the same broadcast, answered by a constant.
"""

from __future__ import annotations

import math

from codream_protocols.plan import Block, VectorSpec

UPDATE, LOGITS, METRICS, LEARN = "update", "logits", "metrics", "learn"
METRIC_NAMES = ("accuracy", "tested", "train_accuracy")  # tested: 1 if the client has test images, else 0


def update_spec(coordinates: int, classes: int, clip: float) -> VectorSpec:
    """Dream update of `coordinates` = B x C x H x W values within [-clip, clip]; entropy in nats is at most log K."""
    return VectorSpec(
        UPDATE,
        (
            Block("dreams", coordinates, clip),
            Block("weight", 1, 1.0),
            Block("entropy", 1, max(1.0, math.log(classes))),
            Block("clipped", 1, 1.0),
        ),
    )


def bare_update_spec(coordinates: int, clip: float) -> VectorSpec:
    """Dream update of `coordinates` values within [-clip, clip] and nothing else, where all weights are 1."""
    return VectorSpec(UPDATE, (Block("dreams", coordinates, clip),))


def logits_spec(labels: int, classes: int, clip: float) -> VectorSpec:
    """Weighted logits (labels x classes) within [-clip, clip], and each class's weight in (0, 1]."""
    return VectorSpec(LOGITS, (Block("numerators", labels * classes, clip), Block("denominators", classes, 1.0)))


def metrics_spec() -> VectorSpec:
    """Figures in [0, 1], one for each of `METRIC_NAMES`."""
    return VectorSpec(METRICS, (Block("metrics", len(METRIC_NAMES), 1.0),))


def learn_spec() -> VectorSpec:
    """A 1 from each client that has learnt; nothing of its data."""
    return VectorSpec(LEARN, (Block("done", 1, 1.0),))
