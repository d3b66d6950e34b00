"""The converted files, each read by the rules of the tool that it is for."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from overlay.errors import TraceError
from overlay.trace import convert
from overlay.trace.csvfile import read_trace
from overlay.trace.recorder import TraceRecorder
from overlay.trace.summary import summarise
from overlay.trace.table import STAGES, TraceTable

MS = 1_000_000


@pytest.fixture
def table(tmp_path: Path, frames) -> TraceTable:
    path = tmp_path / "t.csv"
    with TraceRecorder(path, {"application": "overlay", "vsync": False}) as recorder:
        frames.fill(recorder, 300)
    return read_trace(path)


# -- PresentMon ---------------------------------------------------------------------------------

PRESENTMON_HEADER = (
    b"\xef\xbb\xbfApplication,ProcessID,SwapChainAddress,PresentRuntime,SyncInterval,PresentFlags,"
    b"AllowsTearing,PresentMode,TimeInMs,MsBetweenSimulationStart,MsBetweenPresents,"
    b"MsBetweenDisplayChange,MsInPresentAPI,MsRenderPresentLatency,MsUntilDisplayed,"
    b"CPUStartTimeInMs,MsBetweenAppStart,MsCPUBusy,MsCPUWait,MsGPULatency,MsGPUTime,MsGPUBusy,"
    b"MsGPUWait,MsAnimationError,AnimationTime,MsFlipDelay,MsAllInputToPhotonLatency,"
    b"MsClickToPhotonLatency\r\n"
)


def test_presentmon_header_is_byte_exact(table: TraceTable) -> None:
    assert convert.presentmon_from_trace(table).startswith(PRESENTMON_HEADER)


def test_presentmon_rows_are_the_presented_frames(table: TraceTable) -> None:
    text = convert.presentmon_from_trace(table).decode("utf-8-sig")
    assert text.count("\n") == text.count("\r\n")
    rows = list(csv.DictReader(io.StringIO(text)))
    presented = table.presented()
    assert len(rows) == len(presented) - 1
    assert {len(row) for row in rows} == {28}
    stamps = table.stamps[:, presented] / MS
    for number, row in enumerate(rows, start=1):
        assert row["PresentRuntime"] == row["PresentMode"] == "Other"
        assert row["SyncInterval"] == "0"
        assert int(row["ProcessID"]) == table.metadata["pid"]
        assert re.fullmatch(r"0x[0-9A-F]+", row["SwapChainAddress"])
        drawn, swapped = stamps[6, number], stamps[7, number]
        assert re.fullmatch(r"\d+\.\d{4}", row["TimeInMs"])
        assert float(row["TimeInMs"]) == pytest.approx(drawn, abs=1e-4)
        assert re.fullmatch(r"\d+\.\d{14}", row["MsBetweenPresents"])
        assert float(row["MsBetweenPresents"]) == pytest.approx(drawn - stamps[6, number - 1])
        assert float(row["MsInPresentAPI"]) == pytest.approx(swapped - drawn)
        assert float(row["CPUStartTimeInMs"]) == pytest.approx(stamps[7, number - 1], abs=1e-4)
        frame_ms = float(row["MsCPUBusy"]) + float(row["MsCPUWait"])
        assert frame_ms == pytest.approx(float(row["MsBetweenAppStart"]), abs=3e-4)
        assert row["MsGPUBusy"] == "3.5000"


def test_presentmon_invents_no_display_times(table: TraceTable) -> None:
    text = convert.presentmon_from_trace(table).decode("utf-8-sig")
    for row in csv.DictReader(io.StringIO(text)):
        for name in (
            "MsBetweenSimulationStart",
            "MsBetweenDisplayChange",
            "MsRenderPresentLatency",
            "MsUntilDisplayed",
            "MsGPULatency",
            "MsGPUTime",
            "MsGPUWait",
            "MsAnimationError",
            "AnimationTime",
            "MsFlipDelay",
            "MsAllInputToPhotonLatency",
            "MsClickToPhotonLatency",
        ):
            assert row[name] == "NA"


# -- MangoHud -----------------------------------------------------------------------------------


def mangohud_frametimes(data: bytes) -> list[float]:
    """Read a log as MangoHud's own reader does: the columns begin at the row that has "fps"."""
    rows = list(csv.reader(io.StringIO(data.decode()), delimiter=","))
    start = next(number for number, row in enumerate(rows) if "fps" in row)
    column = rows[start].index("frametime")
    return [float(row[column]) for row in rows[start + 1 :]]


