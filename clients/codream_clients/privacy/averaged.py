"""The mean of the weights that a private training goes through, as its model (Polyak and Juditsky, 1992).

Of each iterate the accountants assume that everybody sees it, so a mean of them is processing and costs nothing. Noise
that one step adds is averaged out over the next. The mean is an exponential one, of how many steps `averaging` says.
"""

from __future__ import annotations

import torch
from torch import nn

from codream_protocols.courses.numbers import kept_of_mean

_MEAN = "mean of "


class Averaged:
    """A network under training, and the mean of its weights so far, in double precision.

    Args:
        network: what is trained.
        averaging: how much of the mean stays in a step's; 0 keeps none, and the network is the model.
    """

    def __init__(self, network: nn.Module, averaging: float) -> None:
        self._network, self._averaging = network, averaging
        trained = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        self._mean = {name: weight.detach().double() for name, weight in trained.items() if averaging}

    def take(self, steps: int) -> None:
        """Count the network's weights, after so many steps in all, 1 or more."""
        kept = kept_of_mean(self._averaging, steps - 1)
        weights = dict(self._network.named_parameters())
        for name, mean in self._mean.items():
            self._mean[name] = kept * mean.to(weights[name].device) + (1 - kept) * weights[name].detach().double()

    def reached(self) -> dict[str, torch.Tensor]:
        """All that `go_on` needs: what the network holds, and its mean."""
        return {**self._network.state_dict(), **{_MEAN + name: mean for name, mean in self._mean.items()}}

    def go_on(self, reached: dict[str, torch.Tensor]) -> None:
        """Take up what an earlier process had reached."""
        self._mean = {name: reached[_MEAN + name] for name in self._mean}
        self._network.load_state_dict({name: found for name, found in reached.items() if not name.startswith(_MEAN)})

    def model(self) -> dict[str, torch.Tensor]:
        """What the network holds, with the mean in the place of its trained weights."""
        held = self._network.state_dict()
        return {**held, **{name: mean.to(held[name]) for name, mean in self._mean.items()}}
