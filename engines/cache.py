"""The cache of built engines: one file an engine, with a JSON sidecar that says what it is.

    <folder>/<model>/<sizes>-<back end>-<precision>-<device>.json        the sidecar
    <folder>/<model>/<sizes>-<back end>-<precision>-<device>-<sha>.engine
    <folder>/<model>/<sizes>-<back end>-<precision>-<device>.kept        what opening it compiled

The sidecar names the engine's file by its sha256, and is written last: replacing it is the one
step that puts a new engine in the place of an old one, so a reader sees either, and a build that
is killed leaves at most a file that nothing names. One lock a sidecar keeps two builders apart.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from filelock import FileLock, Timeout

from engines.errors import CacheBusy, CacheError, EngineMismatch, EngineMissing
from engines.spec import Engine, Output, Precision, Size

#: Version of the sidecar's fields.
FORMAT = 1
#: A sidecar larger than this is not one of ours.
_SIDECAR_BYTES = 1 << 20
#: What reading a sidecar of anyone's may raise.
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
#: A draft that is younger may belong to a build that goes on.
_BEING_WRITTEN_S = 60.0
_SPACE = {errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC}


def default_folder() -> Path:
    """Give the user's cache folder; the environment variable OVERLAY_CACHE overrides it."""
    if told := os.environ.get("OVERLAY_CACHE"):
        return Path(told)
    import platformdirs  # not needed where the folders are given

    return Path(platformdirs.user_cache_path("sr-overlay", appauthor=False)) / "engines"


def size_text(sizes: Sequence[Size]) -> str:
    """Write sizes for people and file names: "480x270+640x360"."""
    return "+".join(f"{width}x{height}" for width, height in sizes)


@dataclass(frozen=True, slots=True)
class Identity:
    """All that an engine depends on: it is fresh while none of it changed.

    Attributes:
        model: name of the model.
        model_sha256: of its weights.
        export: which recipe made the graph.
        onnx_sha256: of the graph.
        sizes: source sizes it takes.
        precision: what it computes in.
        backend: the back end it is for.
        backend_version: of that.
        device: what it is bound to, {"gpu": …, "sm": …, "driver": …} say; {} for anything.
    """

    model: str
    model_sha256: str
    export: str
    onnx_sha256: str
    sizes: tuple[Size, ...]
    precision: Precision
    backend: str
    backend_version: str
    device: Mapping[str, str]

    def differs(self, wanted: Identity) -> str | None:
        """Say why an engine of this identity is not the one wanted; None if it is.

        What is empty in `wanted` (the graph's sha256 before it is exported) is not compared.
        """
        pairs = {
            "the model's weights": (self.model_sha256[:12], wanted.model_sha256[:12]),
            "the export recipe": (self.export, wanted.export),
            "the graph": (self.onnx_sha256[:12], wanted.onnx_sha256[:12]),
            "the size": (size_text(self.sizes), size_text(wanted.sizes)),
            "the precision": (self.precision, wanted.precision),
            "the back end": (self.backend, wanted.backend),
            f"the version of {self.backend}": (self.backend_version, wanted.backend_version),
        }
        for key in sorted({*self.device, *wanted.device}):
            pairs[f"the {key}"] = (self.device.get(key, "?"), wanted.device.get(key, "?"))
        for what, (built, now) in pairs.items():
            if built != now and now:
                return f"{what} changed: built for {built}, now {now}"
        return None


@dataclass(frozen=True, slots=True)
class Entry:
    """One engine in the cache.

    Attributes:
        sidecar: path of its JSON file.
        identity: what it was made of and for.
        reference: how `load.locate` finds the weights again.
        scale: output size / input size.
        output: kind of its pictures.
        licence: of the weights.
        file: name of the engine's file, beside the sidecar.
        sha256, bytes: of that file.
        built: when, UTC, ISO 8601.
        seconds: how long the build took.
        checks: what was measured of it: psnr, ms_p50, … (see `engines.make`).
        report: what the back end said about it.
        options: what the user said about the build.
        note: for people.
    """

    sidecar: Path
    identity: Identity
    reference: str
    scale: int
    output: Output
    licence: str
    file: str
    sha256: str
    bytes: int
    built: str
    seconds: float
    checks: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def path(self) -> Path:
        """The engine's file."""
        return self.sidecar.parent / self.file


