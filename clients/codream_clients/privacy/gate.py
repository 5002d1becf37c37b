"""The gate for models that are trained privately: before anything is reserved, every record alone decides its gradient.

The bound of a step's noise holds if the sum moves by no more than one clipped gradient when one record comes or goes.
So no record may change what the model says of another in training, nothing may be kept of records but the weights, and
what the deployed training sums must be the clipped gradients that autograd finds record by record. Names of layers are
not enough: `x - x.mean(0)` mixes records without any layer, and a weight that is used past its layer is not seen by the
hooks that clip. All of it is tried on noise: no record is looked at.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from opacus.validators import ModuleValidator
from torch import nn
from torch.nn import functional

from codream_clients.data.datasets import LabelledImages
from codream_clients.models.gate import ask, changed, noise, same, seed, tried
from codream_clients.models.names import MODELS
from codream_clients.models.refusals import ModelRefused, failed
from codream_clients.privacy.accounting import SampledGaussian
from codream_clients.privacy.draws import BATCH, shared_draws
from codream_clients.privacy.memory import difference
from codream_clients.privacy.noise import KEY_BYTES, Stream
from codream_clients.privacy.plan import GradSampleMode, PrivacyPlan, PrivacySettings
from codream_clients.privacy.statistics import group_norms, vectors_of
from codream_clients.privacy.training import private_sgd

BOTH: tuple[GradSampleMode, ...] = ("hooks", "ghost")
DIFFERENCE = 1e-3
"""Part of the clipped sum by which float32 arithmetic may differ."""
EPSILON_OF_CLIPPING = 1e-6  # Opacus adds it to norms
STEP = 3  # seed of what a model draws in both
SEEDS, STEPS = 32, 32
"""How many random states records are told apart in, and steps after which nothing may be kept; for large models 1."""
SIZES = (5, 3, 16, 65)
"""Batches in which records are told apart, besides two; for large models the first."""
SECONDS = 0.1
"""Processor time of each of the three, which more than the fewest of them may take."""


def examine_private(
    model: object,
    images: torch.Tensor,
    *,
    classes: int,
    name: str,
    modes: Sequence[GradSampleMode] = BOTH,
    statistics: bool = False,
) -> None:
    """`examine`, and check that private training bounds what each record does to the model.

    Args:
        model: as `examine` takes it.
        images: `trial_images` of the task's shape, on the device that is trained on.
        classes: K.
        name: the model's, for the text.
        modes: the ways to clipped gradients that will be used.
        statistics: whether feature statistics are taken, which needs group norm.

    Raises:
        ModelRefused: with what was found and what to write instead; the model is as it was.
    """
    with tried(model, images, classes=classes, name=name) as trial:
        _layers_without_mixing(trial.train(), name)
        if statistics and not group_norms(trial):
            raise ModelRefused(
                "found no group norm, at whose inputs statistics_share of [privacy] takes its statistics; take "
                "nn.GroupNorm, or leave statistics_share at 0"
            )
        _nothing_kept(trial, images, classes)
        _nothing_drawn_for_all(trial, images, classes)
        _records_apart(trial, images, classes)
        if statistics:
            _measured_apart(trial, images)
        expected = _clipped_by_autograd(trial, images[:2])
        for mode in modes:
            _require_same_sum(trial, expected, images[:2], classes, mode)


def modes_of(settings: PrivacySettings) -> tuple[GradSampleMode, ...]:
    """The ways to clipped gradients that may be used."""
    return BOTH if settings.mode == "auto" else (settings.mode,)


def _layers_without_mixing(model: nn.Module, name: str) -> None:
    """Layers that are known not to do, by name; Opacus's `ModuleValidator` knows some more."""
    ours = name in MODELS
    group_norm = f"take {name}_gn, which has group norm" if ours else "take group norm, nn.GroupNorm(groups, channels)"
    instead = (
        (nn.modules.batchnorm._BatchNorm, f"it mixes records: {group_norm}"),
        (nn.RNNBase, "its gradients are not known record by record: take DPLSTM, DPGRU or DPRNN of opacus.layers"),
        (
            nn.MultiheadAttention,
            "its gradients are not known record by record: take opacus.layers.DPMultiheadAttention",
        ),
    )
    for layer in model.modules():
        for kind, what in instead:
            if isinstance(layer, kind):
                raise ModelRefused(f"found {type(layer).__name__}; under differential privacy {what}")
        if isinstance(layer, nn.modules.instancenorm._InstanceNorm) and layer.track_running_stats:
            raise ModelRefused(
                f"found {type(layer).__name__} with running statistics of the records; take track_running_stats=False"
            )
    for error in ModuleValidator.validate(model):
        raise ModelRefused(f"found a layer that is not trained privately: {failed(error)}")
    buffers = [key for key, _ in model.named_buffers()]
    if buffers:
        raise ModelRefused(
            f"found the buffers {', '.join(buffers)}; a layer that keeps state of the records is not trained "
            "privately: take one without, and for a constant nn.Parameter(values, requires_grad=False)"
        )


