"""Hugging Face: its own client against a stand-in of the site on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest
import torch
from safetensors.torch import save

from engines import hub, load
from engines.archs import compact
from engines.errors import EngineMissing, ModelInvalid, UnknownModel, WeightsMissing

pytest.importorskip("huggingface_hub")

REVISION = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "somebody/upscaler"


@dataclass
class Site:
    """One public repository, `REPOSITORY`, with these files."""

    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)  # where it lies about a file's size
    url: str = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(path)
        if path.startswith(f"/api/models/{REPOSITORY}"):
            siblings = [
                {"rfilename": name, "size": self.sizes.get(name, len(content))}
                for name, content in self.files.items()
            ]
            info = {"id": REPOSITORY, "sha": REVISION, "siblings": siblings}
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        head, _, name = path.partition(f"/resolve/{REVISION}/")
        if head != f"/{REPOSITORY}":
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if name not in self.files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": REVISION}, b""
        content = self.files[name]
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": REVISION,
            "Content-Type": "application/octet-stream",
        }
        return 200, headers, content


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, content = site.answer(urlsplit(self.path).path)
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def weights() -> bytes:
    torch.manual_seed(0)
    return save(compact.build({"features": 4, "convs": 1, "scale": 2}).state_dict())


def test_safetensors_are_preferred_and_the_revision_is_named(site: Site, tmp_path: Path) -> None:
    site.files = {"a.pth": b"program", "nets/b.safetensors": weights(), "run_me.py": b"1 / 0"}
    download = hub.fetch(f"hf:{REPOSITORY}", tmp_path)
    assert download.path.read_bytes() == weights()
    assert download.origin == f"hf:{REPOSITORY}/nets/b.safetensors at {REVISION[:12]}"
    assert not any("a.pth" in path or "run_me" in path for path in site.asked)
    assert {p.name for p in tmp_path.rglob("*") if p.suffix == ".py"} == set()


def test_a_file_can_be_named(site: Site, tmp_path: Path) -> None:
    site.files = {"a.safetensors": weights(), "nets/b.safetensors": b"other"}
    download = hub.fetch(f"hf:{REPOSITORY}/nets/b.safetensors", tmp_path)
    assert download.path.read_bytes() == b"other"


def test_locate_reads_what_was_downloaded(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    site.files = {"mine.safetensors": weights()}
    loaded = load.read(load.locate(f"hf:{REPOSITORY}"))
    assert (loaded.spec.architecture, loaded.spec.scale) == ("compact", 2)
    assert loaded.located.origin == f"hf:{REPOSITORY}/mine.safetensors at {REVISION[:12]}"
    assert loaded.located.sha256 == hashlib.sha256(weights()).hexdigest()
    assert tmp_path in loaded.located.files[0].parents


@pytest.mark.parametrize("reference", [f"hf:{REPOSITORY}", f"hf:{REPOSITORY}/a.safetensors"])
def test_what_was_downloaded_once_is_there_without_the_site(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    site.files = {"a.safetensors": weights()}
    first = hub.fetch(reference, tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub.fetch(reference, tmp_path) == first


@pytest.mark.parametrize("name", [REPOSITORY, f"{REPOSITORY}/a.pth"])
def test_without_the_site_there_is_one_clear_line(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WeightsMissing, match="cannot be downloaded now") as caught:
        hub.fetch(f"hf:{name}", tmp_path)
    assert "\n" not in str(caught.value)


def test_an_unknown_repository_or_file_is_named(site: Site, tmp_path: Path) -> None:
    site.files = {"a.safetensors": weights()}
    with pytest.raises(EngineMissing, match="no such repository"):
        hub.fetch("hf:nobody/nothing", tmp_path)
    with pytest.raises(EngineMissing, match=r"no file 'b\.pth'"):
        hub.fetch(f"hf:{REPOSITORY}/b.pth", tmp_path)


def test_several_none_and_too_large_are_refused(site: Site, tmp_path: Path) -> None:
    site.files = {"a.safetensors": b"", "b.safetensors": b""}
    with pytest.raises(ModelInvalid, match=r"2 model files .*a\.safetensors, b\.safetensors"):
        hub.fetch(f"hf:{REPOSITORY}", tmp_path)
    site.files = {"README.md": b""}
    with pytest.raises(ModelInvalid, match="0 model files"):
        hub.fetch(f"hf:{REPOSITORY}", tmp_path)
    with pytest.raises(ModelInvalid, match="no model file"):
        hub.fetch(f"hf:{REPOSITORY}/README.md", tmp_path)
    site.files, site.sizes = {"a.safetensors": b""}, {"a.safetensors": 3 << 30}
    with pytest.raises(ModelInvalid, match="larger than 2 GiB"):
        hub.fetch(f"hf:{REPOSITORY}", tmp_path)
    assert not any("resolve" in path for path in site.asked)


@pytest.mark.parametrize(
    "reference",
    ["hf:", "hf:name", "hf:a/b/../../c.pth", "hf:/etc/passwd", "hf:a b/c", "hf:a/b/", "hf:a/b\\c"],
)
def test_other_references_are_usage_errors(reference: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="of the form"):
        hub.fetch(reference, tmp_path)
