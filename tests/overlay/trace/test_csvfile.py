"""The trace file: what is written is read back, and damage never hurts."""

from __future__ import annotations

import csv
import logging
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from overlay.errors import TraceError
from overlay.frame import Size
from overlay.trace import Outcome
from overlay.trace.csvfile import COLUMNS, read_trace, write_trace
from overlay.trace.recorder import TraceRecorder
from overlay.trace.table import MISSING

MS = 1_000_000


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlay.trace.csvfile._FLUSH_S", 0.01)


@pytest.fixture
def trace(tmp_path: Path, frames) -> Path:
    path = tmp_path / "t.csv"
    with TraceRecorder(path, {"application": "overlay", "vsync": True}) as recorder:
        frames.fill(recorder, 200, gpu=True)
    return path


def same(a, b) -> bool:
    columns = ("ids", "sequence", "outcome", "stamps", "sizes")
    columns += ("gpu_ns", "gpu_start_ns", "gpu_error_ns")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in columns)


def test_reads_back_what_was_recorded(tmp_path: Path, frames) -> None:
    path = tmp_path / "t.csv"
    with TraceRecorder(path, {"application": "overlay", "vsync": True}) as recorder:
        frames.fill(recorder, 300, gpu=True)
        recorder.begin(frames.frame(300, recorder.start_ns + 10**10))
        recorder.close()
        wanted = recorder.table()
    table = read_trace(path)
    assert table.damage is None
    assert len(table) == 301  # one row a captured frame, the unfinished one too
    assert same(table, wanted)
    assert (table.gpu_start_ns[:, table.presented()] != MISSING).any(axis=1).all()
    assert [table.reasons[i] for i in table.reason] == [wanted.reasons[i] for i in wanted.reason]
    assert [table.labels[i] for i in table.label] == [wanted.labels[i] for i in wanted.label]
    assert table.metadata == recorder.metadata
    assert table.metadata["vsync"] is True
    assert abs(int(table.metadata["started_unix_ns"]) / 1e9 - time.time()) < 60


FIRST_FORMAT = b"""\
# overlay-trace 1 {"version": "0.1.0", "started_unix_ns": 1700000000000000000}
id,source_sequence,outcome,reason,ready_ms,captured_ms,submitted_ms,inferred_ms,presenting_ms,\
uploaded_ms,drawn_ms,presented_ms,capture_duration_ms,wait_duration_ms,infer_duration_ms,\
queue_duration_ms,upload_duration_ms,draw_duration_ms,swap_duration_ms,capture_to_present_ms,\
infer_gpu_ms,draw_gpu_ms,source_width,source_height,result_width,result_height,output_width,\
output_height,model,backend
0,41,presented,,5.000000,6.000000,8.000000,11.000000,15.000000,20.000000,26.000000,33.000000,\
1.000000,2.000000,3.000000,4.000000,5.000000,6.000000,7.000000,28.000000,\
3.000000,0.500000,480,270,960,540,1920,1080,default-x2,openvino
1,42,superseded,infer slot,7.000000,7.500000,,,,,,,0.500000,,,,,,,,,,480,270,,,,,,
# end {"rows": 2}
"""


