"""Everything that enlarges a picture, by name: nets of the zoo, files, shaders, interpolation.

Nets run in PyTorch in FP32 on the CPU, or on a GPU if one is asked for; ONNX files in ONNX
Runtime. Shaders are the overlay's own, drawn without a window. All give what would be shown: a
luma net's picture has its source's chroma, merged as the presenter merges it.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

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
    from engines.nets import Net
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
    from engines import load, nets

    located = load.locate(name)
    loaded = load.read(located)
    net = nets.open_net(loaded, device)
    about = f"sha256 {located.sha256[:12]}, {net.runtime}"
    known = f"{net.spec.architecture}, " if loaded.module is not None else ""
    return NetUpscaler(name, net, known + about)


class NetUpscaler(Upscaler):
    """A net, whole pictures at once; a luma net's picture gets its source's chroma."""

    kind = "net"

    def __init__(self, name: str, net: Net, about: str) -> None:
        self.name, self.scale, self.about = name, net.spec.scale, about
        self._net = net

    def __call__(self, bgr: Pixels, scale: int) -> Pixels:
        from overlay.infer.merge import merge_luma

        large = self._net.run(np.ascontiguousarray(bgr[..., ::-1], np.float32))
        levels = np.clip(np.rint(large), 0, 255).astype(np.uint8)
        if self._net.spec.output != "luma":
            return np.ascontiguousarray(levels[..., ::-1])
        bgra = np.full((*bgr.shape[:2], 4), 255, np.uint8)
        bgra[..., :3] = bgr
        return np.ascontiguousarray(merge_luma(bgra, levels)[..., :3])
