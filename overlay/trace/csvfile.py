"""The trace file: our own CSV, written in the background while the frames flow, and read back.

    # overlay-trace 2 {"version": "…", "started_unix_ns": …, …}
    id,source_sequence,outcome,reason,ready_ms,…
    0,0,presented,,12.345678,…
    # end {"rows": 1}

docs/trace.md defines every column. Comment lines start with "#", no field holds a comma, a
quote or a "#": any CSV reader with "#" comments reads it. Rows are in id order and each flush
writes whole lines, so that a killed run leaves a file that is readable up to its last flush.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np

from overlay.errors import TraceError
from overlay.trace import GpuPart, Outcome, Stage
from overlay.trace.atomic import write_atomically
from overlay.trace.table import MISSING, STAGES, Metadata, TraceTable

if TYPE_CHECKING:
    from overlay.trace.recorder import TraceRecorder

log = logging.getLogger(__name__)

FORMAT = 2
_MAGIC = b"# overlay-trace "
_STAMP_COLUMNS = tuple(f"{stage.name.lower()}_ms" for stage in Stage)
_SIZE_COLUMNS = (
    "source_width",
    "source_height",
    "result_width",
    "result_height",
    "output_width",
    "output_height",
)
_GPU_COLUMNS = (
    *(f"{part.name.lower()}_gpu_ms" for part in GpuPart),
    *(f"{part.name.lower()}_gpu_start_ms" for part in GpuPart),
    "gpu_error_ms",
    "draw_gpu_error_ms",
)


def _columns(gpu: tuple[str, ...]) -> tuple[str, ...]:
    return (
        "id",
        "source_sequence",
        "outcome",
        "reason",
        *_STAMP_COLUMNS,
        *(f"{name}_duration_ms" for name in STAGES),
        "capture_to_present_ms",
        *gpu,
        *_SIZE_COLUMNS,
        "model",
        "backend",
    )


COLUMNS = _columns(_GPU_COLUMNS)
#: By format; the first had two device times and no more of the GPU.
_HEADERS = {
    1: ",".join(_columns(("infer_gpu_ms", "draw_gpu_ms"))).encode(),
    2: ",".join(COLUMNS).encode(),
}
_OUTCOMES = {outcome.name.lower(): int(outcome) for outcome in Outcome}
_OUTCOME_NAMES = {value: name for name, value in _OUTCOMES.items()}

_FLUSH_S = 0.25
_CHUNK_ROWS = 16  # rows formatted in one go before the interpreter lock is offered to others


# -- writing ------------------------------------------------------------------------------------


class _Sink(Protocol):
    def write(self, data: bytes, /) -> int | None: ...

    def close(self) -> None: ...


class TraceWriter:
    """Writes a recorder's rows to a file, on its own thread, a few times a second.

    A row is written when it and all before it have ended. A file that is there is replaced.

    Args:
        recorder: where the rows come from.
        path: the file; its folder must exist.

    Raises:
        TraceError: the file cannot be opened or its first lines cannot be written.
    """

    def __init__(self, recorder: TraceRecorder, path: Path) -> None:
        self._recorder = recorder
        self.path = path
        #: Why the file lacks rows, in one line; None while it does not.
        self.damage: str | None = None
        self._next = 0
        self._written = 0
        self._stop = threading.Event()
        self._closed = False
        self._broken = False
        try:
            self._file: _Sink = _begin(path, _first_lines(recorder.metadata))
        except OSError as exc:
            raise TraceError(
                f"cannot write the trace {path}: {exc.strerror or exc}; "
                "name a file in a folder that exists and is writable"
            ) from exc
        self._thread = threading.Thread(target=self._run, name="trace-writer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what is not written yet and the last line; idempotent."""
        if self._closed:
            return
        self._closed = True
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        finished = False
        try:
            while not self._stop.wait(_FLUSH_S):
                self._flush()
            self._flush()
            self._write(_last_line(self._written))
            finished = True
        finally:
            if not finished:
                self.damage = f"rows from about {self._next} on are missing: the writer failed"
            try:
                self._file.close()
            except OSError as exc:
                self._give_up(exc)

    def _flush(self) -> None:
        recorder = self._recorder
        while not self._broken:
            if self._next < recorder.oldest:
                self._lost(recorder.oldest)
            table = recorder.table(self._next, self._next + _CHUNK_ROWS)
            if len(table) == 0:
                if self._next < recorder.oldest:
                    continue
                return
            first = int(table.ids[0])
            self._lost(first)
            pending = np.flatnonzero(table.outcome == Outcome.PENDING)
            ended = len(table) if len(pending) == 0 else int(pending[0])
            self._write(b"".join(_lines(table, ended)))
            self._next = first + ended
            self._written += ended
            if ended < len(table):
                if recorder.captured - self._next < recorder.capacity // 2:
                    return
                recorder.end(self._next, Outcome.FAILED, "never ended")  # would hold all up
            time.sleep(0)

    def _lost(self, first: int) -> None:
        """Go on with row `first`; those before it left the ring unwritten."""
        if first <= self._next:
            return
        self._write(f"# lost {first - self._next}\n".encode())
        if self.damage is None:
            self.damage = f"rows from {self._next} on are missing: the disk was too slow"
            log.warning("the trace %s is incomplete: %s", self.path, self.damage)
        self._next = first

    def _write(self, data: bytes) -> None:
        if self._broken:
            return
        try:
            _write_all(self._file, data)
        except OSError as exc:
            self._give_up(exc)

    def _give_up(self, exc: OSError) -> None:
        if self._broken:
            return
        self._broken = True
        self.damage = f"rows from about {self._next} on are missing: {exc.strerror or exc}"
        log.warning("the trace %s is incomplete, the run goes on: %s", self.path, self.damage)


