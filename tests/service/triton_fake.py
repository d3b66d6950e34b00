"""A stand-in for a Triton server: its gRPC on loopback, a net that repeats pixels."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as wire
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

_TYPES = {"UINT8": np.uint8, "FP32": np.float32}


class FakeTriton(GRPCInferenceServiceServicer):
    """A server of models "default-x2" and their like; luma is what the green channel is.

    Attributes:
        models: what is in the repository; the names of those that are loaded are in `loaded`.
        fixed: dims (H, W) that the models take; -1 = any.
        held: cleared, it holds answers up.
        answer: changes a result before it is sent.
        refuses_shared: it cannot open shared memory.
    """

    def __init__(self, *models: str, port: int = 0) -> None:
        self.models = models or ("default-x2", "default-x2.float")
        self.fixed = (-1, -1)
        self.held = threading.Event()
        self.held.set()
        self.begun = threading.Semaphore(0)
        self.answer = lambda made: made
        self.refuses_shared = False
        self.seen: list[str] = []
        self.start(port)

    def start(self, port: int = 0) -> None:
        """Listen; nothing of an earlier life is known."""
        self.loaded: set[str] = set()
        self.regions: dict[str, tuple[str, int]] = {}
        self._server = grpc.server(ThreadPoolExecutor(4))
        add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        """End at once: what is in work fails."""
        self._server.stop(0).wait()
        self.held.set()

    def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802 - as the service says
        return wire.ServerLiveResponse(live=True)

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return wire.ModelReadyResponse(ready=request.name in self.loaded)

    def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        index = wire.RepositoryIndexResponse()
        for name in self.models:
            state = "READY" if name in self.loaded else ""
            index.models.add(name=name, state=state)
        return index

    def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.seen.append(f"load {request.model_name}")
        if request.model_name not in self.models:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "failed to load, no such model")
        self.loaded.add(request.model_name)
        return wire.RepositoryModelLoadResponse()

    def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.seen.append(f"unload {request.model_name}")
        self.loaded.discard(request.model_name)
        return wire.RepositoryModelUnloadResponse()

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        twin = request.name.endswith(".float")
        kind = "FP32" if twin else "UINT8"
        told = wire.ModelMetadataResponse(name=request.name)
        told.inputs.add(name="bgra", datatype=kind, shape=[-1, *self.fixed, 4])
        if twin:
            told.outputs.add(name="planes", datatype=kind, shape=[-1, 1, -1, -1])
        else:
            told.outputs.add(name="picture", datatype=kind, shape=[-1, -1, -1])
        return told

    def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.refuses_shared:
            context.abort(grpc.StatusCode.INTERNAL, "Unable to open shared memory region")
        self.regions[request.name] = (request.key, request.byte_size)
        return wire.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.regions.pop(request.name, None)
        return wire.SystemSharedMemoryUnregisterResponse()

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.model_name not in self.loaded:
            context.abort(grpc.StatusCode.NOT_FOUND, "Request for unknown model")
        given = self._given(request, context)
        self.begun.release()
        self.held.wait(20)
        made = given[..., 1].repeat(2, 1).repeat(2, 2)
        if request.model_name.endswith(".float"):
            made = made[:, None]
        return self._answered(request, np.ascontiguousarray(self.answer(made)), context)

    def _given(self, request: Any, context: Any) -> NDArray[Any]:
        (port,) = request.inputs
        kind, shape = _TYPES[port.datatype], tuple(port.shape)
        if "shared_memory_region" not in port.parameters:
            self.seen.append("wire")
            return np.frombuffer(request.raw_input_contents[0], kind).reshape(shape)
        self.seen.append("shared")
        block = self._block(port, context)
        made = np.ndarray(shape, kind, block.buf).copy()
        block.close()
        return made

    def _block(self, port: Any, context: Any) -> SharedMemory:
        name = port.parameters["shared_memory_region"].string_param
        if name not in self.regions:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"Unable to find shared memory region: '{name}'"
            )
        return SharedMemory(self.regions[name][0].lstrip("/"))

    def _answered(self, request: Any, made: NDArray[Any], context: Any) -> Any:
        (port,) = request.outputs
        kind = "FP32" if made.dtype == np.float32 else "UINT8"
        answer = wire.ModelInferResponse(model_name=request.model_name)
        told = answer.outputs.add(name=port.name, datatype=kind, shape=made.shape)
        if "shared_memory_region" in port.parameters:
            block = self._block(port, context)
            np.ndarray(made.shape, made.dtype, block.buf)[:] = made
            told.parameters["shared_memory_region"].CopyFrom(
                port.parameters["shared_memory_region"]
            )
            block.close()
        else:
            answer.raw_output_contents.append(made.tobytes())
        return answer
