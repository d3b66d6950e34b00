"""Write `.env` beside `.env.example`, with a random secret for each name that has none."""

from __future__ import annotations

import os
import re
import secrets
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
_EMPTY = re.compile(r"[A-Z_]+=")


def filled(example: str) -> str:
    """Give the text with 48 random hexadecimal digits after each `NAME=` that ends its line."""
    lines = example.splitlines()
    return "".join(
        f"{line}{secrets.token_hex(24) if _EMPTY.fullmatch(line) else ''}\n" for line in lines
    )


def main(folder: Path = HERE) -> int:
    """Write the file for its owner alone; one that is there stays as it is."""
    target = folder / ".env"
    text = filled((folder / ".env.example").read_text(encoding="utf-8"))
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        sys.stderr.write(f"{target} is there already, and is kept\n")
        return 1
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
