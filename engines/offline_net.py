"""Ordinary nets behind `engines.offline`: any model of the zoo, any file, in tiles.

The shipped nets run in OpenVINO, without PyTorch; all others in PyTorch, ONNX files in ONNX
Runtime. A luma net's picture gets its source's chroma, as it is shown live, but in float and
rounded once.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines import load, nets, tiles
from engines.chroma import LUMA_RGB, with_luma
from engines.errors import BuilderMissing, EngineError, UsageError
from engines.load import Located
from engines.offline import (
    Backend,
    Level,
    OfflineModel,
    Progress,
    levels_from_unit,
    pytorch_device,
    unit_from_levels,
)
from engines.spec import ModelSpec

log = logging.getLogger(__name__)


class OfflineNet(OfflineModel):
    """A net, with tiles as large as memory allows.

    Args:
        name: as the user knows it.
        net: what runs.
        device: whose memory it takes, as PyTorch names it.
    """

    def __init__(self, name: str, net: nets.Net, device: str = "cpu") -> None:
        self.name = name
        self.scale = net.spec.scale
        self.about = f"{name}, {net.runtime}"
        self._net = net
        self._device = device

    def upscale(
        self,
        picture: NDArray[Level],
        *,
        seed: int = 0,
        chunk: int = 0,
        progress: Progress = lambda fraction: None,
    ) -> NDArray[Level]:
        """Upscale, see `OfflineModel`; a chunk's margin comes on top of its size.

        Where memory does not suffice, chunks are halved, down to `tiles.SMALLEST`.
        """
        if seed < 0 or chunk < 0:
            raise ValueError(f"seed and chunk are 0 or more, not {seed} and {chunk}")
        unit_from_levels(picture[:1, :1])  # says what is wrong with it
        spec = self._net.spec
        tile = chunk or tiles.tile_for(spec, tiles.free_memory(self._device))
        tile = min(tile, max(picture.shape[:2]))
        while True:
            try:
                with _known_errors(spec):
                    return tiles.upscaled(picture, spec, tile, self._piece, progress)
            except MemoryError as exc:
                if tile <= tiles.SMALLEST:
                    raise EngineError(
                        f"{self.name} has not enough memory for tiles of {tile} pixels: "
                        "take a smaller model, or end other programs"
                    ) from exc
                smaller = max(tiles.SMALLEST, tile // 2)
                log.warning("%s: too little memory for tiles of %d: %d", self.name, tile, smaller)
                tile = smaller
            self._free()

    def _piece(self, picture: NDArray[Level]) -> NDArray[Level]:
        rgb = unit_from_levels(picture) * np.float32(255)
        large = self._net.run(rgb)
        if self._net.spec.output == "luma":
            large = with_luma(rgb, large, LUMA_RGB)
        return levels_from_unit(large / np.float32(255), picture.dtype)

    def _free(self) -> None:
        """Give back what a failed try holds."""
        gc.collect()
        if self._device.startswith("cuda"):
            import torch

            torch.cuda.empty_cache()


@contextmanager
def _known_errors(spec: ModelSpec) -> Iterator[None]:
    """Make MemoryError of all errors about memory, EngineError of the library's others."""
    try:
        yield
    except (MemoryError, RuntimeError) as exc:
        if nets.out_of_memory(exc):
            raise MemoryError(str(exc)) from exc
        line = (str(exc).splitlines() or [type(exc).__name__])[0][:200]
        raise EngineError(f"{spec.id} failed: {line}") from exc


class OpenVinoNet(nets.Net):
    """A shipped luma net in OpenVINO on the CPU, in float where its graph has bytes."""

    def __init__(self, spec: ModelSpec) -> None:
        from engines.build.openvino import cpu_options, library, shared_core

        ov, core = library(), shared_core()
        graph = core.read_model(load.onnx_bytes(spec))
        (source,) = graph.get_parameters()
        source.set_element_type(ov.Type.f32)
        graph.validate_nodes_and_infer_types()
        (rounding,) = (op for op in graph.get_ordered_ops() if op.get_type_name() == "Round")
        ops = ov.opset13
        blocks = ops.transpose(rounding.input_value(0), ops.constant([0, 2, 3, 1], np.int64))
        self.spec = spec
        self.runtime = f"OpenVINO {ov.__version__.split('-')[0]} FP32 on the CPU"
        self._compiled: Any = core.compile_model(ov.Model([blocks], [source]), "CPU", cpu_options())

    def run(self, rgb: nets.Floats) -> nets.Floats:
        """Run on a picture, see `Net`."""
        height, width = rgb.shape[:2]
        scale = self.spec.scale
        bgra = np.zeros((1, height, width, 4), np.float32)
        bgra[0, ..., :3] = rgb[..., ::-1]
        blocks = self._compiled(bgra)[0].reshape(height, width, scale, scale)
        luma: nets.Floats = blocks.transpose(0, 2, 1, 3).reshape(height * scale, width * scale)
        return luma


def open_offline_net(located: Located, device: str, backend: Backend) -> OfflineNet:
    """Open a model whose files were found.

    Args:
        device: as PyTorch names it; "auto" = for shipped nets the CPU, with OpenVINO if it is
            installed; for others an NVIDIA GPU if PyTorch sees one.
        backend: "openvino" only for shipped nets; "auto" as above.
    Raises:
        As `engines.offline.open_offline`.
    """
    shipped = located.spec is not None and bool(located.spec.onnx)
    if backend == "openvino" and not (shipped and device in ("auto", "cpu")):
        raise UsageError(
            f"OpenVINO runs the nets that come with the program, on the CPU, and not "
            f"{located.name} on {device}: leave out --backend"
        )
    here = backend == "openvino" or find_spec("openvino") or not find_spec("torch")
    if shipped and here and backend != "pytorch" and device in ("auto", "cpu"):
        assert located.spec is not None
        return OfflineNet(located.name, OpenVinoNet(located.spec))
    return _in_pytorch(located, device)


def _in_pytorch(located: Located, device: str) -> OfflineNet:
    loaded = load.read(located)
    if loaded.module is not None:
        device = pytorch_device(located.name, device)
    elif device not in ("auto", "cpu"):
        raise UsageError(f"ONNX files run on the CPU here, {located.name} not on {device}")
    else:
        device = "cpu"
    try:
        return OfflineNet(located.name, nets.open_net(loaded, device), device)
    except ModuleNotFoundError as exc:
        raise BuilderMissing(
            f"{located.name} needs the library {exc.name}: {load.INSTALL_BUILD}"
        ) from exc
