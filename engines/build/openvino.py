"""OpenVINO on the CPU: one file with a compiled model for each size.

OpenVINO exports a compiled model as a blob that it imports in about 10 ms. Models of a fixed size
are quicker than those of a dynamic one (by 2 % for a net of 80 GMAC, by 10 to 40 % for the
default nets), so an engine for several sizes holds a blob for each of them. A blob is bound to the
version of OpenVINO and to the instruction set; how many threads run it is free.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import json
import logging
import struct
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from engines.build import (
    NOTHING_BESIDE,
    Beside,
    Builder,
    Built,
    Options,
    Pixels,
    Progress,
    Request,
    Runner,
)
from engines.build.shapes import shapes
from engines.errors import BuilderMissing, BuildFailed, EngineError, EngineMismatch
from engines.load import INSTALL_BUILD
from engines.spec import ModelSpec, Output, Precision, Size

if TYPE_CHECKING:
    import openvino as ov

_MAGIC = b"sr-overlay openvino 1\n"
#: Bytes of the JSON header, and the CRC-32 of all that follows.
_HEAD = struct.Struct("<II")
#: The header of an engine with a thousand sizes is shorter.
_MAX_HEADER = 1 << 17
#: Most game frames taken for int8, evenly spread: every third to check with, the others to
#: calibrate with.
_MAX_FRAMES = 36
#: PSNR of equal pictures, in dB, as JSON has no infinity.
_EQUAL_DB = 100.0


def library() -> Any:
    """Import OpenVINO, with its telemetry off.

    Raises:
        BuilderMissing: it cannot be imported.
    """
    # It reports itself to its maker through this package, under an id in the home folder.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as missing:
        raise BuilderMissing(f"OpenVINO cannot be loaded ({missing}): {INSTALL_BUILD}") from missing
    return openvino


@cache
def shared_core() -> ov.Core:
    """Give the one Core of this process.

    Its CPU plugin gives the thread that compiles first a stack for signals, and takes it away
    when the Core goes. Of two Cores that end in the order in which they were made, the second
    puts the stack of the first back, which is freed by then: the next signal (Ctrl+C, say)
    would crash the process.
    """
    return library().Core()


def cpu_options(threads: int = 0) -> dict[str, str | int]:
    """Give the options that models for the CPU are compiled and imported with.

    Args:
        threads: of the inference; 0 = OpenVINO's choice.
    """
    options: dict[str, str | int] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        # The game runs on the same cores: a pinned thread would have to wait for it.
        "ENABLE_CPU_PINNING": False,
        # Machines with bfloat16 units would use them unasked: too coarse for 8 bits.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    return options


def first_line(error: BaseException) -> str:
    """The first line that says something; OpenVINO's messages begin with file names."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (told or lines or [type(error).__name__])[0][:300]


def tensor(pixels: Pixels) -> ov.Tensor:
    """Wrap an array as a tensor with a leading 1 in its shape, on the same memory.

    Args:
        pixels: contiguous and writeable.
    """
    return library().Tensor(pixels[None], shared_memory=True)


