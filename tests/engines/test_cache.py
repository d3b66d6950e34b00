"""The cache of engines: fresh or not and why, whole or not, one builder at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import engines
from engines import cache as caching
from engines.cache import Damaged, EngineCache, Entry, Identity
from engines.errors import CacheError, EngineMismatch, EngineMissing

ROOT = Path(engines.__file__).parents[1]
WANTED = Identity(
    model="net-x2",
    model_sha256="a" * 64,
    export="r1",
    onnx_sha256="",
    sizes=((480, 270),),
    precision="fp16",
    backend="tensorrt",
    backend_version="11.4.0.106",
    device={"gpu": "NVIDIA GeForce RTX 4090", "sm": "8.9", "driver": "580.95"},
)
ENGINE = bytes(range(256)) * 64


def entry_of(identity: Identity = WANTED) -> Entry:
    return Entry(
        sidecar=Path(), identity=replace(identity, onnx_sha256="b" * 64), reference="net-x2",
        scale=2, output="bgra", licence="Apache-2.0", file="", sha256="", bytes=0, built="",
        seconds=1.5, checks={"psnr": 61.2, "ms_p50": 1.25}, report={"layers": 12},
    )  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def test_what_is_stored_is_found_again(cache: EngineCache) -> None:
    assert cache.entries() == []
    assert cache.fresh(WANTED) == (None, "it was not built")
    stored = cache.store(entry_of(), ENGINE)
    found, why = cache.fresh(WANTED)
    assert (found, why) == (stored, "")
    assert cache.entries() == [stored]
    engine = cache.open(stored)
    assert engine.data == ENGINE
    assert (engine.model, engine.scale, engine.sizes) == ("net-x2", 2, ((480, 270),))
    assert stored.checks["ms_p50"] == 1.25


def test_a_later_build_takes_the_place_of_the_earlier(cache: EngineCache) -> None:
    first = cache.store(entry_of(), ENGINE)
    second = cache.store(entry_of(), ENGINE + b"more")
    assert second.sidecar == first.sidecar
    assert not first.path.exists()
    assert cache.entries() == [second]
    assert cache.open(second).data.endswith(b"more")
    assert cache.leftovers() == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_sha256": "c" * 64}, "weights changed: built for aaaaaaaaaaaa, now cccccccccccc"),
        ({"export": "r2"}, "the export recipe changed: built for r1, now r2"),
        ({"onnx_sha256": "d" * 64}, "the graph changed"),
        ({"backend_version": "11.5"}, r"version of tensorrt changed: built for 11.4.0.106, now 11"),
        (
            {"device": {**WANTED.device, "driver": "999.1"}},
            "the driver changed: built for 580.95, now 999.1",
        ),
        (
            {"device": {**WANTED.device, "gpu": "NVIDIA GeForce RTX 3060", "sm": "8.6"}},
            "the gpu changed: built for NVIDIA GeForce RTX 4090, now NVIDIA GeForce RTX 3060",
        ),
        ({"sizes": ((640, 360),)}, "it was built for 480x270"),
    ],
)
def test_a_stale_engine_is_refused_with_the_reason(
    cache: EngineCache, change: dict[str, object], told: str
) -> None:
    cache.store(entry_of(), ENGINE)
    found, why = cache.fresh(replace(WANTED, **change))  # type: ignore[arg-type]
    assert found is None
    assert told in why


def test_engines_of_two_gpus_lie_side_by_side(cache: EngineCache) -> None:
    other = replace(WANTED, device={**WANTED.device, "gpu": "NVIDIA GeForce RTX 3060"})
    cache.store(entry_of(), ENGINE)
    cache.store(entry_of(other), ENGINE)
    assert len(cache.entries()) == 2
    assert cache.fresh(WANTED)[0] != cache.fresh(other)[0]


def test_a_new_driver_replaces_the_engine_of_the_old_one(cache: EngineCache) -> None:
    cache.store(entry_of(), ENGINE)
    cache.store(entry_of(replace(WANTED, device={**WANTED.device, "driver": "999.1"})), ENGINE)
    assert len(cache.entries()) == 1


def test_an_engine_of_several_sizes_serves_each(cache: EngineCache) -> None:
    both = replace(WANTED, sizes=((480, 270), (640, 360)))
    stored = cache.store(entry_of(both), ENGINE)
    assert cache.fresh(replace(WANTED, sizes=((640, 360),)))[0] == stored
    assert cache.fresh(replace(WANTED, sizes=((960, 540),)))[0] is None


@pytest.mark.parametrize("length", [0, 100, len(ENGINE) - 1])
def test_a_truncated_engine_is_refused(cache: EngineCache, length: int) -> None:
    stored = cache.store(entry_of(), ENGINE)
    stored.path.write_bytes(ENGINE[:length])
    found, why = cache.fresh(WANTED)
    assert found is None
    assert f"the engine is cut: {length} bytes of {len(ENGINE)}" in why
    with pytest.raises(EngineMismatch, match="damaged"):
        cache.open(stored)


def test_a_changed_engine_is_refused_when_it_is_opened(cache: EngineCache) -> None:
    stored = cache.store(entry_of(), ENGINE)
    stored.path.write_bytes(ENGINE[:-1] + b"x")
    with pytest.raises(EngineMismatch, match="damaged"):
        cache.open(stored)
    stored.path.unlink()
    with pytest.raises(EngineMissing, match="cannot read"):
        cache.open(stored)
    assert "gone" in cache.fresh(WANTED)[1]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"null", b"[]", b'{"format": 1}', b'{"format": 99}', b"\xff\xfe", b"[" * 100_000,
        b" " * ((1 << 20) + 1),
    ],
    ids=["empty", "cut", "null", "list", "few", "newer", "bytes", "deep", "large"],
)  # fmt: skip
def test_a_corrupted_sidecar_is_refused(cache: EngineCache, content: bytes) -> None:
    stored = cache.store(entry_of(), ENGINE)
    stored.sidecar.write_bytes(content)
    (damaged,) = cache.entries()
    assert isinstance(damaged, Damaged)
    assert "damaged" in damaged.reason
    assert "\n" not in damaged.reason
    found, why = cache.fresh(WANTED)
    assert found is None
    assert "damaged" in why
    again = cache.store(entry_of(), ENGINE)  # and it can be built again
    assert cache.fresh(WANTED)[0] == again


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("file", "../../../etc/passwd.engine"), ("file", "/etc/x.engine"), ("file", "x.json"),
        ("bytes", -1), ("bytes", "12"), ("scale", 0), ("scale", True), ("output", "rgb"),
        ("identity", {}), ("identity", None), ("checks", 3), ("licence", "x" * 10_000),
        ("seconds", "soon"), ("seconds", 10**400),
    ],
)  # fmt: skip
def test_a_forged_sidecar_is_refused(cache: EngineCache, field: str, value: object) -> None:
    stored = cache.store(entry_of(), ENGINE)
    facts = json.loads(stored.sidecar.read_text())
    stored.sidecar.write_text(json.dumps({**facts, field: value}))
    (damaged,) = cache.entries()
    assert isinstance(damaged, Damaged), damaged


BUILDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.engines.test_cache import WANTED, ENGINE, entry_of
from engines.cache import EngineCache
cache = EngineCache(Path({folder!r}))
with cache.lock(WANTED, timeout_s={timeout}):
    print("locked", flush=True)
    {work}
"""


