"""Local training on a client's own labelled images, and evaluation.

Balanced softmax (Ren et al., NeurIPS 2020; logit adjustment, Menon et al., ICLR 2021): the loss is the
cross-entropy of z_c + log(n_c / n), so the plain logits z learn p(x | c) and not the client's own label
frequencies. Classes that the client has never seen (n_c = 0) are left out of the sum: nothing pushes them
down, and local training does not unlearn what the dreams taught. Evaluation uses the plain logits.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from codream_clients.augmentation import augment_batch, augmentation_generator
from codream_clients.datasets import LabelledImages


class TrainingError(ValueError):
    """Training cannot start with such data or settings, or it has diverged."""


def balanced_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, class_counts: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of logits (B, K) + log(class_counts / sum), a scalar in nats.

    `class_counts` (K,) are non-negative; a class with count 0 takes no part, so no label may be of it
    (the loss would be infinite).
    """
    return functional.cross_entropy(logits + (class_counts / class_counts.sum()).log(), labels)


def train_local(
    model: nn.Module,
    data: LabelledImages,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    balanced: bool,
    seed: int,
    device: torch.device,
    class_counts: NDArray[np.float32] | None = None,
) -> None:
    """Train `model` in place for `epochs` passes over `data` by SGD with Nesterov momentum, if it is above 0.

    `balanced` takes the balanced softmax instead of the cross-entropy; its class counts (K,) are the data's
    own unless `class_counts` is given (a histogram noised for privacy, say, above 0 where there are labels).
    `seed` fixes the order of the images and how they vary, as `data.augment` says. The model is moved to `device`
    and left in eval mode.
    Raises `TrainingError` for fewer than two images (batch norm needs two), a label whose class count is not
    positive, or a loss that is no longer finite.
    """
    if len(data) < 2:
        raise TrainingError(f"{len(data)} images; at least 2 are needed to train")
    counts = data.class_counts.astype(np.float32) if class_counts is None else class_counts
    if balanced and (counts.shape != (data.classes,) or (counts[np.unique(data.labels)] <= 0).any()):
        raise TrainingError(
            f"class counts {counts.tolist()} for {data.classes} classes; one each is needed, "
            "above 0 for every class that the data holds"
        )
    images, labels = torch.from_numpy(data.images).to(device), torch.from_numpy(data.labels).to(device)
    weights = torch.from_numpy(counts.astype(np.float32)).clamp(min=0).to(device)
    model.to(device).train()
    optimiser = sgd(model, lr=lr, momentum=momentum, weight_decay=weight_decay)
    variation = augmentation_generator(seed)
    for batch in shuffled_batches(len(data), epochs, batch_size, seed):
        chosen = batch.to(device)
        logits = model(augment_batch(images[chosen], data.augment, variation))
        loss = (
            balanced_cross_entropy(logits, labels[chosen], weights)
            if balanced
            else functional.cross_entropy(logits, labels[chosen])
        )
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
    model.eval()
    if epochs > 0 and not torch.isfinite(loss):
        raise TrainingError(f"the loss became {loss.item()} with lr={lr}; choose a smaller learning rate")


def sgd(model: nn.Module, *, lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """A fresh SGD optimiser over the model's parameters, with Nesterov momentum if `momentum` is above 0."""
    return torch.optim.SGD(
        model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0
    )


def shuffled_batches(count: int, epochs: int, batch_size: int, seed: int) -> Iterator[torch.Tensor]:
    """Index batches of `epochs` passes over `count` items, each pass in a new order drawn from `seed`.

    A pass has as few batches of at most `batch_size` as there can be, of sizes that differ by one at most: a small
    rest would have batch norm follow the statistics of a few images, which can spoil a whole training. No batch holds
    a single item, on which batch norm cannot train; where it must, one holds `batch_size` + 1.
    Raises `TrainingError` unless batch_size >= 2 and epochs >= 0.
    """
    if batch_size < 2 or epochs < 0:
        raise TrainingError(f"batch_size={batch_size}, epochs={epochs}; needed are at least 2 and at least 0")
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator)
        yield from torch.tensor_split(order, max(1, min(-(-count // batch_size), count // 2)))


def predict_logits(
    model: nn.Module, images: NDArray[np.float32], device: torch.device, batch_size: int = 512
) -> NDArray[np.float32]:
    """Plain logits (N, K) of `images` (N, C, H, W), in batches; moves the model to `device`, in eval mode."""
    model.to(device).eval()
    with torch.inference_mode():
        parts = [model(part.to(device)).cpu() for part in torch.split(torch.from_numpy(images), batch_size)]
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float32)


def evaluate(model: nn.Module, data: LabelledImages, device: torch.device) -> float:
    """Share of `data` that the plain logits get right, in [0, 1]. Raises `TrainingError` if there is none."""
    if len(data) == 0:
        raise TrainingError("no images to evaluate on; give at least one")
    return float((predict_logits(model, data.images, device).argmax(axis=1) == data.labels).mean())
