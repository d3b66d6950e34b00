"""Loading from Hugging Face, against a stand-in of the site on this machine."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from engines import hub, load
from engines.archs import compact
from engines.errors import (
    CacheError,
    EngineError,
    EngineMissing,
    ModelInvalid,
    UnknownModel,
    UsageError,
    WeightsMissing,
)
from engines.hub import site
from tests.hub import TOKEN, Hub, git_sha1, running, sha256

NAME = "somebody/upscaler"
REFERENCE = f"hf:{NAME}"
NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, waited: list[float]) -> Iterator[Hub]:
    with running(monkeypatch, str(tmp_path / "home")) as found:
        yield found


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds between tries, which are not waited."""
    waits: list[float] = []
    monkeypatch.setattr(site, "_sleep", waits.append)
    return waits


def weights(seed: int = 0) -> bytes:
    torch.manual_seed(seed)
    return save(compact.build({"features": 4, "convs": 1, "scale": 2}).state_dict())


def kept(home: Path) -> list[str]:
    """Files in the cache, without what it says of them."""
    return [p.name for p in home.rglob("*") if p.is_file() and "overlay" not in p.parent.name]


# --- which file ----------------------------------------------------------------------------------


def test_safetensors_are_preferred_and_the_commit_is_named(there: Hub, tmp_path: Path) -> None:
    files = {"a.pth": b"program", "nets/b.safetensors": weights(), "run_me.py": b"1 / 0"}
    commit = there.add(NAME, files).commits[0][0]
    download = hub.fetch(REFERENCE)
    assert download.path.read_bytes() == weights()
    assert download.origin == f"hf:{NAME}/nets/b.safetensors at {commit[:12]}"
    assert there.lines("resolve") == [f"GET /{NAME}/resolve/{commit}/nets/b.safetensors"]
    assert not list(tmp_path.rglob("*.py"))


def test_pickles_come_last(there: Hub) -> None:
    there.add(NAME, {"a.pth": b"a", "b.onnx": b"b"})
    assert hub.fetch(REFERENCE).path.name == "b.onnx"
    there.add(NAME, {"a.pth": b"a", "c.txt": b""})
    assert hub.fetch(f"{REFERENCE}@main").path.name == "a.pth"


def test_a_pickle_that_runs_something_is_refused(there: Hub, tmp_path: Path) -> None:
    class Program:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"a": Program()}, tmp_path / "net.pth")
    there.add(NAME, {"net.pth": (tmp_path / "net.pth").read_bytes()})
    with pytest.raises(ModelInvalid, match=r"net\.pth"):
        load.read(load.locate(REFERENCE))
    assert not (tmp_path / "ran").exists()


def test_a_file_can_be_named(there: Hub) -> None:
    there.add(NAME, {"a.safetensors": weights(), "nets/b c.safetensors": b"other"})
    assert hub.fetch(f"{REFERENCE}/nets/b c.safetensors").path.read_bytes() == b"other"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["b.safetensors", "a.safetensors"], r"2 model files \(a\.safetensors, b\.safetensors\); "
         rf"name one: {REFERENCE}/a\.safetensors"),
        (["README.md", "model.gguf"], r"no model file .*; it has README\.md, model\.gguf"),
        ([f"{n:02}.pth" for n in range(20)], r"20 model files \(00\.pth, .*07\.pth and 12 more\)"),
        ([], "it has no files"),
    ],
)  # fmt: skip
def test_none_and_several_are_listed(there: Hub, files: list[str], message: str) -> None:
    there.add(NAME, dict.fromkeys(files, b"x"))
    with pytest.raises(ModelInvalid, match=message):
        hub.fetch(REFERENCE)
    assert there.lines("resolve") == []


def test_config_json_chooses_among_several(there: Hub) -> None:
    config = {"weights": "b.safetensors", "architecture": "compact", "scale": 2}
    files = {"a.safetensors": b"a", "b.safetensors": b"b", "config.json": json.dumps(config)}
    there.add(NAME, {name: bytes(text, "utf-8") if isinstance(text, str) else text
                     for name, text in files.items()})  # fmt: skip
    download = hub.fetch(REFERENCE)
    assert download.path.name == "b.safetensors"
    assert download.origin.endswith("(by its config.json: compact, x2)")


