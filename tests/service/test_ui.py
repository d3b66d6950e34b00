"""The page: its parts, its logic against a real service, and in a real browser."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

pytest.importorskip("streamlit", reason="without the extra page")

from streamlit.testing.v1 import AppTest

from engines.errors import EngineError
from evaluation import results
from overlay.trace.recorder import TraceRecorder
from service.ui import __main__ as launcher
from service.ui import choice, client, comparison, quality, tracing
from service.ui.client import Api, ApiError, Row
from service.ui.words import plain
from tests.overlay.trace.conftest import Frames
from tests.service.server import Served, picture, serving

if sys.platform == "linux":
    from tests.games import dies_with_parent, stop_group
    from tests.overlay.compare.chromium import Browser, browser

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "service" / "ui" / "page.py"
RESULTS = ROOT / "docs" / "results"
EVIL = "![x](http://127.0.0.1:1/x.png) <b>b</b> $a$ :red[r]"


def row(name: str, scale: int, available: bool = True) -> Row:
    return Row(name, scale, "MIT", "", "", available, "", False)


# --- words and models ----------------------------------------------------------------------------


def test_text_of_others_is_no_markdown() -> None:
    escaped = plain(EVIL)
    for sign in "![]()<>$:/":
        assert escaped.count(sign) == escaped.count("\\" + sign)
    assert plain("a  b\nc") == "a b c"


def test_models_are_sorted_by_family_name_and_scale() -> None:
    rows = [row("realesr-animevideov3-x2", 2), row("realesr-animevideov3-x4", 4),
            row("realesrgan-x4plus", 4, False), row("new-thing-x3", 3)]  # fmt: skip
    found = choice.sorted_out(rows)
    assert set(found) == {"Real-ESRGAN", "new"}
    assert list(found["Real-ESRGAN"]) == ["realesr-animevideov3", "realesrgan-x4plus"]
    assert found["Real-ESRGAN"]["realesr-animevideov3"][2].id == "realesr-animevideov3-x2"


@pytest.mark.parametrize(
    ("wanted", "first"),
    [("default", "default-x4"), ("default-x2", "default-x2"), ("emt-x4", "default-x4")],
)
def test_the_servers_own_model_comes_first(wanted: str, first: str) -> None:
    rows = [row("emt-x4", 4, False), row("default-x2", 2), row("default-x4", 4)]
    assert choice.first_of(rows, wanted).id == first


def test_speeds_come_from_benchmarks_and_say_where_they_were_measured() -> None:
    speed = choice.speeds(RESULTS)["default-x4"]
    assert speed.sizes == "480x270 to 1920x1080"
    assert 0 < speed.ms < 100
    assert "AMD EPYC" in str(speed)


# --- the client ----------------------------------------------------------------------------------


def refusing(status: int, detail: object, **headers: str) -> Api:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, json={"detail": detail}, headers=headers)

    return Api("http://service", transport=httpx.MockTransport(answer))


@pytest.mark.parametrize(
    ("api", "words"),
    [
        (refusing(400, "it is too large"), r"^The service refuses: it is too large\.$"),
        (refusing(401, "no"), "enter it at the side"),
        (refusing(429, "2 wait", **{"Retry-After": "3"}), r"2 wait\): try again in 3 s"),
        (refusing(503, "no memory"), "no memory. Try again, or choose another model"),
        (refusing(500, "x"), r"failed \(status 500\)"),
        (refusing(422, [{"loc": ["query", "width"], "msg": "too small"}]), "width: too small"),
        (refusing(404, {}), "The service refuses"),
    ],
)
def test_refusals_are_told_in_words(api: Api, words: str) -> None:
    with pytest.raises(ApiError, match=words):
        api.example({}, 1)


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b'{"version": 1}', b"[" * 100_000])
def test_another_program_at_the_address_is_recognised(body: bytes) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=body))
    with pytest.raises(ApiError, match="not Overlay's service"):
        Api("http://service", transport=transport).about()


def test_a_picture_of_no_known_type_is_refused() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, html="<script>"))
    with pytest.raises(ApiError, match="not Overlay's service"):
        Api("http://service", transport=transport).example({}, 1)


def test_an_answer_without_end_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_BYTES", 1 << 20)
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=b" " * (1 << 20) + b"{}"))
    with pytest.raises(ApiError, match="more than 1 MiB"):
        Api("http://service", transport=transport).about()


def test_a_service_that_is_not_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(ApiError, match=r"does not answer.*overlay serve"):
            Api(f"http://127.0.0.1:{taken.getsockname()[1]}").about()


@pytest.mark.parametrize(
    ("disposition", "media", "name"),
    [
        ('inline; filename="a-default-x2.png"', "image/png", "a-default-x2.png"),
        ('inline; filename="a.png"', "image/jpeg", "a.png.jpg"),
        ('inline; filename="../../etc/x.png"', "image/png", "upscaled.png"),
        ("", "image/webp", "upscaled.webp"),
    ],
)
def test_names_of_downloads_fit_their_type(disposition: str, media: str, name: str) -> None:
    headers = {"Content-Disposition": disposition, "Content-Type": media,
               "X-Input-Size": "2x1", "X-Output-Size": "4x2"}  # fmt: skip
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=headers))
    assert Api("http://service", transport=transport).example({}, 1).name == name


def test_the_key_goes_with_every_request() -> None:
    with serving(api_keys=("0123456789abcdef",)) as served:
        with pytest.raises(ApiError, match="API key"):
            Api(served.url).about()
        assert Api(served.url, "0123456789abcdef").about().models


# --- comparing -----------------------------------------------------------------------------------


def test_figures_are_against_the_reference() -> None:
    truth = picture(48, 32)
    found = comparison.compare(picture(24, 16), truth, truth)
    assert found.source is not None
    assert found.result is not None
    assert found.result.psnr == 100
    assert found.source.psnr < 60
    assert 'id="divider"' in found.html


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (b"no picture", "the reference is no picture"),
        (picture(48, 48), "other proportions"),
    ],
)
def test_wrong_references_are_told_without_our_folders(reference: bytes, words: str) -> None:
    with pytest.raises(comparison.NotCompared, match=words) as told:
        comparison.compare(picture(24, 16), picture(48, 32), reference)
    assert "overlay-" not in str(told.value)


def test_large_references_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "MAX_PIXELS", 48 * 32 - 1)
    with pytest.raises(comparison.NotCompared, match="48x32: more than"):
        comparison.compare(picture(24, 16), picture(48, 32), picture(48, 32))


def test_a_part_of_large_results_is_compared() -> None:
    assert comparison.part_of((3840, 2160), 0.5, 0.5) is None
    assert comparison.part_of((7680, 4320), 1, 0) == (3840, 0, 3840, 2160)
    assert comparison.part_of((2160, 3840), 0, 0.5) == (0, 840, 2160, 2160)


# --- traces and results --------------------------------------------------------------------------


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "t.csv"
    with TraceRecorder(path) as recorder:
        Frames.fill(recorder, 100)
    return path


def test_a_trace_is_drawn_and_summed_up(trace: Path) -> None:
    drawn = tracing.plotted(trace.read_bytes(), "<b>t</b>.csv")
    assert isinstance(drawn, tracing.Drawn)
    assert drawn.summary.counts.captured == 100
    assert "&lt;b&gt;t&lt;/b&gt;.csv" in drawn.html
    assert "<svg" in drawn.html


def test_an_empty_and_a_large_trace_are_told(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = b"\n".join(trace.read_bytes().split(b"\n")[:2]) + b"\n"
    assert "no frame in this trace: " in str(tracing.plotted(first, "x.csv"))
    monkeypatch.setattr(tracing, "MAX_MIB", 0)
    assert "larger than 0 MiB" in str(tracing.plotted(first, "x.csv"))


def test_what_is_no_trace_is_told() -> None:
    assert tracing.plotted(b"a,b\n1,2\n", "x.csv") == (
        "This cannot be drawn: trace.csv is not an overlay trace (its first line is not one's)."
    )


def test_no_results_are_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[")
    (tmp_path / "b.json").write_text('{"other": 1}')
    found = quality.in_folder(tmp_path)
    assert (found.quality, found.latency, found.problems) == ({}, [], [])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[", "a.json cannot be read"),
        (b"[1]", "a.json is neither"),
        (b'{"paired": [], "metrics": 1}', "no result of evaluation.evaluate"),
        (b'{"rows": [{}], "machine": 1}', "cannot be read|neither"),
        (b"[" * 100_000, "cannot be read"),
    ],
)
def test_wrong_result_files_are_told(data: bytes, words: str) -> None:
    found = quality.in_files([("a.json", data)])
    assert len(found.problems) == 1
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(found.problems[0])


def measured(folder: Path) -> None:
    """Write a made-up quality result, and a benchmark of the same sizes."""
    frames = {"f1": "one", "f2": "two"}
    rows = [
        results.Frames(model, kind, values={frame: {"psnr": value} for frame in frames})
        for model, kind, value in (("bicubic", "baseline", 30.0), ("default-x4", "net", 31.0))
    ]
    facts = {
        "machine": {}, "command": "", "lr": "", "hr": "", "crop": 4, "seed": 0, "lr_size": "96x72",
        "hr_size": "384x288", "metrics": ["psnr"], "definitions": {},
    }  # fmt: skip
    made = results.Result(facts, 4, ["psnr"], rows, frames, [], ["bicubic"], 0)
    (folder / "quality.json").write_text(json.dumps(made.to_json()))
    times = {"ms": {"p50": 8.0}}
    timed = {
        "kind": "net", "model": "default-x4", "backend": "b", "device": "d", "scale": 4,
        "input_size": "96x72", "output_size": "384x288", "upscale": times, "whole": times,
    }  # fmt: skip
    bench = {"rows": [timed], "machine": {"cpu": EVIL}}
    (folder / "bench.json").write_text(json.dumps(bench))


# --- the page, without a browser -----------------------------------------------------------------


Open = Callable[..., AppTest]


@pytest.fixture
def page(served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Open:
    monkeypatch.delenv("OVERLAY_API_KEY", raising=False)

    def show(url: str = served.url, results: Path = tmp_path) -> AppTest:
        monkeypatch.setenv("OVERLAY_PAGE_API", url)
        monkeypatch.setenv("OVERLAY_PAGE_RESULTS", str(results))
        shown = AppTest.from_file(str(PAGE), default_timeout=60).run()
        assert not shown.exception
        return shown

    return show


def all_text(shown: AppTest) -> str:
    kinds = (shown.markdown, shown.caption, shown.info, shown.warning, shown.error)
    return "\n".join(str(one.value) for kind in kinds for one in kind)


def test_the_page_begins_with_the_servers_model(page: Open) -> None:
    shown = page(results=RESULTS)
    assert [one.value for one in shown.selectbox[:3]] == ["Overlay", "default", 4]
    assert "Apache" in all_text(shown)
    assert "ms a frame" in all_text(shown)
    assert shown.button(key="upscale").disabled, "there is no picture yet"


def test_a_model_that_is_not_there_says_why_and_cannot_be_used(page: Open) -> None:
    shown = page()
    shown.selectbox(key="family").select("EMT").run()
    shown.radio(key="which").set_value("the example").run()
    assert "its weights are not on the server" in shown.warning[0].value
    assert "not measured here" in all_text(shown)
    assert shown.button(key="upscale").disabled


def test_the_example_is_upscaled_and_stays(page: Open) -> None:
    shown = page()
    shown.selectbox(key="scale default").select(2).run()
    shown.radio(key="which").set_value("the example").run()
    shown.button(key="upscale").click().run()
    assert "by **default\\-x2**: 480x270 to 960x540, PNG" in all_text(shown)
    shown.radio(key="enlarge").set_value("nearest").run()
    assert not shown.exception
    assert "480x270 to 960x540" in all_text(shown), "a rerun must not lose it"
    assert "On this service, the last time" in all_text(shown)


def test_a_refusal_is_shown_in_words_and_stays(page: Open) -> None:
    with serving() as broken:
        broken.backend.broken = EngineError(f"no memory {EVIL}")
        shown = page(broken.url)
        shown.radio(key="which").set_value("the example").run()
        shown.button(key="upscale").click().run()
        told = shown.error[0].value
        assert told.startswith(plain("Not now: default-x4 cannot do it: no memory"))
        assert plain(EVIL) in told
        shown.selectbox(key="scale default").select(2).run()
        assert shown.error[0].value == told
        broken.backend.broken = None
        shown.button(key="upscale").click().run()
        assert not shown.error
        assert "480x270 to 960x540" in all_text(shown)


def test_a_key_is_asked_for_and_kept_in_the_session(page: Open) -> None:
    with serving(api_keys=("0123456789abcdef",)) as locked:
        shown = page(locked.url)
        assert "wants an API key" in shown.error[0].value
        shown.text_input(key="key").set_value("0123456789abcdef").run()
        assert not shown.error
        assert shown.selectbox(key="family").value == "Overlay"
        assert page(locked.url).error, "another visitor has not entered it"
    assert "0123456789abcdef" not in json.dumps(dict(os.environ))


def test_a_service_that_is_down_is_told(page: Open) -> None:
    with serving() as gone:
        url = gone.url
    shown = page(url)
    assert "does not answer" in shown.error[0].value
    assert shown.tabs[1].label == "Latency trace"


def test_the_third_tab_says_that_there_is_nothing(page: Open) -> None:
    text = all_text(page())
    assert "There is no quality result here" in text
    assert "There is no benchmark here" in text


def test_the_third_tab_draws_what_there_is(page: Open, tmp_path: Path) -> None:
    measured(tmp_path)
    shown = page()
    assert "no quality result" not in all_text(shown)
    assert shown.selectbox(key="metric").value == "psnr"
    assert plain(EVIL) in all_text(shown)
    points = shown.dataframe[0].value
    assert list(points["model"]) == ["default-x4"]
    assert list(points["minus bicubic"]) == [1.0]


# --- starting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--api", "file:///etc"], "--api is a URL"),
        (["--port", "0"], "--port is 1 to"),
        (["--results", "/no/such"], "no folder"),
    ],
)
def test_wrong_options_are_refused(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launcher.main(words) == 2
    assert told in capsys.readouterr().err


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def answers(url: str, path: str) -> bool:
    try:
        return httpx.get(url + path, trust_env=False, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 60) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.1)


@contextlib.contextmanager
def started(*words: object) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        dies_with_parent([sys.executable, "-m", *map(str, words)]),
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
        env=os.environ | {"OVERLAY_SERVICE_BACKEND": "resize", "OVERLAY_SERVICE_WARM": "0"},
    )  # fmt: skip
    try:
        yield process
    finally:
        stop_group(process)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes and signals of Linux")
@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_service_and_page_start_and_end_together(way: signal.Signals) -> None:
    port, page_port = free_port(), free_port()
    api, shown = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{page_port}"
    with started("service.both", "--port", port, "--page-port", page_port) as both:
        wait_until(lambda: answers(shown, "/_stcore/health"), "the page does not start", 90)
        assert answers(api, "/health")
        if way == signal.SIGINT:
            os.killpg(both.pid, way)  # as a terminal does
        else:
            both.send_signal(way)
        assert both.wait(30) == 128 + way
        assert not answers(api, "/health")
        assert not answers(shown, "/_stcore/health")


# --- the page in a browser -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as one:
        one.call(
            "Emulation.setDeviceMetricsOverride",
            width=1400, height=1500, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        one.call("DOM.enable")
        yield one


def attach(tab: Browser, selector: str, file: Path) -> None:
    """Choose a file as a user would."""
    root = tab.call("DOM.getDocument")["root"]["nodeId"]
    node = tab.call("DOM.querySelector", nodeId=root, selector=f"{selector} input[type=file]")
    tab.call("DOM.setFileInputFiles", nodeId=node["nodeId"], files=[str(file)])


def see(tab: Browser, code: str) -> Any:
    """Wait until an expression is true of the page."""
    wait_until(lambda: tab.run(code), f"never: {code}", 40)


def click(tab: Browser, selector: str) -> None:
    tab.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
    tab.mouse(tab.middle(selector))


INNER = "document.querySelector('iframe')?.contentDocument"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the driver is for Linux")
def test_a_browser_chooses_uploads_moves_the_line_and_downloads(
    tab: Browser, served: Served, tmp_path: Path
) -> None:
    source, downloads = tmp_path / "small one.png", tmp_path / "downloads"
    source.write_bytes(picture(120, 80, "RGBA"))
    downloads.mkdir()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with started("service.ui", "--api", served.url, "--port", port):
        wait_until(lambda: answers(url, "/_stcore/health"), "the page does not start", 90)
        tab.call("Page.navigate", url=url)
        see(tab, "!!document.querySelector('.st-key-picture input[type=file]')")

        click(tab, ".st-key-scale-default [data-testid=stSelectbox] input")
        see(tab, "document.querySelectorAll('[role=option]').length === 3")
        click(tab, "[role=option]")  # the first is 2x
        see(tab, "document.querySelector('.st-key-scale-default').innerHTML.includes('2x')")
        attach(tab, ".st-key-picture", source)
        see(tab, "!!document.querySelector('.st-key-upscale button:not([disabled])')")
        click(tab, ".st-key-upscale button")
        see(tab, f"!!({INNER}?.querySelector('#divider') && {INNER}.querySelector('#left').src)")
        see(tab, "document.body.innerText.includes('120x80 to 240x160')")

        before = tab.run(f"{INNER}.querySelector('#left').style.clipPath")
        tab.run(f"{INNER}.querySelector('#divider').focus()")
        for _ in range(3):
            tab.key("ArrowRight", shift=True)
        assert tab.run(f"{INNER}.querySelector('#divider').value") == "80"
        assert tab.run(f"{INNER}.querySelector('#left').style.clipPath") != before
        sizes = f"[...{INNER}.querySelectorAll('#left,#right')].map(i => i.naturalWidth)"
        assert tab.run(sizes) == [240, 240], "the source is enlarged to the result's size"

        tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        click(tab, ".st-key-download button")
        wait_until(lambda: [*downloads.glob("*.png")], "nothing is downloaded")
        if os.environ.get("OVERLAY_SCREENSHOT"):
            Image.fromarray(tab.screen()).save(os.environ["OVERLAY_SCREENSHOT"])
    (file,) = downloads.iterdir()
    assert file.name == "small-one-default-x2.png"
    answer = served.client().post(
        "/upscale/file", params={"model": "default-x2", "format": "png"},
        files={"image_file": (source.name, source.read_bytes(), "image/png")},
    )  # fmt: skip
    assert file.read_bytes() == answer.content
    asked = [e["params"]["request"]["url"] for e in tab.events
             if e.get("method") == "Network.requestWillBeSent"]  # fmt: skip
    outside = [one for one in asked if not one.startswith((url, "data:", "about:", "blob:"))]
    assert asked
    assert outside == [], "the page loads nothing from elsewhere"
