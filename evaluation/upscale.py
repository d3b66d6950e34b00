"""Everything that enlarges a picture, by name: nets of the zoo, files, shaders, interpolation.

Nets run in PyTorch in FP32 on the CPU, or on a GPU if one is asked for; ONNX files in ONNX
Runtime. Shaders are the overlay's own, drawn without a window. All give what would be shown: a
luma net's picture has its source's chroma, merged as the presenter merges it.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from evaluation.baselines import BASELINES
from evaluation.metrics import INSTALL_TRAIN
from evaluation.metrics.errors import EvaluationError
from overlay.closing import Closing
from overlay.errors import OverlayError
from overlay.infer import SHADERS

if TYPE_CHECKING:
    from torch import nn

    from engines.load import Loaded
    from overlay.present.offscreen import OffscreenPresenter

Pixels = NDArray[np.uint8]

#: Before the name of a shader that interpolation on the CPU has, too: "shader:bicubic".
SHADER_PREFIX = "shader:"
#: What an upscaler may raise on a frame or when it is opened, and only its own row suffers.
FAILURES = (EngineError, OverlayError, EvaluationError, RuntimeError, MemoryError, ValueError)


class Upscaler(Closing):
    """Enlarges pictures one by one.

    Attributes:
        name: as the user gave it.
        kind: "baseline", "shader" or "net".
        scale: what it enlarges by; 0 for any whole number.
        about: what it is, in one line: kernel, architecture, weights.
    """

    name: str
    kind: str
    scale: int = 0
    about: str = ""

    @abstractmethod
    def __call__(self, bgr: Pixels, scale: int) -> Pixels:
        """Enlarge uint8 BGR (H, W, 3) to (H*scale, W*scale, 3); may raise `FAILURES`."""

    def close(self) -> None:
        """Free everything."""


def open_upscaler(name: str, device: str = "cpu") -> Upscaler:
    """Open an upscaler.

    Args:
        name: one of `BASELINES`; a shader of the overlay, "fsr1" or "shader:bicubic" say; a model
            as `engines.load.locate` takes it: a name of the zoo, a file, hf:OWNER/NAME.
        device: PyTorch's, for nets.
    Raises:
        FAILURES: it cannot be used here; the message says why.
    """
    if name in BASELINES:
        return Baseline(name)
    shader = name.removeprefix(SHADER_PREFIX)
    if name.startswith(SHADER_PREFIX) or name in SHADERS:
        if shader not in SHADERS:
            raise EvaluationError(f"no shader {shader!r}: there are {', '.join(SHADERS)}")
        return Shader(name, shader)
    try:
        return _open_net(name, device)
    except ModuleNotFoundError as exc:
        raise EvaluationError(f"{name} needs {exc.name}: {INSTALL_TRAIN}") from exc


class Baseline(Upscaler):
    """Interpolation on the CPU."""

    kind = "baseline"

    def __init__(self, name: str) -> None:
        self.name = name
        self.about, self._upscale = BASELINES[name]

    def __call__(self, bgr: Pixels, scale: int) -> Pixels:
        return self._upscale(bgr, scale)


class Shader(Upscaler):
    """One of the overlay's shaders, drawn off screen; all of them on one thread.

    Raises:
        BackendUnavailable: there is no OpenGL without a window here.
    """

    kind = "shader"
    #: Two contexts on a thread would be in each other's way: all shaders share one.
    _shared: ClassVar[OffscreenPresenter | None] = None
    _users: ClassVar[int] = 0

    def __init__(self, name: str, shader: str) -> None:
        from overlay.present.offscreen import OffscreenPresenter

        self.name = name
        self._shader = shader
        self._presenter = Shader._shared or OffscreenPresenter()
        Shader._shared = self._presenter
        Shader._users += 1
        self._open = True
        self.about = f"the overlay's shader {shader} on {self._presenter.device}"

    def __call__(self, bgr: Pixels, scale: int) -> Pixels:
        from overlay.frame import Frame, Picture, Region, Size
        from overlay.present import Look

        height, width = bgr.shape[:2]
        bgra = np.full((height, width, 4), 255, np.uint8)
        bgra[..., :3] = bgr
        frame = Frame(bgra, 0, 0, 0, Region(0, 0, width, height))
        self._presenter.adapt(Look(size=Size(width * scale, height * scale)))
        picture = Picture(frame, "source", bgra, 1, self._shader, "opengl", self._shader)
        self._presenter.show(picture, None)
        return np.ascontiguousarray(self._presenter.grab()[..., :3])

    def close(self) -> None:
        if self._open:
            self._open = False
            Shader._users -= 1
            if not Shader._users:
                Shader._shared = None
                self._presenter.close()


def _open_net(name: str, device: str) -> Upscaler:
    import torch

    from engines import load

    located = load.locate(name)
    runtime = f"sha256 {located.sha256[:12]}, PyTorch {torch.__version__} FP32 on {device}"
    loaded = load.read(located)
    if loaded.module is None:
        return OnnxNet(name, loaded)
    spec = loaded.spec
    return TorchNet(
        name, loaded.module, spec.scale, device, f"{spec.architecture}, {runtime}",
        luma=spec.output == "luma", multiple=spec.size_multiple,
    )  # fmt: skip


class TorchNet(Upscaler):
    """A net in PyTorch, FP32, whole pictures at once.

    Args:
        name: as the user gave it.
        net: as in `engines.load.Loaded`.
        scale, multiple: what it enlarges by; what sizes must be multiples of.
        device: PyTorch's.
        about: for people.
        luma: it is a `LumaNet`.
    """

    kind = "net"

    def __init__(
        self,
        name: str,
        net: nn.Module,
        scale: int,
        device: str,
        about: str,
        *,
        luma: bool = False,
        multiple: int = 1,
    ) -> None:
        import torch

        self.name, self.scale, self.about = name, scale, about
        self._luma, self._multiple = luma, multiple
        self._device = torch.device(device)
        self._net = net.to(self._device)

    def __call__(self, bgr: Pixels, scale: int) -> Pixels:
        import torch

        with torch.inference_mode():
            return self._merged(bgr) if self._luma else self._coloured(bgr)

    def _merged(self, bgr: Pixels) -> Pixels:
        import torch

        from overlay.infer.merge import merge_luma

        height, width = bgr.shape[:2]
        bgra = np.full((height, width, 4), 255, np.uint8)
        bgra[..., :3] = bgr
        blocks = self._net(torch.from_numpy(bgra)[None].to(self._device))[0].cpu().numpy()
        s = self.scale
        phases = blocks.reshape(height, width, s, s).transpose(0, 2, 1, 3)
        luma = np.ascontiguousarray(phases).reshape(height * s, width * s)
        return np.ascontiguousarray(merge_luma(bgra, luma)[..., :3])

    def _coloured(self, bgr: Pixels) -> Pixels:
        import torch

        height, width = bgr.shape[:2]
        planes = torch.from_numpy(_planes(bgr, self._multiple)).to(self._device)
        large = self._net(planes)[0].mul(255).round_().clamp_(0, 255).to(torch.uint8).cpu().numpy()
        return _picture(large, height * self.scale, width * self.scale)


class OnnxNet(Upscaler):
    """A user's ONNX file in ONNX Runtime on the CPU."""

    kind = "net"

    def __init__(self, name: str, loaded: Loaded) -> None:
        import onnxruntime  # type: ignore[import-untyped]

        assert loaded.graph is not None, "only for ONNX models"
        self.name, self.scale = name, loaded.spec.scale
        self._multiple = loaded.spec.size_multiple
        self._session = onnxruntime.InferenceSession(
            loaded.graph.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0]
        digest = loaded.located.sha256[:12]
        self.about = f"sha256 {digest}, ONNX Runtime {onnxruntime.__version__} on the CPU"

    def __call__(self, bgr: Pixels, scale: int) -> Pixels:
        height, width = bgr.shape[:2]
        planes = _planes(bgr, self._multiple)
        if self._input.type == "tensor(float16)":
            planes = planes.astype(np.float16)
        try:
            large: NDArray[Any] = self._session.run(None, {self._input.name: planes})[0][0]
        except Exception as exc:  # its own tree of errors, one class a code
            line = (str(exc).splitlines() or [type(exc).__name__])[0]
            raise EvaluationError(f"{self.name} failed on {width}x{height}: {line[:200]}") from exc
        levels = np.clip(np.rint(large.astype(np.float32) * 255), 0, 255).astype(np.uint8)
        return _picture(levels, height * self.scale, width * self.scale)


def _planes(bgr: Pixels, multiple: int) -> NDArray[np.float32]:
    """Make float32 RGB [1, 3, H, W], 0..1, extended by its edge to multiples of a number."""
    height, width = bgr.shape[:2]
    more = ((0, -height % multiple), (0, -width % multiple), (0, 0))
    rgb = np.pad(bgr[..., ::-1], more, mode="edge")
    return np.ascontiguousarray(rgb.transpose(2, 0, 1)[None]).astype(np.float32) / np.float32(255)


def _picture(rgb_planes: Pixels, height: int, width: int) -> Pixels:
    """Make uint8 BGR (height, width, 3) of RGB (3, H, W), cutting off what was padded."""
    return np.ascontiguousarray(rgb_planes.transpose(1, 2, 0)[:height, :width, ::-1])
