"""Training: it learns, repeats, resumes to the bit, and its result is what is run."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from engines import load
from engines.archs import compact
from tests.training.frames import write_frames
from training import checkpoints, config, nets, train, validate
from training.config import Config, ConfigError, Net, Stage
from training.loader import Batch, Crops
from training.quantise import RoundedActivation, RoundedKernel, quantise
from training.tracking import Tracker
from training.trainer import Trainer, World, joined, rate_at, tensor_of

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "training" / "configs" / "smoke.toml"
#: The loss of the last rows of the smoke run, relative to the first ones; see docs/training.md.
FALL = 0.7

#: Two stages, the second rounded for int8, with a discriminator: all that a checkpoint can hold.
FULL = """
name = "full"
[net]
architecture = "luma"
scale = 2
features = 8
depth = 3
expand = 8
[data]
crop = 16
[[data.sources]]
heights = [[270, 540]]
[train]
steps = 90
batch = 4
average = 0.9
clip = 1.0
log = 7
checkpoint = 10
[[stages]]
part = 2
warm_up = 5
[[stages]]
warm_up = 5
quantise = true
[loss]
charbonnier = 1.0
frequency = 0.1
gan = 0.01
[gan]
features = 4
kind = "relativistic"
[validate]
every = 40
crops = 2
side = 32
"""


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_frames(root, games=("alpha", "beta"), count=2)
    write_frames(root, split="val", count=2, seed=40)
    return root


@pytest.fixture
def full(tmp_path: Path, data: Path) -> list[str]:
    path = tmp_path / "full.toml"
    path.write_text(FULL)
    return [str(path), "--set", f"data.root={data}", "--no-mlflow"]


def settings(data: Path, *changes: str, path: Path = SMOKE) -> Config:
    return config.read(path, [f"data.root={data}", *changes])


def crops_for(trainer: Trainer) -> Crops:
    frames = train.frames_of(trainer.config, trainer, trainer.world)
    return train.crops_of(trainer.config, trainer, frames)


def parts(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    return batch.low, batch.high


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "curve.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def started(arguments: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "training.train", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# --- a whole run ---------------------------------------------------------------------------------


def test_the_smoke_run_learns_and_its_result_is_opened(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = [str(SMOKE), "--set", f"data.root={data}", "--out", str(out), "--no-mlflow"]
    assert train.main(arguments) == 0
    losses = [float(row["loss"]) for row in rows(out)]
    assert len(losses) == 10
    assert np.mean(losses[5:]) < FALL * np.mean(losses[:5])
    last = rows(out)[-1]
    assert float(last["psnr"]) > float(rows(out)[4]["psnr"])
    assert f"val {float(last['psnr']):.3f} dB, bicubic" in capsys.readouterr().out
    loaded = load.read(load.locate(str(out / "smoke-x2.safetensors")))
    assert loaded.spec.scale == 2
    assert loaded.module is not None
    low = cv2.imread(str(data / "GameEngineData/270p/val/alpha_val_0000.png"))[:64, :64, ::-1]
    picture = loaded.module(validate._tensor(low.astype(np.uint8)))
    assert picture.shape == (1, 3, 128, 128)
    assert cv2.imread(str(out / "samples.png")).shape == (2 * 128, 3 * 128, 3)
    assert train.main(arguments) == 1
    assert "--resume goes on with it" in capsys.readouterr().err
    assert train.main([*arguments, "--resume"]) == 0  # nothing is left to do
    assert len(rows(out)) == 10


def test_equal_seeds_give_equal_bytes(full: list[str], tmp_path: Path) -> None:
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = tmp_path / name
        short = ["--set", "train.steps=8", "--set", f"train.seed={seed}", "--out", str(out)]
        assert train.main([*full, *short]) == 0
        made.append((out / "full.safetensors").read_bytes())
    assert made[0] == made[1]
    assert made[0] != made[2]


@pytest.fixture(scope="session")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "full.toml").write_text(FULL)
    arguments = [str(folder / "full.toml"), "--set", f"data.root={data}", "--no-mlflow"]
    assert train.main([*arguments, "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_killed_run_ends_as_one_that_was_not(
    full: list[str], tmp_path: Path, uninterrupted: Path, kind: signal.Signals
) -> None:
    out = tmp_path / "out"
    run = started([*full, "--out", str(out)])
    deadline = time.monotonic() + 60
    while not (out / "checkpoint.pt").exists():
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    run.send_signal(kind)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == (-signal.SIGKILL if kind == signal.SIGKILL else 130), said
    state = torch.load(out / "checkpoint.pt", weights_only=True)["state"]
    assert (state["stage"], state["done"]) < (1, 30), "the run was over before it was killed"
    assert train.main([*full, "--out", str(out), "--resume"]) == 0
    for name in ("full.safetensors", "curve.csv", "samples.png"):
        assert (out / name).read_bytes() == (uninterrupted / name).read_bytes(), name


def test_a_run_is_resumed_with_the_same_configuration_only(
    full: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = [*full, "--set", "train.steps=4", "--out", str(out), "--resume"]
    assert train.main(arguments) == 0
    assert train.main([*arguments, "--set", "train.batch=2"]) == 1
    said = capsys.readouterr().err
    assert "another train.batch (train.batch was 4, is 2)" in said
    assert train.main([*arguments, "--set", "data.workers=3"]) == 0
    whole = (out / "checkpoint.pt").read_bytes()
    (out / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    assert train.main(arguments) == 1
    assert "checkpoint.pt is no checkpoint that can be read" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch's about odd pickles
@pytest.mark.parametrize("odd", ["tensor", "list", "config", "state", "empty", "shapes"])
def test_other_files_are_no_checkpoint(data: Path, tmp_path: Path, odd: str) -> None:
    run = settings(data)
    trainer, path = Trainer(run, World()), tmp_path / "checkpoint.pt"
    whole = {"format": checkpoints.FORMAT, "config": config.flat(run), "state": trainer.state()}
    average = {name: torch.zeros(1) for name in trainer.average}
    made: dict[str, object] = {
        "tensor": torch.zeros(3),
        "list": [1],
        "config": whole | {"config": [1]},
        "state": whole | {"state": "x"},
        "empty": whole | {"state": {}},
        "shapes": whole | {"state": trainer.state() | {"average": average, "stage": 0}},
    }
    torch.save(made[odd], path)
    with pytest.raises(ConfigError, match="is no checkpoint that can be read") as caught:
        checkpoints.restore(path, run, trainer.load_state)
    assert "\n" not in str(caught.value)


def test_an_interrupt_before_the_first_step_is_one_line(
    full: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "frames_of", interrupted)
    assert train.main([*full, "--out", "unused"]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_a_folder_that_cannot_be_made_is_one_line(
    full: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert train.main([*full, "--out", str(tmp_path / "file" / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("train: ")
    assert said.count("\n") == 1


def test_a_loss_that_is_no_number_stops_the_run(
    full: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert train.main([*full, *out, "--set", "loss.mse=1e39", "--set", "train.log=1"]) == 1
    assert "the loss is inf at step 1; lower stages.rate" in capsys.readouterr().err


def test_the_last_steps_are_logged_and_checked(
    full: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They may be fewer than train.log."""
    few = [*full, "--set", "train.steps=3", "--set", "train.log=2", "--set", "validate.every=0"]
    assert train.main([*few, "--out", str(tmp_path / "a")]) == 0
    assert [row["step"] for row in rows(tmp_path / "a")] == ["2", "3"]
    out = tmp_path / "b"
    diverging = ["--set", "loss.mse=1e39", "--set", "train.log=100", "--out", str(out)]
    assert train.main([*few, *diverging]) == 1
    assert "the loss is nan at step 2; lower stages.rate" in capsys.readouterr().err
    assert not (out / "full.safetensors").exists()


