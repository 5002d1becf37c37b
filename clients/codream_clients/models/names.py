"""The models' names, without the models: what a configuration may say, checked where no tensor library is.

A name may end in `_gn`, which takes group norm instead of batch norm: `resnet18_gn`. Wherever a name is taken,
`my_module:build` is too (`own_parts`).
"""

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Literal

from codream_clients.own_parts import is_reference

Norm = Literal["batch", "group"]

SMALL_MODELS = ("cnn2", "cnn2_strided", "cnn2_wide", "cnn3", "mlp", "resnet8")
LITERATURE_MODELS = ("lenet", "mobilenetv2", "resnet18", "resnet34", "vgg11", "wrn16_1", "wrn40_1")
FRONT_MODELS = ("scattering_linear",)
"""Of a fixed front that mixes no records, and a head: group norm with or without `_gn`."""
MODELS = SMALL_MODELS + LITERATURE_MODELS + FRONT_MODELS
GROUP_NORM_SUFFIX = "_gn"


class UnknownModelError(ValueError):
    """No model of that name is in the zoo."""


def split_norm(name: str) -> tuple[str, Norm | None]:
    """The name without its `_gn`, and "group" if it had it, or needs none; else None.

    Raises `UnknownModelError`, with the names allowed, if there is no such model; a reference passes unchanged.
    """
    if is_reference(name):
        return name, None
    base = name.removesuffix(GROUP_NORM_SUFFIX)
    if base not in MODELS:
        raise UnknownModelError(
            f"unknown model {name!r}; allowed are {', '.join(MODELS)}, "
            f"each also with {GROUP_NORM_SUFFIX} (group norm), or module:function"
        )
    return base, "group" if base != name or base in FRONT_MODELS else None


def model_mix(names: Sequence[str], clients: int) -> tuple[str, ...]:
    """One model name for each of `clients`, from a mix such as `models = ["resnet18", "wrn16_1"]`, in turn.

    Raises `UnknownModelError` for an empty mix, more names than clients, or a name that does not exist.
    """
    if not 1 <= len(names) <= clients:
        raise UnknownModelError(f"{len(names)} models for {clients} clients; 1 to {clients} are needed")
    for name in names:
        split_norm(name)
    return tuple(islice(cycle(names), clients))