def cpu_kind(core: ov.Core) -> str:
    """Name what a blob is bound to: the instruction set, as OpenVINO calls it."""
    ov = library()
    node = ov.opset13.parameter([1], np.float32)
    compiled = core.compile_model(ov.Model([ov.opset13.relu(node)], [node]), "CPU")
    try:
        needs = str(compiled.get_property("RUNTIME_REQUIREMENTS"))
    except RuntimeError:  # before 2026.4
        return " ".join(sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")))
    return dict(part.split("=", 1) for part in needs.split(";") if "=" in part).get("isa", needs)


def sizes_text(sizes: Sequence[Size]) -> str:
    """Give sizes for people: "480x270, 640x360"."""
    return ", ".join(f"{width}x{height}" for width, height in sizes)


# --- the file -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EngineFile:
    """An engine's content: a header in JSON, then the blobs.

    Attributes:
        version: of OpenVINO.
        cpu: what `cpu_kind` gave where it was made.
        blobs: a compiled model for each size.
    """

    version: str
    cpu: str
    blobs: Mapping[Size, bytes | memoryview]

    def to_bytes(self) -> bytes:
        """Give what `parse` reads."""
        listed = [
            {"width": width, "height": height, "bytes": len(blob)}
            for (width, height), blob in self.blobs.items()
        ]
        fields = {"version": self.version, "cpu": self.cpu, "blobs": listed}
        header = json.dumps(fields).encode()
        body = b"".join((header, *self.blobs.values()))
        return _MAGIC + _HEAD.pack(len(header), zlib.crc32(body)) + body

    @classmethod
    def parse(cls, data: bytes) -> EngineFile:
        """Read and check an engine; the blobs stay where they are.

        Raises:
            EngineMismatch: it is damaged, or no engine for OpenVINO.
        """
        if not data.startswith(_MAGIC):
            raise EngineMismatch("this is no engine for OpenVINO: build it again")
        try:
            return cls._parsed(memoryview(data))
        except (ValueError, TypeError, KeyError, struct.error, RecursionError) as exc:
            raise EngineMismatch(f"this engine is damaged ({exc}): build it again") from exc

    @classmethod
    def _parsed(cls, data: memoryview) -> EngineFile:
        at = len(_MAGIC) + _HEAD.size
        length, crc = _HEAD.unpack(data[len(_MAGIC) : at])
        if length > _MAX_HEADER or zlib.crc32(data[at:]) != crc:
            raise ValueError("its bytes have changed")
        fields = json.loads(bytes(data[at : at + length]))
        at += length
        blobs: dict[Size, memoryview] = {}
        for row in fields["blobs"]:
            blob = data[at : at + int(row["bytes"])]
            blobs[int(row["width"]), int(row["height"])] = blob
            at += int(row["bytes"])
        if at != len(data) or not blobs:
            raise ValueError(f"{len(data)} bytes instead of {at}")
        return cls(str(fields["version"]), str(fields["cpu"]), blobs)

    def check_sizes(self, sizes: Sequence[Size], model: str) -> None:
        """Check that there is a blob for each size.

        Raises:
            EngineMismatch: there is not.
        """
        if missing := [size for size in sizes if size not in self.blobs]:
            raise EngineMismatch(
                f"this engine of {model} is for {sizes_text(tuple(self.blobs))}, "
                f"not for {sizes_text(missing)}: build it again"
            )

    def open(
        self, core: ov.Core, size: Size, scale: int, output: Output, threads: int = 0
    ) -> ov.CompiledModel:
        """Import the model for a size.

        Args:
            size: one of `blobs`.
            scale, output: as in `ModelSpec`.
        Raises:
            EngineMismatch: it is for another version of OpenVINO, CPU or model.
        """
        try:
            compiled = core.import_model(bytes(self.blobs[size]), "CPU", cpu_options(threads))
        except RuntimeError as exc:
            raise EngineMismatch(self._refused(core, exc)) from exc
        given, made = shapes(size, scale, output)
        wanted = [("bgra", "u8", given), ("picture", "u8", made)]
        found = [
            (port.get_any_name(), port.get_element_type().get_type_name(), tuple(port.shape))
            for port in (*compiled.inputs, *compiled.outputs)
        ]
        if found != wanted:
            raise EngineMismatch(f"this engine is for another model: it has {found}, not {wanted}")
        return compiled

    def _refused(self, core: ov.Core, error: RuntimeError) -> str:
        made = f"OpenVINO {self.version} on {self.cpu}"
        here = f"OpenVINO {installed_version('openvino')} on {cpu_kind(core)}"
        if made != here:
            return f"this engine was made by {made}, and this is {here}: build it again"
        return f"OpenVINO cannot open this engine: {first_line(error)}"


# --- the builder --------------------------------------------------------------------------------


class OpenVinoBuilder(Builder):
    """Builds with OpenVINO for this machine's CPU; int8 with NNCF, which calibrates on frames.

    Of the options it takes `int8_psnr`.
    """

    name: ClassVar[str] = "openvino"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "int8")

    def check(self) -> None:
        library()

    def version(self) -> str:
        try:
            return installed_version("openvino")
        except PackageNotFoundError as exc:
            raise BuilderMissing(f"OpenVINO is not installed: {INSTALL_BUILD}") from exc

    def device(self, options: Options) -> dict[str, str]:
        core = shared_core()
        name = str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip()
        return {"cpu": name, "isa": cpu_kind(core)}

    def build(self, request: Request, progress: Progress) -> Built:
        core = shared_core()
        cpu = cpu_kind(core)
        report: dict[str, object] = {"isa": cpu}
        try:
            graph = core.read_model(request.onnx)
            if request.precision == "int8":
                graph = quantised(core, graph, cpu, request, progress, report)
            blobs: dict[Size, bytes | memoryview] = {}
            for index, size in enumerate(request.sizes):
                progress(f"compiling for {sizes_text([size])}", index / len(request.sizes))
                blobs[size] = _compiled(core, graph, size).export_model().getvalue()
        except RuntimeError as exc:
            raise BuildFailed(
                f"OpenVINO cannot build {request.spec.id} for {sizes_text(request.sizes)}: "
                f"{first_line(exc)}"
            ) from exc
        return Built(EngineFile(self.version(), cpu, blobs).to_bytes(), report)

    def open(
        self,
        engine: bytes,
        spec: ModelSpec,
        sizes: tuple[Size, ...],
        beside: Beside = NOTHING_BESIDE,
    ) -> OpenVinoRunner:
        return OpenVinoRunner(EngineFile.parse(engine), spec, sizes)


