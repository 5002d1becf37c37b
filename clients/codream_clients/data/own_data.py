"""Images from a user's own function, `my_module:load`, without registration or subclassing.

It takes no argument and returns (train, test), each as `given` takes it: `LabelledImages`, or a pair (images, labels).
Loading it runs the module's code; see `own_parts`.
"""

from collections.abc import Sequence

from codream_clients.data.arrays import Told
from codream_clients.data.datasets import DatasetError, LabelledImages
from codream_clients.data.given import NEEDED, described, given_images
from codream_clients.data.pixels import RawImages
from codream_clients.data.understanding import Notes, Understanding, understood
from codream_clients.own_parts import OwnPartError, call_own_part, load_own_part


def load_own_data(
    reference: str,
    *,
    classes: int | None = None,
    class_names: Sequence[str] | None = None,
    told: Told | None = None,
) -> tuple[RawImages | LabelledImages, RawImages | LabelledImages, Understanding]:
    """What the function that `reference` names returns, checked, as (train, test, what was understood).

    `classes`: how many there are; None takes one more than the largest label, where every label below it is on some
    image (LabelledImages say it themselves). `class_names`, `told`: see `given_images`.
    Raises `OwnPartError` if the function cannot be loaded or fails, returns anything else than described above, or
    its arrays do not fit; the text says what came (type, shape, range) and what is needed.
    """
    returned, notes = call_own_part(reference, load_own_part(reference)), Notes()
    if not (isinstance(returned, tuple | list) and len(returned) == 2):
        raise OwnPartError(f"{reference}() returned {described(returned)}; (train, test), each {NEEDED}")
    try:
        parts = given_images(
            {"training": returned[0], "test": returned[1]},
            classes=classes,
            class_names=class_names,
            told=told,
            notes=notes,
        )
    except DatasetError as error:
        raise OwnPartError(f"{reference}(): {error}") from error
    train, test = parts["training"], parts["test"]
    return train, test, understood(reference, "an own function", (("training", train), ("test", test)), notes)
