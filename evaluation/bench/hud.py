"""Time what the HUD adds to a frame."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from overlay.frame import Frame, Picture, Size
from overlay.hud import HudView, Span
from overlay.present import Look
from overlay.present.offscreen import OffscreenPresenter
from overlay.trace.summary import Json, Percentiles, percentiles

_WARM = 3


@dataclass(frozen=True, slots=True)
class HudCost:
    """Upload, draw and finish of a bilinear frame with and without a HUD, in ms.

    Attributes:
        output: size of the picture.
        glyphs: characters in the HUD.
        without_ms: no HUD.
        same_ms: a HUD whose text is that of the frame before.
        new_ms: a HUD with new text in every frame (the live overlay: 4 times a second).
    """

    output: Size
    glyphs: int
    without_ms: Percentiles
    same_ms: Percentiles
    new_ms: Percentiles

    def to_json(self) -> dict[str, Json]:
        """Give the documented fields of `--json`."""
        return {
            "output_size": str(self.output),
            "glyphs": self.glyphs,
            "without_ms": self.without_ms.to_json(),
            "same_ms": self.same_ms.to_json(),
            "new_ms": self.new_ms.to_json(),
        }


def view(number: int) -> HudView:
    """Make a HUD of four lines and a sparkline, as large as the full one."""
    fps = 60 + number % 10 / 10
    lines = (
        (Span(f"{fps:5.1f} fps", "green"), Span("  source 60.0 fps", "grey")),
        (Span(f"frame 16.{number % 10} ms  p99 21.{number % 10}  latency  5.2 / 9.8 ms", "amber"),),
        (Span("capture 0.1  wait 0.1  infer 8.0  present 4.5 ms"),),
        (Span("default-x2 openvino 480x270 -> 960x540", "grey"),),
    )
    times = tuple(16.0 + (number + k) % 7 for k in range(120))
    return HudView(lines, times)


def measure_hud(
    frames: list[Frame], output: Size, presenter: OffscreenPresenter, count: int
) -> HudCost:
    """Time `count` frames in each of the three ways, in turn."""
    presenter.adapt(Look(size=output))
    same = view(0)
    took: dict[str, list[float]] = {"without": [], "same": [], "new": []}
    for number in range(count + _WARM):
        frame = frames[number % len(frames)]
        for way, hud in (("without", None), ("same", same), ("new", view(number))):
            if way == "same":
                presenter.show(_picture(frame), same)  # so that its text is there already
            begin_ns = time.perf_counter_ns()
            shown = presenter.show(_picture(frame), hud)
            if number >= _WARM:
                took[way].append((shown.swapped_ns - begin_ns) / 1e6)
    glyphs = sum(len(span.text) for line in same.lines for span in line)
    values = {way: percentiles(np.array(times)) for way, times in took.items()}
    return HudCost(output, glyphs, values["without"], values["same"], values["new"])


def _picture(frame: Frame) -> Picture:
    return Picture(frame, "source", frame.pixels, 1, "bilinear", "opengl", "bilinear")
