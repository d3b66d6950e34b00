"""`overlay trace summary|convert|plot FILE`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from overlay.errors import SettingsError

if TYPE_CHECKING:
    from overlay.trace.table import TraceTable

_EXAMPLES = """\
examples:
  overlay trace summary t.csv --json
  overlay trace convert t.csv --format perfetto -o t.json
  overlay trace plot t.csv -o t.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions of `overlay trace`."""
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="trace_action", required=True, metavar="ACTION")

    summary = actions.add_parser("summary", help="average fps, 1%% low, percentiles, counts")
    summary.add_argument("file", type=Path, metavar="FILE", help="the trace (.csv)")
    summary.add_argument("--json", action="store_true", help="print one JSON object")

    convert = actions.add_parser("convert", help="write it for PresentMon, MangoHud or Perfetto")
    convert.add_argument("file", type=Path, metavar="FILE", help="the trace (.csv)")
    convert.add_argument(
        "-f",
        "--format",
        choices=("presentmon", "mangohud", "perfetto"),
        help="default: by the name of OUTPUT (.json = perfetto, else presentmon)",
    )
    convert.add_argument(
        "-o",
        "--output",
        type=Path,
        help="default: in the trace's folder, named as the format's own tool would name it",
    )

    plot = actions.add_parser("plot", help="draw it as a PNG or an HTML page")
    plot.add_argument("file", type=Path, metavar="FILE", help="the trace (.csv)")
    plot.add_argument(
        "-o", "--output", type=Path, help="a .png or .html file; default: FILE with .html"
    )


def run(args: argparse.Namespace) -> int:
    """Do what the parsed arguments ask for.

    Returns:
        0, or 1 if the trace is damaged and the result is of what could be read.

    Raises:
        TraceError: the trace cannot be read, or the result cannot be written.
        SettingsError: the output would overwrite the trace, or its name has the wrong ending.
        BackendUnavailable: a PNG is asked for without matplotlib.
    """
    from overlay.trace.csvfile import read_trace

    output = _output(args)
    table = read_trace(args.file)
    if args.trace_action == "summary":
        _summary(table, as_json=args.json)
    elif args.trace_action == "convert":
        _convert(args, table, output)
    else:
        _plot(args, table, output)
    if table.damage is not None:
        sys.stderr.write(f"{args.file} is incomplete: {table.damage}\n")
        return 1
    return 0


def _output(args: argparse.Namespace) -> Path | None:
    output: Path | None = getattr(args, "output", None)
    if args.trace_action == "plot":
        output = output or args.file.with_suffix(".html")
        if output.suffix.lower() not in (".png", ".html", ".htm"):
            raise SettingsError(f"--output must end in .png or .html, not {output.name!r}")
    if output is not None:
        _refuse_input(output, args.file)
    return output


def _refuse_input(output: Path, trace: Path) -> None:
    from overlay.trace.csvfile import is_same_file

    if is_same_file(output, trace):
        raise SettingsError(f"{output} is the trace itself; name another --output")


def _summary(table: TraceTable, as_json: bool) -> None:
    from overlay.trace.summary import summarise

    summary = summarise(table)
    text = json.dumps(summary.to_json(), indent=2) if as_json else str(summary)
    sys.stdout.write(f"{text}\n")


def _convert(args: argparse.Namespace, table: TraceTable, output: Path | None) -> None:
    from overlay.trace import convert

    named_json = output is not None and output.suffix.lower() == ".json"
    format: convert.Format = args.format or ("perfetto" if named_json else "presentmon")
    if output is None:
        output = args.file.with_name(convert.file_name(format, table, args.file.stem))
        _refuse_input(output, args.file)
    convert.convert(table, format, output)
    sys.stdout.write(f"{output}\n")


def _plot(args: argparse.Namespace, table: TraceTable, output: Path | None) -> None:
    from overlay.trace.plot import plot_html, plot_png

    if output is None:
        raise ValueError("a plot needs an output")
    draw = plot_png if output.suffix.lower() == ".png" else plot_html
    draw(table, output, args.file.name)
    sys.stdout.write(f"{output}\n")