def mangohud_percentile_fps(frametimes: list[float], p: float) -> float:
    """MangoHud's rule (src/fps_metrics.h): descending, index (unsigned)(p * n - 1)."""
    ordered = sorted(frametimes, reverse=True)
    return 1000 / ordered[int(p * len(ordered) - 1)]


def test_mangohud_lines_are_its_own(table: TraceTable) -> None:
    lines = convert.mangohud_from_trace(table).decode().split("\n")
    assert lines[0] == "os,cpu,gpu,ram,kernel,driver,cpuscheduler"
    assert len(lines[1].split(",")) == 7
    assert lines[2] == (
        "fps,frametime,cpu_load,cpu_power,gpu_load,cpu_temp,gpu_temp,gpu_core_clock,"
        "gpu_mem_clock,gpu_vram_used,gpu_power,ram_used,swap_used,process_rss,cpu_mhz,elapsed"
    )
    assert {len(line.split(",")) for line in lines[3:-1]} == {16}
    assert lines[-1] == ""
    elapsed = [int(line.split(",")[-1]) for line in lines[3:-1]]
    assert elapsed == sorted(elapsed)
    assert elapsed[-1] / MS == pytest.approx(float(table.frame_times_ms().sum()))


def test_mangohud_file_gives_the_same_figures_by_its_own_rules(table: TraceTable) -> None:
    frametimes = mangohud_frametimes(convert.mangohud_from_trace(table))
    wanted = table.frame_times_ms()
    assert frametimes == pytest.approx(wanted.tolist(), rel=1e-5)
    average = 1000 / (sum(frametimes) / len(frametimes))
    assert average == pytest.approx(summarise(table).fps, rel=1e-5)
    for p in (0.001, 0.01, 0.97):
        if int(p * len(wanted) - 1) >= 0:
            rule = mangohud_percentile_fps(wanted.tolist(), p)
            assert mangohud_percentile_fps(frametimes, p) == pytest.approx(rule, rel=1e-5)
    # One of the two slowest of about 255 frames; our own p99 lies between the same samples.
    slowest = sorted(wanted)[-3:]
    assert 1000 / slowest[-1] <= mangohud_percentile_fps(frametimes, 0.01) * 1.00001
    assert mangohud_percentile_fps(frametimes, 0.01) <= 1000 / slowest[0]


def test_machine_names_cannot_break_the_lines(table: TraceTable) -> None:
    named = TraceTable(
        **{name: getattr(table, name) for name in TraceTable.__slots__ if name != "metadata"},
        metadata={"cpu": 'a,"b"\nc', "application": "x,y\r\nz", "pid": 1},
    )
    assert convert.mangohud_from_trace(named).decode().split("\n")[1].split(",")[1] == "a__b__c"
    rows = list(csv.reader(io.StringIO(convert.presentmon_from_trace(named).decode())))
    assert {row[0] for row in rows[1:]} == {"x_y__z"}


# -- Trace Event format -------------------------------------------------------------------------

REQUIRED = {
    "X": {"name", "cat", "ts", "dur", "pid", "tid"},
    "C": {"name", "ts", "pid", "args"},
    "i": {"name", "ts", "pid", "tid", "s"},
    "s": {"name", "cat", "id", "ts", "pid", "tid"},
    "t": {"name", "cat", "id", "ts", "pid", "tid"},
    "f": {"name", "cat", "id", "ts", "pid", "tid", "bp"},
    "M": {"name", "pid", "args"},
}
METADATA_ARGS = {
    "process_name": ("name", str),
    "thread_name": ("name", str),
    "thread_sort_index": ("sort_index", int),
}


