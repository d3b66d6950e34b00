"""Weights in ncnn's format: the text of a `.param` and the numbers of its `.bin`.

Only the two nets that Real-ESRGAN publishes in it are read: the layers of the `.param` must be
exactly those of a `compact` or an `rrdb` net, connected in exactly that way, and the `.bin` must
hold exactly their numbers. Nothing of ncnn is imported.

Format: https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.errors import ModelInvalid

Floats = NDArray[np.float32]
Value = int | float | tuple[float, ...]

#: First line of a `.param`.
_MAGIC = "7767517"
#: Before the weights of a convolution: they are float16, or float32.
_FLOAT16, _FLOAT32 = 0x01306B47, 0
#: Longest `.param` that is read, in bytes; that of the largest net has 116 029.
_MAX_PARAM = 4 << 20
#: What `.bin` files call the layers of an rrdb net beside those of its blocks.
_RRDB_ENDS = ("conv_first", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last")
_LEAKY: dict[int, Value] = {9: 2, -23310: (0.2,)}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a `.param`.

    Attributes:
        kind: "Convolution" say.
        inputs: index of the layer that gives each input; a Split counts as what it splits.
        parameters: by ncnn's number of each.
    """

    kind: str
    inputs: tuple[int, ...]
    parameters: dict[int, Value]


@dataclass(frozen=True, slots=True)
class NcnnModel:
    """What a pair of files holds.

    Attributes:
        architecture: "compact" or "rrdb".
        shape: as `engines.archs` takes it.
        resize: factor of the bicubic resize after the net; 1.0 if there is none.
        tensors: float32, by parameter name of `engines.archs`.
    """

    architecture: str
    shape: dict[str, int]
    resize: float
    tensors: dict[str, Floats]


def read(param: bytes, data: bytes, name: str) -> NcnnModel:
    """Read a model.

    Args:
        param: content of the `.param`.
        data: content of the `.bin`.
        name: of the model, for messages.
    Raises:
        ModelInvalid: the files are damaged, do not belong together, or hold another net.
    """
    try:
        layers = _layers(param)
        architecture, shape, resize = _recognised(layers)
        tensors = _tensors(layers, data)
    except ValueError as exc:
        raise ModelInvalid(f"{name} is not an ncnn model that can be read: {exc}") from exc
    names = _compact_names(shape) if architecture == "compact" else _rrdb_names(shape)
    return NcnnModel(architecture, shape, resize, dict(zip(names, tensors, strict=True)))


def _layers(param: bytes) -> list[Layer]:
    """Parse a `.param`, leaving out its Splits."""
    if len(param) > _MAX_PARAM:
        raise ValueError(f"its .param has {len(param)} bytes, more than {_MAX_PARAM}")
    try:
        lines = param.decode("ascii").strip().splitlines()
    except UnicodeDecodeError:
        raise ValueError("its .param is not text") from None
    if len(lines) < 2 or lines[0].strip() != _MAGIC:
        raise ValueError(f"its .param does not begin with {_MAGIC}")
    if not re.fullmatch(r"\s*\d{1,6}\s+\d{1,6}\s*", lines[1], re.ASCII):
        raise ValueError("the second line of its .param is not two counts")
    layer_count, blob_count = map(int, lines[1].split())
    if layer_count != len(lines) - 2:
        raise ValueError(f"its .param has {len(lines) - 2} layers and says {layer_count}")
    layers: list[Layer] = []
    givers: dict[str, int] = {}  # blob -> index in `layers` of the layer that gives it
    for number, line in enumerate(lines[2:], 3):
        try:
            _parse(line.split(), layers, givers)
        except (ValueError, KeyError, IndexError) as exc:
            raise ValueError(f"line {number} of its .param is wrong ({exc})") from None
    if len(givers) != blob_count:
        raise ValueError(f"its .param has {len(givers)} blobs and says {blob_count}")
    return layers


def _parse(words: list[str], layers: list[Layer], givers: dict[str, int]) -> None:
    """Take one line: kind, name, counts, blobs in, blobs out, parameters."""
    kind, ins, outs = words[0], _count(words[2]), _count(words[3])
    blobs, rest = words[4 : 4 + ins + outs], words[4 + ins + outs :]
    if len(blobs) != ins + outs:
        raise ValueError("blobs are missing")
    inputs = tuple(givers[blob] for blob in blobs[:ins])
    given = blobs[ins:]
    if len(set(given)) != outs or not givers.keys().isdisjoint(given):
        raise ValueError("a blob is given twice")
    if kind == "Split":
        if ins != 1 or rest:
            raise ValueError("a Split has one input and no parameters")
        givers.update(dict.fromkeys(given, inputs[0]))
        return
    if outs != 1:
        raise ValueError(f"{outs} outputs")
    givers[given[0]] = len(layers)
    layers.append(Layer(kind, inputs, dict(_parameter(word) for word in rest)))


