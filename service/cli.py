"""`overlay serve`: the HTTP service."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from overlay.errors import BackendUnavailable
from service.settings import PREFIX, Settings

log = logging.getLogger(__name__)

_EXAMPLES = f"""\
examples:
  overlay serve
  overlay serve --host 0.0.0.0 --config service.toml    # with api_keys in it
  curl -F image_file=@small.png http://127.0.0.1:8000/upscale/file -o large.png

Every setting can stand in the file, or in a variable: {PREFIX}MODEL=default-x2.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `overlay serve`."""
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, help="default: 8000; 0 = a free one")
    parser.add_argument("--config", type=Path, metavar="TOML", help="settings, see docs/service.md")
    parser.add_argument("--model", metavar="NAME", help="of requests that name none")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="folder of weights files")
    parser.add_argument("--workers", type=int, metavar="N", help="pictures in work at once")


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM.

    Raises:
        SettingsError: a setting cannot be.
        BackendUnavailable: a library is missing.
    """
    names = ("host", "port", "model", "weights", "workers")
    options = {name: getattr(arguments, name) for name in names}
    settings = Settings.load(arguments.config, **options)
    try:
        from service.api import make_server
    except ImportError as exc:
        raise BackendUnavailable(
            f"the service needs {exc.name}: pip install 'sr-overlay[service]'"
        ) from exc
    if not settings.local_only and not settings.api_keys:
        log.warning("anybody who reaches %s may use it: set api_keys", settings.host)
    server = make_server(settings, access_log=bool(arguments.verbose))
    server.run()
    return 0 if server.started else 1
