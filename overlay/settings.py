"""Options: one frozen dataclass, filled from defaults, a file, a profile and the command line.

Each layer overrides the one before it. A field's metadata is all that is known about an option:
the command line, the file's keys and the checks are made from it.
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

from overlay.errors import SettingsError
from overlay.frame import Region, Size
from overlay.hud import Corner, Level

#: Options that say what a whole run is, so that a profile (chosen by the window) cannot set them.
_NOT_IN_PROFILES = frozenset({"title", "wm_class", "pid", "id", "source", "region", "pick"})

#: Names in files and on the command line that differ from the fields'.
_ALIASES = {"window": "title", "class": "wm_class"}


def parse_size(text: str) -> Size:
    """Read `WIDTHxHEIGHT` in pixels, "1920x1080" say."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.strip().lower())
    if not match or not all(1 <= int(n) <= 16384 for n in match.groups()):
        raise ValueError("expected WIDTHxHEIGHT in pixels, each from 1 to 16384, like 1920x1080")
    return Size(int(match[1]), int(match[2]))


def parse_region(text: str) -> Region:
    """Read `WIDTHxHEIGHT+LEFT+TOP` in desktop pixels; LEFT and TOP may be negative."""
    match = re.fullmatch(r"(\d+x\d+)\+(-?\d{1,6})\+(-?\d{1,6})", text.strip().lower())
    if not match:
        raise ValueError("expected WIDTHxHEIGHT+LEFT+TOP, like 480x270+100+50")
    size = parse_size(match[1])
    return Region(int(match[2]), int(match[3]), size.width, size.height)


def parse_rate(text: str) -> float | None:
    """Read frames a second; "max" (as fast as possible) gives None."""
    return None if text == "max" else _number(0.1, 1000.0)(text)


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise ValueError(f"expected a number from {low:g} to {high:g}")
        return value

    return parse


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text, 0)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return value

    return parse


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as exc:
        raise ValueError(f"not a regular expression: {exc}") from exc
    return text


def _source(text: str) -> str:
    name = text.partition(":")[0]
    if name not in (*_CAPTURE, "replay") or (":" in text) != (name == "replay"):
        raise ValueError(
            f"expected one of {', '.join(_CAPTURE)}, replay:PATH or replay:pattern"
            + suggestion(name, _CAPTURE)
        )
    return text


def _option(
    default: Any,
    help_text: str,
    parse: Callable[[str], Any] = str,
    *,
    group: str,
    flag: str | None = None,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
) -> Any:
    meta = dict(help=help_text, parse=parse, group=group, flag=flag, choices=choices)
    return field(default=default, metadata={**meta, "metavar": metavar})