def _count(word: str) -> int:
    if not re.fullmatch(r"\d{1,3}", word, re.ASCII):
        raise ValueError(f"{word[:20]!r} is no count")
    return int(word)


def _parameter(word: str) -> tuple[int, Value]:
    """Parse `0=64`, `1=5.0e-01` or, for arrays, `-23310=1,2.0e-01`."""
    match = re.fullmatch(r"(-?\d{1,5})=([-+.,\deE]{1,80})", word, re.ASCII)
    if match is None:
        raise ValueError(f"{word[:40]!r} is no parameter")
    key, values = int(match[1]), match[2].split(",")
    if key <= -23300:
        if int(values[0]) != len(values) - 1:
            raise ValueError(f"{word[:40]!r} has another length than it says")
        return key, tuple(map(float, values[1:]))
    if re.fullmatch(r"-?\d{1,9}", match[2], re.ASCII):
        return key, int(match[2])
    return key, float(match[2])


def _recognised(layers: list[Layer]) -> tuple[str, dict[str, int], float]:
    """Tell architecture, shape and final resize, or raise ValueError."""
    kinds = Counter(layer.kind for layer in layers)
    convs = [layer for layer in layers if layer.kind == "Convolution"]
    features = _integer(convs[0], 0) if convs else 0
    resize, net = 1.0, layers
    if kinds["PReLU"]:
        last = layers[-1]
        if last.kind == "Interp" and last.parameters.get(0) == 3:
            resize, net = _factor(last, len(layers)), layers[:-1]
        scale = next((_integer(layer, 0) for layer in net if layer.kind == "PixelShuffle"), 0)
        shape = {"features": features, "convs": kinds["PReLU"] - 1, "scale": scale}
        architecture, expected = "compact", _compact_layers(**shape)
    else:
        blocks, left = divmod(len(convs) - len(_RRDB_ENDS), 15)
        if blocks < 1 or left:
            raise ValueError("its layers are neither those of a compact nor of an rrdb net")
        growth = _integer(convs[1], 0)
        shape = {"features": features, "growth": growth, "blocks": blocks, "scale": 4}
        architecture, expected = "rrdb", _rrdb_layers(features, growth, blocks)
    if not 1 <= features <= 1024 or not 1 <= shape["scale"] <= 8:
        raise ValueError(f"{features} channels and scale {shape['scale']} are out of bounds")
    for number, (layer, wanted) in enumerate(zip(net, expected, strict=False), 1):
        if layer != wanted:
            raise ValueError(f"its layer {number} ({layer.kind}) is not that of {architecture}")
    if len(net) != len(expected):
        raise ValueError(f"it has {len(net)} layers; {architecture} has {len(expected)}")
    return architecture, shape, resize


def _integer(layer: Layer, key: int) -> int:
    value = layer.parameters.get(key)
    if not isinstance(value, int):
        raise ValueError(f"parameter {key} of its {layer.kind} is no whole number")
    return value


def _factor(layer: Layer, count: int) -> float:
    """Check the bicubic resize at the end of `count` layers and give its factor."""
    factor = layer.parameters.get(1)
    wanted = Layer("Interp", (count - 2,), {0: 3, 1: factor or 0, 2: factor or 0})
    if not isinstance(factor, float) or not 0 < factor <= 1 or layer != wanted:
        raise ValueError("its resize is not a bicubic one by one factor up to 1")
    return factor


def _conv(giver: int, inputs: int, outputs: int, extra: dict[int, Value] | None = None) -> Layer:
    """A 3x3 convolution with bias, padded by 1."""
    weights = inputs * outputs * 9
    return Layer(
        "Convolution", (giver,), {0: outputs, 1: 3, 4: 1, 5: 1, 6: weights, **(extra or {})}
    )


def _compact_layers(features: int, convs: int, scale: int) -> list[Layer]:
    """The layers of a compact net in the order of the files."""
    layers = [Layer("Input", (), {})]
    inputs = 3
    for _ in range(convs + 1):
        layers.append(_conv(len(layers) - 1, inputs, features))
        layers.append(Layer("PReLU", (len(layers) - 1,), {0: features}))
        inputs = features
    layers.append(_conv(len(layers) - 1, features, 3 * scale**2))
    layers.append(Layer("PixelShuffle", (len(layers) - 1,), {0: scale}))
    layers.append(Layer("Interp", (0,), {0: 1, 1: float(scale), 2: float(scale)}))
    layers.append(Layer("BinaryOp", (len(layers) - 2, len(layers) - 1), {}))
    return layers


