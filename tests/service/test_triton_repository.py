"""Model repositories for Triton: configuration against its schema, graphs, folders."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnx", reason="the graphs need the extra build")
pytest.importorskip("tritonclient.grpc", reason="Triton's schema needs the extra triton")

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from engines import load, zoo
from engines.cache import EngineCache, Entry, Identity
from engines.errors import BuildFailed, EngineError, EngineMissing, UnknownModel, UsageError
from service import repository
from service.pbtxt import ANY, ModelConfig, Port
from service.repository import FLOAT, MARK, Plan, float_graph, model_folder, picture_graph, write
from tests import graphs

Array = NDArray[Any]

X2 = zoo.spec("default-x2")
UINT8, FP32 = model_config_pb2.TYPE_UINT8, model_config_pb2.TYPE_FP32


def parsed(text: str) -> Any:
    """Read a configuration as the server does; an unknown field is an error."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def read(folder: Path) -> Any:
    return parsed((folder / "config.pbtxt").read_text(encoding="utf-8"))


def batch(*shape: int) -> Array:
    return np.random.default_rng(3).integers(0, 256, (*shape, 4), np.uint8)


def run(graph: bytes | Path, given: Array) -> Array:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    data = graph if isinstance(graph, bytes) else str(graph)
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    made: Array = session.run(None, {"bgra": given})[0]
    return made


# --- configuration --------------------------------------------------------------------------------


def test_every_field_arrives() -> None:
    config = ModelConfig(
        'a "b" \\ ü', "onnxruntime", "model.onnx",
        Port("bgra", "UINT8", (ANY, ANY, 4)), Port("picture", "FP32", (3, 4)),
        batch=8, delay_us=250, queue=7, instances=3, device="gpu",
        warm_up=((480, 270), (64, 32)), parameters=(("a", "1"), ("b", 'x"\n')),
    )  # fmt: skip
    told = parsed(config.text())
    assert (told.name, told.backend) == ('a "b" \\ ü', "onnxruntime")
    assert (told.default_model_filename, told.max_batch_size) == ("model.onnx", 8)
    assert (told.input[0].name, told.input[0].data_type) == ("bgra", UINT8)
    assert list(told.input[0].dims) == [-1, -1, 4]
    assert (told.output[0].name, told.output[0].data_type) == ("picture", FP32)
    assert list(told.output[0].dims) == [3, 4]
    assert told.dynamic_batching.max_queue_delay_microseconds == 250
    assert told.dynamic_batching.default_queue_policy.max_queue_size == 7
    (group,) = told.instance_group
    assert (group.count, group.kind) == (3, model_config_pb2.ModelInstanceGroup.KIND_GPU)
    assert [one.name for one in told.model_warmup] == ["480x270", "64x32"]
    assert told.model_warmup[0].batch_size == 1
    warm = told.model_warmup[0].inputs["bgra"]
    assert (list(warm.dims), warm.data_type, warm.zero_data) == ([270, 480, 4], UINT8, True)
    assert {key: one.string_value for key, one in told.parameters.items()} == {
        "a": "1",
        "b": 'x"\n',
    }


def test_without_batches_the_one_is_in_the_shape() -> None:
    config = ModelConfig(
        "a", "tensorrt", "model.plan", Port("bgra", "UINT8", (2, 3, 4)),
        Port("picture", "UINT8", (4, 6)), batch=0, warm_up=((3, 2),),
    )  # fmt: skip
    told = parsed(config.text())
    assert (told.max_batch_size, list(told.input[0].dims)) == (0, [1, 2, 3, 4])
    assert list(told.output[0].dims) == [1, 4, 6]
    assert not told.HasField("dynamic_batching")
    assert told.model_warmup[0].batch_size == 0
    assert list(told.model_warmup[0].inputs["bgra"].dims) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "value"), [("batch", -1), ("delay_us", -1), ("queue", 0), ("instances", 0)]
)
def test_a_number_that_cannot_be_is_refused(name: str, value: int) -> None:
    port = Port("a", "UINT8", (1,))
    with pytest.raises(ValueError, match=rf"{name} is \d or more, not {value}"):
        ModelConfig("a", "python", "model.py", port, port, **{name: value})  # type: ignore[arg-type]


