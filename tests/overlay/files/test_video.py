"""`overlay upscale` for videos: frames, times, what is copied, colours, resuming, bad files."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from overlay.cli import main
from overlay.files import cli, video_encode, video_join, video_segments
from overlay.files.errors import FileError, SourceDamaged
from overlay.files.video_segments import folder_of
from overlay.files.video_source import FrameReader, read_clip
from tests.overlay.files.clips import (
    game_frames,
    packets_of,
    pictures_of,
    shipped_frames,
    times_of,
    write,
)

SOFTWARE = ("--encoder", "software")


def upscale(*arguments: object) -> int:
    return main(["upscale", *map(str, arguments), *SOFTWARE])


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture(scope="session")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 frames with B frames and sound."""
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", game_frames(24), audio=True)


# --- frames and times ----------------------------------------------------------------------------


def test_frames_times_and_audio_stay(second: Path, tmp_path: Path) -> None:
    out = tmp_path / "large.mp4"
    assert upscale(second, "-o", out, "--segment", "7") == 0
    assert files(tmp_path) == ["large.mp4"]
    assert times_of(out) == times_of(second)
    assert packets_of(out, "audio") == packets_of(second, "audio")
    with av.open(str(second)) as old, av.open(str(out)) as new:
        assert new.streams.video[0].time_base == old.streams.video[0].time_base
        assert new.streams.video[0].duration == old.streams.video[0].duration
        assert new.duration == old.duration
        assert (new.streams.video[0].width, new.streams.video[0].height) == (384, 216)
        keys = [p.is_keyframe for p in new.demux(new.streams.video[0]) if p.size]
    assert sum(keys) == 4, "24 frames in segments of 7"


def test_each_frame_shows_its_source(second: Path, tmp_path: Path) -> None:
    out = tmp_path / "large.mp4"
    assert upscale(second, "-o", out, "--segment", "7", "--crf", "8") == 0
    small, large = pictures_of(second), pictures_of(out)
    bicubic = [cv2.resize(picture, (384, 216), interpolation=cv2.INTER_CUBIC) for picture in small]
    for number, picture in enumerate(large):
        distances = [cv2.norm(picture, other, cv2.NORM_L1) for other in bicubic]
        assert int(np.argmin(distances)) == number


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv"])
def test_variable_rate_and_a_late_start(tmp_path: Path, ending: str) -> None:
    steps = np.random.default_rng(4).integers(20, 90, 20)
    times = (409 + np.cumsum(steps * (1 if ending == ".mkv" else 11))).tolist()
    base = Fraction(1, 1000) if ending == ".mkv" else Fraction(1, 16000)
    source = write(tmp_path / f"in{ending}", game_frames(20), times, base=base)
    assert times_of(source) != [Fraction(n, 30) for n in range(20)]
    assert upscale(source, "-o", tmp_path / f"out{ending}", "--segment", "6") == 0
    if ending == ".mkv":
        assert times_of(tmp_path / "out.mkv") == [Fraction(t, 1000) for t in times]
    assert times_of(tmp_path / f"out{ending}") == times_of(source)


def test_few_frames(tmp_path: Path) -> None:
    for count in (1, 2, 3):
        source = write(tmp_path / f"in{count}.mp4", game_frames(count))
        assert upscale(source, "-o", tmp_path / f"out{count}.mp4") == 0
        assert times_of(tmp_path / f"out{count}.mp4") == times_of(source)


