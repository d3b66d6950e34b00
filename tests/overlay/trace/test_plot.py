"""The plots: there, self-contained, and deaf to what a hostile trace says."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from overlay.errors import BackendUnavailable
from overlay.frame import Size
from overlay.trace import Outcome
from overlay.trace.plot import _STAGE_COLOURS, _thin, plot_html, plot_png
from overlay.trace.recorder import TraceRecorder

MS = 1_000_000


@pytest.fixture
def recorder(frames) -> TraceRecorder:
    recorder = TraceRecorder()
    frames.fill(recorder, 400)
    return recorder


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [f"{k}={v}" for k, v in attrs if k in ("src", "href") or k.startswith("on")]


def test_html_shows_all_panels_and_loads_nothing(recorder: TraceRecorder, tmp_path: Path) -> None:
    path = tmp_path / "t.html"
    plot_html(recorder.table(), path, "My trace")
    text = path.read_text(encoding="utf-8")
    page = Tags()
    page.feed(text)
    assert page.tags.count("svg") == 4
    assert page.links == []
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert "default-src 'none'" in text
    assert "<h1>My trace</h1>" in text
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(svg)  # well-formed
        assert "nan" not in svg
        assert "inf" not in svg
    for name in (*_STAGE_COLOURS, "presented", "superseded", "p95", "capture to present"):
        assert name in text


def test_a_hostile_trace_injects_nothing(tmp_path: Path, frames) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    recorder = TraceRecorder(metadata={evil: evil})
    for i in range(3):
        source = frames.frame(i, recorder.start_ns + i * 10 * MS)
        row = recorder.begin(source)
        recorder.stamp(row, 7, recorder.start_ns + i * 10 * MS + 1)
        recorder.describe(row, frames.picture(source, model=evil), Size(1, 1))
        recorder.end(row, Outcome.PRESENTED, evil)
    path = tmp_path / "t.html"
    plot_html(recorder.table(), path, evil)
    page = Tags()
    page.feed(path.read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert page.links == []
    assert "&lt;script&gt;" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_tiny_traces_can_be_drawn(rows: int, tmp_path: Path, frames) -> None:
    recorder = TraceRecorder()
    for i in range(rows):
        frames.present(recorder, i, recorder.start_ns, [0] * 7)
    plot_html(recorder.table(), tmp_path / "t.html")
    assert "nan" not in (tmp_path / "t.html").read_text(encoding="utf-8")


def test_thinning_keeps_every_spike() -> None:
    values = np.random.default_rng(3).random(100_000)
    values[77_777] = 50.0
    values[12_345] = -50.0
    times, kept = _thin(np.arange(100_000.0), values)
    assert len(kept) <= 2400
    assert (kept.max(), kept.min()) == (50.0, -50.0)
    assert np.all(np.diff(times) > 0)


def test_a_long_trace_stays_a_small_page(tmp_path: Path, frames) -> None:
    recorder = TraceRecorder()
    frames.fill(recorder, 15_000)
    plot_html(recorder.table(), tmp_path / "t.html")
    assert (tmp_path / "t.html").stat().st_size < 300_000


def test_png_has_the_curves(recorder: TraceRecorder, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "t.png"
    plot_png(recorder.table(), path, "t$x_1^ é 漢.csv")
    image = cv2.imread(str(path))
    assert image is not None
    assert image.shape == (1650, 1500, 3)
    blue, vermilion, green = (0xB2, 0x72, 0x00), (0x00, 0x5E, 0xD5), (0x73, 0x9E, 0x00)
    for colour in (blue, vermilion, green):
        assert np.count_nonzero((image == colour).all(axis=2)) > 500


def test_png_without_matplotlib_says_how_to_get_it(
    recorder: TraceRecorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(BackendUnavailable, match=r'pip install "\.\[plot\]"'):
        plot_png(recorder.table(), tmp_path / "t.png")
    assert list(tmp_path.iterdir()) == []
