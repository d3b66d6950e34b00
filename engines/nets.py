"""Nets run on whole pictures, in float: what evaluation and the models for files share.

PyTorch in FP32, or a user's ONNX file in ONNX Runtime on the CPU. Imports neither by itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engines.load import Loaded
    from engines.spec import ModelSpec

Floats = NDArray[np.float32]

#: What libraries say when an allocation fails, where they have no error of its own for it.
_NO_MEMORY = ("not enough memory", "failed to allocate", "bad_alloc", "bad allocation")


class Net(ABC):
    """A net, ready to run.

    Attributes:
        spec: what is known about it.
        runtime: what runs it, in one line: "PyTorch 2.13.0 FP32 on cpu".
    """

    spec: ModelSpec
    runtime: str

    @abstractmethod
    def run(self, rgb: Floats) -> Floats:
        """Run on a picture.

        Args:
            rgb: (H, W, 3), 0..255, any size; not modified.
        Returns:
            About 0..255, neither rounded nor clamped: RGB (H*scale, W*scale, 3), or, where
            `spec.output` is "luma", BT.601 full-range luma (H*scale, W*scale).
        Raises:
            EngineError: the net cannot do it.
            Exception: other ones of the library; `out_of_memory` tells which of them say that.
        """


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that there was too little memory, the host's or the GPU's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)


def open_net(loaded: Loaded, device: str) -> Net:
    """Open a model that was read.

    Args:
        device: PyTorch's; ONNX files run on the CPU.
    Raises:
        ModuleNotFoundError: the library that runs it is missing.
    """
    return (
        OnnxNet(loaded) if loaded.module is None else TorchNet(loaded.module, loaded.spec, device)
    )


class TorchNet(Net):
    """A net in PyTorch, FP32.

    Args:
        net: as in `engines.load.Loaded`.
        spec: of it.
        device: PyTorch's.
    """

    def __init__(self, net: nn.Module, spec: ModelSpec, device: str) -> None:
        import torch

        self.spec = spec
        self.runtime = f"PyTorch {torch.__version__} FP32 on {device}"
        self._device = torch.device(device)
        self._net = net.to(self._device)

    def run(self, rgb: Floats) -> Floats:
        """Run on a picture, see `Net`."""
        import torch

        with torch.inference_mode():
            large = self._luma(rgb) if self.spec.output == "luma" else self._coloured(rgb)
            result: Floats = large.cpu().numpy()
        return result

    def _luma(self, rgb: Floats) -> Tensor:
        import torch
        import torch.nn.functional as F  # noqa: N812 - torch's own convention

        from engines.archs.luma import LumaNet

        assert isinstance(self._net, LumaNet)
        bgra = np.zeros((4, *rgb.shape[:2]), np.float32)
        bgra[:3] = rgb[..., ::-1].transpose(2, 0, 1)
        planes = torch.from_numpy(bgra)[None].to(self._device)
        return F.pixel_shuffle(self._net.blocks(planes), self.spec.scale)[0, 0]

    def _coloured(self, rgb: Floats) -> Tensor:
        import torch

        height, width = (length * self.spec.scale for length in rgb.shape[:2])
        planes = torch.from_numpy(_planes(rgb, self.spec.size_multiple)).to(self._device)
        large: Tensor = self._net(planes)[0, :, :height, :width]
        return large.mul(255).permute(1, 2, 0)


class OnnxNet(Net):
    """A user's ONNX file in ONNX Runtime on the CPU."""

    def __init__(self, loaded: Loaded) -> None:
        import onnxruntime  # type: ignore[import-untyped]

        assert loaded.graph is not None, "only for ONNX models"
        self.spec = loaded.spec
        self.runtime = f"ONNX Runtime {onnxruntime.__version__} on the CPU"
        self._session = onnxruntime.InferenceSession(
            loaded.graph.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0]

    def run(self, rgb: Floats) -> Floats:
        """Run on a picture, see `Net`."""
        height, width = rgb.shape[:2]
        planes: NDArray[Any] = _planes(rgb, self.spec.size_multiple)
        if self._input.type == "tensor(float16)":
            planes = planes.astype(np.float16)
        large = run_session(self._session, {self._input.name: planes}, self.spec)[0]
        scale = self.spec.scale
        cut: Floats = large[:, : height * scale, : width * scale].astype(np.float32)
        return cut.transpose(1, 2, 0) * np.float32(255)


def run_session(session: Any, inputs: dict[str, NDArray[Any]], spec: ModelSpec) -> NDArray[Any]:
    """Run a session of ONNX Runtime and give its only output.

    Raises:
        MemoryError: it had too little.
        EngineError: anything else went wrong.
    """
    try:
        output: NDArray[Any] = session.run(None, inputs)[0]
    except Exception as exc:  # its own tree of errors, one class a code
        line = (str(exc).splitlines() or [type(exc).__name__])[0][:200]
        if any(words in str(exc).lower() for words in _NO_MEMORY):
            raise MemoryError(line) from exc
        shapes = ", ".join("x".join(map(str, array.shape)) for array in inputs.values())
        raise EngineError(f"{spec.id} failed on {shapes}: {line}") from exc
    return output


def _planes(rgb: Floats, multiple: int) -> Floats:
    """Make RGB [1, 3, H, W], 0..1, extended by its edge to multiples of a number."""
    height, width = rgb.shape[:2]
    more = ((0, -height % multiple), (0, -width % multiple), (0, 0))
    planes = np.pad(rgb, more, mode="edge").transpose(2, 0, 1)[None]
    return np.ascontiguousarray(planes) / np.float32(255)