def test_without_validation_frames_training_goes_on(tmp_path: Path) -> None:
    write_frames(tmp_path, count=1)
    out = tmp_path / "out"
    arguments = [str(SMOKE), "--set", f"data.root={tmp_path}", "--set", "train.steps=20"]
    assert train.main([*arguments, "--out", str(out), "--no-mlflow"]) == 0
    assert rows(out)[-1]["psnr"] == ""


def test_profile_compares_with_the_pure_rate(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([str(SMOKE), "--set", f"data.root={data}", "--profile", "2"]) == 0
    assert "5 times 2 steps: " in capsys.readouterr().out


# --- a step --------------------------------------------------------------------------------------


def test_the_result_is_the_average_of_the_weights(data: Path) -> None:
    trainer = Trainer(settings(data, "train.average=0.2"), World())
    crops = crops_for(trainer)
    expected = nets.folded(trainer.student.net)
    for step in range(6):
        trainer.step(crops.batch(step, 4))
        now = nets.folded(trainer.student.net)
        keep = min(0.2, step / (step + 10))  # the first steps count for little
        expected = {name: keep * expected[name] + (1 - keep) * now[name] for name in now}
    for name, average in trainer.average.items():
        torch.testing.assert_close(average, expected[name])
        assert not torch.equal(average, now[name]), name


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_gradients_are_clipped_all_together(data: Path, clip: float) -> None:
    trainer = Trainer(settings(data, f"train.clip={clip}"), World())
    trainer.step(crops_for(trainer).batch(0, 4))
    slopes = [parameter.grad for parameter in trainer.student.net.parameters()]
    norm = float(torch.stack([slope.norm() for slope in slopes if slope is not None]).norm())
    assert norm == pytest.approx(clip, rel=1e-2) if clip else norm > 1e-2


def test_the_discriminator_begins_at_its_step(data: Path, tmp_path: Path) -> None:
    (tmp_path / "full.toml").write_text(FULL)
    trainer = Trainer(settings(data, "gan.start=1", path=tmp_path / "full.toml"), World())
    crops = crops_for(trainer)
    assert trainer.critic is not None
    for step, counts in enumerate((False, True)):
        before = [p.detach().clone() for p in trainer.critic.parameters()]
        trainer.step(crops.batch(step, 4))
        terms = {"gan", "critic"} & trainer.take_means().keys()
        assert terms == ({"gan", "critic"} if counts else set())
        after = list(trainer.critic.parameters())
        assert all(torch.equal(*two) for two in zip(before, after, strict=True)) != counts
        assert all(p.requires_grad for p in after)


# --- several processes ---------------------------------------------------------------------------

WORKER = """
import sys, torch
from pathlib import Path
from training import config, train
from training.trainer import Trainer, joined
torch.set_num_threads(1)
settings = config.read(Path(sys.argv[1]), sys.argv[3:])
with joined() as world:
    trainer = Trainer(settings, world)
    crops = train.crops_of(settings, trainer, train.frames_of(settings, trainer, world))
    for step in range(3):
        trainer.step(crops.batch(step, 4, world.part(4)))
    assert world.any(world.rank) == world.size - 1
    torch.save(trainer.average, f"{sys.argv[2]}/{world.size}-{world.rank}.pt")
"""


def test_two_processes_train_as_one(tmp_path: Path, data: Path) -> None:
    (tmp_path / "full.toml").write_text(FULL.replace("relativistic", "vanilla"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    arguments = [str(tmp_path / "full.toml"), str(tmp_path), f"data.root={data}"]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, *arguments],
            cwd=ROOT,
            env={**os.environ, **common, "RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(2)
    ]
    said = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    trainer = Trainer(settings(data, path=tmp_path / "full.toml"), World())
    crops = crops_for(trainer)
    start = nets.folded(trainer.student.net)
    for step in range(3):
        trainer.step(crops.batch(step, 4))
    first, second = (torch.load(tmp_path / f"2-{r}.pt", weights_only=True) for r in range(2))
    for name, alone in trainer.average.items():
        assert torch.equal(first[name], second[name]), name
        moved = (alone - start[name]).abs().max()
        assert (first[name] - alone).abs().max() < 0.02 * moved, name


def test_a_batch_must_be_shared_evenly(data: Path) -> None:
    trainer = Trainer(settings(data), World())
    with pytest.raises(ConfigError, match=r"train\.batch = 8 cannot be shared by 3 processes"):
        train.frames_of(trainer.config, trainer, World(0, 3))


# --- nets ----------------------------------------------------------------------------------------

NETS = [
    Net("luma", 3, 8, 3, expand=8),
    Net("compact", 2, 8, 2),
    Net("compact", 3, 8, 2, expand=8, edges=True),
    Net("span", 2, 8, expand=8, edges=True),
    Net("rrdb", 2, 8, 1, growth=4, expand=8),
]


@pytest.mark.parametrize("net", NETS, ids=lambda net: f"{net.architecture}-{net.expand}")
def test_folded_weights_compute_what_was_trained(net: Net) -> None:
    student = nets.build(net, seed=1)
    for parameter in student.net.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    low = torch.rand(1, 1 if student.colour == "luma" else 3, 24, 24)
    run = nets.deployed(net, nets.folded(student.net))
    m, s = student.margin, net.scale
    with torch.no_grad():
        expected, found = student.net(low), run(low)
    found = found[..., m * s : 24 * s - m * s, m * s : 24 * s - m * s]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    assert expected.std() > 1e-3
    again = nets.build(net, seed=2)
    nets.restart(again.net, nets.folded(student.net))
    torch.testing.assert_close(again.net(low).detach(), expected, rtol=1e-4, atol=2e-5)
    if net.expand:
        assert sum(p.numel() for p in student.net.parameters()) > sum(
            t.numel() for t in nets.folded(student.net).values()
        )


def test_edge_branches_are_the_filters_of_the_paper() -> None:
    block = nets.LinearBlock(1, 1, 4, edges=True)
    block.clear()
    block.gain.data[1], block.mix.data[1] = 8.0, 1.0
    ramp = torch.arange(5.0).expand(1, 1, 5, 5)
    y = torch.nn.functional.conv2d(ramp, block(torch.zeros(1, 1, 3, 3)))
    torch.testing.assert_close(y, torch.full_like(y, -8.0))  # Sobel of a slope of 1


def test_a_run_starts_from_a_zoo_name_or_a_file(data: Path, tmp_path: Path) -> None:
    net = Net("luma", 4, 16, 7, expand=8, start="default-x4")
    shipped = load.state_dict(load.locate("default-x4").spec)  # type: ignore[arg-type]
    folded = nets.folded(nets.build(net, 1).net)
    assert all(torch.equal(folded[name], shipped[name]) for name in shipped)
    small = nets.build(Net("compact", 2, 8, 2), 1)
    nets.save(tmp_path / "a.safetensors", Net("compact", 2, 8, 2), nets.folded(small.net))
    start = str(tmp_path / "a.safetensors")
    again = nets.build(Net("compact", 2, 8, 2, expand=4, start=start), 2)
    for name, tensor in nets.folded(again.net).items():
        assert torch.equal(tensor, small.net.state_dict()[name])
    wider = nets.folded(nets.build(Net("compact", 4, 8, 2, start=start), 3).net)
    expected = compact.rescaled(small.net.state_dict(), 4)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in wider.items())
    deeper, unknown = Net("compact", 2, 8, 3, start=start), Net("compact", 2, start="no-such")
    for other in (deeper, unknown):
        with pytest.raises(ConfigError, match=r"net\.start: "):
            nets.build(other, 1)


def test_a_student_learns_from_a_teacher(data: Path, tmp_path: Path) -> None:
    teacher = nets.build(Net("compact", 2, 8, 1), 5)
    path = tmp_path / "teacher.safetensors"
    nets.save(path, Net("compact", 2, 8, 1), nets.folded(teacher.net))
    changes = [f"teacher.model={path}", "loss.teacher=1.0", "loss.mse=0"]
    for extra in ([], ['net.architecture="luma"', "net.depth=3"]):
        trainer = Trainer(settings(data, *changes, *extra), World())
        assert trainer.colour == "rgb"
        crops = crops_for(trainer)
        losses = []
        for step in range(60):
            trainer.step(crops.batch(step, 4))
            losses.append(trainer.take_means()["teacher"])
        assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])
    with pytest.raises(ConfigError, match=r"enlarges by 2, net\.scale is 3"):
        nets.open_teacher(str(path), 3)
    with pytest.raises(ConfigError, match="is no RGB net"):
        nets.open_teacher("default-x2", 2)


