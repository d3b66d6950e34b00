"""The page of `overlay compare`: what is in it, and in a real browser how it works."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from overlay.cli import main
from overlay.compare import page as pages
from overlay.compare import sheet

if sys.platform == "linux":
    from tests.overlay.compare.chromium import Browser, browser

Pixels = NDArray[np.uint8]
RED, BLUE, GREEN = (200, 30, 20), (20, 40, 210), (10, 160, 30)
EVIL = '<img src=x onerror="window.hacked=1"><!--<script>&amp;.png'


def save(path: Path, pixels: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path


def plain(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (200, 120)) -> Path:
    return save(path, np.full((size[1], size[0], 3), colour, np.uint8))


def made(out: Path, *arguments: object) -> Path:
    assert main(["compare", *map(str, arguments), "-o", str(out)]) == 0
    return out


class Tags(HTMLParser):
    """Collects what a page is made of."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.inside: dict[str, list[str]] = {}
        self._open = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self._open = "json" if ("type", "application/json") in attrs else tag
        self.inside.setdefault(self._open, []).append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.inside[self._open][-1] += data


# --- what is in it -------------------------------------------------------------------------------


def test_it_loads_nothing_and_runs_only_its_own_script(tmp_path: Path) -> None:
    a, b = plain(tmp_path / "a.png", RED), plain(tmp_path / "b.png", BLUE)
    page = Tags(made(tmp_path / "p.html", a, b))
    policy = next(value for _, value in page.attributes if "default-src" in value)
    assert "default-src 'none'; img-src data:;" in policy
    assert "unsafe" not in policy
    (script,), (style,) = page.inside["script"], page.inside["style"]
    for text, name in ((script, "script-src"), (style, "style-src")):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy
    links = [value for name, value in page.attributes if name in ("src", "href", "srcset")]
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert not [name for name, _ in page.attributes if name == "style" or name.startswith("on")]
    assert not {"link", "iframe", "object", "base", "form"} & {*page.tags}
    assert "http" not in script + style


def test_the_pictures_in_it_are_those_that_were_compared(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (12, 20, 3), np.uint8)
    large = rng.integers(0, 256, (24, 40, 3), np.uint8)
    a, b = save(tmp_path / "a.png", small), save(tmp_path / "b.png", large)
    page = Tags(made(tmp_path / "p.html", a, b, "--levels", 51))
    (block,) = (json.loads(text) for text in page.inside["json"])
    assert block["size"] == [40, 24]
    expected = [small.repeat(2, 0).repeat(2, 1), large]
    most = np.abs(expected[0].astype(int) - expected[1]).max(2)
    expected.append(sheet.HEAT[np.minimum(most, 51) * 5])
    found = [each["data"] for each in block["pictures"]] + [block["maps"]["0-1"]]
    for data, pixels in zip(found, expected, strict=True):
        (tmp_path / "x.png").write_bytes(base64.b64decode(data.partition(",")[2]))
        with Image.open(tmp_path / "x.png") as image:
            assert (np.asarray(image.convert("RGB")) == pixels).all()
    assert block["pictures"][0]["about"] == "20x12, enlarged to 40x24 (nearest)"


def test_names_are_text(tmp_path: Path) -> None:
    for folder, colour in (("one", RED), ("two", BLUE)):
        plain(tmp_path / folder / EVIL, colour)
    out = made(tmp_path / "p.html", tmp_path / "one", tmp_path / "two")
    page = Tags(out)
    assert page.tags.count("img") == 4
    assert page.tags.count("script") == 2
    (block,) = page.inside["json"]
    assert "<" not in block
    assert json.loads(block)["pictures"][0]["name"] == f"one/{EVIL}"
    assert "window.hacked" not in "".join(name for name, _ in page.attributes)


