"""Architectures: ours equal spandrel's on the same weights; sizes are those published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engines import archs, load, zoo
from engines.archs import compact, rrdb, span, spandrel
from engines.errors import ModelInvalid
from engines.spec import ModelSpec

SHAPES = {
    "compact": {"features": 8, "convs": 3, "scale": 3},
    "rrdb": {"features": 8, "growth": 32, "blocks": 2, "scale": 4},
    "span": {"features": 8, "scale": 2},
}


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def lively(net: nn.Module) -> nn.Module:
    """A net whose layers all matter: weights of a size that neither dies out nor grows."""
    for parameter in net.parameters():
        if parameter.dim() == 4:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return net.eval().requires_grad_(False)


def in_spandrel(state: dict[str, Tensor]) -> Any:
    library = spandrel._imported("spandrel")
    return library.ModelLoader(device="cpu").load_from_state_dict(dict(state))


def difference(ours: nn.Module, theirs: nn.Module, height: int = 14, width: int = 18) -> float:
    """Largest difference of the pictures, relative to the largest value in them."""
    x = torch.rand(1, 3, height, width)
    with torch.no_grad():
        a, b = ours(x), theirs(x)
    assert a.shape == b.shape
    assert float(b.std()) > 1e-3, "a flat picture compares nothing"
    return float((a - b).abs().max() / b.abs().max())


def trained_span(features: int, scale: int, norm: bool = True) -> nn.Module:
    """Spandrel's SPAN in the form in which it is trained."""
    spandrel._imported("spandrel")
    from spandrel.architectures.SPAN import SPAN

    net: nn.Module = SPAN(
        num_in_ch=3, num_out_ch=3, feature_channels=features, upscale=scale, norm=norm
    )
    return lively(net)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_compact_equals_spandrel(scale: int) -> None:
    ours = lively(compact.build({**SHAPES["compact"], "scale": scale}))
    theirs = in_spandrel(ours.state_dict())
    assert theirs.architecture.id == "Compact"
    assert difference(ours, theirs.model.eval()) < 1e-5


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_rrdb_equals_spandrel(scale: int) -> None:
    ours = lively(rrdb.build({**SHAPES["rrdb"], "scale": scale}))
    theirs = in_spandrel(ours.state_dict())
    assert (theirs.architecture.id, theirs.scale) == ("ESRGAN", scale)
    assert difference(ours, theirs.model.eval(), 16, 24) < 1e-5


@pytest.mark.parametrize("norm", [True, False])
def test_fused_span_equals_the_trained_form(norm: bool) -> None:
    theirs = trained_span(8, 2, norm)
    state = theirs.state_dict()
    recognised = archs.recognised(state)
    assert recognised is not None
    ours = archs.net_with(*recognised, state)
    assert difference(ours, theirs) < 1e-5
    again = archs.net_with(*recognised, ours.state_dict())  # what is fused stays as it is
    assert difference(again, ours) == 0
    stale = {k: torch.zeros_like(v) if "eval_conv" in k else v for k, v in state.items()}
    assert difference(archs.net_with(*recognised, stale), ours) == 0


def test_a_span_with_parts_that_do_not_fit_is_refused() -> None:
    state = trained_span(8, 2).state_dict()
    state["block_3.c2_r.conv.1.weight"] = state["block_3.c2_r.conv.1.weight"][:, :5]
    with pytest.raises(ValueError, match=r"block_3\.c2_r do not fit"):
        span.fused(state)


