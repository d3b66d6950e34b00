"""EMT: the definition, its sizes, its engines, and the official files where they are at hand.

Those, and Set5, are looked for in the folder that `OVERLAY_TEST_DATA` names, else in
`../shared/data` beside the project: `emt/EMT_LSR_x4.pth`, `set5/LR/x4/*.png`, `set5/HR/x4/*.png`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from engines import archs, frames, graph, load, zoo
from engines.archs import emt
from engines.cache import EngineCache
from engines.errors import ModelInvalid
from engines.export import export
from engines.load import Loaded
from engines.make import Job, Plan, make
from evaluation import evaluate
from overlay.frame import Size
from overlay.infer.openvino import OpenVinoEngine
from overlay.infer.torch_cuda import PictureNet
from tests.contracts.upscaler import finish, frame_of
from tests.engines.emt_definition import Definition
from tests.engines.nets import TINY_EMT as TINY
from tests.engines.nets import game_frame, trained_emt

DATA = Path(os.environ.get("OVERLAY_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
OFFICIAL = DATA / "emt"
needs_files = pytest.mark.skipif(
    not OFFICIAL.is_dir(), reason="the official files are not here; OVERLAY_TEST_DATA names them"
)
needs_set5 = pytest.mark.skipif(
    not (DATA / "set5").is_dir(), reason="Set5 is not here; OVERLAY_TEST_DATA names its folder"
)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "EMT tiny.pth"
    torch.save({"params": trained_emt()}, path)
    return path


def tiny(file: Path) -> Loaded:
    return load.read(load.locate(str(file)))


# --- the net -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(33, 41), (64, 32), (9, 5), (1, 1), (1, 34)])
@pytest.mark.parametrize("scale", [2, 3])
def test_the_net_is_that_of_the_definition(size: tuple[int, int], scale: int) -> None:
    net = archs.net_with("emt", {**TINY, "scale": scale}, trained_emt(scale=scale)).double()
    rgb = torch.rand(3, *size, dtype=torch.float64)
    expected = Definition(trained_emt(scale=scale))(rgb.numpy())
    made = net(rgb[None])[0].numpy()
    assert made.shape == expected.shape == (3, size[0] * scale, size[1] * scale)
    assert expected.std() > 0.01, "a flat picture compares nothing"
    assert np.abs(made - expected).max() < 1e-6  # `fused` rounds to float32


def test_pictures_of_a_batch_do_not_see_each_other() -> None:
    net = archs.net_with("emt", TINY, trained_emt())
    batch = torch.rand(2, 3, 20, 37)
    made = net(batch)
    for index in range(2):
        assert (made[index] - net(batch[index : index + 1])[0]).abs().max() < 1e-5


def test_windows_that_take_turns_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    net = archs.net_with("emt", TINY, trained_emt())
    picture = torch.rand(1, 3, 40, 50)
    at_once = net(picture)
    asked = []
    matmul = Tensor.__matmul__

    def spy(a: Tensor, b: Tensor) -> Tensor:
        asked.append(a.shape[1])
        return matmul(a, b)

    monkeypatch.setattr(emt, "_AT_ONCE", 4)
    monkeypatch.setattr(Tensor, "__matmul__", spy)
    assert (net(picture) - at_once).abs().max() < 1e-5
    assert max(asked) == 4
    assert len(asked) > 2 * 2 * 2


def test_the_shape_is_told_from_trained_and_from_fused_tensors() -> None:
    state = trained_emt(attending=1, ratio=3, scale=4)
    shape = {**TINY, "attending": 1, "ratio": 3, "scale": 4}
    assert archs.recognised(state) == ("emt", shape)
    net = archs.net_with("emt", shape, state)
    assert archs.recognised(net.state_dict()) == ("emt", shape)
    again = archs.net_with("emt", shape, net.state_dict())
    picture = torch.rand(1, 3, 12, 10)
    assert (again(picture) == net(picture)).all()
    assert not any(p.requires_grad for p in net.parameters())


LAYER = "body.0.sa_list"


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("head.weight", torch.zeros(30, 1, 3, 3), "takes 1 channels"),
        ("head.weight", torch.zeros(24, 3, 3, 3), "24 features, not a multiple of 5 and of 6"),
        ("tail.0.weight", torch.zeros(120, 30, 3, 3), "120 channels, which are no RGB blocks"),
        ("body.0.mlp_list.1.fc1.bias", None, r"fc1\.bias is absent, not 60"),
        ("body.0.mlp_list.3.fc1.bias", torch.zeros(60), "is 60, not absent"),
        (f"{LAYER}.0.attn.1.bias", None, r"attn\.1 is incomplete"),
        (f"{LAYER}.0.attn.0.bias", None, r"layer .*sa_list\.0 do not fit"),
        (f"{LAYER}.1.attn.0.weight", torch.zeros(7, 30, 1, 1), r"sa_list\.1 do not fit"),
        (f"{LAYER}.2.norm.weight", torch.zeros(7), r"norm is incomplete"),
        (f"{LAYER}.2.norm.running_var", -torch.ones(30), "negative variance"),
        (f"{LAYER}.2.token_mixer.mask", torch.zeros(30, 1, 5, 5), r"sa_list\.2 do not fit"),
        (f"{LAYER}.2.norm.running_var", None, r"norm\.bias is 30, not absent"),
    ],
)
def test_files_of_odd_tensors_are_refused(
    tmp_path: Path, name: str, tensor: Tensor | None, message: str
) -> None:
    state = dict(trained_emt())
    if tensor is None:
        del state[name]
    else:
        state[name] = tensor
    path = tmp_path / "odd.pth"
    torch.save({"params": state}, path)
    with pytest.raises(ModelInvalid, match=message) as caught:
        load.read(load.locate(str(path)))
    assert "\n" not in str(caught.value)


def test_pixels_see_as_far_as_is_stated_where_nothing_wraps_around() -> None:
    shape = {**TINY, "attending": 1, "layers": 2}
    net = archs.net_with("emt", shape, trained_emt(attending=1, layers=2)).double()
    side, middle, stated = 160, 64, emt.receptive_field(shape)
    x = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    y = net(x)
    farthest = 0
    for offset in (5, 26):  # 6 pixels from here is a window that reaches 31 pixels farther
        at = 2 * (middle + offset)
        (gradient,) = torch.autograd.grad(y[0, :, at, at].sum(), x, retain_graph=True)
        rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
        farthest = max(farthest, int(rows.max()) - at // 2, at // 2 - int(rows.min()))
    assert farthest == stated


# --- graphs and engines --------------------------------------------------------------------------

SIZES = [(42, 34), (64, 19)]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_graphs_give_what_pytorch_gives(file: Path, precision: str) -> None:
    loaded = tiny(file)
    for size in SIZES:
        data = export(loaded, [size], precision)  # type: ignore[arg-type]
        graph.check(data)
        found = graph.compare(data, loaded, [game_frame(*size, index) for index in (0, 5)])
        assert graph.reference(loaded, game_frame(*size))[..., :3].std() > 10
        assert found.mean < (0.01 if precision == "fp32" else 0.15)
        assert found.max <= (1 if precision == "fp32" else 3)


def test_one_graph_takes_every_size(file: Path) -> None:
    loaded = tiny(file)
    data = export(loaded, SIZES, "fp32")
    for size in [*SIZES, (32, 32), (5, 3), (1, 1)]:
        assert graph.compare(data, loaded, [game_frame(*size)]).max <= 1


def test_a_graph_s_windows_take_turns_too(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny(file)
    monkeypatch.setattr(emt, "_AT_ONCE", 4)
    data = export(loaded, [(42, 34)], "fp32")
    assert data.count(b"Softmax") > 2 * 4
    assert graph.compare(data, loaded, [game_frame(42, 34)]).max <= 1


def test_an_engine_of_a_file_is_what_the_overlay_shows(file: Path, tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "cache")
    job = Job(str(file), ((42, 34),), "openvino")
    (row,) = make([job], Plan(), cache, lambda what, done: None)
    assert (row.status, row.checked) == ("built", "engine"), row.reason
    assert row.max_diff in (0, 1)
    (entry,) = cache.entries()
    pixels = frames.read((42, 34))[1]
    with OpenVinoEngine(cache.open(entry), threads=1) as upscaler:
        upscaler.warm_up(Size(42, 34))
        picture = finish(upscaler, frame_of(pixels)).pixels
    difference = np.abs(picture.astype(int) - graph.reference(tiny(file), pixels))
    assert picture.shape == (68, 84, 4)
    assert difference.max() <= 1


def test_half_precision_in_pytorch_is_near(file: Path) -> None:
    loaded = tiny(file)
    pixels = game_frame(42, 34)
    made = PictureNet(loaded)(torch.from_numpy(pixels)[None])[0].numpy()
    apart = graph.difference([(made, graph.reference(loaded, pixels))])
    assert apart.mean < 0.15
    assert apart.max <= 3


# --- the official files --------------------------------------------------------------------------

#: What the authors' program makes of these files: PSNR-Y on Set5, dB.
SET5 = {"emt-x2": 38.29, "emt-x3": 34.79, "emt-x4": 32.64}


@needs_files
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_official_files_are_read_whole(scale: int, tmp_path: Path) -> None:
    path = OFFICIAL / f"EMT_LSR_x{scale}.pth"
    by_name = load.locate(f"EMT_x{scale}", [OFFICIAL])
    assert load.locate(str(path)).spec is by_name.spec is zoo.spec(f"emt-x{scale}")
    state = load.read(by_name).module
    assert state is not None
    (tmp_path / "renamed.pth").write_bytes(path.read_bytes() + b"\0")  # another digest
    loaded = load.read(load.locate(str(tmp_path / "renamed.pth")))
    spec = zoo.spec(f"emt-x{scale}")
    assert loaded.spec.architecture == "emt"
    assert (loaded.spec.scale, loaded.spec.shape) == (scale, spec.shape)
    assert loaded.spec.receptive_field == spec.receptive_field
    assert loaded.module is not None
    other = loaded.module.state_dict()
    assert all((tensor == other[name]).all() for name, tensor in state.state_dict().items())


@needs_files
@needs_set5
@pytest.mark.parametrize(
    "name",
    [
        "emt-x4",
        pytest.param("emt-x3", marks=pytest.mark.slow),
        pytest.param("emt-x2", marks=pytest.mark.slow),
    ],
)
def test_set5_is_as_with_the_authors_program(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(load.WEIGHTS_VARIABLE, str(OFFICIAL))
    scale = name[-1]
    folders = [str(DATA / "set5" / kind / f"x{scale}") for kind in ("LR", "HR")]
    out = tmp_path / "out.json"
    evaluate.main(
        [
            "--lr", folders[0], "--hr", folders[1], "--models", name, "--metrics", "psnr-y",
            "--crop", scale, "--json", str(out),
        ]
    )  # fmt: skip
    found = json.loads(out.read_text())
    (row,) = (row for row in found["results"] if row["model"] == name)
    assert (found["crop"], len(found["problems"])) == (int(scale), 0)
    assert row["psnr-y"] == pytest.approx(SET5[name], abs=0.02)
