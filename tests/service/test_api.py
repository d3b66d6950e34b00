"""The routes, over real HTTP: what they answer, for whom, and in which format."""

from __future__ import annotations

import io
import json
import os
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from overlay.errors import BackendUnavailable
from service import pictures
from tests.service.server import Served, as_file, head, opened, picture, serving

KEY = "a key of sixteen or more"
Serve = Callable[..., Served]


def test_info_is_json_and_text_where_text_is_liked_better(client: httpx.Client) -> None:
    about = client.get("/info")
    assert about.json()["limits"]["output"] == "7680x4320"
    text = client.get("/info", headers={"Accept": "text/plain, application/json;q=0.5"})
    assert text.headers["content-type"].startswith("text/plain")
    assert "super-resolution" in text.text


def test_models_say_licence_and_why_one_cannot_be_used(client: httpx.Client) -> None:
    rows = {row["id"]: row for row in client.get("/models").json()["models"]}
    assert rows["default-x2"]["available"]
    assert rows["default-x2"]["licence"] == "Apache-2.0"
    assert not rows["emt-x4"]["available"]
    assert "weights" in rows["emt-x4"]["reason"]


def test_health_and_readiness(client: httpx.Client, serve: Serve) -> None:
    assert client.get("/health").json()["status"] == "ok"
    assert client.get("/ready").status_code == 200
    broken = serve(model="emt-x4").client()
    assert broken.get("/health").status_code == 200
    answer = broken.get("/ready")
    assert (answer.status_code, answer.json()["status"]) == (503, "broken")
    assert "not supported here" in answer.json()["reason"]


