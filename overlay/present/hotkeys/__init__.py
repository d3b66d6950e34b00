"""Global hotkeys: they work while the game has the keyboard, and never reach it.

Back ends are one module each: `x11` and `win32`. Imported only by `open_hotkeys`.
"""

from __future__ import annotations

import difflib
import sys
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from typing import get_args

from overlay.closing import Closing
from overlay.errors import SettingsError
from overlay.present import Action, Command
from overlay.present.hotkeys.keys import Key, parse_key

#: Keys in use where the settings name no other.
DEFAULTS: Mapping[Action, str] = {
    "toggle": "ctrl+alt+o",
    "hud": "ctrl+alt+h",
    "next": "ctrl+alt+n",
    "source": "ctrl+alt+c",
    "screenshot": "ctrl+alt+s",
    "flight": "ctrl+alt+f",
    "pointer": "ctrl+alt+m",
    "quit": "ctrl+alt+q",
}

#: Actions that last while the key is held, and so report its release too.
HELD: frozenset[Action] = frozenset({"source"})


def bindings(chosen: Mapping[str, str]) -> dict[Action, Key]:
    """Read the settings' hotkeys over the defaults.

    Args:
        chosen: action -> key as in "ctrl+alt+u"; "" or "none" turns an action's key off.

    Raises:
        SettingsError: an unknown action or key, or one key for two actions.
    """
    actions = get_args(Action)
    for name in chosen:
        if name not in actions:
            close = difflib.get_close_matches(name, actions, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(actions)}"
            raise SettingsError(f"hotkeys: there is no action {name!r}{hint}")
    result: dict[Action, Key] = {}
    for action, default in DEFAULTS.items():
        text = chosen.get(action, default)
        if text.strip().lower() in ("", "none"):
            continue
        try:
            key = parse_key(text)
        except ValueError as exc:
            raise SettingsError(f"hotkeys: {action} = {text!r}: {exc}") from exc
        for other, taken in result.items():
            if taken == key:
                raise SettingsError(
                    f"hotkeys: {key} is given to both {other!r} and {action!r}; change one,"
                    ' or turn one off with ""'
                )
        result[action] = key
    return result


class Hotkeys(Closing):
    """Keys grabbed from the whole desktop.

    A key that another program holds is reported in one log line and left out.
    """

    #: What works and what was already taken; filled by the constructor.
    bound: Mapping[Action, Key]
    taken: Mapping[Action, Key]

    def __init__(self, wake: Callable[[], None]) -> None:
        self._pending: deque[Command] = deque()  # append and popleft are atomic
        self._wake = wake

    def events(self) -> list[Command]:
        """Take what was pressed since the last call, in order; on any thread.

        Auto-repeat is left out. Actions of `HELD` report the release as well.
        """
        found = []
        while self._pending:
            found.append(self._pending.popleft())
        return found

    def push(self, command: Command) -> None:
        """Hand on a command and call `wake`; on the back end's thread."""
        self._pending.append(command)
        self._wake()

    @abstractmethod
    def close(self) -> None:
        """Give the keys back; idempotent."""


def open_hotkeys(keys: Mapping[Action, Key], wake: Callable[[], None]) -> Hotkeys:
    """Grab the keys of `bindings` from the desktop.

    Args:
        keys: what to grab for which action.
        wake: called on another thread after each new command.

    Raises:
        DisplayLost: there is no X server.
    """
    if sys.platform == "win32":
        from overlay.present.hotkeys.win32 import Win32Hotkeys

        return Win32Hotkeys(keys, wake)
    else:
        from overlay.present.hotkeys.x11 import X11Hotkeys

        return X11Hotkeys(keys, wake)