def check_trace_events(document: dict) -> list[str]:
    """Check a JSON document against the Trace Event format; list what is wrong.

    Rules from the "Trace Event Format" document of Chromium's tracing team: an object with the
    array `traceEvents`; each event has a phase and that phase's fields; times are numbers of
    microseconds; counters carry numbers; complete events of one thread nest; a flow is one
    start, any steps, one end, in order of time, each inside a slice of its thread.
    """
    wrong: list[str] = []
    if not isinstance(document.get("traceEvents"), list):
        return ["no array traceEvents"]
    if document.get("displayTimeUnit", "ms") not in ("ms", "ns"):
        wrong.append("displayTimeUnit")
    slices: dict[tuple[int, int], list[tuple[float, float]]] = {}
    flows: dict[tuple[str, str, object], list[dict]] = {}
    before = float("-inf")
    for event in document["traceEvents"]:
        ph = event.get("ph")
        if ph not in REQUIRED:
            wrong.append(f"unknown phase {ph!r}")
            continue
        if missing := REQUIRED[ph] - set(event):
            wrong.append(f"{ph} lacks {sorted(missing)}")
            continue
        if any(not isinstance(event[key], int) for key in ("pid", "tid") if key in event):
            wrong.append(f"{ph}: pid and tid must be integers")
        if ph == "M":
            key, kind = METADATA_ARGS.get(event["name"], ("", int))
            if not isinstance(event["args"].get(key), kind):
                wrong.append(f"metadata {event['name']} lacks its argument")
            continue
        if not isinstance(event["ts"], int | float) or isinstance(event["ts"], bool):
            wrong.append(f"{ph}: ts must be a number")
            continue
        if event["ts"] < before:
            wrong.append(f"{ph}: not in order of time")
        before = event["ts"]
        if ph == "X":
            if not event["dur"] >= 0:
                wrong.append("X: negative duration")
            slices.setdefault((event["pid"], event["tid"]), []).append(
                (event["ts"], event["ts"] + event["dur"])
            )
        elif ph == "C":
            if not event["args"] or not all(
                isinstance(value, int | float) for value in event["args"].values()
            ):
                wrong.append("C: values must be numbers")
        elif ph == "i":
            if event["s"] not in ("g", "p", "t"):
                wrong.append("i: scope")
        else:
            flows.setdefault((event["cat"], event["name"], event["id"]), []).append(event)
    for thread, spans in slices.items():
        open_until: list[float] = []
        for start, stop in sorted(spans, key=lambda span: (span[0], -span[1])):
            while open_until and open_until[-1] <= start + 1e-6:
                open_until.pop()
            if open_until and stop > open_until[-1] + 1e-6:
                wrong.append(f"slices of thread {thread} overlap without nesting")
            open_until.append(stop)
    for key, steps in flows.items():
        phases = "".join(step["ph"] for step in steps)
        if not re.fullmatch("st*f", phases):
            wrong.append(f"flow {key} is {phases}")
        for step in steps:
            inside = slices.get((step["pid"], step["tid"]), [])
            if not any(start <= step["ts"] <= stop for start, stop in inside):
                wrong.append(f"flow {key} binds to no slice")
    return wrong


@pytest.fixture
def events(table: TraceTable) -> dict:
    return json.loads(convert.chrome_from_trace(table))


def test_perfetto_follows_the_trace_event_format(events: dict) -> None:
    assert check_trace_events(events) == []


@pytest.mark.parametrize(
    ("phase", "change", "wanted"),
    [
        ("X", {"dur": -1}, "negative duration"),
        ("X", {"ts": "1"}, "must be a number"),
        ("X", {"ph": "x"}, "unknown phase"),
        ("C", {"args": {"a": "1"}}, "values must be numbers"),
        ("i", {"s": "x"}, "scope"),
        ("s", {"id": -5}, "flow"),
        ("f", {"ts": 1e15}, "flow"),
        ("f", {"ph": "t"}, "flow"),
        ("M", {"args": {}}, "lacks its argument"),
        ("t", {"tid": 999}, "binds to no slice"),
    ],
)
def test_the_checker_finds_what_is_wrong(events: dict, phase, change, wanted: str) -> None:
    next(event for event in events["traceEvents"] if event["ph"] == phase).update(change)
    assert wanted in "\n".join(check_trace_events(events))