def write_trace(table: TraceTable, path: Path) -> None:
    """Write a whole table as a trace file, in one step.

    Raises:
        TraceError: the file cannot be written.
    """
    body = b"".join(_lines(table, len(table)))
    last = _last_line(len(table))
    write_atomically(path, _first_lines(table.metadata) + body + last)


def _begin(path: Path, data: bytes) -> _Sink:
    file = open(path, "wb", buffering=0)  # noqa: SIM115 (the writer holds it)
    try:
        _write_all(file, data)
    except OSError:
        file.close()
        raise
    return file


def _write_all(file: _Sink, data: bytes) -> None:
    while data:
        data = data[file.write(data) or 0 :]


def _first_lines(metadata: Metadata) -> bytes:
    return _MAGIC + f"{FORMAT} {json.dumps(dict(metadata))}\n".encode() + _HEADERS[FORMAT] + b"\n"


def _last_line(rows: int) -> bytes:
    return f'# end {{"rows": {rows}}}\n'.encode()


def _lines(table: TraceTable, stop: int) -> Iterator[bytes]:
    """Format rows 0 to `stop`; a value that is not there is an empty field."""
    reasons = [_plain(text) for text in table.reasons]
    labels = [f"{_plain(model)},{_plain(backend)}" for model, backend in table.labels]
    ids, sequence = table.ids[:stop].tolist(), table.sequence[:stop].tolist()
    outcome, reason = table.outcome[:stop].tolist(), table.reason[:stop].tolist()
    stamps, sizes = table.stamps[:, :stop].T.tolist(), table.sizes[:, :stop].T.tolist()
    gpu, starts = table.gpu_ns[:, :stop].T.tolist(), table.gpu_start_ns[:, :stop].T.tolist()
    errors = table.gpu_error_ns[:, :stop].T.tolist()
    label = table.label[:stop].tolist()
    for row in range(len(ids)):
        at = stamps[row]
        spans = [_span(at[a], at[b]) for a, b in STAGES.values()]
        spans.append(_span(at[Stage.READY], at[Stage.PRESENTED]))
        fields = [
            str(ids[row]),
            str(sequence[row]),
            _OUTCOME_NAMES[outcome[row]],
            reasons[reason[row]],
            *(_ms(value) for value in at),
            *spans,
            *(_ms(value or MISSING) for value in gpu[row]),
            *(_ms(value) for value in starts[row]),
            *(_ms(value or MISSING) for value in errors[row]),
            *(str(value) if value else "" for value in sizes[row]),
            labels[label[row]],
        ]
        yield (",".join(fields) + "\n").encode()


def _span(begin_ns: int, end_ns: int) -> str:
    return "" if MISSING in (begin_ns, end_ns) else _ms(end_ns - begin_ns)


