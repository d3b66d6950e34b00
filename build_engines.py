"""Build engines for this machine: `python build_engines.py --models all --sizes 480x270`.

The same as `overlay engines`, whose errors and exit codes it shares.
"""

from __future__ import annotations

import sys

from overlay.cli import main

if __name__ == "__main__":
    sys.exit(main(["engines", *sys.argv[1:]]))
