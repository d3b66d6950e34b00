"""Text of others as plain text: Streamlit takes most of what it shows for Markdown."""

from __future__ import annotations

import re


def plain(text: str) -> str:
    """Escape Markdown, so that nothing in the text is a link, a picture or a formula."""
    one_line = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|<>~$:&@/])", r"\\\1", one_line)
