"""What the upscalers for TensorRT and TensorRT-RTX share: an engine as a program.

One context: the slots differ in the addresses of input and output alone, and run one after the
other in one stream, so the work space of a second context would be wasted. A captured graph holds
its slot's addresses.

A type checker sees TensorRT's interface where both are used; the tests check this file against
the real bindings. Variables are annotated so that each use of a name is seen.
"""

# mypy: disable-error-code="import-untyped,import-not-found"

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from engines.build import _trt as shared
from engines.build._trt import INPUT, OUTPUT, Library
from engines.errors import BuilderMissing, EngineError, EngineMismatch
from engines.spec import Engine
from overlay.cuda import Cuda, DeviceBuffer, Stream
from overlay.errors import BackendUnavailable
from overlay.frame import Size
from overlay.infer.engine import check_size
from overlay.infer.gpu import GpuUpscaler, Program

if TYPE_CHECKING:
    import tensorrt as trt


class TensorRtProgram(Program):
    """An engine from the cache.

    Args:
        cuda: the device. It being open shows that there is one: TensorRT without one can end the
            process.
        engine: of back end "tensorrt" or "tensorrt-rtx".
        load: imports the library.
        name: of the library, for people.
    Raises:
        BackendUnavailable: the library is missing.
        EngineMismatch: the engine is damaged, or for another device or version.
    """

    def __init__(self, cuda: Cuda, engine: Engine, load: Callable[[], Library], name: str) -> None:
        self._facts, self._name = engine, name
        self.title = f"{engine.precision.upper()}, {name}"
        try:
            library = load()
        except BuilderMissing as exc:
            raise BackendUnavailable(str(exc)) from exc
        self._log = shared.logger(library, name)
        self._log.clear()
        self._runtime: trt.Runtime = library.Runtime(self._log)
        opened: trt.ICudaEngine | None = self._runtime.deserialize_cuda_engine(engine.data)
        if opened is None:
            raise EngineMismatch(
                f"{name} refuses the engine of {engine.model} on {cuda.device.name}: "
                f"{self._log.reason()}; build it again"
            )
        self._engine: trt.ICudaEngine = opened
        self._slot = -1

    @abstractmethod
    def _new_context(self, cuda: Cuda, engine: trt.ICudaEngine) -> trt.IExecutionContext | None:
        """Make a context; None if the library cannot.

        Raises:
            EngineMismatch: the engine lacks something.
        """

    def prepare(self, cuda: Cuda, size: Size, stream: Stream) -> None:
        """Give the context the shapes of a size.

        Raises:
            EngineMismatch: the engine does not take it.
        """
        check_size(self._facts, size)
        context = self._opened(cuda)
        profile = self._profile(size)
        if self._engine.num_optimization_profiles > 1:
            chosen = context.set_optimization_profile_async(profile, stream.handle)
            self._need(chosen, f"choose profile {profile}")
        shape = (1, size.height, size.width, 4)
        self._need(context.set_input_shape(INPUT, shape), f"take the shape {shape}")
        found = shared.lengths(context.get_tensor_shape(OUTPUT))
        channels = () if self._facts.output == "luma" else (4,)
        scale = self._facts.scale
        wanted = (1, size.height * scale, size.width * scale, *channels)
        if found != wanted:
            raise EngineMismatch(
                f"the engine of {self._facts.model} gives {found}, not {wanted}: build it again"
            )
        self._slot = -1

    def _opened(self, cuda: Cuda) -> trt.IExecutionContext:
        """Give the context, made for the first size."""
        if not hasattr(self, "_context"):
            context: trt.IExecutionContext | None = self._new_context(cuda, self._engine)
            if context is None:
                raise EngineMismatch(
                    f"{self._name} cannot run the engine of {self._facts.model}: "
                    f"{self._log.reason()}"
                )
            self._context: trt.IExecutionContext = context
        return self._context

    def _profile(self, size: Size) -> int:
        """Find the optimisation profile of a size."""
        shape = (1, size.height, size.width, 4)
        for index in range(self._engine.num_optimization_profiles):
            shapes: list[trt.Dims] = self._engine.get_tensor_profile_shape(INPUT, index)
            if shared.lengths(shapes[1]) == shape:
                return index
        raise EngineMismatch(f"the engine of {self._facts.model} does not take {size}")

    def enqueue(
        self, slot: int, source: DeviceBuffer, target: DeviceBuffer, stream: Stream
    ) -> None:
        """Put one inference into a stream.

        Raises:
            EngineError: the library refuses; says why.
        """
        context = self._context
        if slot != self._slot:
            self._slot = -1
            self._need(context.set_tensor_address(INPUT, source.address), f"take {INPUT}")
            self._need(context.set_tensor_address(OUTPUT, target.address), f"take {OUTPUT}")
            self._slot = slot
        self._need(context.execute_async_v3(stream.handle), "run")

    def _need(self, done: bool, what: str) -> None:
        if not done:
            raise EngineError(
                f"the {self._name} engine of {self._facts.model} cannot {what}: "
                f"{self._log.reason()}"
            )

    def close(self) -> None:
        """Free context, engine and runtime, in this order."""
        for name in ("_context", "_engine", "_runtime"):
            self.__dict__.pop(name, None)


def upscaler(
    program: TensorRtProgram, engine: Engine, cuda: Cuda, filter: str, download: bool
) -> GpuUpscaler:
    """Put a program on the GPU path; it is closed if that fails."""
    try:
        return GpuUpscaler(
            cuda,
            program,
            model=engine.model,
            backend=engine.backend,
            scale=engine.scale,
            output=engine.output,
            filter=filter,
            download=download,
        )
    except BaseException:
        program.close()
        raise
