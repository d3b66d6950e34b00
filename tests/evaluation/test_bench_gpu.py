"""The GPU suite: what it counts and plans, how it survives crashes, and a run on the CPU."""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engines import zoo
from engines.fast import faster
from engines.fast.kernels import Conv, Tile
from evaluation import bench
from evaluation.bench import (
    ceilings,
    flops,
    gpu,
    gpu_engine,
    gpu_fp8,
    gpu_methods,
    gpu_nets,
    gpu_open,
    gpu_path,
    gpu_table,
    gpu_worker,
)
from evaluation.bench.gpu_methods import METHODS, Case, NotHere
from evaluation.bench.gpu_nets import MODELS, Picture
from evaluation.bench.timing import Device, Timed
from overlay.cuda.recording import RecordingCuda
from overlay.errors import BackendUnavailable, OverlayError, SettingsError
from overlay.frame import DeviceSpan, DeviceTimes, Size

Row = dict[str, Any]


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(["--suite", "gpu", "--device", "cpu", *words])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_suite_tests_itself() -> None:
    plan = gpu.planned(parse("--device", "auto"))
    assert plan.device == "cpu"
    assert {task["width"] for task in plan.tasks if task["kind"] == "row"} == {32}


# --- counting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "gmac"),
    [
        ("realesrgan-x4plus", 2323.3), ("realesrgan-x4plus-anime-6b", 739.6),
        ("realesr-animevideov3-x4", 80.2), ("realesr-general-x4v3", 156.7),
        ("ultracompact-x4", 42.0), ("superultracompact-x4", 6.80),
    ],
)  # fmt: skip
def test_multiplications_are_those_published(name: str, gmac: float) -> None:
    net, _ = gpu_nets.net_of(MODELS[name])
    count = flops.count(net, 1, 3, 270, 480)
    assert count.macs / 1e9 == pytest.approx(gmac, rel=2e-3)
    assert count.gflop == pytest.approx(2 * gmac, rel=2e-3)


def test_bytes_and_kernels_of_one_convolution() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3, padding=1), torch.nn.ReLU())
    count = flops.count(net, 1, 4, 10, 10)
    weights = 8 * 4 * 9 + 8
    assert count.macs == 8 * 4 * 9 * 100
    assert count.least_bytes == 2 * (400 + weights + 800)
    assert count.eager_bytes == count.least_bytes + 2 * 1600
    assert count.kernels == 2


def test_folding_saves_five_ninths_of_enlarged_convolutions() -> None:
    net, _ = gpu_nets.net_of(MODELS["realesrgan-x4plus-anime-6b"])
    plain, folded = (_macs(faster(net, form, torch.float32)) for form in ("epilogue", "folded"))
    enlarged = 9 * 64 * 64 * (64 * 48) * (4 + 16)
    # 2x2 kernels are run one row and column too far, and cut
    assert plain - folded == pytest.approx(5 / 9 * enlarged, rel=0.06)


def _macs(quick: torch.nn.Module) -> int:
    counter = flops._Counter()
    with torch.inference_mode(), counter:
        quick.to("meta")(torch.empty(1, 48, 64, 4, dtype=torch.uint8, device="meta"))
    return counter.macs


def test_the_quick_forms_do_no_more_than_the_net() -> None:
    """Padding costs little, and all tensors of a form are on the device of its weights."""
    net, _ = gpu_nets.net_of(MODELS["realesr-animevideov3-x4"])
    wanted = flops.count(net, 1, 3, 48, 64).macs
    assert _macs(faster(net.to("meta"), "direct")) == pytest.approx(wanted, rel=0.05)


# --- nets ----------------------------------------------------------------------------------------


def test_the_models_are_rows_of_the_zoo() -> None:
    for model in MODELS.values():
        spec = zoo.spec(model.id)
        found = (spec.id, spec.architecture, spec.scale, dict(spec.shape))
        assert found == (model.id, model.architecture, model.scale, dict(model.shape))
        names = {Path(source.name).stem for source in spec.sources if source.kind == "package"}
        assert names == ({model.carried} if model.carried else set())