# --- the finish for int8 -------------------------------------------------------------------------


def test_kernels_and_activations_are_rounded_to_8_bits() -> None:
    kernel = torch.randn(2, 8, 3, 3)
    rounded = RoundedKernel()(kernel)
    for one, exact in zip(rounded, kernel, strict=True):
        step = exact.abs().max() / 127
        assert (one - exact).abs().max() <= step / 2 + 1e-6
        torch.testing.assert_close((one / step).round() * step, one)
    layer = RoundedActivation()
    x = torch.linspace(-0.5, 2.0, 5000)
    y = layer(x)
    assert len(y.unique()) <= 256
    assert (y - x).abs().max() <= 2.5 / 255
    layer.eval()
    assert layer(torch.tensor([9.0])).item() == pytest.approx(2.0, abs=2.5 / 255)


def test_gradients_pass_the_rounding() -> None:
    kernel = torch.randn(2, 2, 3, 3, requires_grad=True)
    RoundedKernel()(kernel).sum().backward()
    assert kernel.grad is not None
    assert (kernel.grad == 1).float().mean() > 0.8


def test_the_finish_makes_the_rounded_net_better(data: Path) -> None:
    """At 5 bits, which a net this small feels: against as many steps without the rounding."""
    changes = ["train.steps=120", "train.batch=4", 'net.architecture="luma"', "net.depth=3"]
    errors = []
    for finish in (False, True):
        trainer = Trainer(settings(data, *changes), World())
        crops, net = crops_for(trainer), trainer.student.net
        for step in range(120):
            if step == 60 and finish:
                quantise(net, bits=5)
            trainer.step(crops.batch(step, 4))
        if not finish:
            quantise(net, bits=5)
        low, high = (tensor_of(p, torch.device("cpu")) for p in parts(crops.batch(1000, 32)))
        with torch.no_grad():
            for _ in range(2):  # the first time sets the ranges
                error = float((net(low) - high).square().mean())
        errors.append(error)
    assert errors[1] < 0.8 * errors[0]


