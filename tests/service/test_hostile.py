"""What comes from people who mean no good: refused, in time, without being unpacked."""

from __future__ import annotations

import io
import resource
import socket
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from overlay.files import sixteen
from service import configuring
from service.errors import Refused
from tests.service.server import Served, as_file, head, opened, picture, wait_for

Serve = Callable[..., Served]
FORM = "Content-Type: multipart/form-data; boundary=b"
PART = (
    b'--b\r\nContent-Disposition: form-data; name="image_file"; filename="a.png"\r\n'
    b"Content-Type: image/png\r\n\r\n"
)


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def chunk(name: bytes, data: bytes) -> bytes:
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def bomb(width: int, height: int) -> bytes:
    """Write a PNG of zeros that is small packed."""
    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(width * 3 + 1)) for _ in range(min(height, 200)))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", packed + rows.flush()), chunk(b"IEND", b""))
    return sixteen.PNG_SIGNATURE + b"".join(parts)


@pytest.mark.parametrize("size", [(50_000, 50_000), (9_000, 9_000), (1 << 30, 1), (7681, 10)])
def test_bombs_are_refused_by_their_header(client: httpx.Client, size: tuple[int, int]) -> None:
    data = bomb(min(size[0], 50_000), size[1])
    data = data[:16] + struct.pack(">I", size[0]) + data[20:]
    data = data[:29] + struct.pack(">I", zlib.crc32(data[12:29])) + data[33:]
    before = peak_mib()
    answer = client.post("/upscale/file?model=default-x2", files=as_file(data))
    assert answer.status_code == 400, answer.text
    assert "too large" in answer.json()["detail"]
    assert peak_mib() - before < 30


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "BMP", "GIF", "JPEG"])
def test_sizes_in_other_headers_are_looked_at_too(client: httpx.Client, kind: str) -> None:
    file = io.BytesIO()
    Image.new("L", (4000, 3), 7).save(file, kind)
    answer = client.post("/upscale/file?model=default-x2", files=as_file(file.getvalue()))
    assert answer.status_code == 400
    assert "(6, 8000) is too large" in answer.json()["detail"]


def packed_archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("run.sh", "echo hello")
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        picture() + packed_archive(),
        picture() + b"<script>alert(1)</script>",
        picture()[:-4],
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7\n" + picture(),
        packed_archive(),
        b"#!/bin/sh\n" + picture(),
        sixteen.PNG_SIGNATURE + b"\0\0\0\0IEND" * 3,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
)
def test_polyglots_are_refused(client: httpx.Client, data: bytes) -> None:
    answer = client.post("/upscale/file", files=as_file(data))
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "BMP", "WEBP"])
def test_what_follows_a_picture_does_not_come_back(client: httpx.Client, kind: str) -> None:
    data = picture(mode="RGB", kind=kind) + packed_archive()
    answer = client.post("/upscale/file", files=as_file(data))
    assert answer.status_code in (200, 400)
    assert b"run.sh" not in answer.content
    if answer.status_code == 200:
        assert opened(answer.content).format == "PNG"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "name",
    ["../../../etc/cron.d/x.png", "/etc/passwd", "..\\..\\boot.ini", 'a"\r\nX-Evil: 1.png',
     "\0.png", "." * 300 + ".png", "\u202egnp.exe", "CON.png", "-rf.png", "%2e%2e%2fx.png"],
)  # fmt: skip
def test_names_lead_nowhere(served: Served, name: str) -> None:
    disposition = f'Content-Disposition: form-data; name="image_file"; filename="{name}"'
    part = f"--b\r\n{disposition}\r\nContent-Type: image/png\r\n\r\n".encode()
    body = part + picture() + b"\r\n--b--\r\n"
    with served.client() as client:
        head = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = client.post("/upscale/file", content=body, headers=head)
    assert answer.status_code in (200, 400), answer.text
    assert "x-evil" not in answer.headers
    sent = answer.headers.get("content-disposition", "")
    assert not set(sent.partition("filename=")[2].strip('"')) & set('/\\"%\0\r\n ')
    assert ".." not in sent


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("model: !!python/object/apply:os.system ['touch hacked']", "tags are not read"),
        ("!!python/name:os.system", "tags are not read"),
        ("model: !custom x", "tags are not read"),
        ("a: &a [1]\nmodel: *a", "aliases are not read"),
        ("model: /etc/passwd\npath: /etc/passwd", "path: Extra inputs"),
        ("model: default-x2\ntriton_url: http://10.0.0.1", "triton_url: Extra inputs"),
        ("model: [default-x2]", "model: Input should be a valid string"),
        ("model: default-x2\nwidth: 100", "width and height go together"),
        ("model: default-x2\noutscale: .inf", "outscale"),
        ("model: default-x2\nquality: 101", "quality"),
        ("- model", "no table"),
        ("[" * 30_000, "no YAML"),
        ("a: 2026-99-99", "no YAML"),
        ("{model: default-x2", "no YAML"),
        ("a: " + "9" * 10_000, "no YAML"),
        ("model: " + "x" * (64 << 10), "KiB at most"),
    ],
)
def test_configurations_are_read_with_care(text: str, why: str) -> None:
    before = time.perf_counter()
    with pytest.raises(Refused, match=why):
        configuring.parse(text.encode(), "application/x-yaml", "a")
    assert time.perf_counter() - before < 10


