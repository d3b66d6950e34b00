"""Nets behind `engines.offline` in ONNX Runtime: exported once, kept in the cache of engines.

The engine in the cache is of bytes, as all are. Its ends are changed to float when it is opened,
so that pictures of 16 bits stay such; it takes any size. A row of the zoo that was exported
once needs no PyTorch any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from pathlib import Path

import numpy as np

from engines import load, make, nets
from engines.build import open_builder
from engines.build.onnxruntime import library
from engines.cache import EngineCache
from engines.errors import BuilderMissing, BuildFailed, UsageError
from engines.export import in_floats
from engines.load import Located
from engines.offline_net import OfflineNet
from engines.spec import ModelSpec, Size

#: An engine for several sizes takes any; it is checked on these, which suit all nets' multiples.
SIZES: tuple[Size, ...] = ((64, 64), (128, 64))


def open_in_onnxruntime(
    reference: str, located: Located, weights: Sequence[Path], device: str
) -> OfflineNet:
    """Open a model, after exporting it if it is not in the cache, or stale there.

    Args:
        reference: that led to `located`.
        weights: folders, see `load.locate`.
        device: "cpu" or "auto".
    Raises:
        BuildFailed: the net cannot be exported, or kept.
        As `engines.offline.open_offline`.
    """
    if device not in ("auto", "cpu"):
        raise UsageError(f"ONNX Runtime runs on the CPU here, {located.name} not on {device}")
    library()
    return OfflineNet(located.name, _net(reference, located, weights))


def _net(reference: str, located: Located, weights: Sequence[Path]) -> nets.Net:
    spec = located.spec
    if spec is None:
        loaded = load.read(located)
        if loaded.graph is not None:
            return nets.OnnxNet(loaded)
        spec = loaded.spec
    if spec.onnx:
        return OnnxRuntimeNet(spec, load.onnx_bytes(spec))
    return OnnxRuntimeNet(spec, _exported(reference, located, weights))


def _exported(reference: str, located: Located, weights: Sequence[Path]) -> bytes:
    """Give the engine from the cache, built first where there is no fresh one."""
    cache = EngineCache()
    wanted = make.identity(located, open_builder("onnxruntime"), SIZES)
    job = make.Job(reference, SIZES, wanted.backend, wanted.precision)
    plan = make.Plan(weights=tuple(weights))
    (row,) = make.make([job], plan, cache, lambda what, done: None)
    entry, why = cache.fresh(wanted)
    if entry is None:
        error = BuilderMissing if row.status == "unavailable" else BuildFailed
        raise error(row.reason or why)
    return cache.open(entry).data


class OnnxRuntimeNet(nets.Net):
    """An exported net in ONNX Runtime on the CPU, in float where its graph has bytes.

    Args:
        spec: of it.
        graph: an FP32 engine for several sizes, or a shipped graph.
    """

    def __init__(self, spec: ModelSpec, graph: bytes) -> None:
        ort = library()
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised too
        self.spec = spec
        self.runtime = f"ONNX Runtime {ort.__version__} FP32 on the CPU"
        self._session = ort.InferenceSession(
            in_floats(graph), options, providers=["CPUExecutionProvider"]
        )

    def run(self, rgb: nets.Floats) -> nets.Floats:
        """Run on a picture, see `Net`."""
        height, width = rgb.shape[:2]
        multiple, scale = self.spec.size_multiple, self.spec.scale
        more = ((0, -height % multiple), (0, -width % multiple), (0, 0))
        wide = np.pad(rgb, more, mode="edge")
        bgra = np.zeros((1, *wide.shape[:2], 4), np.float32)
        bgra[0, ..., :3] = wide[..., ::-1]
        planes: nets.Floats = nets.run_session(self._session, {"bgra": bgra}, self.spec)[0]
        if self.spec.output == "luma":
            return _joined(planes)[: height * scale, : width * scale]
        return planes.transpose(1, 2, 0)[: height * scale, : width * scale]


def _joined(blocks: nets.Floats) -> nets.Floats:
    """Put [s * s, H, W], s x s pixels of the result each, together to [H * s, W * s]."""
    count, height, width = blocks.shape
    side = isqrt(count)
    rows = blocks.reshape(side, side, height, width).transpose(2, 0, 3, 1)
    return rows.reshape(height * side, width * side)
