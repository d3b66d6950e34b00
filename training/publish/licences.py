"""Which licences of games' pictures let us pass them on."""

from __future__ import annotations

import re

#: SPDX identifiers whose terms let anyone pass copies on; not those that forbid selling (NC) or
#: changing (ND), nor what is unknown.
_FREE = re.compile(
    r"(0BSD|AGPL-3\.0|Apache-2\.0|Artistic-2\.0|BSD-[23]-Clause|BSL-1\.0|CC0-1\.0"
    r"|CC-BY(-SA)?-[1-4]\.[05]|FAL-1\.3|GPL-[23]\.0|ISC|L?GPL-[23]\.[01]|MIT|MPL-2\.0|OFL-1\.1"
    r"|Unlicense|WTFPL|Zlib)(-or-later|-only|\+)?"
)
#: Words of a note that take back what an identifier grants.
_BUT = re.compile(
    r"\b(no|not|non|NC|ND|except\w*|without|unless|proprietary|personal|private|unknown)\b"
    r"|noncommercial",
    re.IGNORECASE,
)
_NOTE = re.compile(r"\([^()]*\)")
_BETWEEN = re.compile(r"\s+(?:AND|and|OR|or|WITH)\s+|[,;/]")


def identifiers(licence: str) -> list[str]:
    """Give the parts of a manifest's licence: "GPL-2.0-or-later (OpenArena)" has one."""
    parts = _BETWEEN.split(_NOTE.sub(" ", licence))
    return [part.strip() for part in parts if part.strip()]


def is_free(licence: str) -> bool:
    """Whether pictures under it may be passed on: every part must say so, and no note but."""
    parts = identifiers(licence)
    limited = any(map(_BUT.search, _NOTE.findall(licence)))
    return bool(parts) and not limited and all(map(_FREE.fullmatch, parts))


def hub_names(licences: list[str]) -> list[str]:
    """Name licences as Hugging Face does: lower case, no -only or -or-later; "other" if unknown."""
    found = set()
    for licence in licences:
        for part in identifiers(licence):
            free = _FREE.fullmatch(part)
            found.add(free[1].lower() if free else "other")
    return sorted(found) or ["other"]


def kaggle_name(licences: list[str]) -> str:
    """Name the one licence that Kaggle wants; "other" for several, or one it does not list."""
    known = {
        "cc0-1.0": "CC0-1.0",
        "cc-by-4.0": "CC-BY-4.0",
        "cc-by-sa-4.0": "CC-BY-SA-4.0",
        "gpl-2.0": "GPL-2",
    }
    names = hub_names(licences)
    return known.get(names[0], "other") if len(names) == 1 else "other"