#: From the papers' and the repositories' tables.
PARAMETERS = {
    "realesr-animevideov3-x4": 621_424,
    "realesr-general-x4v3": 1_213_296,
    "realesrgan-x4plus": 16_697_987,
    "realesrgan-x4plus-anime-6b": 4_467_779,
    "realesrgan-x2plus": 16_703_171,
    "compact-x2": 600_652,
    "ultracompact-x4": 325_488,
    "superultracompact-x4": 52_968,
    "superultracompact-x2": 45_156,
    "span-x4": 426_288,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_rows_have_the_published_number_of_parameters(name: str) -> None:
    spec = zoo.spec(name)
    with torch.device("meta"):
        net = archs.ARCHITECTURES[spec.architecture].build(dict(spec.shape))
    assert sum(parameter.numel() for parameter in net.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", SHAPES)
def test_the_shape_is_told_from_the_tensors(name: str) -> None:
    state = archs.ARCHITECTURES[name].build(SHAPES[name]).state_dict()
    assert archs.recognised(state) == (name, SHAPES[name])
    net = archs.net_with(name, SHAPES[name], {key: t.half() for key, t in state.items()})
    assert not net.training
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("name", SHAPES)
def test_tensors_of_another_shape_are_refused(name: str) -> None:
    state = archs.ARCHITECTURES[name].build(SHAPES[name]).state_dict()
    last = sorted(state)[-1]
    with pytest.raises(ValueError, match="absent, not"):
        archs.net_with(name, SHAPES[name], {k: t for k, t in state.items() if k != last})
    with pytest.raises(ValueError, match="extra is 3, not absent"):
        archs.net_with(name, SHAPES[name], {**state, "extra": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"is [\dx]*8[\dx]*, not [\dx]*9[\dx]*$"):
        archs.net_with(name, {**SHAPES[name], "features": 9}, state)


@pytest.mark.parametrize(
    ("name", "first", "channels"),
    [
        ("compact", "body.0.weight", 1),
        ("compact", "body.0.weight", 4),
        ("rrdb", "conv_first.weight", 1),
        ("span", "conv_1.eval_conv.weight", 4),
    ],
)
def test_grey_and_four_channel_nets_are_refused(name: str, first: str, channels: int) -> None:
    state = archs.ARCHITECTURES[name].build(SHAPES[name]).state_dict()
    state[first] = torch.zeros(8, channels, 3, 3)
    with pytest.raises(ValueError, match=f"takes {channels} channels"):
        archs.recognised(state)


def reach(net: nn.Module, scale: int, size: int) -> int:
    """How far from an output pixel the source pixels are that change it, by its gradient."""
    net = lively(net).double()
    x = torch.rand(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    y = net(x)
    middle = size // 2
    farthest = 0
    for phase in range(scale):  # the output pixels of one source pixel see differently far
        (gradient,) = torch.autograd.grad(
            y[0, :, middle * scale + phase, middle * scale + phase].sum(), x, retain_graph=True
        )
        rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
        farthest = max(farthest, int(rows.max()) - middle, middle - int(rows.min()))
    assert farthest < middle - 1, "the picture is too small to tell"
    return farthest


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("compact", {"features": 4, "convs": 3, "scale": 2}),
        ("compact", {"features": 4, "convs": 5, "scale": 4}),
        ("rrdb", {"features": 4, "growth": 3, "blocks": 1, "scale": 4}),
        ("rrdb", {"features": 4, "growth": 3, "blocks": 2, "scale": 4}),
        ("rrdb", {"features": 4, "growth": 3, "blocks": 1, "scale": 2}),
        ("span", {"features": 4, "scale": 2}),
        ("span", {"features": 4, "scale": 4, "norm": 0}),
    ],
)
def test_receptive_field_is_that_of_the_gradient(name: str, shape: dict[str, int]) -> None:
    architecture = archs.ARCHITECTURES[name]
    multiple = architecture.size_multiple(shape)
    expected = architecture.receptive_field(shape)
    size = -(-(2 * expected + 8) // (2 * multiple)) * 2 * multiple
    found = {
        reach(architecture.build(shape), shape["scale"], size + 2 * offset * multiple)
        for offset in range(2)
    }
    assert max(found) == expected


@pytest.mark.parametrize(("old", "new"), [(4, 2), (4, 3), (2, 4), (3, 3)])
def test_a_compact_net_of_another_scale_is_its_picture_by_area(old: int, new: int) -> None:
    torch.manual_seed(0)
    net, other = compact.Compact(4, 2, old), compact.Compact(4, 2, new)
    other.load_state_dict(compact.rescaled(net.state_dict(), new))
    x = torch.rand(1, 3, 5, 7)
    fine = net(x).repeat_interleave(new, 2).repeat_interleave(new, 3)
    expected = torch.nn.functional.avg_pool2d(fine, old)
    torch.testing.assert_close(other(x), expected, rtol=0, atol=1e-5)


def test_only_compact_nets_are_taken_to_another_scale() -> None:
    with pytest.raises(ValueError, match="only a Compact net"):
        compact.rescaled({"conv0.weight": torch.zeros(1)}, 2)


@pytest.mark.parametrize("scale", [2, 3])
def test_a_resize_after_the_net_sees_one_pixel_farther(scale: int) -> None:
    shape = {"features": 4, "convs": 3, "scale": 4}
    net = archs.Resized(compact.build(shape), scale / 4)
    found = reach(net, scale, 30)
    assert found == compact.receptive_field(shape) + 1
    name = f"realesr-animevideov3-x{scale}"
    assert zoo.spec(name).receptive_field >= 16 + 2 + 1


@pytest.mark.parametrize("row", [row for row in zoo.ZOO if row.shape], ids=lambda row: row.id)
def test_rows_state_receptive_field_and_size_multiple(row: ModelSpec) -> None:
    architecture = archs.ARCHITECTURES[row.architecture]
    shape = dict(row.shape)
    assert row.size_multiple == architecture.size_multiple(shape)
    assert row.receptive_field >= architecture.receptive_field(shape) + bool(row.net_scale)
    assert shape["scale"] == (row.net_scale or row.scale)


def test_random_weights_are_seeded_and_run() -> None:
    for name in ("superultracompact-x2", "span-x2", "default-x3", "realesr-animevideov3-x3"):
        spec = zoo.spec(name)
        a, b, c = (load.random_weights(spec, seed).module for seed in (0, 0, 1))
        assert a is not None
        assert b is not None
        assert c is not None
        states = [net.state_dict() for net in (a, b, c)]
        assert all((states[0][key] == states[1][key]).all() for key in states[0])
        assert any((states[0][key] != states[2][key]).any() for key in states[0])
    x = torch.rand(1, 3, 8, 8)
    assert a(x).shape == (1, 3, 24, 24)
    loaded = load.random_weights(zoo.spec("span-x4"))
    assert loaded.located.name == "span-x4-random"
    assert loaded.located.files == ()


def test_other_nets_are_read_by_spandrel(tmp_path: Path) -> None:
    spandrel._imported("spandrel")
    from spandrel.architectures.SAFMN import SAFMN

    net = lively(SAFMN(dim=8, n_blocks=2, upscaling_factor=2))
    path = tmp_path / "Mine 2.PTH"
    torch.save({"params_ema": net.state_dict()}, path)
    loaded = load.read(load.locate(str(path)))
    assert loaded.spec.architecture == "spandrel"
    assert (loaded.spec.scale, loaded.spec.size_multiple) == (2, 8)
    assert loaded.spec.id.startswith("mine-2-")
    assert loaded.module is not None
    assert difference(loaded.module, net, 16, 24) == 0


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # spandrel's
def test_nets_that_do_not_upscale_pictures_are_refused(tmp_path: Path) -> None:
    spandrel._imported("spandrel")
    from spandrel.architectures.SAFMN import SAFMN
    from spandrel.architectures.SwinIR import SwinIR

    grey = SwinIR(
        in_chans=1, window_size=8, depths=[2], embed_dim=8, num_heads=[2], mlp_ratio=2,
        upsampler="pixelshuffledirect", upscale=2,
    )  # fmt: skip
    path = tmp_path / "grey.pth"
    torch.save(grey.state_dict(), path)
    with pytest.raises(ModelInvalid, match="takes 1 channels"):
        load.read(load.locate(str(path)))
    state = SAFMN(dim=8, n_blocks=2, upscaling_factor=2).state_dict()
    torch.save({key: tensor for key, tensor in list(state.items())[3:]}, path)
    with pytest.raises(ModelInvalid, match=r"known net|by spandrel"):
        load.read(load.locate(str(path)))
