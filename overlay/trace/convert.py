"""Turn a trace into what other tools open: PresentMon CSV, MangoHud CSV, Chrome/Perfetto JSON.

Each format says only what was measured. What another tool would know (when the display changed,
what the game's own CPU did) is "NA" or 0, whichever that tool writes for the unknown.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

from overlay.trace import GpuPart, Outcome, Stage
from overlay.trace.atomic import write_atomically
from overlay.trace.table import MISSING, STAGES, TraceTable

Format = Literal["presentmon", "mangohud", "perfetto"]
Args = dict[str, "int | float | str"]
Event = dict[str, "int | float | str | Args"]

#: PresentMon's default columns (no option given), unchanged from 2.4.0 to 2.5.1; 2.3.1 had
#: MsPCLatency after MsUntilDisplayed and no MsFlipDelay, before that the names were others.
#: From PresentMon/CsvOutput.cpp, github.com/GameTechDev/PresentMon.
PRESENTMON_COLUMNS = (
    "Application",
    "ProcessID",
    "SwapChainAddress",
    "PresentRuntime",
    "SyncInterval",
    "PresentFlags",
    "AllowsTearing",
    "PresentMode",
    "TimeInMs",
    "MsBetweenSimulationStart",
    "MsBetweenPresents",
    "MsBetweenDisplayChange",
    "MsInPresentAPI",
    "MsRenderPresentLatency",
    "MsUntilDisplayed",
    "CPUStartTimeInMs",
    "MsBetweenAppStart",
    "MsCPUBusy",
    "MsCPUWait",
    "MsGPULatency",
    "MsGPUTime",
    "MsGPUBusy",
    "MsGPUWait",
    "MsAnimationError",
    "AnimationTime",
    "MsFlipDelay",
    "MsAllInputToPhotonLatency",
    "MsClickToPhotonLatency",
)

#: MangoHud's columns, src/logging.cpp, github.com/flightlessmango/MangoHud.
MANGOHUD_SYSTEM = ("os", "cpu", "gpu", "ram", "kernel", "driver", "cpuscheduler")
MANGOHUD_COLUMNS = (
    "fps",
    "frametime",
    "cpu_load",
    "cpu_power",
    "gpu_load",
    "cpu_temp",
    "gpu_temp",
    "gpu_core_clock",
    "gpu_mem_clock",
    "gpu_vram_used",
    "gpu_power",
    "ram_used",
    "swap_used",
    "process_rss",
    "cpu_mhz",
    "elapsed",
)


def presentmon_from_trace(table: TraceTable) -> bytes:
    """Give the presented frames as PresentMon does: UTF-8 with BOM, CRLF, "NA" for unknown.

    The present call is the swap (stamps DRAWN to PRESENTED); a frame begins when the last one's
    swap returned. Display times are never known here. The first frame has nothing to be
    measured against and is no row, as in PresentMon.
    """
    application = _field(table.metadata.get("application"), "overlay")
    pid = _field(table.metadata.get("pid"), "0")
    vsync = table.metadata.get("vsync")
    interval = "-1" if not isinstance(vsync, bool) else str(int(vsync))
    head = f"{application},{pid},0x0,Other,{interval},0,0,Other"
    lines = [",".join(PRESENTMON_COLUMNS)]
    before_ns: int | None = None  # start and end of the present call before
    before_end_ns = 0
    for row in table.presented().tolist():
        end_ns = int(table.stamps[Stage.PRESENTED, row])
        start_ns = int(table.stamps[Stage.DRAWN, row])
        if start_ns == MISSING:
            start_ns = end_ns
        if before_ns is not None:
            gpu_ns = int(table.infer_gpu_ns[row] + table.draw_gpu_ns[row])
            gpu = f"{gpu_ns / 1e6:.4f}" if gpu_ns else "NA"
            busy_ms, call_ms = (start_ns - before_end_ns) / 1e6, (end_ns - start_ns) / 1e6
            lines.append(
                f"{head},{start_ns / 1e6:.4f},NA,{(start_ns - before_ns) / 1e6:.14f},NA,"
                f"{call_ms:.14f},NA,NA,{before_end_ns / 1e6:.4f},{busy_ms + call_ms:.4f},"
                f"{busy_ms:.4f},{call_ms:.4f},NA,NA,{gpu},NA,NA,NA,NA,NA,NA"
            )
        before_ns, before_end_ns = start_ns, end_ns
    return ("\ufeff" + "\r\n".join(lines) + "\r\n").encode()


def mangohud_from_trace(table: TraceTable) -> bytes:
    """Give the frame times as a MangoHud log; what is not measured is 0, as MangoHud writes it.

    One line per presented frame from the second on; "elapsed" counts ns from the first one.
    """
    system = {
        "os": platform.system(),
        "cpu": platform.machine(),
        "gpu": "",
        "ram": "",
        "kernel": platform.release(),
        "driver": "",
        "cpuscheduler": "",
    }
    values = (_field(table.metadata.get(key), default) for key, default in system.items())
    lines = [",".join(MANGOHUD_SYSTEM), ",".join(values), ",".join(MANGOHUD_COLUMNS)]
    presented = table.stamps[Stage.PRESENTED][table.presented()].tolist()
    for before_ns, at_ns in pairwise(presented):
        frame_ms = (at_ns - before_ns) / 1e6
        fps = 1000 / frame_ms if frame_ms > 0 else 0
        elapsed = at_ns - presented[0]
        lines.append(f"{fps:g},{frame_ms:g},0,0,0,0,0,0,0,0,0,0,0,0,0,{elapsed}")
    return ("\n".join(lines) + "\n").encode()


def chrome_from_trace(table: TraceTable) -> bytes:
    """Give the trace in the Trace Event format, for ui.perfetto.dev and chrome://tracing.

    One track per stage (a second one where two frames are in a stage at once), and per part of
    the GPU's work where it is known when that began; a flow arrow through each frame, instants
    and a counter for the frames that were not presented, counters for frame time, latency and
    those device times of which only the duration is known. Times in microseconds since the
    trace began.
    """
    events = [*_stages(table), *_gpu_parts(table)]
    events.extend(_flows(events))
    events.extend(_outcomes(table))
    events.extend(_counters(table))
    events.sort(key=_start)
    meta = [
        {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": "overlay"}},
        *_tracks(events),
    ]
    document = {
        "displayTimeUnit": "ms",
        "otherData": {key: str(value) for key, value in table.metadata.items()},
        "traceEvents": meta + events,
    }
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


_LANES = 8  # tracks a stage may have
_OUTCOME_TRACK = 1
_GPU_TRACKS = {
    GpuPart.UPLOAD: "GPU copy",
    GpuPart.INFER: "GPU compute",
    GpuPart.DOWNLOAD: "GPU download",
    GpuPart.DRAW: "GPU draw",
}
#: Tracks in order: those of the stages, then those of the GPU; each with its lanes.
_TRACKS = (*STAGES, *_GPU_TRACKS.values())


class _Slice(NamedTuple):
    """Something that took time, in ns since the trace began."""

    start: int
    stop: int
    args: Args


def _stages(table: TraceTable) -> Iterator[Event]:
    """X events, one a frame and stage."""
    for track, (name, (begin, end)) in enumerate(STAGES.items()):
        times = zip(table.stamps[begin].tolist(), table.stamps[end].tolist(), strict=True)
        slices = [
            _Slice(start, max(start, stop), _facts(table, row))
            for row, (start, stop) in enumerate(times)
            if MISSING not in (start, stop)
        ]
        yield from _track(track, name, "stage", slices)


def _gpu_parts(table: TraceTable) -> Iterator[Event]:
    """X events, one a frame and part of the GPU's work; each says how far off it may be."""
    for part, name in _GPU_TRACKS.items():
        durations, errors = table.gpu_ns[part].tolist(), table.error_ns(part).tolist()
        slices: list[_Slice] = []
        # By start: a drawing may have been the latest known one for several frames.
        rows = {start: row for row, start in enumerate(table.gpu_start_ns[part].tolist())}
        rows.pop(MISSING, None)
        free_at = error_before = MISSING
        for start, row in sorted(rows.items()):
            if start < free_at <= start + error_before + errors[row]:
                start = free_at  # one after the other, as far as is known
            free_at, error_before = start + durations[row], errors[row]
            args: Args = {} if part == GpuPart.DRAW else _facts(table, row)
            slices.append(_Slice(start, free_at, args | {"error_us": errors[row] / 1000}))
        yield from _track(len(STAGES) + part, name, "gpu", slices)


