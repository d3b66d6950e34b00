"""`overlay upscale --ray` on two machines that are processes here: results, losses, errors."""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from engines.errors import EngineError
from overlay.cli import main
from overlay.errors import SettingsError
from overlay.files import cluster_worker, images
from overlay.files.cluster_worker import VideoTask, Worker
from overlay.files.enlarge import Wish
from overlay.files.errors import FileError
from overlay.files.video import VideoWish, coding_of
from overlay.files.video_models import layout_for
from overlay.files.video_segments import cuts_of, folder_of
from overlay.files.video_source import read_clip
from tests.overlay.files.clips import game_frames, write

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform == "win32", reason="Ray's clusters run on Linux"),
]

SOFTWARE = ("--encoder", "software")


def upscale(*arguments: object) -> int:
    return main(["upscale", *map(str, arguments)])


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def pictures(folder: Path, number: int, size: tuple[int, int] = (96, 54)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(game_frames(number, size)):
        cv2.imwrite(str(folder / f"{i:02}.png"), picture)
    return folder


# --- a real cluster ------------------------------------------------------------------------------


def start(machine: Callable[[], Any]) -> None:
    """Ray gives its processes 30 seconds, which a busy computer may not have: try again."""
    for attempt in range(3):
        try:
            machine()
            return
        except Exception as exc:
            if attempt == 2 or "timed out" not in str(exc):
                raise


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Ray's head with one CPU and a second machine with another."""
    ray_cluster = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed")
    options = {"num_cpus": 1, "object_store_memory": 80_000_000}
    with warnings.catch_warnings(action="ignore"):
        two = ray_cluster.Cluster()
        try:
            start(lambda: two.add_node(**options, include_dashboard=False))
            start(lambda: two.add_node(**options))
            two.wait_for_nodes()
            yield two
        finally:
            two.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several kinds, a damaged one, and a video of 24 frames with sound."""
    where = pictures(tmp_path_factory.mktemp("in"), 4)
    deep = np.linspace(0, 65535, 20 * 12 * 3).reshape(12, 20, 3).astype(np.uint16)
    cv2.imwrite(str(where / "deep.tif"), deep)
    Image.new("RGBA", (20, 12), (9, 99, 199, 100)).save(where / "clear.png", icc_profile=b"p" * 99)
    Image.new("L", (20, 12), 77).save(where / "grey.jpg")
    (where / "damaged.png").write_text("once upon a time")
    write(where / "deeper" / "clip.mp4", game_frames(24), audio=True)
    return where


@pytest.fixture(scope="module")
def right(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run on this machine makes of `folder`."""
    out = tmp_path_factory.mktemp("right")
    assert upscale(folder, "-o", out, "--segment", "5", *SOFTWARE) == 1
    return out


@pytest.mark.slow
def test_results_are_those_of_a_local_run(
    cluster: Any,
    folder: Path,
    right: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from overlay.files.cluster import Cluster

    def wait_for_all(self: Cluster) -> None:
        while not all(slot.actor for slot in self._slots):
            time.sleep(0.05)

    monkeypatch.setattr(Cluster, "_wait_for_one", wait_for_all)
    caplog.set_level(logging.INFO, "overlay")
    assert upscale(folder, "-o", tmp_path, "--segment", "5", "--ray", cluster.address) == 1
    assert contents(tmp_path) == contents(right)
    assert len(contents(right)) == 8
    told = capsys.readouterr()
    assert told.out.startswith("8 done, 0 skipped, 1 failed")
    assert "damaged.png is no picture that can be read" in told.err
    done = [record.args[1] for record in caplog.records if "did %d calls" in record.msg]  # type: ignore[index]
    assert len(done) == 2
    assert sum(done) == 7 + 1 + 5, "pictures, the scale, segments"  # type: ignore[arg-type]
    assert min(done) > 0, "both machines worked"  # type: ignore[type-var]


def child(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "overlay", "upscale", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(pattern: str, number: int, where: Path, process: subprocess.Popen[bytes]) -> None:
    while len(list(where.glob(pattern))) < number:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_video_goes_on(cluster: Any, tmp_path: Path, how: int) -> None:
    source = write(tmp_path / "clip.mp4", game_frames(60, (192, 108)))
    out = tmp_path / "out" / "large.mp4"
    out.parent.mkdir()
    command = (source, "-o", out, "--segment", "3", "--ray", cluster.address)
    first = child(*command)
    parts = folder_of(out)
    wait_for("*.json", 4, parts, first)  # the recipe and three segments
    first.send_signal(how)
    _, err = first.communicate(timeout=60)
    assert first.returncode == (-how if how == signal.SIGKILL else 128 + how)
    assert not out.exists()
    there = {path: path.stat().st_mtime_ns for path in parts.glob("0*.segment")}
    assert len(there) < 20, "it was done before it was interrupted"
    if how == signal.SIGTERM:
        assert b"of 20 segments stay in" in err
        assert b"Traceback" not in err
    second = child(*command, "--skip-existing", "-v")
    _, err = second.communicate(timeout=200)
    assert second.returncode == 0, err
    assert f"{len(there)} of 20 segments are there already".encode() in err
    assert upscale(source, "-o", tmp_path / "right.mp4", "--segment", "3", *SOFTWARE) == 0
    assert out.read_bytes() == (tmp_path / "right.mp4").read_bytes()
    assert list(out.parent.iterdir()) == [out]


class Deadly(Worker):
    """Ends its process at one picture."""

    def picture(self, data: bytes, source: str, *rest: Any) -> tuple[bytes, list[str]]:
        if source.endswith("01.png"):
            os._exit(1)
        return super().picture(data, source, *rest)


@pytest.mark.slow
def test_work_that_kills_workers_is_given_up(
    cluster: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("overlay.files.cluster_pool.Worker", Deadly)
    source = pictures(tmp_path / "in", 5)
    assert upscale(source, "-o", tmp_path / "out", "--ray", cluster.address) == 1
    assert sorted(contents(tmp_path / "out")) == ["00.png", "02.png", "03.png", "04.png"]
    assert "01.png: given up: 4 workers were lost with it" in capsys.readouterr().err


@pytest.mark.slow
def test_other_weights_are_refused(
    cluster: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    true = cluster_worker.state(["default-x2"])
    other = {**true, "the model default-x2": "0123"}
    monkeypatch.setattr(cluster_worker, "state", lambda models: other)
    source = pictures(tmp_path / "in", 1)
    assert upscale(source, "-o", tmp_path / "out", "--ray", cluster.address) == 4
    digest = true["the model default-x2"]
    assert f"the model default-x2 is {digest} there and 0123 here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_machine_that_is_lost_does_not_matter(cluster: Any, tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 16, (320, 180))
    assert upscale(source, "-o", tmp_path / "right") == 0
    run = child(source, "-o", tmp_path / "out", "--ray", cluster.address)
    wait_for("*.png", 3, tmp_path / "out", run)
    second = next(node for node in cluster.worker_nodes)
    cluster.remove_node(second, allow_graceful=False)
    assert len(list((tmp_path / "out").glob("*.png"))) < 12, "it was done before"
    out, err = run.communicate(timeout=200)
    assert run.returncode == 0, err
    assert out.decode().startswith("16 done, 0 skipped, 0 failed"), out
    assert b"a worker on" in err
    assert b"is lost" in err
    assert contents(tmp_path / "out") == contents(tmp_path / "right")


# --- without a cluster ---------------------------------------------------------------------------


def test_without_ray(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 1)
    code = (
        "import sys\nsys.modules['ray'] = None\n"
        "from overlay.cli import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "upscale", str(source), "-o", str(tmp_path / "out")]
    told = subprocess.run([*command, "--ray", "auto"], capture_output=True, text=True, check=False)
    assert told.returncode == 4
    (line,) = told.stderr.splitlines()
    assert "--ray needs Ray" in line
    assert "pip install 'sr-overlay[ray]', here and on each machine" in line
    assert subprocess.run(command, check=False).returncode == 0, "without --ray it is not needed"


@pytest.mark.parametrize(
    ("address", "code", "message"),
    [
        ("127.0.0.1:1", 4, "no Ray cluster at 127.0.0.1:1: "),
        ("there", 2, "--ray there: HOST:PORT of the cluster's head"),
        ("ray://127.0.0.1:10001", 2, "--ray ray://127.0.0.1:10001: HOST:PORT"),
        ("127.0.0.1:99999", 4, "no Ray cluster at 127.0.0.1:99999: "),
    ],
)
def test_wrong_addresses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str, code: int, message: str
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    source = pictures(tmp_path / "in", 1)
    start = time.monotonic()
    assert upscale(source, "-o", tmp_path / "out", "--ray", address) == code
    assert time.monotonic() - start < 30
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.slow
def test_an_address_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    source = pictures(tmp_path / "in", 1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        start = time.monotonic()
        assert upscale(source, "-o", tmp_path / "out", "--ray", address) == 4
        assert time.monotonic() - start < 30
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no Ray cluster at {address}: what is there did not answer" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--encoder", "hardware"), "--ray encodes in software"),
        (("--model", "no-such-model"), "no-such-model"),
    ],
)
def test_options_that_cannot_be(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    source = pictures(tmp_path / "in", 1)
    assert upscale(source, "-o", tmp_path / "out", "--ray", "127.0.0.1:1", *options) == 2
    assert message in capsys.readouterr().err


def test_a_worker_for_each_gpu_or_each_machine() -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    from overlay.files.cluster_pool import Place, places_for, wants_gpus

    nodes = [
        {"NodeID": "a", "NodeManagerHostname": "A", "Alive": True, "Resources": {"CPU": 9.0}},
        {"NodeID": "b", "Alive": True, "Resources": {"CPU": 9.0, "GPU": 2.0}},
        {"NodeID": "c", "Alive": False, "Resources": {"CPU": 9.0, "GPU": 2.0}},
        {"NodeID": "d", "Alive": True, "Resources": {}},
    ]
    assert places_for(nodes, on_gpus=False) == [Place("a", "A", 9, 0), Place("b", "b", 9, 0)]
    assert places_for(nodes, on_gpus=True) == [Place("b", "b", 4, 1)] * 2
    assert not wants_gpus(Wish(), True), "the shipped nets run on CPUs unless they are told"
    assert wants_gpus(Wish(device="cuda"), True)
    assert wants_gpus(Wish("realesrgan-x4plus"), True)
    assert not wants_gpus(Wish("realesrgan-x4plus"), False)
    assert not wants_gpus(Wish("realesrgan-x4plus", device="cpu"), True)
    with pytest.raises(SettingsError, match="--device cuda:1 cannot be with --ray"):
        wants_gpus(Wish(device="cuda:1"), True)


def test_differences_between_machines() -> None:
    here = {"sr-overlay": "1", "pillow": "2", "torch": "3"}
    assert cluster_worker.difference(here, {"sr-overlay": "1", "pillow": "2", "av": "9"}) == ""
    said = cluster_worker.difference(here, {**here, "pillow": "4"})
    assert said == "pillow is 4 there and 2 here"
    found = cluster_worker.state(["default-x2", "no-such-model"])
    assert len(found["the model default-x2"]) == 64
    assert "no-such-model" in found["the model no-such-model"], "what is missing differs, too"


# --- a worker by itself --------------------------------------------------------------------------


def test_a_worker_needs_no_files(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 1) / "00.png"
    assert upscale(source, "-o", tmp_path / "right.png") == 0
    data, warned = Worker().picture(source.read_bytes(), "gone.png", "gone.png", Wish(), 95)
    assert data == (tmp_path / "right.png").read_bytes()
    assert warned == []
    with pytest.raises(FileError, match=r"^gone\.png is no picture"):
        Worker().picture(b"once", "gone.png", "gone.png", Wish(), 95)


def test_a_worker_gives_what_is_warned_of() -> None:
    photo = images.Picture(np.zeros((8, 8, 3), np.uint8))
    two = [Image.fromarray(photo.colour), Image.new("RGB", (8, 8), 9)]
    file = io.BytesIO()
    two[0].save(file, "MPO", save_all=True, append_images=two[1:])
    _, warned = Worker().picture(file.getvalue(), "a.jpg", "a.png", Wish(), 95)
    assert warned == ["a.jpg holds several pictures; the first one, which viewers show, is taken"]


def video_task(path: Path) -> VideoTask:
    clip = read_clip(path)
    size = clip.size[0] * 2, clip.size[1] * 2
    coding = coding_of(clip, layout_for(clip), size, "h264", VideoWish("auto", None, "software", 5))
    return VideoTask("1", clip, coding, Wish("default-x2"))


def test_a_worker_keeps_a_copy_of_a_video(tmp_path: Path) -> None:
    source = write(tmp_path / "clip.mp4", game_frames(12))
    task, data = video_task(source), source.read_bytes()
    source.unlink()
    worker = Worker()
    worker.begin(task)
    half = len(data) // 2
    worker.receive("1", data[:half])
    worker.receive("1", data[half:])
    segment, warned = worker.segment("1", 2)
    assert (segment.number, segment.times, warned) == (2, list(task.clip.times[10:]), [])
    assert len(cuts_of(task.clip, 5)) == 3
    copy = worker._videos["1"].path
    assert copy.exists()
    worker.forget("1")
    assert not copy.exists()


def test_errors_of_videos_name_the_source(tmp_path: Path) -> None:
    source = write(tmp_path / "clip.mp4", game_frames(12))
    task = video_task(source)
    worker = Worker()
    worker.begin(task)
    worker.receive("1", source.read_bytes()[:300])
    with pytest.raises(FileError) as caught:
        worker.segment("1", 0)
    assert str(caught.value).startswith(f"{source} is damaged")
    assert "/proc" not in str(caught.value)
    worker.begin(replace(task, wish=Wish("no-such-model")))
    worker.receive("1", source.read_bytes())
    with pytest.raises(EngineError, match="no-such-model"):
        worker.segment("1", 0)
    worker.forget("1")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "clip.mp4", game_frames(12))
    worker = Worker()
    worker.begin(video_task(source))
    worker._videos["1"].file.close()
    with Path("/dev/full").open("wb") as full:
        worker._videos["1"].file = full
        with pytest.raises(FileError, match=r"cannot keep a copy of it in .*: No space left"):
            worker.receive("1", source.read_bytes())
    assert worker._videos == {}
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(FileError, match="cannot keep a copy"):
        worker.begin(video_task(source))