def _nothing_kept(model: nn.Module, images: torch.Tensor, classes: int) -> None:
    """Steps with other records change nothing in the model, nor what it says in either mode; a new copy is beside it.

    A copy that has run would have made whatever it keeps of the first batch.
    """
    new, used = copy.deepcopy(model), copy.deepcopy(model)
    others = changed(images, 0)[1:].repeat(len(images), 1, 1, 1)
    seed(STEP)
    torch.autograd.backward(ask(used.train(), others, classes, "in train mode").sum())
    with torch.no_grad():
        for number in _while_cheap(STEPS):
            seed(number)
            ask(used.train(), others, classes, "in train mode")
    used.zero_grad(set_to_none=True)
    name = difference(model, used)
    for training, when in ((False, "in eval mode"), (True, "in train mode")):
        said = []
        for network in (new, used):
            seed(STEP)
            with torch.no_grad():
                said.append(ask(network.train(training), images, classes, when))
        if name is None and not same(said[0], said[1], said[0]):
            name = "what it says"
    if name is not None:
        raise ModelRefused(
            f"it keeps something of the records that it has seen in train mode, which no noise covers: {name} has "
            "changed; let forward change no attribute and no weight, and compute constants in __init__"
        )


def _nothing_drawn_for_all(model: nn.Module, images: torch.Tensor, classes: int) -> None:
    """In train mode it draws for each record, never once for a batch."""
    batch = noise(images.shape[1:], BATCH, images.device, 0)
    with torch.no_grad(), shared_draws() as found:
        ask(model.train(), batch, classes, "in train mode")
        draws = found()
    if draws:
        raise ModelRefused(
            f"in train mode it draws one number for a whole batch, with {', '.join(draws)}: what that decides cannot "
            "all be tried; draw for each record, torch.rand(len(x), ...), and mix none: no mixup, no CutMix"
        )


