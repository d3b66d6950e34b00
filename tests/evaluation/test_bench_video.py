"""`overlay bench --suite video`: what it measures and how it is set."""

from __future__ import annotations

import json

import pytest

from evaluation.bench import video
from evaluation.bench.video import Alone, Case
from overlay.cli import main
from overlay.files.video_segments import Spent
from overlay.frame import Size


def row(cores: int, decode: float, infer: float, encode: float) -> video.Row:
    """Of 100 frames whose stages took so many seconds alone, on one core and a half each."""
    times = zip(video.STAGES, (decode, infer, encode), strict=True)
    alone = {name: Alone(wall, 1.5 * wall) for name, wall in times}
    size = Size(48, 27)
    return Case(
        "a", size, size, "x", 100, cores, alone, whole_s=10.0, spent=Spent(100, 1, 4, 7, 8.0)
    ).to_json()


def test_what_the_stages_allow() -> None:
    found = row(16, 1.0, 2.0, 5.0)
    assert (found["slowest_fps"], found["shared_fps"]) == (20.0, 133.33)
    assert (found["whole_fps"], found["running_fps"]) == (10.0, 12.5)
    assert (found["whole_of_allowed"], found["running_of_allowed"]) == (0.5, 0.625)
    assert found["cpu_share"] == {"decode": 0.125, "infer": 0.25, "encode": 0.625}
    assert found["busy_share"] == {"decode": 0.125, "infer": 0.5, "encode": 0.875}
    shared = row(2, 1.0, 2.0, 5.0)
    assert shared["shared_fps"] == 16.67
    assert shared["whole_of_allowed"] == 0.6


def test_a_small_video(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "--suite", "video", "--models", "default-x2", "--sizes", "64x36"]
    assert main([*words, "--frames", "9", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (only,) = found["rows"]
    assert (only["model"], only["input_size"], only["output_size"]) == (
        "default-x2", "64x36", "128x72",
    )  # fmt: skip
    assert (only["encoder"], only["frames"]) == ("libx264", 9)
    assert all(only["alone_fps"][name] > 0 for name in video.STAGES)
    assert abs(sum(only["cpu_share"].values()) - 1) < 0.01
    lines = video.text(found).splitlines()[2:]
    assert len({line.count("|") for line in lines}) == 1
    assert "default-x2" in lines[2]