def test_files_of_the_first_format_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(FIRST_FORMAT)
    table = read_trace(path)
    assert table.damage is None
    assert table.gpu_ns.T.tolist() == [[0, 3 * MS, 0, MS // 2], [0, 0, 0, 0]]
    assert (table.gpu_start_ns == MISSING).all()
    assert not table.gpu_error_ns.any()
    assert table.sizes[:, 0].tolist() == [480, 270, 960, 540, 1920, 1080]
    assert table.labels[table.label[0]] == ("default-x2", "openvino")
    write_trace(table, path)
    assert path.read_bytes().startswith(b"# overlay-trace 2 ")
    assert same(read_trace(path), table)


@pytest.mark.parametrize(("old", "new"), [(b"trace 1", b"trace 2"), (b"trace 2", b"trace 1")])
def test_a_file_with_the_columns_of_another_format_is_damaged(
    trace: Path, old: bytes, new: bytes
) -> None:
    if new == b"trace 2":
        trace.write_bytes(FIRST_FORMAT)
    trace.write_bytes(trace.read_bytes().replace(old, new, 1))
    table = read_trace(trace)
    assert (len(table), "column names" in (table.damage or "")) == (0, True)


def test_any_csv_reader_can_read_it(trace: Path) -> None:
    with open(trace, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    assert len(rows) == 200
    assert tuple(rows[0]) == COLUMNS
    assert all(None not in row and None not in row.values() for row in rows)
    shown = next(row for row in rows if row["outcome"] == "presented")
    stages = [value for key, value in shown.items() if key.endswith("_duration_ms")]
    total = sum(map(float, stages))
    assert total == pytest.approx(float(shown["capture_to_present_ms"]))
    assert total == pytest.approx(float(shown["presented_ms"]) - float(shown["ready_ms"]))


def test_names_cannot_break_the_file(tmp_path: Path, frames) -> None:
    path = tmp_path / "t.csv"
    with TraceRecorder(path, {"title": 'a,"b"\n# <c>'}) as recorder:
        source = frames.frame(0, recorder.start_ns)
        row = recorder.begin(source)
        recorder.describe(row, frames.picture(source, model='=1,2"\n#\x00é'), Size(1, 1))
        recorder.end(row, Outcome.FAILED, "a,b\r\nc" + "x" * 9999)
    table = read_trace(path)
    assert table.damage is None
    assert table.metadata["title"] == 'a,"b"\n# <c>'
    assert table.labels[table.label[0]] == ("1_2____é", "openvino")
    assert table.reasons[table.reason[0]] == "a_b__c" + "x" * 74


def test_a_file_that_is_there_is_replaced(trace: Path, frames) -> None:
    with TraceRecorder(trace) as recorder:
        frames.fill(recorder, 3)
    assert len(read_trace(trace)) == 3


@pytest.mark.parametrize("name", ["missing/t.csv", ".", pytest.param("/dev/full", id="full")])
def test_an_unwritable_path_is_refused_at_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "/dev/full" and not path.exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(TraceError, match=rf"cannot write the trace {re.escape(str(path))}: \w"):
        TraceRecorder(path)


class FullDisk:
    """A file with room for so many more bytes."""

    def __init__(self, file, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        data = data[: self.room]
        self.room -= len(data)
        return self.file.write(data)

    def close(self) -> None:
        self.file.close()


def test_a_full_disk_is_one_line_and_the_run_goes_on(tmp_path: Path, frames, caplog, quick) -> None:
    path = tmp_path / "t.csv"
    recorder = TraceRecorder(path)
    recorder._writer._file = FullDisk(recorder._writer._file, 5000)
    with caplog.at_level(logging.INFO):
        for i in range(3):
            frames.fill(recorder, 50, seed=i)
            time.sleep(0.1)
        recorder.close()
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "is incomplete, the run goes on" in caplog.text
    assert recorder.counts().captured == 150
    assert "No space left" in (recorder.damage or "")
    assert "No space left" in (recorder.table().damage or "")
    table = read_trace(path)
    assert 10 < len(table) < 150
    assert "the line is cut off" in (table.damage or "")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_killed_run_leaves_what_was_flushed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    script = (
        "import sys, time, numpy as np\n"
        "from pathlib import Path\n"
        "from overlay.frame import Frame, Region\n"
        "from overlay.trace import Outcome\n"
        "from overlay.trace.recorder import TraceRecorder\n"
        "recorder = TraceRecorder(Path(sys.argv[1]))\n"
        "pixels = np.zeros((4, 4, 4), np.uint8)\n"
        "for i in range(100):\n"
        "    row = recorder.begin(Frame(pixels, i, i + 1, i + 2, Region(0, 0, 4, 4)))\n"
        "    recorder.end(row, Outcome.SUPERSEDED, 'slot')\n"
        "sys.stdout.write('ready\\n'); sys.stdout.flush()\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 20
        while path.read_bytes().count(b"\n") < 102 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    table = read_trace(path)
    assert len(table) == 100
    assert "the file ends early" in (table.damage or "")


def test_a_stuck_row_does_not_hold_up_the_file(tmp_path: Path, frames, quick) -> None:
    path = tmp_path / "t.csv"
    recorder = TraceRecorder(path, capacity=64)
    recorder.begin(frames.frame(0, recorder.start_ns))  # nobody ends it
    for i in range(1, 41):  # more than half the ring
        frames.present(recorder, i, recorder.start_ns + i * MS, [0.1] * 7)
    deadline = time.monotonic() + 10
    while path.read_bytes().count(b"\n") < 2 + 41 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert recorder.counts().failed == 1
    recorder.close()
    table = read_trace(path)
    assert table.damage is None
    assert len(table) == 41
    assert table.reasons[table.reason[0]] == "never ended"


def test_rows_that_the_writer_missed_are_owned_up_to(
    tmp_path: Path, frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overlay.trace.csvfile._FLUSH_S", 3600)
    path = tmp_path / "t.csv"
    recorder = TraceRecorder(path, capacity=64)
    for i in range(500):
        frames.present(recorder, i, recorder.start_ns + i * MS, [0.1] * 7)
    recorder.close()
    table = read_trace(path)
    assert recorder.damage is not None
    assert "are missing: the disk was too slow" in (table.damage or "")
    assert len(table) == 63
    assert table.ids[-1] == 499


# -- damage -------------------------------------------------------------------------------------


def lines_of(trace: Path) -> list[bytes]:
    return trace.read_bytes().splitlines(keepends=True)


def row_100(lines: list[bytes], new: bytes) -> bytes:
    return b"".join([*lines[:102], new, *lines[103:]])


@pytest.mark.parametrize(
    ("harm", "wanted"),
    [
        (lambda x: b"\x00" * len(x), "not a row"),
        (lambda x: x[:40] + b"\n", "not a row"),
        (lambda x: x[:-1] + b",1\n", "not a row"),
        (lambda x: x.replace(b"100,", b"100,,", 1), "not a row"),
        (lambda x: b"\xff\xfe" + x, "not a row"),
        (lambda x: x.replace(b"100,", b"9" * 400 + b",", 1), "not a row"),
        (lambda x: x.replace(b"100,", b"5,", 1), "id 5 is out of order"),
        (lambda x: x.replace(b"100,", b"101,", 1), "id 101 is out of order"),
        (lambda x: x.replace(b".", b".nan", 1), "not a row"),
        (lambda x: b"A" * 5_000_000 + b"\n", "line too long"),
        (lambda x: re.sub(rb",[^,]*,[^,]*\n", b",\xff\xff,b\n", x), "not UTF-8"),
        (lambda x: b"", "id 101 is out of order"),
        (lambda x: b'# end {"rows": 100}\n', "there is more after the last line"),
        (lambda x: b"# lost 99999999999999999999\n", "not a row"),
    ],
)
def test_damage_is_reported_and_what_is_before_it_read(trace: Path, harm, wanted: str) -> None:
    whole = read_trace(trace)
    lines = lines_of(trace)
    assert lines[102].startswith(b"100,")
    trace.write_bytes(row_100(lines, harm(lines[102])))
    table = read_trace(trace)
    assert wanted in (table.damage or "")
    assert len(table) == 100
    assert table.ids.tolist() == list(range(100))
    assert np.array_equal(table.stamps, whole.stamps[:, :100])
    assert "\n" not in (table.damage or "")
    assert re.match(r"line 10[34]: .*100 rows before it were read$", table.damage or "")


def test_a_wrong_row_count_is_damage(trace: Path) -> None:
    data = trace.read_bytes()
    trace.write_bytes(data.replace(b'"rows": 200', b'"rows": 201'))
    assert "there should be 201 rows" in (read_trace(trace).damage or "")


def test_lost_rows_do_not_excuse_disorder(trace: Path) -> None:
    lines = lines_of(trace)
    jump = lines[102].replace(b"100,", b"103,", 1)
    back = lines[102].replace(b"100,", b"102,", 1)
    trace.write_bytes(b"".join([*lines[:102], b"# lost 5\n", jump, back]))
    table = read_trace(trace)
    assert "id 102 is out of order" in (table.damage or "")
    assert table.ids[-2:].tolist() == [99, 103]


def test_windows_line_ends_are_fine(trace: Path) -> None:
    trace.write_bytes(trace.read_bytes().replace(b"\n", b"\r\n"))
    table = read_trace(trace)
    assert (table.damage, len(table)) == (None, 200)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", "is not an overlay trace"),
        (b"\x00" * 100_000, "is not an overlay trace"),
        (b"fps,frametime\n60,16\n", "is not an overlay trace"),
        (b"# overlay-trace x {}\n", "is not an overlay trace"),
        (b"# overlay-trace 3 {}\n", "is a trace of format 3, this program reads 1 to 2"),
        (b"# overlay-trace 0 {}\n", "is a trace of format 0, this program reads 1 to 2"),
        (b"# overlay-trace 1 " + b"[" * 60_000, "its first line is damaged"),
        (b"# overlay-trace 1 [1]\n", "its first line is damaged"),
        (b"# overlay-trace 1 " + b"9" * 60_000 + b"\n", "its first line is damaged"),
    ],
)
def test_what_is_no_trace_is_one_clear_line(tmp_path: Path, data: bytes, wanted: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    with pytest.raises(TraceError, match=wanted) as caught:
        read_trace(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"cannot read the trace .*nope\.csv: No such file"):
        read_trace(tmp_path / "nope.csv")


def test_a_trace_without_column_names_is_damaged_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"# overlay-trace 1 {}\nid,what\n")
    table = read_trace(path)
    assert (len(table), "column names" in (table.damage or "")) == (0, True)


def test_random_damage_never_breaks_the_reader(trace: Path) -> None:
    rng = random.Random(20240)
    whole, original = read_trace(trace), trace.read_bytes()
    seen_damage = many_lines = 0
    for _ in range(250):
        data = bytearray(original)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data))
            kind = rng.randrange(5)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                del data[at : at + rng.randint(1, 500)]
            elif kind == 2:
                data[at:at] = rng.randbytes(rng.randint(1, 300))
            elif kind == 3:
                del data[max(at, 1) :]
            else:
                data[at:at] = data[at : at + rng.randint(1, 2000)]
        trace.write_bytes(data)
        try:
            table = read_trace(trace)
        except TraceError as exc:
            many_lines += "\n" in str(exc)
            continue
        seen_damage += table.damage is not None
        assert len(table) <= len(whole) + 50
        assert np.all(np.diff(table.ids) > 0)
        assert table.outcome.max(initial=0) < len(Outcome)
        assert table.label.max(initial=0) < len(table.labels)
        assert table.reason.max(initial=0) < len(table.reasons)
    assert seen_damage > 100
    assert many_lines == 0


def test_the_number_of_rows_is_bounded(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlay.trace.csvfile._MAX_ROWS", 50)
    table = read_trace(trace)
    assert (len(table), "more than 50 rows" in (table.damage or "")) == (50, True)


def test_write_trace_is_whole_or_not_at_all(trace: Path, tmp_path: Path) -> None:
    table = read_trace(trace)
    copy = tmp_path / "copy.csv"
    write_trace(table, copy)
    assert copy.read_bytes() == trace.read_bytes()
    with pytest.raises(TraceError, match="cannot write"):
        write_trace(table, tmp_path / "no" / "copy.csv")
    (tmp_path / "folder").mkdir()
    with pytest.raises(TraceError, match="cannot write"):
        write_trace(table, tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.csv", "folder", "t.csv"]
