"""Models: found, verified by their sha256, read.

`locate` finds the files of a model and imports nothing heavy; `read` makes the net. What a user
gives is not trusted: nothing in a file is run, and what is damaged, or is no image upscaler, is
refused in one line before it takes memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from importlib.resources import as_file, files
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import (
    BuilderMissing,
    EngineMissing,
    ModelInvalid,
    UnknownModel,
    UsageError,
    WeightsMissing,
)
from engines.spec import ModelSpec, Source

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

    from engines.archs.luma import LumaNet

#: Folders in which users keep weights, joined as in PATH.
WEIGHTS_VARIABLE = "OVERLAY_WEIGHTS"
#: Endings of the files that a user may give.
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".onnx", ".bin")
#: Largest model file that is read.
MAX_BYTES = 2 << 30
UNKNOWN_LICENCE = "unknown (your file)"
#: What installs the libraries that read models.
INSTALL_BUILD = 'pip install ".[build]" in the folder of this project'


@dataclass(frozen=True, slots=True)
class Located:
    """A model whose files were found: enough to tell whether an engine is fresh.

    Attributes:
        name: for cache and tables: a row's id, "@0.3" after it for a blend of that strength; for
            a user's file its stem and the beginning of its sha256.
        spec: the row; None for a user's file, whose net is known once it is read.
        files: one; two for a blend; for an offline model those beside it follow. For ncnn the
            `.bin`, whose `.param` is beside it; for ONNX the files that hold its larger tensors
            follow.
        sha256: identity of the weights: of the file, or of all digests and the strength.
        origin: where they are from, for people.
        strength: of a blend, 0..1; None for all others.
    """

    name: str
    spec: ModelSpec | None
    files: tuple[Path, ...]
    sha256: str
    origin: str
    strength: float | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that was read.

    Attributes:
        located: where it is from.
        spec: what is known about it.
        module: the net: float32, inference mode, no gradients; RGB (N, 3, H, W), 0..1, to RGB
            (N, 3, H*scale, W*scale), not clamped. For "luma" a `LumaNet`. None for ONNX.
        graph: a user's ONNX model, None for all others: float RGB (N, 3, H, W), 0..1, in and out.
    """

    located: Located
    spec: ModelSpec
    module: nn.Module | None
    graph: onnx.ModelProto | None = None


# --- finding -------------------------------------------------------------------------------------


def locate(reference: str, folders: Sequence[Path] = ()) -> Located:
    """Find a model's files and their digests.

    Args:
        reference: a row of the zoo; one that blends two files may be followed by the strength,
            `realesr-general-x4v3@0.3`. Or the path of a file, or of a folder with one model file.
            Or a repository on Hugging Face, as `engines.hub.fetch` takes it.
        folders: where to look for a row's files first, then in those of `OVERLAY_WEIGHTS`, then
            in the user's own folder.
    Raises:
        UnknownModel: there is no such row, or it takes no strength.
        WeightsMissing: the weights are not on this machine; the message says how to get them.
        EngineMissing: there is no such file.
        ModelInvalid: a file is not the one that the row names, or is too large.
        UsageError: the file is an offline model's; give its name to `engines.offline`.
        BuilderMissing: it is ONNX, and the library for it is not installed.
    """
    if reference.startswith("hf:"):
        from engines import hub

        download = hub.fetch(reference)
        return _located_file(download.path, download.origin)
    if is_path(reference):
        path = _model_file(_expanded(reference))
        return _located_file(path, str(path))
    return _located_row(reference, folders)


def with_strength(reference: str, strength: float) -> str:
    """Add a denoising strength to a model's name, as `locate` takes it.

    Args:
        strength: from 0, which keeps the noise, to 1; `locate` checks it.
    Raises:
        UnknownModel: the model takes no strength, or has one already.
    """
    from engines import zoo

    if "@" in reference:
        raise UnknownModel(f"{reference!r} has a denoising strength already: give it once")
    blends = [row.id for row in zoo.ZOO if row.blend]
    named = not is_path(reference) and not reference.startswith("hf:")
    if reference in ("all", "default") or not named or not zoo.spec(reference).blend:
        raise UnknownModel(f"a denoising strength is for {', '.join(blends)}, not for {reference}")
    return f"{reference}@{strength}"


