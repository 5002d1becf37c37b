"""What a model gives: one tensor of logits, a row an image; and what other shapes and values mean."""

import math
from collections import deque
from collections.abc import Mapping, Sequence

import torch

from codream_clients.models.refusals import ModelRefused

CLOSE = 1e-4


def check_form(answer: object, images: torch.Tensor, classes: int, when: str) -> torch.Tensor:
    """The answer, if it is finite float32 of shape (N, K); raises `ModelRefused` with what it is and what to return."""
    if not isinstance(answer, torch.Tensor):
        raise ModelRefused(f"{when} it gave {_what(answer)}; one tensor of logits is needed: {_instead(answer)}")
    wanted, found = (len(images), classes), tuple(answer.shape)
    if not answer.is_floating_point():
        raise ModelRefused(
            f"{when} it gave {answer.dtype} of shape {found}; float32 logits of shape {wanted} are needed: return the "
            "logits, not the class or the mask that follows from them"
        )
    if answer.dtype != torch.float32:
        raise ModelRefused(
            f"{when} it gave {answer.dtype} of shape {found}; float32 is needed: no .half(), .double() or autocast in "
            "forward, or .float() at its end"
        )
    if found != wanted:
        raise ModelRefused(
            f"{when} for images of shape {tuple(images.shape)} it gave logits of shape {found}; {wanted} are needed: "
            f"{_reshape(found, len(images), classes)}"
        )
    if not torch.isfinite(answer).all():
        raise ModelRefused(
            f"{when} its logits are not finite; bound what is divided by, or what a root or a logarithm is taken of"
        )
    return answer


def normalised(answers: Sequence[torch.Tensor]) -> str | None:
    """The softmax or log-softmax, of any factor or base, that logits (N, K) of several batches have been through."""
    rows = torch.cat(list(answers))
    if (rows >= 0).all():
        sums, columns = rows.sum(1), torch.stack([answer.sum(0).mean() for answer in answers])
        if _all_alike(sums):
            return "softmax"
        if all(_all_alike(answer.sum(0)) for answer in answers) and _all_alike(columns):
            return "softmax over the batch (axis 0)"
    return "log-softmax" if ((rows <= 0).all() and _all_alike(rows.exp().sum(1))) or _in_another_base(rows) else None


def kept_range(answers: Sequence[torch.Tensor]) -> str | None:
    """In which of the ranges that logits are seldom meant to have they all lie; None for no such range."""
    least, most = (float(extreme) for extreme in torch.cat(list(answers)).aminmax())
    ranges = (("between 0 and 1", 0.0, 1.0), ("never below 0", 0.0, math.inf), ("never above 0", -math.inf, 0.0))
    return next((name for name, low, high in ranges if low <= least and most <= high), None)


def last_function(logits: torch.Tensor) -> str | None:
    """The function that bends the logits last, behind the last weights, as autograd has it; None for none known."""
    waiting = deque([logits.grad_fn])
    seen = set()
    while waiting:
        node = waiting.popleft()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = node.name().rstrip("0123456789").removesuffix("Backward")
        if name in _BENDING:
            return _BENDING[name]
        if not name.startswith(_WITH_WEIGHTS):
            waiting += [following for following, _ in node.next_functions]
    return None


NO_LOGITS = ("sigmoid", "hard sigmoid", "softplus", "log-sigmoid", "softmax", "log-softmax")
"""What is refused at the end; anything else that keeps logits within bounds is taken, and said."""
_BENDING = {
    "Relu": "ReLU",
    "Hardtanh": "hard tanh",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "Hardsigmoid": "hard sigmoid",
    "Softplus": "softplus",
    "LogSigmoid": "log-sigmoid",
    "Softmax": "softmax",
    "LogSoftmax": "log-softmax",
}
_WITH_WEIGHTS = ("Addmm", "Mm", "Bmm", "Convolution", "NativeGroupNorm", "NativeBatchNorm", "NativeLayerNorm")


def _all_alike(sums: torch.Tensor) -> bool:
    return bool(sums[0] > 0) and bool(((sums - sums[0]).abs() <= CLOSE * sums[0]).all())


def _in_another_base(rows: torch.Tensor) -> bool:
    """Whether with one s the exponentials of s * rows sum to 1 in each row, as those of a log-softmax over s do."""
    if not (rows <= 0).all() or not (rows[0] < 0).all():
        return False
    low, high = 0.0, math.log(rows.shape[1]) / -float(rows[0].max())
    for _ in range(60):  # in the first row the sum falls from K to below 1
        middle = (low + high) / 2
        low, high = (middle, high) if float((middle * rows[0].double()).logsumexp(0)) > 0 else (low, middle)
    return bool((high * rows.double()).logsumexp(1).abs().max() < CLOSE)


def _what(answer: object) -> str:
    if isinstance(answer, Mapping):
        return f"{type(answer).__name__} of {', '.join(map(str, answer))}"
    return f"{type(answer).__name__} of {len(answer)}" if isinstance(answer, tuple | list) else type(answer).__name__


def _instead(answer: object) -> str:
    fields = getattr(answer, "_fields", ())
    if hasattr(answer, "logits"):
        return "return its .logits" + (", or build the model without auxiliary outputs" if fields else "")
    if isinstance(answer, Mapping):
        return "return the entry that holds them"
    if isinstance(answer, tuple | list):
        return "return output[0], or whichever holds them"
    return "return it from forward"


def _reshape(found: tuple[int, ...], count: int, classes: int) -> str:
    """What to write where the shape is another."""
    if found == (classes, count):
        return "images are rows, classes columns: return logits.T"
    if len(found) > 2 and found[:2] == (count, classes):
        return "end with .flatten(1)" if set(found[2:]) == {1} else "pool over places: x.mean((2, 3)), or flatten"
    if found in ((count,), (count, 1)):
        return f"one output for each of the {classes} classes, also for two: nn.Linear(..., {classes})"
    if len(found) == 2 and found[0] == count:
        return f"the last layer gives {found[1]} and must give {classes}: nn.Linear(..., {classes})"
    return "keep images apart: x.flatten(1) or x.view(x.size(0), -1), not x.flatten() or x.view(-1, ...)"
