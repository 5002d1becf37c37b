"""What a person is told where the library of the command line says less: a flag that does not fit, an interruption."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from secure_codream.command_parts import say_failure

_ALLOWED = {
    "greater_than_equal": "at least {ge:,} is allowed",
    "greater_than": "above {gt:,} is allowed",
    "less_than_equal": "at most {le:,} is allowed",
    "less_than": "below {lt:,} is allowed",
    "int_parsing": "a whole number is allowed",
    "int_parsing_size": "a whole number that is not so long is allowed",
    "int_from_float": "a whole number is allowed",
    "float_parsing": "a number is allowed",
    "finite_number": "a finite number is allowed",
    "bool_parsing": "true or false is allowed",
}


class OwnWords(TyperGroup):
    """The command line. The library says of a flag what is allowed, not what was found; of Ctrl-C it says nothing."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command, as the library does."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = _told(error)
            raise
        except KeyboardInterrupt:
            say_failure("interrupted")
            raise typer.Exit(130) from None


def _told(error: typer.BadParameter) -> str:
    from pydantic import ValidationError

    if not isinstance(error.__cause__, ValidationError):  # one of our own, or of a file that is not there
        return error.message
    problem = error.__cause__.errors()[0]
    allowed = _ALLOWED.get(problem["type"])
    if allowed is None:
        return error.message.removeprefix("Value error, ")
    return f"found {problem['input']!s:.80}; {allowed.format(**problem.get('ctx', {}))}"