def _rrdb_layers(features: int, growth: int, blocks: int) -> list[Layer]:
    """The layers of an rrdb net in the order of the files."""
    layers = [Layer("Input", (), {}), _conv(0, 3, features)]
    for _ in range(blocks):
        start = len(layers) - 1
        for _ in range(3):
            _add_dense_block(layers, features, growth)
        layers.append(_sum(len(layers) - 1, start))
    layers.append(_conv(len(layers) - 1, features, features))
    layers.append(Layer("BinaryOp", (1, len(layers) - 1), {}))
    for _ in range(2):
        layers.append(Layer("Interp", (len(layers) - 1,), {0: 1, 1: 2.0, 2: 2.0}))
        layers.append(_conv(len(layers) - 1, features, features, _LEAKY))
    layers.append(_conv(len(layers) - 1, features, features, _LEAKY))
    layers.append(_conv(len(layers) - 1, features, 3))
    return layers


def _add_dense_block(layers: list[Layer], features: int, growth: int) -> None:
    seen = [len(layers) - 1]
    for step in range(5):
        if step:
            layers.append(Layer("Concat", tuple(seen), {}))
        last = step == 4
        inputs, outputs = features + step * growth, features if last else growth
        layers.append(_conv(len(layers) - 1, inputs, outputs, None if last else _LEAKY))
        seen.append(len(layers) - 1)
    layers.append(_sum(seen[-1], seen[0]))


def _sum(residual: int, source: int) -> Layer:
    """Add 0.2 of the residual to the source."""
    return Layer("Eltwise", (residual, source), {0: 1, -23301: (0.2, 1.0)})


def _tensors(layers: list[Layer], data: bytes) -> list[Floats]:
    """Cut the `.bin` into weight, bias and slopes, in order; all of it must be used."""
    tensors: list[Floats] = []
    offset = 0
    for layer in layers:
        if layer.kind == "Convolution":
            outputs = _integer(layer, 0)
            flag, offset = int.from_bytes(data[offset : offset + 4], "little"), offset + 4
            if flag not in (_FLOAT16, _FLOAT32):
                raise ValueError(f"the weights of a Convolution are in an unknown form ({flag:#x})")
            weight, offset = _numbers(data, offset, _integer(layer, 6), half=flag == _FLOAT16)
            bias, offset = _numbers(data, offset, outputs)
            tensors += [weight.reshape(outputs, -1, 3, 3), bias]
        elif layer.kind == "PReLU":
            slopes, offset = _numbers(data, offset, _integer(layer, 0))
            tensors.append(slopes)
    if offset != len(data):
        raise ValueError(f"its .bin has {len(data)} bytes, its .param describes {offset}")
    return tensors


def _numbers(data: bytes, offset: int, count: int, half: bool = False) -> tuple[Floats, int]:
    """Read numbers; float16 is padded to whole groups of 4 bytes."""
    end = offset + (-(-count * 2 // 4) * 4 if half else count * 4)
    if count < 1 or end > len(data):
        raise ValueError(f"its .bin has {len(data)} bytes, its .param describes {end} or more")
    numbers = np.frombuffer(data, "<f2" if half else "<f4", count, offset).astype(np.float32)
    if not np.isfinite(numbers).all():
        raise ValueError("its .bin holds NaN or infinity")
    return numbers, end


def _compact_names(shape: dict[str, int]) -> Iterator[str]:
    for index in range(shape["convs"] + 1):
        yield f"body.{2 * index}.weight"
        yield f"body.{2 * index}.bias"
        yield f"body.{2 * index + 1}.weight"
    last = 2 * shape["convs"] + 2
    yield f"body.{last}.weight"
    yield f"body.{last}.bias"


def _rrdb_names(shape: dict[str, int]) -> Iterator[str]:
    dense = [
        f"body.{block}.rdb{part}.conv{conv}"
        for block in range(shape["blocks"])
        for part in (1, 2, 3)
        for conv in (1, 2, 3, 4, 5)
    ]
    for conv in (_RRDB_ENDS[0], *dense, *_RRDB_ENDS[1:]):
        yield f"{conv}.weight"
        yield f"{conv}.bias"
