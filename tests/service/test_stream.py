"""Frames over a WebSocket: newest wins, drops are counted, bad frames end nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.service.server import Served, opened, picture, wait_for

Serve = Callable[..., Served]


@contextmanager
def stream(served: Served, query: str = "", **headers: str) -> Iterator[ClientConnection]:
    url = f"ws://127.0.0.1:{served.port}/upscale/stream{query}"
    with connect(
        url, additional_headers=headers, max_size=None, open_timeout=10, proxy=None
    ) as socket:
        yield socket


def answer(socket: ClientConnection) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(socket.recv(10))
    if "error" not in about:
        about["picture"] = socket.recv(10)
    return about


def test_each_frame_is_answered_by_its_figures_and_its_picture(served: Served) -> None:
    with stream(served, "?model=default-x2&format=png") as socket:
        for number in range(3):
            socket.send(picture())
            got = answer(socket)
            assert (got["frame"], got["dropped"]) == (number, 0)
            assert (got["source"], got["size"]) == ([24, 16], [48, 32])
            assert (got["model"], got["media"]) == ("default-x2", "image/png")
            assert got["bytes"] == len(got["picture"])
            assert set(got["ms"]) == {"queue", "decode", "infer", "encode"}
            assert opened(got["picture"]).size == (48, 32)


def test_the_newest_frame_wins_and_the_others_are_counted(serve: Serve) -> None:
    served = serve(workers=1)
    with stream(served) as socket:
        served.backend.go.clear()
        socket.send(picture())
        assert served.backend.begun.acquire(timeout=5)
        for width in range(25, 34):
            socket.send(picture(width))
        wait_for(lambda: "overlay_stream_dropped_total 8.0" in metrics(served))
        served.backend.go.set()
        first, last = answer(socket), answer(socket)
    assert (first["frame"], first["source"]) == (0, [24, 16])
    assert (last["frame"], last["source"], last["dropped"]) == (9, [33, 16], 8)


def metrics(served: Served) -> str:
    text: str = served.client().get("/metrics").text
    return text


def test_a_bad_frame_is_said_and_the_next_is_done(served: Served) -> None:
    with stream(served) as socket:
        socket.send(b"no picture")
        got = answer(socket)
        assert got["status"] == 400
        assert "incorrect img object" in got["error"]
        socket.send(picture())
        assert answer(socket)["frame"] == 1


def test_a_full_server_is_said_in_place_of_the_picture(serve: Serve) -> None:
    served = serve(workers=1, queue=0)
    served.backend.go.clear()
    with stream(served) as first, stream(served) as second:
        first.send(picture())
        assert served.backend.begun.acquire(timeout=5)
        second.send(picture())
        assert answer(second)["status"] == 429
        served.backend.go.set()
        assert answer(first)["frame"] == 0
        second.send(picture())
        assert answer(second)["frame"] == 1


def test_a_client_that_goes_frees_its_slot(serve: Serve) -> None:
    served = serve(workers=1, queue=0)
    served.backend.go.clear()
    with stream(served) as socket:
        socket.send(picture())
        assert served.backend.begun.acquire(timeout=5)
    wait_for(lambda: "overlay_running 0.0" in metrics(served))
    wait_for(lambda: "overlay_streams 0.0" in metrics(served))
    assert not served.backend.go.is_set()


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("?model=no", {}, 400),
        ("?size=1", {}, 400),
        ("", {"Origin": "https://example.org"}, 403),
        ("", {"X-Session": "made-up"}, 400),
    ],
)
def test_handshakes_are_refused(
    served: Served, query: str, headers: dict[str, str], status: int
) -> None:
    with pytest.raises(InvalidStatus) as refused, stream(served, query, **headers):
        pass
    assert refused.value.response.status_code == status
    assert b"detail" in refused.value.response.body


def test_streams_need_the_key_too_and_are_bounded(serve: Serve) -> None:
    key = "a key of sixteen or more"
    served = serve(api_keys=(key,), streams=1)
    with pytest.raises(InvalidStatus, match="401"), stream(served):
        pass
    with stream(served, **{"X-API-Key": key}):
        with pytest.raises(InvalidStatus) as refused, stream(served, **{"X-API-Key": key}):
            pass
        assert refused.value.response.status_code == 429
        assert refused.value.response.headers["retry-after"]


def test_the_session_counts_here_too(served: Served) -> None:
    with served.client() as client:
        made = client.post("/configure_model/name?config_name=default-x3").json()["session"]
    with stream(served, **{"Cookie": f"overlay_session={made}"}) as socket:
        socket.send(picture())
        assert answer(socket)["model"] == "default-x3"


@pytest.mark.parametrize("sent", ["text", bytes(3 << 20)])
def test_other_messages_end_it(serve: Serve, sent: str | bytes) -> None:
    served = serve(body_mib=2)
    with stream(served) as socket:
        socket.send(sent)
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == (1003 if isinstance(sent, str) else 1009)


def test_an_idle_stream_is_closed(serve: Serve) -> None:
    with stream(serve(idle_s=0.2)) as socket, pytest.raises(ConnectionClosed):
        socket.recv(10)
