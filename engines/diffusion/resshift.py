"""ResShift x4: for real pictures in 15 steps (v1) or 4 (v3), for bicubically shrunk ones in 15.

"ResShift: Efficient Diffusion Model for Image Super-resolution by Residual Shifting" (Yue et al.
2023, arXiv 2307.12348) and its journal version (2024, arXiv 2403.07319).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from numpy.typing import NDArray
from torch import Tensor, nn

from engines import load
from engines.diffusion import chunks
from engines.diffusion.autoencoder import AutoencoderShape, VqAutoencoder
from engines.diffusion.sampler import picture_noise, sample
from engines.diffusion.schedule import Schedule
from engines.diffusion.unet import SwinUnet, UnetShape
from engines.errors import EngineError, ModelInvalid
from engines.load import Located
from engines.offline import Level, OfflineModel, Progress, levels_from_unit, unit_from_levels

#: The schedule of each row of the zoo, and the shapes of their nets, which are the same.
VARIANTS = {
    "resshift-v1": Schedule(15, 0.04),
    "resshift-v3": Schedule(4, 0.2),
    "resshift-bicsrx4-opencv": Schedule(15, 0.04, kappa=1.0),
    "resshift-bicsrx4-matlab": Schedule(15, 0.04),
}
UNET = UnetShape()
AUTOENCODER = AutoencoderShape()
#: Width and height of a chunk in source pixels where none is asked for: one of the three that
#: the authors use (512, 256, 64). The decoder's largest tensors then have half a gigabyte each.
CHUNK = 256
#: Prefixes that training programs leave before names.
_PREFIXES = ("module.", "_orig_mod.")

Net = TypeVar("Net", bound=nn.Module)


class ResShift(OfflineModel):
    """A diffusion model and its autoencoder, ready to upscale.

    Args:
        name: of the row.
        schedule: what `unet` was trained with.
        unet, autoencoder: on one device, float32, in inference mode; a latent must be as wide as
            a small picture, so the autoencoder's factor is the scale.
    """

    def __init__(
        self, name: str, schedule: Schedule, unet: SwinUnet, autoencoder: VqAutoencoder
    ) -> None:
        self.name = name
        self.scale = autoencoder.shape.factor
        self.chunk_multiple = unet.shape.multiple
        self.schedule = schedule
        self._unet = unet
        self._autoencoder = autoencoder
        self._device = next(unet.parameters()).device

    def upscale(
        self,
        picture: NDArray[Level],
        *,
        seed: int = 0,
        chunk: int = 0,
        progress: Progress = lambda fraction: None,
    ) -> NDArray[Level]:
        """Upscale, see `OfflineModel`; chunks are multiples of `chunk_multiple` pixels wide."""
        unit = unit_from_levels(picture)
        chunk = chunk or CHUNK
        if chunk < self.chunk_multiple or chunk % self.chunk_multiple:
            raise ValueError(f"chunks must be multiples of {self.chunk_multiple}, not {chunk}")
        if seed < 0:
            raise ValueError(f"a seed is 0 or more, not {seed}")

        def run(piece: NDArray[np.float32], top: int, left: int) -> NDArray[np.float32]:
            return self._upscale_chunk(piece, top, left, seed)

        overlap = max(self.chunk_multiple // 4, chunk // 8)
        try:
            large = chunks.upscaled(unit, self.scale, chunk, overlap, run, progress)
        except (torch.OutOfMemoryError, MemoryError) as exc:
            raise EngineError(
                f"{self.name} has not enough memory for chunks of {chunk}; take smaller ones, "
                f"{self.chunk_multiple} at least"
            ) from exc
        return levels_from_unit(large, picture.dtype)

    @torch.inference_mode()
    def _upscale_chunk(
        self, piece: NDArray[np.float32], top: int, left: int, seed: int
    ) -> NDArray[np.float32]:
        """Take float32 RGB (h, w, 3), 0..1; give (h*scale, w*scale, 3), 0..1."""
        height, width = piece.shape[:2]
        source = torch.from_numpy(_padded(piece, self.chunk_multiple)).to(self._device)
        source = source.permute(2, 0, 1)[None] * 2 - 1  # [1, 3, H, W], -1..1
        enlarged = F.interpolate(
            source, scale_factor=self.scale, mode="bicubic", align_corners=False
        )
        box = (top, left, source.shape[2], source.shape[3])

        def noise(number: int) -> Tensor:
            return torch.from_numpy(picture_noise(seed, number, box))[None].to(self._device)

        def denoise(x: Tensor, step: int) -> Tensor:
            y: Tensor = self._unet(x, torch.tensor([step], device=self._device), source)
            return y

        latent = sample(denoise, self._autoencoder.encode(enlarged), self.schedule, noise)
        decoded = self._autoencoder.decode(latent)[0].clamp(-1, 1) * 0.5 + 0.5
        cut = decoded[:, : height * self.scale, : width * self.scale]
        result: NDArray[np.float32] = cut.permute(1, 2, 0).cpu().numpy()
        return result


def _padded(piece: NDArray[np.float32], multiple: int) -> NDArray[np.float32]:
    """Mirror (h, w, 3) to the right and below until both are multiples."""
    below, right = (-length % multiple for length in piece.shape[:2])
    return np.pad(piece, ((0, below), (0, right), (0, 0)), "reflect")


def open_resshift(located: Located, device: str) -> ResShift:
    """Open a row whose files were found: those of the net and of the autoencoder.

    Args:
        device: as PyTorch names it.
    Raises:
        EngineMissing: a file is not there any more.
        ModelInvalid: a file is damaged, has changed, or holds other tensors.
    """
    of_unet, of_autoencoder = load.tensors(located)
    unet = _net(lambda: SwinUnet(UNET), of_unet, located.files[0])
    autoencoder = _net(lambda: VqAutoencoder(AUTOENCODER), of_autoencoder, located.files[1])
    schedule = VARIANTS[located.name]
    return ResShift(located.name, schedule, unet.to(device), autoencoder.to(device))


def _net(build: Callable[[], Net], state: Mapping[str, Tensor], path: Path) -> Net:
    """Make a net of a file's tensors, without making random ones first.

    Buffers (masks, numbers of positions) must be there, but are taken from the net: in files of
    averaged weights they are averages too.
    """
    state = {_plain(name): tensor for name, tensor in state.items()}
    with torch.device("meta"):
        net = build()
    buffers = dict(net.named_buffers())
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ModelInvalid(
                f"{path} is not what it should be: its tensor {name[:80]} is "
                f"{_shape(found.get(name))}, not {_shape(expected.get(name))}"
            )
    weights = {name: state[name].float().contiguous() for name in state if name not in buffers}
    net.load_state_dict({**weights, **buffers}, assign=True)
    return net.eval().requires_grad_(False)


def _plain(name: str) -> str:
    """Take off what training programs leave before a name."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape)) or "a number"
