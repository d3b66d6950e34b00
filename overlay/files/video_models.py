"""A frame of a video to a large one, in three parts that run on three threads.

A shipped net runs as it does live, and its large pictures never become RGB. It gives BT.601 luma
Y'; the picture is RGB = up(source) + (Y' - luma(up(source))), which adds the same to red, green
and blue. In any other matrix that, too, changes luma alone and by as much: its luma is
Y' + up(luma - luma601), which is linear in chroma, and chroma is that of the source, enlarged.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from engines import zoo
from engines.load import locate
from engines.spec import ModelSpec
from overlay.closing import Closing
from overlay.errors import OverlayError
from overlay.files import video_colour
from overlay.files.enlarge import Wish, model_name, open_model
from overlay.files.errors import FileError
from overlay.files.video_colour import WEIGHTS, Colour
from overlay.files.video_source import Clip

#: A frame that is not done by then is given up.
_PATIENCE_S = 600.0


@dataclass(slots=True)
class Item:
    """A frame on its way.

    Attributes:
        frame: as decoded, or what of it is needed later.
        pixels: what the model takes.
        large: what it gave.
    """

    frame: Any
    pixels: Any
    large: Any = None


class Enlarger(Closing):
    """Enlarges the frames of one video; each method is called on one thread, not all on the same.

    Attributes:
        name: of the model.
        sha256: its identity.
        size: (width, height) of the frames that are given.
        largest: (width, height) of what the model itself gives.
        layout: FFmpeg's name of their pixel format: 4:2:0 of 8 or 10 bits.
    """

    name: str
    sha256: str
    size: tuple[int, int]
    largest: tuple[int, int]
    layout: str

    @abstractmethod
    def prepare(self, frame: Any) -> Item:
        """Make of a decoded frame what the model takes."""

    @abstractmethod
    def run(self, item: Item) -> None:
        """Run the model: fills `large`.

        Raises:
            OverlayError, EngineError: it failed.
        """

    @abstractmethod
    def finish(self, item: Item) -> Any:
        """Give a large frame of `size` and `layout`, with the source's colours."""

    def close(self) -> None:
        """Free the model; idempotent."""


class RgbEnlarger(Enlarger):
    """Any model, in RGB; of 10 bits and more in float.

    Args:
        clip: what is enlarged.
        wish: how.
        size: (width, height) of the result.
    """

    def __init__(self, clip: Clip, wish: Wish, size: tuple[int, int]) -> None:
        self._model = open_model(wish, clip.size)
        self._wish, self._colour = wish, clip.colour
        self._given: Literal["rgb24", "rgb48le"] = "rgb24" if clip.depth == 8 else "rgb48le"
        self.name = model_name(wish, clip.size)
        self.sha256 = locate(self.name).sha256
        self.size, self.largest = size, _times(clip.size, self._model.scale)
        self.layout = layout_for(clip)

    def prepare(self, frame: Any) -> Item:
        """Convert to RGB, see `Enlarger`."""
        return Item(None, video_colour.rgb_from_frame(frame, self._colour, self._given))

    def run(self, item: Item) -> None:
        """Run the model on RGB, see `Enlarger`."""
        try:
            item.large = self._model.upscale(
                item.pixels, seed=self._wish.seed, chunk=self._wish.tile
            )
        except ValueError as exc:  # a tile of a size that the model does not take, say
            raise FileError(str(exc)) from exc

    def finish(self, item: Item) -> Any:
        """Convert from RGB, see `Enlarger`."""
        return video_colour.frame_from_rgb(item.large, self._colour, self.layout, self.size)


class LumaEnlarger(Enlarger):
    """A shipped net in OpenVINO, for 8 bits, as quick as live.

    Args:
        clip: what is enlarged.
        spec: the net.
        size: (width, height) of the result.
    """

    layout = "yuv420p"

    def __init__(self, clip: Clip, spec: ModelSpec, size: tuple[int, int]) -> None:
        from overlay.frame import Size
        from overlay.infer import warmed_up
        from overlay.infer.openvino import OpenVinoUpscaler

        self._net = warmed_up(OpenVinoUpscaler(spec), Size(*clip.size))
        self._colour = clip.colour
        self._joint = LumaJoint(clip.size, spec.scale, clip.colour)
        self.name = spec.id
        self.size, self.largest = size, _times(clip.size, spec.scale)
        self.sha256 = locate(spec.id).sha256

    def prepare(self, frame: Any) -> Item:
        """Convert to 4:2:0 and BGRA, see `Enlarger`."""
        small = frame
        if frame.format.name not in ("yuv420p", "yuvj420p"):
            small = video_colour.converted(frame, self._colour, "yuv420p")
        pixels = video_colour.rgb_from_frame(frame, self._colour, "bgra")
        return Item(small, np.ascontiguousarray(pixels))

    def run(self, item: Item) -> None:
        """Run the net on BGRA, see `Enlarger`."""
        from overlay.frame import Frame, Region

        height, width = item.pixels.shape[:2]
        self._net.submit(Frame(item.pixels, 0, 0, 0, Region(0, 0, width, height)))
        item.large = self._net.poll(_PATIENCE_S)
        if item.large is None:
            raise OverlayError(f"{self.name} did not answer for {_PATIENCE_S:.0f} s")

    def finish(self, item: Item) -> Any:
        """Join luma and chroma, see `Enlarger`."""
        chroma = [_plane(item.frame.planes[number]) for number in (1, 2)]
        planes = self._joint.joined(item.large.pixels, *chroma)
        item.large = None  # its buffer goes back to the net
        return video_colour.resized(
            video_colour.av_frame(planes, "yuv420p"), self.size, self._colour
        )

    def close(self) -> None:
        """Free the net."""
        self._net.close()