def test_the_example_is_upscaled_and_the_head_says_how(client: httpx.Client) -> None:
    answer = client.post("/upscale/example")
    assert answer.status_code == 200, answer.text
    assert opened(answer.content).size == (1920, 1080)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-model"] == "default-x4"
    assert answer.headers["x-input-size"] == "480x270"
    assert answer.headers["x-output-size"] == "1920x1080"
    for stage in ("queue", "decode", "infer", "encode"):
        assert float(answer.headers[f"x-{stage}-ms"]) >= 0
        assert f"{stage};dur=" in answer.headers["server-timing"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_the_format_asked_for_is_the_one_sent(client: httpx.Client, kind: str) -> None:
    media = f"image/{kind.lower()}"
    by_field = client.post("/upscale/file?format=" + kind.lower(), files=as_file(picture()))
    by_head = client.post("/upscale/file", files=as_file(picture()), headers={"Accept": media})
    for answer in (by_field, by_head):
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == media
        assert opened(answer.content).format == kind
        name = answer.headers["content-disposition"]
        assert name.rstrip('"').endswith((f".{kind.lower()}", ".jpg", ".tif"))


def test_formats_that_are_not_written_are_refused(client: httpx.Client) -> None:
    answer = client.post("/upscale/example", headers={"Accept": "image/avif"})
    assert answer.status_code == 406
    assert "image/png" in answer.json()["detail"]


@pytest.mark.parametrize(("mode", "bands"), [("RGBA", 4), ("RGB", 3), ("L", 1), ("LA", 2)])
def test_channels_are_kept(client: httpx.Client, mode: str, bands: int) -> None:
    answer = client.post("/upscale/file?model=default-x2", files=as_file(picture(mode=mode)))
    large = opened(answer.content)
    assert len(large.getbands()) == bands
    assert large.size == (48, 32)


def test_sixteen_bits_are_kept(client: httpx.Client) -> None:
    ramp = (np.arange(12 * 10 * 4) * 136).astype(np.uint16).reshape(10, 12, 4)
    data = cv2.imencode(".png", ramp)[1].tobytes()
    answer = client.post("/upscale/file?model=default-x2", files=as_file(data))
    assert answer.status_code == 200, answer.text
    large = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert large is not None
    assert (large.dtype, large.shape) == (np.uint16, (20, 24, 4))
    assert len(np.unique(np.asarray(large) % 257)) > 100  # no widened bytes


def test_a_transparent_picture_is_not_made_a_jpeg(client: httpx.Client) -> None:
    answer = client.post("/upscale/file?format=jpeg", files=as_file(picture(mode="RGBA")))
    assert answer.status_code == 400
    assert "transparency" in answer.json()["detail"]


def test_sizes_can_be_chosen(client: httpx.Client) -> None:
    sent = as_file(picture())
    answer = client.post("/upscale/file?width=60&height=100", files=sent)
    assert (answer.headers["x-output-size"], answer.headers["x-model"]) == ("60x40", "default-x3")
    assert client.post("/upscale/file?outscale=1.5", files=sent).headers["x-model"] == "default-x2"
    assert client.post("/upscale/file?width=60", files=sent).status_code == 400
    assert client.post("/upscale/file?outscal=2", files=sent).status_code == 422


def test_the_model_is_a_field_of_query_or_form(client: httpx.Client) -> None:
    sent = as_file(picture())
    by_form = client.post("/upscale/file", files=sent, data={"model": "default-x3"})
    assert by_form.headers["x-model"] == "default-x3"
    both = client.post("/upscale/file?model=default-x2", files=sent, data={"model": "default-x3"})
    assert both.status_code == 400


def test_pictures_of_more_than_8k_are_refused_by_the_header(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoded(*_: Any) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(pictures.images, "decoded", decoded)
    answer = client.post("/upscale/file", files=as_file(picture(1921, 8)))
    assert answer.status_code == 400
    assert "(32, 7684) is too large, max (4320, 7680)" in answer.json()["detail"]


@pytest.mark.parametrize("size", [(1920, 2), (2, 1920), (1080, 2)])
def test_pictures_of_8k_are_made_lying_or_standing(
    client: httpx.Client, size: tuple[int, int]
) -> None:
    answer = client.post("/upscale/file", files=as_file(picture(*size)))
    assert answer.status_code == 200, answer.text


# --- who gets which model ------------------------------------------------------------------------


def configured(client: httpx.Client, name: str, **more: Any) -> httpx.Response:
    return client.post("/configure_model/name", params={"config_name": name, **more})


def used(client: httpx.Client, **headers: str) -> str:
    answer = client.post("/upscale/file", files=as_file(picture()), headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-model"]


def test_two_users_at_once_each_get_the_model_they_chose(served: Served) -> None:
    names = ("default-x2", "default-x3")

    def user(name: str) -> set[str]:
        with served.client() as client:
            assert configured(client, name).status_code == 200
            together.wait()
            return {used(client) for _ in range(8)}

    together = threading.Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(user, names)) == [{name} for name in names]
    with served.client() as client:
        assert used(client) == "default-x4", "nobody else's choice is the server's"


def test_the_session_is_a_cookie_and_a_header(served: Served) -> None:
    with served.client() as first, served.client() as second:
        answer = configured(first, "default-x2", format="webp", quality=80)
        session = answer.json()["session"]
        assert len(session) >= 32
        assert answer.headers["x-session"] == session
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert answer.json()["configuration"]["format"] == "webp"
        assert answer.json()["licence"] == "Apache-2.0"
        again = second.post(
            "/upscale/file", files=as_file(picture()), headers={"X-Session": session}
        )
        assert again.headers["content-type"] == "image/webp"
        assert used(second) == "default-x4"
        assert configured(first, "default-x3").json()["session"] == session
        assert used(second, **{"X-Session": session}) == "default-x3"


def test_a_guessed_session_is_refused_and_not_adopted(client: httpx.Client) -> None:
    guess = {"X-Session": "let-me-choose-this-one-myself-please"}
    assert client.post("/upscale/example", headers=guess).status_code == 400
    params = {"config_name": "default-x2"}
    made = client.post("/configure_model/name", params=params, headers=guess).json()
    assert made["session"] != guess["X-Session"]


@pytest.mark.parametrize(
    "name",
    ["no-such-model", "emt-x4", "../../etc/passwd", "/etc/passwd", "hf:a/b", "default-x2@0.3", ""],
)
def test_a_failed_configuration_leaves_the_former(served: Served, name: str) -> None:
    with served.client() as client:
        configured(client, "default-x3")
        failed = configured(client, name)
        assert failed.status_code == 400, failed.text
        assert "not supported" in failed.json()["detail"]
        assert used(client) == "default-x3"


def test_a_model_that_cannot_be_opened_changes_nothing(serve: Serve) -> None:
    served = serve()
    client = served.client()
    configured(client, "default-x3")
    served.backend.broken = BackendUnavailable("the other server is away")
    failed = configured(client, "default-x2")
    assert failed.status_code == 400
    assert "the other server is away" in failed.json()["detail"]
    assert used(client) == "default-x3"
    answer = client.post("/upscale/example?model=default-x2")
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    served.backend.broken = None
    assert client.post("/upscale/example?model=default-x2").status_code == 200


@pytest.mark.parametrize(
    ("text", "media"),
    [
        ("model: default-x2\nquality: 90\n", "application/x-yaml"),
        ('model = "default-x2"\nquality = 90\n', "application/toml"),
    ],
)
def test_a_file_configures(served: Served, text: str, media: str) -> None:
    with served.client() as client:
        answer = client.post("/configure_model/file", files={"config_file": ("c", text, media)})
        assert answer.status_code == 200, answer.text
        assert answer.json()["configuration"]["quality"] == 90
        assert used(client) == "default-x2"


def test_settings_can_leave_models_out(serve: Serve) -> None:
    client = serve(models=("default-x2",), model="default-x2").client()
    assert [row["id"] for row in client.get("/models").json()["models"]] == ["default-x2"]
    assert configured(client, "default-x3").status_code == 400
    assert client.post("/upscale/example").headers["x-model"] == "default-x2"


# --- requests that were errors of the server -----------------------------------------------------


@pytest.mark.parametrize(
    ("route", "field", "part"),
    [
        ("/upscale/file", "image_file", ("a.png", b"x", None)),
        ("/upscale/file", "image_file", ("a.png", b"x", "text/html")),
        ("/upscale/file", "image_file", ("a.png", b"", "image/png")),
        ("/upscale/file", "image_file", ("a.png", b"no picture", "image/png")),
        ("/configure_model/file", "config_file", ("a", b"model: default-x2", None)),
        ("/configure_model/file", "config_file", ("a", b"model: default-x2", "image/png")),
        ("/configure_model/file", "config_file", ("a", b"\xff\xfe", "application/x-yaml")),
    ],
)
def test_odd_uploads_are_the_clients_mistake(
    client: httpx.Client, route: str, field: str, part: tuple[str, bytes, str | None]
) -> None:
    name, data, media = part
    disposition = f'Content-Disposition: form-data; name="{field}"; filename="{name}"'
    head_lines = ["--b", disposition, *([f"Content-Type: {media}"] if media else []), "", ""]
    body = "\r\n".join(head_lines).encode() + data + b"\r\n--b--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = client.post(route, content=body, headers=kind)
    assert answer.status_code == 400, answer.text
    assert answer.json()["detail"]


def test_missing_fields_are_said(client: httpx.Client) -> None:
    for route in ("/configure_model/name", "/configure_model/file", "/upscale/file"):
        assert client.post(route).status_code == 422
    assert client.post("/upscale/file", content=b"junk").status_code == 422


def test_nothing_depends_on_the_folder_it_was_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        assert serve().client().post("/upscale/example").status_code == 200
    finally:
        os.chdir(before)


def test_no_picture_is_touched_on_the_event_loop(
    served: Served, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()
    for name in ("header_size", "encode"):
        real = getattr(pictures, name)

        def noted(*given: Any, real: Any = real) -> Any:
            seen.add(threading.current_thread().name)
            return real(*given)

        monkeypatch.setattr(pictures, name, noted)
    assert client.post("/upscale/example").status_code == 200
    assert configured(client, "default-x3").status_code == 200
    assert client.get("/models").status_code == 200
    seen |= served.backend.threads
    assert seen
    assert served.thread not in seen


# --- batches -------------------------------------------------------------------------------------


def batch(*files: tuple[str, bytes, str]) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("image_files", file) for file in files]


def test_a_batch_is_a_zip_with_a_report(client: httpx.Client) -> None:
    files = batch(
        ("../../a.png", picture(), "image/png"),
        ("broken.png", b"no", "image/png"),
        ("b.jpg", picture(kind="JPEG"), "image/jpeg"),
    )
    answer = client.post("/upscale/batch?model=default-x2", files=files)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    packed = zipfile.ZipFile(io.BytesIO(answer.content))
    assert packed.namelist() == ["0000-a.png", "0002-b.png", "report.json"]
    assert opened(packed.read("0000-a.png")).size == (48, 32)
    rows = json.loads(packed.read("report.json"))
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert "incorrect img object" in rows[1]["error"]


def test_a_batch_has_an_end(client: httpx.Client) -> None:
    many = batch(*[("a.png", picture(), "image/png")] * 17)
    assert client.post("/upscale/batch", files=many).status_code == 400
    nothing = client.post("/upscale/batch", files=batch(("a.png", b"", "image/png")))
    assert nothing.status_code == 400
    assert "no picture could be done" in nothing.json()["detail"]


# --- keys and origins ----------------------------------------------------------------------------


def test_keys_are_asked_for_before_the_body_is_read(serve: Serve) -> None:
    served = serve(api_keys=(KEY, "another key that is long"))
    client = served.client()
    assert client.get("/health").status_code == 200
    for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": f"Basic {KEY}"}):
        assert client.get("/models", headers=headers).status_code == 401
    answer = served.raw(head("/upscale/file", "X-API-Key: wrong", "Content-Length: 1000"))
    assert answer.startswith(b"HTTP/1.1 401"), "it waits for no body"
    for headers in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}):
        assert client.get("/models", headers=headers).status_code == 200


