"""Model files of strangers: nothing in them is run, memory stays small, one clear line."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save

from engines import load
from engines.archs import compact
from engines.errors import EngineMissing, ModelInvalid

MB = 1 << 20


def memory(line: str) -> int:
    """A figure of this process in bytes: VmRSS now, VmHWM the most since it was last reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{line}:")[2].split()[0]) << 10


@pytest.fixture(autouse=True)
def _memory_stays_small() -> Iterator[None]:
    """No test may need much more than the libraries that it may be the first to import."""
    reset = Path("/proc/self/clear_refs")
    if not os.access(reset, os.W_OK):
        yield
        return
    reset.write_text("5")
    before = memory("VmRSS")
    yield
    assert memory("VmHWM") - before < 500 * MB


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return compact.build({"features": 4, "convs": 1, "scale": 2})


def state() -> dict[str, torch.Tensor]:
    return dict(net().state_dict())


def saved(content: object, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """Check that the file is refused, in one line that fits a screen and names it."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ModelInvalid, match=message) as caught:
        load.read(load.locate(str(path)))
    text = str(caught.value)
    assert name in text
    assert "\n" not in text
    assert len(text) - len(str(tmp_path)) < 400


def accepted(tmp_path: Path, name: str, content: bytes) -> load.Loaded:
    path = tmp_path / name
    path.write_bytes(content)
    return load.read(load.locate(str(path)))


# --- what must be read ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"params": s},
        lambda s: {"params_ema": s, "params": {"x": torch.zeros(1)}},
        lambda s: {"state_dict": OrderedDict(s), "epoch": 3, "note": "fine"},
        lambda s: {"model": {"params": s}},
        lambda s: {f"module.{key}": torch.nn.Parameter(t) for key, t in s.items()},
        lambda s: {key: t.half() for key, t in s.items()},
    ],
    ids=["plain", "params", "ema", "training", "nested", "module", "half"],
)
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
def test_checkpoints_are_read(
    tmp_path: Path, wrap: Callable[[Any], Any], legacy: bool, suffix: str
) -> None:
    loaded = accepted(tmp_path, "net" + suffix, saved(wrap(state()), legacy))
    assert loaded.spec.architecture == "compact"
    assert loaded.spec.licence == "unknown (your file)"
    assert loaded.module is not None
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(loaded.module(x), net()(x), atol=2e-3, rtol=0)


# --- programs -------------------------------------------------------------------------------------


class Program:
    """A pickle of it makes a file when it is read by a plain reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("place", ["object", "entry", "metadata"])
@pytest.mark.parametrize("form", ["zip", "legacy", "protocol 4", "plain pickle"])
def test_programs_in_checkpoints_are_not_run(tmp_path: Path, place: str, form: str) -> None:
    mark = tmp_path / "it-ran"
    program = Program(mark)
    content: Any = {
        "object": program,
        "entry": {**state(), "x": program},
        "metadata": {"params": state(), "optimizer": program},
    }[place]
    buffer = io.BytesIO()
    if form == "plain pickle":
        data = pickle.dumps(program, 2)
        pickle.loads(data).close()
        assert mark.exists(), "the program must be one that works"
        mark.unlink()
    else:
        torch.save(
            content,
            buffer,
            _use_new_zipfile_serialization=form != "legacy",
            pickle_protocol=4 if form == "protocol 4" else 2,
        )
        data = buffer.getvalue()
    for suffix in (".pth", ".pt", ".ckpt"):
        refused(tmp_path, "evil" + suffix, data, "nothing was run|not a PyTorch checkpoint")
    assert not mark.exists()


@pytest.mark.parametrize(
    "call",
    ["builtins\nexec", "os\nsystem", "builtins\nbytearray", "torch\nTensor", "_codecs\nencode"],
)
def test_calls_are_refused_by_name(tmp_path: Path, call: str) -> None:
    program = b"\x80\x02c" + call.encode() + b"\nK\x05\x85R."
    refused(tmp_path, "evil.pth", program, "wants to call " + repr(call.replace("\n", " ")))
    with_zip = _archive({"evil/data.pkl": program})
    refused(tmp_path, "evil.pt", with_zip, "wants to call " + repr(call.replace("\n", " ")))


def test_a_whole_model_is_refused_with_what_to_do(tmp_path: Path) -> None:
    refused(tmp_path, "whole.pth", saved(net()), "wants to call .*save its state_dict")


def test_torchscript_is_refused_with_what_to_do(tmp_path: Path) -> None:
    archive = _archive({"a/data.pkl": b"\x80\x02}.", "a/constants.pkl": b"", "a/code/x.py": b""})
    refused(tmp_path, "script.pt", archive, "TorchScript")


# --- bombs ----------------------------------------------------------------------------------------


def _archive(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    bomb = _archive({"a/data.pkl": b"\x80\x02}.", "a/data/0": bytes(50 * MB)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < MB
    refused(tmp_path, "bomb.pth", bomb, "compressed")


def test_an_archive_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    data = bytearray(_archive({"a/data.pkl": b"\x80\x02}.", "a/data/0": bytes(100)}))
    entry = data.rindex(b"PK\x01\x02")  # the last entry of the directory
    for offset in (20, 24):  # both of its sizes
        data[entry + offset : entry + offset + 4] = (1 << 31).to_bytes(4, "little")
    refused(tmp_path, "bomb.pth", bytes(data), "holds more than the file has")


def test_tensors_larger_than_the_file_are_refused(tmp_path: Path) -> None:
    small = torch.zeros(1)
    for tensor in (small.expand(1 << 40), small.expand(1 << 20, 1 << 12), small.expand(40)):
        refused(tmp_path, "bomb.pth", saved({**state(), "x": tensor}), "larger than what is stored")
    base = torch.zeros(5000)
    views = {f"x{i}": base.view(5000) for i in range(50)}
    refused(tmp_path, "bomb.pth", saved(views), "larger than the file")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_size_that_is_not_in_the_file_is_refused(tmp_path: Path, legacy: bool) -> None:
    data = saved({"x": torch.zeros(3, 12345)}, legacy)
    assert b"M90" in data  # 12345 as the pickle has it
    claims = data.replace(b"M90", b"M\xff\xff")
    refused(tmp_path, "lie.pth", claims, "damaged|larger than the file")


@pytest.mark.parametrize(
    "name", ["body.999999999.weight", "model.1.sub.123456789.RDB1.conv1.0.weight", "9" * 5000]
)
def test_absurd_names_are_refused(tmp_path: Path, name: str) -> None:
    content = save({**state(), name: torch.zeros(4)})
    refused(tmp_path, "names.safetensors", content, "absurd number")


def test_a_net_far_larger_than_its_tensors_is_refused(tmp_path: Path) -> None:
    wide = torch.zeros(60_000, 3, 1, 1)  # would be a net of 32 GB
    tensors = {**state(), "body.0.weight": wide, "body.0.bias": torch.zeros(60_000)}
    refused(tmp_path, "wide.safetensors", save(tensors), "cannot be used: its tensor")
    old = {  # the same by way of spandrel's ESRGAN
        "model.0.weight": torch.zeros(8_000, 3, 1, 1),  # a net of 5 GB
        "model.1.sub.0.RDB1.conv1.0.weight": torch.zeros(1, 1, 1, 1),
        "model.1.sub.1.RDB1.conv1.0.weight": torch.zeros(1, 1, 1, 1),
        "model.1.sub.2.weight": torch.zeros(1, 1, 1, 1),
        "model.3.weight": torch.zeros(1, 1, 1, 1),
        "model.10.weight": torch.zeros(3, 1, 1, 1),
    }
    refused(tmp_path, "old.safetensors", save(old), "far larger than they are")


# --- damage and other things than nets ------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_cut_off_checkpoints_are_refused(tmp_path: Path, legacy: bool) -> None:
    data = saved(state(), legacy)
    for length in {0, 1, 4, 10, 64, *range(100, len(data) - 1, len(data) // 23), len(data) - 1}:
        refused(tmp_path, "cut.pth", data[:length], "no model that can be read")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".onnx", ".ckpt"])
def test_random_bytes_are_refused(tmp_path: Path, suffix: str) -> None:
    random = np.random.default_rng(0)
    for start in (b"", b"PK\x03\x04", b"\x80\x02", b"\x08\x07"):
        for length in (0, 9, 4000):
            refused(
                tmp_path, "noise" + suffix, start + random.bytes(length), "no model|not an ONNX"
            )


@pytest.mark.parametrize("form", ["pth", "legacy.pth", "safetensors"])
def test_flipped_bytes_never_do_worse_than_a_refusal(tmp_path: Path, form: str) -> None:
    whole = {
        "pth": lambda: saved(state()),
        "legacy.pth": lambda: saved(state(), legacy=True),
        "safetensors": lambda: save(state()),
    }[form]()
    random = np.random.default_rng(1)
    messages = []
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            data[random.integers(min(len(data), 2500))] = random.integers(256)
        try:
            accepted(tmp_path, f"flip.{form}", bytes(data))
        except ModelInvalid as exc:
            messages.append(str(exc))
    assert len(messages) > 20
    assert not [message for message in messages if "\n" in message]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({}, "holds 0 tensors"),
        ({"a": 3}, "'a' is a int, not a tensor"),
        ({"params": {"a": [torch.zeros(1)]}}, "'a' is a list"),
        ({1: torch.zeros(2)}, "'1' is a Tensor"),
        ({"x": torch.zeros(0, 3)}, "shape"),
        ({"x": torch.zeros(2, dtype=torch.complex64)}, "complex64|wants to call"),
        ({"x": torch.eye(3).to_sparse()}, "wants to call"),
        ({"x": torch.zeros(2, device="meta")}, "wants to call"),
        ({"x": torch.zeros([1] * 12)}, "shape"),
        ({"x": torch.zeros(3)}, "no known net"),
    ],
)
def test_what_is_no_net_is_refused(tmp_path: Path, content: object, message: str) -> None:
    refused(tmp_path, "other.pth", saved(content), message)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused(tmp_path: Path, value: float) -> None:
    tensors = state()
    tensors["body.0.weight"][0, 0, 0, 0] = value
    refused(tmp_path, "nan.safetensors", save(tensors), "'body.0.weight' holds NaN or infinity")
    refused(tmp_path, "nan.pth", saved(tensors), "NaN or infinity")


def test_grey_nets_are_refused(tmp_path: Path) -> None:
    tensors = {**state(), "body.0.weight": torch.zeros(4, 1, 3, 3)}
    refused(tmp_path, "grey.safetensors", save(tensors), "takes 1 channels, not RGB")


def test_safetensors_that_lie_are_refused(tmp_path: Path) -> None:
    def file(header: object, data: bytes = bytes(16), length: int | None = None) -> bytes:
        text = json.dumps(header).encode()
        return (len(text) if length is None else length).to_bytes(8, "little") + text + data

    def tensor(shape: list[int], *offsets: int) -> dict[str, object]:
        return {"x": {"dtype": "F32", "shape": shape, "data_offsets": list(offsets)}}

    for content in (
        file(tensor([1 << 40], 0, 16)),
        file(tensor([4], 0, 1 << 40)),
        file(tensor([4], 8, 24)),
        file(tensor([1 << 62, 1 << 62], 0, 16)),
        file(tensor([4], 0, 16), length=1 << 60),
        file(tensor([4], 0, 16), length=90 * MB),
        file([1]),
        file(tensor([2], 0, 8)),
    ):
        refused(tmp_path, "lie.safetensors", content, "not a safetensors file")


# --- ONNX -----------------------------------------------------------------------------------------


def graph(
    nodes: list[onnx.NodeProto] | None = None,
    constants: dict[str, np.ndarray[Any, Any]] | None = None,
    shape: tuple[object, ...] = (1, 3, "h", "w"),
    kind: int = TensorProto.FLOAT,
    more_inputs: int = 0,
) -> onnx.ModelProto:
    """A graph; without `nodes` one that repeats each pixel in 2x2."""
    values = constants if constants is not None else {"scales": np.float32([1, 1, 2, 2])}
    nodes = nodes or [helper.make_node("Resize", ["in", "", "scales"], ["out"], mode="nearest")]
    inputs = [helper.make_tensor_value_info("in", kind, shape)]
    inputs += [helper.make_tensor_value_info(f"in{i}", kind, shape) for i in range(more_inputs)]
    output = helper.make_tensor_value_info("out", kind, ["n", "c", "H", "W"])
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            inputs,
            [output],
            [numpy_helper.from_array(value, name) for name, value in values.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def convolution(weight: np.ndarray[Any, Any]) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["in", "weight"], ["x"], pads=[1, 1, 1, 1]),
        helper.make_node("DepthToSpace", ["x"], ["out"], blocksize=2, mode="CRD"),
    ]
    return graph(nodes, {"weight": weight})


WEIGHT = np.random.default_rng(0).standard_normal((12, 3, 3, 3)).astype(np.float32)


def test_an_onnx_model_is_read(tmp_path: Path) -> None:
    loaded = accepted(tmp_path, "my.onnx", graph().SerializeToString())
    assert (loaded.spec.architecture, loaded.spec.scale, loaded.spec.size_multiple) == (
        "onnx",
        2,
        1,
    )
    assert loaded.module is None
    assert loaded.graph is not None
    half = graph(constants={"scales": np.float32([1, 1, 3, 3])}, kind=TensorProto.FLOAT16)
    assert accepted(tmp_path, "half.onnx", half.SerializeToString()).spec.scale == 3


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
def test_a_limit_of_the_user_s_own_may_be_lower(tmp_path: Path) -> None:
    (tmp_path / "my.onnx").write_bytes(graph().SerializeToString())
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (7 << 30, 7 << 30));"
        "from engines import load; print(load.read(load.locate(sys.argv[1])).spec.scale)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "my.onnx")], capture_output=True, text=True
    )
    assert done.stdout == "2\n", done.stderr