def test_what_has_no_room_has_figures_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    for folder in ("one", "two"):
        plain(tmp_path / folder / "a.png", RED, (60, 60))
        save(tmp_path / folder / "b.png", noise)
        plain(tmp_path / folder / "c.png", RED, (60, 60))
    monkeypatch.setattr(pages, "MAX_BYTES", 20_000)
    out = tmp_path / "p.html"
    command = ["compare", str(tmp_path / "one"), str(tmp_path / "two"), "-o", str(out)]
    assert main(command) == 1
    assert "b.png: no room on the page, figures only" in capsys.readouterr().err
    page = Tags(out)
    assert len(page.inside["json"]) == 2
    assert "b.png (figures only)" in out.read_text()
    assert "p1" not in [value for name, value in page.attributes if name == "data-pair"]
    one, two = (str(tmp_path / folder / "b.png") for folder in ("one", "two"))
    assert main(["compare", one, two, "-o", str(tmp_path / "q.html")]) == 1
    assert "too large for a page: --crop" in capsys.readouterr().err
    assert not (tmp_path / "q.html").exists()


def test_large_pages_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    a = plain(tmp_path / "a.png", RED)
    monkeypatch.setattr(pages, "WARN_BYTES", 100)
    with caplog.at_level(logging.WARNING):
        made(tmp_path / "p.html", a, a)
    assert "browsers will be slow" in caplog.text


# --- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if sys.platform != "linux":
        pytest.skip("the browser is driven through POSIX pipes")
    with browser() as started:
        yield started


@pytest.fixture
def page(tmp_path: Path, chromium: Browser) -> Iterator[Browser]:
    """Red to the left, blue to the right, 200x120."""
    a, b = plain(tmp_path / "a.png", RED), plain(tmp_path / "b.png", BLUE)
    chromium.open(made(tmp_path / "p.html", a, b))
    yield chromium
    assert chromium.complaints() == []


def share(browser: Browser, colour: tuple[int, int, int] = RED) -> float:
    """Tell which share of the sheet's seen width has a colour, on a line of the screen."""
    left, top, right, _ = browser.box("#sheet")
    _, view_top, view_right, _ = browser.box("#stage")
    row = browser.screen()[round(max(top, view_top)) + 40]
    seen = row[max(0, round(left)) : round(min(right, view_right))]
    return float((seen == colour).all(1).mean())


def test_keys_move_the_line(page: Browser) -> None:
    assert share(page) == pytest.approx(0.5, abs=0.02)
    assert share(page, BLUE) == pytest.approx(0.5, abs=0.02)
    for _ in range(5):
        page.key("ArrowRight")
    assert share(page) == pytest.approx(0.55, abs=0.02)
    page.key("ArrowLeft", shift=True)
    page.key("ArrowLeft", shift=True)
    assert share(page) == pytest.approx(0.35, abs=0.02)
    assert page.run("document.activeElement.id") == "divider"


def test_the_mouse_moves_the_line(page: Browser) -> None:
    left, _, right, _ = page.box("#sheet")
    x, y = page.middle("#handle")
    page.mouse((x, y), (x - 30, y), (left + 0.2 * (right - left), y + 50))
    assert share(page) == pytest.approx(0.2, abs=0.02)
    page.mouse((left + 0.8 * (right - left), y))  # a click on the picture
    assert share(page) == pytest.approx(0.8, abs=0.02)
    slider = page.box("#divider")
    page.mouse((slider[0] + 0.3 * (slider[2] - slider[0]), page.middle("#divider")[1]))
    assert share(page) == pytest.approx(0.3, abs=0.03)


def test_a_finger_moves_the_line(page: Browser) -> None:
    page.call("Emulation.setTouchEmulationEnabled", enabled=True)
    try:
        left, _, right, _ = page.box("#sheet")
        x, y = page.middle("#handle")
        page.finger((x, y), (x + 40, y), (left + 0.9 * (right - left), y))
        assert share(page) == pytest.approx(0.9, abs=0.02)
    finally:
        page.call("Emulation.setTouchEmulationEnabled", enabled=False)


