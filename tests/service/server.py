"""A real server on loopback, with a back end that tests can hold up."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from PIL import Image

from engines.offline import Progress
from service.api import create_app, make_server
from service.backends import Model, Offer, Pixels
from service.resize import ResizeBackend, ResizeModel
from service.settings import Settings


class HeldBackend(ResizeBackend):
    """Waits for `go` in every picture, and notes which threads it runs on."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Semaphore(0)
        self.threads: set[str] = set()
        self.broken: Exception | None = None
        self.opened: list[str] = []

    def offers(self) -> tuple[Offer, ...]:
        self.threads.add(threading.current_thread().name)
        missing = Offer("emt-x4", 4, "MIT", "", "", False, "its weights are not on the server")
        return (*super().offers(), missing)

    def open(self, model: str) -> Model:
        if self.broken:
            raise self.broken
        self.opened.append(model)
        return HeldModel(model, super().open(model).scale, self)


class HeldModel(ResizeModel):
    def __init__(self, name: str, scale: int, backend: HeldBackend) -> None:
        super().__init__(name, scale)
        self._backend = backend

    def upscale(self, picture: Pixels, *, seed: int, progress: Progress) -> Pixels:
        self._backend.threads.add(threading.current_thread().name)
        self._backend.begun.release()
        while not self._backend.go.wait(0.01):
            progress(0.5)
        return super().upscale(picture, seed=seed, progress=progress)


@dataclass
class Served:
    url: str
    port: int
    app: FastAPI
    backend: HeldBackend
    thread: str
    closing: ExitStack

    def client(self, **options: Any) -> httpx.Client:
        """Open a client that is closed with the server."""
        client = httpx.Client(base_url=self.url, timeout=20, trust_env=False, **options)
        self.closing.callback(client.close)
        return client

    def raw(self, sent: bytes, timeout_s: float = 10) -> bytes:
        """Send bytes as they are; give all that comes until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout_s) as wire:
            wire.sendall(sent)
            got = b""
            while piece := wire.recv(65536):
                got += piece
            return got


@contextmanager
def serving(**options: Any) -> Iterator[Served]:
    """Run a server on a free port of loopback."""
    settings = Settings(port=0, warm=False, **{"queue": 8, **options})
    backend = HeldBackend()
    app = create_app(settings, backend)
    server = make_server(settings, app)
    thread = threading.Thread(target=server.run, name="the loop")
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        with ExitStack() as stack:
            yield Served(f"http://127.0.0.1:{port}", port, app, backend, thread.name, stack)
    finally:
        backend.go.set()
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


def wait_for(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


def picture(width: int = 24, height: int = 16, mode: str = "RGB", kind: str = "PNG") -> bytes:
    """Encode a picture with something in it."""
    ramp = np.add.outer(np.arange(height) * 5, np.arange(width) * 7).astype(np.uint8)
    image = Image.fromarray(np.stack([ramp, ramp[::-1], ramp, 255 - ramp // 2], 2), "RGBA")
    file = io.BytesIO()
    image.convert(mode).save(file, kind)
    return file.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def head(path: str, *lines: str) -> bytes:
    """Write the head of a POST by hand."""
    lines = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", *lines, "", "")
    return "\r\n".join(lines).encode()


def as_file(data: bytes, name: str = "a.png", media: str = "image/png") -> dict[str, Any]:
    return {"image_file": (name, data, media)}