@dataclass(frozen=True, slots=True)
class Damaged:
    """A sidecar that cannot be used, and why."""

    sidecar: Path
    reason: str


class EngineCache:
    """The engines in one folder.

    Args:
        folder: `default_folder()` if None; made when the first engine is stored.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()

    def entries(self) -> list[Entry | Damaged]:
        """List everything, sorted by model and file name."""
        return [self._read(path) for path in sorted(self.folder.glob("*/*.json"))]

    def find(self, wanted: Identity) -> Entry | Damaged | None:
        """Give what was stored for the same model, sizes, precision, back end and device kind.

        It may be stale: `Identity.differs` says so.
        """
        path = self._sidecar(wanted)
        return self._read(path) if path.exists() else None

    def fresh(self, wanted: Identity) -> tuple[Entry | None, str]:
        """Find the engine wanted, or say in one line why there is none.

        An engine that takes more sizes than those wanted will do.
        """
        reasons = []
        for found in self.of_model(wanted.model):
            if isinstance(found, Damaged):
                reasons.append(f"{found.sidecar.stem}: {found.reason}")
                continue
            known = found.identity
            if (known.backend, known.precision) != (wanted.backend, wanted.precision):
                continue
            if not set(wanted.sizes) <= set(known.sizes):
                reasons.append(f"it was built for {size_text(known.sizes)}")
                continue
            stale = known.differs(replace(wanted, sizes=known.sizes))
            if stale is None:
                return found, ""
            reasons.insert(0, f"it is stale: {stale}")
        return None, reasons[0] if reasons else "it was not built"

    def of_model(self, model: str) -> list[Entry | Damaged]:
        """List what is stored of one model, also what is stale or damaged."""
        if Path(model).name != model or model in ("", ".."):
            return []  # no name that an engine has: a path
        return [self._read(path) for path in sorted((self.folder / model).glob("*.json"))]

    def open(self, entry: Entry) -> Engine:
        """Read an engine and check that it is whole.

        Raises:
            EngineMissing: its file is gone.
            EngineMismatch: it is not the file that the sidecar names.
        """
        try:
            data = entry.path.read_bytes()
        except OSError as exc:
            raise EngineMissing(f"cannot read the engine {entry.path}: {exc.strerror}") from exc
        if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise EngineMismatch(
                f"the engine {entry.path} is damaged: {len(data)} bytes, expected {entry.bytes} "
                "with another sha256; build it again"
            )
        known = entry.identity
        return Engine(
            known.model, entry.scale, entry.output, known.sizes, known.precision, known.backend,
            data,
        )  # fmt: skip

    def store(self, entry: Entry, engine: bytes) -> Entry:
        """Put an engine in the place of an older one of the same name, all or nothing.

        Args:
            entry: its facts; `sidecar`, `file`, `sha256`, `bytes` and `built` are filled in.
        Raises:
            CacheError: the disk is full, or the folder cannot be written.
        """
        sidecar = self._sidecar(entry.identity)
        sha256 = hashlib.sha256(engine).hexdigest()
        entry = replace(
            entry,
            sidecar=sidecar,
            file=f"{sidecar.stem}-{sha256[:12]}.engine",
            sha256=sha256,
            bytes=len(engine),
            built=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        before = self._read(sidecar) if sidecar.exists() else None
        self._write(entry.path, engine)
        try:
            self._write(sidecar, _to_json(entry))
        except CacheError:
            if not (isinstance(before, Entry) and before.file == entry.file):
                entry.path.unlink(missing_ok=True)
            raise
        self._sweep(entry)
        return entry

    def kept(self, entry: Entry) -> bytes:
        """Give what `keep` stored for an engine, b"" if there is nothing."""
        try:
            return entry.sidecar.with_suffix(".kept").read_bytes()
        except OSError:
            return b""

    def keep(self, entry: Entry, data: bytes) -> None:
        """Store what makes an engine open quicker on this machine; errors as `store`."""
        if data and data != self.kept(entry):
            self._write(entry.sidecar.with_suffix(".kept"), data)

    @contextmanager
    def lock(self, wanted: Identity, timeout_s: float = -1) -> Iterator[None]:
        """Keep other builders of the same engine out.

        Args:
            timeout_s: how long to wait for another one to end; -1 = for ever.
        Raises:
            CacheError: another process holds it for longer, or the folder cannot be written.
        """
        path = self._sidecar(wanted).with_suffix(".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path, timeout=timeout_s)
            lock.acquire()
        except Timeout as exc:
            raise CacheBusy(
                f"another process is building this engine ({path}); wait for it, or end it"
            ) from exc
        except OSError as exc:
            raise _cannot_write(path, exc) from exc
        try:
            yield
        finally:
            lock.release()

    def remove(self, found: Entry | Damaged) -> int:
        """Delete an engine with its sidecar; give the bytes that were freed.

        Raises:
            CacheError: it cannot be deleted.
        """
        freed = 0
        stem = found.sidecar.stem
        try:
            for path in (found.sidecar, *found.sidecar.parent.glob(f"{stem}-*.engine")):
                freed += path.stat().st_size
                path.unlink()
        except OSError as exc:
            raise CacheError(f"cannot delete {exc.filename}: {exc.strerror}") from exc
        for ending in (".kept", ".lock"):
            with suppress(OSError):  # a builder holds it (Windows)
                found.sidecar.with_suffix(ending).unlink()
        with suppress(OSError):  # other engines of the model are still there
            found.sidecar.parent.rmdir()
        return freed

    def leftovers(self) -> list[Path]:
        """List the files that no sidecar names: of builds that were killed."""
        named = {entry.path for entry in self.entries() if isinstance(entry, Entry)}
        kept = {".json", ".kept", ".lock"}
        return [
            path
            for path in sorted(self.folder.glob("*/*"))
            if path.is_file() and path.suffix not in kept and path not in named
        ]

    def sweep(self, everything: bool = False) -> int:
        """Delete what no engine needs: leftovers, idle locks, empty folders; give bytes freed.

        Args:
            everything: the back ends' timing caches too.
        """
        doomed = [path for path in self.leftovers() if _age_s(path) > _BEING_WRITTEN_S]
        if everything:
            doomed += self.folder.glob("*.timing")
        freed = 0
        for path in doomed:
            with suppress(OSError):  # gone meanwhile, or open elsewhere (Windows)
                size = path.stat().st_size
                path.unlink()
                freed += size
        for path in self.folder.glob("*/*.lock"):
            if not path.with_suffix(".json").exists():
                with suppress(OSError, Timeout), FileLock(path, timeout=0):
                    path.unlink()
        for folder in self.folder.glob("*/"):
            with suppress(OSError):  # engines are in it
                folder.rmdir()
        return freed

    def timing_cache(self, backend: str, version: str, device: Mapping[str, str]) -> Path:
        """Name the file in which a back end keeps what it measured on a device."""
        return self.folder / f"{backend}-{version}-{_digest(device)}.timing"

    def write_timing_cache(self, path: Path, data: bytes) -> None:
        """Store it; errors as `store`."""
        self._write(path, data)

    def _sidecar(self, identity: Identity) -> Path:
        name = f"{size_text(identity.sizes)}-{identity.backend}-{identity.precision}"
        if identity.device:
            name += f"-{_digest(identity.device)}"
        return self.folder / identity.model / f"{name}.json"

    def _read(self, sidecar: Path) -> Entry | Damaged:
        try:
            if not sidecar.is_file() or sidecar.stat().st_size > _SIDECAR_BYTES:
                return Damaged(sidecar, "the sidecar is damaged: it is too large, or no file")
            entry = _from_json(sidecar, json.loads(sidecar.read_bytes()))
            found = entry.path.stat().st_size
        except FileNotFoundError:
            return Damaged(sidecar, "its file is gone")
        except OSError as exc:
            return Damaged(sidecar, f"cannot read it: {exc.strerror}")
        except _UNREADABLE as exc:
            return Damaged(sidecar, f"the sidecar is damaged: {_line(exc)}")
        if found != entry.bytes:
            return Damaged(sidecar, f"the engine is cut: {found} bytes of {entry.bytes}")
        return entry

    def _write(self, path: Path, data: bytes) -> None:
        draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError as exc:
            raise _cannot_write(path, exc, len(data)) from exc
        finally:
            with suppress(OSError):
                draft.unlink()

    def _sweep(self, entry: Entry) -> None:
        """Delete what older builds of this engine left; the lock is held."""
        stem = entry.sidecar.stem
        engines = entry.sidecar.parent.glob(f"{stem}-*.engine")
        drafts = entry.sidecar.parent.glob(f".{stem}*.draft")
        for path in (*engines, *drafts, entry.sidecar.with_suffix(".kept")):
            if path != entry.path:
                with suppress(OSError):  # open elsewhere (Windows): the next sweep gets it
                    path.unlink()


def _digest(device: Mapping[str, str]) -> str:
    """Name a kind of device: its versions (driver) may change under it, and make it stale."""
    kind = {key: value for key, value in device.items() if key != "driver"}
    return hashlib.sha256(json.dumps(kind, sort_keys=True).encode()).hexdigest()[:8]


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _cannot_write(path: Path, error: OSError, needed: int = 0) -> CacheError:
    if error.errno in _SPACE:
        return CacheError(
            f"no space left in {path.parent} for {needed / 1e6:.1f} MB: free some, run "
            "overlay engines --clean stale, or set OVERLAY_CACHE to another folder"
        )
    return CacheError(
        f"cannot write {path}: {error.strerror or error}; set OVERLAY_CACHE to another folder"
    )


def _to_json(entry: Entry) -> bytes:
    facts = {"format": FORMAT, **asdict(entry)}
    del facts["sidecar"]
    facts["identity"]["sizes"] = [list(size) for size in entry.identity.sizes]
    return json.dumps(facts, indent=1, sort_keys=True).encode()


def _from_json(sidecar: Path, facts: Any) -> Entry:
    """Check every field, as the file may be anyone's.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: a field is missing or wrong.
    """
    if facts["format"] != FORMAT:
        raise ValueError(f"format {facts['format']!r}, this version reads {FORMAT}")
    told = facts["identity"]
    texts = ("model", "model_sha256", "export", "onnx_sha256", "backend", "backend_version")
    identity = Identity(
        **{name: _text(told[name]) for name in texts},
        sizes=tuple((_count(width), _count(height)) for width, height in told["sizes"]),
        precision=_one_of(told["precision"], Precision),
        device={_text(key): _text(value) for key, value in told["device"].items()},
    )
    file = _text(facts["file"])
    if Path(file).name != file or not file.endswith(".engine"):
        raise ValueError(f"it names the file {file!r}")
    return Entry(
        sidecar=sidecar,
        identity=identity,
        reference=_text(facts["reference"]),
        scale=_count(facts["scale"]),
        output=_one_of(facts["output"], Output),
        licence=_text(facts["licence"]),
        file=file,
        sha256=_text(facts["sha256"]),
        bytes=_count(facts["bytes"]),
        built=_text(facts["built"]),
        seconds=float(facts["seconds"]),
        checks=dict(facts["checks"]),
        report=dict(facts["report"]),
        options=dict(facts["options"]),
        note=_text(facts["note"]),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 4096:
        raise TypeError(f"{value!r:.80} is not a text")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 < value < 1 << 40:
        raise TypeError(f"{value!r:.80} is not a count")
    return value


def _one_of(value: Any, kinds: Any) -> Any:
    if value not in get_args(kinds):
        raise ValueError(f"{value!r:.80} is not one of {', '.join(get_args(kinds))}")
    return value


def _line(error: BaseException) -> str:
    """One line for any error of reading."""
    text = f"no field {error}" if isinstance(error, KeyError) else str(error)
    return " ".join(text.split())[:200]