def test_frames_outside_the_edit_list_are_not_shown(
    second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cut without encoding begins at a key frame, and hides what is before the cut."""
    cut = tmp_path / "cut.mp4"
    with av.open(str(second)) as source, av.open(str(cut), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.pts, packet.dts = packet.pts - 512 * 5, packet.dts - 512 * 5
                packet.stream = stream
                out.mux(packet)
    shown = times_of(cut)
    assert 0 < len(shown) < 24
    assert upscale(cut, "-o", tmp_path / "out.mp4", "--segment", "7") == 0
    assert times_of(tmp_path / "out.mp4") == shown
    assert "could be decoded" not in capsys.readouterr().err


@pytest.mark.parametrize("size", [(95, 53), (64, 36)])
def test_sizes_become_even(tmp_path: Path, size: tuple[int, int]) -> None:
    source = write(
        tmp_path / "in.mkv", game_frames(3, size), codec="ffv1", layout="yuv444p",
        base=Fraction(1, 30), times=[0, 1, 2], colour=(6, 1, 2, 2),
    )  # fmt: skip
    assert upscale(source, "-o", tmp_path / "out.mkv", "--outscale", "3") == 0
    height, width = pictures_of(tmp_path / "out.mkv")[0].shape[:2]
    assert (width, height) == (3 * size[0] + size[0] % 2, 3 * size[1] + size[1] % 2)


def test_a_target_that_the_net_does_not_reach_exactly(second: Path, tmp_path: Path) -> None:
    assert upscale(second, "-o", tmp_path / "out.mp4", "--target", "250x250") == 0
    assert pictures_of(tmp_path / "out.mp4")[0].shape[:2] == (142, 250)


def test_reading_a_stretch_gives_the_same_as_reading_all(tmp_path: Path) -> None:
    source = write(tmp_path / "in.mp4", game_frames(30), options={"g": "8", "bf": "3"})
    clip = read_clip(source)
    assert len(clip.keys) > 2
    with FrameReader(clip) as reader:
        every = {frame.pts: frame.to_ndarray() for frame in reader.stretch(clip.times[0], None)}
    assert sorted(every) == list(clip.times)
    for first, last in ((11, 19), (25, None), (3, 5)):
        stop = None if last is None else clip.times[last]
        with FrameReader(clip) as reader:
            found = list(reader.stretch(clip.times[first], stop))
        assert [frame.pts for frame in found] == list(clip.times[first:last])
        for frame in found:
            assert np.array_equal(frame.to_ndarray(), every[frame.pts])


# --- what is kept --------------------------------------------------------------------------------


def flat(levels: tuple[int, int, int], count: int = 3) -> list[Any]:
    return [np.full((54, 96, 3), levels, np.uint8)] * count


@pytest.mark.parametrize("way", ["luma", "rgb"])
@pytest.mark.parametrize(
    "colour", [(1, 1, 1, 1), (1, 2, 1, 13), (6, 1, 6, 6), (5, 2, 5, 6), (9, 1, 9, 14)]
)
def test_flat_colours_and_what_they_mean_stay(
    tmp_path: Path, colour: tuple[int, ...], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "rgb":
        monkeypatch.setattr("overlay.files.video_models.find_spec", lambda name: None)
    for number, levels in enumerate(((200, 60, 90), (30, 140, 220), (128, 128, 128))):
        source = write(
            tmp_path / f"in{number}.mp4", flat(levels), colour=colour, options={"crf": "1"}
        )
        out = tmp_path / f"out{number}.mp4"
        assert upscale(source, "-o", out, "--model", "default-x2", "--crf", "1") == 0
        small, large = pictures_of(source)[1][27, 48], pictures_of(out)[1]
        assert np.abs(large[8:-8, 8:-8].astype(int) - small.astype(int)).max() <= 2
        with av.open(str(out)) as file:
            context = file.streams.video[0].codec_context
            found = (context.colorspace, context.color_range)
            assert (*found, context.color_primaries, context.color_trc) == colour


def test_colours_that_were_not_said_are_said_as_players_guess_them(tmp_path: Path) -> None:
    """The result is so large that they would guess otherwise."""
    source = write(tmp_path / "in.mp4", flat((200, 60, 90)), colour=(2, 0, 2, 2))
    assert upscale(source, "-o", tmp_path / "out.mp4") == 0
    with av.open(str(tmp_path / "out.mp4")) as file:
        context = file.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (6, 1)


def test_ten_bits_aspect_and_turn(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in.mp4", game_frames(4), layout="yuv420p10le", colour=(9, 1, 9, 18),
        rotation=90, aspect=Fraction(40, 33),
    )  # fmt: skip
    assert upscale(source, "-o", tmp_path / "out.mp4", "--outscale", "2") == 0
    with av.open(str(tmp_path / "out.mp4")) as file:
        stream = file.streams.video[0]
        assert (stream.codec.name, stream.codec_tag) == ("hevc", "hvc1")
        assert stream.pix_fmt == "yuv420p10le"
        assert stream.sample_aspect_ratio == Fraction(40, 33)
        assert stream.codec_context.color_trc == 18
        frame = next(file.decode(video=0))
        assert frame.rotation == 90
        assert (frame.width, frame.height) == (192, 108)


def test_subtitles_chapters_and_names_are_copied(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.mkv", game_frames(12), audio=True)
    source = tmp_path / "in.mkv"
    with av.open(str(plain)) as old, av.open(str(source), "w") as out:
        out.metadata["title"] = "A walk"
        out.set_chapters(
            [{"id": 1, "start": 0, "end": 300, "time_base": Fraction(1, 1000),
              "metadata": {"title": "Door"}}]
        )  # fmt: skip
        streams = [out.add_stream_from_template(stream) for stream in old.streams]
        streams[1].metadata["language"] = "fra"
        words = out.add_mux_stream("subrip")
        words.time_base = Fraction(1, 1000)
        out.add_attachment("font.ttf", "font/ttf", b"letters")
        for packet in old.demux():
            if packet.size:
                packet.stream = streams[packet.stream_index]
                out.mux(packet)
        line = av.Packet(b"Mind the door")
        line.stream, line.time_base = words, Fraction(1, 1000)
        line.pts, line.dts, line.duration = 100, 100, 200
        out.mux(line)
    assert upscale(source, "-o", tmp_path / "out.mkv") == 0
    for kind in ("audio", "subtitle"):
        assert packets_of(tmp_path / "out.mkv", kind) == packets_of(source, kind) != []
    with av.open(str(tmp_path / "out.mkv")) as file:
        assert file.metadata["title"] == "A walk"
        assert file.chapters()[0]["metadata"]["title"] == "Door"
        assert file.streams.audio[0].metadata["language"] == "fra"
        assert [s.data for s in file.streams if s.type == "attachment"] == [b"letters"]


def test_webm_gets_vp9(tmp_path: Path) -> None:
    source = write(tmp_path / "in.webm", game_frames(5, (64, 36)), codec="libvpx-vp9")
    assert upscale(source, "-o", tmp_path / "out.webm", "--outscale", "2", "--segment", "3") == 0
    with av.open(str(tmp_path / "out.webm")) as file:
        assert file.streams.video[0].codec.canonical_name == "vp9"
    assert times_of(tmp_path / "out.webm") == times_of(source)


def test_a_container_that_cannot_hold_the_audio(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.mkv", game_frames(3), audio=True)
    assert upscale(source, "-o", tmp_path / "out.webm") == 1
    assert "webm holds no aac (its audio 1): --format mkv" in capsys.readouterr().err
    assert files(tmp_path) == ["in.mkv"]


def test_pictures_and_videos_in_one_folder(second: Path, tmp_path: Path) -> None:
    shutil.copy(second, tmp_path / "b.mp4")
    cv2.imwrite(str(tmp_path / "a.png"), np.full((6, 8, 3), 90, np.uint8))
    (tmp_path / "b.mp4.parts").mkdir()
    shutil.copy(second, tmp_path / "b.mp4.parts" / "c.mp4")
    assert upscale(tmp_path, "-o", tmp_path / "out", "--format", "mkv", "--outscale", "2") == 0
    assert files(tmp_path / "out") == ["a.png", "b.mkv"]


# --- going on ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def whole(second: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("whole") / "large.mp4"
    assert upscale(second, "-o", out, "--segment", "5") == 0
    return out.read_bytes()


def test_twice_the_same(second: Path, whole: bytes, tmp_path: Path) -> None:
    assert upscale(second, "-o", tmp_path / "large.mp4", "--segment", "5") == 0
    assert (tmp_path / "large.mp4").read_bytes() == whole


class Slow:
    """`overlay upscale` in another process, whose model takes a tenth of a second a frame."""

    code = (
        "import sys, time\n"
        "from overlay.files import video_models\n"
        "run = video_models.LumaEnlarger.run\n"
        "def slow(self, item):\n    time.sleep(0.1)\n    run(self, item)\n"
        "video_models.LumaEnlarger.run = slow\n"
        "from overlay.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )

    def __init__(self, *arguments: object) -> None:
        words = [sys.executable, "-c", self.code, "upscale", *map(str, arguments), *SOFTWARE]
        self.child = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)

    def end_after(self, parts: Path, segments: int, number: int) -> tuple[int, str]:
        """Send a signal once so many segments are there; give exit code and what was said."""
        patience = time.monotonic() + 60
        while len(list(parts.glob("0*.json"))) < segments:
            assert self.child.poll() is None, "it ended before the signal"
            assert time.monotonic() < patience
            time.sleep(0.02)
        self.child.send_signal(number)
        err = self.child.communicate(timeout=60)[1]
        return self.child.returncode, err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends processes without a signal")
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGTERM, 143)],
)
def test_an_interrupted_run_goes_on(
    second: Path, whole: bytes, tmp_path: Path, number: int, code: int
) -> None:
    out = tmp_path / "large.mp4"
    words = (second, "-o", out, "--segment", "5")
    found, err = Slow(*words).end_after(folder_of(out), 2, number)
    assert found == code
    assert not out.exists()
    if number != signal.SIGKILL:
        assert "of 5 segments stay in" in err
        assert "the same command goes on" in err
        assert not [name for name in files(tmp_path) if name.endswith(".part")]
    kept = {p: p.stat().st_mtime_ns for p in folder_of(out).glob("0*.segment")}
    assert len(kept) >= 2
    making = []
    made = video_segments.made

    def spied(clip: Any, cuts: Any, numbers: Any, *more: Any) -> Any:
        making.extend(numbers)
        return made(clip, cuts, numbers, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("overlay.files.video.made", spied)
        assert upscale(*words) == 0
    assert 0 < len(making) <= 3, "what was there was made again"
    assert out.read_bytes() == whole
    assert files(tmp_path) == ["large.mp4"]


@pytest.mark.parametrize(("error", "stays"), [(FileError, True), (SourceDamaged, False)])
def test_parts_stay_unless_the_source_is_at_fault(
    second: Path, whole: bytes, tmp_path: Path, error: type[FileError], stays: bool
) -> None:
    out = tmp_path / "large.mp4"
    words = (second, "-o", out, "--segment", "5")
    made = video_segments.made

    def broken(clip: Any, cuts: Any, numbers: list[int], *more: Any) -> Any:
        yield from made(clip, cuts, numbers[:2], *more)
        raise error("the disk went away")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("overlay.files.video.made", broken)
        assert upscale(*words) == 1
    assert bool(files(tmp_path)) == stays
    assert upscale(*words) == 0
    assert out.read_bytes() == whole


@pytest.mark.parametrize("damage", ["options", "source", "bytes"])
def test_parts_of_something_else_are_not_taken(
    second: Path, whole: bytes, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "in.mp4", tmp_path / "large.mp4"
    shutil.copy2(second, source)
    words = [source, "-o", out, "--segment", "5"]

    def fails(*arguments: Any) -> None:
        raise FileError("no")

    with monkeypatch.context() as patch:
        patch.setattr(video_join, "join", fails)
        assert upscale(*words, *(("--crf", "40") if damage == "options" else ())) == 1
    assert len(list(folder_of(out).glob("0*.segment"))) == 5
    if damage == "source":
        os.utime(source, ns=(1, 1))
        shutil.copy(second, source)
    if damage == "bytes":
        segment = folder_of(out) / "000002.segment"
        data = bytearray(segment.read_bytes())
        data[len(data) // 2] ^= 1
        segment.write_bytes(data)
    assert upscale(*words) == 0
    assert out.read_bytes() == whole


def test_a_folder_of_parts_with_other_files_in_it_stays(second: Path, tmp_path: Path) -> None:
    mine = write_folder(tmp_path / "large.mp4.parts") / "letter.txt"
    mine.write_text("dear")
    assert upscale(second, "-o", tmp_path / "large.mp4", "--segment", "5") == 0
    assert files(tmp_path) == ["large.mp4", "large.mp4.parts/letter.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends processes without a signal")
def test_a_folder_of_pictures_goes_on(tmp_path: Path) -> None:
    for number in range(6):
        cv2.imwrite(
            str(write_folder(tmp_path / "in") / f"{number}.png"),
            game_frames(1, (96, 54 + number))[0],
        )
    assert upscale(tmp_path / "in", "-o", tmp_path / "right") == 0
    code = (
        Slow.code.replace(
            "from overlay.files import video_models\n",
            "from overlay.files import images\nwrite = images.write\n"
            "def slowly(*all):\n    time.sleep(0.15)\n    write(*all)\n"
            "images.write = slowly\n",
        ).split("run = ")[0]
        + "from overlay.cli import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    words = ["upscale", str(tmp_path / "in"), "-o", str(tmp_path / "out"), *SOFTWARE]
    child = subprocess.Popen([sys.executable, "-c", code, *words])
    while not (tmp_path / "out" / "1.png").exists():
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert len(list((tmp_path / "out").glob("*.png"))) < 6
    assert upscale(tmp_path / "in", "-o", tmp_path / "out", "--skip-existing") == 0
    for number in range(6):
        name = f"{number}.png"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "right" / name).read_bytes()


def write_folder(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


# --- what goes wrong -----------------------------------------------------------------------------


def huge(path: Path, size: int) -> Path:
    """A file whose header says size x size, around a picture that says the same."""
    with av.open(str(path), "w") as out:
        stream = out.add_mux_stream("png", rate=30, width=size, height=size, pix_fmt="rgb24")
        header = size.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
        chunk = b"IHDR" + header
        body = len(header).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        packet = av.Packet(b"\x89PNG\r\n\x1a\n" + body + bytes(64))
        packet.stream, packet.pts, packet.dts = stream, 0, 0
        packet.is_keyframe = True
        out.mux(packet)
    return path


def test_bad_videos_do_not_stop_the_others(
    second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "in")
    data = second.read_bytes()
    (folder / "headless.mp4").write_bytes(data[: len(data) // 2])  # the index is at the end
    (folder / "text.mp4").write_text("once upon a time\n" * 99)
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile good.mp4\n")
    (folder / "empty.mkv").write_bytes(b"")
    with av.open(str(folder / "sound.mp4"), "w") as out:
        out.add_stream("aac", rate=44100)
        out.start_encoding()
    huge(folder / "huge.mov", 16_000)
    huge(folder / "worse.mov", 50_000)
    write(folder / "lines.mp4", game_frames(4, (96, 64)), interlaced=True)
    write(folder / "clear.mov", game_frames(2), codec="png", layout="rgba", colour=(0, 2, 2, 2))
    shutil.copy(second, folder / "good.mp4")
    assert upscale(folder, "-o", tmp_path / "out") == 1
    told = capsys.readouterr()
    assert files(tmp_path / "out") == ["good.mp4"]
    lines = [line for line in told.err.splitlines() if "compiled" not in line]
    for words in (
        "headless.mp4 is damaged, or no video",
        "text.mp4 is damaged, or no video",
        "list.mp4 is damaged, or no video",
        "empty.mkv is damaged, or no video",
        "sound.mp4 ",
        "huge.mov: 16000x16000: videos of more than",
        "worse.mov is damaged, or no video",
        "lines.mp4 is interlaced",
        "clear.mov has transparency",
    ):
        assert sum(words in line for line in lines) == 1, (words, lines)
    assert len(lines) == 9


def test_a_file_cut_short_behind_its_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.mp4", game_frames(24), options={"crf": "10"})
    front = tmp_path / "front.mp4"
    with (
        av.open(str(source)) as old,
        av.open(str(front), "w", container_options={"movflags": "faststart"}) as out,
    ):
        stream = out.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    front.write_bytes(front.read_bytes()[: front.stat().st_size * 2 // 3])
    assert upscale(front, "-o", tmp_path / "out.mp4") == 1
    err = capsys.readouterr().err
    assert "front.mp4 is damaged: " in err
    assert "of 24 frames" in err


def test_a_header_that_promises_a_million_years(second: Path, tmp_path: Path) -> None:
    data = bytearray(second.read_bytes())
    for box in (b"mvhd", b"mdhd", b"tkhd"):
        at = data.index(box) + 4 + (20 if box == b"tkhd" else 16)
        data[at : at + 4] = b"\xff\xff\xff\xf0"
    (tmp_path / "in.mp4").write_bytes(data)
    assert upscale(tmp_path / "in.mp4", "-o", tmp_path / "out.mp4") == 0
    assert len(times_of(tmp_path / "out.mp4")) == 24


@pytest.mark.parametrize("where", ["segment", "result"])
def test_a_full_disk(
    second: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    folder = write_folder(tmp_path / "in")
    shutil.copy(second, folder / "a.mp4")
    cv2.imwrite(str(folder / "b.png"), np.full((6, 8, 3), 90, np.uint8))
    if where == "result" and not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    if where == "segment":
        replace = os.replace

        def full(draft: Path, path: Path) -> None:
            if path.suffix == ".segment":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            replace(draft, path)

        monkeypatch.setattr("overlay.trace.atomic.os.replace", full)
    else:
        join = video_join.join

        def into_full(clip: Any, segments: Any, file: Any, target: Path) -> None:
            with open("/dev/full", "w+b", buffering=0) as full:
                join(clip, segments, full, target)

        monkeypatch.setattr(video_join, "join", into_full)
    assert upscale(folder, "-o", tmp_path / "out") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "out" / "a.mp4").exists()
    assert (tmp_path / "out" / "b.png").exists()


def test_a_stage_that_fails_ends_the_others(
    second: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for stage in ("prepare", "run", "finish"):

        def fails(self: Any, thing: Any) -> None:
            raise FileError("the stage failed")

        with monkeypatch.context() as patch:
            patch.setattr(f"overlay.files.video_models.LumaEnlarger.{stage}", fails)
            assert upscale(second, "-o", tmp_path / "out.mp4") == 1, stage
        assert "the stage failed" in capsys.readouterr().err
        assert files(tmp_path) == []


def test_without_pyav_pictures_are_done_all_the_same(second: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in")
    shutil.copy(second, folder / "a.mp4")
    cv2.imwrite(str(folder / "b.png"), np.full((6, 8, 3), 90, np.uint8))
    words = ["upscale", str(folder), "-o", str(tmp_path / "out")]
    code = (
        f"import sys; sys.modules['av'] = None; import overlay.cli as c; sys.exit(c.main({words}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "videos in files need PyAV" in done.stderr
    assert "pip install 'sr-overlay[files]'" in done.stderr
    assert files(tmp_path / "out") == ["b.png"]


def test_hardware_that_is_not_there(
    second: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(video_encode, "_works", lambda *arguments: False)
    words = ["upscale", str(second), "-o", str(tmp_path / "a.mp4"), "--outscale", "2"]
    assert main([*words, "--encoder", "hardware"]) == 1
    assert "no hardware here encodes h264 at 192x108" in capsys.readouterr().err
    assert main([*words, "--encoder", "auto"]) == 0


def test_what_was_made_by_another_encoder_is_not_joined(second: Path, tmp_path: Path) -> None:
    clip = read_clip(second)
    data = []
    for crf, layout in ((20, "yuv420p"), (20, "yuv444p")):
        coding = video_encode.Coding(
            "h264", "libx264", crf, layout, (96, 54), Fraction(30), Fraction(1), clip.colour, 2
        )
        encoder = video_encode.SegmentEncoder(coding)
        for picture in game_frames(2):
            encoder.add(av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=layout))
        data.append(encoder.end())
    parts = [
        ((lambda one=one: one), list(clip.times[2 * n : 2 * n + 2])) for n, one in enumerate(data)
    ]
    with (
        (tmp_path / "out").open("w+b") as file,
        pytest.raises(FileError, match="do not fit together"),
    ):
        video_join.join(clip, parts, file, tmp_path / "out.mp4")


def test_the_options_are_those_of_the_encoders() -> None:
    """`overlay upscale --help` must not need PyAV, so they are written twice."""
    assert cli._CODECS == video_encode.CODECS
    assert cli._ENCODERS == video_encode.WHERE


def test_json_lists_videos(
    second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert upscale(second, "-o", tmp_path / "out", "--json", "--outscale", "2") == 0
    assert json.loads(capsys.readouterr().out)["done"] == [str(tmp_path / "out" / "clip.mp4")]


# --- as asked for --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_seconds_to_1080p(tmp_path: Path) -> None:
    """270p with sound to 1080p; killed half-way and gone on with, the same file."""
    source = write(tmp_path / "in.mp4", shipped_frames(300), audio=True)
    out = tmp_path / "large.mp4"
    words = (source, "-o", out, "--model", "default-x4")
    assert Slow(*words).end_after(folder_of(out), 2, signal.SIGKILL)[0] == -signal.SIGKILL
    assert upscale(*words) == 0
    assert upscale(source, "-o", tmp_path / "whole.mp4", "--model", "default-x4") == 0
    assert out.read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert times_of(out) == times_of(source)
    assert packets_of(out, "audio") == packets_of(source, "audio")
    with av.open(str(out)) as new, av.open(str(source)) as old:
        assert new.duration == old.duration
        assert (new.streams.video[0].width, new.streams.video[0].height) == (1920, 1080)