# --- what is written ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "told", "files"),
    [("onnx", "onnxruntime", ["model.onnx"]), ("python", "python", ["model.onnx", "model.py"])],
)
def test_a_model_and_its_twin_are_written(
    tmp_path: Path, backend: Any, told: str, files: list[str]
) -> None:
    plan = Plan(backend, sizes=((64, 48), (96, 64)), threads=1, instances=2, batch=3)
    eight, twin = write("default-x2", plan, tmp_path, EngineCache(tmp_path / "none"))
    assert (eight.name, twin.name) == ("default-x2", f"default-x2{FLOAT}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [eight.name, twin.name]
    for folder, kind, output, dims, warm in (
        (eight, UINT8, "picture", [-1, -1], ["64x48", "96x64"]),
        (twin, FP32, "planes", [1, -1, -1], []),
    ):
        config = read(folder)
        assert (config.name, config.backend, config.max_batch_size) == (folder.name, told, 3)
        assert config.default_model_filename == files[-1]
        assert config.instance_group[0].count == 2
        assert config.input[0].data_type == config.output[0].data_type == kind
        assert (config.output[0].name, list(config.output[0].dims)) == (output, dims)
        assert [one.name for one in config.model_warmup] == warm
        assert sorted(path.name for path in (folder / "1").iterdir()) == files
    threads = {"onnx": "intra_op_thread_count", "python": "threads"}[backend]
    assert read(eight).parameters[threads].string_value == "1"


def test_a_graph_for_one_size_says_so(tmp_path: Path) -> None:
    eight, _ = write("default-x3", Plan("onnx", sizes=((24, 16),)), tmp_path)
    config = read(eight)
    assert list(config.input[0].dims) == [16, 24, 4]
    assert list(config.output[0].dims) == [48, 72]
    assert run(eight / "1" / "model.onnx", batch(2, 16, 24)).shape == (2, 48, 72)


@pytest.mark.parametrize("name", ["default-x2", "default-x3", "default-x4"])
def test_a_batch_gives_what_the_shipped_graph_gives(name: str) -> None:
    spec = zoo.spec(name)
    shipped = load.onnx_bytes(spec)
    given = batch(3, 20, 28)
    made = run(picture_graph(shipped, spec), given)
    exact = run(float_graph(shipped, spec), given.astype(np.float32))
    s = spec.scale
    for index in range(3):
        blocks = run(shipped, given[index : index + 1])[0].reshape(20, 28, s, s)
        assert (made[index] == blocks.transpose(0, 2, 1, 3).reshape(20 * s, 28 * s)).all()
    assert exact.shape == (3, 1, 20 * s, 28 * s)
    assert (np.clip(np.rint(exact[:, 0]), 0, 255) == made).all()
    assert (exact % 1 != 0).any(), "the twin rounds"


def test_colour_keeps_four_channels() -> None:
    spec = graphs.spec(2, "bgra")
    plain = graphs.graph(None, 2, "bgra")
    made = run(picture_graph(plain, spec), batch(2, 10, 12))
    assert made.shape == (2, 20, 24, 4)
    assert (made[1:] == run(plain, batch(2, 10, 12)[1:])).all()


def test_a_graph_of_one_picture_is_refused() -> None:
    import onnx
    from onnx import helper

    model = onnx.load_from_string(graphs.graph(None, 2, "bgra"))
    for node in model.graph.node:
        node.input[:] = ["one" if name == "numbers" else name for name in node.input]
    shape = helper.make_tensor("shape", onnx.TensorProto.INT64, [4], [1, 10, 12, 4])
    model.graph.initializer.append(shape)
    model.graph.node.insert(1, helper.make_node("Reshape", ["numbers", "shape"], ["one"]))
    with pytest.raises(BuildFailed, match="takes one picture at a time"):
        picture_graph(model.SerializeToString(), graphs.spec(2, "bgra"))


def test_a_net_of_pytorch_is_exported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="exporting needs the extra build")
    spec = zoo.spec("superultracompact-x2")
    located = load.Located(spec.id, spec, (), "0", "random weights")
    monkeypatch.setattr(load, "locate", lambda *_: located)
    monkeypatch.setattr(load, "read", lambda _: load.random_weights(spec))
    eight, twin = write(spec.id, Plan("onnx", sizes=((24, 16),)), tmp_path)
    given = batch(2, 16, 24)
    made = run(eight / "1" / "model.onnx", given)
    planes = run(twin / "1" / "model.onnx", given.astype(np.float32))
    assert (made.shape, planes.shape) == ((2, 32, 48, 4), (2, 3, 32, 48))
    assert list(read(twin).output[0].dims) == [3, -1, -1]
    levels = np.rint(planes[:, ::-1].transpose(0, 2, 3, 1))
    assert np.abs(levels - made[..., :3]).max() <= 1