def test_zooms_show_whole_pixels_and_the_mouse_moves_the_picture(
    tmp_path: Path, chromium: Browser
) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (300, 400, 3), np.uint8)
    other = rng.integers(0, 256, (300, 400, 3), np.uint8)
    a, b = save(tmp_path / "a.png", pixels), save(tmp_path / "b.png", other)
    chromium.open(made(tmp_path / "p.html", a, b))
    for zoom in (1, 2, 4, 8):
        chromium.mouse(chromium.middle(f"button[data-zoom='{zoom}']"))
        left, top, right, _ = chromium.box("#sheet")
        assert right - left == 400 * zoom
        view = chromium.box("#stage")
        middle = chromium.middle("#stage")
        found = chromium.screen()
        for side, source in ((-60, pixels), (60, other)):
            x, y = round(middle[0]) + side, round((view[1] + view[3]) / 2) + 40
            rows = np.floor((np.arange(y, y + 16) + 0.5 - top) / zoom).astype(int)
            columns = np.floor((np.arange(x, x + 16) + 0.5 - left) / zoom).astype(int)
            want = source[rows][:, columns]
            assert (found[y : y + 16, x : x + 16] == want).all(), (zoom, side)
    before = chromium.run("[stage.scrollLeft, stage.scrollTop]")
    x, y = chromium.middle("#stage")
    chromium.mouse((x + 100, y + 100), (x + 90, y + 90), (x + 50, y + 70))
    after = chromium.run("[stage.scrollLeft, stage.scrollTop]")
    assert [round(b - a) for a, b in zip(before, after, strict=True)] == [50, 30]
    assert chromium.run("divider.value") == "50", "dragging is no click"
    chromium.key("0")
    left, top, right, bottom = chromium.box("#sheet")
    view = chromium.box("#stage")
    assert right - left <= view[2] - view[0] + 0.5
    assert bottom - top == pytest.approx(view[3] - view[1], abs=1)
    assert chromium.complaints() == []


def test_zooming_keeps_the_middle_in_device_pixels(tmp_path: Path, chromium: Browser) -> None:
    a = plain(tmp_path / "a.png", RED, (600, 500))
    chromium.open(made(tmp_path / "p.html", a, a))
    chromium.key("4")
    chromium.run("stage.scrollTo(500, 900)")
    middle = (
        "[(stage.scrollLeft + stage.clientWidth / 2) / stage.scrollWidth,"
        "(stage.scrollTop + stage.clientHeight / 2) / stage.scrollHeight]"
    )
    before = chromium.run(middle)
    chromium.key("8")
    assert chromium.run(middle) == pytest.approx(before, abs=0.002)
    chromium.resize(ratio=2)
    try:
        chromium.screen()  # draws, and only then tells the page
        left, _, right, _ = chromium.box("#sheet")
        assert right - left == 600 * 8 / 2
    finally:
        chromium.resize()


def test_fingers_move_the_picture(tmp_path: Path, chromium: Browser) -> None:
    a = plain(tmp_path / "a.png", RED, (600, 500))
    chromium.open(made(tmp_path / "p.html", a, a))
    chromium.key("4")
    before = chromium.run("stage.scrollLeft")
    chromium.call("Emulation.setTouchEmulationEnabled", enabled=True)
    try:
        x, y = chromium.middle("#stage")
        steps = [(x + 100 - 10 * step, y + 80) for step in range(16)]
        chromium.finger(*steps)
    finally:
        chromium.call("Emulation.setTouchEmulationEnabled", enabled=False)
    assert chromium.run("stage.scrollLeft") > before + 50
    assert chromium.run("divider.value") == "50"