def builder(cache: EngineCache, work: str, timeout: float = 20) -> subprocess.Popen[str]:
    code = BUILDER.format(root=str(ROOT), folder=str(cache.folder), timeout=timeout, work=work)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_until_locked(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"


def test_two_builders_do_not_build_the_same_engine(cache: EngineCache) -> None:
    first = builder(cache, "time.sleep(1.0); cache.store(entry_of(), ENGINE)")
    wait_until_locked(first)
    with pytest.raises(CacheError, match="another process is building"), cache.lock(WANTED, 0.05):
        pass
    with cache.lock(WANTED, 20):  # waits for the first to end
        assert first.wait(20) == 0
        assert cache.fresh(WANTED)[0] is not None
    for pipe in (first.stdout, first.stderr):
        assert pipe is not None
        pipe.close()


def test_other_engines_can_be_built_meanwhile(cache: EngineCache) -> None:
    with cache.lock(WANTED), cache.lock(replace(WANTED, precision="fp32"), 0.1):
        pass


SLOW_WRITE = """
    import engines.cache, os
    real = os.fsync
    def stall(file):
        print("writing", flush=True)
        time.sleep(60)
    engines.cache.os.fsync = stall
    cache.store(entry_of(), ENGINE)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_build_that_is_killed_leaves_the_old_engine_and_no_lock(cache: EngineCache) -> None:
    before = cache.store(entry_of(), ENGINE + b"old")
    process = builder(cache, SLOW_WRITE.strip())
    wait_until_locked(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert cache.fresh(WANTED)[0] == before
    assert len(cache.leftovers()) == 1  # the draft
    with cache.lock(WANTED, 0):
        after = cache.store(entry_of(), ENGINE)
    assert cache.fresh(WANTED)[0] == after
    assert cache.leftovers() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs root, to mount a tmpfs")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_a_clear_error_and_keeps_the_old_engine(small_disk: Path) -> None:
    cache = EngineCache(small_disk / "engines")
    before = cache.store(entry_of(), ENGINE)
    with pytest.raises(CacheError, match=r"no space left in .* for 1\.0 MB.*OVERLAY_CACHE"):
        cache.store(entry_of(), bytes(1_000_000))
    assert cache.fresh(WANTED)[0] == before
    assert cache.leftovers() == []


def test_a_disk_that_fills_up_before_the_sidecar_leaves_nothing(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = EngineCache._write

    def write(self: EngineCache, path: Path, data: bytes) -> None:
        if path.suffix == ".json":
            raise CacheError("no space left")
        real(self, path, data)

    monkeypatch.setattr(EngineCache, "_write", write)
    with pytest.raises(CacheError, match="no space"):
        cache.store(entry_of(), ENGINE)
    assert cache.entries() == []
    assert cache.leftovers() == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = EngineCache(tmp_path / "file")
    with pytest.raises(CacheError, match=r"cannot write .*OVERLAY_CACHE"):
        cache.store(entry_of(), ENGINE)
    with pytest.raises(CacheError, match="cannot write"), cache.lock(WANTED):
        pass


def test_removing_an_engine_frees_all_that_was_its(cache: EngineCache) -> None:
    stored = cache.store(entry_of(), ENGINE)
    with cache.lock(WANTED):
        pass
    assert cache.remove(stored) > len(ENGINE)
    assert list(cache.folder.iterdir()) == []


def test_an_engine_whose_lock_is_held_can_be_removed(cache: EngineCache) -> None:
    stored = cache.store(entry_of(), ENGINE)
    stored.sidecar.with_suffix(".lock").mkdir()  # cannot be unlinked, as on Windows
    cache.remove(stored)
    assert cache.entries() == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
def test_a_sidecar_that_is_no_file_is_not_waited_for(cache: EngineCache) -> None:
    stored = cache.store(entry_of(), ENGINE)
    stored.sidecar.unlink()
    os.mkfifo(stored.sidecar)
    assert "no file" in cache.fresh(WANTED)[1]


@pytest.mark.parametrize("name", ["../other", "/other", "..", ""])
def test_names_do_not_lead_out_of_the_folder(cache: EngineCache, name: str) -> None:
    stored = cache.store(entry_of(), ENGINE)
    inner = EngineCache(stored.sidecar.parent / "engines")
    inner.folder.mkdir()
    assert inner.of_model(name.replace("other", str(stored.sidecar.parent))) == []
    assert inner.of_model(name) == []


def test_a_sweep_leaves_engines_and_running_builds_alone(cache: EngineCache) -> None:
    stored = cache.store(entry_of(), ENGINE)
    old, young = (stored.sidecar.with_name(f".x.{n}.draft") for n in (1, 2))
    for draft in (old, young):
        draft.write_bytes(b"12345")
    os.utime(old, (0, 0))
    other = replace(WANTED, model="gone")
    with cache.lock(other):
        assert cache.sweep() == 5
        assert (cache.folder / "gone").is_dir()  # its builder is at work
    assert young.exists()
    cache.sweep(everything=True)
    assert not (cache.folder / "gone").exists()
    assert cache.fresh(WANTED)[0] == stored


def test_what_opening_compiled_is_kept_until_the_engine_is_built_again(cache: EngineCache) -> None:
    stored = cache.store(entry_of(), ENGINE)
    assert cache.kept(stored) == b""
    cache.keep(stored, b"compiled")
    assert cache.kept(stored) == b"compiled"
    assert cache.leftovers() == []
    stored = cache.store(entry_of(), ENGINE + b"2")
    assert cache.kept(stored) == b""
    cache.keep(stored, b"compiled")
    cache.remove(stored)
    assert list(cache.folder.iterdir()) == []


def test_the_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OVERLAY_CACHE", str(tmp_path))
    assert EngineCache().folder == tmp_path
    monkeypatch.delenv("OVERLAY_CACHE")
    assert caching.default_folder().name == "engines"


def test_locks_are_released_after_an_error(cache: EngineCache) -> None:
    with pytest.raises(RuntimeError, match="build"), cache.lock(WANTED):
        raise RuntimeError("build")
    start = time.monotonic()
    with cache.lock(WANTED, 0):
        pass
    assert time.monotonic() - start < 60
