"""How many audits refute noise of half the size, and how many refute honest noise: docs/privacy.md.

Each audit is the command's own look at the mechanism alone (`audit.two_worlds`): one step of the deployed private
training in two worlds, with noise that no other audit has. A line of the file that is named is one audit; whoever
starts again goes on behind it.

    python benchmarks/audit_refutations.py refutations.jsonl
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from codream_clients.privacy.accounting import SampledGaussian, epsilon_of, solve_noise_multiplier
from secure_codream.audit.run import ADVERSARIES
from secure_codream.audit.two_worlds import audit_two_worlds, one_step

CLAIMS, AUDITS, DELTA, CONFIDENCE = (2.0, 4.0, 8.0), 20, 1e-5, 0.95


def main() -> None:
    """Run what the file has not, and print what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kept", type=Path, help="one audit a line")
    parser.add_argument("--runs", type=int, default=800, help="of the mechanism, in each world")
    options = parser.parse_args()
    kept = [json.loads(line) for line in options.kept.read_text().splitlines()] if options.kept.exists() else []
    done = {(one["claim"], one["noise"], one["audit"]) for one in kept}
    for number in range(AUDITS):
        for claim in CLAIMS:
            for noise in ("half", "honest"):
                if (claim, noise, number) in done:
                    continue
                found = audited(claim, noise, number, options.runs)
                kept.append(found)
                with options.kept.open("a") as file:
                    file.write(json.dumps(found) + "\n")
    for claim in CLAIMS:
        for noise in ("half", "honest"):
            of = [one for one in kept if (one["claim"], one["noise"]) == (claim, noise)]
            seconds = sum(one["seconds"] for one in of)
            print(
                f"claim {claim:g}, {noise}: {sum(one['refuted'] for one in of)} of {len(of)} refuted, {seconds:.0f} s"
            )


def audited(claim: float, noise: str, number: int, runs: int) -> dict[str, float | str | bool]:
    """One audit; all that it drew follows from its number, and is nobody else's."""
    began, seed = time.process_time(), 2 * (AUDITS * CLAIMS.index(claim) + number) + (noise == "half")
    alone = solve_noise_multiplier(target_epsilon=claim, delta=DELTA, sample_rate=1.0, steps=1)
    row = audit_two_worlds(
        one_step(alone / 2 if noise == "half" else alone, seed),
        runs=runs,
        claimed=epsilon_of([SampledGaussian(alone, 1.0, 1, "one step")], DELTA),
        delta=DELTA,
        confidence=1 - (1 - CONFIDENCE) / ADVERSARIES,
    )
    return {
        "claim": claim,
        "noise": noise,
        "audit": number,
        "runs": runs,
        "refuted": row.epsilon_lower > row.epsilon_claimed,
        "bound": row.epsilon_lower,
        "seconds": time.process_time() - began,
    }


if __name__ == "__main__":
    main()
