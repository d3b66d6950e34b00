"""`overlay trace`: what it prints, where it writes, what it refuses."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from overlay.errors import SettingsError, TraceError
from overlay.trace import cli
from overlay.trace.recorder import TraceRecorder


@pytest.fixture
def trace(tmp_path: Path, frames) -> Path:
    path = tmp_path / "t.csv"
    with TraceRecorder(path) as recorder:
        frames.fill(recorder, 100)
    return path


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return int(cli.run(parser.parse_args([*map(str, words)])))


def test_summary(trace: Path, capsys) -> None:
    assert run("summary", trace, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["frames"]["captured"] == 100
    assert run("summary", trace) == 0
    assert "100 frames captured" in capsys.readouterr().out


def test_a_damaged_trace_is_summed_up_and_said_to_be(trace: Path, capsys) -> None:
    trace.write_bytes(trace.read_bytes()[:-100])
    assert run("summary", trace, "--json") == 1
    streams = capsys.readouterr()
    assert json.loads(streams.out)["damage"].startswith("line ")
    assert "is incomplete: line " in streams.err
    assert streams.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "name", "begin"),
    [
        (["convert"], "PresentMon-*.csv", b"\xef\xbb\xbfApplication,"),
        (["convert", "--format", "mangohud"], "overlay_*.csv", b"os,cpu"),
        (["convert", "-f", "perfetto"], "t.perfetto.json", b'{"displayTimeUnit"'),
        (["convert", "-o", "OUT/x.json"], "x.json", b'{"displayTimeUnit"'),
        (["convert", "-o", "OUT/x.csv"], "x.csv", b"\xef\xbb\xbfApplication,"),
        (["plot"], "t.html", b"<!doctype html>"),
        (["plot", "-o", "OUT/x.png"], "x.png", b"\x89PNG"),
    ],
)
def test_output(trace: Path, words: list[str], name: str, begin: bytes, capsys) -> None:
    if name.endswith(".png"):
        pytest.importorskip("matplotlib")
    words = [word.replace("OUT", str(trace.parent)) for word in words]
    assert run(words[0], trace, *words[1:]) == 0
    (path,) = trace.parent.glob(name)
    assert path.read_bytes().startswith(begin)
    assert capsys.readouterr().out == f"{path}\n"


@pytest.mark.parametrize("action", [["convert"], ["plot"]])
def test_the_trace_itself_is_never_overwritten(trace: Path, action: list[str]) -> None:
    before = trace.read_bytes()
    link = trace.with_name("link.html")
    link.symlink_to(trace)
    with pytest.raises(SettingsError, match="is the trace itself"):
        run(*action, trace, "-o", link)
    with pytest.raises(SettingsError, match=r"is the trace itself|must end in"):
        run(*action, trace, "-o", trace)
    assert trace.read_bytes() == before


def test_a_trace_named_like_the_default_output_is_safe(trace: Path) -> None:
    page = trace.rename(trace.with_name("t.html"))
    with pytest.raises(SettingsError, match="is the trace itself"):
        run("plot", page)


def test_wrong_use_is_refused(trace: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"must end in \.png or \.html, not 'x\.gif'"):
        run("plot", trace, "-o", tmp_path / "x.gif")
    with pytest.raises(TraceError, match="cannot read the trace"):
        run("summary", tmp_path / "none.csv")
    with pytest.raises(SystemExit):
        run("convert", trace, "--format", "nope")


def test_the_parser_costs_no_heavy_import() -> None:
    code = (
        "import argparse, sys, overlay.trace.cli as cli\n"
        "cli.add_arguments(argparse.ArgumentParser())\n"
        "assert 'matplotlib' not in sys.modules and 'overlay.trace.plot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