def test_weights_are_read_or_said_to_be_random(tmp_path: Path) -> None:
    assert gpu_nets.net_of(MODELS["realesr-animevideov3-x4"])[1] == "realesr-animevideov3-x4.bin"
    assert gpu_nets.net_of(MODELS["default-x4"])[1] == "shipped"
    one, origin = gpu_nets.net_of(MODELS["superultracompact-x4"], tmp_path)
    two, _ = gpu_nets.net_of(MODELS["superultracompact-x4"], tmp_path)
    assert origin == "random weights, seed 0"
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(one(x), two(x))
    assert 0.2 < float(one(x).std()) < 5


def test_the_picture_net_gives_bytes_in_order() -> None:
    class Red(torch.nn.Module):
        def forward(self, rgb: torch.Tensor) -> torch.Tensor:
            return rgb * torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)

    bgra = torch.tensor([10, 20, 30, 0], dtype=torch.uint8).expand(1, 2, 3, 4)
    assert Picture(Red(), torch.float32)(bgra)[0, 1, 2].tolist() == [0, 0, 30, 255]


def test_difference() -> None:
    right = torch.full((1, 2, 2, 4), 100, dtype=torch.uint8)
    other = right.clone()
    other[..., 3] = 0  # alpha does not count
    assert gpu_nets.difference(other, right) == {"psnr_db": 100.0, "max": 0, "mean": 0.0}
    other[0, 0, 0, 0] = 98
    assert gpu_nets.difference(other, right)["max"] == 2
    assert gpu_nets.difference(other, right)["psnr_db"] == pytest.approx(52.9, abs=0.01)


# --- methods -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("name", ["superultracompact-x4", "default-x4"])
def test_every_method_gives_the_picture_or_a_reason(name: str, method: str) -> None:
    net, _ = gpu_nets.net_of(MODELS[name])
    frame, _ = gpu_nets.frame_of(24, 16)
    case = Case(MODELS[name], net, frame, Device("cpu"))
    try:
        with torch.inference_mode():
            result = METHODS[method].prepare(case)()
    except NotHere as exc:
        reason = str(exc)
    else:
        reason = ""
    if reason:
        assert method not in ("fp32", "fp16", "fp16-cl", "onnxruntime")
        return
    if method == "fp8":
        assert gpu_nets.difference(result, Picture(net, torch.float32)(frame))["psnr_db"] > 30
        return
    right = Picture(net, torch.float32)(frame)
    assert result.dtype == torch.uint8
    assert gpu_nets.difference(result, right)["max"] <= 3


def test_the_best_tile_is_best_for_all_shapes_together() -> None:
    def row(shape: tuple[int, int], tile: list[int], ms: float) -> Row:
        return {"by": "ours", "inputs": shape[0], "outputs": shape[1], "tile": tile,
                "device_ms": {"p50": ms}}  # fmt: skip

    one, two = ceilings.TILED[:2]
    rows = [
        row(one, [64, 4, 3], 1.0), row(two, [64, 4, 3], 9.0),
        row(one, [128, 4, 4], 3.0), row(two, [128, 4, 4], 3.0),
        row(one, [256, 8, 3], 0.5),  # it could not run the other one
        {"by": "library", "device_ms": {"p50": 0.1}},
    ]  # fmt: skip
    best = ceilings.best_tile(rows)
    assert best is not None
    assert best.pixels == 128
    assert ceilings.best_tile([]) is None


# --- times ---------------------------------------------------------------------------------------


def test_times_are_of_the_runs_asked_for() -> None:
    calls = []
    timed = Device("cpu").time(lambda: calls.append(1), 7, 10.0)
    assert len(timed.wall_ms) == 7
    assert len(calls) == 7 + 1
    assert not timed.device_ms
    assert set(timed.to_json()) == {"runs", "per_second", "wall_ms"}