# --- TensorRT -------------------------------------------------------------------------------------


def cache_with(folder: Path, sha256: str, precision: Any = "fp16") -> EngineCache:
    """A cache with an engine that TensorRT might have built."""
    cache = EngineCache(folder)
    identity = Identity(
        "default-x2", sha256, "r1", "0", ((480, 270),), precision, "tensorrt", "10.16", {"gpu": "x"}
    )
    entry = Entry(Path(), identity, "default-x2", 2, "luma", "Apache-2.0", "", "", 0, "", 1.0)
    cache.store(entry, b"a plan")
    return cache


def test_an_engine_of_the_cache_is_served(tmp_path: Path) -> None:
    cache = cache_with(tmp_path / "cache", load.locate("default-x2").sha256)
    plan = Plan("tensorrt", sizes=((480, 270),), instances=2, precision="fp16")
    (folder,) = write("default-x2", plan, tmp_path / "out", cache)
    assert (folder / "1" / "model.plan").read_bytes() == b"a plan"
    config = read(folder)
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [1, 270, 480, 4])
    assert list(config.output[0].dims) == [1, 540, 960]
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, model_config_pb2.ModelInstanceGroup.KIND_GPU)


@pytest.mark.parametrize(
    ("sha256", "precision", "size"),
    [("other", "fp16", (480, 270)), ("", "fp32", (480, 270)), ("", "fp16", (64, 48))],
)
def test_an_engine_of_something_else_is_not_served(
    tmp_path: Path, sha256: str, precision: Any, size: tuple[int, int]
) -> None:
    cache = cache_with(tmp_path / "cache", sha256 or load.locate("default-x2").sha256)
    with pytest.raises(EngineMissing, match="overlay engines --models default-x2"):
        write("default-x2", Plan("tensorrt", (size,), precision=precision), tmp_path / "out", cache)
    assert not (tmp_path / "out").exists()


def test_a_plan_needs_its_size(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name one, 480x270 say"):
        write("default-x2", Plan("tensorrt"), tmp_path)


# --- folders --------------------------------------------------------------------------------------


def test_what_was_written_here_is_replaced(tmp_path: Path) -> None:
    write("default-x2", Plan("onnx"), tmp_path)
    (tmp_path / "default-x2" / "1" / "stray").write_text("old")
    write("default-x2", Plan("python", twin=False), tmp_path)
    assert not (tmp_path / "default-x2" / "1" / "stray").exists()
    assert read(tmp_path / "default-x2").backend == "python"
    assert not list(tmp_path.glob(".*")), "drafts are left"


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "config.pbtxt").write_text('name: "mine"\n')


def make_file(path: Path) -> None:
    path.write_text("mine")


def make_link(path: Path) -> None:
    other = path.with_name("elsewhere")
    other.mkdir()
    (other / "config.pbtxt").write_text(MARK)
    path.symlink_to(other)