def _ms(value_ns: int) -> str:
    """ns as ms with all six decimals, exact."""
    if value_ns == MISSING:
        return ""
    whole, rest = divmod(abs(value_ns), 1_000_000)
    return f"{'-' if value_ns < 0 else ''}{whole}.{rest:06d}"


def _plain(text: str) -> str:
    """Reduce a name to characters that need no quoting and start no spreadsheet formula."""
    return re.sub(r"[^\w .:;/()<>\[\]=+*-]", "_", text).lstrip("=+-@ ").rstrip()[:80]


# -- reading ------------------------------------------------------------------------------------

_MAX_METADATA = 65536  # bytes
_MAX_LINE = 4096  # bytes; the writer's longest line has some 800
_MAX_ROWS = 4_000_000  # 18 hours at 60 frames a second; some 700 MB in memory
_MAX_NAMES = 10_000

_TIME = rb"(-?\d{1,12}\.\d{6})?"
_DURATION = rb"(\d{1,12}\.\d{6})?"
_NAME = rb"([^,\"#\x00-\x1f]{0,400})"


def _row(gpu: list[bytes]) -> re.Pattern[bytes]:
    """Give the form of a row, with these fields about the GPU."""
    return re.compile(
        b",".join(
            [
                rb"(\d{1,15})",
                rb"(-?\d{1,15})",
                b"(" + "|".join(_OUTCOMES).encode() + b")",
                _NAME,
                *[_TIME] * len(Stage),
                *[rb"(?:-?\d{1,12}\.\d{6})?"] * (len(STAGES) + 1),
                *gpu,
                *[rb"(\d{1,6})?"] * 6,
                _NAME,
                _NAME,
            ]
        )
    )


_ROWS = {
    1: _row([_DURATION] * 2),
    2: _row([_DURATION] * 4 + [_TIME] * 4 + [_DURATION] * 2),
}
_END = re.compile(rb'# end \{"rows": (\d{1,15})\}')
_LOST = re.compile(rb"# lost (\d{1,15})")


class _Damage(Exception):
    """What is wrong with a line."""


def read_trace(path: Path) -> TraceTable:
    """Read a trace file, up to the first damage if there is any (`TraceTable.damage`).

    Streams the file with bounded lines and a bounded number of rows; anything that the writer
    cannot have written is damage.

    Raises:
        TraceError: the file cannot be read, is no trace, or is of a newer format.
    """
    try:
        with open(path, "rb") as file:
            format, metadata = _read_metadata(file, path)
            return _Reader(format, metadata).read(file)
    except OSError as exc:
        raise TraceError(f"cannot read the trace {path}: {exc.strerror or exc}") from exc


def _read_metadata(file: BinaryIO, path: Path) -> tuple[int, Metadata]:
    """Give the file's format and what its first line says."""
    line = file.readline(_MAX_METADATA)
    version, _, text = line.removeprefix(_MAGIC).partition(b" ")
    if not line.startswith(_MAGIC) or not re.fullmatch(rb"\d{1,6}", version):
        raise TraceError(f"{path} is not an overlay trace (its first line is not one's)")
    format = int(version)
    if format not in _HEADERS:
        raise TraceError(
            f"{path} is a trace of format {format}, this program reads 1 to {FORMAT}; "
            "read it with the release that wrote it"
        )
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise TraceError(f"{path} is not a readable overlay trace (its first line is damaged)")
    return format, {
        str(key): value
        for key, value in metadata.items()
        if value is None or isinstance(value, str | int | float)
    }


