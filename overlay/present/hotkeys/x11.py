"""Hotkeys on X11: passive grabs on the root window, on a connection of their own.

The server gives the keys back when the connection ends, however the process ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import xcffib
import xcffib.xkb as xkb
import xcffib.xproto as xproto

from overlay.present import Action, Command
from overlay.present.hotkeys import HELD, Hotkeys
from overlay.present.hotkeys.keys import Key, Modifier
from overlay.present.xclient import XClient

log = logging.getLogger(__name__)

_NUM_LOCK, _SCROLL_LOCK, _SUPER_L, _ALT_L = 0xFF7F, 0xFF14, 0xFFEB, 0xFFE9
_CAPS_LOCK_MASK = 2
_USE_CORE_KEYBOARD = 0x100
_DETECTABLE_AUTO_REPEAT = 1


class _Grabs(XClient):
    """The connection: grabs keys and tells which were pressed."""

    def __init__(self, owner: X11Hotkeys, keys: Mapping[Action, Key]) -> None:
        super().__init__("hotkeys")
        self._owner = owner
        self._keys = keys
        self._actions: dict[tuple[int, int], Action] = {}  # (keycode, modifiers) ->
        self._held: dict[int, Action] = {}  # keycode ->
        self._locks = 0
        # Without it the server says "released" and "pressed" again and again for a held key.
        keyboard: Any = self.connection(xkb.key)
        keyboard.UseExtension(1, 0).reply()
        flag = _DETECTABLE_AUTO_REPEAT
        keyboard.PerClientFlags(_USE_CORE_KEYBOARD, flag, flag, 0, 0, 0).reply()

    def grab_all(self) -> tuple[dict[Action, Key], dict[Action, Key]]:
        """Grab every key; give what was had and what was taken already."""
        keycodes, masks = self._keyboard()
        self._locks = masks["locks"]
        bound, taken = {}, {}
        for action, key in self._keys.items():
            mask = sum(masks[modifier] for modifier in key.modifiers)
            codes = keycodes.get(key.codes.keysym, [])
            if not codes:
                log.warning("hotkey %s (%s): this keyboard has no such key", key, action)
                taken[action] = key
            elif all([self._grab(code, mask) for code in codes]):
                bound[action] = key
                self._actions |= {(code, mask): action for code in codes}
            else:
                log.warning(
                    "hotkey %s (%s) is taken by another program; choose another under [hotkeys]",
                    key,
                    action,
                )
                taken[action] = key
                for code in codes:
                    self._ungrab(code, mask)
        self.connection.flush()
        return bound, taken

    def _keyboard(self) -> tuple[dict[int, list[int]], dict[Modifier | str, int]]:
        """Read keysym -> keycodes and modifier -> mask from the server."""
        first, last = self.setup.min_keycode, self.setup.max_keycode
        table = self.core.GetKeyboardMapping(first, last - first + 1).reply()
        width = table.keysyms_per_keycode
        keycodes: dict[int, list[int]] = {}
        symbols: dict[int, list[int]] = {}
        for index, symbol in enumerate(table.keysyms):
            code = first + index // width
            symbols.setdefault(code, []).append(symbol)
            # Only what the key gives unmodified, in the first layout.
            if symbol and index % width == 0:
                keycodes.setdefault(symbol, []).append(code)
        reply = self.core.GetModifierMapping().reply()
        per, codes = reply.keycodes_per_modifier, list(reply.keycodes)

        def mask_of(symbol: int, default: int) -> int:
            for bit in range(8):
                for code in codes[bit * per : (bit + 1) * per]:
                    if code and symbol in symbols.get(code, []):
                        return 1 << bit
            return default

        masks: dict[Modifier | str, int] = {"shift": 1, "ctrl": 4}
        masks["alt"] = mask_of(_ALT_L, 8)
        masks["super"] = mask_of(_SUPER_L, 64)
        masks["locks"] = _CAPS_LOCK_MASK | mask_of(_NUM_LOCK, 0) | mask_of(_SCROLL_LOCK, 0)
        return keycodes, masks

    def _lock_states(self, mask: int) -> Iterator[int]:
        """List a modifier mask with every state of the lock keys."""
        extra = locks = self._locks & ~mask
        while True:
            yield mask | extra
            if not extra:
                return
            extra = (extra - 1) & locks  # the next smaller subset

    def _grab(self, code: int, mask: int) -> bool:
        mode = xproto.GrabMode.Async
        cookies = [
            self.core.GrabKeyChecked(False, self.root, state, code, mode, mode)
            for state in self._lock_states(mask)
        ]
        granted = True
        for cookie in cookies:
            try:
                cookie.check()
            except xcffib.Error:
                granted = False
        return granted

    def _ungrab(self, code: int, mask: int) -> None:
        for state in self._lock_states(mask):
            self.core.UngrabKey(code, self.root, state)

    def handle(self, event: Any) -> None:
        if isinstance(event, xproto.KeyReleaseEvent):
            action = self._held.pop(event.detail, None)
            if action in HELD:
                self._owner.push(Command(action, pressed=False))
        elif isinstance(event, xproto.KeyPressEvent):
            mask = event.state & 0xFF & ~self._locks
            action = self._actions.get((event.detail, mask))
            if action is not None and event.detail not in self._held:
                self._held[event.detail] = action
                self._owner.push(Command(action))
        elif (
            isinstance(event, xproto.MappingNotifyEvent) and event.request != xproto.Mapping.Pointer
        ):
            log.info("the keyboard layout changed; grabbing the hotkeys again")
            for code, mask in self._actions:
                self._ungrab(code, mask)
            self._actions.clear()
            self._owner.bound, self._owner.taken = self.grab_all()


class X11Hotkeys(Hotkeys):
    """Hotkeys of one X server.

    Raises:
        DisplayLost: there is no X server.
    """

    def __init__(self, keys: Mapping[Action, Key], wake: Callable[[], None]) -> None:
        super().__init__(wake)
        self._client = _Grabs(self, keys)
        self.bound, self.taken = self._client.grab_all()
        self._client.start()

    def close(self) -> None:
        self._client.close()
