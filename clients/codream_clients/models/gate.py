"""The gate for models: what a model is needed for is tried on noise, before anything is trained, reserved or sent.

A model makes dreams (the gradient of its logits with respect to images, in eval mode), labels them (eval mode), learns
(train mode), is copied, and is kept as a `state_dict`. `examine` does each of these once, in well under a second, and
refuses what would fail hours later, or in silence. It looks at no image of anybody.

All is done to a copy, so that the model is as it was, also when it is refused. On the copy, weights that begin at one
value (a gain of 0 in front of a branch, a head of zeros) are moved first: they hide what the trained model will do.
Batch norm is taken, though in training it mixes records; what mixes them in eval mode is not, since a label must not
depend on who shares the batch. Private training asks for more (`codream_clients.privacy.gate`).
"""

import copy
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional
from torch.nn.parameter import is_lazy

from codream_clients.models.outputs import NO_LOGITS, check_form, kept_range, last_function, normalised
from codream_clients.models.refusals import GIVEN, ModelRefused, failed

MOVED = 0.1
"""Deviation of the noise on weights that begin at one value; divided by the root of the inputs in a matrix."""
LARGER = 30.0
"""Factor on weights with which logits leave -1 to 1, unless something keeps them there."""
SAME, SAME_IN_ANOTHER_BATCH = 1e-3, 1e-2
"""Parts of the logits' spread by which arithmetic may differ; another size of batch may take another algorithm."""


MOST_IDLE = 0.5
"""Part of the weights that may get no gradient."""
WITHOUT_A_GRADIENT = (2, 2, 2, 16)
"""Sizes of the batches of which none may give a weight a gradient, before it counts as one that is never trained."""


class ModelWarning(UserWarning):
    """A model is taken that is seldom meant so: weights that are never trained, or bounded logits."""


def trial_images(shape: tuple[int, int, int], *, classes: int, device: torch.device) -> torch.Tensor:
    """Standard normal noise (B, C, H, W) from a fixed generator: 2 images, or 3 where K is 2, so that B is never K."""
    return noise(shape, 3 if classes == 2 else 2, device, 0)


def noise(shape: Sequence[int], count: int, device: torch.device, which: int) -> torch.Tensor:
    """Standard normal noise (count, C, H, W), the same for the same `which`."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(which)).to(device)


def examine(model: object, images: torch.Tensor, *, classes: int, name: str = GIVEN) -> None:
    """Check that `model` can make dreams, label them, learn, and be kept.

    Args:
        model: (N, C, H, W) float32 to logits (N, K) float32, for any N, in eval mode; in train mode from N = 2 on.
        images: `trial_images` of the task's shape, on the device that the model will be on.
        classes: K.
        name: the model's, for the text.

    Raises:
        ModelRefused: with what was found and what to write instead. The model, its modes, its gradients and all random
            states are as they were, as they are otherwise.

    Warns with `ModelWarning`.
    """
    with tried(model, images, classes=classes, name=name):
        pass


@contextmanager
def tried(model: object, images: torch.Tensor, *, classes: int, name: str) -> Iterator[nn.Module]:
    """What `examine` does, and then a copy that has not run yet, for more of the same; refusals get the name."""
    try:
        network = _checked_weights(model)
        with _as_it_was(network, images.device):
            trial, fresh = _copied(network, images.device), _copied(network, images.device)
            _kept(trial)
            logits = _answers(trial, images, classes)
            _move_constants(trial)
            _move_constants(fresh)
            said = _unbent(trial, logits, images, classes, "in eval mode")
            _dreams(trial, images, classes)
            said += _learns(trial, images[:2], classes)
            _copied(trial, images.device, with_weights=False, after="after a step in train mode ")
            yield fresh
    except ModelRefused as error:
        raise ModelRefused(f"{name}: {error}") from error.__cause__
    frozen = [weight.requires_grad for weight in network.parameters()].count(False)
    if frozen:
        total = len(list(network.parameters()))
        said.append(f"{frozen} of {total} weight tensors have requires_grad False; they are never trained")
    for text in dict.fromkeys(said):
        warnings.warn(f"{name}: {text}", ModelWarning, stacklevel=4)


def require_own_weights(models: Sequence[nn.Module]) -> None:
    """Check that no two models of a list have a parameter or a buffer in common.

    Raises:
        ModelRefused: naming the first two that have.
    """
    owners: dict[tuple[torch.device, int], tuple[int, str]] = {}
    for number, model in enumerate(models):
        own: dict[tuple[torch.device, int], tuple[int, str]] = {}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if is_lazy(tensor) or tensor.numel() == 0 or tensor.is_meta:
                continue
            place = (tensor.device, tensor.untyped_storage().data_ptr())
            if place in owners:
                first, theirs = owners[place]
                same = "are one object" if models[first] is model else f"share the weights {theirs}"
                raise ModelRefused(
                    f"models: number {first} and number {number} {same}; each client needs its own: build a model for "
                    "each, [build() for _ in range(n)], or copy.deepcopy one"
                )
            own[place] = (number, name)
        owners.update(own)


@contextmanager
def _as_it_was(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Random states, torch's settings and the model's attributes and buffers return to what they are.

    A copy does not touch the model, unless a hook or a function that was made for the model goes on writing into it.
    """
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if not is_lazy(buffer)]
    python, arrays = random.getstate(), np.random.get_state()
    settings = [(get(), put) for get, put in _SETTINGS]
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            seed(0)
            yield
    finally:
        for (get, _), (value, put) in zip(_SETTINGS, settings, strict=True):
            if get() != value:
                put(value)
        random.setstate(python)
        np.random.set_state(arrays)
        for module, before in attributes:
            vars(module).clear()
            vars(module).update(before)
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
)
"""What a forward may set for the whole process: how it is read, and how it is set."""


