"""What the gate for models costs: one thread's processor time, for the zoo, torchvision's models and wrong ones.

    python benchmarks/model_gate.py

The first of each kind is tried once before, so that what torch and Opacus load is not counted.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import time
import warnings
from collections.abc import Callable

import torch
import torchvision
from torch import nn

from codream_clients.models.gate import ModelWarning, examine, trial_images
from codream_clients.models.refusals import ModelRefused
from codream_clients.models.zoo import NETWORKS, ZOO, build
from codream_clients.privacy.gate import BOTH, examine_private
from codream_clients.privacy.plan import GradSampleMode
from tests.clients.own_models import GHOST_WRONG, GOOD, PRIVATE_GOOD, PRIVATE_WRONG, WRONG

CPU = torch.device("cpu")
CLASSES = 10
SHAPES = ((1, 8, 8), (1, 28, 28), (3, 32, 32))
TORCHVISION = (
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "squeezenet1_1",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "efficientnet_b0",
    "mnasnet0_5",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "densenet121",
    "convnext_tiny",
    "vgg11_bn",
)
Tried = tuple[float, bool]


def tried(model: object, shape: tuple[int, int, int], modes: tuple[GradSampleMode, ...] | None = None) -> Tried:
    """Seconds, and whether it was taken; with modes as for private training."""
    images = trial_images(shape, classes=CLASSES, device=CPU)
    start = time.thread_time()
    try:
        if modes is None:
            examine(model, images, classes=CLASSES)
        else:
            examine_private(model, images, classes=CLASSES, name="mine", modes=modes)
    except ModelRefused:
        return time.thread_time() - start, False
    return time.thread_time() - start, True


def show(what: str, results: dict[str, Tried], *, taken: bool) -> None:
    """One line: how many, how many as they should be, and the slowest."""
    right = sum(found is taken for _, found in results.values())
    slowest = sorted(((seconds, name) for name, (seconds, _) in results.items()), reverse=True)[:3]
    words = ", ".join(f"{name} {seconds:.2f} s" for seconds, name in slowest)
    over = sum(seconds >= 1 for seconds, _ in results.values())
    print(f"{what:<44} {right:>3} of {len(results):>3} {'taken' if taken else 'refused':<8} {over} over 1 s; {words}")


def each(models: dict[str, Callable[[], object]], modes: tuple[GradSampleMode, ...] | None = None) -> dict[str, Tried]:
    return {name: tried(make(), (1, 8, 8), modes) for name, make in models.items()}


def from_torchvision(name: str) -> nn.Module:
    model: nn.Module = getattr(torchvision.models, name)(weights=None, num_classes=CLASSES)
    return model


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ModelWarning)
    names = (*ZOO, *NETWORKS)
    tried(build("cnn2_gn", channels=1, size=8, classes=CLASSES, seed=0), (1, 8, 8), BOTH)
    for shape in SHAPES:
        size = {"channels": shape[0], "size": shape[1], "classes": CLASSES, "seed": 0}
        zoo = {name: tried(build(name, **size), shape) for name in names}
        show(f"the zoo, {shape}", zoo, taken=True)
        for modes in (("hooks",), BOTH):
            private = {f"{name}_gn": tried(build(f"{name}_gn", **size), shape, modes) for name in names}
            show(f"the zoo, private, {' and '.join(modes)}, {shape}", private, taken=True)
    for side in (64, 96):
        models = {name: tried(from_torchvision(name), (3, side, side)) for name in TORCHVISION}
        show(f"torchvision's, (3, {side}, {side})", models, taken=True)
    show("unusual and right", each(GOOD), taken=True)
    show("unusual and right, private", each(PRIVATE_GOOD, BOTH), taken=True)
    show("wrong", each({name: make for name, (make, _) in WRONG.items()}), taken=False)
    show("wrong, private", each({name: make for name, (make, _) in PRIVATE_WRONG.items()}, BOTH), taken=False)
    show("wrong in ghost mode", each({name: make for name, (make, _) in GHOST_WRONG.items()}, ("ghost",)), taken=False)


if __name__ == "__main__":
    main()
