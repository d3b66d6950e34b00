"""The replay back end: its contract, its files, its pace."""

from __future__ import annotations

import struct
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from overlay.capture import CaptureSource
from overlay.capture.picture_file import picture_size, read_picture
from overlay.capture.replay import FolderReel, ReplaySource
from overlay.errors import CaptureError, SettingsError, SourceClosed
from overlay.frame import Region, Size
from tests.contracts.capture import CaptureContract, Stage, take
from tests.games import decode, picture


class ReplayStage(Stage):
    can_rest = False

    def __init__(self, path: Path | None, memory_limit: int = 1 << 30) -> None:
        self.path = path
        self.memory_limit = memory_limit

    def open(self) -> CaptureSource:
        return ReplaySource(self.path, rate_hz=200, memory_limit=self.memory_limit)

    def change(self) -> None:
        """It does so by itself."""

    def region(self) -> Region:
        return Region(0, 0, 480, 270)


def write_frames(folder: Path, count: int, size: tuple[int, int] = (480, 270)) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        cv2.imwrite(str(folder / f"{number:04}.png"), picture(number, size))
    return folder


def write_video(path: Path, count: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30, (480, 270))
    for number in range(count):
        writer.write(picture(number, (480, 270)))
    writer.release()
    return path


class TestContract(CaptureContract):
    most_buffers = 20  # pictures kept in memory are handed on as they are

    @pytest.fixture(params=["pattern", "folder", "streamed folder", "video"])
    def stage(self, request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
        if request.param == "pattern":
            return ReplayStage(None)
        if request.param == "video":
            return ReplayStage(write_video(tmp_path / "game.avi", 10))
        limit = 1 << 30 if request.param == "folder" else 1000
        return ReplayStage(write_frames(tmp_path / "frames", 10), limit)

    def test_close_wakes_a_waiting_grab(self, stage: Stage, monkeypatch) -> None:
        monkeypatch.setattr(
            stage, "open", lambda: ReplaySource(getattr(stage, "path", None), rate_hz=0.01)
        )
        super().test_close_wakes_a_waiting_grab(stage)


def numbers(source: CaptureSource) -> list[int]:
    seen = []
    while True:
        try:
            seen.append(decode(take(source).pixels))
        except SourceClosed:
            return seen


def test_as_fast_as_possible_gives_every_frame_in_order(tmp_path: Path) -> None:
    write_frames(tmp_path, 30, (64, 36))
    with ReplaySource(tmp_path, rate_hz=None, loop=False) as source:
        assert numbers(source) == list(range(30))
        with pytest.raises(SourceClosed, match="came to its end"):
            source.grab(1)


def test_video_gives_every_frame_and_goes_round(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.avi", 7)
    with ReplaySource(video, rate_hz=None) as source:
        seen = [decode(take(source).pixels) for _ in range(16)]
    assert seen == [0, 1, 2, 3, 4, 5, 6] * 2 + [0, 1]


def test_folder_goes_round_and_keeps_counting(tmp_path: Path) -> None:
    write_frames(tmp_path, 3, (64, 36))
    with ReplaySource(tmp_path, rate_hz=None) as source:
        frames = [take(source) for _ in range(7)]
    assert [decode(frame.pixels) for frame in frames] == [0, 1, 2, 0, 1, 2, 0]
    assert [frame.sequence for frame in frames] == list(range(7))


def test_rate_is_kept_on_an_absolute_grid(tmp_path: Path) -> None:
    write_frames(tmp_path, 5, (64, 36))
    with ReplaySource(tmp_path, rate_hz=50) as source:
        first = take(source)
        for _ in range(20):
            time.sleep(0.015)  # work between grabs does not slow the recording down
            last = take(source)
        elapsed_s = (last.ready_ns - first.ready_ns) / 1e9
        assert last.sequence >= 20
        assert elapsed_s == pytest.approx(last.sequence / 50, abs=0.06)


def test_late_frames_are_skipped_and_counted(tmp_path: Path) -> None:
    write_frames(tmp_path, 50, (64, 36))
    with ReplaySource(tmp_path, rate_hz=100) as source:
        first = take(source)
        assert decode(first.pixels) == 0
        time.sleep(0.105)
        frame = take(source)
        assert 10 <= frame.sequence < 50
        late = (frame.ready_ns - first.ready_ns) / 1e7
        assert frame.sequence == pytest.approx(late, abs=1.5)
        assert decode(frame.pixels) == frame.sequence


def test_timeout_before_the_next_frame_is_due() -> None:
    with ReplaySource(rate_hz=2) as source:
        take(source)
        started = time.perf_counter()
        assert source.grab(0.1) is None
        assert 0.095 <= time.perf_counter() - started < 0.3
        assert source.grab(0) is None
        assert take(source).sequence == 1


def test_pattern_is_the_same_for_a_seed_and_moves() -> None:
    def frames(seed: int) -> list[np.ndarray]:
        with ReplaySource(rate_hz=None, pattern_size=Size(64, 48), seed=seed) as source:
            return [take(source).pixels.copy() for _ in range(5)]

    one, again, other = frames(1), frames(1), frames(2)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not np.array_equal(one[0], other[0])
    assert all(not np.array_equal(a, b) for a, b in zip(one, one[1:], strict=False))  # noqa: RUF007


def test_pattern_without_loop_ends() -> None:
    with ReplaySource(rate_hz=None, loop=False, pattern_size=Size(8, 8)) as source:
        count = sum(1 for _ in iter(lambda: _or_none(source), None))
    assert count == 600


def _or_none(source: CaptureSource) -> object:
    try:
        return source.grab(1)
    except SourceClosed:
        return None


def test_sizes_may_change_within_a_folder(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), picture(1, (64, 36)))
    cv2.imwrite(str(tmp_path / "b.png"), picture(2, (96, 54)))
    with ReplaySource(tmp_path, rate_hz=None) as source:
        assert [take(source).size for _ in range(3)] == [(64, 36), (96, 54), (64, 36)]
        assert source.region.size == (64, 36)


def test_memory_limit_decides_what_is_kept(tmp_path: Path) -> None:
    write_frames(tmp_path, 6, (64, 36))
    one = 64 * 36 * 4
    assert FolderReel(tmp_path, 6 * one).in_memory == 6
    assert FolderReel(tmp_path, 6 * one - 1).in_memory == 1
    with ReplaySource(tmp_path, rate_hz=None, loop=False, memory_limit=1) as source:
        assert numbers(source) == list(range(6))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".jpg", ".JPEG"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    true = picture(5, (160, 90))
    options = [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == ".webp" else []
    cv2.imwrite(str(tmp_path / f"a{suffix}"), true, options)
    pixels = read_picture(tmp_path / f"a{suffix}")
    assert pixels.shape == (90, 160, 4)
    assert pixels.dtype == np.uint8
    worst = 40 if suffix.lower() in (".jpg", ".jpeg") else 0
    difference = np.abs(pixels[..., :3].astype(int) - true)
    assert np.percentile(difference, 90) <= worst
    assert decode(pixels) == 5
    assert (pixels[..., 3] == 255).all()


def test_lossy_webp_size(tmp_path: Path) -> None:
    ok, data = cv2.imencode(".webp", picture(5, (161, 90)), [cv2.IMWRITE_WEBP_QUALITY, 50])
    assert ok
    assert data.tobytes()[12:16] == b"VP8 "
    assert picture_size(data.tobytes()) == Size(161, 90)


def test_grey_sixteen_bits_and_alpha(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    pixels = read_picture(tmp_path / "grey.png")
    assert (pixels[..., :3] == grey[..., None]).all()
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    cv2.imwrite(str(tmp_path / "deep.png"), np.dstack([deep] * 3))
    assert (read_picture(tmp_path / "deep.png")[..., 1] == grey).all()
    clear = np.zeros((4, 4, 4), np.uint8)
    clear[...] = (10, 20, 30, 40)
    cv2.imwrite(str(tmp_path / "clear.png"), clear)
    assert (read_picture(tmp_path / "clear.png") == clear).all()


def huge_png(path: Path, width: int, height: int) -> None:
    """Write a PNG of a few bytes whose header promises very many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_unreadable_pictures_are_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cases = {
        "text.png": (b"hello", "not a PNG, JPEG, WebP or BMP"),
        "empty.jpg": (b"", "not a PNG, JPEG, WebP or BMP"),
        "cut.png": (cv2.imencode(".png", picture(1, (64, 36)))[1].tobytes()[:40], "cannot decode"),
    }
    for name, (data, reason) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CaptureError, match=rf"{name}.*{reason}|{reason}.*{name}"):
            read_picture(tmp_path / name)
    huge_png(tmp_path / "bomb.png", 60000, 60000)
    with pytest.raises(CaptureError, match=r"bomb\.png is 60000x60000, more than 64 Mpixels"):
        read_picture(tmp_path / "bomb.png")
    with pytest.raises(CaptureError, match=r"cannot read the picture .*No such file"):
        read_picture(tmp_path / "none.png")


def test_nothing_to_replay(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"no picture .* in "):
        ReplaySource(tmp_path)
    with pytest.raises(CaptureError, match=r"nothing to replay at .*no such file"):
        ReplaySource(tmp_path / "none")
    (tmp_path / "film.mp4").write_bytes(b"not a film" * 100)
    with pytest.raises(CaptureError, match=r"cannot open the video .*film\.mp4"):
        ReplaySource(tmp_path / "film.mp4")
    with pytest.raises(SettingsError, match="above 0 Hz, not -1"):
        ReplaySource(rate_hz=-1)
    with pytest.raises(SettingsError, match="at least 1x1, not 0x4"):
        ReplaySource(pattern_size=Size(0, 4))