@pytest.mark.parametrize(
    "config",
    [
        b"{", b"[]", b"[" * 60000, b'{"weights": 3, "scale": true, "architecture": "a\\nb"}',
        b'{"weights": "../../etc/passwd"}', b'{"weights": "README.md"}',
        b"\xff\xfe", b'{"weights": "a.safetensors"}' + b" " * 65536,
    ],
)  # fmt: skip
def test_other_config_jsons_are_left_out(there: Hub, config: bytes) -> None:
    there.add(NAME, {"a.safetensors": weights(), "config.json": config, "README.md": b""})
    assert hub.fetch(REFERENCE).origin.endswith(
        " at " + there.repositories[f"model {NAME}"].at("main")[0][:12]
    )
    there.add(NAME, {"a.safetensors": b"a", "b.safetensors": b"b", "config.json": config})
    with pytest.raises(ModelInvalid, match="2 model files"):
        hub.fetch(f"{REFERENCE}@main")


def test_config_json_of_other_weights_is_refused(there: Hub) -> None:
    config = json.dumps({"weights": "a.safetensors", "sha256": "0" * 64}).encode()
    there.add(NAME, {"a.safetensors": weights(), "config.json": config})
    with pytest.raises(ModelInvalid, match=r"describes other weights than a\.safetensors"):
        hub.fetch(REFERENCE)


def test_locate_reads_what_was_downloaded(there: Hub, tmp_path: Path) -> None:
    there.add(NAME, {"mine.safetensors": weights()})
    loaded = load.read(load.locate(REFERENCE))
    assert (loaded.spec.architecture, loaded.spec.scale) == ("compact", 2)
    assert loaded.located.sha256 == sha256(weights())
    assert tmp_path / "home" in loaded.located.files[0].parents


@pytest.mark.parametrize(
    "reference",
    ["hf:", "hf:name", "hf:a/b/../../c.pth", "hf:/etc/passwd", "hf:a b/c", "hf:a/b/", "hf:a/b\\c",
     "hf:a/b@", "hf:a/b@x y", "hf:a/b@../x", "hf:a/b/c:d.pth", "hf:a--b/c", "hf:a/b/./c.pth",
     "hf:a/b/" + "c" * 300 + ".pth"],
)  # fmt: skip
def test_other_references_are_usage_errors(there: Hub, reference: str) -> None:
    with pytest.raises(UnknownModel, match="of the form"):
        hub.fetch(reference)
    assert there.asked == []


def test_other_kinds_of_file_are_not_asked_for(there: Hub) -> None:
    with pytest.raises(ModelInvalid, match="no model file"):
        hub.fetch(f"{REFERENCE}/README.md")
    assert there.asked == []


# --- revisions and the cache ---------------------------------------------------------------------


@pytest.mark.parametrize("reference", [REFERENCE, f"{REFERENCE}/a.safetensors"])
def test_a_repository_is_looked_up_once(
    there: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reference: str
) -> None:
    repository = there.add(NAME, {"a.safetensors": b"old"})
    first = hub.fetch(reference)
    repository.commit({"a.safetensors": b"new", "b.safetensors": b"new"})
    there.asked.clear()
    with caplog.at_level(logging.INFO, "engines.hub"):
        assert hub.fetch(reference) == first
    assert there.asked == []
    assert f"{REFERENCE}@main looks for a newer one" in caplog.text
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    assert hub.fetch(reference) == first


