"""The images' health check: `python healthcheck.py URL` ends with 0 if the answer is 2xx.

Needs nothing but Python, as slim images have neither curl nor wget.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

TIMEOUT_S = 4


def main(argv: list[str]) -> int:
    """Ask once; the reason of a failure goes to stderr."""
    if len(argv) != 1:
        sys.stderr.write("usage: healthcheck.py URL\n")
        return 2
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(argv[0], timeout=TIMEOUT_S):
            return 0
    except urllib.error.HTTPError as exc:
        reason = f"{exc} {exc.read(300).decode('utf-8', 'replace')}"
    except (OSError, ValueError) as exc:
        reason = str(exc)
    sys.stderr.write(f"{argv[0]}: {reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
