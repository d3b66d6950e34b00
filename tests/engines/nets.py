"""Small nets with random weights, game frames and users' graphs, for the tests of graphs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from engines import archs, frames, load, zoo
from engines.archs import emt
from engines.export import export
from engines.load import Loaded, Located
from engines.spec import ModelSpec, Precision, Size

FRAMES = Path(__file__).parents[1] / "data" / "freedoom"
Pixels = NDArray[np.uint8]


@cache
def game_frame(width: int, height: int, index: int = 0) -> Pixels:
    """A piece of a Freedoom frame, BGRA, alpha 255: its middle, colourful in 0 and 5."""
    picture = cv2.imread(str(sorted(FRAMES.glob("*-hr.png"))[index]))
    assert picture is not None
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    cut = picture[top : top + height, left : left + width]
    assert cut.shape[:2] == (height, width)
    return cv2.cvtColor(cut, cv2.COLOR_BGR2BGRA).astype(np.uint8)


@cache
def bright_frame(width: int, height: int) -> Pixels:
    """A piece of a shipped sample with light, dark and an edge between them, BGRA, alpha 255."""
    frame = frames.read((width, height))[4]
    assert frame[..., :3].std() > 30
    return frame


@cache
def random_net(name: str, **shape: int) -> Loaded:
    """A row with seeded random weights, some of its shape's numbers made smaller."""
    row = zoo.spec(name)
    return load.random_weights(replace(row, shape=tuple({**dict(row.shape), **shape}.items())))


#: What becomes of a row in a second: the nets as they are, the largest cut to one block.
SMALL = {
    "default-x2": {},
    "default-x3": {},
    "realesr-animevideov3-x3": {"features": 16, "convs": 4},
    "superultracompact-x2": {},
    "span-x2": {},
    "realesrgan-x4plus": {"blocks": 1},
    "realesrgan-x2plus": {"blocks": 1},
}


def small(name: str) -> Loaded:
    """A row's net: shipped weights where there are some, else small and random."""
    if name.startswith("default"):
        return load.read(load.locate(name))
    return random_net(name, **SMALL[name])


@cache
def exported(name: str, precision: Precision, *sizes: Size) -> bytes:
    """The graph of a `small` net."""
    return export(small(name), sizes, precision)


def user_spec(scale: int = 2) -> ModelSpec:
    return ModelSpec("mine", "onnx", scale, "as the file's", (), receptive_field=1)