def test_a_branch_is_looked_up_each_time(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = there.add(NAME, {"a.safetensors": b"old"})
    assert hub.fetch(REFERENCE).path.read_bytes() == b"old"
    commit = repository.commit({"a.safetensors": b"new"})
    newer = hub.fetch(f"{REFERENCE}@main")
    assert newer.path.read_bytes() == b"new"
    assert commit[:12] in newer.origin
    assert hub.fetch(REFERENCE) == newer  # which has been looked up now
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.fetch(f"{REFERENCE}@main") == newer


def test_commits_and_tags_can_be_named(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = there.add(NAME, {"a.safetensors": b"old"})
    repository.tags["v1.0"] = repository.commits[0][0]
    commit = repository.commit({"a.safetensors": b"new"})
    old = hub.fetch(f"{REFERENCE}@v1.0")
    assert old.path.read_bytes() == b"old"
    assert hub.fetch(f"{REFERENCE}@{commit}/a.safetensors").path.read_bytes() == b"new"
    there.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.fetch(f"{REFERENCE}@{commit}").path.read_bytes() == b"new"
    assert hub.fetch(f"{REFERENCE}@v1.0") == old
    assert there.asked == []
    with pytest.raises(WeightsMissing, match="HF_HUB_OFFLINE is set"):
        hub.fetch(REFERENCE)  # only some of its revisions are here
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(EngineMissing, match="no such revision"):
        hub.fetch(f"{REFERENCE}@v2.0")


def test_offline_nothing_is_asked(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    there.add(NAME, {"a.safetensors": weights()})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsMissing, match=r"HF_HUB_OFFLINE is set\) and is not in the cache"):
        hub.fetch(REFERENCE)
    assert there.asked == []


def test_content_that_is_here_is_not_downloaded_again(there: Hub) -> None:
    repository = there.add(NAME, {"a.safetensors": weights(), "README.md": b"1"})
    hub.fetch(REFERENCE)
    repository.commit({"b.safetensors": weights(), "README.md": b"2"})
    there.asked.clear()
    assert hub.fetch(f"{REFERENCE}@main").path.read_bytes() == weights()
    assert there.lines("resolve") == []


def test_a_file_of_another_length_is_downloaded_again(there: Hub) -> None:
    there.add(NAME, {"a.safetensors": weights()})
    path = hub.fetch(REFERENCE).path
    path.write_bytes(weights()[:-1])
    assert hub.fetch(REFERENCE).path.read_bytes() == weights()


def test_the_cache_is_that_of_the_hubs_own_client(
    there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = pytest.importorskip("huggingface_hub")
    there.add(NAME, {"a.safetensors": weights(), "config.json": b"{}"})
    ours = hub.fetch(REFERENCE)
    folder = tmp_path / "home" / "hub"
    theirs = client.hf_hub_download(NAME, "a.safetensors", cache_dir=folder, local_files_only=True)
    assert Path(theirs) == ours.path
    found = client.scan_cache_dir(folder)
    assert [repo.repo_id for repo in found.repos] == [NAME]
    assert not found.warnings


def test_what_the_hubs_own_client_downloaded_is_found(
    there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = pytest.importorskip("huggingface_hub")
    there.add(NAME, {"a.safetensors": weights()})
    theirs = client.HfApi(there.url).hf_hub_download(NAME, "a.safetensors", cache_dir=tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.fetch(REFERENCE, tmp_path).path == Path(theirs)


def test_where_links_cannot_be_made_files_are_copied(
    there: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError("a required privilege is not held")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    there.add(NAME, {"nets/a.safetensors": weights()})
    path = hub.fetch(REFERENCE).path
    assert not path.is_symlink()
    assert path.read_bytes() == weights()


def test_a_cache_that_cannot_be_written_is_named(there: Hub, tmp_path: Path) -> None:
    there.add(NAME, {"a.safetensors": weights()})
    (tmp_path / "home").write_text("a file")
    with pytest.raises(CacheError, match=r"cannot write .*; HF_HOME names another folder"):
        hub.fetch(REFERENCE)


# --- a site that fails, or is not to be trusted --------------------------------------------------


@pytest.mark.parametrize("reference", [REFERENCE, f"{REFERENCE}/a.pth"])
def test_without_the_site_there_is_one_clear_line(
    there: Hub, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    with pytest.raises(WeightsMissing, match=r"cannot be downloaded now .*refused") as caught:
        hub.fetch(reference)
    assert "\n" not in str(caught.value)


def test_the_overlay_says_why_there_is_none(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from overlay.frame import Size
    from overlay.infer.find import Wish, open_engine

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsMissing, match="HF_HUB_OFFLINE is set"):
        open_engine(REFERENCE, "onnxruntime", Wish(Size(16, 16)))


def test_an_unknown_repository_or_file_is_named(there: Hub) -> None:
    there.add(NAME, {"a.safetensors": weights()})
    with pytest.raises(EngineMissing, match=r"no such repository, or it is private \(401\)"):
        hub.fetch("hf:nobody/nothing")
    with pytest.raises(EngineMissing, match=r"no file 'b\.pth'; it has a\.safetensors"):
        hub.fetch(f"{REFERENCE}/b.pth")
    there.fail("resolve", status=404, headers={"X-Error-Code": "EntryNotFound"})
    with pytest.raises(EngineMissing, match="no such file"):
        hub.fetch(REFERENCE)


@pytest.mark.parametrize("where", ["GET /api", "resolve", "GET /[0-9a-f]{64}"])
def test_a_site_that_is_busy_is_asked_again(there: Hub, waited: list[float], where: str) -> None:
    there.add(NAME, {"a.safetensors": weights()})
    there.fail(where, status=429, headers={"Retry-After": "7"})
    there.fail(where, status=500)
    assert hub.fetch(REFERENCE).path.read_bytes() == weights()
    assert waited == [7.0, 2.0]


def test_no_site_makes_us_wait_for_long(there: Hub, waited: list[float]) -> None:
    there.add(NAME, {"a.safetensors": weights()})
    there.fail("GET /api", status=429, headers={"Retry-After": "86400"})
    with pytest.raises(WeightsMissing, match="answers 429, to be asked again in 86400 s"):
        hub.fetch(REFERENCE)
    there.fail("GET /api", status=503, times=9)
    with pytest.raises(WeightsMissing, match="answers 503"):
        hub.fetch(REFERENCE)
    assert waited == [1.0, 2.0]
    assert len(there.asked) == 4


@pytest.mark.parametrize("where", ["GET /api", "GET /[0-9a-f]{64}"])
def test_a_body_that_is_cut_is_asked_for_again(there: Hub, tmp_path: Path, where: str) -> None:
    there.add(NAME, {"a.safetensors": weights()})
    there.fail(where, kind="cut")
    assert hub.fetch(REFERENCE).path.read_bytes() == weights()
    there.fail(where, kind="cut", times=3)
    there.repositories[f"model {NAME}"].commit({"a.safetensors": weights(1)})
    if where == "GET /api":
        assert hub.fetch(f"{REFERENCE}@main").path.read_bytes() == weights()
    else:
        with pytest.raises(WeightsMissing, match=r"a\.safetensors ended after \d+ of \d+ bytes"):
            hub.fetch(f"{REFERENCE}@main")
    assert not [name for name in kept(tmp_path) if name.endswith(".incomplete")]


@pytest.mark.parametrize("name", ["a.safetensors", "config.json"])
def test_what_is_not_what_the_repository_says_is_not_kept(
    there: Hub, tmp_path: Path, name: str
) -> None:
    there.add(NAME, {"a.safetensors": weights(), "config.json": b"{} "})
    large = name.endswith(".safetensors")
    there.fail("GET /[0-9a-f]{64}" if large else "config.json", kind="flip")
    with pytest.raises(ModelInvalid, match=rf"{name} came with the digest"):
        hub.fetch(REFERENCE)
    content = weights() if large else b"{} "
    assert (sha256(content) if large else git_sha1(content)) not in kept(tmp_path)
    assert name not in kept(tmp_path)
    assert hub.fetch(REFERENCE).path.read_bytes() == weights()


def test_the_etag_serves_where_no_digest_is_given(
    there: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    there.add(NAME, {"a.safetensors": weights(), "b.onnx": b"b"})
    plain = {"rfilename": "a.safetensors"}
    monkeypatch.setattr(there, "_sibling", lambda name, content: {**plain, "rfilename": name})
    there.fail("GET /[0-9a-f]{64}", kind="flip")
    answer = there._stored
    tag = {"ETag": f'"{sha256(weights())}"'}
    monkeypatch.setattr(there, "_stored", lambda *a: (200, tag, answer(*a)[2]))
    with pytest.raises(ModelInvalid, match="came with the digest"):
        hub.fetch(REFERENCE)
    assert hub.fetch(REFERENCE).path.read_bytes() == weights()
    monkeypatch.setattr(there, "_stored", answer)
    assert hub.fetch(f"{REFERENCE}/b.onnx").path.read_bytes() == b"b"
    assert "gives no digest of b.onnx" in caplog.text


def test_sizes_are_limits(there: Hub, tmp_path: Path) -> None:
    there.add(NAME, {"a.safetensors": weights()})
    there.sizes = {"a.safetensors": 3 << 30}
    with pytest.raises(ModelInvalid, match="larger than 2 GiB"):
        hub.fetch(REFERENCE)
    assert there.lines("resolve") == []
    there.sizes = {}
    there.fail("GET /[0-9a-f]{64}", kind="more")
    with pytest.raises(ModelInvalid, match=rf"more than the {len(weights())} bytes it said"):
        hub.fetch(REFERENCE)
    there.fail("GET /api", kind="more")
    with pytest.raises(ModelInvalid, match="more than the 16777216 bytes"):
        hub.fetch(REFERENCE)
    assert not [name for name in kept(tmp_path) if name.endswith(".incomplete")]


def test_a_slow_body_is_given_up(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "_GRACE_S", 0.1)
    there.add(NAME, {"a.safetensors": weights()})
    there.fail("GET /[0-9a-f]{64}", kind="drip")
    with pytest.raises(WeightsMissing, match=r"only \d+ bytes came"):
        hub.fetch(REFERENCE)


def test_a_site_that_says_nothing_is_given_up(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "_TIMEOUT_S", 0.1)
    there.add(NAME, {"a.safetensors": weights()})
    there.fail("GET /[0-9a-f]{64}", kind="drip", pause_s=0.5, times=3)
    with pytest.raises(WeightsMissing, match=r"broke after \d+ bytes: timed out"):
        hub.fetch(REFERENCE)


@pytest.mark.parametrize(
    "name",
    ["../../a.pth", "/a.pth", "x/../../a.pth", "C:a.pth", "..\\a.pth", "a\x00.pth", "x//a.pth"],
)
def test_names_that_lead_elsewhere_are_refused(there: Hub, tmp_path: Path, name: str) -> None:
    there.add(NAME, {"a.pth": b"x"})
    there.names = {"a.pth": name}
    with pytest.raises(ModelInvalid, match="leads elsewhere"):
        hub.fetch(REFERENCE)
    assert not list(tmp_path.rglob("*.pth"))
    assert there.lines("resolve") == []


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"sha": "main", "siblings": []}', '{"sha": 3, "siblings": []}',
             f'{{"sha": "{"0" * 40}", "siblings": [3]}}', "[" * 100_000,
             f'{{"sha": "{"0" * 40}", "siblings": [{{"rfilename": 3}}]}}'],
)  # fmt: skip
def test_answers_that_make_no_sense(there: Hub, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(there, "answer", lambda *a: (200, {}, text.encode()))
    with pytest.raises(ModelInvalid, match=r"hf:somebody/upscaler: 127\.0\.0\.1 gives"):
        hub.fetch(REFERENCE)


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://127.0.0.1/a", "", "http://[", "//x:y/"]
)
def test_redirects_to_elsewhere_than_the_web_are_refused(
    there: Hub, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    monkeypatch.setattr(there, "answer", lambda *a: (302, {"Location": location}, b""))
    with pytest.raises(WeightsMissing, match="redirects to"):
        hub.fetch(REFERENCE)


def test_circles_of_redirects_end(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(there, "answer", lambda *a: (307, {"Location": "/x"}, b""))
    with pytest.raises(WeightsMissing, match="redirects in a circle"):
        hub.fetch(REFERENCE)


@pytest.mark.parametrize("address", ["file:///etc", "huggingface.co", "http://", "https://u:p@x",
                                     "http://x:port", "ftp://x"])  # fmt: skip
def test_an_endpoint_that_is_none(
    there: Hub, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(UsageError, match="HF_ENDPOINT must be an address"):
        hub.fetch(REFERENCE)


# --- the token -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["HF_TOKEN", "a file"])
def test_the_token_goes_to_the_endpoint_alone(
    there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    there.add(NAME, {"a.safetensors": weights()}).private = True
    with pytest.raises(EngineMissing, match="or it is private"):
        hub.fetch(REFERENCE)
    if where == "HF_TOKEN":
        monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\n")
    else:
        (tmp_path / "home").mkdir(exist_ok=True)
        (tmp_path / "home" / "token").write_text(f"{TOKEN}\n")
    there.asked.clear()
    assert hub.fetch(REFERENCE).path.read_bytes() == weights()
    sent = [(asked.host, asked.headers.get("authorization")) for asked in there.asked]
    assert sent == [("hub", f"Bearer {TOKEN}"), ("hub", f"Bearer {TOKEN}"), ("store", None)]


def test_users_may_keep_their_token(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    there.add(NAME, {"a.safetensors": weights()})
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    hub.fetch(REFERENCE)
    assert not any("authorization" in asked.headers for asked in there.asked)


def test_a_redirect_within_the_endpoint_keeps_the_token(
    there: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.add(NAME, {"a.safetensors": weights()}).private = True
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    there.fail("GET /api/models/old", status=307,
               headers={"Location": f"/api/models/{NAME}/revision/main"})  # fmt: skip
    there.fail("GET /old", status=308, headers={"Location": f"/{NAME}/resolve/main/a.safetensors"})
    assert hub.fetch("hf:old/name").path.read_bytes() == weights()


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 401},
        {"status": 503, "times": 9},
        {"kind": "flip"},
        {"status": 307, "headers": {"Location": "ftp://x"}},
    ],
)
def test_the_token_is_in_no_message(
    there: Hub,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: dict[str, Any],
) -> None:
    there.add(NAME, {"a.safetensors": weights()})
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    there.fail("GET /", **fault)
    with caplog.at_level(logging.DEBUG), pytest.raises(EngineError) as caught:
        hub.fetch(REFERENCE)
    assert there.asked[0].headers["authorization"] == f"Bearer {TOKEN}"
    told = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert TOKEN not in told
    assert "signature" not in told


def test_a_token_that_is_none_is_not_shown(
    there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_a\r\nX-Evil: 1")
    with pytest.raises(UsageError, match="what HF_TOKEN holds is no token") as caught:
        hub.fetch(REFERENCE)
    assert "Evil" not in "".join(traceback.format_exception(caught.value))
    assert there.asked == []
