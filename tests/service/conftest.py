"""Servers for the tests; without the extra `service` they are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if find_spec("fastapi") is None or find_spec("httpx") is None:
    collect_ignore_glob = ["test_*.py"]

if TYPE_CHECKING:
    import httpx

    from tests.service.server import Served


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Start servers with settings of their own."""
    from tests.service.server import serving

    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(serving(**options))


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """A server with few limits, for tests that leave it as it was."""
    from tests.service.server import serving

    with serving() as one:
        yield one


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client() as one:
        yield one
