"""How a server is set up: defaults, then a TOML file, then the environment, then options.

Keys of the file are the names of the fields; variables are `OVERLAY_SERVICE_` and the name in
capitals. Lists are separated by commas in variables.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from overlay.errors import SettingsError
from overlay.settings import suggestion

PREFIX = "OVERLAY_SERVICE_"
#: An API key with fewer characters could be guessed.
MIN_KEY = 16


@dataclass(frozen=True, slots=True)
class Settings:
    """One server's settings.

    Attributes:
        host, port: where it listens; port 0 = a free one.
        api_keys: one of them must come with a request; none = open to all who reach the port.
        cors_origins: web pages of these origins may use it; none of others.
        backend: what runs models: "local"; "triton", a Triton server; "resize" only looks like it.
        triton: host:port of that server's gRPC.
        model: of requests that name none.
        models: that may be asked for; () = all that are on this machine.
        weights: folder of users' weights files, looked into first.
        device: of PyTorch: "auto", "cpu", "cuda".
        memory_mib: of loaded models together.
        workers: pictures in work at once.
        queue: requests that may wait for a worker; more get 429.
        uploads: requests whose bodies are read at once; more get 429.
        streams: open WebSockets.
        batch: pictures of one batch.
        body_mib: largest body.
        stall_s: longest pause within a body.
        body_s: longest time for a whole body.
        request_s: longest time from the body's end to the answer.
        idle_s: a WebSocket without a frame for so long is closed.
        tile: width and height of a net's tiles in source pixels.
        threads: of a net on the CPU; 0 = all cores.
        warm: open `model` at the start.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    cors_origins: tuple[str, ...] = ()
    backend: str = "local"
    triton: str = "127.0.0.1:8001"
    model: str = "default"
    models: tuple[str, ...] = ()
    weights: Path | None = None
    device: str = "auto"
    memory_mib: int = 2048
    workers: int = 2
    queue: int = 16
    uploads: int = 64
    streams: int = 4
    batch: int = 16
    body_mib: int = 32
    stall_s: float = 10.0
    body_s: float = 60.0
    request_s: float = 120.0
    idle_s: float = 60.0
    tile: int = 256
    threads: int = 0
    warm: bool = True

    def __post_init__(self) -> None:
        for name in ("memory_mib", "workers", "uploads", "streams", "batch", "body_mib", "tile"):
            _at_least(name, getattr(self, name), 1)
        for name in ("port", "queue", "threads"):
            _at_least(name, getattr(self, name), 0)
        for name in ("stall_s", "body_s", "request_s", "idle_s"):
            _at_least(name, getattr(self, name), 0.01)
        if self.port > 65535:
            raise SettingsError(f"port is 65535 at most, not {self.port}")
        if any(len(key) < MIN_KEY or not key.isascii() for key in self.api_keys):
            raise SettingsError(f"api_keys: a key has {MIN_KEY} ASCII characters or more")
        if "*" in self.cors_origins:
            raise SettingsError("cors_origins: name the origins, https://example.org say, not *")

    @property
    def body_bytes(self) -> int:
        """The largest body in bytes."""
        return self.body_mib << 20

    @property
    def local_only(self) -> bool:
        """Whether only this machine can reach the port."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @classmethod
    def load(
        cls, file: Path | None = None, environ: Mapping[str, str] | None = None, **options: object
    ) -> Settings:
        """Read the settings.

        Args:
            file: TOML, or None.
            environ: variables; None = this process's.
            options: of the command line; None = not given.
        Raises:
            SettingsError: a name is unknown or a value cannot be.
        """
        found: dict[str, object] = dict(_table(file)) if file else {}
        environ = os.environ if environ is None else environ
        for name, value in environ.items():
            if name.startswith(PREFIX):
                found[name.removeprefix(PREFIX).lower()] = value
        found |= {name: value for name, value in options.items() if value is not None}
        known = {one.name: one for one in dataclasses.fields(cls)}
        for name in found:
            if name not in known:
                raise SettingsError(f"unknown setting {name!r}{suggestion(name, tuple(known))}")
        typed: dict[str, Any] = {
            name: _typed(name, known[name].type, found[name]) for name in found
        }
        return cls(**typed)


def _at_least(name: str, value: float, least: float) -> None:
    if not least <= value < float("inf"):
        raise SettingsError(f"{name} is {least} or more, not {value}")


def _table(file: Path) -> dict[str, object]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise SettingsError(f"cannot read {file}: {exc.strerror}") from exc
    except ValueError as exc:  # TOMLDecodeError, or not UTF-8
        raise SettingsError(f"{file} is no TOML: {exc}") from exc


def _typed(name: str, kind: object, value: object) -> object:
    """Make of a value what a field holds.

    Raises:
        SettingsError: it cannot be that.
    """
    secret = name == "api_keys"
    wrong = SettingsError(f"{name}: {'...' if secret else repr(value)} is no {kind}")
    text = value if isinstance(value, str) else None
    match kind:
        case "str" if text is not None:
            return text
        case "Path | None" if isinstance(value, str | Path):
            return Path(value) if str(value) else None
        case "bool" if isinstance(value, bool):
            return value
        case "bool" if text is not None and text.lower() in ("1", "true", "0", "false"):
            return text.lower() in ("1", "true")
        case "tuple[str, ...]" if text is not None:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        case "tuple[str, ...]" if isinstance(value, list | tuple):
            if all(isinstance(part, str) for part in value):
                return tuple(value)
        case "int" | "float":
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                raise wrong
            try:
                return int(str(value)) if kind == "int" else float(value)
            except ValueError:
                raise wrong from None
    raise wrong
