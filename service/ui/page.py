"""The script that Streamlit runs for every visitor, and again after every click."""

from __future__ import annotations

import os
import time
from pathlib import Path

import streamlit as st

from service.ui import quality, tracing, upscaling
from service.ui.client import About, Api, ApiError
from service.ui.words import plain

#: Variables by which `python -m service.ui` tells this script what it was told.
API, RESULTS = "OVERLAY_PAGE_API", "OVERLAY_PAGE_RESULTS"
#: The key of all who open the page; without it, each enters one.
KEY = "OVERLAY_API_KEY"
#: So long it is believed that the service still has the same models.
_FRESH_S = 20.0


def draw() -> None:
    """Draw the page."""
    st.set_page_config("Overlay", layout="wide")
    st.title("Overlay")
    url = os.environ.get(API, "http://127.0.0.1:8000")
    folder = os.environ.get(RESULTS)
    results = Path(folder) if folder else None
    api = Api(url, _key())
    upscale, trace, compared = st.tabs(["Upscale", "Latency trace", "Quality and latency"])
    with upscale:
        about = _about(api)
        if about is not None:
            upscaling.draw(api, about, results)
    with trace:
        tracing.draw()
    with compared:
        quality.draw(results)


def _key() -> str:
    """Give the key: the server's own, else the visitor's, which stays in the session alone."""
    if os.environ.get(KEY):
        return os.environ[KEY]
    entered = st.sidebar.text_input("API key, if the service wants one", type="password", key="key")
    return entered.strip()


def _about(api: Api) -> About | None:
    key = st.session_state.get("key", "")
    known: tuple[float, str, About] | None = st.session_state.get("about")
    if known is not None and known[1] == key and time.monotonic() - known[0] < _FRESH_S:
        return known[2]
    try:
        about = api.about()
    except ApiError as exc:
        st.error(plain(str(exc)))
        st.button("Try again", key="again")
        return None
    if not about.models or not about.formats:
        st.error("The service offers no model.")
        return None
    st.session_state["about"] = time.monotonic(), key, about
    return about


if __name__ == "__main__":
    draw()