def test_slow_work_is_run_as_often_as_fits() -> None:
    timed = Device("cpu").time(lambda: time.sleep(0.02), 1000, 0.1)
    assert len(timed.wall_ms) == 5


def test_the_median_is_the_devices_where_there_is_one() -> None:
    assert Timed([1.0, 2.0, 9.0], [50.0], 1.0).best_ms == 2.0
    assert Timed([], [3.0, 4.0, 8.0], 1.0).best_ms == 4.0


# --- options and plan ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "nonsense"], "--models: the gpu suite does not know 'nonsense'"),
        (["--methods", "fp4"], "--methods: the gpu suite does not know 'fp4'"),
        (["--sizes", "480"], "--sizes: '480': expected WIDTHxHEIGHT"),
        (["--frames", "0"], "--frames must be at least 1, not 0"),
        (["--budget", "nan"], "--budget: expected 1 to 36000 s"),
        (["--resume"], "--resume goes on with the results in a file: name it with --out"),
    ],
)
def test_bad_options(words: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        gpu.planned(parse(*words))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_was_asked_for_must_be_there() -> None:
    with pytest.raises(BackendUnavailable, match="sees no NVIDIA GPU; --device cpu --quick"):
        bench.run(parse("--device", "cuda"))


def test_an_unwritable_file_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(OverlayError, match=r"cannot write .*no/such"):
        bench.run(parse("--quick", "--out", str(tmp_path / "no" / "such.jsonl")))


def test_what_matters_most_comes_first() -> None:
    tasks = gpu.planned(parse()).tasks
    kinds = [task["kind"] for task in tasks]
    assert kinds[:3] == ["matmul", "copies", "row"]
    rows = [task for task in tasks if task["kind"] == "row"]
    assert {row["model"] for row in rows[: 2 * 13]} == set(gpu._KEY_MODELS)
    compiled, tuned = (
        next(i for i, task in enumerate(tasks) if task.get("method") == name)
        for name in ("compile", "direct-tuned")
    )
    other = next(i for i, t in enumerate(tasks) if t["kind"] == "row" and t["model"] == "span-x4")
    assert kinds.index("path") < compiled < kinds.index("memory") < kinds.index("open")
    assert kinds.index("open") < kinds.index("convolutions") < tuned < other
    assert {(row["width"], row["height"]) for row in rows} == {(480, 270), (640, 360), (960, 540)}
    assert {row["model"] for row in rows} == set(MODELS)
    assert {row["method"] for row in rows} == set(METHODS)
    assert len({json.dumps(task) for task in tasks}) == len(tasks)


# --- the second process --------------------------------------------------------------------------


def plan_of(*tasks: Row) -> gpu.Plan:
    return gpu.Plan("cpu", 1, 0.01, None, 1, list(tasks))


def with_worker(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Let the worker be this program, with `plan`, `out`, `start` and `write` at hand."""
    program = (
        "import argparse, json, os, sys, time\n"
        "p = argparse.ArgumentParser()\n"
        "for n in ('plan', 'out'): p.add_argument('--' + n)\n"
        "p.add_argument('--start', type=int)\n"
        "a = p.parse_args()\n"
        "plan, start = json.load(open(a.plan)), a.start\n"
        "def write(text):\n"
        "    with open(a.out, 'a') as f: f.write(text)\n"
        "def say(**row): write(json.dumps(row) + '\\n')\n" + body
    )
    popen = gpu.subprocess.Popen

    def started(command: list[str], **options: object) -> object:
        at = command.index("evaluation.bench.gpu_worker")
        return popen([sys.executable, "-c", program, *command[at + 1 :]])

    monkeypatch.setattr(gpu.subprocess, "Popen", started)


def supervised(tmp_path: Path, plan: gpu.Plan, budget_s: float = 60.0) -> list[Row]:
    out = tmp_path / "out.jsonl"
    out.write_text("")
    gpu.supervise(plan, out, budget_s, tmp_path)
    return [row for row in gpu.read(out) if row["kind"] not in ("begin", "end")]


_LOOP = """
for i, task in enumerate(plan['tasks'][start:], start):
    say(kind='begin', task=i)
    if task['name'] == 'crash':
        write('{"kind": "row", "half')
        os.abort()
    if task['name'] == 'lost':
        say(status='not run', reason='CUDA error', **task)
        say(kind='end', task=i)
        sys.exit(3)
    if task['name'] == 'hang': time.sleep(60)
    say(status='measured', **task)
    say(kind='end', task=i)
"""


def test_a_crash_costs_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_worker(monkeypatch, _LOOP)
    names = ("one", "crash", "two", "lost", "three")
    plan = plan_of(*({"kind": "copies", "name": name} for name in names))
    rows = supervised(tmp_path, plan)
    assert [(row["name"], row["status"]) for row in rows] == [
        ("one", "measured"), ("crash", "not run"), ("two", "measured"), ("lost", "not run"),
        ("three", "measured"),
    ]  # fmt: skip
    assert "the process ended with -6" in rows[1]["reason"]
    assert rows[3]["reason"] == "CUDA error"


def test_a_task_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_worker(monkeypatch, _LOOP)
    monkeypatch.setattr(gpu, "_allowed", lambda task: 0.5)
    plan = plan_of({"kind": "copies", "name": "hang"}, {"kind": "copies", "name": "one"})
    rows = supervised(tmp_path, plan, 20.0)
    assert [row["status"] for row in rows] == ["not run", "measured"]
    assert rows[0]["reason"] == "stopped after 0 s"


def test_when_the_budget_is_spent_the_rest_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_worker(monkeypatch, _LOOP)
    plan = plan_of({"kind": "copies", "name": "hang"}, {"kind": "copies", "name": "one"})
    rows = supervised(tmp_path, plan, 1.0)
    reasons = [row["reason"] for row in rows]
    assert reasons[0] == "the budget was spent while it ran"
    assert reasons[1] == "the budget of 1 s was spent before its turn"


def test_a_worker_that_cannot_start_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_worker(monkeypatch, "sys.exit(1)")
    rows = supervised(tmp_path, plan_of(*({"kind": "copies", "name": n} for n in "ab")))
    assert [row["reason"] for row in rows] == [
        "no worker could start: the process ended with 1"
    ] * 2


def test_a_task_that_fails_is_a_row_with_the_reason(tmp_path: Path) -> None:
    worker = gpu_worker.Worker(Device("cpu"), 1, 0.01, None)
    out = tmp_path / "out.jsonl"
    out.write_text("")
    tasks: list[Row] = [{"kind": "matmul", "sizes": [-1]}, {"kind": "matmul", "sizes": [8]}]
    assert gpu_worker.work(worker, tasks, 0, out) == 0
    rows = [row for row in gpu.read(out) if row["kind"] == "matmul"]
    assert rows[0]["status"] == "not run"
    assert rows[0]["reason"].startswith("RuntimeError: ")
    assert "Traceback" in rows[0]["traceback"]
    assert [row["of"] for row in rows[1:]] == ["fp16", "tf32", "fp32"]


# --- what comes out ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Row, str]:
    """Run the suite as a user does, on the CPU."""
    folder = tmp_path_factory.mktemp("gpu")
    arguments = parse("--quick", "--json", "--out", str(folder / "o"), "--markdown",
                      str(folder / "m"), "--threads", "1", "--methods",
                      "fp32,fp16-cl,epilogue,direct,fp8,tensorrt,compile")  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        written: list[str] = []
        patch.setattr(sys.stdout, "write", written.append)
        assert bench.run(arguments) == 0
    return json.loads("".join(written)), (folder / "m").read_text()


def test_a_run_on_the_cpu(results: tuple[Row, str]) -> None:
    result, _ = results
    rows = {(row["model"], row["method"]): row for row in result["rows"]}
    assert len(rows) == len(result["rows"])
    for model in ("realesr-animevideov3-x4", "default-x4"):
        assert rows[model, "fp32"]["status"] == "measured"
        assert rows[model, "fp32"]["times_fp32"] == 1.0
    assert rows["realesr-animevideov3-x4", "compile"]["status"] == "not run"
    quick = rows["realesr-animevideov3-x4", "direct"]
    assert quick["against_fp32"]["max"] <= 1
    assert quick["gflop"] == pytest.approx(160.496 * (32 * 24) / (480 * 270), rel=0.01)
    assert quick["times_fp32"] > 0
    assert quick["share_of_matmul"] > 0
    assert "tested itself on the CPU" in result["note"]
    paths = {row["backend"]: row for row in result["path"]}
    assert set(paths) == set(gpu_path.BACKENDS)
    for backend in ("torch-cuda", "torch-cuda plain", "torch-cuda epilogue", "torch-cuda direct"):
        assert paths[backend]["against_fp32"]["max"] <= 1
        assert paths[backend]["slots"] == 2
        assert paths[backend]["runs_on"].startswith("recording, FP32, ")
    assert paths["torch-cuda stacked"]["reason"] == "Compact has no form 'stacked'"
    assert all(paths[name]["reason"] for name in ("tensorrt", "tensorrt-rtx"))
    assert all(row["against_cpu_fp32"]["max"] == 0 for row in result["reference"])
    memory = result["memory"][0]
    assert [sample["frames"] for sample in memory["samples"]] == [0, 12]
    assert "cut_short" not in memory
    tasks = gpu.planned(parse("--quick")).tasks  # what --resume compares with
    assert any(gpu._is_of(memory, task) for task in tasks if task["kind"] == "memory")
    for row in result["open"]:
        assert 0 < row["opened_s"] <= row["first_picture_s"] < 60
        assert 0 < row["check_ms"] < 5e3
    assert [row["kernels"] for row in result["open"]] == ["compiled", "kept"]
    assert rows["realesr-animevideov3-x4", "fp8"]["loss"]["holds"]
    assert set(result["ceilings"]) == {
        "fp16_tflops", "tf32_tflops", "fp32_tflops", "device_gb_s", "upload_gb_s",
        "download_gb_s",
    }  # fmt: skip
    assert result["seed_table"]["seconds"]["PyTorch CUDA"] == 1.070


def test_tables_have_every_row_and_the_other_machine(results: tuple[Row, str]) -> None:
    result, markdown = results
    text = gpu_table.text(result)
    for row in result["rows"]:
        assert METHODS[row["method"]].title in text
    for form in (text, markdown):
        assert "another machine: GTX 1660 Super" in form
        assert "its times mean nothing" in form
        assert "not run: torch.compile is compared on GPUs only" in form
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in lines)


def test_results_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.jsonl"
    words = ("--quick", "--models", "default-x4", "--methods", "fp32", "--out", str(out))
    task = next(t for t in gpu.planned(parse(*words)).tasks if t["kind"] == "row")
    lines: list[Row] = [
        {"kind": "facts"}, {**task, "status": "measured", "mine": True},
        {"kind": "copies", "sizes": [1 << 20], "status": "not run", "reason": "no time"},
        {"kind": "memory", "status": "measured", "cut_short": "1 of 2 frames"},
    ]  # fmt: skip
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    left: list[Row] = []
    monkeypatch.setattr(gpu, "supervise", lambda plan, *rest: left.extend(plan.tasks))
    monkeypatch.setattr(gpu, "summed_up", lambda facts, rows: {"rows": []})
    monkeypatch.setattr(gpu_table, "text", lambda result: "")
    assert bench.run(parse(*words, "--resume")) == 1
    assert {"copies", "memory", "matmul"} <= {one["kind"] for one in left}
    assert task not in left
    assert [row.get("mine") for row in gpu.read(out)] == [True, None]


def test_a_task_that_was_cut_off_begins_again(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    row = {"kind": "convolutions", "status": "measured"}
    lines: list[Row] = [
        {"kind": "begin", "task": 0}, {**row, "by": "library"}, {"kind": "end", "task": 0},
        {"kind": "begin", "task": 1}, {**row, "by": "ours"}, {**row, "status": "not run"},
        {"kind": "begin", "task": 2}, {**row, "by": "nobody"},
    ]  # fmt: skip
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [one["by"] for one in gpu._begun(out, True)] == ["library"]


# --- memory, opening, engines, FP8 ---------------------------------------------------------------


class Instant:
    """An upscaler whose pictures are there at once."""

    slots, device = 2, "nothing"

    def __init__(self) -> None:
        self.in_flight = self.done = self.most = 0

    def submit(self, frame: object) -> None:
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)

    def poll(self, timeout_s: float) -> object:
        self.in_flight -= 1
        self.done += 1
        return self


@pytest.mark.parametrize(("used", "flat"), [([7, 9, 7, 7], True), ([7, 10, 7, 7], False)])
def test_memory_that_grew_for_a_while_is_seen(
    used: list[float], flat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter(used)
    monkeypatch.setattr(gpu_path, "in_use", lambda device: {"used_mb": next(found), "host_mb": 1.0})
    upscaler = Instant()
    row = gpu_path.memory(upscaler, (32, 24), Device("cpu"), 25_000, 60.0)
    assert [sample["frames"] for sample in row["samples"]] == [0, 10_000, 20_000, 25_000]
    assert row["flat"] is flat
    assert row["most_used_mb"] == max(used)
    assert (upscaler.in_flight, upscaler.most, upscaler.done) == (0, 2, 25_004)
    assert "cut_short" not in row


def test_memory_says_how_many_frames_fitted() -> None:
    upscaler = Instant()
    row = gpu_path.memory(upscaler, (32, 24), Device("cpu"), 10_000_000, 0.05)
    assert 0 < row["frames"] < 10_000_000
    assert row["cut_short"] == f"{row['frames']} of 10000000 frames fitted into 0 s"
    assert upscaler.in_flight == 0
    assert upscaler.done == row["frames"] + 4


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    task = {"model": "realesrgan-x4plus@7", "backend": "openvino", "width": 32, "height": 24}
    row = gpu_open.measured(task, 4, tmp_path, lambda: 0.0)
    assert "realesrgan-x4plus" in row["reason"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_its_packages_pytorch_is_opened_all_the_same(tmp_path: Path) -> None:
    """It gets as far as the GPU that is not there."""
    code = (
        "import sys; sys.modules['cv2'] = None; from evaluation.bench import gpu_open; "
        "sys.exit(gpu_open.main())"
    )
    words = "--model default-x4 --backend torch-cuda --width 32 --height 24 --scale 4"
    done = subprocess.run(
        [sys.executable, "-c", code, *words.split()],
        input="\n", capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "cuda-bindings" in json.loads(done.stdout)["reason"]


def test_a_process_that_dies_is_said_to_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_open, "sys", argparse.Namespace(executable="/bin/false"))
    task = {"model": "default-x4", "backend": "openvino", "width": 32, "height": 24}
    row = gpu_open.measured(task, 4, tmp_path, lambda: 0.0)
    assert row["reason"] == "the process ended with 1, or took 90 s"


def test_engines_run_between_tensors() -> None:
    """The program gets the tensors' addresses, and its picture is the one that is given."""
    calls: list[object] = []

    class Program:
        def prepare(self, cuda: object, size: object, stream: object) -> None:
            calls.append(size)

        def enqueue(self, slot: int, source: Any, target: Any, stream: Any) -> None:
            assert (slot, source.size, target.size) == (0, 6 * 4 * 4, 24 * 16 * 4)
            ctypes.memset(target.address, ctypes.c_uint8.from_address(source.address).value, 8)

        def capturable(self, stream: object) -> bool:
            return False

    frame = torch.full((1, 4, 6, 4), 9, dtype=torch.uint8)
    model = MODELS["superultracompact-x4"]
    program: Any = Program()
    step, capturable = gpu_engine.prepared(program, RecordingCuda(), model, frame)
    frame.fill_(5)
    picture = step()
    assert picture.shape == (1, 16, 24, 4)
    assert picture.flatten()[:8].tolist() == [5] * 8
    assert calls == [Size(6, 4)]
    assert not capturable


def test_patches_are_those_of_a_convolution() -> None:
    planes = torch.randn(5, 7, 16).to(torch.float8_e4m3fn)
    expected = torch.nn.functional.unfold(planes.float().permute(2, 0, 1)[None], 3, padding=1)
    expected = expected[0].reshape(16, 9, 35).permute(2, 1, 0).reshape(35, 144)
    assert torch.equal(gpu_fp8.patches(planes).float(), expected)


def test_fp8_convolves_and_clamps() -> None:
    conv = torch.nn.Conv2d(32, 48, 3, padding=1)
    x = torch.randn(1, 32, 6, 9).half()
    with torch.inference_mode():
        expected = conv(x.float())
        found = gpu_fp8.Fp8Conv(conv, float(x.abs().max()))(x).float()
        error = (found - expected).pow(2).mean().sqrt() / expected.std()
        assert 0.001 < error < 0.06
        clamped = gpu_fp8.Fp8Conv(conv, 1.0)(x).float()
        assert (clamped - conv(x.float().clamp(-1, 1))).abs().max() < 0.1


def test_what_fp8_loses_is_told() -> None:
    net, _ = gpu_nets.net_of(MODELS["realesr-animevideov3-x4"])
    frame, _ = gpu_nets.frame_of(64, 48)
    with torch.inference_mode():
        quick = gpu_fp8.picture(net, frame)
        assert sum(isinstance(one, gpu_fp8.Fp8Conv) for one in quick.modules()) == 16
        good = gpu_fp8.loss(net, quick, frame, 4)
        assert good["holds"]
        for one in quick.modules():
            if isinstance(one, gpu_fp8.Fp8Conv):
                one.get_buffer("bias").add_(0.2)
        bad = gpu_fp8.loss(net, quick, frame, 4)
    assert not bad["holds"]
    assert bad["fp32_db"] == good["fp32_db"]


def test_a_tile_that_does_not_fit_costs_its_row_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class OutOfResources(Exception):
        """As Triton's: no RuntimeError."""

    def convolve(*arguments: object, **options: object) -> None:
        raise OutOfResources("out of resource: shared memory\nmore")

    monkeypatch.setattr(ceilings.kernels, "convolve", convolve)
    conv, x = Conv(torch.zeros(16, 16, 3, 3), torch.zeros(16), 1.0, 16, 16), torch.zeros(1)
    row = ceilings._ours(Device("cpu"), conv, x, x, Tile(), 1)
    assert row == {"reason": "out of resource: shared memory"}


def test_graphs_need_a_gpu() -> None:
    with pytest.raises(NotHere, match="CUDA graphs need an NVIDIA GPU"):
        gpu_methods.captured(lambda: torch.zeros(1), Device("cpu"))


def test_the_stages_are_those_that_the_upscalers_measure() -> None:
    times = [
        DeviceTimes(DeviceSpan(0, 100_000 * turn), DeviceSpan(5, 2_000_000), DeviceSpan(9, 400_000))
        for turn in (1, 2, 3)
    ]
    assert gpu_path._stages(times) == {"upload": 0.2, "infer": 2.0, "download": 0.4}
    assert gpu_path._stages([replace(one, download=None) for one in times]) == {
        "upload": 0.2, "infer": 2.0
    }  # fmt: skip
    assert gpu_path._stages([None, None]) == {}
