"""Models for single pictures: all of the zoo, and those too slow to run beside a game.

`open_offline` is the one way in. A model takes and gives RGB, whatever it does inside; what
reads and writes files of pictures is elsewhere. Imports nothing heavy.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from engines import load
from engines.errors import BuilderMissing, UsageError

log = logging.getLogger(__name__)

#: Types of a picture's numbers: 0 to 255, 0 to 65535, 0 to 1.
Level = TypeVar("Level", np.uint8, np.uint16, np.float32)
_FULL = {np.dtype(np.uint8): np.float32(255), np.dtype(np.uint16): np.float32(65535)}
#: Told the finished share, 0 to 1; what it raises ends the work.
Progress = Callable[[float], None]
#: What runs a model.
Backend = Literal["auto", "openvino", "onnxruntime", "pytorch"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)


class OfflineModel(ABC):
    """Enlarges pictures, one at a time.

    Its methods are called on one thread.
    """

    #: Name in the zoo.
    name: str
    #: Size of the result / size of the picture.
    scale: int

    @abstractmethod
    def upscale(
        self,
        picture: NDArray[Level],
        *,
        seed: int = 0,
        chunk: int = 0,
        progress: Progress = lambda fraction: None,
    ) -> NDArray[Level]:
        """Upscale a picture of any size.

        Args:
            picture: RGB (H, W, 3): uint8, uint16, or float32 from 0 to 1; host memory, not
                modified.
            seed: 0 or more. A model that draws what it cannot know draws the same for the same
                seed on the same machine; others ignore it.
            chunk: width and height in source pixels of the pieces in which a larger picture is
                done; memory grows with its square. 0: the model's own.
            progress: told the finished share after every chunk.
        Returns:
            RGB (H*scale, W*scale, 3) of the same type; the caller's own.
        Raises:
            ValueError: it is no such picture, or seed or chunk cannot be.
            EngineError: it cannot be done on this machine: too little memory, say.
        """


def open_offline(
    name: str, weights: Sequence[Path] = (), device: str = "auto", backend: Backend = "auto"
) -> OfflineModel:
    """Open a model for single pictures.

    Says once in a program's life if the weights must not be used commercially.

    Args:
        name: any model, as `load.locate` takes it: a row of the zoo, a file, hf:OWNER/NAME.
        weights: folders in which to look for its files first, see `load.locate`.
        device: "cpu", "cuda", "cuda:1" and so on; "auto" = an NVIDIA GPU if PyTorch sees one;
            the CPU for the shipped nets, where they are quick enough.
        backend: what runs it. "auto": OpenVINO for the shipped nets on a CPU, ONNX Runtime for
            ONNX files, PyTorch for all others. "onnxruntime": on the CPU, from the cache of
            engines, into which the net is exported at first.
    Raises:
        UnknownModel: no model has this name.
        UsageError: the back end or the device does not run this model.
        WeightsMissing: a file is not on this machine; says how to get it.
        EngineMissing, ModelInvalid: a file cannot be read, or is not what it should be.
        BuilderMissing: a library is missing, or PyTorch cannot use the device.
    """
    located = load.locate(name, weights)
    spec = located.spec
    if spec is None or not spec.offline:
        if backend == "onnxruntime":
            from engines.offline_onnx import open_in_onnxruntime

            return open_in_onnxruntime(name, located, weights, device)
        from engines.offline_net import open_offline_net

        return open_offline_net(located, device, backend)
    if backend not in ("auto", "pytorch"):
        raise UsageError(f"{spec.id} runs in PyTorch only: leave out --backend")
    device = pytorch_device(spec.id, device)
    from engines.diffusion.resshift import open_resshift

    if "non-commercial" in spec.licence:
        _say_non_commercial(spec.author, spec.licence)
    return open_resshift(located, device)


def pytorch_device(name: str, device: str) -> str:
    """Choose PyTorch's device for a model, and try it.

    Args:
        name: of the model, for the message.
        device: as of `open_offline`.
    Raises:
        BuilderMissing: PyTorch is missing, or cannot use the device.
    """
    try:
        import torch
    except ModuleNotFoundError as exc:
        raise BuilderMissing(f"{name} needs the library {exc.name}: {load.INSTALL_BUILD}") from exc
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as exc:  # PyTorch without CUDA asserts
        raise BuilderMissing(f"PyTorch cannot use the device {device!r}: {exc}") from exc
    return device


@cache
def _say_non_commercial(author: str, licence: str) -> None:
    log.warning("these weights by %s are not for commercial use: %s", author, licence)


def unit_from_levels(picture: NDArray[Level]) -> NDArray[np.float32]:
    """Bring a picture to 0..1.

    Args:
        picture: as `OfflineModel.upscale` takes it.
    Returns:
        float32 (H, W, 3), a copy; what is outside 0..1 is clipped.
    Raises:
        ValueError: it is no such picture, or holds NaN or infinity.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ValueError(f"a picture is RGB of shape (H, W, 3), not {picture.shape}")
    if picture.dtype in _FULL:
        return picture.astype(np.float32) / _FULL[picture.dtype]
    if picture.dtype != np.float32:
        raise ValueError(f"a picture is uint8, uint16 or float32, not {picture.dtype}")
    unit = picture.astype(np.float32)
    if not np.isfinite(unit).all():
        raise ValueError("the picture holds NaN or infinity")
    return unit.clip(0, 1)


def levels_from_unit(picture: NDArray[np.float32], dtype: np.dtype[Level]) -> NDArray[Level]:
    """Bring float32 (H, W, 3) back to a picture's type: clipped to 0..1, rounded to levels."""
    unit = picture.clip(0, 1)
    return (np.rint(unit * _FULL[dtype]) if dtype in _FULL else unit).astype(dtype)
