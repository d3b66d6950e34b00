"""The tab that draws a latency trace."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from overlay.errors import OverlayError
from overlay.trace.csvfile import read_trace
from overlay.trace.plot import plot_html
from overlay.trace.summary import Summary, summarise
from service.ui.comparison import kept, without_folder
from service.ui.words import plain

#: Larger traces are not read: some five hours at 60 frames a second.
MAX_MIB = 256
_HEIGHT = 1500


@dataclass(frozen=True, slots=True)
class Drawn:
    """A trace's plot, a page of its own, and its figures."""

    html: str
    summary: Summary


def draw() -> None:
    """Draw the tab."""
    file = st.file_uploader(
        "A trace that `overlay run --trace` wrote (CSV)", ["csv"], key="trace",
        max_upload_size=MAX_MIB,
    )  # fmt: skip
    if file is None:
        st.info("The plot shows frame times, the delay from capture to screen, and its stages.")
        return
    key = file.file_id
    known = st.session_state.get("trace drawn")
    if known is None or known[0] != key:
        with st.spinner("Reading the trace"):
            st.session_state["trace drawn"] = known = key, plotted(file.getvalue(), file.name)
    drawn: Drawn | str = known[1]
    if isinstance(drawn, str):
        st.error(plain(drawn))
    else:
        _show(drawn)


def plotted(data: bytes, name: str) -> Drawn | str:
    """Draw a trace, or say why not.

    Args:
        data: the file.
        name: its title.
    """
    if len(data) > MAX_MIB << 20:
        return f"The file is larger than {MAX_MIB} MiB: it is not read."
    with kept({"trace.csv": data}) as folder:
        try:
            table = read_trace(folder / "trace.csv")
            if not len(table):
                damage = f": {table.damage}" if table.damage else ""
                return f"There is no frame in this trace{damage}."
            plot_html(table, folder / "plot.html", name)
            return Drawn((folder / "plot.html").read_text("utf-8"), summarise(table))
        except OverlayError as exc:
            return without_folder(f"This cannot be drawn: {exc}.", folder)
        except MemoryError:
            return "There is too little memory for this trace."


def _show(drawn: Drawn) -> None:
    summary = drawn.summary
    if summary.damage is not None:
        st.warning(f"The trace is incomplete: {plain(summary.damage)}")
    delay, frame = summary.capture_to_present_ms, summary.frame_time_ms
    cells = (
        ("Frames a second", f"{summary.fps:.1f}"),
        ("Capture to screen, p50", _ms(delay.p50)),
        ("Capture to screen, p95", _ms(delay.p95)),
        ("Frame time, p99", _ms(frame.p99)),
    )
    for column, (name, value) in zip(st.columns(len(cells)), cells, strict=True):
        column.metric(name, value)
    st.download_button(
        "Download the plot", drawn.html.encode(), "trace.html", "text/html",
        key="trace download", on_click="ignore",
    )  # fmt: skip
    st.iframe(drawn.html, height=_HEIGHT, alt="plot of the trace")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} ms"
