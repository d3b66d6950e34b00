"""Frames and traces for the tests of the trace."""

from __future__ import annotations

import random

import numpy as np
import pytest

from overlay.frame import DeviceSpan, DeviceTimes, Frame, Picture, Region, Size
from overlay.trace import Outcome, Stage
from overlay.trace.recorder import TraceRecorder

SOURCE = np.zeros((270, 480, 4), np.uint8)
RESULT = np.zeros((540, 960, 4), np.uint8)
MS = 1_000_000


class Frames:
    """Makes frames and runs; see the fixture `frames`."""

    @staticmethod
    def frame(sequence: int, ready_ns: int, captured_ns: int | None = None) -> Frame:
        captured_ns = ready_ns if captured_ns is None else captured_ns
        return Frame(SOURCE, sequence, ready_ns, captured_ns, Region(0, 0, 480, 270))

    @staticmethod
    def picture(
        of: Frame,
        model: str = "default-x2",
        infer_ns: int = 0,
        times: DeviceTimes | None = None,
    ) -> Picture:
        return Picture(
            of, "bgra", RESULT, 2, model, "openvino", "bicubic", None, infer_ns, times=times
        )

    @staticmethod
    def present(
        recorder: TraceRecorder,
        sequence: int,
        ready_ns: int,
        spans_ms: list[float],
        times: DeviceTimes | None = None,
        draw_ns: tuple[int, int, int] = (MS // 2, 0, 0),
    ) -> int:
        """Record a presented frame whose seven stages took `spans_ms`."""
        at = [ready_ns]
        for span in spans_ms:
            at.append(at[-1] + round(span * MS))
        source = Frames.frame(sequence, at[0], at[1])
        row = recorder.begin(source)
        for stage in list(Stage)[2:]:
            recorder.stamp(row, stage, at[stage])
        picture = Frames.picture(source, infer_ns=3 * MS, times=times)
        recorder.describe(row, picture, Size(1920, 1080), *draw_ns)
        recorder.end(row, Outcome.PRESENTED)
        return row

    @staticmethod
    def times(start_ns: int, download: bool = True) -> DeviceTimes:
        """Give an upload of 0.5 ms, an inference of 3 ms and a download of 1 ms, in a row."""
        return DeviceTimes(
            DeviceSpan(start_ns, MS // 2),
            DeviceSpan(start_ns + MS // 2, 3 * MS),
            DeviceSpan(start_ns + 7 * MS // 2, MS) if download else None,
            7_000,
        )

    @staticmethod
    def fill(recorder: TraceRecorder, frames: int, seed: int = 1, gpu: bool = False) -> None:
        """Record a run with all outcomes."""
        rng = random.Random(seed)
        at = recorder.start_ns
        for i in range(frames):
            at += round(rng.uniform(14, 19) * MS)
            draw = rng.random()
            if draw < 0.85:
                spans_ms = [0.1, 0.2, rng.uniform(5, 10), 0.1, 0.3, 0.4, rng.random()]
                times = Frames.times(at + MS, i % 3 > 0) if gpu else None
                drawn = (MS // 2, at, 9_000) if gpu and i % 4 else (MS // 2, 0, 0)
                Frames.present(recorder, i, at, spans_ms, times, drawn)
                continue
            row = recorder.begin(Frames.frame(i, at, at + MS // 10))
            if draw < 0.9:
                recorder.end(row, Outcome.DUPLICATE, "no pixel changed")
            elif draw < 0.97:
                recorder.end(row, Outcome.SUPERSEDED, "infer slot")
            else:
                recorder.end(row, Outcome.FAILED, "infer")


@pytest.fixture
def frames() -> type[Frames]:
    return Frames