_PRESENT = ("over", "beside", "window", "fullscreen", "offscreen")
_FITS = ("fit", "integer", "fill", "stretch")
_FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")
_CAPTURE = ("auto", "x11", "wgc", "dxcam", "mss")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything `overlay run` can be told. Sizes in physical pixels."""

    title: str | None = _option(
        None, "window whose title matches", _pattern, group="source", flag="--window", metavar="RE"
    )
    wm_class: str | None = _option(
        None, "window whose class matches", _pattern, group="source", flag="--class", metavar="RE"
    )
    pid: int | None = _option(
        None, "window of this process", _whole(1, 1 << 31), group="source", metavar="N"
    )
    id: int | None = _option(
        None, "window with this id or HWND (decimal or 0x…)", _whole(1, 1 << 63), group="source",
        metavar="N",
    )  # fmt: skip
    pick: bool = _option(False, "pick the window with a click", group="source")
    source: str = _option(
        "auto", f"capture back end ({', '.join(_CAPTURE)}) or replay:PATH, replay:pattern",
        _source, group="source", metavar="NAME",
    )  # fmt: skip
    region: Region | None = _option(
        None, "part of the desktop, for mss and dxcam", parse_region, group="source",
        metavar="WxH+X+Y",
    )  # fmt: skip
    rate: float | None = _option(
        60.0, "rate of replay and mss in Hz, or max", parse_rate, group="source", metavar="HZ"
    )
    capture_cap: float = _option(
        240.0, "capture a window at most this often", _number(1, 10000), group="source",
        metavar="HZ",
    )  # fmt: skip
    once: bool = _option(False, "play a replay once instead of looping", group="source")

    model: str = _option(
        "default", "model or shader; see overlay doctor", group="upscaler", metavar="NAME"
    )
    backend: str = _option("auto", "back end of the model", group="upscaler", metavar="NAME")
    build: bool = _option(
        False, "build a missing engine in the background; the plain upscale shows until then",
        group="upscaler",
    )  # fmt: skip
    cycle: str = _option(
        "default,fsr1,bicubic,bilinear", "upscalers that the hotkey goes through",
        group="upscaler", metavar="A,B,…",
    )  # fmt: skip
    threads: int = _option(
        0, "threads of a CPU model, 0 = all cores", _whole(0, 256), group="upscaler", metavar="N"
    )

    present: str = _option("over", "where the picture goes", group="picture", choices=_PRESENT)
    output: Size | None = _option(
        None, "size of the picture", parse_size, group="picture", metavar="WxH"
    )
    scale: float | None = _option(
        None, "size of the picture as a multiple of the source's", _number(0.25, 16),
        group="picture", metavar="X",
    )  # fmt: skip
    monitor: int | None = _option(
        None, "monitor, from 0; the game's own if not given", _whole(0, 63), group="picture",
        metavar="N",
    )  # fmt: skip
    fit: str = _option("fit", "how the picture fills the surface", group="picture", choices=_FITS)
    filter: str = _option(
        "bicubic", "filter of the last, non-integer step", group="picture", choices=_FILTERS
    )
    vsync: bool = _option(False, "wait for the display when swapping", group="picture")
    fps_cap: float | None = _option(
        None, "present at most this often", _number(1, 1000), group="picture", metavar="HZ"
    )
    pointer: bool = _option(
        True, "confine, hide and magnify the pointer over a larger picture", group="picture"
    )
    exclude_from_capture: bool = _option(
        False, "hide the overlay from recorders (Windows)", group="picture"
    )

    hud: str = _option("compact", "what the HUD shows", group="hud", choices=get_args(Level))
    hud_corner: str = _option(
        "top-left", "where the HUD stands", group="hud", choices=get_args(Corner)
    )

    trace: Path | None = _option(
        None, "write a row per captured frame; an existing file is replaced", Path, group="trace",
        metavar="CSV",
    )  # fmt: skip
    flight_late_ms: float | None = _option(
        None, "save the last 30 s when a frame is later than this", _number(1, 10000),
        group="trace", metavar="MS",
    )  # fmt: skip
    screenshots: Path | None = _option(
        None, "folder for the screenshot hotkey", Path, group="trace", metavar="DIR"
    )

    hotkeys: Mapping[str, str] = field(default_factory=dict, metadata={"group": "hotkeys"})


def add_arguments(parser: argparse.ArgumentParser, groups: Sequence[str] | None = None) -> None:
    """Add the options to a parser; an option not given leaves no attribute behind."""
    made: dict[str, Any] = {}
    for spec in _options():
        name = spec.metadata["group"]
        if groups is not None and name not in groups:
            continue
        group = made.setdefault(name, None) or parser.add_argument_group(name)
        made[name] = group
        flag = spec.metadata["flag"] or "--" + spec.name.replace("_", "-")
        text = spec.metadata["help"].replace("%", "%%")
        common: dict[str, Any] = {"dest": spec.name, "default": argparse.SUPPRESS}
        if isinstance(spec.default, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text, **common)
            continue
        if spec.default is not None:
            text += f" (default: {spec.default})"
        choices = spec.metadata["choices"]
        group.add_argument(
            flag, choices=choices, metavar=spec.metadata["metavar"], help=text, **common
        )


def from_arguments(arguments: argparse.Namespace) -> Settings:
    """Check what the command line said, alone (without a file)."""
    return _apply(Settings(), _given(arguments), "command line")


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    names = {spec.name for spec in _options()}
    return {key: value for key, value in vars(arguments).items() if key in names}


@dataclass(frozen=True, slots=True)
class Configuration:
    """What was asked for, before the game's window (and so its profile) is known."""

    base: Settings
    profiles: tuple[tuple[str, dict[str, Any]], ...]
    given: dict[str, Any]

    @classmethod
    def load(cls, path: Path | None, arguments: argparse.Namespace) -> Configuration:
        """Read the file, if any, and the command line, and check every value of both.

        Raises:
            SettingsError: unreadable file, unknown key (with a suggestion) or bad value.
        """
        table = _read(path) if path else {}
        profiles = table.pop("profile", {})
        if not isinstance(profiles, dict):
            raise SettingsError(f'{path}: profiles are written [profile."regular expression"]')
        given = _given(arguments)
        base = _apply(Settings(), table, str(path))
        rows = []
        for pattern, values in profiles.items():
            where = f'{path}: profile "{pattern}"'
            _check_profile(pattern, values, where)
            _apply(base, values, where)
            rows.append((pattern, values))
        found = cls(base, tuple(rows), given)
        found.settings("")
        return found

    def settings(self, window: str) -> Settings:
        """Give the settings for a window whose title or class is `window`.

        The first profile that matches counts.
        """
        settings = self.base
        for pattern, values in self.profiles:
            if re.search(pattern, window, re.IGNORECASE):
                settings = _apply(settings, values, f'profile "{pattern}"')
                break
        return _apply(settings, self.given, "command line")


