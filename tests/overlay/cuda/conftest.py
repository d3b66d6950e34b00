"""Without cuda-bindings only the fake can be tested; under CI it must be there."""

from __future__ import annotations

from importlib.util import find_spec

from tests.games import strict

collect_ignore: list[str] = []
if not strict() and (find_spec("cuda") is None or find_spec("cuda.bindings") is None):
    collect_ignore += ["test_bindings.py", "test_contract.py", "test_pycuda.py"]
