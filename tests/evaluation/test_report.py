"""The report: which points are beaten by none, the pictures, and the files it writes."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from evaluation import results
from evaluation.metrics.errors import EvaluationError
from evaluation.report import __main__ as report
from evaluation.report import crops, pareto, seed
from evaluation.report.pareto import Point

CROPS = Path(__file__).parents[1] / "data" / "freedoom"


def bench_row(kind: str, model: str, ms: float, **more: Any) -> dict[str, Any]:
    times = {"ms": {"p50": ms}}
    return {
        "kind": kind, "model": model, "backend": "b", "device": "d", "scale": 4,
        "input_size": "96x72", "output_size": "384x288", "upscale": times, "whole": times, **more,
    }  # fmt: skip


LATENCY = [
    bench_row("cv2", "bicubic", 2.0),
    bench_row("cv2", "bilinear", 2.01),
    bench_row("shader", "bicubic", 5.0),
    bench_row("shader", "lanczos", 6.0),
    bench_row("net", "default-x4", 9.0),
    bench_row("net", "default-x4", 8.0, backend="faster"),
    bench_row("net", "default-x4", 1.0, input_size="10x10"),
    bench_row("net", "slow <&>", 80.0),
]
MODELS = {
    "bilinear": ("baseline", 29.0), "bicubic": ("baseline", 30.0), "lanczos": ("baseline", 31.0),
    "catmull-rom": ("baseline", 29.5), "default-x4": ("net", 31.0), "slow <&>": ("net", 30.5),
}  # fmt: skip


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A result of two real frames with made figures; the frames are where it says."""
    frames = {}
    for folder in ("lr", "hr"):
        (tmp_path / folder).mkdir()
    for number, name in enumerate(("map20-0005-x4", "map07-0012-x4")):
        for folder in ("lr", "hr"):
            picture = (CROPS / f"{name}-{folder}.png").read_bytes()
            (tmp_path / folder / f"f_m{number}_0001.png").write_bytes(picture)
        frames[f"f_m{number}_0001"] = f"f_m{number}"
    rows = [
        results.Frames(model, kind, values={f: {"psnr": v + i} for i, f in enumerate(frames)})
        for model, (kind, v) in MODELS.items()
    ]
    facts = {
        "machine": {"cpu": "a CPU", "cores": 2}, "command": "python -m evaluation.evaluate",
        "lr": str(tmp_path / "lr"), "hr": str(tmp_path / "hr"), "crop": 4, "seed": 0,
        "lr_size": "96x72", "hr_size": "384x288", "metrics": ["psnr"],
        "definitions": {"psnr": "its definition"},
    }  # fmt: skip
    made = results.Result(facts, 4, ["psnr"], rows, frames, ["x: left"], ["bicubic"], 0)
    path = tmp_path / "made.json"
    path.write_text(json.dumps(made.to_json()))
    return path


def test_points_join_names_and_sizes(result: Path) -> None:
    found = pareto.points(results.read(result), "psnr", LATENCY)
    assert [(p.model, p.ms) for p in found] == [
        ("bicubic", 2.0), ("bilinear", 2.01), ("catmull-rom", 5.0), ("default-x4", 8.0),
        ("slow <&>", 80.0),
    ]  # fmt: skip
    assert [p.gain for p in found] == pytest.approx([0, -1, -0.5, 1, 0.5])
    assert {p.model for p in found if p.best} == {"bicubic", "default-x4"}
    assert found[3].where == "faster, d"


def test_best_means_beaten_by_none() -> None:
    def best(higher: bool, *pairs: tuple[float, float]) -> list[bool]:
        made = [Point(str(i), "net", ms, "", g, g, None) for i, (ms, g) in enumerate(pairs)]
        return [point.best for point in pareto._marked(made, higher)]

    assert best(True, (1, 0), (2, 1), (3, 0.5)) == [True, True, False]
    assert best(False, (1, 0), (2, 1), (3, -1)) == [True, False, True]
    assert best(True, (1, 1), (1.01, 1)) == [True, True]  # equal for all that can be told
    assert best(True, (1, 1), (1.01, 2)) == [False, True]