def _times(size: tuple[int, int], scale: int) -> tuple[int, int]:
    return size[0] * scale, size[1] * scale


def layout_for(clip: Clip) -> str:
    """FFmpeg's name of the pixel format in which a video's large frames are given."""
    return "yuv420p" if clip.depth == 8 else "yuv420p10le"


def _plane(plane: Any) -> NDArray[np.uint8]:
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return rows[: plane.height, : plane.width]


class LumaJoint:
    """Joins a net's luma and a source's chroma to 4:2:0.

    Chroma lies on the left column of its two, as MPEG-2 and H.264 have it unless they say
    otherwise, and is enlarged bilinearly.

    Args:
        size: (width, height) of the source; times the scale it must be even.
        scale: of the luma.
        colour: of source and result.
    """

    def __init__(self, size: tuple[int, int], scale: int, colour: Colour) -> None:
        self._size = size[0] * scale, size[1] * scale
        levels = np.arange(256, dtype=np.float64)
        span = 255.0 if colour.full else 219.0
        luma = levels if colour.full else 16 + levels * span / 255
        self._luma = np.rint(luma).astype(np.uint8)[None]
        self._weights = _chroma_weights(colour)
        self._to_chroma = _affine(1 / scale, 0.25 / scale - 0.25, 1 / scale, 0.5 / scale - 0.5)
        half = 0.5 / scale
        self._to_luma = _affine(half, 0.5 * half - 0.25, half, 0.5 * half - 0.5)

    def joined(
        self, luma: NDArray[np.uint8], blue: NDArray[np.uint8], red: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """Give the three planes one below the other, as PyAV takes them.

        Args:
            luma: (H*s, W*s), BT.601, full range.
            blue, red: the source's chroma planes, (ceil(H/2), ceil(W/2)).
        Returns:
            (H*s*3/2, W*s), a new array.
        """
        width, height = self._size
        planes = np.empty((height * 3 // 2, width), np.uint8)
        large = planes[:height]
        cv2.LUT(luma, self._luma, dst=large)
        if any(self._weights):
            more = (blue.astype(np.float32) - 128) * self._weights[0]
            more += (red.astype(np.float32) - 128) * self._weights[1]
            cv2.add(large, self._warped(more, self._to_luma, self._size), large, dtype=cv2.CV_8U)
        half = width // 2, height // 2
        rest = planes[height:].reshape(2, half[1], half[0])
        for plane, chroma in zip(rest, (blue, red), strict=True):
            plane[:] = self._warped(chroma, self._to_chroma, half)
        return planes

    @staticmethod
    def _warped(plane: NDArray[Any], matrix: NDArray[np.float64], size: tuple[int, int]) -> Any:
        how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(plane, matrix, size, flags=how, borderMode=cv2.BORDER_REPLICATE)


def _affine(x: float, left: float, y: float, top: float) -> NDArray[np.float64]:
    return np.array([[x, 0, left], [0, y, top]])


def _chroma_weights(colour: Colour) -> tuple[np.float32, np.float32]:
    """What one level of Cb and of Cr adds to luma over BT.601's luma of the same RGB, in levels."""
    kr, kb = WEIGHTS[colour.matrix]
    green = 1 - kr - kb
    blue = -(0.114 * 2 * (1 - kb) - 0.587 * 2 * kb * (1 - kb) / green)
    red = -(0.299 * 2 * (1 - kr) - 0.587 * 2 * kr * (1 - kr) / green)
    unit = 1.0 if colour.full else 219 / 224
    found = np.float32(blue * unit), np.float32(red * unit)
    return found if max(map(abs, found)) > 1e-6 else (np.float32(0), np.float32(0))


def open_enlarger(clip: Clip, wish: Wish, size: tuple[int, int]) -> Enlarger:
    """Open what enlarges a video to `size`, (width, height).

    Raises:
        EngineError: as `engines.offline.open_offline`.
    """
    spec = next((row for row in zoo.SHIPPED if row.id == model_name(wish, clip.size)), None)
    if (
        spec is not None
        and clip.depth == 8
        and wish.backend in ("auto", "openvino")
        and wish.device in ("auto", "cpu")
        and not wish.tile
        and find_spec("openvino")
        and all(side % 2 == 0 for side in _times(clip.size, spec.scale))
    ):
        return LumaEnlarger(clip, spec, size)
    return RgbEnlarger(clip, wish, size)
