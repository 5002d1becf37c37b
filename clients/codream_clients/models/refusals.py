"""A model that is refused, and what torch's own errors mean for whoever wrote the model."""

import errno
import re

from codream_clients.own_parts import OwnPartError

GIVEN = "the model given"
MOST_WORDS = 200

NO_MEMORY = (
    r"out of memory|not enough memory|can't allocate memory|cannot allocate memory|failed to allocate|bad_alloc"
    r"|ALLOC_FAILED|NOT_INITIALIZED|INTERNAL_ERROR|unable to find (a valid|an) |could not create a primitive"
)
"""What torch's allocators and libraries say."""

MEANINGS = (
    (r"to have \d+ channels, but got \d+", "the first layer must take the channels that the task's images have"),
    (r"mat1 and mat2 shapes", "a linear layer must fit the images: nn.AdaptiveAvgPool2d in front, or its sizes anew"),
    (
        r"[Kk]ernel size can't be greater|[Oo]utput size is too small",
        "fewer strides and poolings: the images are small",
    ),
    (
        r"more than 1 (value|spatial element)",
        "batch norm needs more than one value a channel: fewer poolings, or group norm",
    ),
    (
        r"same device|on device|device type",
        "tensors of its own belong into register_buffer, which moves with the model",
    ),
    (
        r"same dtype|should be the same|scalar type|dtype",
        "float32 throughout: model.float(), and no .half() in forward",
    ),
    (
        r"backward through the graph a second time",
        "it keeps something of an earlier batch: keep x.detach(), or nothing",
    ),
    (r"is being used in an in-place operation", "work on a copy: inplace=False in the first layer"),
    (r"inplace operation|Output \d+ of BackwardHook", "inplace=False in its layers, x = x + y in place of x += y"),
    (
        r"not enough values to unpack|takes \d+ positional|missing \d+ required",
        "forward takes the images, and nothing else",
    ),
    (
        r"shape '\[.*\]' is invalid|size of tensor .* must match",
        "any number of images may come: x.flatten(1), x.size(0)",
    ),
)
"""What torch says -> what to do."""


class ModelRefused(OwnPartError):
    """A model that cannot take part; the text says what was found and what to write instead."""


def of_an_image(error: Exception) -> bool:
    """Whether what a model raises may be of an image that it was given; that memory is wanting is of the machine."""
    if isinstance(error, RuntimeError):
        return re.search(NO_MEMORY, _text(error), re.IGNORECASE) is None
    return not (isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM))


def _text(error: BaseException) -> str:
    try:
        return " ".join(str(error).split())
    except Exception:  # whose own text fails, too
        return ""


def failed(error: BaseException) -> str:
    """An error in a line, and what to do where that is known."""
    text = _text(error)
    said = f"{type(error).__name__}: {text[:MOST_WORDS]}" if text else type(error).__name__
    return next((f"{said}; {meaning}" for pattern, meaning in MEANINGS if re.search(pattern, text)), said)
