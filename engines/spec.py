"""What is known about a model before any of its files is opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: (width, height) in pixels.
Size = tuple[int, int]
Output = Literal["luma", "bgra"]
Precision = Literal["fp32", "fp16", "int8"]

#: Number of the recipe by which `engines.export` makes graphs: a change of what it makes counts
#: it up, and engines made by an earlier one are stale.
EXPORT_REVISION = 1


@dataclass(frozen=True, slots=True)
class Source:
    """One file that holds a model's weights.

    Attributes:
        kind: where to look. "shipped": `engines/weights`; "package": a distribution that the
            user installed, in ncnn's format; "file": a file of this name in a folder of the
            user's.
        name: file name; for "package" the path inside it of the `.bin`, whose `.param` is
            beside it.
        sha256: of the file, hexadecimal; "" where none is known, so that its tensors' names and
            shapes are all that can be checked.
        package: name of the distribution.
        url: where people get the file.
    """

    kind: Literal["shipped", "package", "file"]
    name: str
    sha256: str
    package: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One row of the zoo.

    Attributes:
        id: name on the command line.
        architecture: module in `engines.archs`; "spandrel" or "onnx" for users' own files.
        scale: output size / input size.
        licence: SPDX identifier of the weights.
        sources: the files that hold the weights, each alone enough; the first found is taken.
        shape: arguments of the architecture.
        net_scale: scale of the net itself where a bicubic resize to `scale` follows it, else 0.
        blend: the second file of a model that blends two, weight for weight.
        beside: of these files too one is needed, besides one of `sources`.
        offline: for single pictures, see `engines.offline`: too slow to run beside a game, so
            there are no engines of it.
        output: what the engine's pictures are: "bgra", or "luma" (BT.601 full range), whose
            colours the presenter takes from the source.
        size_multiple: the net wants width and height to be multiples of this; exported graphs
            pad by themselves.
        receptive_field: how many source pixels away from an output pixel (on each side, at
            most) a source pixel can change it; 0 for an offline model: the whole picture.
        fp16_max: largest difference between FP16 and FP32 that is accepted, in levels of 255.
        fp16_mean: the same for the mean absolute difference.
        author: of the weights, for people.
        onnx: shipped ONNX file in `engines/weights`; input `bgra`, uint8 BGRA (1, H, W, 4), any
            H and W; output uint8 (1, H, W, scale*scale*channels), a block of scale x scale
            output pixels per input pixel, (dy, dx, channel). "" where none is shipped.
        onnx_sha256: of `onnx`, hexadecimal.
        notes: for people.
    """

    id: str
    architecture: str
    scale: int
    licence: str
    sources: tuple[Source, ...]
    shape: tuple[tuple[str, int], ...] = ()
    net_scale: int = 0
    blend: Source | None = None
    beside: tuple[Source, ...] = ()
    offline: bool = False
    output: Output = "bgra"
    size_multiple: int = 1
    receptive_field: int = 0
    fp16_max: int = 8
    fp16_mean: float = 0.15
    author: str = ""
    onnx: str = ""
    onnx_sha256: str = ""
    notes: str = ""

    @property
    def has_weights(self) -> bool:
        """Whether weights for this row exist at all; if not, it is a shape to be trained."""
        return bool(self.sources)

    @property
    def why_no_engine(self) -> str:
        """Say in one line why there is no engine of an offline model."""
        return (
            f"{self.id} is offline: it is far too slow to run live, so there are no engines of "
            "it; choose another model"
        )


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine read from the cache, verified: all that is needed to run it.

    Attributes:
        model: id of the model, "realesr-animevideov3-x4" say.
        scale: output size / input size.
        output: "bgra" or "luma", see `ModelSpec`.
        sizes: source sizes it takes.
        precision: what it computes in.
        backend: the back end it is for, as on the command line.
        data: the engine itself. Input `bgra`, uint8 (1, H, W, 4); output `picture`, uint8
            (1, H*scale, W*scale, 4) or, for luma, (1, H*scale, W*scale).
    """

    model: str
    scale: int
    output: Output
    sizes: tuple[Size, ...]
    precision: Precision
    backend: str
    data: bytes
