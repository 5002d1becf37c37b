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
the model, the change of G, and the client's label shares, whose weighted mean is P. G's bytes come on top of the
model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from codream_clients.training import evaluate
from secure_codream.experiments.local_work import Batch, Stopwatch, label_loss, stage_seed, train_round, warm_up
from secure_codream.experiments.parameters import Change, FloatArray, Layout, SecureMean, require_one_architecture
from secure_codream.experiments.problem import Problem, Row
from secure_codream.experiments.representations import head

MODEL, GENERATOR, LABELS = "model", "generator", "labels"
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
    """The generator with its initial weights, which follow from the problem's seed."""
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


class GeneratingClient:
    """A client's copies of the model and of the generator."""

    def __init__(self, problem: Problem, client: int, settings: GeneratorSettings) -> None:
        self._problem, self._client, self._round, self._settings = problem, client, 0, settings
        self._model, self._shard = problem.fresh_model(0), problem.shards[client]
        self._generator = fresh_generator(problem, settings)
        self._state, self._weights = Layout.of_state(self._model), Layout.of_state(self._generator)
        counts = self._shard.class_counts
        self._shares = (counts / counts.sum()).astype(np.float32)

    def warm_up(self) -> float:
        """Train before the first round; returns the test accuracy."""
        warm_up(self._model, self._shard, self._problem, self._client)
        return evaluate(self._model, self._problem.test, self._problem.device)

    def work(self, public: Sequence[FloatArray]) -> Change:
        """One round: the change of the model and of G, and the own label shares, from (x, G, P)."""
        received, generator, pooled = public
        self._round += 1
        self._weights.write(self._generator, generator)
        if self._round > 1:
            self._state.write(self._model, received)
            self._train_with_generator(pooled)
        else:
            train_round(self._model, self._shard, self._problem, self._client, self._round)
        # n_ic / n_c times M for equal clients: the mean over clients is 1 for every label that there is.
        voice = np.divide(self._shares, pooled, out=np.zeros_like(pooled), where=pooled > 0)
        classifier = head(self._model, self._shard.classes)
        train_generator(self._generator, classifier, voice, self._draw(pooled, GENERATING), self._settings)
        return {
            MODEL: self._state.read(self._model) - received,
            GENERATOR: self._weights.read(self._generator) - generator,
            LABELS: self._shares,
        }

    def _train_with_generator(self, pooled: FloatArray) -> None:
        problem, settings, draw = self._problem, self._settings, self._draw(pooled, SAMPLING)
        classifier, counts = head(self._model, self._shard.classes), torch.from_numpy(pooled).to(problem.device)

        def objective(batch: Batch) -> torch.Tensor:
            noise, labels = draw(settings.batch)
            with torch.no_grad():
                made = self._generator(noise, labels)
            logits = functional.linear(made, classifier.weight, classifier.bias)
            return batch.loss + settings.alpha * label_loss(problem, logits, labels, counts)

        train_round(self._model, self._shard, problem, self._client, self._round, objective=objective)

    def _draw(self, pooled: FloatArray, stage: int) -> Draw:
        seed = stage_seed(self._problem, self._client, self._round, stage)
        return Draw(pooled, self._settings.noise, seed, self._problem.device)


@dataclass(frozen=True)
class FedGen:
    """See the module."""

    name: str = "fedgen"
    settings: GeneratorSettings = GeneratorSettings()

    def run(self, problem: Problem) -> Iterator[Row]:
        """See `Algorithm`.

        Raises:
            MixedArchitectures: clients with different models.
            NoLinearHead: a model whose representations cannot be told from its head.
        """
        require_one_architecture(self.name, problem)
        watch, classes = Stopwatch(len(problem.shards)), problem.test.classes
        clients = [GeneratingClient(problem, number, self.settings) for number in range(len(problem.shards))]
        model, generator = problem.fresh_model(0), fresh_generator(problem, self.settings)
        groups = {
            MODEL: Layout.of_state(model),
            GENERATOR: Layout.of_state(generator),
            LABELS: Layout.of_vector(LABELS, classes, 1.0),
        }
        mean = SecureMean(problem, groups, [client.work for client in clients])
        pooled: FloatArray = np.full(classes, 1 / classes, dtype=np.float32)
        yield watch.row(0, [client.warm_up() for client in clients])
        for round in range(1, problem.rounds + 1):
            states = [groups[MODEL].read(model), groups[GENERATOR].read(generator)]
            change = mean.exchange([*states, pooled])
            groups[MODEL].write(model, states[0] + change[MODEL])
            groups[GENERATOR].write(generator, states[1] + change[GENERATOR])
            pooled = without_rounding(change[LABELS])
            reached = evaluate(model, problem.test, problem.device)
            yield watch.row(
                round,
                [reached] * len(clients),
                server=reached,
                up=mean.traffic.up,
                down=mean.traffic.down,
                secure_steps=mean.secure_steps,
            )


def without_rounding(shares: NDArray[np.float64]) -> FloatArray:
    """Pooled label shares (K,), of which those that may be rounding alone are 0."""
    kept = np.where(shares > LEAST_SHARE / len(shares), shares, 0.0)
    return np.asarray(kept / kept.sum(), dtype=np.float32)
