"""`overlay data`, the same as `python -m training.cli`: collect, take in, degrade, check, publish.

Each command lives in the module that does the work; none of them needs PyTorch to say its help.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from training.errors import DataError

#: Modules with `add_command(commands)`.
_MODULES = (
    "training.collect.collect",
    "training.collect.own",
    "training.degrade",
    "training.dataset",
    "training.publish",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands; each sets `data_run`, a function from the arguments to the exit code."""
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    for name in _MODULES:
        import_module(name).add_command(commands)


def run(arguments: argparse.Namespace) -> int:
    """Run the command that was named; give its exit code."""
    try:
        code: int = arguments.data_run(arguments)
    except DataError as exc:
        sys.stderr.write(f"overlay data: error: {exc}\n")
        return exc.exit_code
    except OSError as exc:  # a full disk, no permission, a closed pipe
        where = f"{exc.filename}: " if exc.filename else ""
        sys.stderr.write(f"overlay data: error: {where}{exc.strerror or exc}\n")
        return 1
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run one command; give its exit code."""
    parser = argparse.ArgumentParser(
        prog="overlay data", description="Make, check and publish training data."
    )
    add_arguments(parser)
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