def user_weights_folder() -> Path:
    """The folder in which this user may put weights for all uses."""
    import platformdirs  # not needed where the folders are given

    return Path(platformdirs.user_data_path("sr-overlay", appauthor=False)) / "weights"


def is_path(reference: str) -> bool:
    """Whether `locate` takes it for a file or folder, also where a row has the same name."""
    separators = ("/", "\\") if os.name == "nt" else ("/",)
    path = Path(reference)
    return (
        path.suffix.lower() in SUFFIXES
        or any(separator in reference for separator in separators)
        or reference in (".", "..", "~")
    )


def _expanded(reference: str) -> Path:
    try:
        return Path(reference).expanduser()
    except RuntimeError as exc:
        raise EngineMissing(f"cannot read the model file {reference}: {exc}") from exc


def _located_row(reference: str, folders: Sequence[Path]) -> Located:
    from engines import zoo

    name, at, text = reference.partition("@")
    spec = zoo.spec(name)
    if spec.blend is None:
        if at:
            raise UnknownModel(f"{spec.id} takes no strength ({reference!r}): it blends nothing")
        needed = (spec.sources, spec.beside) if spec.beside else (spec.sources,)
        whole = [_found(spec, sources, folders) for sources in needed]
        digest = _identity([source.sha256 for source, _, _ in whole], None)
        return Located(spec.id, spec, tuple(path for _, path, _ in whole), digest, whole[0][2])
    strength = _strength(reference, text) if at else 0.5
    found = [_found(spec, spec.sources, folders)]
    if strength < 1:
        found.append(_found(spec, (spec.blend,), folders))
    return Located(
        name=f"{spec.id}@{strength:g}",
        spec=spec,
        files=tuple(path for _, path, _ in found),
        sha256=_identity([source.sha256 for source, _, _ in found], strength),
        origin=found[0][2],
        strength=strength,
    )


def _strength(reference: str, text: str) -> float:
    try:
        strength = float(text)
    except ValueError:
        strength = -1.0
    if not isfinite(strength) or not 0 <= strength <= 1:
        raise UnknownModel(f"the strength in {reference!r} must be a number from 0 to 1")
    return strength + 0.0  # -0.0 is 0


def _found(
    spec: ModelSpec, sources: Sequence[Source], folders: Sequence[Path]
) -> tuple[Source, Path, str]:
    """Give the first source whose file is there, with the file's sha256, and where it is from."""
    for source in sources:
        for path, origin in _places(source, folders):
            if not path.is_file():
                continue
            found = _file_sha256(path)
            if source.sha256 and found != source.sha256:
                raise ModelInvalid(
                    f"{path} is not the released {Path(source.name).name} of {spec.id}, or is "
                    f"damaged: {path.stat().st_size} bytes with sha256 {found[:12]}, expected "
                    f"{source.sha256[:12]}; get it again, or move it away"
                )
            return replace(source, sha256=found), path, origin
    raise WeightsMissing(_how_to_get(spec, sources))