def test_what_is_saved_is_not_rounded() -> None:
    student = nets.build(Net("compact", 2, 4, 1, expand=4), 1)
    before = nets.folded(student.net)
    quantise(student.net)
    after = nets.folded(student.net)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(
        student.net.body[0].weight,
        before["body.0.weight"],  # type: ignore[index, union-attr]
    )


# --- the parts -----------------------------------------------------------------------------------


def test_rates() -> None:
    cosine = Stage(rate=1.0, warm_up=10, floor=0.01)
    rates = [rate_at(step, 1000, cosine) for step in range(1000)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1, abs=1e-3)
    assert rates[500] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.01)
    steps = Stage(rate=1.0, warm_up=0, schedule="multistep", milestones=(0.5, 0.75))
    assert [rate_at(step, 8, steps) for step in range(8)] == [1] * 4 + [0.5] * 2 + [0.25] * 2
    assert rate_at(7, 8, Stage(rate=0.5, warm_up=0, schedule="constant")) == 0.5


def test_the_bicubic_to_beat_is_cv2s() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    ours = validate.bicubic(validate._tensor(pixels), 4)[0].permute(1, 2, 0).numpy() * 255
    theirs = cv2.resize(pixels, (64, 48), interpolation=cv2.INTER_CUBIC)
    assert np.abs(np.rint(ours) - theirs).max() <= 1


