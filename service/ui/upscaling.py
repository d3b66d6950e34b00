"""The tab that upscales a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from overlay.compare.measure import Enlarge
from service.ui import choice
from service.ui.client import About, Answer, Api, ApiError, Row
from service.ui.comparison import Comparison, NotCompared, compare, part_of
from service.ui.words import plain

_READ = ["png", "jpg", "jpeg", "webp", "tif", "tiff", "bmp", "gif"]
_FORMATS = {
    "image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WebP", "image/tiff": "TIFF",
    "image/bmp": "BMP",
}  # fmt: skip
#: Formats that take a quality.
_LOSSY = ("image/jpeg", "image/webp")
#: Largest reference.
MAX_MIB = 128
_UPLOAD, _EXAMPLE = "my own", "the example"
_SOURCES = (_UPLOAD, _EXAMPLE)
#: In pixels; the viewer has bars above and a table below the pictures.
_HEIGHT = 840


@dataclass(frozen=True, slots=True)
class Done:
    """A result that stays until the next one.

    Attributes:
        answer: what came from the service.
        source: the file that was sent.
        name: of that, for people.
    """

    answer: Answer
    source: bytes
    name: str


@st.cache_data(show_spinner=False, ttl=60)
def _speeds(folder: Path | None) -> dict[str, choice.Speed]:
    return choice.speeds(folder) if folder is not None else {}


def draw(api: Api, about: About, results: Path | None) -> None:
    """Draw the tab.

    Args:
        results: folder of measurements, or None.
    """
    left, right = st.columns([1, 2], gap="large")
    with left:
        row = _chosen(about)
        _describe(row, _speeds(results).get(row.id))
        order = _order(row, about)
        which = st.radio("Picture", _SOURCES, horizontal=True, key="which")
        upload = None
        if which == _UPLOAD:
            most = max(1, about.body_bytes >> 20)
            upload = st.file_uploader(
                "PNG, JPEG, WebP, TIFF, BMP or GIF", _READ, key="picture", max_upload_size=most
            )
        ready = row.available and (which == _EXAMPLE or upload is not None)
        if st.button("Upscale", type="primary", disabled=not ready, key="upscale"):
            _upscale(api, about, upload if which == _UPLOAD else None, order)
    with right:
        _show()


# --- choosing ------------------------------------------------------------------------------------


def _chosen(about: About) -> Row:
    families = choice.sorted_out(about.models)
    first = choice.first_of(about.models, about.model)
    own = choice.family_of(first)
    names = list(families)
    family = st.selectbox("Family", names, names.index(own), key="family")
    models = families[family]
    names = list(models)
    start = choice.name_of(first) if family == own else names[0]
    model = st.selectbox("Model", names, names.index(start), key=f"model {family}")
    scales = models[model]
    numbers = sorted(scales)
    begin = first if model == choice.name_of(first) else max(
        scales.values(), key=lambda row: (row.available, row.scale)
    )  # fmt: skip
    scale = st.selectbox(
        "Scale", numbers, numbers.index(begin.scale), key=f"scale {model}",
        format_func=lambda number: f"{number}x",
    )  # fmt: skip
    return scales[scale]


def _describe(row: Row, speed: choice.Speed | None) -> None:
    st.markdown(
        f"Licence: **{plain(row.licence)}**" + (f", {plain(row.author)}" * bool(row.author))
    )
    measured = f"{plain(str(speed))}" if speed else "not measured here yet"
    st.markdown(f"Speed: {measured}")
    last = st.session_state.get("took", {}).get(row.id)
    if last is not None:
        st.markdown(f"On this service, the last time: {plain(last)}")
    if row.notes:
        st.caption(plain(row.notes))
    if not row.available:
        st.warning(f"This model cannot be used on this service: {plain(row.reason)}")


def _order(row: Row, about: About) -> dict[str, str]:
    """Ask how to upscale; gives the query."""
    order = {"model": row.id}
    if row.denoise and st.checkbox("Set the denoising strength", key="set denoise"):
        order["denoise"] = str(st.slider("Denoising", 0.0, 1.0, 0.5, 0.05, key="denoise"))
    with st.expander("Size and format"):
        media = st.selectbox("Format", about.formats, format_func=_FORMATS.__getitem__, key="media")
        order["format"] = media.removeprefix("image/")
        if media in _LOSSY:
            order["quality"] = str(st.slider("Quality", 1, 100, 95, key="quality"))
        own = f"the model's, {row.scale}x"
        size = st.radio("Size", (own, "another factor"), key=f"size {row.scale}")
        if size != own:
            factor = st.number_input("Factor", 0.1, 16.0, float(row.scale), 0.1, key="factor")
            order["outscale"] = f"{factor:g}"
        st.caption(f"Results have at most {plain(about.output)} pixels.")
    return order


# --- upscaling -----------------------------------------------------------------------------------


def _upscale(api: Api, about: About, upload: UploadedFile | None, order: Mapping[str, str]) -> None:
    """Ask the service; what came of it stays in the session, an error too."""
    st.session_state.pop("comparison", None)
    try:
        with st.spinner("Upscaling"):
            if upload is None:
                file = resources.files("service") / "example" / "freedoom.png"
                done = Done(api.example(order, about.request_s), file.read_bytes(), "the example")
            else:
                data = upload.getvalue()
                media = upload.type or "application/octet-stream"
                answer = api.file(upload.name, data, media, order, about.request_s)
                done = Done(answer, data, upload.name)
    except ApiError as exc:
        st.session_state["outcome"] = str(exc)
        return
    st.session_state["outcome"] = done
    size, ms = done.answer.source, done.answer.ms["infer"]
    took = st.session_state.setdefault("took", {})
    took[order["model"]] = f"{ms:.1f} ms for {size[0]}x{size[1]}"


# --- the result ----------------------------------------------------------------------------------


def _show() -> None:
    outcome = st.session_state.get("outcome")
    if outcome is None:
        st.info("Choose a model and a picture, then Upscale: the result is shown here.")
    elif isinstance(outcome, Done):
        _show_result(outcome)
    else:
        st.error(plain(outcome))


def _show_result(done: Done) -> None:
    answer = done.answer
    (width, height), (wide, high) = answer.source, answer.size
    st.markdown(
        f"**{plain(done.name)}** by **{plain(answer.model)}**: {width}x{height} to {wide}x{high}, "
        f"{_FORMATS[answer.media]}, {len(answer.data) / 2**20:.2f} MiB"
    )
    words = {"queue": "waiting", "decode": "reading", "infer": "model", "encode": "writing"}
    st.caption(", ".join(f"{word} {answer.ms[stage]:.1f} ms" for stage, word in words.items()))
    st.download_button(
        "Download", answer.data, answer.name, answer.media, key="download", on_click="ignore"
    )
    reference = st.file_uploader(
        "Reference: the true picture at the result's size, to measure against (optional)",
        _READ, key="reference", max_upload_size=MAX_MIB,
    )  # fmt: skip
    enlarge = st.radio(
        "The source is enlarged by", ("bicubic", "nearest"), horizontal=True, key="enlarge"
    )
    try:
        shown = _compared(done, reference, enlarge)
    except NotCompared as exc:
        st.warning(f"Source and result cannot be shown together: {plain(str(exc))}. "
                   "The result can be downloaded all the same.")  # fmt: skip
        return
    _figures(shown, enlarge)
    st.iframe(shown.html, height=_HEIGHT, alt="source and result with a line to move")


def _compared(done: Done, reference: UploadedFile | None, enlarge: str) -> Comparison:
    """Compare, unless the session has it already."""
    crop = part_of(done.answer.size, 0.5, 0.5)
    if crop is not None:
        st.caption(f"A part of {crop[2]}x{crop[3]} is shown and measured; this is where it lies:")
        across = st.slider("Across, %", 0, 100, 50, key="across") / 100
        down = st.slider("Down, %", 0, 100, 50, key="down") / 100
        crop = part_of(done.answer.size, across, down)
    key = (id(done), reference.file_id if reference else None, enlarge, crop)
    known = st.session_state.get("comparison")
    if known is None or known[0] != key:
        st.session_state.pop("comparison", None)
        with st.spinner("Comparing"):
            truth = reference.getvalue() if reference else None
            way: Enlarge = "nearest" if enlarge == "nearest" else "bicubic"
            found = compare(done.source, done.answer.data, truth, way, crop)
        st.session_state["comparison"] = known = key, found
    comparison: Comparison = known[1]
    return comparison


def _figures(shown: Comparison, enlarge: str) -> None:
    """Show how far source and result are from the reference."""
    if shown.source is None or shown.result is None:
        return
    one, two, three = st.columns(3)
    gain = shown.result.psnr - shown.source.psnr
    one.metric("PSNR of the result", f"{shown.result.psnr:.2f} dB", f"{gain:+.2f} dB")
    if shown.result.ssim is not None and shown.source.ssim is not None:
        more = shown.result.ssim - shown.source.ssim
        two.metric("SSIM of the result", f"{shown.result.ssim:.4f}", f"{more:+.4f}")
    three.metric("Mean difference, levels of 255", f"{shown.result.mean:.2f}")
    st.caption(f"Against the reference; below them the gain over the source enlarged ({enlarge}).")