def test_the_checker_finds_overlaps(events: dict) -> None:
    infer = [e for e in events["traceEvents"] if e["ph"] == "X" and e["name"] == "infer"]
    infer[0]["dur"] = infer[1]["ts"] - infer[0]["ts"] + infer[1]["dur"] / 2
    assert "overlap without nesting" in "\n".join(check_trace_events(events))


def test_perfetto_shows_every_frame_and_drop(events: dict, table: TraceTable) -> None:
    by_phase: dict[str, list[dict]] = {}
    for event in events["traceEvents"]:
        by_phase.setdefault(event["ph"], []).append(event)
    presented = len(table.presented())
    for name in STAGES:
        slices = [event for event in by_phase["X"] if event["name"] == name]
        assert len(slices) == (len(table) if name == "capture" else presented)
    assert len(by_phase["s"]) == len(by_phase["f"]) == presented
    assert len(by_phase["i"]) == len(table) - presented
    drops = [event for event in by_phase["C"] if event["name"] == "not presented"]
    counts = summarise(table).counts
    assert drops[-1]["args"] == {
        "duplicate": counts.duplicate,
        "superseded": counts.superseded,
        "failed": counts.failed,
    }
    names = {event["args"].get("name") for event in by_phase["M"]}
    assert names >= {"overlay", *STAGES, "not presented"}
    infer = next(event for event in by_phase["X"] if event["name"] == "infer")
    row = infer["args"]["frame"]
    assert infer["dur"] == pytest.approx(float(table.stage_ms("infer")[row]) * 1000)


def test_two_frames_in_one_stage_get_two_tracks(frames) -> None:
    recorder = TraceRecorder()
    frames.present(recorder, 0, recorder.start_ns, [1, 1, 20, 1, 1, 1, 1])
    frames.present(recorder, 1, recorder.start_ns + 5 * MS, [1, 1, 20, 1, 1, 1, 1])
    events = json.loads(convert.chrome_from_trace(recorder.table()))
    assert check_trace_events(events) == []
    infer = [e["tid"] for e in events["traceEvents"] if e["ph"] == "X" and e["name"] == "infer"]
    assert len(set(infer)) == 2
    names = [e["args"]["name"] for e in events["traceEvents"] if e["name"] == "thread_name"]
    assert "infer 2" in names


