"""EMT as trained, written a second time: in NumPy, in float64, a window and a head at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Planes = NDArray[np.float64]

#: Mean colour (R, G, B) of DF2K, 0..255.
MEAN = 255 * np.array((0.4690, 0.4490, 0.4036)).reshape(3, 1, 1)


class Definition:
    """The net of the paper with 3 heads and windows of 32x8 and 8x32, normalisations and all.

    Args:
        state: tensors by the names of the released files.
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = {name: tensor.double().numpy() for name, tensor in state.items()}

    def __call__(self, rgb: Planes) -> Planes:
        """float64 RGB (3, H, W), 0..1, to (3, H*scale, W*scale)."""
        x = first = self.conv3(rgb * 255 - MEAN, "head")
        blocks = {name.split(".")[1] for name in self.state if name.startswith("body.")}
        for block in sorted(blocks, key=int):
            count = sum(f"body.{block}.mlp_list" in n and "fc1.mask" in n for n in self.state)
            for layer in range(count):
                name = f"body.{block}.sa_list.{layer}"
                attends = f"{name}.proj.0.bias" in self.state
                x = x + (self.attention(x, name, layer % 2) if attends else self.mixer(x, name))
                name = f"body.{block}.mlp_list.{layer}"
                inner = self.shifted(x, f"{name}.fc1")
                x = x + self.shifted(inner / (1 + np.exp(-inner)), f"{name}.fc2")
        y = self.conv3(x + first, "tail.0")
        scale = round((len(y) / 3) ** 0.5)
        height, width = y.shape[1:]
        y = y.reshape(3, scale, scale, height, width).transpose(0, 3, 1, 4, 2)
        return (y.reshape(3, height * scale, width * scale) + MEAN) / 255

    def conv3(self, x: Planes, name: str) -> Planes:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        height, width = x.shape[1:]
        wide = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        parts = [
            np.einsum("oi,ihw->ohw", weight[:, :, y, x], wide[:, y : y + height, x : x + width])
            for y in range(3)
            for x in range(3)
        ]
        return np.sum(parts, 0) + bias[:, None, None]

    def conv1(self, x: Planes, name: str) -> Planes:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return np.einsum("oi,ihw->ohw", weight[:, :, 0, 0], x) + bias[:, None, None]

    def norm(self, x: Planes, name: str) -> Planes:
        weight, bias, mean, var = (
            self.state[f"{name}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * weight + bias

    def shifted(self, x: Planes, name: str) -> Planes:
        """By fifths of the channels: what is right, left, below, above, here; 0 outside."""
        fifth, wide = len(x) // 5, np.pad(x, ((0, 0), (1, 1), (1, 1)))
        there = wide.copy()[:, 1:-1, 1:-1]
        there[:fifth] = wide[:fifth, 1:-1, 2:]
        there[fifth : 2 * fifth] = wide[fifth : 2 * fifth, 1:-1, :-2]
        there[2 * fifth : 3 * fifth] = wide[2 * fifth : 3 * fifth, 2:, 1:-1]
        there[3 * fifth : 4 * fifth] = wide[3 * fifth : 4 * fifth, :-2, 1:-1]
        return self.conv1(there, name)

    def mixer(self, x: Planes, name: str) -> Planes:
        there = x.copy()
        there[0::5], there[1::5] = np.roll(x[0::5], -1, 2), np.roll(x[1::5], 1, 2)
        there[2::5], there[3::5] = np.roll(x[2::5], -1, 1), np.roll(x[3::5], 1, 1)
        return self.norm(there - x, f"{name}.norm")

    def attention(self, x: Planes, name: str, shifted: int) -> Planes:
        features = self.norm(self.conv1(x, f"{name}.attn.0"), f"{name}.attn.1")
        halves = np.split(features, 2)
        done = [
            self.windows(halves[0], 32, 8, shifted),
            self.windows(halves[1], 8, 32, shifted),
        ]
        return self.conv1(np.concatenate(done), f"{name}.proj.0")

    def windows(self, x: Planes, rows: int, columns: int, shifted: int) -> Planes:
        channels, height, width = x.shape
        x = np.pad(x, ((0, 0), (0, -height % rows), (0, -width % columns)), mode="reflect")
        move = (rows // 2 * shifted, columns // 2 * shifted)
        x = np.roll(x, move, (1, 2))
        y = np.empty((channels // 2, *x.shape[1:]))
        size = channels // 6  # of a head
        for top in range(0, x.shape[1], rows):
            for left in range(0, x.shape[2], columns):
                for head in range(3):
                    cut = np.s_[:, top : top + rows, left : left + columns]
                    query = x[head * size : (head + 1) * size][cut].reshape(size, -1)
                    value = x[(3 + head) * size : (4 + head) * size][cut].reshape(size, -1)
                    products = query.T @ query
                    weights = np.exp(products - products.max(1, keepdims=True))
                    weights /= weights.sum(1, keepdims=True)
                    y[head * size : (head + 1) * size][cut] = (weights @ value.T).T.reshape(
                        size, rows, columns
                    )
        return np.roll(y, (-move[0], -move[1]), (1, 2))[:, :height, :width]