def _records_apart(model: nn.Module, images: torch.Tensor, classes: int) -> None:
    """In train mode, what the model says of one record, and its gradient, stay when the others are changed."""

    def answers(batch: torch.Tensor, number: int = 1) -> torch.Tensor:
        seed(number)  # dropout leaves out the same
        return ask(model.train(), batch, classes, "in train mode")

    def alike(batch: torch.Tensor, kept: int, number: int) -> bool:
        usual = answers(batch, number)
        return same(answers(changed(batch, kept), number)[kept], usual[kept], usual)

    with torch.no_grad():
        usual = answers(images)
        apart = all(alike(images, number % len(images), number) for number in _while_cheap(SEEDS))
        if apart and same(answers(images, 2), usual, usual):  # no dropout: batches of other sizes compare
            apart = same(answers(images[:1])[0], usual[0], usual, 10 * DIFFERENCE)
    for number in _while_cheap(len(SIZES), growth=4.0):
        count = SIZES[number]
        apart = apart and _gradients_apart(model, noise(images.shape[1:], count, images.device, 0), classes, count // 2)
    if not apart:
        raise ModelRefused(
            "in train mode the answer for one record changes with the others: it mixes records, and no noise that is "
            "planned for one record covers that; take nothing over the batch (axis 0): means, attention, batch norm, "
            "the number of images"
        )


def _measured_apart(model: nn.Module, images: torch.Tensor) -> None:
    """What feature statistics take of one image stays when the others are changed; each gives one row."""

    def measured(batch: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(vectors_of(model, group_norms(model), batch.cpu().numpy(), batch.device))

    usual = measured(images)
    apart = (same(measured(changed(images, kept))[kept], usual[kept], usual) for kept in range(len(images)))
    if not all(apart):  # what is no number is not the same
        raise ModelRefused(
            "the inputs of its group norms have not one row for each image, or one that hangs on the others: "
            "statistics_share of [privacy] takes its statistics there, record by record; give each group norm as many "
            "rows as there are images, or leave statistics_share at 0"
        )


def _gradients_apart(model: nn.Module, batch: torch.Tensor, classes: int, kept: int) -> bool:
    """Whether a record's logits, and what they send back to weights and images, hang on no other of the batch."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    found = []
    for images in (batch.clone(), changed(batch, kept)):
        given = images.requires_grad_()
        seed(STEP)
        logits = ask(model.train(), given, classes, "in train mode")
        loss = functional.cross_entropy(logits[kept], torch.zeros((), dtype=torch.long, device=logits.device))
        sent, *moves = torch.autograd.grad(loss, [given, *weights], allow_unused=True, materialize_grads=True)
        strangers = torch.cat([sent[:kept], sent[kept + 1 :]])
        if not strangers.norm() <= DIFFERENCE * sent[kept].norm():
            return False
        found.append((logits.detach(), moves))
    (usual, ours), (other, theirs) = found
    apart = _norm([one - two for one, two in zip(ours, theirs, strict=True)])
    return same(usual[kept], other[kept], usual) and apart <= DIFFERENCE * _norm(ours)


def _while_cheap(most: int, *, growth: float = 1.0) -> Iterator[int]:
    """0, 1 and so on, `most` in all; after the first as long as the next, so much dearer, ends within `SECONDS`."""
    start = last = time.process_time()
    for number in range(most):
        yield number
        now = time.process_time()
        if now - start + growth * (now - last) > SECONDS:
            return
        last = now


@dataclass(frozen=True, eq=False)
class _Clipped:
    """The sum over records of their gradients, each clipped to `bound`; a tensor for each weight that is trained."""

    bound: float
    total: Sequence[torch.Tensor]


def _clipped_by_autograd(model: nn.Module, images: torch.Tensor) -> _Clipped:
    """What a step must sum, from each record's loss by itself, with a bound that clips them all.

    A norm that is found wrong then shows in the sum.
    """
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    seed(STEP)
    losses = functional.cross_entropy(model.train()(images.clone()), _labels(images), reduction="none")
    records = [
        torch.autograd.grad(loss, list(weights.values()), retain_graph=True, allow_unused=True) for loss in losses
    ]
    unused = [name for name, *parts in zip(weights, *records, strict=True) if all(part is None for part in parts)]
    if unused:
        raise ModelRefused(
            f"no record's loss depends on the weights {', '.join(unused)}; remove them, or set requires_grad to False"
        )
    norms = [_norm([part for part in record if part is not None]) for record in records]
    bound = min(norms) / 2
    if bound == 0:
        raise ModelRefused("in train mode a record's gradient is zero for every weight; nothing is learnt from it")
    total = [torch.zeros_like(weight) for weight in weights.values()]
    for record, norm in zip(records, norms, strict=True):
        for part, gradient in zip(total, record, strict=True):
            if gradient is not None:
                part.add_(gradient, alpha=bound / (norm + EPSILON_OF_CLIPPING))
    return _Clipped(bound, total)


def _require_same_sum(
    model: nn.Module, expected: _Clipped, images: torch.Tensor, classes: int, mode: GradSampleMode
) -> None:
    """One step of the deployed private training, without noise, sums the same."""
    trained = copy.deepcopy(model)
    inplace = [name for name, layer in model.named_modules() if getattr(layer, "inplace", False) is True]
    try:
        private_sgd(
            trained,
            LabelledImages(images.cpu().numpy(), _labels(images).cpu().numpy(), classes),
            plan=_without_noise(len(images), expected.bound, mode),
            steps=1,
            class_counts=None,
            stream=_KnownDraws(bytes(KEY_BYTES)),
            device=images.device,
        )
    except (Exception, SystemExit) as error:
        instead = f"; write inplace=False in {', '.join(inplace)}" if inplace else _other_mode(mode)
        raise ModelRefused(
            f"the first step of private training, mode {mode!r} of [privacy], fails: {failed(error)}{instead}"
        ) from error
    pairs = zip(trained.parameters(), model.parameters(), strict=True)
    moved = [before.detach() - after.detach() for after, before in pairs if before.requires_grad]
    scale = len(images) * expected.bound
    wrong = _norm([part * scale - wanted for part, wanted in zip(moved, expected.total, strict=True)])
    if not wrong <= DIFFERENCE * _norm(expected.total):
        raise ModelRefused(
            f"in mode {mode!r} of [privacy] the clipped gradients are not those of its records: their sum is off by "
            f"{wrong / _norm(expected.total):.0%}; call each layer itself, and once in a pass, in place of "
            f"functional.linear or functional.conv2d with its weight{_other_mode(mode)}"
        )


class _KnownDraws(Stream):
    """Of which layers draw what they drew in `_clipped_by_autograd`."""

    @contextmanager
    def hidden_draws(self, device: torch.device) -> Iterator[None]:
        seed(STEP)
        yield


def _norm(parts: Sequence[torch.Tensor]) -> float:
    return float(torch.stack([part.norm() for part in parts]).norm())


def _labels(images: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(images), device=images.device)  # there are two images, and two classes or more


def _other_mode(mode: GradSampleMode) -> str:
    return "; or take mode = 'hooks', if that passes" if mode == "ghost" else ""


def _without_noise(batch: int, bound: float, mode: GradSampleMode) -> PrivacyPlan:
    """A plan for one step with every record; the rate makes the sum's length one of order 1."""
    charge = SampledGaussian(1.0, 1.0, 1, "trial")
    return PrivacyPlan(
        settings=PrivacySettings(epsilon=1.0, batch_size=batch, max_grad_norm=bound, lr=1 / bound, mode=mode),
        epsilon=1.0,
        delta=0.5,
        sample_rate=1.0,
        histogram=charge,
        statistics=None,
        noise_multiplier=0.0,
        rounds=0,
    )