def test_programs_beside_the_model_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "numpy", "json", "engines"):
        (tmp_path / f"{name}.py").write_text(f"open('ran', 'w').close()  # instead of {name}\n")
    monkeypatch.chdir(tmp_path)
    accepted(tmp_path, "my.onnx", graph().SerializeToString())
    assert not Path("ran").exists()


def test_what_sizes_must_be_multiples_of_is_found(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("SpaceToDepth", ["in"], ["x"], blocksize=4),
        helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=4),
        helper.make_node("Identity", ["y"], ["out"]),
    ]
    loaded = accepted(tmp_path, "blocks.onnx", graph(nodes, {}).SerializeToString())
    assert (loaded.spec.scale, loaded.spec.size_multiple) == (1, 4)


def with_data(folder: Path, name: str, location: str, **fields: object) -> Path:
    """An ONNX file whose weights are in another file."""
    model = convolution(WEIGHT)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "length": WEIGHT.nbytes, **fields}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def test_data_beside_the_model_is_brought_in(tmp_path: Path) -> None:
    path = with_data(tmp_path, "my.onnx", "my.data", offset=64)
    (tmp_path / "my.data").write_bytes(bytes(64) + WEIGHT.tobytes())
    loaded = load.read(load.locate(str(path)))
    assert loaded.located.files == (path, tmp_path / "my.data")
    assert loaded.graph is not None
    tensor = loaded.graph.graph.initializer[0]
    assert (numpy_helper.to_array(tensor) == WEIGHT).all()
    assert not tensor.external_data
    (tmp_path / "my.data").write_bytes(bytes(64) + (-WEIGHT).tobytes())
    assert load.locate(str(path)).sha256 != loaded.located.sha256
    with pytest.raises(ModelInvalid, match="has changed"):
        load.read(loaded.located)