def seed(number: int) -> None:
    """What a model draws from, in torch on the CPU and on the GPU in use, numpy and Python, begins anew."""
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


def _checked_weights(model: object) -> nn.Module:
    """The model, if it is one, and its weights are float32, finite, and at least one of them to be trained."""
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise ModelRefused(f"found the class {model.__name__}; call it: {model.__name__}(...)")
    if not isinstance(model, nn.Module):
        raise ModelRefused(f"found {type(model).__name__}; a torch.nn.Module is needed")
    if hasattr(model, "_orig_mod"):
        raise ModelRefused("found a model of torch.compile, whose weights have other names; give the model itself")
    weights, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    state = {**weights, **buffers}
    lazy = [name for name, tensor in state.items() if is_lazy(tensor)]
    if lazy:
        raise ModelRefused(
            f"found the lazy weights {_some(lazy)}, which have no shape yet; run the model once on one image of the "
            "task's shape, or give the layer its sizes"
        )
    if not weights:
        raise ModelRefused(
            "the model has no weights to train; at least one parameter is needed, in a layer that is an attribute of "
            "the model or in an nn.ModuleList"
        )
    if not any(weight.requires_grad for weight in weights.values()):
        raise ModelRefused(
            f"all {len(weights)} weight tensors have requires_grad False, so that nothing is trained; set it to True "
            "for those that are to learn"
        )
    other = [name for name, weight in weights.items() if weight.dtype != torch.float32]
    if other:
        raise ModelRefused(
            f"found {weights[other[0]].dtype} in the weights {_some(other)}; float32 is needed: model.float()"
        )
    devices = sorted({str(tensor.device) for tensor in state.values()})
    if len(devices) > 1 or "meta" in devices:
        raise ModelRefused(
            f"found weights on {', '.join(devices)}; one device is needed, with memory: model.to('cpu')"
            + (", or model.to_empty(device='cpu') and weights" if "meta" in devices else "")
        )
    broken = [name for name, tensor in state.items() if not _finite(tensor)]
    if broken:
        raise ModelRefused(f"found values that are not finite in the weights {_some(broken)}; initialise them anew")
    return model


