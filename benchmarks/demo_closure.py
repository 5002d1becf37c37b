"""Gap closure of the demonstration over seeds, with 95 % intervals: runs the command that a user would type.

python benchmarks/demo_closure.py                # seeds 0 to 4, alpha 0.5 and iid; a Markdown table
python benchmarks/demo_closure.py --seeds 0 1 --alpha iid
"""

import argparse
import json
import subprocess
import sys
import tempfile
from statistics import fmean

from secure_codream.experiments.estimates import estimate


def interval(values: list[float]) -> str:
    """Mean and half-width of the 95 % interval."""
    found = estimate(values)
    assert found is not None
    return f"{found.mean:.3f}" if found.half is None else f"{found.mean:.3f} ± {found.half:.3f}"


def main() -> None:
    """Run the demonstrations and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--alpha", nargs="+", default=["0.5", "iid"])
    options = parser.parse_args()
    print("| partition | alone | CoDream | dreams alone | all data | gap closure | each seed | up / payload | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for alpha in options.alpha:
        runs = []
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as out:
                command = [sys.executable, "-m", "secure_codream", "demo", "--json"]
                command += ["--alpha", alpha, "--seed", str(seed), "--out", out]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                runs.append(json.loads(done.stdout))
        accuracy = [run["accuracy"] for run in runs]
        closure = [run["gap_closure"] for run in runs]
        columns = [
            f"Dirichlet {alpha}" if alpha != "iid" else "IID",
            interval([value["independent"]["mean"] for value in accuracy]),
            interval([value["codream"]["mean"] for value in accuracy]),
            interval([value["student"] for value in accuracy]),
            interval([value["centralised"] for value in accuracy]),
            interval(closure),
            ", ".join(f"{value:.2f}" for value in closure),
            f"{max(run['bytes']['overhead'] for run in runs):.3f}",
            f"{fmean(run['seconds']['total'] for run in runs):.0f}",
        ]
        print("| " + " | ".join(columns) + " |", flush=True)


if __name__ == "__main__":
    main()