def _check_profile(pattern: str, values: object, where: str) -> None:
    try:
        re.compile(pattern)
    except re.error as exc:
        raise SettingsError(f"{where}: not a regular expression: {exc}") from exc
    if not isinstance(values, dict):
        raise SettingsError(f'{where}: write [profile."{pattern}"] and options below it')
    for key in values:
        if _ALIASES.get(key, key.replace("-", "_")) in _NOT_IN_PROFILES:
            raise SettingsError(f"{where}: {key} chooses the window; a profile cannot set it")


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(1 << 20)
        return tomllib.loads(data.decode("utf-8"))
    except OSError as exc:
        raise SettingsError(f"cannot read the configuration {path}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path} is not valid TOML: {exc}") from exc


def _apply(settings: Settings, values: Mapping[str, Any], where: str) -> Settings:
    known = {spec.name: spec for spec in fields(Settings)}
    changes: dict[str, Any] = {}
    for key, value in values.items():
        name = _ALIASES.get(key, key.replace("-", "_"))
        if name not in known:
            raise SettingsError(
                f"{where}: unknown option {key!r}{suggestion(key, [*known, *_ALIASES])}"
            )
        if name == "hotkeys":
            changes[name] = {**settings.hotkeys, **_hotkeys(value, where)}
        else:
            changes[name] = _value(known[name], value, f"{where}: {key}")
    return replace(settings, **changes)


def suggestion(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """Give "; did you mean 'x'?" for the closest known word, or nothing."""
    close = difflib.get_close_matches(word.replace("-", "_"), list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _hotkeys(value: object, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(keys, str) for keys in value.values()):
        raise SettingsError(f'{where}: hotkeys are written as a table, [hotkeys] quit = "ctrl+q"')
    return value


def _value(spec: Field[Any], value: Any, where: str) -> Any:
    if isinstance(spec.default, bool):
        if not isinstance(value, bool):
            raise SettingsError(f"{where}: expected true or false, not {value!r}")
        return value
    if value is None:
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise SettingsError(f"{where}: {value!r} is of the wrong type")
    choices = spec.metadata["choices"]
    if choices and value not in choices:
        raise SettingsError(
            f"{where}: {value!r} is not one of {', '.join(choices)}"
            + suggestion(str(value), choices)
        )
    try:
        return spec.metadata["parse"](str(value))
    except ValueError as exc:
        raise SettingsError(f"{where}: {value!r}: {exc}") from exc


def _options() -> list[Field[Any]]:
    return [spec for spec in fields(Settings) if spec.name != "hotkeys"]
