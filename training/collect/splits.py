"""Which maps are trained on, validated on and tested on: the one place that decides.

Frames are never split; a map, a track or a seed goes into one split with all that is made on it.
"""

from __future__ import annotations

from typing import Literal

from training.errors import DataError

Split = Literal["train", "val", "test"]

SPLITS: dict[str, dict[Split, tuple[str, ...]]] = {
    "openarena": {
        "train": (
            "am_galmevish2",
            "am_thornish",
            "czest1dm",
            "hydronex2",
            "islanddm",
            "kaos2",
            "oa_ctf4ish",
            "oa_dm1",
            "oa_dm4",
            "oa_minia",
            "oa_rpg3dm2",
            "oa_shine",
            "oacmpdm3",
            "oasago2",
            "sleekgrinder",
            "wrackdm17",
        ),
        "val": ("aggressor", "ce1m7", "oa_dm6", "oacmpdm8"),
    },
    "supertuxkart": {
        "train": (
            "abyss",
            "black_forest",
            "cocoa_temple",
            "cornfield_crossing",
            "fortmagma",
            "gran_paradiso_island",
            "lighthouse",
            "mines",
            "minigolf",
            "olivermath",
            "ravenbridge_mansion",
            "sandtrack",
            "scotland",
            "snowmountain",
            "snowtuxpeak",
            "volcano_island",
            "xr591",
        ),
        "val": ("candela_city", "hacienda", "stk_enterprise", "zengarden"),
    },
    "freedoom": {
        "test": ("MAP01", "MAP07", "MAP15", "MAP20", "E1M2", "E2M4", "E3M3", "E4M1"),
    },
    "minetest": {"test": ("seed1", "seed2", "seed3", "seed4", "seed5")},
    "raycaster": {"train": tuple(f"seed{number}" for number in range(1, 9))},
}


def maps_of(game: str) -> dict[str, Split]:
    """Give {map: split} of a game, in the table's order."""
    return {name: split for split, names in SPLITS[game].items() for name in names}


def split_of(game: str, map_name: str) -> Split:
    """Give the split of a map.

    Raises:
        DataError: the table does not know the map.
    """
    try:
        return maps_of(game)[map_name]
    except KeyError:
        raise DataError(
            f"{game}'s {map_name!r} is in no split; add it to training/collect/splits.py"
        ) from None
