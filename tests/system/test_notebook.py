"""The notebook, cell by cell as a notebook runs them: in one loop, with `await` at the top."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import json
from types import CodeType
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.pages import ROOT, fits

CELLS = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]


async def value_of(code: CodeType, names: dict[str, Any]) -> Any:
    value = eval(code, names)
    return await value if inspect.iscoroutine(value) else value


async def printed_by(source: str, names: dict[str, Any]) -> list[str]:
    """What a cell prints, and the value of its last line."""
    cell = ast.parse(source)
    last = cell.body.pop() if isinstance(cell.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        await value_of(compile(cell, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
        if isinstance(last, ast.Expr):
            line = compile(ast.Expression(last.value), "cell", "eval", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            value = await value_of(line, names)
            if value is not None:
                print(repr(value))
    return stream.getvalue().splitlines()


@pytest.mark.system
@pytest.mark.filterwarnings("ignore:the training part has no image")
def test_every_cell_prints_what_it_shows() -> None:
    async def run_all() -> None:
        names: dict[str, Any] = {"__name__": "__main__"}
        for cell in CELLS:
            if cell["cell_type"] == "code":
                shown = [line for one in cell["outputs"] for line in one.get("text") or one["data"]["text/plain"]]
                printed = await printed_by("".join(cell["source"]), names)
                assert fits([line.rstrip("\n") for line in shown], printed), (cell["source"], printed)

    asyncio.run(run_all())
