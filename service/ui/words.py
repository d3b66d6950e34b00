"""Text of others as plain text: Streamlit takes most of what it shows for Markdown."""

from __future__ import annotations

import re


def plain(text: str) -> str:
    """Escape Markdown: nothing becomes a picture, a formula, or a link under another name."""
    one_line = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|<>~$:&@/])", r"\\\1", one_line)
