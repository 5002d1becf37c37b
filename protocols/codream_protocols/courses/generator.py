"""CoDream-fast (Singh et al., arXiv 2402.15968): dreams of a generator that all clients bring on together.

For each of the `batches` of a round: clients take a few steps of Adam on noise z and on G, a copy of the generator, and
send both changes, `global_steps` times; then they label the images G(z). The meta-generator, which every copy starts
from, takes a step towards where the clients have brought it: Reptile (Nichol et al., 2018), with Adam on G - meta.

What is the course's, and what the clients'. The generator is a network, and no two machines compute G(z) alike to the
last bit, so images are no part of the state. They need not be: what is summed are changes of z and of G, and logits,
and what is asked next follows from those sums alone. Each client makes the images by itself from the weights and the
noise that all agree on. That images, and so logits, differ in their last bits is as harmless as that clients' models
differ: it is in what they send. So the publication is a recipe for the images, z and G for each batch, beside their
labels, and what is learnt is alike for all to that precision.

All clients weigh the same: Adam moves each by about its rate, whatever its data.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le, doc

from codream_protocols.course import Array, Arrays, Publication, State, Sums
from codream_protocols.courses.labels import LOGITS, logits_spec, soft_labels
from codream_protocols.courses.layouts import Layout, check_layout, initial_weights, length_of
from codream_protocols.courses.numbers import MOMENTS, adam, bounded, fresh_moments, weighted_mean
from codream_protocols.courses.rounds import Rounds
from codream_protocols.keyschedule import digest, number
from codream_protocols.settings import MOST, Settings
from codream_protocols.specs import Block, VectorSpec
from codream_protocols.starts import MAX_SIDE, noise

GENERATOR = "generator"
BETAS = (0.5, 0.999)
"""Of the clients' Adam and of the meta-generator's, as Fang et al., AAAI 2022, have them."""
ROOM = 2.0
"""Adam moves a coordinate by about its rate in a step; clips leave twice as much."""

ADVERSARIAL_FROM = 15  # the round, from 0, from which on clients have the adversarial term in their loss


class Fast(Settings):
    """What `[fast]` and CoDream-fast share: what is asked of the generator."""

    batches: Annotated[int, Ge(1), Le(1000), doc("batches of a round")] = 5
    global_steps: Annotated[int, Ge(1), Le(1000), doc("secure steps on z and the generator for each")] = 1
    local_steps: Annotated[int, Ge(1), Le(1000), doc("a client's steps of Adam in each of these")] = 5
    noise: Annotated[int, Ge(1), Le(MAX_SIDE), doc("numbers of z for an image")] = 256
    lr: Annotated[
        float,
        Gt(0),
        Le(10),
        doc("rate of the clients' steps on the generator; the server's is `local_steps` times as much"),
    ] = 5e-3
    noise_lr: Annotated[float, Gt(0), Le(10), doc("rate of the clients' steps on z")] = 1.5e-3


class GeneratorSettings(Fast):
    """The same, of a federation: the generator's form, and the images'."""

    layout: Annotated[Layout, doc("the generator's parameters; it has no buffers")]
    rounds: Annotated[int, Ge(1), doc("epochs of secure aggregation")]
    batch: Annotated[int, Ge(2), doc("B, images of a batch; the generator's norms are over it")]
    classes: Annotated[int, Ge(2), doc("K")]
    logit_clip: Annotated[float, Gt(0), Le(MOST), doc("bound of one logit")] = 30.0
    bound: Annotated[float, Gt(0), Le(MOST), doc("bound of one parameter of the generator")] = 100.0
    noise_bound: Annotated[float, Gt(0), Le(MOST), doc("bound of one number of z")] = 10.0

    def _check(self) -> None:
        check_layout(self.layout)

    @property
    def clip(self) -> float:
        """Bound of the change of one parameter in a step."""
        return ROOM * self.local_steps * self.lr

    @property
    def noise_clip(self) -> float:
        """Bound of the change of one number of z in a step."""
        return ROOM * self.local_steps * self.noise_lr


class CoDreamFast(Rounds):
    """CoDream-fast as a course; see the module. P: parameters of the generator.

    State: `meta` float32 (P,) with Adam's moments; `generator` (P,) and `noise` (B, Z) of the batch at work; `seed`;
    and of the finished batches, one after the other, `generators` (n, P), `noises` (n, B, Z), `soft_labels` (n x B, K).
    Tasks `generator` and `logits` show `generator` and `noise`; `metrics` shows nothing. Publication: those of all
    batches, and `meta` with its moments, from which the next round starts; after an epoch of metrics alone these only.

    Args:
        settings: see `GeneratorSettings`.
    """

    def __init__(self, settings: GeneratorSettings) -> None:
        batch = (GENERATOR,) * settings.global_steps + (LOGITS,)
        super().__init__(settings.rounds, batch * settings.batches)
        self.settings, self._length = settings, length_of(settings.layout)

    def start(self, seed: bytes, certified: int, last: Publication | None) -> State:
        """See `Course`: `initial_weights` of the seed at first.

        Raises:
            LocalProtocolError: a seed of another size than 32 bytes.
        """
        settings = self.settings
        if last is None:
            weights = bounded(initial_weights(settings.layout, seed), settings.bound)
            kept: dict[str, Array] = {"meta": weights, **fresh_moments(weights.shape)}
        else:
            kept = {name: last[name] for name in ("meta", *MOMENTS)}
        if self._closes(certified):
            return kept
        state: dict[str, Array] = {
            **kept,
            "seed": np.frombuffer(seed, dtype=np.uint8),
            "generators": np.zeros((0, self._length), dtype=np.float32),
            "noises": np.zeros((0, settings.batch, settings.noise), dtype=np.float32),
            "soft_labels": np.zeros((0, settings.classes), dtype=np.float32),
        }
        return self._with_fresh_batch(state)

    def publication(self, state: State) -> Publication:
        """See `Course`."""
        names = ("generators", "noises", "soft_labels") if "soft_labels" in state else ()
        return {name: state[name] for name in (*names, "meta", *MOMENTS)}

    def _spec(self, name: str, honest: int) -> VectorSpec:
        settings = self.settings
        if name == LOGITS:
            return logits_spec(settings.batch, settings.classes, settings.logit_clip)
        noises = Block("noise", settings.batch * settings.noise, settings.noise_clip)
        return VectorSpec(GENERATOR, (noises, Block("generator", self._length, settings.clip)))

    def _shown(self, state: State) -> Arrays:
        return {"generator": state["generator"], "noise": state["noise"]}

    def _absorbed(self, name: str, state: State, step: int, sums: Sums, count: int) -> State:
        return self._moved(state, sums, count) if name == GENERATOR else self._labelled(state, step, sums)

    def _moved(self, state: State, sums: Sums, count: int) -> State:
        settings, members = self.settings, np.array([count], dtype=np.float64)
        change = weighted_mean(sums["generator"], members, settings.clip)
        drift = weighted_mean(sums["noise"], members, settings.noise_clip).reshape(state["noise"].shape)
        return {
            **state,
            "generator": bounded(state["generator"].astype(np.float64) + change, settings.bound),
            "noise": bounded(state["noise"].astype(np.float64) + drift, settings.noise_bound),
        }

    def _labelled(self, state: State, step: int, sums: Sums) -> State:
        settings = self.settings
        labels = soft_labels(sums, settings.batch, settings.classes, settings.logit_clip)
        towards = state["generator"].astype(np.float64) - state["meta"]
        move, moments = adam(state, towards, settings.lr * settings.local_steps, BETAS)
        finished: State = {
            **state,
            **moments,
            "meta": bounded(state["meta"].astype(np.float64) + move, settings.bound),
            "generators": np.concatenate([state["generators"], state["generator"][None]]),
            "noises": np.concatenate([state["noises"], state["noise"][None]]),
            "soft_labels": np.concatenate([state["soft_labels"], labels]),
        }
        return finished if step == len(self._steps) - 1 else self._with_fresh_batch(finished)

    def _with_fresh_batch(self, state: State) -> State:
        """A copy of the meta-generator, and noise close to N(0, 1) from the seed and the batch's number."""
        settings = self.settings
        seed = digest("generator noise", state["seed"].tobytes(), number(len(state["noises"])))
        fresh = noise(seed, settings.batch, (1, 1, settings.noise)).reshape(settings.batch, settings.noise)
        return {**state, "generator": state["meta"], "noise": bounded(fresh, settings.noise_bound)}
