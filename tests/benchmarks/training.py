"""Features and fit of a training: seconds of the processor and peak memory of ``fraud-pipeline train``.

Run ``python -m tests.benchmarks.training FILE``; ``fraud-pipeline simulate`` makes a file. Each ``--code`` is a
checkout to compare with this one. Runs alternate between them; the first of each compiles, and is not counted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, Final

from tests.benchmarks.tables import Table, as_text, number

_SHOWN: Final = {"features_s": 1, "fit_s": 1, "peak_mb": 0}
"""Decimals of the figures of a run."""
HERE: Final = Path(__file__).parents[2]
_CHILD: Final = """
import json, resource, sys, time
import pipeline.commands.train as of
began, grow, marks = time.process_time(), of.train, {}
def timed(data, *arguments, **keywords):
    marks.update(rows=len(data.fraud), features_s=time.process_time() - began)
    begun = time.process_time()
    trained = grow(data, *arguments, **keywords)
    marks.update(fit_s=time.process_time() - begun, version=trained.model.version)
    return trained
of.train = timed
of.command.main(sys.argv[1:], standalone_mode=False)
marks.update(peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(json.dumps(marks))
"""


def measured(code: Path, arguments: list[str]) -> dict[str, Any]:
    """Train once in a process of its own; return rows, seconds of the processor, peak memory and the version."""
    environment = {**os.environ, "PYTHONPATH": str(code), "NUMBA_CACHE_DIR": str(code / "build/cache/numba")}
    with tempfile.TemporaryDirectory() as registry:
        command = [sys.executable, "-c", _CHILD, *arguments, "--registry", registry, "--no-activate"]
        done = subprocess.run(command, cwd=code, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compared(codes: list[Path], arguments: list[str], repeats: int) -> Table:
    """Return the medians of each checkout."""
    runs: dict[Path, list[dict[str, Any]]] = {code: [] for code in codes}
    for repeat in range(repeats + 1):
        for code in codes:
            run = measured(code, arguments)
            if repeat:
                runs[code].append(run)
    rows = [
        (
            code.name,
            run[0]["version"],
            number(run[0]["rows"]),
            *(number(median(run[name] for run in run), digits) for name, digits in _SHOWN.items()),
        )
        for code, run in runs.items()
    ]
    head = ("code", "version", "rows", "features, s", "fit, s", "peak, MB")
    return Table("Training: seconds of the processor, and peak memory", head, tuple(rows), words=frozenset({0, 1}))


def main() -> None:
    """Print a row a checkout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--code", type=Path, action="append", default=[], help="Checkout to compare with.")
    parser.add_argument("--repeats", type=int, default=3)
    options, arguments = parser.parse_known_args()
    codes = [*(code.resolve() for code in options.code), HERE]
    print(as_text(compared(codes, [str(options.file.resolve()), *arguments], options.repeats)))


if __name__ == "__main__":
    main()
