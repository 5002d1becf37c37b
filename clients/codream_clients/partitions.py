"""How a data set is dealt out to clients: evenly, or with skewed labels.

Skew is drawn by client: client i draws class shares p_i ~ Dirichlet(alpha, ..., alpha) and then `per_client`
labels from p_i, so that all clients are of equal size and only their mixtures differ (the setting of CoDream,
arXiv 2402.15968; the Dirichlet prior from Hsu et al., arXiv 1909.06335). alpha = 1 is a mild skew, 0.1 leaves
most clients with one or two classes. When a class has run out, its share goes to the classes that are left.
"""

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


class PartitionError(ValueError):
    """The data cannot be dealt out as asked."""


def iid(labels: NDArray[np.int64], clients: int, per_client: int, seed: int) -> list[Indices]:
    """Deal out `per_client` random indices to each client: `clients` disjoint arrays (per_client,).

    Raises `PartitionError` if fewer than clients * per_client labels (N,) are there.
    """
    _check(labels, clients, per_client)
    order = np.random.default_rng(seed).permutation(len(labels))[: clients * per_client]
    return [part.astype(np.int64) for part in np.split(order, clients)]


def dirichlet(labels: NDArray[np.int64], clients: int, per_client: int, alpha: float, seed: int) -> list[Indices]:
    """Deal out indices with label skew `alpha` > 0: `clients` disjoint arrays (per_client,).

    Raises `PartitionError` if fewer than clients * per_client labels (N,) are there, or alpha is not a
    positive finite number.
    """
    _check(labels, clients, per_client)
    if not (np.isfinite(alpha) and alpha > 0):
        raise PartitionError(f"alpha is {alpha}; a positive finite number is needed (1 mild skew, 0.1 strong)")
    rng = np.random.default_rng(seed)
    stock = [rng.permutation(np.flatnonzero(labels == label)) for label in range(int(labels.max()) + 1)]
    left = np.array([len(indices) for indices in stock])
    parts = []
    for _ in range(clients):
        counts = _draw_counts(rng.dirichlet(np.full(len(stock), alpha)), left, per_client, rng)
        start = [len(indices) for indices in stock] - left
        left = left - counts
        chosen = [indices[first : first + count] for indices, first, count in zip(stock, start, counts, strict=True)]
        parts.append(rng.permutation(np.concatenate(chosen)).astype(np.int64))
    return parts


def _draw_counts(
    shares: NDArray[np.float64], left: NDArray[np.int64], total: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw `total` labels from `shares`, never more of a class than are left."""
    counts = np.zeros_like(left)
    while (missing := total - int(counts.sum())) > 0:
        open_shares = np.where(counts < left, shares, 0.0)
        if open_shares.sum() <= 0:  # every class that this client wanted has run out
            open_shares = (left - counts).astype(np.float64)
        wanted = rng.multinomial(missing, open_shares / open_shares.sum())
        counts = np.minimum(counts + wanted, left)
    return counts


def _check(labels: NDArray[np.int64], clients: int, per_client: int) -> None:
    if clients < 1 or per_client < 1:
        raise PartitionError(f"{clients} clients of {per_client} images; both must be at least 1")
    if labels.ndim != 1 or (len(labels) and labels.min() < 0):
        raise PartitionError(f"labels of shape {labels.shape}; (N,) with values from 0 is needed")
    if clients * per_client > len(labels):
        raise PartitionError(
            f"{clients} clients of {per_client} images need {clients * per_client}, but only {len(labels)} "
            "are there; ask for fewer clients or fewer images each"
        )
