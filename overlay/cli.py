"""The command line: parse, call one handler, turn errors into one line and an exit code.

Handlers are imported only when their command is called, so that `overlay --help` is fast and
nothing optional has to be installed for it.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from engines.errors import EngineError
from overlay import __version__, log
from overlay.errors import OverlayError

_EXIT_CODES = """\
exit codes: 0 ok, 1 other failure, 2 usage, 3 nothing to capture, 4 no usable back end,
5 model or engine problem, 6 display lost, 130 interrupted, 143 terminated"""

REPAIR = (
    "install sr-overlay again; on Debian and Ubuntu also: apt install libgl1 libegl1 libglib2.0-0"
    if sys.platform == "linux"
    else "install sr-overlay again"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; give its exit code."""
    try:
        arguments = build_parser(sys.argv[1:] if argv is None else argv).parse_args(argv)
        log.set_up(arguments.verbose)
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except (OverlayError, EngineError) as exc:
        return _complain(str(exc), exc.exit_code)
    except ImportError as exc:  # a package of ours, or a system library one of them needs
        return _complain(f"cannot load {exc.name or 'a library'}: {exc}; {REPAIR}", 4)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as exc:  # the one place that catches all: no traceback for players
        logging.getLogger(__name__).critical("unexpected", exc_info=True)
        return _complain(
            f"unexpected {type(exc).__name__}: {exc}; the log is {log.log_path()}; "
            "overlay doctor --bundle packs what a report needs",
            1,
        )


def _complain(text: str, code: int) -> int:
    sys.stderr.write(f"overlay: error: {text}\n")
    return code


def build_parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Make the parser; only the command named in `argv` gets its options (and is imported)."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-v", "--verbose", action="store_true", help="log more")
    parser = argparse.ArgumentParser(
        prog="overlay",
        description="Upscale a running game's window in real time.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"overlay {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, module) in _COMMANDS.items():
        command = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", parents=[common]
        )
        if name in argv:
            found = import_module(module)
            found.add_arguments(command)
            command.set_defaults(run=found.run)
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`, the same everywhere."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add `--config`, the same everywhere."""
    parser.add_argument(
        "--config", type=Path, metavar="TOML", help='options and [profile."regex"] tables'
    )


Handler = Callable[[argparse.Namespace], int]

#: name: (help, module with add_arguments(parser) and run(arguments) -> exit code)
_COMMANDS = {
    "run": ("upscale a game's window", "overlay.run"),
    "demo": ("show it on Freedoom", "overlay.demo"),
    "upscale": ("upscale pictures and videos in files", "overlay.files.cli"),
    "compare": ("compare pictures: PSNR, SSIM, and a page to see", "overlay.compare.cli"),
    "serve": ("upscale pictures over HTTP", "service.cli"),
    "engines": ("build engines for this machine, list, verify, clean", "engines.cli"),
    "windows": ("list the windows that could be captured", "overlay.windows"),
    "doctor": ("say what works here, and how to fix what does not", "overlay.doctor"),
    "latency": ("measure the delay from the game to the screen", "overlay.latency"),
    "bench": ("measure the speed of upscalers", "evaluation.bench"),
    "data": ("make, check and publish training data", "training.cli"),
    "trace": ("summarise, convert or plot a trace", "overlay.trace.cli"),
}