def slices_of(table: TraceTable, category: str = "gpu") -> dict[str, list[dict]]:
    """X events by the name of their track, checked."""
    document = json.loads(convert.chrome_from_trace(table))
    assert check_trace_events(document) == []
    events = document["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    found: dict[str, list[dict]] = {}
    for event in events:
        if event["ph"] == "X" and event["cat"] == category:
            found.setdefault(names[event["tid"]], []).append(event)
    return found


def overlap_us(a: dict, b: dict) -> float:
    return min(a["ts"] + a["dur"], b["ts"] + b["dur"]) - max(a["ts"], b["ts"])


def test_perfetto_shows_how_neighbours_overlap_on_the_gpu(frames) -> None:
    recorder = TraceRecorder()
    for number in range(6):  # every 3 ms, each 0.5 + 3 + 1 ms long
        at = recorder.start_ns + number * 3 * MS
        drawn = (MS // 4, at + 5 * MS, 11_000)
        frames.present(recorder, number, at, [0.1] * 7, frames.times(at + MS // 5), drawn)
    tracks = slices_of(recorder.table())
    assert set(tracks) == {"GPU copy", "GPU compute", "GPU download", "GPU draw"}
    copy, compute, download, draw = (
        tracks[name] for name in ("GPU copy", "GPU compute", "GPU download", "GPU draw")
    )
    assert len(copy) == len(compute) == len(download) == len(draw) == 6
    assert [e["args"]["frame"] for e in compute] == list(range(6))
    for this, following in zip(range(5), range(1, 6), strict=True):
        assert overlap_us(compute[this], copy[following]) == pytest.approx(500)
        assert overlap_us(compute[following], download[this]) == pytest.approx(1000)
        assert overlap_us(copy[this], compute[this]) == pytest.approx(0, abs=1e-6)
    assert (copy[2]["ts"], copy[2]["dur"]) == (pytest.approx(6200), pytest.approx(500))
    assert {e["args"]["error_us"] for e in (*copy, *compute, *download)} == {7}
    assert {e["args"]["error_us"] for e in draw} == {11}
    assert "frame" not in draw[0]["args"]  # it is of an earlier one


def test_perfetto_ties_the_gpu_into_the_arrow_of_its_frame(frames) -> None:
    recorder = TraceRecorder()
    at = recorder.start_ns
    frames.present(recorder, 0, at, [1, 1, 6, 1, 1, 1, 1], frames.times(at + 3 * MS))
    document = json.loads(convert.chrome_from_trace(recorder.table()))
    assert check_trace_events(document) == []
    arrow = [e["ts"] for e in document["traceEvents"] if e.get("cat") == "frame"]
    assert len(arrow) == 7 + 3
    assert arrow == sorted(arrow)


def test_back_to_back_work_is_on_one_track_within_the_error(frames) -> None:
    recorder = TraceRecorder()
    for number, late_us in enumerate([0, -13, 0, -9, 2, -60]):  # in doubt by 7 us each
        at = recorder.start_ns + number * 3 * MS + late_us * 1000
        frames.present(recorder, number, at, [0.1] * 7, frames.times(at))
    tracks = slices_of(recorder.table())
    assert len(tracks["GPU compute"]) == 5
    assert len(tracks["GPU compute 2"]) == 1  # 60 us are no error
    assert {e["dur"] for e in tracks["GPU compute"]} == {3000}
    for before, after in zip(tracks["GPU compute"], tracks["GPU compute"][1:], strict=False):
        assert after["ts"] >= before["ts"] + before["dur"]


def test_a_drawing_known_to_several_frames_is_one_slice(frames) -> None:
    recorder = TraceRecorder()
    for number in range(4):
        at = recorder.start_ns + number * 20 * MS
        drawn = (MS, recorder.start_ns + number // 2 * 40 * MS, 10)
        frames.present(recorder, number, at, [1] * 7, None, drawn)
    assert [e["ts"] for e in slices_of(recorder.table())["GPU draw"]] == [0, 40_000]


def test_durations_without_starts_are_counters(frames) -> None:
    recorder = TraceRecorder()
    at = recorder.start_ns
    frames.present(recorder, 0, at, [1] * 7)
    frames.present(recorder, 1, at + 20 * MS, [1] * 7, frames.times(at + 22 * MS), (5, at, 1))
    table = recorder.table()
    events = json.loads(convert.chrome_from_trace(table))["traceEvents"]
    counters = {e["name"]: e["args"]["ms"] for e in events if "on device" in e["name"]}
    assert counters == {"infer on device ms": 3, "draw on device ms": 0.5}
    assert len(slices_of(table)["GPU compute"]) == 1


# -- all ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["presentmon", "mangohud", "perfetto"])
def test_an_empty_trace_converts(format, tmp_path: Path) -> None:
    path = tmp_path / "out"
    convert.convert(TraceRecorder().table(), format, path)
    assert path.stat().st_size > 50
    if format == "perfetto":
        assert check_trace_events(json.loads(path.read_bytes())) == []


def test_files_are_named_as_the_tools_name_them(table: TraceTable) -> None:
    name = convert.file_name("presentmon", table, "t")
    assert re.fullmatch(r"PresentMon-\d{4}-\d\d-\d\dT\d{6}\.csv", name)
    name = convert.file_name("mangohud", table, "t")
    assert re.fullmatch(r"overlay_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.csv", name)
    assert convert.file_name("perfetto", table, "t") == "t.perfetto.json"


def test_a_failed_conversion_leaves_nothing(table: TraceTable, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(TraceError, match=r"cannot write .*folder"):
        convert.convert(table, "perfetto", tmp_path / "folder")
    assert sorted(tmp_path.iterdir()) == before
