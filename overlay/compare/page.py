"""Comparisons as one HTML page that needs nothing else: pictures inside, nothing is loaded.

Pairs are added one after the other, and only their encoded pictures are kept.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
from collections.abc import Sequence
from html import escape
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from overlay.compare.measure import Comparison, heat
from overlay.compare.report import cells, numbers
from overlay.compare.script import SCRIPT, STYLE
from overlay.compare.sheet import HEAT, eight

log = logging.getLogger(__name__)

#: Larger pages are warned of: browsers are slow to open them.
WARN_BYTES = 64 << 20
#: Pages do not become larger; pairs beyond it have figures only.
MAX_BYTES = 256 << 20

_KEYS = (
    "<kbd>←</kbd> <kbd>→</kbd> move the line, with <kbd>Shift</kbd> further; <kbd>0</kbd> fits, "
    "<kbd>1</kbd> <kbd>2</kbd> <kbd>4</kbd> <kbd>8</kbd> enlarge; <kbd>d</kbd> shows the "
    "difference; <kbd>[</kbd> <kbd>]</kbd> change the pair. A click moves the line, dragging "
    "moves the picture."
)


class Page:
    """A page in the making.

    Args:
        title: of the page.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._blocks: list[str] = []
        self._options: list[str] = []
        self._rows: list[tuple[str, str]] = []
        self._pairs = 0
        self._size = 0
        #: Names of the pairs whose pictures had no room.
        self.left_out: list[str] = []

    def add(self, found: Comparison) -> None:
        """Add a pair; of one that has no room, the figures."""
        name = f"p{self._pairs}"
        self._pairs += 1
        block = _block(found)
        fits = self._size + len(block) <= MAX_BYTES
        if fits:
            self._size += len(block)
            self._blocks.append(
                f'<script type="application/json" data-pair="{name}">{block}</script>\n'
            )
            number = len(self._options)
            self._options.append(f'<option value="{number}">{escape(found.name)}</option>')
        else:
            self.left_out.append(found.name)
        self._rows.append(_rows(found, name if fits else ""))

    def html(self, averages: Sequence[tuple[str, Sequence[str]]], notes: Sequence[str]) -> bytes:
        """Give the page, UTF-8.

        Args:
            averages: more rows for the table, what and its figures.
            notes: a paragraph each, below the table.
        """
        if self._size > WARN_BYTES:
            log.warning("the page has %d MiB, browsers will be slow", self._size >> 20)
        parts = [_head(self._title), _viewer("".join(self._options)), _TABLE]
        for heading, rows in self._rows:
            parts += [heading, rows] if self._pairs > 1 else [rows]
        for name, values in averages:
            parts.append(
                f'<tr><td class="word" colspan="2">{escape(name)}</td>{_cells(values)}</tr>'
            )
        parts.append("</table>")
        parts += [f'<p class="soft">{escape(note)}</p>' for note in notes]
        parts.append(f'<p class="soft">{_KEYS}</p></footer>\n')
        parts += self._blocks
        parts.append(f"<script>{SCRIPT}</script></body></html>\n")
        return "".join(parts).encode()


# --- pictures ------------------------------------------------------------------------------------


def _block(found: Comparison) -> str:
    """Give what the script needs of a pair, as JSON that cannot end the element it is in."""
    data: dict[str, Any] = {
        "size": found.size,
        "end": found.end,
        "beyond": found.beyond or len(found.layers) > 2,  # A and B may be further apart
        "pictures": [
            {"name": layer.label, "about": layer.about, "data": _png(eight(layer))}
            for layer in found.layers
        ],
        "maps": {
            f"{one}-{other}": _png(heat(found.layers[one], found.layers[other], found.end), True)
            for one, other in combinations(range(len(found.layers)), 2)
        },
    }
    return json.dumps(data).replace("<", "\\u003c")


def _png(pixels: NDArray[np.uint8], coloured: bool = False) -> str:
    """Encode as a data URI; a heat map, (H, W), with its colours."""
    image = Image.fromarray(pixels)
    if coloured:
        image = image.convert("P")
        image.putpalette(HEAT.tobytes())
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# --- the document --------------------------------------------------------------------------------


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def _head(title: str) -> str:
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(STYLE)}; "
        f"script-src {_hash(SCRIPT)}; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><header><h1>{escape(title)}</h1><noscript>The pictures need scripts, which are "
        "off here; the figures are below.</noscript></header>\n"
    )


def _viewer(options: str) -> str:
    zooms = "".join(
        f'<button type="button" data-zoom="{zoom}" aria-pressed="false">{text}</button>'
        for zoom, text in ((0, "fit"), (1, "1:1"), (2, "2x"), (4, "4x"), (8, "8x"))
    )
    legend = _png(np.arange(256, dtype=np.uint8)[None], True)
    return f"""<main id="viewer" hidden>
<div class="bar"><span id="pairs"><button type="button" id="back">←</button>
<select id="pair" aria-label="pair">{options}</select>
<button type="button" id="next">→</button></span>
<span><label for="leftselect">left</label><select id="leftselect"></select></span>
<span><label for="rightselect">right</label><select id="rightselect"></select></span>
<span>{zooms}</span>
<label><input type="checkbox" id="difference"> difference</label>
<span id="legend" hidden><img alt="scale of the difference, in levels of 255" src="{legend}">
<span><b></b><b></b><b></b></span></span></div>
<div id="frame"><div id="stage" tabindex="0" role="region" aria-label="pictures"><div id="sheet">
<img id="right" alt=""><img id="left" alt=""><img id="map" alt="difference" hidden>
</div></div>
<div id="handle"></div>
<div class="name" id="leftname"></div><div class="name" id="rightname"></div></div>
<input type="range" id="divider" min="0" max="100" step="0.01" value="50" aria-label="line">
</main>
"""


_TABLE = (
    '<footer><table><tr><th class="word">picture</th><th class="word">against</th>'
    "<th>PSNR, dB</th><th>SSIM</th><th>mean difference</th><th>largest</th></tr>\n"
)


def _rows(found: Comparison, pair: str) -> tuple[str, str]:
    """Make a row that names the pair and leads to it, and those of its figures."""
    name = escape(found.name)
    heading = f'<a href="#{pair}">{name}</a>' if pair else f"{name} (figures only)"
    top = f'<tr data-pair="{pair}"><td class="word" colspan="6">{heading}</td></tr>\n'
    rows = ""
    for (one, other), each in found.figures.items():
        names = (found.layers[index].label for index in (one, other))
        words = "".join(f'<td class="word">{escape(label)}</td>' for label in names)
        values = _cells(cells(numbers(each)))
        rows += f'<tr data-pair="{pair}">{words}{values}</tr>\n'
    return top, rows


def _cells(values: Sequence[str]) -> str:
    return "".join(f"<td>{escape(value)}</td>" for value in values)