def _places(source: Source, folders: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    if source.kind == "shipped":
        yield weights_folder() / source.name, "shipped"
    elif source.kind == "package":
        try:
            package = metadata.distribution(source.package)
        except metadata.PackageNotFoundError:
            return
        path = Path(str(package.locate_file(source.name)))
        yield path, f"{source.package} {package.version}"
    else:
        listed = os.environ.get(WEIGHTS_VARIABLE, "").split(os.pathsep)
        for folder in (*folders, *(Path(f) for f in listed if f), user_weights_folder()):
            yield folder / source.name, f"{source.name} in {folder}"


def _how_to_get(spec: ModelSpec, sources: Sequence[Source]) -> str:
    if not sources:
        return (
            f"{spec.id} is a shape without weights: train it, or give the path of a "
            "file of yours instead of its name"
        )
    ways = []
    for source in sources:
        if source.kind == "package":
            ways.append(f"pip install {source.package}")
        elif source.kind == "file" and source.url:
            ways.append(f"put {source.name} ({source.url}) into {user_weights_folder()}")
        elif source.kind == "shipped":
            ways.append("reinstall sr-overlay")
    hint = ""
    if spec.blend in sources:
        hint = f", or say {spec.id}@1, which does without it"
    return f"the weights of {spec.id} are not on this machine: {', or '.join(ways)}{hint}"


def _model_file(path: Path) -> Path:
    """Give the file that a path means: itself, or the only model in a folder."""
    try:
        if not path.is_dir():
            return path
        models = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    except OSError as exc:
        raise EngineMissing(f"cannot read {str(path)[:200]}: {exc.strerror}") from exc
    if len(models) != 1:
        names = ", ".join(model.name for model in models[:5]) or "none"
        raise EngineMissing(
            f"the folder {path} must hold exactly one model file, and holds {len(models)} "
            f"({names}); name the file"
        )
    return models[0]


def _located_file(path: Path, origin: str) -> Located:
    from engines import zoo

    if path.exists() and path.suffix.lower() not in SUFFIXES:
        raise ModelInvalid(
            f"{path} is no model file that can be read (one of {', '.join(SUFFIXES)})"
        )
    digest = _file_sha256(path)
    for row in zoo.ZOO:
        if row.onnx and row.onnx_sha256 == digest:
            return _located_row(row.id, ())
        if row.offline and any(source.sha256 == digest for source in row.sources):
            raise UsageError(f"{path} is of {row.id}, and {row.why_no_engine}")
        if not row.net_scale and any(source.sha256 == digest for source in row.sources):
            strength = 1.0 if row.blend else None
            name = f"{row.id}@1" if row.blend else row.id
            return Located(name, row, (path,), _identity((digest,), strength), origin, strength)
    paths: tuple[Path, ...] = (path,)
    if path.suffix.lower() == ".onnx":
        from engines import onnxfile

        paths = (path, *onnxfile.external_files(path))
    digests = [digest, *(_file_sha256(more) for more in paths[1:])]
    if path.suffix.lower() == ".bin":
        digests.append(_file_sha256(_param_of(path)))
    identity = _identity(digests, None)
    stem = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:48].strip("-")
    return Located(f"{stem or 'model'}-{identity[:8]}", None, paths, identity, origin)


def _param_of(path: Path) -> Path:
    param = path.with_suffix(".param")
    if not param.is_file():
        raise EngineMissing(f"{path} is taken for ncnn's, and {param.name} is not beside it")
    return param