@pytest.mark.parametrize("text", ["a = " + "[" * 30_000, "model = 1", "a = 99999-01-01", "a.b = 1"])
def test_toml_is_read_with_care(text: str) -> None:
    with pytest.raises(Refused):
        configuring.parse(text.encode(), "", "a.toml")


def test_a_billion_laughs_are_not_laughed() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, after in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]")
    with pytest.raises(Refused, match="aliases"):
        configuring.parse("\n".join(lines).encode(), "application/yaml", "")


def test_a_configuration_file_with_a_tag_runs_nothing(
    served: Served, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "model: !!python/object/apply:os.system ['touch hacked']"
    with served.client() as client:
        sent = {"config_file": ("../a.yaml", text, "application/x-yaml")}
        answer = client.post("/configure_model/file", files=sent)
    assert answer.status_code == 400
    assert not list(tmp_path.iterdir())


# --- bodies --------------------------------------------------------------------------------------


def test_a_claim_of_two_gigabytes_is_refused_before_the_body(served: Served) -> None:
    answer = served.raw(head("/upscale/file", FORM, f"Content-Length: {2 << 30}"))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    assert b"larger than 32 MiB" in answer


@pytest.mark.parametrize("claim", ["1e9", "-1", "0x10", "9" * 5000])
def test_odd_lengths_are_refused(served: Served, claim: str) -> None:
    answer = served.raw(head("/upscale/file", FORM, f"Content-Length: {claim}"))
    assert answer.split()[1] in (b"400", b"413")


def test_a_stream_past_the_limit_is_cut_off(serve: Serve) -> None:
    served = serve(body_mib=2)
    pieces = (b"10000\r\n" + bytes(0x10000) + b"\r\n") * 1000  # 62 MiB
    before = peak_mib()
    with _wire(served) as wire:
        wire.sendall(head("/upscale/file", FORM, "Transfer-Encoding: chunked"))
        wire.sendall(b"%x\r\n" % len(PART) + PART + b"\r\n")
        with pytest.raises(ConnectionError):
            wire.sendall(pieces)
    assert peak_mib() - before < 40
    wait_for(lambda: b"overlay_uploads 0.0" in served.client().get("/metrics").content)
    assert 'status="413"' in served.client().get("/metrics").text


def _wire(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port), 10)


def test_a_body_that_stops_is_not_waited_for(serve: Serve) -> None:
    served = serve(stall_s=0.3)
    began = time.monotonic()
    answer = served.raw(head("/upscale/file", FORM, "Content-Length: 5000") + PART)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began < 5
    assert served.client().post("/upscale/example").status_code == 200


def test_a_body_that_drips_is_not_waited_for(serve: Serve) -> None:
    served = serve(stall_s=5, body_s=0.8)
    with _wire(served) as wire:
        wire.sendall(head("/upscale/file", FORM, "Content-Length: 5000") + PART)
        began = time.monotonic()
        answer = b""
        wire.settimeout(0.05)
        while not answer and time.monotonic() - began < 5:
            wire.sendall(b"x")
            try:
                answer = wire.recv(1000)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_bodies_that_are_being_read_are_bounded(serve: Serve) -> None:
    served = serve(uploads=2, stall_s=5)
    slow = [_wire(served) for _ in range(2)]
    try:
        for wire in slow:
            wire.sendall(head("/upscale/file", FORM, "Content-Length: 5000") + PART)
        client = served.client()
        wait_for(lambda: b"overlay_uploads 2.0" in client.get("/metrics").content)
        answer = client.post("/upscale/file", files=as_file(picture()))
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
    finally:
        for wire in slow:
            wire.close()
    wait_for(lambda: b"overlay_uploads 0.0" in client.get("/metrics").content)
    assert client.post("/upscale/file", files=as_file(picture())).status_code == 200