def test_a_session_belongs_to_its_key(serve: Serve) -> None:
    other = "another key that is long"
    served = serve(api_keys=(KEY, other))
    mine = served.client(headers={"X-API-Key": KEY})
    session = configured(mine, "default-x2").json()["session"]
    assert used(mine) == "default-x2"
    theirs = served.client(headers={"X-API-Key": other, "X-Session": session})
    assert theirs.post("/upscale/example").status_code == 400


def test_other_pages_may_do_nothing_unless_they_are_named(serve: Serve) -> None:
    client = serve().client()
    origin = {"Origin": "https://example.org"}
    answer = client.post("/upscale/example", headers=origin)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]
    own = {"Origin": str(client.base_url).rstrip("/")}
    assert client.post("/upscale/example", headers=own).status_code == 200
    open_to = serve(cors_origins=("https://example.org",)).client()
    answer = open_to.post("/upscale/example", headers=origin)
    assert answer.headers["access-control-allow-origin"] == "https://example.org"
    assert "X-Model" in answer.headers["access-control-expose-headers"]
    assert open_to.post("/upscale/example", headers={"Origin": "https://x.org"}).status_code == 403


# --- what is told about it -----------------------------------------------------------------------


def test_metrics_are_counted() -> None:
    with serving() as served, served.client() as client:
        client.post("/upscale/example")
        client.post("/upscale/example?model=nothing")
        client.get("/no/such/route")
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = answer.text
    assert 'overlay_requests_total{route="/upscale/example",status="200"} 1.0' in text
    assert 'overlay_requests_total{route="/upscale/example",status="400"} 1.0' in text
    assert 'overlay_requests_total{route="other",status="404"} 1.0' in text
    assert 'overlay_stage_seconds_count{model="default-x4",stage="infer"} 1.0' in text
    assert "overlay_running 0.0" in text


def test_the_document_has_examples_and_every_error(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    operations = {
        (path, verb): operation
        for path, verbs in document["paths"].items()
        for verb, operation in verbs.items()
    }
    for path, verb in operations:
        told = operations[path, verb]["responses"]
        if path not in ("/health", "/ready"):
            assert {"401", "403"} <= told.keys()
        if verb == "post":
            assert {"400", "422", "429", "503", "504"} <= told.keys(), path
            assert "Retry-After" in told["429"]["headers"]
            assert told["400"]["content"]["application/json"]["example"]["detail"]
    upscale = operations["/upscale/file", "post"]["responses"]["200"]
    assert set(upscale["content"]) >= {"image/png", "image/webp"}
    assert set(upscale["headers"]) >= {"X-Model", "X-Infer-Ms"}
    assert len(operations) == 10
    assert not any("security" in operation for operation in operations.values())


def test_the_document_says_which_routes_need_a_key(serve: Serve) -> None:
    paths = serve(api_keys=(KEY,)).client().get("/openapi.json").json()["paths"]
    free = {p for p, verbs in paths.items() if not any("security" in v for v in verbs.values())}
    assert free == {"/health", "/ready"}
