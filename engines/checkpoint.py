"""Tensors by name from safetensors and from PyTorch's checkpoints, neither of which is trusted.

A checkpoint is a pickle, and a pickle is a program. It is scanned before it is read and may call
nothing but what rebuilds tensors; PyTorch's restricted reader (`weights_only`) then reads it.
Whatever the file says, no more memory is touched than a few times its own size.
"""

from __future__ import annotations

import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from engines.errors import ModelInvalid

#: What a checkpoint may call, as "module name".
_CALLS = {
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    "torch.nn.parameter Parameter",
    *(f"torch {kind}Storage" for kind in ("Float", "Half", "BFloat16", "Double")),
    *(f"torch {kind}Storage" for kind in ("Long", "Int", "Short", "Char", "Byte", "Bool")),
}
#: Operations by which a pickle can call something that `_CALLS` does not see.
_REFUSED = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
#: Largest pickle in a checkpoint; the tensors' numbers are not in it. That of the largest
#: released net, of 702 tensors, has 0.1 MB.
_MAX_PICKLE = 32 << 20
#: Under these names training programs keep the tensors, the best first.
_WRAPPERS = ("params_ema", "params", "state_dict", "model_state_dict", "model")
_MAX_TENSORS = 20_000
_INTEGERS = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}


def read(content: bytes, path: Path) -> dict[str, Tensor]:
    """Read a file's tensors.

    Args:
        content: of the file.
        path: of the file: its ending tells safetensors from the rest, and messages name it.
    Returns:
        Tensors by name: dense, on the CPU, at most as large as the file together; floating ones
        are finite.
    Raises:
        ModelInvalid: the file is damaged, holds something else than tensors, or is hostile.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            state = _safetensors(content)
        else:
            state = _unwrapped(_unpickled(content))
        _check(state, len(content))
    except ValueError as exc:
        raise ModelInvalid(f"{path} is no model that can be read: {exc}") from exc
    return state


def _safetensors(content: bytes) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as exc:
        raise ValueError(f"it is not a safetensors file ({_line(exc)})") from None


def _unpickled(content: bytes) -> object:
    """Read a checkpoint: a zip archive, or several pickles followed by the numbers."""
    if content.startswith(b"PK\x03\x04"):
        _scan(_pickle_in_zip(content))
    else:
        _scan(content, pickles=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the protocol of old files
        try:
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as exc:  # a parser of hostile bytes: anything may come out of it
            raise ValueError(f"it is damaged ({_line(exc)})") from None


def _pickle_in_zip(content: bytes) -> bytes:
    """Check the archive and give its pickle."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("its archive is compressed, which no checkpoint is")
            if sum(entry.file_size for entry in entries) > len(content):
                raise ValueError("its archive says that it holds more than the file has")
            names = [entry.filename.partition("/")[2] for entry in entries]
            if "constants.pkl" in names:
                raise ValueError("it is a TorchScript program; give its weights (a state dict)")
            if names.count("data.pkl") != 1:
                raise ValueError("its archive is not a checkpoint's")
            return archive.read(entries[names.index("data.pkl")])
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as exc:
        raise ValueError(f"its archive is damaged ({_line(exc)})") from None


def _scan(content: bytes, pickles: int = 1) -> None:
    """Refuse pickles that call anything but what rebuilds tensors."""
    stream = io.BytesIO(content)
    for _ in range(pickles):
        try:
            for operation, argument, _ in pickletools.genops(stream):
                if operation.name in _REFUSED:
                    raise PermissionError(f"it uses {operation.name}, which no checkpoint does")
                if operation.name == "GLOBAL" and argument not in _CALLS:
                    raise PermissionError(f"it wants to call {str(argument)[:80]!r}")
                if stream.tell() > _MAX_PICKLE:
                    raise PermissionError(f"its pickle is larger than {_MAX_PICKLE >> 20} MB")
        except PermissionError as exc:
            raise ValueError(f"{exc}; nothing was run, save its state_dict() alone") from None
        except Exception:  # as above
            raise ValueError("it is not a PyTorch checkpoint, or it is cut off") from None


def _unwrapped(content: object) -> dict[str, Tensor]:
    """Take the tensors out of what training programs put around them."""
    for _ in range(4):
        if not isinstance(content, Mapping):
            break
        inner = next((content[key] for key in _WRAPPERS if key in content), None)
        if not isinstance(inner, Mapping):
            break
        content = inner
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}, not tensors by name")
    state: dict[str, Tensor] = {}
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise ValueError(f"its entry {str(name)[:80]!r} is a {kind}, not a tensor")
        state[name] = tensor.detach()
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def _check(state: Mapping[str, Tensor], size: int) -> None:
    """Refuse tensors that are not what a file of `size` bytes can hold."""
    if not 0 < len(state) <= _MAX_TENSORS:
        raise ValueError(f"it holds {len(state)} tensors")
    total = 0
    for name, tensor in state.items():
        _check_tensor(f"its tensor {name[:80]!r}", tensor)
        total += tensor.numel() * tensor.element_size()
        if total > size or tensor.untyped_storage().nbytes() > size:
            raise ValueError(f"its tensors are larger than the file ({size} bytes)")
        # Nets are made as long as the numbers in these names say.
        if any(int(n[:9]) > 16 * len(state) + 64 for n in re.findall(r"\d+", name)):
            raise ValueError(f"its tensor {name[:80]!r} has an absurd number in its name")
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"its tensor {name[:80]!r} holds NaN or infinity")


def _check_tensor(what: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise ValueError(f"{what} is not an ordinary tensor")
    if not tensor.is_floating_point() and tensor.dtype not in _INTEGERS:
        raise ValueError(f"{what} is of type {tensor.dtype}")
    if tensor.dim() > 8 or 0 in tensor.shape:
        raise ValueError(f"{what} has the shape {tuple(tensor.shape)}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"{what} is larger than what is stored of it")


def _line(exc: BaseException) -> str:
    """The first line of a foreign error, not too long."""
    lines = str(exc).strip().splitlines()
    return (lines[0] if lines else type(exc).__name__)[:160]
