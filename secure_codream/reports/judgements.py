"""What a client's own judge found, in sentences for its screen and for reports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from secure_codream.reports.words import counted, listed


def judge_line(event: Mapping[str, Any]) -> str:
    """By what a client's rounds are judged, from the event `judge` of its log."""
    images = event["images"]
    if event["held_back"]:
        said = f"{counted(images, 'image')} of its own are held back from training and judge each round"
        return (
            said if event["sees_all"] else f"{said}; they lack classes of the task, and show a collapse, nothing finer"
        )
    if images:
        return (
            f"{counted(images, 'image')} are too few to hold some back: those that are trained on judge each round, "
            "and they show a collapse, nothing finer"
        )
    return "no image is held back from training, and nothing judges the rounds"


def fall_line(event: Mapping[str, Any]) -> str:
    """A round that left a worse model, from the event `worse` of its log."""
    images = f"{event['judged_by']} {'held-back' if event['held_back'] else 'own'} images"
    fall = f"{event['best_accuracy']:.2f} to {event['held_accuracy']:.2f}"
    by_class = f"{event['best_recall']:.2f} to {event['held_recall']:.2f} in the mean over the classes"
    best = "the warm-up" if event["best_round"] == 0 else f"round {event['best_round']}"
    after = (
        f"the weights of {best} are kept"
        if event["rolled_back"]
        else f"best.safetensors has the weights of {best}; the model that takes part stays as it is"
    )
    return f"round {event['round']} made the model worse on {images} ({fall}; {by_class}): {after}"


def held_now(line: Mapping[str, Any]) -> float | None:
    """What a client's model as it is gets right of the images that judge it, from a line of `metrics.jsonl`.

    `held_accuracy` there is of what the round made, which a client that rolls back no longer has.
    """
    found: float | None = line.get("best_accuracy" if line.get("rolled_back") else "held_accuracy")
    return found


def harm_line(alone: Mapping[str, Any], last: Mapping[str, Any]) -> str | None:
    """That a model knows less than training alone left it with, where chance is no explanation.

    Args:
        alone: figures on test images after training alone, a line of `metrics.jsonl`.
        last: the newest.
    """
    before, now, tested = alone.get("accuracy"), last.get("accuracy"), last.get("tested", 0)
    if before is None or now is None or not tested:
        return None
    error = math.sqrt((before * (1 - before) + now * (1 - now)) / tested)
    if before - now <= 2 * error:
        return None
    return (
        f"{100 * (before - now):.1f} points below training alone, where chance makes {200 * error:.1f}: these rounds "
        "harmed the model, and their settings do not suit the task (docs/federations.md, when rounds do harm)"
    )


def rolled_back_note(rounds: Mapping[str, Sequence[int]]) -> str:
    """Whose models were rolled back, and after which rounds; empty for nobody's."""
    clients = [
        f"{name} after {'round' if len(of) == 1 else 'rounds'} {listed([str(number) for number in of])}"
        for name, of in rounds.items()
    ]
    if not clients:
        return ""
    return f"Judged worse than before on the client's own images, and rolled back: {listed(clients)}."