@pytest.mark.parametrize(
    "location",
    [
        "/etc/passwd",
        "../secret",
        "a/../../secret",
        "C:\\x",
        "\\\\server\\x",
        "..\\secret",
        "",
        "x\0y",
    ],
)
def test_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    (tmp_path / "in").mkdir()
    path = with_data(tmp_path / "in", "my.onnx", location)
    with pytest.raises(ModelInvalid, match="not in its folder"):
        load.locate(str(path))


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "in" / "folder").symlink_to(tmp_path)
    for location in ("link", "folder/secret"):
        with pytest.raises(ModelInvalid, match="leaves its folder"):
            load.locate(str(with_data(tmp_path / "in", "my.onnx", location)))


def test_missing_and_short_data_is_refused(tmp_path: Path) -> None:
    path = with_data(tmp_path, "my.onnx", "my.data")
    with pytest.raises(EngineMissing, match=r"my\.data, which is not beside it"):
        load.locate(str(path))
    (tmp_path / "my.data").write_bytes(WEIGHT.tobytes()[:-1])
    for fields in ({}, {"offset": 1}, {"length": 1 << 40}, {"offset": -4}, {"length": "x"}):
        path = with_data(tmp_path, "my.onnx", "my.data", **fields)
        with pytest.raises(ModelInvalid, match=r"does not fit|no place"):
            load.read(load.locate(str(path)))