class _Reader:
    """Collects the rows of one file."""

    def __init__(self, format: int, metadata: Metadata) -> None:
        self._format = format
        self._row = _ROWS[format]
        self._metadata = metadata
        # id, sequence, outcome, reason, stamps, GPU, sizes, label
        self._columns = [array("q") for _ in range(4 + len(Stage) + len(_GPU_COLUMNS) + 6 + 1)]
        self._names: dict[bytes, str] = {}
        self._reasons = {"": 0}
        self._labels = {("", ""): 0}
        self._lost = 0

    def read(self, file: BinaryIO) -> TraceTable:
        number = 1
        damage: str | None = None
        try:
            if self._line(file) != _HEADERS[self._format]:
                raise _Damage("the column names are not those of a trace")
            ended = False
            while not ended:
                number += 1
                ended = self._take(self._line(file))
            if file.read(1):
                raise _Damage("there is more after the last line")
            if self._lost:
                damage = f"{self._lost} rows are missing: the disk was too slow"
        except _Damage as exc:
            rows = len(self._columns[0])
            damage = f"line {number + 1}: {exc}; {rows} rows before it were read"
        return self._table(damage)

    def _line(self, file: BinaryIO) -> bytes:
        line = file.readline(_MAX_LINE)
        if not line:
            raise _Damage("the file ends early (the run was killed or is still going on)")
        if not line.endswith(b"\n"):
            raise _Damage("line too long" if len(line) == _MAX_LINE else "the line is cut off")
        return line.rstrip(b"\r\n")

    def _take(self, line: bytes) -> bool:
        """Take one line; True if it was the last."""
        match = self._row.fullmatch(line)
        if match is not None:
            self._take_row(match.groups())
            return False
        if (end := _END.fullmatch(line)) is not None:
            if int(end[1]) != len(self._columns[0]):
                raise _Damage(f"there should be {int(end[1])} rows")
            return True
        if (lost := _LOST.fullmatch(line)) is not None:
            self._lost += int(lost[1])
            return False
        raise _Damage("this is not a row of a trace")

    def _take_row(self, fields: tuple[bytes | None, ...]) -> None:
        columns = self._columns
        identity = int(fields[0] or 0)
        rows = len(columns[0])
        if rows >= _MAX_ROWS:
            raise _Damage(f"more than {_MAX_ROWS} rows are not read")
        # A gap is fine where rows are known to be lost; the sum of all gaps is checked.
        if rows and not 0 <= identity - columns[0][0] - rows <= self._lost:
            raise _Damage(f"id {identity} is out of order")
        if rows and identity <= columns[0][-1]:
            raise _Damage(f"id {identity} is out of order")
        reason, model, backend = (self._name(fields[i] or b"") for i in (3, -2, -1))
        label = self._labels.setdefault((model, backend), len(self._labels))
        if len(self._labels) > _MAX_NAMES:
            raise _Damage("too many different names")
        values = (
            identity,
            int(fields[1] or 0),
            _OUTCOMES[(fields[2] or b"").decode()],
            self._reasons.setdefault(reason, len(self._reasons)),
            *(_ns(text) if text else MISSING for text in fields[4:12]),
            *self._gpu(fields[12:-8]),
            *(int(text) if text else 0 for text in fields[-8:-2]),
            label,
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value)

    def _gpu(self, fields: tuple[bytes | None, ...]) -> tuple[int, ...]:
        """Give durations, starts and errors; what an older format lacks is unknown."""
        if self._format == 1:
            infer, draw = (_ns(text) if text else 0 for text in fields)
            return 0, infer, 0, draw, *[MISSING] * 4, 0, 0
        return (
            *(_ns(text) if text else 0 for text in fields[:4]),
            *(_ns(text) if text else MISSING for text in fields[4:8]),
            *(_ns(text) if text else 0 for text in fields[8:]),
        )

    def _name(self, raw: bytes) -> str:
        name = self._names.get(raw)
        if name is None:
            if len(self._names) >= _MAX_NAMES:
                raise _Damage("too many different names")
            try:
                name = raw.decode()
            except UnicodeDecodeError:
                raise _Damage("a name is not UTF-8") from None
            self._names[raw] = name
        return name

    def _table(self, damage: str | None) -> TraceTable:
        columns = [np.array(column, np.int64) for column in self._columns]
        stop = 4 + len(Stage)
        return TraceTable(
            ids=columns[0],
            sequence=columns[1],
            outcome=columns[2],
            reason=columns[3],
            stamps=np.stack(columns[4:stop]),
            gpu_ns=np.stack(columns[stop : stop + 4]),
            gpu_start_ns=np.stack(columns[stop + 4 : stop + 8]),
            gpu_error_ns=np.stack(columns[stop + 8 : stop + 10]),
            sizes=np.stack(columns[stop + 10 : stop + 16]),
            label=columns[-1],
            reasons=tuple(self._reasons),
            labels=tuple(self._labels),
            metadata=self._metadata,
            damage=damage,
        )


def _ns(text: bytes) -> int:
    """The inverse of `_ms`, exact."""
    return int(text.replace(b".", b""))


def is_same_file(a: Path, b: Path) -> bool:
    """Tell whether two paths name one file that exists."""
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False
