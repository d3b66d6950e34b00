"""Check everything: format, lint, types on both platforms, tests.

People run it as `make test` or `python check.py`, and so does CI. All steps run, also after a
failure; the last line says what failed. In CI (`CI` set) a test whose tools are missing fails
instead of being skipped (`OVERLAY_TEST_STRICT`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def steps(fast: bool, pytest_arguments: Sequence[str]) -> dict[str, list[str]]:
    """Name the checks, in order, with the arguments for `python -m`."""
    pytest = ["pytest", "-rs", "--durations=10"]
    pytest += ["-m", "not game and not slow"] if fast else []
    # Nothing in these folders depends on the time it takes, so files may run side by side.
    nets = [f"tests/{name}" for name in ("engines", "evaluation", "training")]
    tests = {
        "tests, nets": [*pytest, "--numprocesses=auto", "--dist=loadfile", *nets],
        "tests, rest": [*pytest, *(f"--ignore={name}" for name in nets)],
    }
    if pytest_arguments:
        tests = {"tests": [*pytest, *pytest_arguments]}
    return {
        "format": ["ruff", "format", "--check", "."],
        "lint": ["ruff", "check", "."],
        "types": ["mypy"],
        "types, Windows": ["mypy", "--platform", "win32"],
        "types, tools": ["mypy", "check.py", "tools/bootstrap.py"],
        **tests,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Format, lint, types, tests.")
    parser.add_argument("--fast", action="store_true", help="without games and slow tests")
    parser.add_argument("pytest_arguments", nargs="*", help="for pytest, after --")
    options = parser.parse_args(argv)
    env = dict(os.environ)
    if env.get("CI"):
        env["OVERLAY_TEST_STRICT"] = "1"
    failed = []
    began = time.perf_counter()
    for name, arguments in steps(options.fast, options.pytest_arguments).items():
        print(f"== {name}: {' '.join(arguments)}", flush=True)
        step_began = time.perf_counter()
        result = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=env, check=False)
        verdict = "ok" if result.returncode == 0 else f"FAILED ({result.returncode})"
        print(f"-- {name}: {verdict}, {time.perf_counter() - step_began:.1f} s", flush=True)
        if result.returncode != 0:
            failed.append(name)
    total = f"{time.perf_counter() - began:.0f} s"
    if failed:
        print(f"check: FAILED after {total}: {', '.join(failed)}")
        return 1
    left_out = " (games and slow tests left out)" if options.fast else ""
    print(f"check: all passed in {total}{left_out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
