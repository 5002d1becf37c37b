"""The page on federations says what whole blocks cost."""

from __future__ import annotations

import re
from pathlib import Path

from codream_protocols.charter import even_blocks

PAGE = Path(__file__).parents[2] / "docs" / "federations.md"
RATES = (0.01, 0.05, 0.1)
ROW = re.compile(r"^\| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) % \| ([\d.]+) % \| ([\d.]+) % \|$", re.MULTILINE)


def test_costs_of_blocks_follow_from_the_rule_of_blocks() -> None:
    rows = ROW.findall(PAGE.read_text())
    assert len(rows) == 4
    for members, colluders, count, *shares in rows:
        blocks = even_blocks(int(members), int(colluders))
        assert len(blocks) == int(count)
        for rate, share in zip(RATES, shares, strict=True):
            summed = sum(len(block) * (1 - rate) ** len(block) for block in blocks)
            assert f"{100 * summed / int(members):.1f}" == share
