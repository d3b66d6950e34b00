"""How good a net is on crops that it never sees in training, and bicubic beside it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from training.config import HEIGHTS_OF, Config
from training.dataset import Pair, find_pairs, read_png
from training.errors import DataError
from training.loader import Colour, Pixels, planes

log = logging.getLogger(__name__)

#: LR pixels at the edges of a crop that do not count: what lies beyond is not in the crop.
EDGE = 8
#: Crops in the sample picture.
SAMPLES = 4


@dataclass(frozen=True, slots=True)
class Score:
    """Means over the crops, in dB; of luma for luma nets, of RGB for the others."""

    psnr: float
    bicubic: float

    def __str__(self) -> str:
        gain = self.psnr - self.bicubic
        return f"val {self.psnr:.3f} dB, bicubic {self.bicubic:.3f} ({gain:+.3f})"


class Validation:
    """A fixed set of crops, evenly spread over the frames of the split.

    Args:
        config: of the run.
        colour: of the net.
    """

    def __init__(self, config: Config, colour: Colour) -> None:
        self._scale, self._side = config.net.scale, config.validate.side
        self._crops = [self._crop(pair, i, colour) for i, pair in enumerate(_chosen(config))]
        scores = [
            _psnr(bicubic(_tensor(low), self._scale), _tensor(high), self._scale)
            for low, high in self._crops
        ]
        self.bicubic = float(np.mean(scores)) if scores else 0.0

    def __len__(self) -> int:
        return len(self._crops)

    def _crop(self, pair: Pair, number: int, colour: Colour) -> tuple[Pixels, Pixels]:
        low, high = (planes(read_png(path), colour) for path in (pair.low, pair.high))
        s, side = self._scale, min(self._side, *low.shape[:2])
        dice = np.random.default_rng((0, number))
        top, left = (int(dice.integers(length - side + 1)) for length in low.shape[:2])
        return (
            low[top : top + side, left : left + side],
            high[top * s : (top + side) * s, left * s : (left + side) * s],
        )

    @torch.inference_mode()
    def score(self, net: nn.Module) -> Score:
        """Upscale every crop with a net as `nets.deployed` makes it, on its device."""
        device = _device(net)
        scores = [
            _psnr(net(_tensor(low).to(device)).clamp(0, 1).cpu(), _tensor(high), self._scale)
            for low, high in self._crops
        ]
        return Score(float(np.mean(scores)), self.bicubic)

    @torch.inference_mode()
    def sample(self, net: nn.Module) -> Pixels:
        """Show some crops, uint8 RGB or grey (H, W, C): bicubic, the net, the truth."""
        device = _device(net)
        step = max(1, len(self._crops) // SAMPLES)
        rows = []
        for low, high in self._crops[::step][:SAMPLES]:
            x = _tensor(low)
            pictures = [bicubic(x, self._scale), net(x.to(device)).cpu(), _tensor(high)]
            rows.append(torch.cat([p.clamp(0, 1)[0] for p in pictures], dim=2))
        sheet = (torch.cat(rows, dim=1) * 255).round().byte().permute(1, 2, 0)
        return np.ascontiguousarray(sheet.numpy())


def _chosen(config: Config) -> list[Pair]:
    """Choose frames; none if there are none, with a line that says so."""
    wanted = config.validate
    low, high = HEIGHTS_OF[config.net.scale][0]
    if wanted.kind == "DownscaleData":
        low, high = HEIGHTS_OF[config.net.scale][-1]
    try:
        pairs, problems = find_pairs(
            Path(config.data.root), wanted.kind, wanted.split, low=low, high=high
        )
    except DataError as exc:
        log.warning("no validation: %s", exc)
        return []
    for problem in problems[:5]:
        log.warning("skipped %s", problem)
    good = []
    count = min(wanted.crops, len(pairs))
    for i in range(count):
        pair = pairs[i * len(pairs) // count]
        try:
            read_png(pair.low), read_png(pair.high)
        except DataError as exc:
            log.warning("skipped %s: %s", pair.name, exc)
        else:
            good.append(pair)
    return good


def bicubic(x: Tensor, scale: int) -> Tensor:
    """Keys' cubic with a = -0.75, half-pixel centres: cv2's INTER_CUBIC."""
    y = F.interpolate(x, scale_factor=float(scale), mode="bicubic", align_corners=False)
    return y.clamp(0, 1)


def _psnr(picture: Tensor, truth: Tensor, scale: int) -> float:
    """PSNR in dB of 8-bit pictures [1, C, H, W], 0..1, without `EDGE`; 100 for equal ones."""
    edge = EDGE * scale
    levels = [(p[..., edge:-edge, edge:-edge] * 255).round() for p in (picture, truth)]
    error = float((levels[0] - levels[1]).double().square().mean())
    return 100.0 if error == 0 else 10 * float(np.log10(255**2 / error))


def _tensor(pixels: Pixels) -> Tensor:
    """uint8 (H, W, C) to float [1, C, H, W], 0..1."""
    array = np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)
    return torch.from_numpy(array)[None] / 255


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


def write_png(path: Path, picture: Pixels) -> None:
    """Write uint8 RGB or grey (H, W, C)."""
    bgr = picture[..., ::-1] if picture.shape[-1] == 3 else picture
    done, data = cv2.imencode(".png", np.ascontiguousarray(bgr))
    assert done
    path.write_bytes(data.tobytes())
