"""Collectors: each makes one game render the same frames at several sizes.

`runner` is the seam, one module a game implements it; `splits` says what is trained on; `collect`
renders, `align` judges, `store` keeps; `own` takes what the user has already.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from training.errors import DataError

if TYPE_CHECKING:
    from training.collect.runner import Runner

#: name: (module, class)
RUNNERS = {
    "openarena": ("training.collect.openarena", "OpenArena"),
    "supertuxkart": ("training.collect.supertuxkart", "SuperTuxKart"),
    "freedoom": ("training.collect.freedoom", "Freedoom"),
    "minetest": ("training.collect.minetest", "Minetest"),
    "raycaster": ("training.collect.raycaster", "Raycaster"),
}


def open_runner(name: str) -> Runner:
    """Give the game of this name.

    Raises:
        DataError: there is none.
    """
    if name not in RUNNERS:
        raise DataError(f"no game {name!r}; there are {', '.join(RUNNERS)}")
    module, kind = RUNNERS[name]
    runner: Runner = getattr(import_module(module), kind)()
    return runner