def _track(track: int, name: str, category: str, slices: list[_Slice]) -> Iterator[Event]:
    """Lay slices out on as many lanes as it takes: those of one lane must not overlap."""
    free_at = {lane: MISSING for lane in range(_LANES)}
    for start, stop, args in sorted(slices, key=lambda one: (one.start, one.stop)):
        lane = next((n for n, at in free_at.items() if at <= start), None)
        if lane is None:
            continue  # the frame path holds fewer frames
        free_at[lane] = stop
        yield {
            "ph": "X",
            "name": name,
            "cat": category,
            "pid": 1,
            "tid": 10 + track * _LANES + lane,
            "ts": start / 1000,
            "dur": (stop - start) / 1000,
            "args": args,
        }


def _flows(events: list[Event]) -> Iterator[Event]:
    """Tie the slices of each frame together."""
    frames: dict[int, list[Event]] = {}
    for event in sorted(events, key=_start):
        args = event["args"]
        if isinstance(args, dict) and "frame" in args:
            frames.setdefault(int(args["frame"]), []).append(event)
    for frame, parts in frames.items():
        if len(parts) > 1:
            yield from _flow(frame, parts)


def _flow(frame: int, parts: list[Event]) -> Iterator[Event]:
    for part, ph in zip(parts, "s" + "t" * (len(parts) - 2) + "f", strict=True):
        event: Event = {"ph": ph, "name": "frame", "cat": "frame", "id": frame, "pid": 1}
        event |= {"tid": part["tid"], "ts": part["ts"]}
        if ph == "f":
            event["bp"] = "e"  # bind to the slice around it, not to the next one
        yield event


