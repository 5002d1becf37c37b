"""A client in a person's own program, with that program's model and images."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from torch import nn

from codream_clients.data.arrays import Told
from codream_clients.data.datasets import DatasetError, LabelledImages
from codream_clients.data.understanding import DataWarning, Understanding, numbers_mean, understood
from codream_clients.learning.participant import Metrics
from secure_codream.api.beside import arun, in_this_loop, run
from secure_codream.api.images import Images, given
from secure_codream.configuration.federation import read_federation
from secure_codream.configuration.images import standardised, with_scale_said
from secure_codream.configuration.reading import ConfigError
from secure_codream.deployment.client import run_client
from secure_codream.deployment.signals import Stop

OnRound = Callable[[Metrics], object]


class Client:
    """A client of a federation, from the folder that `secure-codream provision` made for it.

    Args:
        folder: the client's folder.
        model: an `nn.Module`, (N, C, H, W) to logits (N, K), trained in place; None takes the configured one.
        train: the client's own images; None takes the configured data, `test` included.
        test: images to report accuracy on, never to train on; they may be left out.

    Raises:
        ConfigError: images that are none, or could be understood in two ways.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        model: nn.Module | None = None,
        train: Images | None = None,
        test: Images | None = None,
    ) -> None:
        self._folder, self._model = Path(folder), model
        self._data: tuple[LabelledImages, LabelledImages | None] | None = None
        self._understood: Understanding | None = None
        if train is not None:
            task = read_federation(self._folder / "config.toml").task
            parts = {"training": train, **({} if test is None else {"test": test})}
            found, notes = given(parts, classes=task.classes, class_names=task.class_names, told=Told(shape=task.shape))
            if task.class_names is not None and found["training"].class_names is None:
                notes.reads(numbers_mean(task.class_names))
            as_given = understood("the arrays given", "in a script", list(found.items()), notes)
            try:
                self._understood = with_scale_said(as_given, found.items(), task)
                ready = [standardised(part, task) for part in found.values()]
            except DatasetError as error:
                raise ConfigError(f"images: {error}") from error
            for warning in self._understood.warnings:
                warnings.warn(warning, DataWarning, stacklevel=2)
            self._data = (ready[0], ready[1] if len(ready) > 1 else None)

    def run(self, *, address: str | None = None, on_round: OnRound | None = None) -> None:
        """Take part until the federation is over; the model holds what was learnt. In a thread and a notebook, too.

        Args:
            address: where the server listens; None takes the roster's.
            on_round: called with the figures after the warm-up (`rounds` is 0) and after each round, in the thread that
                learns. What it raises goes to the logger `secure_codream`, and ends nothing: the others wait for this
                client.

        Raises:
            KeyboardInterrupt: it was interrupted, or stopped by SIGTERM. The sockets are closed, and nothing is written
                into the folder any more; a training that is under way ends with its round. Run it again to go on.
            ProtocolError, ConfigError, KeyFileError: see `secure_codream.deployment.client.run_client`.
        """
        run(self._running(address, on_round))

    async def arun(self, *, address: str | None = None, on_round: OnRound | None = None) -> None:
        """The same beside what this event loop does, which also calls `on_round`; cancel it to stop."""
        await arun(self._running(address, in_this_loop(on_round)))

    def _running(self, address: str | None, on_round: OnRound | None) -> Callable[[Stop | None], None]:
        return lambda stop: run_client(
            self._folder,
            address=address,
            model=self._model,
            data=self._data,
            understood=self._understood,
            on_round=on_round,
            stop=stop,
        )