# --- slots ---------------------------------------------------------------------------------------


def posted(served: Served) -> threading.Thread:
    """Send a picture from another thread, whose answer nobody looks at."""

    def send() -> None:
        served.client().post("/upscale/file", files=as_file(picture()))

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def metric(served: Served, name: str) -> float:
    lines = served.client().get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def test_a_full_queue_is_said_with_when_to_try_again(serve: Serve) -> None:
    served = serve(workers=1, queue=1)
    served.backend.go.clear()
    threads = [posted(served)]
    served.backend.begun.acquire(timeout=5)
    threads.append(posted(served))
    wait_for(lambda: metric(served, "overlay_waiting") == 1)
    answer = served.client().post("/upscale/file", files=as_file(picture()))
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert "1 wait" in answer.json()["detail"]
    assert served.client().get("/health").status_code == 200, "the loop is free"
    served.backend.go.set()
    for thread in threads:
        thread.join()
    assert served.client().post("/upscale/file", files=as_file(picture())).status_code == 200


def test_a_client_that_goes_leaves_the_queue(serve: Serve) -> None:
    served = serve(workers=1, queue=1)
    served.backend.go.clear()
    first = posted(served)
    served.backend.begun.acquire(timeout=5)
    body = PART + picture() + b"\r\n--b--\r\n"
    with _wire(served) as wire:
        wire.sendall(head("/upscale/file", FORM, f"Content-Length: {len(body)}") + body)
        wait_for(lambda: metric(served, "overlay_waiting") == 1)
    wait_for(lambda: metric(served, "overlay_waiting") == 0)
    assert metric(served, "overlay_running") == 1
    served.backend.go.set()
    first.join()


def test_a_client_that_goes_ends_its_work(serve: Serve) -> None:
    served = serve(workers=1, queue=0)
    served.backend.go.clear()
    body = PART + picture() + b"\r\n--b--\r\n"
    with _wire(served) as wire:
        wire.sendall(head("/upscale/file", FORM, f"Content-Length: {len(body)}") + body)
        assert served.backend.begun.acquire(timeout=5)
        answer = served.client().post("/upscale/file", files=as_file(picture()))
        assert answer.status_code == 429
    wait_for(lambda: metric(served, "overlay_running") == 0)
    assert not served.backend.go.is_set(), "it ended by itself"
    served.backend.go.set()
    assert served.client().post("/upscale/file", files=as_file(picture())).status_code == 200


def test_work_that_takes_too_long_is_ended(serve: Serve) -> None:
    served = serve(workers=1, queue=0, request_s=0.3)
    served.backend.go.clear()
    answer = served.client().post("/upscale/file", files=as_file(picture()))
    assert answer.status_code == 504
    assert "longer than 0.3 s" in answer.json()["detail"]
    wait_for(lambda: metric(served, "overlay_running") == 0)
    served.backend.go.set()
    assert served.client().post("/upscale/file", files=as_file(picture())).status_code == 200


def test_pages_are_not_counted(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow looks for each page in a list of those before: minutes for what fits an upload."""
    counted: list[int] = []
    monkeypatch.setattr(TiffImageFile, "n_frames", property(lambda image: counted.append(1) or 2))
    file, page = io.BytesIO(), Image.new("RGB", (8, 8))
    page.save(file, "TIFF", save_all=True, append_images=[page, page])
    answer = client.post("/upscale/file?model=default-x2", files=as_file(file.getvalue()))
    assert answer.status_code == 400, answer.text
    assert "several pages" in answer.json()["detail"]
    assert not counted


@pytest.mark.parametrize("charset", ["punycode", "utf-7", "zip"])
def test_fields_are_decoded_as_text_alone(client: httpx.Client, charset: str) -> None:
    kind = {"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"}
    body = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n+2AA-\r\n--b--\r\n'
    answer = client.post("/upscale/file", content=body, headers=kind)
    assert answer.status_code == 400, answer.text
    assert "charset" in answer.json()["detail"]


def test_an_origin_that_is_none_is_another(client: httpx.Client) -> None:
    answer = client.post("/upscale/example", headers={"Origin": "http://["})
    assert answer.status_code == 403


def test_a_long_name_is_refused(client: httpx.Client) -> None:
    answer = client.post("/configure_model/name", params={"config_name": "a" * 150})
    assert answer.status_code == 422
