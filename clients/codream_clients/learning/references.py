"""What a federation is measured against: every client alone, and all data in one place.

Gap closure = (CoDream - independent) / (centralised - independent): 0 is no better than alone, 1 as good as
pooling the data. It means something only if models, initial weights, data, epochs and loss are those of the
CoDream run; both references therefore take its `LearningSettings`, balanced softmax included, and as many
epochs as a CoDream client has in all, its distillation epochs counted.
"""

from collections.abc import Sequence

import torch
from torch import nn

from codream_clients.data.datasets import LabelledImages, pool
from codream_clients.learning.participant import LearningSettings
from codream_clients.learning.training import evaluate, train_local


class ComparisonError(ValueError):
    """The references cannot be computed from such input."""


def reference_epochs(settings: LearningSettings, rounds: int) -> int:
    """Epochs of a CoDream client in all: warm-up, and distillation and local training in the rounds that have them."""
    return settings.warm_up_epochs + sum(settings.epochs_in(round) for round in range(1, rounds + 1))


def train_independent(
    models: Sequence[nn.Module],
    shards: Sequence[LabelledImages],
    test: LabelledImages,
    settings: LearningSettings,
    *,
    rounds: int,
    seeds: Sequence[int],
    device: torch.device,
) -> list[float]:
    """Train client i's model in place on shard i alone; accuracies on `test`, each in [0, 1].

    `models` must be fresh, built as the federation's; `seeds` are the clients'. No dreams, the same settings,
    `reference_epochs` epochs. Raises `ComparisonError` unless there are as many models as shards and seeds.
    """
    if not len(models) == len(shards) == len(seeds) > 0:
        raise ComparisonError(
            f"{len(models)} models, {len(shards)} shards, {len(seeds)} seeds; as many of each are needed"
        )
    accuracies = []
    for model, shard, seed in zip(models, shards, seeds, strict=True):
        train_local(
            model,
            shard,
            epochs=reference_epochs(settings, rounds),
            batch_size=settings.batch_size,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            balanced=settings.balanced,
            seed=seed,
            device=device,
            schedule=settings.schedule,
        )
        accuracies.append(evaluate(model, test, device))
    return accuracies


def train_centralised(
    models: Sequence[nn.Module],
    shards: Sequence[LabelledImages],
    test: LabelledImages,
    settings: LearningSettings,
    *,
    rounds: int,
    seeds: Sequence[int],
    device: torch.device,
) -> list[float]:
    """Train each model in place on all shards pooled; accuracies on `test`, each in [0, 1].

    Arguments and errors as in `train_independent`.
    """
    pooled = pool(list(shards))
    return train_independent(models, [pooled] * len(models), test, settings, rounds=rounds, seeds=seeds, device=device)


def gap_closure(codream: float, independent: float, centralised: float) -> float:
    """(codream - independent) / (centralised - independent), from mean accuracies in [0, 1].

    Raises `ComparisonError` if centralised is not above independent: then there is no gap to close.
    """
    if not centralised > independent:
        raise ComparisonError(
            f"centralised {centralised:.4f} is not above independent {independent:.4f}; no gap to close: "
            "use less data per client or more skew"
        )
    return (codream - independent) / (centralised - independent)