def _copied(model: nn.Module, device: torch.device, *, with_weights: bool = True, after: str = "") -> nn.Module:
    """A copy on `device`, in eval mode; without its weights it has the model's own, which saves time."""
    shared = {} if with_weights else {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    try:
        trial = copy.deepcopy(model, shared)
    except Exception as error:
        raise ModelRefused(
            f"{after}the model cannot be copied: {failed(error)}; keep no open files, locks or generators in it, and "
            "of a batch's tensors nothing but x.detach()"
        ) from error
    for change, result in (("to", trial.to(device)), ("train", trial.train()), ("eval", trial.eval())):
        if result is not trial:
            raise ModelRefused(
                f"its method {change} returned {type(result).__name__}; an own one ends with `return self`, as "
                "torch.nn.Module's does"
            )
    return trial


def _move_constants(model: nn.Module) -> None:
    """Move weights that have but one value, in place, from torch's generator."""
    with torch.no_grad():
        for weight in model.parameters():
            flat = weight.reshape(-1)
            if len(flat) and flat[0] == flat[-1] and bool((flat == flat[0]).all()):
                inputs = weight[0].numel() if weight.ndim > 1 else 1
                weight.add_(MOVED / inputs**0.5 * torch.randn(weight.shape).to(weight))


def ask(model: nn.Module, images: torch.Tensor, classes: int, when: str) -> torch.Tensor:
    """The logits of `images`; raises `ModelRefused` if the model fails or gives anything else."""
    try:
        answer = model(images)
    except (Exception, SystemExit) as error:
        raise ModelRefused(f"{when} it failed on images of shape {tuple(images.shape)}: {failed(error)}") from error
    return check_form(answer, images, classes, when)


def same(one: torch.Tensor, other: torch.Tensor, all_of: torch.Tensor, part: float = SAME) -> bool:
    """Whether two rows are the same but for rounding, measured by the spread of all logits (B, K)."""
    spread = float((all_of - all_of.mean(0)).abs().max()) + 1e-2 * float(all_of.abs().max())
    return bool((one - other).abs().max() <= part * spread)


def changed(images: torch.Tensor, kept: int) -> torch.Tensor:
    """Other images in the place of all but number `kept`."""
    result = 3 * noise(images.shape[1:], len(images), images.device, 1) + 1
    result[kept] = images[kept]
    return result


def _kept(model: nn.Module) -> None:
    """What a model's file holds: tensors alone, which are read back without running code."""
    try:
        state = model.state_dict()
        for name, value in state.items():
            if not isinstance(value, torch.Tensor):
                raise ModelRefused(
                    f"its state_dict has {name!r} of type {type(value).__name__}; tensors alone are kept: a constant "
                    "belongs into __init__, numbers that change into a buffer"
                )
        empty = {
            name: (value[:0] if value.ndim else value)
            .detach()
            .to("cpu", memory_format=torch.contiguous_format, copy=True)
            for name, value in state.items()
        }
        safetensors.torch.load(safetensors.torch.save(empty))
        _copied(model, next(model.parameters()).device, with_weights=False).load_state_dict(state, assign=True)
    except ModelRefused:
        raise
    except Exception as error:
        raise ModelRefused(
            f"its weights cannot be saved and loaded again: {failed(error)}; plain tensors are needed, and the "
            "state_dict and load_state_dict of torch.nn.Module"
        ) from error


def _answers(model: nn.Module, images: torch.Tensor, classes: int) -> torch.Tensor:
    """The model as it is, on images that need no gradient; returns its logits (N, K)."""
    given = images.clone()
    with torch.no_grad():
        logits = ask(model, given, classes, "in eval mode")
        if not torch.equal(given, images):
            raise ModelRefused(
                "it changes the images that it is given, in place; work on a copy: inplace=False in the first layer, "
                "x = x - m in place of x -= m"
            )
    return logits


def _unbent(model: nn.Module, logits: torch.Tensor, images: torch.Tensor, classes: int, when: str) -> list[str]:
    """Refuses what is no logits any more; returns words on bounds that are seldom meant.

    What lies within bounds by chance does not with other images, nor with all weights negated, nor with larger ones.
    """
    answers = [logits.detach()]
    within = bool((answers[0].abs() <= 1).all())
    if not within and kept_range(answers) is None:
        return []
    trial = _copied(model, images.device, after=f"after a step {when} ").train(model.training)
    try:
        with torch.no_grad():
            for batch, factor in ((changed(images, 0), 1.0), (30 * images, 1.0), (images.clone(), -1.0)):
                if kept_range(answers) is None:
                    break
                _scale(trial, factor)
                answers.append(ask(trial, batch, classes, when))
    except ModelRefused:  # of such images, or with such weights, it gives nothing that tells
        return []
    kept, end = kept_range(answers), normalised(answers)
    bounded = within and _stays_within(trial, images, classes, when)
    if kept == "between 0 and 1" and not bounded:
        kept = "never below 0"
    if kept is None and bounded:
        kept = "between -1 and 1"
    if kept is None:
        return []
    bent = last_function(ask(trial, images.clone().requires_grad_(), classes, when))
    if end or kept == "between 0 and 1" or bent in NO_LOGITS:
        end = end or bent or "sigmoid"
        raise ModelRefused(f"{when} its last layer is a {end}; return the logits: remove the {end}")
    instead = f"remove the {bent} at the end" if bent else "let them take any value, or multiply them by 10 or more"
    return [f"its logits are {kept}, whatever it is shown, and it may learn less for it; {instead}"]


def _stays_within(model: nn.Module, images: torch.Tensor, classes: int, when: str) -> bool:
    """Whether no logit leaves -1 to 1 with larger weights, which it then has."""
    with torch.no_grad(), suppress(ModelRefused):
        _scale(model, LARGER)
        answers = (ask(model, batch, classes, when) for batch in (images.clone(), 30 * images))
        return all(bool((answer.abs() <= 1 + SAME).all()) for answer in answers)
    return False


def _scale(model: nn.Module, factor: float) -> None:
    for weight in model.parameters():
        weight.mul_(factor)


def _dreams(model: nn.Module, images: torch.Tensor, classes: int) -> None:
    """Gradients for images in eval mode, and answers that hang on each image alone."""
    given = images.clone().requires_grad_()
    logits = ask(model, given, classes, "in eval mode")
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)).to(logits)
    if given not in _leaves(logits):
        raise ModelRefused(
            "no gradient reaches the images, along which dreams are made; leave out torch.no_grad, .detach(), .data "
            "and numpy in forward"
        )
    strangers = _leaves(logits) - {given, *weights}
    if strangers:
        shapes = ", ".join(sorted(str(tuple(stranger.shape)) for stranger in strangers))
        raise ModelRefused(
            f"it uses {len(strangers)} weight tensors that are not its own, of shapes {shapes}, which would neither be "
            "trained nor kept nor copied; put layers into an nn.ModuleList in place of a list, and no function that "
            "holds the model into the model"
        )
    gradient = _gradients((logits * direction).sum(), [given], "in eval mode")[0]
    if gradient is None or not gradient.any():
        raise ModelRefused(
            "the gradient for the images is zero, so that no dream would move; leave out rounding, argmax and "
            "comparisons in forward"
        )
    answers = logits.detach()
    with torch.no_grad():
        row = ask(model, changed(images, 0), classes, "in eval mode")[0]
        if not same(row, answers[0], answers):
            again = ask(model, images, classes, "in eval mode")
            if not same(again, answers, answers):
                raise ModelRefused(
                    "in eval mode it answers the same images in two ways; give functional.dropout "
                    "training=self.training, and let forward keep no state"
                )
            _mixed("in eval mode the answer for one image changes with the others")
        alone = ask(model, images[-1:], classes, "in eval mode")[0]
        if not same(alone, answers[-1], answers, SAME_IN_ANOTHER_BATCH):
            _mixed("in eval mode an image alone is answered otherwise than among others")