def _compiled(core: ov.Core, graph: ov.Model, size: Size) -> ov.CompiledModel:
    width, height = size
    graph.reshape([1, height, width, 4])
    return core.compile_model(graph, "CPU", cpu_options())


class OpenVinoRunner(Runner):
    """An engine open on this CPU.

    Args:
        sizes: that it has to take.
    Raises:
        EngineMismatch: it does not take one of them, or cannot be opened here.
    """

    def __init__(self, file: EngineFile, spec: ModelSpec, sizes: tuple[Size, ...]) -> None:
        file.check_sizes(sizes, spec.id)
        self._file = file
        self._spec = spec
        self._core = shared_core()
        self._open(sizes[0])

    def _open(self, size: Size) -> None:
        spec = self._spec
        compiled = self._file.open(self._core, size, spec.scale, spec.output)
        self._request = compiled.create_infer_request()
        self._picture: Pixels = np.zeros(tuple(compiled.output(0).shape)[1:], np.uint8)
        self._request.set_output_tensor(tensor(self._picture))
        self._size = size

    def __call__(self, bgra: Pixels) -> Pixels:
        size = (bgra.shape[1], bgra.shape[0])
        self._file.check_sizes([size], self._spec.id)
        if size != self._size:
            self._open(size)
        given = tensor(np.require(bgra, np.uint8, ("C", "W")))
        self._request.set_input_tensor(given)
        self._request.infer()
        return self._picture


# --- int8 ---------------------------------------------------------------------------------------


def quantised(
    core: ov.Core,
    graph: ov.Model,
    cpu: str,
    request: Request,
    progress: Progress,
    report: dict[str, object],
) -> ov.Model:
    """Make the int8 form of a graph by post-training quantisation with NNCF.

    Symmetric, per channel for weights and per tensor for activations, whose ranges are the
    extremes over all calibration frames and a black and white one: NNCF's default, their mean,
    clips what only some frames have. At first every convolution is quantised, then all but the
    last, then all but the first and the last; the first form that is near enough is taken.

    Args:
        graph: FP32.
        cpu: as `cpu_kind` gives it.
        report: gets what was measured, on the first of the sizes.
    Raises:
        BuildFailed: there are too few frames, or no form is near enough.
        BuilderMissing: NNCF is not installed.
    """
    start = time.perf_counter()
    calibration, checked = _frames(request)
    width, height = request.sizes[0]
    graph.reshape([1, height, width, 4])
    progress("running FP32 on game frames", None)
    references = _pictures(core, graph, request.sizes[0], checked)
    convolutions = [
        node.get_friendly_name()
        for node in graph.get_ordered_ops()
        if "Convolution" in node.get_type_name()
    ]
    limit = request.options.int8_psnr
    found: dict[str, float] = {}
    for name, kept in _forms(convolutions):
        progress(f"quantising {name}", None)
        made = _quantised(graph, kept, cpu, calibration, request.spec.id)
        pictures = _pictures(core, made, request.sizes[0], checked)
        found[name] = min(map(psnr, references, pictures))
        if found[name] >= limit:
            report |= {
                "int8_psnr": round(found[name], 2), "int8_layers": name,
                "frames_calibrated": len(calibration) - 1, "frames_checked": len(checked),
                "int8_seconds": round(time.perf_counter() - start, 1),
            }  # fmt: skip
            return made
    figures = ", ".join(f"{value:.1f} dB with {name}" for name, value in found.items())
    raise BuildFailed(
        f"int8 changes {request.spec.id} too much: {figures} (the worst of {len(checked)} game "
        f"frames, against FP32), and at least {limit:g} dB is asked for; build it in fp32"
    )


