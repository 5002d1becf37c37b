"""benchmarks/unequal_sites.py keeps runs of different kinds apart."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "unequal_sites.py"


def test_a_file_of_guarded_runs_is_no_file_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.jsonl"
    record = {"source": "digits", "classes": 2, "seed": 0, "unguarded": False, "lacking": False, "sites": []}
    file.write_text(json.dumps(record) + "\n")
    benchmark = runpy.run_path(str(BENCHMARK))
    assert benchmark["read"](file, {"unguarded": False, "lacking": False}) == [record]
    assert benchmark["read"](tmp_path / "new.jsonl", {"unguarded": True, "lacking": False}) == []
    for flag in ("--unguarded", "--lacking"):
        monkeypatch.setattr(sys, "argv", ["unequal_sites.py", str(file), flag])
        with pytest.raises(SystemExit) as ended:
            benchmark["main"]()
        assert ended.value.code == 2 and "name another file" in capsys.readouterr().err
    assert file.read_text() == json.dumps(record) + "\n"