def test_without_mlflow_one_line_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("training.tracking.find_spec", lambda name: None)
    with caplog.at_level("INFO", "training"):
        tracker = Tracker(settings(data), tmp_path)
        tracker.row({"step": 1, "loss": 2.0})
        tracker.end("FINISHED")
    assert [record.message for record in caplog.records if "MLflow" in record.message] == [
        f'no MLflow here, the curve is in {tmp_path}; pip install "sr-overlay[train]"'
    ]


def test_a_failing_store_is_one_warning(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(settings(data), tmp_path, wanted=False)

    class Broken:
        def log_metric(self, *arguments: object, **more: object) -> None:
            raise OSError("no space left")

    tracker._client = Broken()
    for step in (1, 2):
        tracker.row({"step": step, "loss": 2.0})
    tracker.model(tmp_path / "none", "luma")
    tracker.end("FINISHED")
    assert [record.message for record in caplog.records] == [
        "MLflow failed and is left out from here on: no space left"
    ]


@pytest.mark.skipif(find_spec("mlflow") is None, reason="needs mlflow")
def test_mlflow_keeps_parameters_curve_samples_and_model(data: Path, tmp_path: Path) -> None:
    arguments = [str(SMOKE), "--set", f"data.root={data}", "--set", "train.steps=20"]
    out = tmp_path / "runs" / "a"
    run = started([*arguments, "--out", str(out)], MLFLOW_TRACKING_URI="")
    said, _ = run.communicate(timeout=100)
    assert run.returncode == 0, said
    assert "MLflow failed" not in said, said
    with sqlite3.connect(tmp_path / "runs" / "mlflow.db") as store:
        parameters = dict(store.execute("select key, value from params"))
        metrics = {key for (key,) in store.execute("select distinct key from metrics")}
        (status,) = store.execute("select status from runs").fetchone()
    store.close()
    assert parameters["train.steps"] == "20"
    assert parameters["net.architecture"] == "compact"
    assert {"loss", "rate", "mse"} <= metrics
    assert status == "FINISHED"
    kept = tmp_path / "runs" / "mlflow"
    assert {path.name for path in kept.rglob("*.*")} >= {
        "samples.png", "smoke-x2.safetensors", "model.onnx",
    }  # fmt: skip
    signature = next(kept.rglob("MLmodel")).read_text()
    assert "uint8" in signature
    assert "bgra" in signature
    assert json.loads((out / "mlflow.json").read_text())["run"]


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("auto", "nccl")])
def test_processes_for_the_cpu_join_without_gpus(
    monkeypatch: pytest.MonkeyPatch, device: str, backend: str
) -> None:
    asked: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", lambda _: None)
    monkeypatch.setattr("torch.distributed.init_process_group", asked.append)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with joined(device):
        pass
    assert asked == [backend]