def _start(event: Event) -> float:
    return float(event["ts"])  # type: ignore[arg-type]


def _facts(table: TraceTable, row: int) -> Args:
    model, backend = table.labels[int(table.label[row])]
    facts: Args = {
        "frame": int(table.ids[row]),
        "outcome": Outcome(int(table.outcome[row])).name.lower(),
    }
    return facts | ({"model": model, "backend": backend} if model else {})


def _outcomes(table: TraceTable) -> Iterator[Event]:
    """An instant and a step of the counter for every frame that was not presented."""
    totals = {"duplicate": 0, "superseded": 0, "failed": 0}
    captured = table.stamps[Stage.CAPTURED].tolist()
    ready = table.stamps[Stage.READY].tolist()
    for row, value in enumerate(table.outcome.tolist()):
        name = Outcome(value).name.lower()
        at_ns = max(captured[row], ready[row])
        if name not in totals or at_ns == MISSING:
            continue
        totals[name] += 1
        reason = table.reasons[int(table.reason[row])]
        args: Args = {"frame": int(table.ids[row]), "reason": reason}
        base: Event = {"pid": 1, "ts": at_ns / 1000}
        yield base | {"ph": "i", "s": "t", "name": name, "tid": _OUTCOME_TRACK, "args": args}
        yield base | {"ph": "C", "name": "not presented", "tid": 0, "args": dict(totals)}


def _counters(table: TraceTable) -> Iterator[Event]:
    before_ns: int | None = None
    for row in table.presented().tolist():
        at_ns = int(table.stamps[Stage.PRESENTED, row])
        ready_ns = int(table.stamps[Stage.READY, row])
        values: dict[str, float] = {}
        if before_ns is not None:
            values["frame time ms"] = (at_ns - before_ns) / 1e6
        if ready_ns != MISSING:
            values["capture to present ms"] = (at_ns - ready_ns) / 1e6
        for part in GpuPart:
            if table.gpu_ns[part, row] > 0 and table.gpu_start_ns[part, row] == MISSING:
                values[f"{part.name.lower()} on device ms"] = int(table.gpu_ns[part, row]) / 1e6
        before_ns = at_ns
        for name, value in values.items():
            yield {
                "ph": "C",
                "name": name,
                "pid": 1,
                "tid": 0,
                "ts": at_ns / 1000,
                "args": {"ms": value},
            }


def _tracks(events: list[Event]) -> Iterator[Event]:
    """Name the tracks in use and put them in frame order."""
    for tid in sorted({int(str(event["tid"])) for event in events}):
        if tid >= 10:
            track, lane = divmod(tid - 10, _LANES)
            name = _TRACKS[track] + (f" {lane + 1}" if lane else "")
        else:
            name = "not presented" if tid == _OUTCOME_TRACK else "counters"
        yield {"ph": "M", "name": "thread_name", "pid": 1, "tid": tid, "args": {"name": name}}
        sort: Args = {"sort_index": tid}
        yield {"ph": "M", "name": "thread_sort_index", "pid": 1, "tid": tid, "args": sort}


def _field(value: object, default: str) -> str:
    """Make one field of a CSV that has no quoting."""
    text = default if value is None or value == "" else str(value)
    return "".join("_" if c in ',"\r\n' or not c.isprintable() else c for c in text)[:200]


CONVERTERS: dict[Format, Callable[[TraceTable], bytes]] = {
    "presentmon": presentmon_from_trace,
    "mangohud": mangohud_from_trace,
    "perfetto": chrome_from_trace,
}


def file_name(format: Format, table: TraceTable, stem: str) -> str:
    """Name the file as the format's own tool would, by when the trace began (local time)."""
    started = table.metadata.get("started_unix_ns")
    seconds = started / 1e9 if isinstance(started, int) and 0 <= started < 1 << 62 else 0.0
    at = datetime.fromtimestamp(seconds)
    if format == "presentmon":
        return at.strftime("PresentMon-%Y-%m-%dT%H%M%S.csv")
    if format == "mangohud":
        return at.strftime("overlay_%Y-%m-%d_%H-%M-%S.csv")
    return f"{stem}.perfetto.json"


def convert(table: TraceTable, format: Format, path: Path) -> None:
    """Write the trace to `path` in another format, in one step.

    Raises:
        TraceError: the file cannot be written.
    """
    write_atomically(path, CONVERTERS[format](table))