def _mixed(what: str) -> None:
    raise ModelRefused(
        f"{what}; take nothing over the batch (axis 0): means, attention, batch norm with training=True or without "
        "running statistics"
    )


def _learns(model: nn.Module, images: torch.Tensor, classes: int) -> list[str]:
    """A step's gradients in train mode; returns words on weights that get none, and on bounds of the logits."""
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    idle, said = dict(weights), list[str]()
    for number, count in enumerate(WITHOUT_A_GRADIENT):
        batch = noise(images.shape[1:], count, images.device, number) if number else images.clone()
        logits = ask(model.train(), batch, classes, "in train mode")
        loss = functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device) % classes)
        if not loss.requires_grad:
            raise ModelRefused("in train mode no gradient reaches the weights; leave out torch.no_grad and .detach()")
        gradients = _gradients(loss, list(idle.values()), "in train mode")
        pairs = zip(idle.items(), gradients, strict=True)
        idle = {name: weight for (name, weight), gradient in pairs if gradient is None or not gradient.any()}
        if not number:
            said = _unbent(model, logits, images, classes, "in train mode")
        if not idle:
            break
    broken = [name for name, buffer in model.named_buffers() if not _finite(buffer)]
    if broken:
        raise ModelRefused(f"after a step in train mode {_some(broken)} are no longer finite")
    if not idle:
        return said
    part = sum(weight.numel() for weight in idle.values()) / sum(weight.numel() for weight in weights.values())
    if part > MOST_IDLE:
        raise ModelRefused(
            f"in train mode no gradient reaches {part:.0%} of the weights that are to be trained, {_some(list(idle))}; "
            "leave out torch.no_grad, .detach() and rounding, or set requires_grad to False for what is not trained"
        )
    return [
        *said,
        f"in train mode no gradient reaches {len(idle)} of {len(weights)} weight tensors, {_some(list(idle))}; they "
        "are never trained: leave out .detach(), or the layers that are not used",
    ]


def _gradients(value: torch.Tensor, of: Sequence[torch.Tensor], when: str) -> list[torch.Tensor | None]:
    try:
        found: list[torch.Tensor | None] = list(torch.autograd.grad(value, of, allow_unused=True))
    except Exception as error:
        raise ModelRefused(f"{when} its gradient cannot be computed: {failed(error)}") from error
    if not all(gradient is None or _finite(gradient) for gradient in found):
        raise ModelRefused(
            f"{when} its gradient is not finite; bound what is divided by, or what a root or a logarithm is taken of"
        )
    return found


def _leaves(value: torch.Tensor) -> set[torch.Tensor]:
    """The tensors that a gradient of `value` reaches."""
    found: set[torch.Tensor] = set()
    seen = set()
    waiting = [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return found


def _finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())  # a sum is the faster look


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