def lying(count: int) -> onnx.ModelProto:
    model = convolution(WEIGHT)
    model.graph.initializer[0].dims[0] = count
    return model


def node(kind: str, *inputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), ["out"], **attributes)


def custom() -> onnx.ModelProto:
    model = graph([node("Upscale", "in", domain="com.example")], {})
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    return model


def with_function() -> onnx.ModelProto:
    model = graph()
    body = helper.make_node("F", ["a"], ["b"], domain="mine")
    opset = helper.make_opsetid("", 17)
    model.functions.append(helper.make_function("mine", "F", ["a"], ["b"], [body], [opset]))
    return model


def fill(*dims: int) -> onnx.ModelProto:
    """Adds a tensor of these dimensions, made of nothing, to the picture."""
    zero = numpy_helper.from_array(np.float32([0]))
    nodes = [
        helper.make_node("ConstantOfShape", ["dims"], ["x"], value=zero),
        helper.make_node("ReduceMax", ["x"], ["y"], keepdims=0),
        helper.make_node("Add", ["in", "y"], ["out"]),
    ]
    return graph(nodes, {"dims": np.int64(dims)})


def hidden_fill() -> onnx.ModelProto:
    """The same, of a size that is told by what the picture holds: 1.2e12 bytes."""
    zero = numpy_helper.from_array(np.float32([0]))
    nodes = [
        helper.make_node("ReduceSum", ["in"], ["s"], keepdims=0),
        helper.make_node("Mul", ["s", "none"], ["n"]),
        helper.make_node("Add", ["n", "many"], ["m"]),
        helper.make_node("Cast", ["m"], ["i"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["i", "one"], ["dims"]),
        helper.make_node("ConstantOfShape", ["dims"], ["x"], value=zero),
        helper.make_node("ReduceMax", ["x"], ["y"], keepdims=0),
        helper.make_node("Add", ["in", "y"], ["out"]),
    ]
    numbers = {"none": np.float32(0), "many": np.float32(3e11), "one": np.int64([1])}
    return graph(nodes, numbers)


def resize(*scales: float) -> onnx.ModelProto:
    return graph(constants={"scales": np.float32(scales)})


BAD_GRAPHS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "no nodes": (lambda: onnx.ModelProto(ir_version=8), "it has no graph"),
    "custom operator": (custom, r"operator com\.example\.Upscale is not of ONNX itself"),
    "recursive function": (with_function, "functions of its own"),
    "unknown operator": (lambda: graph([node("Upscale", "in")], {}), "invalid"),
    "two inputs": (lambda: graph(more_inputs=1), "2 inputs and 1 outputs"),
    "three axes": (lambda: graph(shape=(3, "h", "w")), "3 axes, not 4"),
    "grey": (lambda: graph(shape=(1, 1, "h", "w")), "1 channels, not 3"),
    "batch": (lambda: graph(shape=(8, 3, "h", "w")), "8 pictures at a time"),
    "bytes": (lambda: graph(kind=TensorProto.UINT8), "not float32 or float16"),
    "too many numbers claimed": (lambda: lying(1 << 40), r"has \d+ bytes of numbers"),
    "overflowing claim": (lambda: lying((1 << 62) + 1), r"has \d+ bytes of numbers"),
    "negative": (lambda: lying(-1), "negative size"),
    "absurd fill": (lambda: fill(1 << 20, 1 << 20), r"has 1099511627776 elements"),
    "hidden fill": (hidden_fill, "8 GiB|onnxruntime cannot run it"),
    "absurd resize": (lambda: resize(1, 1, 30000, 30000), "elements for a picture"),
    "too large a scale": (lambda: resize(1, 1, 16, 16), "not one picture 1 to 8 times"),
    "two scales": (lambda: resize(1, 1, 2, 3), "not one picture"),
    "a fraction": (lambda: resize(1, 1, 1.5, 1.5), "not one picture"),
    "NaN": (lambda: convolution(WEIGHT * np.float32(np.nan)), "NaN or infinity"),
    "fixed and large": (lambda: graph(shape=(1, 3, 2160, 3840)), "3840x2160 only"),
}


@pytest.mark.parametrize("case", BAD_GRAPHS)
def test_bad_graphs_are_refused(tmp_path: Path, case: str) -> None:
    make, message = BAD_GRAPHS[case]
    refused(tmp_path, "bad.onnx", make().SerializeToString(), message)


def test_cut_off_onnx_is_refused(tmp_path: Path) -> None:
    whole = convolution(WEIGHT).SerializeToString()
    for length in (1, 20, len(whole) // 2, len(whole) - 1):
        refused(tmp_path, "cut.onnx", whole[:length], "ONNX model|cannot be used")


def test_files_above_the_limit_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.pth"
    with path.open("wb") as file:
        file.truncate(load.MAX_BYTES + 1)  # sparse: it takes no room on the disk
    with pytest.raises(ModelInvalid, match="larger than 2 GiB"):
        load.locate(str(path))
