"""Names of keys, and what each window system calls them: pure, the same everywhere."""

from __future__ import annotations

import difflib
import string
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

Modifier = Literal["ctrl", "alt", "shift", "super"]


class Codes(NamedTuple):
    """One key: X11 keysym, Windows virtual-key code, GLFW key."""

    keysym: int
    vk: int
    glfw: int


def _codes() -> dict[str, Codes]:
    codes = {c: Codes(ord(c), ord(c.upper()), ord(c.upper())) for c in string.ascii_lowercase}
    codes |= {d: Codes(ord(d), ord(d), ord(d)) for d in string.digits}
    codes |= {f"f{i}": Codes(0xFFBD + i, 0x6F + i, 289 + i) for i in range(1, 25)}
    codes |= {f"num{i}": Codes(0xFFB0 + i, 0x60 + i, 320 + i) for i in range(10)}
    codes |= {
        "space": Codes(0x20, 0x20, 32),
        "tab": Codes(0xFF09, 0x09, 258),
        "enter": Codes(0xFF0D, 0x0D, 257),
        "escape": Codes(0xFF1B, 0x1B, 256),
        "backspace": Codes(0xFF08, 0x08, 259),
        "insert": Codes(0xFF63, 0x2D, 260),
        "delete": Codes(0xFFFF, 0x2E, 261),
        "home": Codes(0xFF50, 0x24, 268),
        "end": Codes(0xFF57, 0x23, 269),
        "pageup": Codes(0xFF55, 0x21, 266),
        "pagedown": Codes(0xFF56, 0x22, 267),
        "left": Codes(0xFF51, 0x25, 263),
        "up": Codes(0xFF52, 0x26, 265),
        "right": Codes(0xFF53, 0x27, 262),
        "down": Codes(0xFF54, 0x28, 264),
        "print": Codes(0xFF61, 0x2C, 283),
        "pause": Codes(0xFF13, 0x13, 284),
        "comma": Codes(0x2C, 0xBC, 44),
        "minus": Codes(0x2D, 0xBD, 45),
        "period": Codes(0x2E, 0xBE, 46),
        "slash": Codes(0x2F, 0xBF, 47),
        "semicolon": Codes(0x3B, 0xBA, 59),
        "equal": Codes(0x3D, 0xBB, 61),
        "grave": Codes(0x60, 0xC0, 96),
    }
    return codes


CODES = _codes()

_SAME_KEY = {"esc": "escape", "return": "enter", "del": "delete", "ins": "insert"}
_SAME_KEY |= {"pgup": "pageup", "pgdn": "pagedown", "printscreen": "print"}
_SAME_MODIFIER: dict[str, Modifier] = {"control": "ctrl", "win": "super", "meta": "super"}
#: Keys that nobody types, so that they need no modifier.
_ALONE = {f"f{i}" for i in range(1, 25)} | {"insert", "print", "pause"}


@dataclass(frozen=True, slots=True)
class Key:
    """A key with its modifiers, "ctrl+alt+u" say."""

    modifiers: frozenset[Modifier]
    name: str

    @property
    def codes(self) -> Codes:
        return CODES[self.name]

    def __str__(self) -> str:
        order = [modifier for modifier in get_args(Modifier) if modifier in self.modifiers]
        return "+".join([*order, self.name])


def parse_key(text: str) -> Key:
    """Read "ctrl+alt+u"; case and blanks do not matter.

    Raises:
        ValueError: what is wrong with it and what was meant, without `text`.
    """
    *before, name = [part.strip().lower() for part in text.split("+")]
    modifiers: set[Modifier] = set()
    known: dict[str, Modifier] = {m: m for m in get_args(Modifier)} | _SAME_MODIFIER
    for word in before:
        if word not in known:
            raise ValueError(f"{word!r} is not a modifier{_meant(word, list(known))}")
        modifiers.add(known[word])
    name = _SAME_KEY.get(name, name)
    if name in known:
        raise ValueError("a key is missing after the modifiers, as in ctrl+alt+u")
    if name not in CODES:
        raise ValueError(f"{name!r} is not a key{_meant(name, [*CODES, *_SAME_KEY])}")
    if not modifiers - {"shift"} and name not in _ALONE:
        raise ValueError(f"this would take {name!r} from the game; add ctrl, alt or super")
    return Key(frozenset(modifiers), name)


def _meant(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {close[0]!r}?" if close else "; a hotkey looks like ctrl+alt+u or f9"
