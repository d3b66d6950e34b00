"""`python -m service.ui`: start the page, on this machine alone unless told otherwise."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from overlay.errors import BackendUnavailable, OverlayError, SettingsError

INSTALL = "pip install 'sr-overlay[page]'"
#: Measurements of a clone; an installed package has none.
_RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m service.ui",
        description="A page that upscales pictures with the service.",
        epilog="A key for the service can stand in OVERLAY_API_KEY; else the page asks for it.",
    )
    add = parser.add_argument
    add("--api", default="http://127.0.0.1:8000", metavar="URL", help="default: %(default)s")
    add("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    add("--port", type=int, default=8501, help="default: %(default)s")
    add("--results", type=Path, metavar="DIR", help="measurements (default: docs/results)")
    options = parser.parse_args(arguments)
    try:
        return serve(options.api, options.host, options.port, options.results)
    except OverlayError as exc:
        sys.stderr.write(f"overlay: error: {exc}\n")
        return exc.exit_code


def serve(api: str, host: str, port: int, results: Path | None) -> int:
    """Serve the page until SIGINT or SIGTERM.

    Raises:
        SettingsError: an option cannot be.
        BackendUnavailable: Streamlit is not installed.
    """
    if urlsplit(api).scheme not in ("http", "https") or not urlsplit(api).hostname:
        raise SettingsError(f"--api is a URL such as http://127.0.0.1:8000, not {api!r}")
    if not 0 < port < 65536:
        raise SettingsError(f"--port is 1 to 65535, not {port}")
    if results is not None and not results.is_dir():
        raise SettingsError(f"--results: there is no folder {results}")
    folder = results or (_RESULTS if _RESULTS.is_dir() else None)
    try:
        import httpx  # noqa: F401 - the page needs both
        from streamlit.web import cli
    except ImportError as exc:
        raise BackendUnavailable(f"the page needs {exc.name}: {INSTALL}") from exc
    os.environ["OVERLAY_PAGE_API"] = api
    os.environ["OVERLAY_PAGE_RESULTS"] = str(folder or "")
    cli.main(["run", str(Path(__file__).with_name("page.py")), *_options(host, port)])
    return 0  # not reached where click ends the process


def _options(host: str, port: int) -> list[str]:
    """Set what must not depend on a user's own configuration of Streamlit."""
    settings: dict[str, object] = {
        "server.address": host,
        "server.port": port,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "server.maxUploadSize": 256,
        "server.enableCORS": "true",
        "server.enableXsrfProtection": "true",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "viewer",
        "client.showErrorDetails": "none",
    }
    return [f"--{name}={value}" for name, value in settings.items()]


if __name__ == "__main__":
    sys.exit(main())