@pytest.mark.parametrize("make", [make_folder, make_file, make_link])
def test_what_is_somebody_elses_is_kept(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "default-x2"
    make(path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="was not written by this program, and is kept"):
        write("default-x2", Plan(), tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("default-x2", Plan("onnx"), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(repository, "_write_file", full)
    with pytest.raises(EngineError, match=r"cannot write .*No space left"):
        write("default-x2", Plan("python"), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_folder_that_cannot_be_moved_there_leaves_what_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("default-x2", Plan("onnx", twin=False), tmp_path)
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.suffix == ".draft":
            raise OSError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(EngineError, match="Permission denied"):
        write("default-x2", Plan("python", twin=False), tmp_path)
    assert read(tmp_path / "default-x2").backend == "onnxruntime"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("resshift-v3", UsageError, "runs in PyTorch only"),
        ("../default-x2", UnknownModel, "unknown model"),
        ("default-x2@../x", UsageError, "cannot be the name of a folder"),
        ("default-x2@", UsageError, "cannot be the name of a folder"),
    ],
)
def test_names_that_cannot_be(name: str, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        model_folder(name)


def test_names_are_forgiven_as_the_zoo_does() -> None:
    assert model_folder("RealESR_general_x4v3@0.3") == "realesr-general-x4v3@0.3"


@pytest.mark.parametrize(
    ("plan", "match"),
    [
        (Plan(device="gpu"), "for CPUs"),
        (Plan("onnx", precision="int8"), "not int8"),
    ],
)
def test_plans_that_cannot_be(tmp_path: Path, plan: Plan, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        write("default-x2", plan, tmp_path)


def test_a_size_must_suit_the_net(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="multiples of 2 pixels, not 31x20"):
        write("realesrgan-x2plus", Plan("onnx", sizes=((31, 20),)), tmp_path)


# --- command line ---------------------------------------------------------------------------------


def test_the_command_writes_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "models")
    arguments = ["--models", "default-x2,default-x2", "--sizes", "64x48", "--backend", "onnx"]
    assert repository.main([*arguments, "--out", out, "--no-twin", "--batch", "0"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "models" / "default-x2")]
    config = read(tmp_path / "models" / "default-x2")
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [1, 48, 64, 4])


@pytest.mark.parametrize(
    ("arguments", "code", "match"),
    [
        (["--models", "default-x9"], 2, "did you mean"),
        (["--models", "default-x2", "--sizes", "big"], 2, "is no size"),
        (["--models", "default-x2", "--instances", "0"], 2, "--instances 1 or more"),
        (["--models", "default-x2", "--backend", "tensorrt", "--sizes", "64x48"], 5, "no TensorRT"),
    ],
)
def test_the_command_says_what_is_wrong(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    match: str,
) -> None:
    monkeypatch.setenv("OVERLAY_CACHE", str(tmp_path / "cache"))
    assert repository.main([*arguments, "--out", str(tmp_path / "out")]) == code
    assert match in capsys.readouterr().err


# --- the program in the server --------------------------------------------------------------------


class Error(Exception):
    pass


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """`model.py` as the server imports it, with a stand-in for Triton's own module."""

    def tensor(name: str, pixels: Array) -> SimpleNamespace:
        return SimpleNamespace(name=name, as_numpy=lambda: pixels)

    def answer(tensors: Any = (), error: Any = None) -> SimpleNamespace:
        return SimpleNamespace(tensors=tensors, error=error)

    utils: Any = ModuleType("triton_python_backend_utils")
    utils.Tensor, utils.InferenceResponse, utils.TritonError = tensor, answer, Error
    utils.get_input_tensor_by_name = lambda request, name: request[name]
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    write("default-x2", Plan("python", threads=1), tmp_path)
    path = tmp_path / "default-x2" / "1" / "model.py"
    spec = importlib.util.spec_from_file_location("model_in_triton", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def opened(program: ModuleType, folder: Path, runtime: str) -> Any:
    config = {
        "input": [{"name": "bgra"}],
        "output": [{"name": "picture"}],
        "parameters": {
            "runtime": {"string_value": runtime},
            "threads": {"string_value": "1"},
        },
    }
    model = program.TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": str(folder / "default-x2"),
            "model_version": "1",
        }
    )
    return model


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime", "auto"])
def test_it_answers_each_request(program: ModuleType, tmp_path: Path, runtime: str) -> None:
    if runtime != "auto":
        pytest.importorskip(runtime)
    model = opened(program, tmp_path, runtime)
    pictures = [batch(1, 12, 16), batch(3, 12, 16), batch(1, 10, 14)]
    requests = [{"bgra": SimpleNamespace(as_numpy=lambda one=one: one)} for one in pictures]
    graph = tmp_path / "default-x2" / "1" / "model.onnx"
    for given, answer in zip(pictures, model.execute(requests), strict=True):
        (made,) = answer.tensors
        assert (answer.error, made.name) == (None, "picture")
        off = np.abs(made.as_numpy().astype(int) - run(graph, given))
        assert off.max() <= (0 if runtime == "onnxruntime" else 1)


def test_a_request_that_fails_does_not_fail_the_others(program: ModuleType, tmp_path: Path) -> None:
    model = opened(program, tmp_path, "auto")
    wrong, right = batch(1, 12, 16)[..., :3], batch(1, 12, 16)
    requests = [{"bgra": SimpleNamespace(as_numpy=lambda one=one: one)} for one in (wrong, right)]
    first, second = model.execute(requests)
    assert isinstance(first.error, Error)
    assert second.error is None
    assert second.tensors[0].as_numpy().shape == (1, 24, 32)


def test_it_imports_nothing_of_ours(program: ModuleType) -> None:
    source = Path(str(program.__file__)).read_text(encoding="utf-8")
    own = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert not [
        line for line in own if line.split()[1].split(".")[0] in ("engines", "overlay", "service")
    ]