def test_the_svg_is_well_formed_and_runs_nothing(result: Path) -> None:
    found = pareto.points(results.read(result), "psnr", LATENCY)
    html = report._html([pareto.svg(found, "psnr")])
    assert not re.search(r"<script|https?://|javascript:|onload", html)
    drawing = ET.fromstring(pareto.svg(found, "psnr"))
    points = {
        group[0].text.splitlines()[0]: (float(group[1].get("cx")), float(group[1].get("cy")))
        for group in drawing.iter("g")
    }
    assert set(points) == {p.model for p in found}
    assert points["bicubic"][0] < points["default-x4"][0] < points["slow <&>"][0]
    assert points["default-x4"][1] < points["bicubic"][1] < points["bilinear"][1]
    assert "No model" in pareto.svg([], "psnr")


def test_the_busiest_square() -> None:
    picture = np.full((200, 300, 3), 128, np.uint8)
    picture[96:144, 192:240] = np.random.default_rng(0).integers(0, 255, (48, 48, 3))
    assert crops.busiest(picture, 48, 4) == (96, 192)
    assert crops.busiest(picture, 200, 4)[0] == 0


def test_a_sheet_shows_the_pixels_as_they_are() -> None:
    one = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    sheet = crops.sheet({"a": one, "b" * 40: one, "c": one}, (8, 4), 40, 2)
    assert sheet.shape == (2 * (26 + 40) + 4, 84, 3)
    assert np.array_equal(sheet[26:66, :40], one[8:48, 4:44])
    assert np.array_equal(sheet[26:66, 44:], one[8:48, 4:44])
    assert (sheet[70:, 44:] == 255).all()


def test_the_command_writes_it_all(
    result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps({"rows": [*LATENCY, {"kind": "other"}]}))
    out = tmp_path / "out"
    code = report.main([str(result), "--latency", str(bench), "--out", str(out)])
    assert code == 0, capsys.readouterr().err
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        "made-crops-1.png", "made-crops-2.png", "made-pareto.png", "pareto.html", "report.md"
    ]  # fmt: skip
    for name in names[:3]:
        picture = cv2.imread(str(out / name))
        assert picture is not None
        assert picture.std() > 5
    text = (out / "report.md").read_text()
    for row in seed.QUALITY:
        assert f"| seed | {row[0]} | {row[1]} | {row[2]} |" in text
    assert "| made | `default-x4` | 31.50 | - |" in text
    assert "1.78" in text
    assert "`psnr`: its definition" in text
    assert "- left out: x: left" in text
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (out / picture).is_file()


@pytest.mark.parametrize("content", ["", "[]", '{"rows": 3}', '{"metrics": ["x"]}'])
def test_other_files_are_refused(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.json"
    file.write_text(content)
    assert report.main([str(file), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(EvaluationError, match="no result of overlay bench"):
        report.latency_rows(file)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("results", None, "results is None"),
        ("results", ["a"], "results holds 'a'"),
        ("results", [{"model": "m", "status": "ok", "kind": "<b>"}], "results holds {'model'"),
        ("results", [{"model": "m", "status": "gone"}], "results holds"),
        ("metrics", [[1]], r"the unknown metric \[1\]"),
        ("metrics", ["niqe"], "the unknown metric 'niqe'"),
        ("paired", [{"model": "m", "against": "n", "metric": "psnr"}], "paired holds"),
        ("per_image", [{"model": "m", "name": "f", "psnr": "30"}], "per_image holds"),
        ("crop", None, "crop is None"),
        ("machine", 3, "machine is 3"),
    ],
)
def test_a_result_with_other_things_in_it_is_refused(
    result: Path, key: str, value: object, said: str
) -> None:
    assert results.read(result)
    result.write_text(json.dumps(json.loads(result.read_text()) | {key: value}))
    with pytest.raises(EvaluationError, match=f"made.json is no result of .*: {said}"):
        results.read(result)


@pytest.mark.parametrize("ms", [0, -1, float("nan"), float("inf"), None])
def test_latencies_that_are_none_are_refused(ms: float | None, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({"rows": [bench_row("cv2", "bicubic", ms)]}))  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match="no result of overlay bench"):
        report.latency_rows(file)


def test_only_known_metrics_are_drawn(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        report.main([str(result), "--metric", "niqe", "--out", str(result.parent)])
    assert caught.value.code == 2
    assert "invalid choice: 'niqe'" in capsys.readouterr().err
