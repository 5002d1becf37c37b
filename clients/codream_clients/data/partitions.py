"""How a data set is dealt out to clients: evenly, or with skewed labels.

    iid                 every client a random part
    dirichlet           skew drawn by client: client i draws class shares p_i ~ Dirichlet(alpha, ..., alpha) and then
                        `per_client` labels from p_i, so that all clients are of equal size and only their mixtures
                        differ (the setting of CoDream, arXiv 2402.15968; the Dirichlet prior from Hsu et al.,
                        arXiv 1909.06335). When a class has run out, its share goes to the classes that are left.
    dirichlet-by-label  skew drawn by class: class c is cut among the clients in shares q_c ~ Dirichlet(alpha, ...,
                        alpha), so that sizes differ, too (Yurochkin et al., ICML 2019; Li et al., ICDE 2022)
    shards              images sorted by label are cut into equal shards, and each client gets a few of them
                        (McMahan et al., AISTATS 2017: two each)

alpha = 1 is a mild skew, 0.1 leaves most clients with one or two classes. Parts never overlap, and follow from the
seed alone.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Scheme = Literal["iid", "dirichlet", "dirichlet-by-label", "shards"]

_MOST_DRAWS = 1000


class PartitionError(ValueError):
    """The data cannot be dealt out as asked."""


def deal(
    labels: NDArray[np.int64],
    scheme: Scheme,
    *,
    clients: int,
    per_client: int | None = None,
    alpha: float = 0.5,
    shards: int = 2,
    seed: int = 0,
    groups: NDArray[np.int64] | None = None,
) -> list[Indices]:
    """Deal out the indices of `labels` (N,) as `scheme` says: `clients` disjoint arrays.

    `per_client` indices each (on average for "dirichlet-by-label"); None deals out as many as there are, evenly.
    `alpha` is for both Dirichlet schemes, `shards` for "shards". With `groups` (N,), the images of a group go to one
    client, as a whole, and sizes and mixtures are met as nearly as whole groups can.
    Raises `PartitionError` as the functions below do.
    """
    if groups is not None and clients > 1:
        wish = deal(labels, scheme, clients=clients, per_client=per_client, alpha=alpha, shards=shards, seed=seed)
        return whole_groups(groups, wish, seed)
    if per_client is None:
        per_client = max(1, len(labels) // max(1, clients))
        if scheme == "shards":
            per_client = max(1, per_client // shards) * shards
    if scheme == "iid":
        return iid(labels, clients, per_client, seed)
    if scheme == "dirichlet":
        return dirichlet(labels, clients, per_client, alpha, seed)
    if scheme == "dirichlet-by-label":
        return dirichlet_by_label(labels, clients, per_client, alpha, seed)
    return label_shards(labels, clients, per_client, shards, seed)


def whole_groups(groups: NDArray[np.int64], wish: Sequence[Indices], seed: int) -> list[Indices]:
    """What comes nearest to `wish` (disjoint arrays of indices) without dividing a group of `groups` (N,).

    Groups in a random order go each to the client that wishes most of it, among those that still want images, and who
    got none gets one from who has several; a group of which nobody wishes anything goes to nobody.
    Raises `PartitionError` if a client would get none: there must be more groups than clients.
    """
    names, inverse = np.unique(groups, return_inverse=True)
    wished = count_table(inverse, wish, len(names)).T
    sizes, open_wishes = np.bincount(inverse), wished.sum(axis=0)
    owner = np.full(len(names), -1)
    for group in np.random.default_rng(seed).permutation(len(names)):
        if wished[group].any():
            want = np.where(open_wishes > 0, wished[group], -1)
            owner[group] = int(np.lexsort((open_wishes, want))[-1])
            open_wishes[owner[group]] -= sizes[group]
    for client in range(len(wish)):
        held = np.bincount(owner[owner >= 0], minlength=len(wish))
        if held[client]:
            continue
        to_spare = (owner >= 0) & (held[owner] > 1)
        if not to_spare.any():
            raise PartitionError(
                f"{len(names)} groups for {len(wish)} clients leave some without an image, since none is divided; "
                "fewer clients or more groups are needed"
            )
        owner[int(np.where(to_spare, wished[:, client], -1).argmax())] = client
    return [np.flatnonzero(owner[inverse] == client).astype(np.int64) for client in range(len(wish))]


def count_table(labels: NDArray[np.int64], parts: Sequence[Indices], classes: int) -> NDArray[np.int64]:
    """Who holds what: how many images of each class each part has, (parts, classes)."""
    return np.array([np.bincount(labels[part], minlength=classes) for part in parts], dtype=np.int64)


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
    _check_alpha(alpha)
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


def dirichlet_by_label(
    labels: NDArray[np.int64], clients: int, per_client: int, alpha: float, seed: int, *, least: int = 2
) -> list[Indices]:
    """Deal out clients * per_client random indices class by class, with skew `alpha` > 0: `clients` disjoint arrays.

    Their sizes differ and add up to clients * per_client; shares are drawn again until each has `least` indices.
    Raises `PartitionError` as `dirichlet` does, if least is not in [1, per_client], or if no draw of 1,000 gave
    every client its least.
    """
    _check(labels, clients, per_client)
    _check_alpha(alpha)
    if not 1 <= least <= per_client:
        raise PartitionError(f"least is {least} for {per_client} images a client; 1 to {per_client} is allowed")
    rng = np.random.default_rng(seed)
    taken = rng.permutation(len(labels))[: clients * per_client]
    counts = np.bincount(labels[taken])
    for _ in range(_MOST_DRAWS):
        shares = rng.dirichlet(np.full(clients, alpha), size=len(counts))
        # Cumulated and then rounded, so that every image goes to one client.
        ends = np.rint(np.cumsum(shares, axis=1) * counts[:, None]).astype(np.int64)
        ends[:, -1] = counts
        if np.diff(ends, axis=1, prepend=0).sum(axis=0).min() >= least:
            break
    else:
        raise PartitionError(
            f"in {_MOST_DRAWS} draws with alpha {alpha} some of {clients} clients got fewer than {least} images; "
            "raise alpha, or give fewer clients or more images"
        )
    of_clients: list[list[Indices]] = [[] for _ in range(clients)]
    for label, of_label in enumerate(ends):
        for own, piece in zip(of_clients, np.split(taken[labels[taken] == label], of_label[:-1]), strict=True):
            own.append(piece)
    return [rng.permutation(np.concatenate(own)).astype(np.int64) for own in of_clients]


def label_shards(labels: NDArray[np.int64], clients: int, per_client: int, shards: int, seed: int) -> list[Indices]:
    """Sort clients * per_client random indices by label and deal out `shards` equal shards each: (per_client,) each.

    Raises `PartitionError` if fewer than clients * per_client labels (N,) are there, or per_client is not a multiple
    of shards, which is at least 1.
    """
    _check(labels, clients, per_client)
    if shards < 1 or per_client % shards:
        raise PartitionError(f"{per_client} images in {shards} shards; a multiple of shards, at least 1, is needed")
    rng = np.random.default_rng(seed)
    taken = rng.permutation(len(labels))[: clients * per_client]
    pieces = taken[np.argsort(labels[taken], kind="stable")].reshape(clients * shards, -1)
    hands = np.split(rng.permutation(clients * shards), clients)
    return [rng.permutation(pieces[hand].ravel()).astype(np.int64) for hand in hands]


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


def _check_alpha(alpha: float) -> None:
    if not (np.isfinite(alpha) and alpha > 0):
        raise PartitionError(f"alpha is {alpha}; a positive finite number is needed (1 mild skew, 0.1 strong)")


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
