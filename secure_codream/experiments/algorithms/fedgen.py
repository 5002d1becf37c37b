"""FedGen: FedAvg with a generator of representations, which tells each client's head what the others have seen.

Zhu, Hong, Zhou, "Data-free knowledge distillation for heterogeneous federated learning", ICML 2021. G(z, y) gives a
representation, the input of a model's head, for label y and noise z.
- A client trains its model on plain loss + alpha * E_{y ~ P} loss(head(G(z, y)), y), where P is the pooled share of
  each label; only the head has a gradient from the second term. In the first round there is no generator yet.
- The generator is trained so that the clients' heads recognise its label, each head weighted by how much of the label
  is its own, and so that different noise gives different representations (the authors' diversity term).

The authors' server trains G on the clients' heads, which it can see. Here it sees only sums. The loss of G is a sum
over clients, so each client takes Adam steps on its own term, and the change of G is averaged as the model's is; this
is FedAvg on G, equal to the paper's where a round has one step. Three things go into the one secure sum: the change of
the model, the change of G, and how far the client's label shares are from the last P, which so becomes their weighted
mean. G's bytes come on top of the model's. The course and the learner are made here: nobody deploys them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from codream_clients.learning.local_work import Batch, head, label_loss, stage_seed
from codream_clients.models.layouts import FloatArray, layout_of, read_vector, write_vector
from codream_clients.parameter_learner import AveragingLearner, Kept
from codream_protocols.course import Array, Arrays, Publication, State
from codream_protocols.courses import parameters as courses
from codream_protocols.courses.layouts import Layout, for_each, initial_weights, is_statistic
from codream_protocols.courses.numbers import bounded
from codream_protocols.courses.parameters import WEIGHTS, AveragingSettings
from secure_codream.experiments.algorithms.own_images import of_own_images
from secure_codream.experiments.algorithms.secure_mean import (
    averaging_course,
    averaging_learners,
    averaging_rows,
    require_one_architecture,
)
from secure_codream.experiments.problem import Problem, Row

GENERATOR, LABELS = "generator", "labels"
SAMPLING, GENERATING = 3, 4  # stages of a round that draw noise
LEAST_SHARE = 0.02  # of an even share: a label that is rarer counts as absent


@dataclass(frozen=True, kw_only=True)
class GeneratorSettings:
    """How the generator is built, trained and listened to.

    Attributes:
        noise: size of z.
        hidden: width of the hidden layer.
        steps: Adam steps of each client in a round.
        lr: their rate.
        batch: representations in a step, of G's training and of a client's.
        alpha: weight of generated representations in a client's loss.
    """

    noise: int = 32
    hidden: int = 64
    steps: int = 100
    lr: float = 3e-3
    batch: int = 32
    alpha: float = 1.0


class Generator(nn.Module):
    """(z, y) -> a representation of `width` numbers, by one hidden layer."""

    def __init__(self, settings: GeneratorSettings, classes: int, width: int) -> None:
        super().__init__()
        self.noise, self.classes = settings.noise, classes
        self.layers = nn.Sequential(
            nn.Linear(settings.noise + classes, settings.hidden),
            nn.BatchNorm1d(settings.hidden),
            nn.ReLU(),
            nn.Linear(settings.hidden, width),
        )

    def forward(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Representations (B, width) for noise (B, Z) and labels (B,)."""
        inputs = torch.cat([noise, functional.one_hot(labels, self.classes).to(noise.dtype)], dim=1)
        out: torch.Tensor = self.layers(inputs)
        return out


def fresh_generator(problem: Problem, settings: GeneratorSettings) -> Generator:
    """A generator that fits the problem's model; its weights are to be replaced, and follow from the problem's seed."""
    width = head(problem.fresh_model(0), problem.test.classes).in_features
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(problem.seed)
        generator = Generator(settings, problem.test.classes, width)
    return generator.to(problem.device).eval()