def _identity(digests: Sequence[str], strength: float | None) -> str:
    """Make one digest of all; that of a single file is its own."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256(json.dumps([*digests, strength]).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise ModelInvalid(f"{path} is not a file")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise ModelInvalid(f"{path} is larger than {MAX_BYTES >> 30} GiB")
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise EngineMissing(f"cannot read the model file {path}: {exc.strerror}") from exc


# --- reading -------------------------------------------------------------------------------------


def read(located: Located) -> Loaded:
    """Read a model.

    Raises:
        EngineMissing: a file is not there any more.
        ModelInvalid: a file is damaged, is not what its row says, has changed since it was
            located, or is no image upscaler from RGB to RGB.
        BuilderMissing: a library that reads it is not installed.
        UsageError: it is an offline model, which `engines.offline` opens.
    """
    if located.spec is not None and located.spec.offline:
        raise UsageError(located.spec.why_no_engine)
    contents = [_content(path) for path in located.files]
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    suffix = located.files[0].suffix.lower()
    param = b""
    if suffix == ".bin":
        param = _content(_param_of(located.files[0]))
        if located.spec is None:
            digests.append(hashlib.sha256(param).hexdigest())
    if _identity(digests, located.strength) != located.sha256:
        raise ModelInvalid(f"{located.files[0]} has changed since it was found; start again")
    try:
        if located.spec is not None:
            return Loaded(located, located.spec, _row_net(located, located.spec, contents, param))
        if suffix == ".onnx":
            from engines import onnxfile

            data = dict(zip(located.files[1:], contents[1:], strict=True))
            spec, graph = onnxfile.read(
                located.name, located.files[0], contents[0], data, located.sha256
            )
            return Loaded(located, spec, None, graph)
        return _read_file(located, contents[0], param)
    except ModuleNotFoundError as exc:
        raise BuilderMissing(
            f"reading {located.name} needs the library {exc.name}: {INSTALL_BUILD}"
        ) from exc


def tensors(located: Located) -> list[dict[str, Tensor]]:
    """Read the tensors of each of a row's files, one file after the other.

    Raises:
        EngineMissing: a file is not there any more.
        ModelInvalid: a file is damaged, or has changed since it was located.
    """
    states = []
    digests = []
    for path in located.files:
        content = _content(path)
        digests.append(hashlib.sha256(content).hexdigest())
        states.append(_state(path, content, b"")[0])
    if _identity(digests, located.strength) != located.sha256:
        raise ModelInvalid(f"{located.files[0]} has changed since it was found; start again")
    return states


def random_weights(spec: ModelSpec, seed: int = 0) -> Loaded:
    """Make a net of a row's shape with seeded random weights, to time what has no weights.

    Raises:
        BuilderMissing: PyTorch is not installed.
    """
    try:
        import torch

        from engines import archs
        from engines.archs.luma import LumaNet, TrainableLumaNet
    except ModuleNotFoundError as exc:
        raise BuilderMissing(f"random weights need {exc.name}: {INSTALL_BUILD}") from exc
    net: nn.Module
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if spec.architecture == "luma":
            net = LumaNet(TrainableLumaNet(spec.scale).folded())
        else:
            net = archs.ARCHITECTURES[spec.architecture].build(dict(spec.shape))
    if spec.net_scale:
        net = archs.Resized(net, spec.scale / spec.net_scale)
    digest = hashlib.sha256(json.dumps([spec.id, spec.shape, seed]).encode()).hexdigest()
    located = Located(f"{spec.id}-random", spec, (), digest, f"random weights, seed {seed}")
    return Loaded(located, spec, net.eval().requires_grad_(False))


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as exc:
        raise EngineMissing(f"cannot read the model file {path}: {exc.strerror}") from exc
    if len(content) > MAX_BYTES:
        raise ModelInvalid(f"{path} is larger than {MAX_BYTES >> 30} GiB")
    return content


def _row_net(
    located: Located, spec: ModelSpec, contents: Sequence[bytes], param: bytes
) -> nn.Module:
    """Make the net of a row; the contents are verified."""
    from engines import archs
    from engines.archs.luma import LumaNet

    states = [
        _state(path, content, param)[0]
        for path, content in zip(located.files, contents, strict=True)
    ]
    if len(states) == 2 and located.strength is not None:
        states = [_blended(located.name, states[0], states[1], located.strength)]
    try:
        if spec.architecture == "luma":
            return LumaNet(states[0]).eval().requires_grad_(False)
        net = archs.net_with(spec.architecture, dict(spec.shape), states[0])
    except ValueError as exc:
        raise ModelInvalid(f"{located.files[0]} does not hold {spec.id}: {exc}") from exc
    return archs.Resized(net, spec.scale / spec.net_scale).eval() if spec.net_scale else net


def _state(path: Path, content: bytes, param: bytes) -> tuple[dict[str, Tensor], float]:
    """Read tensors by name, and the factor of a resize after the net (ncnn's alone have one)."""
    if path.suffix.lower() != ".bin":
        from engines import checkpoint

        return checkpoint.read(content, path), 1.0
    import torch

    from engines import ncnn

    model = ncnn.read(param, content, str(path))
    return {name: torch.from_numpy(t) for name, t in model.tensors.items()}, model.resize


def _blended(
    name: str, main: Mapping[str, Tensor], other: Mapping[str, Tensor], strength: float
) -> dict[str, Tensor]:
    """Blend two nets weight for weight ("deep network interpolation", Wang et al. 2019).

    As Real-ESRGAN's `inference_realesrgan.py`: strength * main + (1 - strength) * other.
    """
    if {key: t.shape for key, t in main.items()} != {key: t.shape for key, t in other.items()}:
        raise ModelInvalid(f"{name}: the two files to be blended hold different nets")
    return {key: strength * main[key].float() + (1 - strength) * other[key].float() for key in main}


def _read_file(located: Located, content: bytes, param: bytes) -> Loaded:
    """Read a user's weights: a net of ours, else one that spandrel knows."""
    from engines import archs
    from engines.archs import luma

    path = located.files[0]
    state, factor = _state(path, content, param)
    try:
        if luma.is_luma(state):
            return _luma_file(located, luma.LumaNet(state))
        recognised = archs.recognised(state)
        if recognised is not None:
            architecture, shape = recognised
            net = archs.net_with(architecture, shape, state)
    except ValueError as exc:
        raise ModelInvalid(f"{path} cannot be used: {exc}") from exc
    if recognised is None:
        from engines.archs import spandrel

        spec, net = spandrel.read(state, located.name, path, located.sha256)
    else:
        spec = _spec_of_file(located, architecture, shape, factor)
        net = archs.Resized(net, factor).eval() if factor != 1 else net
    return Loaded(located, spec, net)


def _luma_file(located: Located, net: LumaNet) -> Loaded:
    """Describe a luma net that somebody trained."""
    spec = ModelSpec(
        id=located.name,
        architecture="luma",
        scale=net.scale,
        licence=UNKNOWN_LICENCE,
        sources=(Source("file", located.files[0].name, located.sha256),),
        output="luma",
        receptive_field=len(net.convs),
        fp16_max=2,
        fp16_mean=0.05,
    )
    return Loaded(located, spec, net.eval().requires_grad_(False))


def _spec_of_file(
    located: Located, architecture: str, shape: Mapping[str, int], factor: float
) -> ModelSpec:
    """Describe a user's file of one of our architectures."""
    from engines import archs

    known = archs.ARCHITECTURES[architecture]
    scale = shape["scale"] * factor
    if scale != round(scale) or not 1 <= scale <= 8:
        raise ModelInvalid(f"{located.files[0]} enlarges by {scale:g}; whole numbers to 8 can be")
    return ModelSpec(
        id=located.name,
        architecture=architecture,
        scale=round(scale),
        licence=UNKNOWN_LICENCE,
        sources=(Source("file", located.files[0].name, located.sha256),),
        shape=tuple(shape.items()),
        net_scale=shape["scale"] if factor != 1 else 0,
        size_multiple=known.size_multiple(shape),
        receptive_field=known.receptive_field(shape) + (2 if factor != 1 else 0),
    )


# --- what is shipped -----------------------------------------------------------------------------


@cache
def weights_folder() -> Path:
    """The folder of the shipped model files."""
    with as_file(files("engines") / "weights") as folder:
        return folder


def verified(path: Path, sha256: str) -> bytes:
    """Read a model file and check it.

    Raises:
        EngineMissing: there is no such file.
        ModelInvalid: its sha256 is not `sha256`.
    """
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise EngineMissing(f"cannot read the model file {path}: {exc.strerror}") from exc
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ModelInvalid(
            f"the model file {path} is damaged: {len(data)} bytes with sha256 {found[:12]}, "
            f"expected {sha256[:12]}; reinstall sr-overlay"
        )
    return data


def onnx_bytes(spec: ModelSpec, folder: Path | None = None) -> bytes:
    """Read and verify a model's shipped ONNX file; errors as `verified`."""
    return verified((folder or weights_folder()) / spec.onnx, spec.onnx_sha256)


def state_dict(spec: ModelSpec, folder: Path | None = None) -> dict[str, Tensor]:
    """Read and verify a model's shipped weights; errors as `verified`.

    Raises:
        ModelInvalid: also when the file is not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    source = next(source for source in spec.sources if source.kind == "shipped")
    path = (folder or weights_folder()) / source.name
    data = verified(path, source.sha256)
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError) as exc:
        raise ModelInvalid(f"{path} is not a safetensors file: {exc}") from exc