def test_the_difference_has_its_scale(page: Browser) -> None:
    assert page.run("legend.hidden")
    page.key("d")
    assert not page.run("legend.hidden")
    assert page.run("legend.innerText").split() == ["0", "127.5", "levels", "255"]
    heat = tuple(int(level) for level in sheet.HEAT[190])  # blue differs most: 210 - 20
    assert share(page, heat) > 0.99  # type: ignore[arg-type]
    page.mouse(page.middle("#difference"))
    assert share(page) == pytest.approx(0.5, abs=0.02)
    assert page.run("legend.hidden")


def test_the_truth_can_be_chosen(tmp_path: Path, chromium: Browser) -> None:
    a, b = plain(tmp_path / "a.png", RED), plain(tmp_path / "b.png", BLUE)
    truth = plain(tmp_path / "truth.png", GREEN)
    chromium.open(made(tmp_path / "p.html", a, b, "--reference", truth))
    pick = "{0}select.value = '{1}'; {0}select.dispatchEvent(new Event('change'))"
    chromium.run(pick.format("right", 2))
    assert share(chromium, GREEN) == pytest.approx(0.5, abs=0.02)
    assert chromium.run("rightname.textContent") == "truth.png, 200x120"
    chromium.run(pick.format("left", 2))  # what was there goes to the other side
    assert share(chromium, RED) == pytest.approx(0.5, abs=0.02)
    assert chromium.run("[leftselect.value, rightselect.value]") == ["2", "0"]
    chromium.key("d")
    heat = tuple(int(level) for level in sheet.HEAT[190])  # of a and the truth
    assert share(chromium, heat) > 0.99  # type: ignore[arg-type]
    assert chromium.complaints() == []


def test_a_and_b_may_be_further_apart_than_the_scale(tmp_path: Path) -> None:
    a, b = plain(tmp_path / "a.png", (0, 0, 0)), plain(tmp_path / "b.png", (120, 0, 0))
    truth = plain(tmp_path / "truth.png", (60, 0, 0))
    page = Tags(made(tmp_path / "p.html", a, b, "--reference", truth))
    (block,) = (json.loads(text) for text in page.inside["json"])
    assert (block["end"], block["beyond"]) == (64, True)


def test_pairs_of_folders(tmp_path: Path, chromium: Browser) -> None:
    for name, colour in (("a.png", RED), ("b.png", GREEN)):
        plain(tmp_path / "one" / name, colour)
        plain(tmp_path / "two" / name, BLUE)
    out = made(tmp_path / "p.html", tmp_path / "one", tmp_path / "two")
    chromium.open(out)
    assert share(chromium) == pytest.approx(0.5, abs=0.02)
    chromium.mouse(chromium.middle("#next"))
    assert share(chromium, GREEN) == pytest.approx(0.5, abs=0.02)
    assert chromium.run("[location.hash, next.disabled, back.disabled]") == ["#p1", True, False]
    assert chromium.run("document.querySelectorAll('tr.now').length") == 2
    chromium.key("[")
    assert share(chromium) == pytest.approx(0.5, abs=0.02)
    chromium.open(out, "#p1")
    assert share(chromium, GREEN) == pytest.approx(0.5, abs=0.02)
    assert chromium.complaints() == []


def test_names_run_nothing(tmp_path: Path, chromium: Browser) -> None:
    for folder, colour in (("one", RED), ("two", BLUE)):
        plain(tmp_path / folder / EVIL, colour)
    chromium.open(made(tmp_path / "p.html", tmp_path / "one", tmp_path / "two"))
    assert chromium.run("window.hacked") is None
    assert chromium.run("leftname.textContent").startswith(f"one/{EVIL}, ")
    assert EVIL in chromium.run("document.querySelector('table').innerText")
    assert chromium.complaints() == []
    chromium.run(f"document.body.insertAdjacentHTML('beforeend', {json.dumps(EVIL)})")
    chromium.run("new Promise(done => setTimeout(done, 100)).then(() => 0)")
    assert chromium.run("window.hacked") is None, "the policy holds even if a name got in"
    told = " ".join(chromium.complaints())
    assert re.search("violates the following Content Security Policy", told)