def user_graph(
    *nodes: onnx.NodeProto,
    weights: dict[str, NDArray[np.generic]] | None = None,
    size: tuple[int | str, int | str] = ("w", "h"),
    opset: int = 17,
    scale: int = 2,
    names: tuple[str, str] = ("input", "output"),
) -> Loaded:
    """A model as a user gives it: `nodes` lead from `names[0]` to `names[1]`."""
    width, height = size
    graph = helper.make_graph(
        nodes,
        "mine",
        [helper.make_tensor_value_info(names[0], TensorProto.FLOAT, ["n", 3, height, width])],
        [helper.make_tensor_value_info(names[1], TensorProto.FLOAT, ["n", 3, "H", "W"])],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    located = Located("mine", user_spec(scale), (), "0" * 64, "a test's")
    return Loaded(located, user_spec(scale), None, model)


def conv_and_shuffle(**options: object) -> Loaded:
    """A user's graph: one convolution, blocks of channels to pixels."""
    kernel = np.random.default_rng(0).normal(0, 0.1, (12, 3, 3, 3)).astype(np.float32)
    kernel[:, :, 1, 1] += np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    first, last = options.get("names", ("input", "output"))  # type: ignore[misc]
    return user_graph(
        helper.make_node("Conv", [first, "kernel"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("DepthToSpace", ["features"], [last], blocksize=2, mode="CRD"),
        weights={"kernel": kernel},
        **options,  # type: ignore[arg-type]
    )


def resized_by_computed_sizes() -> Loaded:
    """A user's graph that works out the output's size in floats, as some exporters write it."""
    return user_graph(
        helper.make_node("Shape", ["input"], ["shape"]),
        helper.make_node("Cast", ["shape"], ["lengths"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["lengths", "factors"], ["longer"]),
        helper.make_node("Cast", ["longer"], ["sizes"], to=TensorProto.INT64),
        helper.make_node("Mul", ["input", "half"], ["darker"]),
        helper.make_node(
            "Resize",
            ["darker", "", "", "sizes"],
            ["output"],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        weights={
            "factors": np.array([1, 1, 2, 2], np.float32),
            "half": np.array(0.5, np.float32),
        },
    )


#: Two layers that attend, the second shifted, and one that mixes: all there is, once.
TINY_EMT = {
    "features": 30, "blocks": 1, "layers": 3, "attending": 2, "heads": 3, "ratio": 2, "scale": 2,
}  # fmt: skip


def _norm(channels: int, seed: torch.Generator) -> dict[str, Tensor]:
    return {
        "weight": 0.5 + torch.rand(channels, generator=seed),
        "bias": 0.3 * torch.randn(channels, generator=seed),
        "running_mean": 0.3 * torch.randn(channels, generator=seed),
        "running_var": 0.5 + torch.rand(channels, generator=seed),
        "num_batches_tracked": torch.tensor(7),
    }


@cache
def trained_emt(**changes: int) -> dict[str, Tensor]:
    """Tensors as training leaves them, with normalisations, under the names of released files."""
    seed = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = emt.build({**TINY_EMT, **changes})
    state = {}
    for name, tensor in net.state_dict().items():
        if name.endswith(".token_mixer.bias"):
            continue
        if name.endswith(".token_mixer.weight"):
            layer = name.removesuffix(".token_mixer.weight")
            mask = torch.zeros_like(tensor)
            for place, (y, x) in enumerate(((1, 2), (1, 0), (2, 1), (0, 1), (1, 1))):
                mask[place::5, 0, y, x] = 1
            state[f"{layer}.token_mixer.mask"] = mask
            state |= {f"{layer}.norm.{k}": t for k, t in _norm(len(tensor), seed).items()}
            state[f"{layer}.norm.running_mean"][4::5] *= 1e-3  # of channels that are not shifted
            state[f"{layer}.norm.running_var"][4::5] = 5.6e-45
            continue
        state[name] = tensor
        if tensor.dim() == 4 and not name.endswith(".mask") and "_mean" not in name:
            size = {"head": 0.01, "tail": 30.0}.get(name.split(".")[0], 1.0)  # for 0..255
            kernel = torch.randn(tensor.shape, generator=seed)
            state[name] = kernel * size * tensor[0].numel() ** -0.5
        if name.endswith(".attn.0.bias"):
            layer = name.removesuffix(".0.bias")
            state |= {f"{layer}.1.{k}": t for k, t in _norm(len(tensor), seed).items()}
    return state


def picture_state(spec: ModelSpec, seed: int = 1, deviation: float = 0.1) -> dict[str, Tensor]:
    """Tensors of a net that makes a picture of a picture: neither flat nor outside 0..1.

    `deviation` is that of what it makes of `bright_frame`; other frames get less.
    """
    if spec.architecture == "emt":
        state = dict(trained_emt(**dict(spec.shape)))
        return {**state, "tail.0.weight": state["tail.0.weight"] * 0.2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = archs.ARCHITECTURES[spec.architecture].build(dict(spec.shape))
        for parameter in net.parameters():
            if parameter.dim() == 4:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    if spec.architecture == "span":
        net.state_dict()["conv_1.eval_conv.weight"].div_(64)  # of -128 to 128
    mean = 0.5 if spec.architecture == "rrdb" else 0.25
    _settle(net.eval().requires_grad_(False), mean, deviation)
    return OrderedDict(net.state_dict())


def _settle(net: nn.Module, mean: float, deviation: float) -> None:
    """Bring what the last convolution gives to a mean and a standard deviation."""
    last = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)][-1]
    seen: list[Tensor] = []
    hook = last.register_forward_hook(lambda layer, given, made: seen.append(made))
    source = np.ascontiguousarray(bright_frame(32, 24)[..., 2::-1].transpose(2, 0, 1), np.float32)
    for _ in range(2):
        net(torch.from_numpy(source)[None] / 255)
        assert last.bias is not None
        last.weight.mul_(deviation / seen[-1].std())
        last.bias.add_(mean - seen[-1].mean((0, 2, 3)))
    hook.remove()
