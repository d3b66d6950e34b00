"""`config.pbtxt`, Triton's description of a model, as a type.

The fields are those of `ModelConfig` in Triton's `model_config.proto`, as far as the repository
uses them: https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from engines.spec import Size

Kind = Literal["UINT8", "FP32"]
Device = Literal["cpu", "gpu"]

#: Of any length.
ANY = -1


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output.

    Attributes:
        name: of the tensor.
        kind: of its numbers.
        dims: lengths without the batch's; `ANY` where open.
    """

    name: str
    kind: Kind
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What Triton is to know about a model.

    Attributes:
        name: of the model, and of its folder.
        backend: Triton's: "onnxruntime", "python", "tensorrt".
        file: in the folder of each version.
        input, output: its one of each.
        batch: the most pictures of a batch, which Triton gathers from requests of equal sizes;
            0: the graph takes one picture, in a batch of one.
        delay_us: how long a request waits for others of its batch.
        queue: requests that may wait; more are refused.
        instances: how many run side by side, on every GPU or on the CPU.
        device: what they run on.
        warm_up: (width, height) run once before the model is ready.
        parameters: for the back end.
    """

    name: str
    backend: Literal["onnxruntime", "python", "tensorrt"]
    file: str
    input: Port
    output: Port
    batch: int = 4
    delay_us: int = 500
    queue: int = 64
    instances: int = 1
    device: Device = "cpu"
    warm_up: tuple[Size, ...] = ()
    parameters: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        least = {"batch": 0, "delay_us": 0, "queue": 1, "instances": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} is {bound} or more, not {getattr(self, name)}")

    def text(self) -> str:
        """Write it in protobuf's text format."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield f"name: {_quoted(self.name)}"
        yield f"backend: {_quoted(self.backend)}"
        yield f"default_model_filename: {_quoted(self.file)}"
        yield f"max_batch_size: {self.batch}"
        yield f"input [ {self._port(self.input)} ]"
        yield f"output [ {self._port(self.output)} ]"
        yield f"instance_group [ {{ count: {self.instances} kind: KIND_{self.device.upper()} }} ]"
        if self.batch:
            yield (
                f"dynamic_batching {{ max_queue_delay_microseconds: {self.delay_us} "
                f"default_queue_policy {{ max_queue_size: {self.queue} }} }}"
            )
        for width, height in self.warm_up:
            dims = self._dims((height, width, *self.input.dims[2:]))
            batch = f"batch_size: {min(1, self.batch)}"
            yield (
                f'model_warmup [ {{ name: "{width}x{height}" {batch} '
                f"inputs {{ key: {_quoted(self.input.name)} value {{ "
                f"data_type: TYPE_{self.input.kind} dims: {dims} zero_data: true }} }} }} ]"
            )
        for key, value in self.parameters:
            yield (
                f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
            )

    def _port(self, port: Port) -> str:
        name = _quoted(port.name)
        return f"{{ name: {name} data_type: TYPE_{port.kind} dims: {self._dims(port.dims)} }}"

    def _dims(self, dims: tuple[int, ...]) -> str:
        whole = dims if self.batch else (1, *dims)
        return f"[ {', '.join(map(str, whole))} ]"


def _quoted(text: str) -> str:
    """Write a string; all but plain characters as octal bytes."""
    plain = {byte for byte in range(32, 127) if byte not in b'"\\'}
    parts = (chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(parts)}"'
