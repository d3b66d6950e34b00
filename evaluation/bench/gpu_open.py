"""How long it takes until there is a picture: imports, weights, kernels, graphs.

Run as a process of its own, which has imported nothing yet; `measured` runs it and looks at the
device's memory from outside.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from overlay.frame import Size
    from overlay.infer import Upscaler

Row = dict[str, Any]

_ROOT = Path(__file__).parents[2]
#: A process may take so long.
LIMIT_S = 90.0


def main() -> int:
    """Open, upscale, print one line of JSON, and wait for a line: memory stays in use."""
    begin = time.perf_counter()
    parser = argparse.ArgumentParser()
    for name in ("model", "backend"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("width", "height", "scale"):
        parser.add_argument(f"--{name}", type=int, required=True)
    arguments = parser.parse_args()
    sys.stdout.write(json.dumps(_found(arguments, begin)) + "\n")
    sys.stdout.flush()
    sys.stdin.readline()
    return 0


def _found(arguments: argparse.Namespace, begin: float) -> Row:
    from engines.errors import EngineError
    from overlay.errors import OverlayError
    from overlay.frame import Size
    from overlay.infer import measure_ms

    source = Size(arguments.width, arguments.height)
    try:
        upscaler, weights = _opened(arguments, source)
    except (EngineError, OverlayError, ImportError) as exc:
        return {"reason": str(exc)}
    with upscaler:
        opened_s = time.perf_counter() - begin
        first_ms = measure_ms(upscaler, source, runs=1)
        first_s = time.perf_counter() - begin
        return {
            "opened_s": round(opened_s, 3), "first_picture_s": round(first_s, 3),
            "first_ms": round(first_ms, 3), "check_ms": round(measure_ms(upscaler, source), 3),
            "runs_on": upscaler.device, "weights": weights, "host_mb": _most_mb(),
        }  # fmt: skip


def _opened(arguments: argparse.Namespace, source: Size) -> tuple[Upscaler, str]:
    """Open it as the overlay does; with random weights where that lacks weights or packages.

    Raises:
        EngineError, OverlayError, ImportError: it cannot be opened here.
    """
    from engines.errors import EngineError
    from overlay.frame import Size

    try:
        from overlay.infer import open_upscaler

        output = Size(source.width * arguments.scale, source.height * arguments.scale)
        found = open_upscaler(
            arguments.model, backend=arguments.backend, source=source, output=output
        )
    except (EngineError, ImportError):
        if arguments.backend != "torch-cuda":
            raise
    else:
        return found, "its own"
    from engines import zoo
    from engines.load import Located
    from overlay.cuda import shared_cuda
    from overlay.infer.torch_cuda import open_torch

    spec = zoo.spec(arguments.model)
    located = Located(f"{spec.id}-random", spec, (), "", "random weights")
    upscaler = open_torch(located, shared_cuda())
    try:
        upscaler.warm_up(source)
    except BaseException:
        upscaler.close()
        raise
    return upscaler, "random"


def _most_mb() -> float:
    """Give the most memory this process had, in MB; Linux tells."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return round(kilobytes * 1024 / 1e6, 1)


def measured(task: Row, scale: int, cache: Path, used_mb: Any) -> Row:
    """Run it once.

    Args:
        task: names model, backend, width and height.
        cache: where Triton keeps what it compiled.
        used_mb: asks how much memory is in use on the device, in MB.
    Returns:
        What it found and `device_mb`, what the whole process holds on the device; or `reason`.
    """
    before = used_mb()
    command = [sys.executable, "-m", "evaluation.bench.gpu_open", "--scale", str(scale)]
    for name in ("model", "backend", "width", "height"):
        command += [f"--{name}", str(task[name])]
    with subprocess.Popen(
        command, cwd=_ROOT, env={**os.environ, "TRITON_CACHE_DIR": str(cache)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        limit = Timer(LIMIT_S, process.kill)
        limit.start()
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            after = used_mb()
            process.communicate("\n")
        finally:
            limit.cancel()
    try:
        row: Row = json.loads(line)
    except ValueError:
        return {"reason": f"the process ended with {process.returncode}, or took {LIMIT_S:g} s"}
    return row if "reason" in row else {**row, "device_mb": round(after - before, 1)}


if __name__ == "__main__":
    sys.exit(main())