class Draw:
    """Labels and noise for a generator, from a seed of their own.

    Args:
        shares: the labels' probabilities, (K,).
        noise: size of z.
        seed: fixes all draws.
        device: where they are needed.
    """

    def __init__(self, shares: FloatArray, noise: int, seed: int, device: torch.device) -> None:
        self._shares, self._noise, self._device = torch.from_numpy(shares).clamp(min=0), noise, device
        self._random = torch.Generator().manual_seed(seed)

    def __call__(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise (count, Z) and labels (count,)."""
        labels = torch.multinomial(self._shares, count, replacement=True, generator=self._random)
        noise = torch.randn(count, self._noise, generator=self._random)
        return noise.to(self._device), labels.to(self._device)


def diversity_loss(noise: torch.Tensor, representations: torch.Tensor) -> torch.Tensor:
    """exp(-mean over pairs of |z - z'|^2 * |r - r'|), both means over coordinates: in (0, 1], 1 if all are alike."""
    far = (noise[:, None] - noise[None]).square().mean(dim=2)
    apart = torch.cdist(representations, representations, p=1) / representations.shape[1]
    return torch.exp(-(far * apart).mean())


def train_generator(
    generator: Generator, classifier: nn.Linear, weights: FloatArray, draw: Draw, settings: GeneratorSettings
) -> float:
    """Train `generator` in place against one client's head.

    Args:
        generator: left in eval mode.
        classifier: the client's head; not changed.
        weights: the client's voice in each label, (K,), at least 0.
        draw: labels and noise.
        settings: steps, rate and batch.

    Returns:
        The last step's loss.
    """
    voice = torch.from_numpy(weights).to(classifier.weight.device)
    weight = classifier.weight.detach()
    bias = None if classifier.bias is None else classifier.bias.detach()
    optimiser = torch.optim.Adam(generator.parameters(), lr=settings.lr)
    generator.train()
    loss = torch.zeros(())
    for _ in range(settings.steps):
        noise, labels = draw(settings.batch)
        made = generator(noise, labels)
        recognised = functional.cross_entropy(functional.linear(made, weight, bias), labels, reduction="none")
        loss = (voice[labels] * recognised).mean() + diversity_loss(noise, made)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
    generator.eval()
    return float(loss.detach())


class GenerativeAveraging(courses.FedAvg):
    """FedGen as a course: FedAvg whose state has G's parameters and the pooled label shares too.

    State: as `FedAvg`, and `generator` float32, one number for each of G's, and `labels` float32 (K,), P, even at
    first.

    Args:
        settings: of the averaging.
        generator: G's layout.
        classes: K.
    """

    def __init__(self, settings: AveragingSettings, generator: Layout, classes: int) -> None:
        super().__init__(settings)
        # Their names are their streams': none may be one of the model's.
        self._generator = tuple((f"generator.{name}", shape) for name, shape in generator)
        high = for_each(generator, lambda name: settings.statistic_bound if is_statistic(name) else settings.bound)
        low = np.where(for_each(generator, lambda name: name.endswith("running_var")) > 0, 0.0, -high)
        self._bounds |= {GENERATOR: (low, high), LABELS: (np.zeros(classes), np.ones(classes))}
        self._clips |= {
            GENERATOR: for_each(
                generator, lambda name: settings.statistic_clip if is_statistic(name) else settings.clip
            ),
            LABELS: np.ones(classes),
        }

    def start(self, seed: bytes, certified: int, last: Publication | None) -> State:
        """See `FedAvg`."""
        state = super().start(seed, certified, last)
        low, high = self._bounds[GENERATOR]
        classes = len(self._clips[LABELS])
        fresh = {
            GENERATOR: bounded(initial_weights(self._generator, seed), high, low),
            LABELS: np.full(classes, 1 / classes, dtype=np.float32),
        }
        return {**fresh, **state} if last is None else state


class GeneratingLearner(AveragingLearner):
    """FedGen's client, with its copy of the generator.

    Args:
        generator: makes one of the course's layout, whose weights are then replaced.
        generating: how it is trained and listened to.
    """

    def __init__(
        self,
        course: courses.FedAvg,
        *parts: Any,
        generator: Callable[[], Generator],
        generating: GeneratorSettings,
        **options: Any,
    ) -> None:
        super().__init__(course, *parts, **options)
        self._generator, self._generating = generator(), generating
        self._weights = layout_of(self._generator)
        counts = self._data.class_counts
        self._shares = (counts / counts.sum()).astype(np.float32)

    def _work(self, arrays: Arrays, kept: Kept) -> tuple[dict[str, Array], Kept]:
        """The changes of the model, of G and of the pooled label shares."""
        received, generator, pooled = arrays[WEIGHTS], arrays[GENERATOR], without_rounding(arrays[LABELS])
        write_vector(self._generator, self._weights, generator)
        if kept.rounds:
            self._train_with_generator(received, pooled, kept)
        else:
            self._train(received, kept)  # there is no generator yet that has learnt anything
        # n_ic / n_c times M for equal clients: the mean over clients is 1 for every label that there is.
        voice = np.divide(self._shares, pooled, out=np.zeros_like(pooled), where=pooled > 0)
        classifier = head(self.model, self._data.classes)
        train_generator(self._generator, classifier, voice, self._draw(pooled, kept, GENERATING), self._generating)
        changes = {
            WEIGHTS: self._moved(received),
            GENERATOR: read_vector(self._generator, self._weights) - generator,
            LABELS: self._shares - arrays[LABELS],
        }
        return changes, Kept(kept.rounds + 1)

    def _train_with_generator(self, received: Array, pooled: FloatArray, kept: Kept) -> None:
        settings, draw = self._generating, self._draw(pooled, kept, SAMPLING)
        classifier, counts = head(self.model, self._data.classes), torch.from_numpy(pooled).to(self._device)

        def objective(batch: Batch) -> torch.Tensor:
            noise, labels = draw(settings.batch)
            with torch.no_grad():
                made = self._generator(noise, labels)
            logits = functional.linear(made, classifier.weight, classifier.bias)
            return batch.loss + settings.alpha * label_loss(self._settings, logits, labels, counts)

        self._train(received, kept, objective)

    def _draw(self, pooled: FloatArray, kept: Kept, stage: int) -> Draw:
        return Draw(pooled, self._generating.noise, stage_seed(self._seed, kept.rounds + 1, stage), self._device)


@dataclass(frozen=True)
class FedGen:
    """See the module."""

    name: str = "fedgen"
    settings: GeneratorSettings = GeneratorSettings()

    goes_by = of_own_images

    def run(self, problem: Problem) -> Iterator[Row]:
        """See `Algorithm`.

        Raises:
            MixedArchitectures: clients with different models.
            NoLinearHead: a model whose representations cannot be told from its head.
        """
        require_one_architecture(self.name, problem)
        course = self.course(problem)
        learners = averaging_learners(
            problem,
            course,
            GeneratingLearner,
            generator=lambda: fresh_generator(problem, self.settings),
            generating=self.settings,
        )
        yield from averaging_rows(problem, course, learners)

    def course(self, problem: Problem) -> GenerativeAveraging:
        """What the clients do."""
        layout = layout_of(fresh_generator(problem, self.settings))
        return GenerativeAveraging(averaging_course(problem, "fedavg").settings, layout, problem.test.classes)


def without_rounding(shares: Array) -> FloatArray:
    """Pooled label shares (K,), of which those that may be rounding alone are 0."""
    kept = np.where(shares > LEAST_SHARE / len(shares), shares, 0.0)
    return np.asarray(kept / kept.sum(), dtype=np.float32)
