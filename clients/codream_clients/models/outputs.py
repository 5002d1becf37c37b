"""What a model gives: one tensor of logits, a row an image; and what other shapes and values mean."""

from collections.abc import Mapping

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


def normalised(logits: torch.Tensor) -> str | None:
    """The softmax or log-softmax that rows (N, K) have been through; None for neither."""
    if ((logits >= 0) & (logits <= 1)).all() and (logits.sum(1) - 1).abs().max() < CLOSE:
        return "softmax"
    return "log-softmax" if logits.logsumexp(1).abs().max() < CLOSE else None


def as_after_a_sigmoid(logits: torch.Tensor) -> bool:
    """Whether all of them are above 0 and below 1."""
    return bool(((logits > 0) & (logits < 1)).all())


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
