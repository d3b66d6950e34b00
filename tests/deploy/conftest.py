"""The files in deploy/, and what reads them; they need Linux and the development tools."""

from __future__ import annotations

import sys
from importlib.util import find_spec

if sys.platform != "linux" or find_spec("check_jsonschema") is None or find_spec("yaml") is None:
    collect_ignore_glob = ["test_*.py"]