def _frames(request: Request) -> tuple[list[Pixels], list[Pixels]]:
    """Give the frames to calibrate with, and others to check with."""
    frames = request.frames(request.sizes[0])
    if len(frames) < 2:
        raise BuildFailed(
            f"int8 needs at least 2 game frames, to calibrate and to check {request.spec.id} "
            f"with, and there {'is' if len(frames) == 1 else 'are'} {len(frames)}; "
            "give a folder of them with --frames"
        )
    frames = frames[:: -(-len(frames) // _MAX_FRAMES)]
    calibration = [frame for index, frame in enumerate(frames) if index % 3 != 1]
    return [*calibration, _black_and_white(request.sizes[0])], list(frames[1::3])


def _black_and_white(size: Size) -> Pixels:
    """Give a frame with the extremes of a picture, so that no brighter one is clipped."""
    width, height = size
    frame = np.zeros((height, width, 4), np.uint8)
    frame[:, width // 2 :] = 255
    return frame


def _forms(convolutions: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Give the forms to try, from the quickest: a name, and the layers that stay FP32."""
    yield "all layers", []
    if len(convolutions) > 2:
        yield "all but the last", convolutions[-1:]
        yield "all but the first and last", [convolutions[0], convolutions[-1]]


def _quantised(
    graph: ov.Model, kept: list[str], cpu: str, calibration: Sequence[Pixels], model: str
) -> ov.Model:
    nncf = _nncf()
    from nncf.quantization import range_estimator
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    # Without VNNI, sums of two 8-bit products saturate at 16 bits unless weights keep to 7.
    whole = "VNNI" in cpu or "DL Boost" in cpu or "AMX" in cpu
    advanced = AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.DISABLE if whole else OverflowFix.ENABLE,
        activations_range_estimator_params=range_estimator.RangeEstimatorParametersSet.MINMAX,
    )
    try:
        with _no_bars():
            return nncf.quantize(
                graph.clone(),
                nncf.Dataset([frame[None] for frame in calibration]),
                subset_size=len(calibration),
                ignored_scope=nncf.IgnoredScope(names=kept),
                advanced_parameters=advanced,
            )
    except EngineError:
        raise
    except Exception as exc:  # NNCF's own errors have no common base
        raise BuildFailed(f"NNCF cannot quantise {model}: {first_line(exc)}") from exc


def _nncf() -> Any:
    """Import NNCF, silent: it writes to standard output from its import on."""
    library()
    try:
        import nncf
    except ImportError as missing:
        raise BuilderMissing(f"int8 needs NNCF ({missing}): {INSTALL_BUILD}") from missing
    nncf.disable_logging()
    logger = logging.getLogger("nncf")
    logger.setLevel(logging.ERROR)
    logger.propagate = True
    return nncf


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep NNCF's progress bars, drawn with rich, off the terminal."""
    import rich

    console = rich.get_console()
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


def _pictures(core: ov.Core, graph: ov.Model, size: Size, frames: Sequence[Pixels]) -> list[Pixels]:
    compiled = _compiled(core, graph, size)
    return [cast("Pixels", compiled([frame[None]])[0][0].copy()) for frame in frames]


def psnr(one: Pixels, other: Pixels) -> float:
    """Give the PSNR of two pictures in dB, alpha left out; `_EQUAL_DB` at most.

    Args:
        one, other: uint8 (H, W, 4) BGRA or (H, W) luma.
    """
    if one.ndim == 3:
        one, other = one[..., :3], other[..., :3]
    error = float(np.mean(np.square(one.astype(np.float32) - other), dtype=np.float64))
    return min(_EQUAL_DB, 10 * float(np.log10(255**2 / error))) if error else _EQUAL_DB
