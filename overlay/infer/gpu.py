"""The GPU path: what all upscalers on CUDA share.

Two slots, three streams, and no wait of the host in the loop:

    host      submit 0          submit 1          poll 0 (asks, never blocks the device)
    copy      ┤upload 0├        ┤upload 1├
    compute             ┤ run 0 ├        ┤ run 1 ├
    download                     ┤ download 0 ├   ┤ download 1 ├

Each arrow between streams is an event. The upload of a frame overlaps the inference of the one
before; a third frame waits for nobody, as the pipeline never submits more than two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from overlay.cuda import Cuda, DeviceBuffer, Stream
from overlay.frame import Size


class Program(ABC):
    """What runs on the compute stream: a TensorRT engine, a PyTorch module.

    Its input is uint8 BGRA, (1, H, W, 4); its output uint8, (1, H*scale, W*scale, 4) or, for
    luma, (1, H*scale, W*scale).
    """

    #: For people: "FP16, TensorRT-RTX 1.7".
    title: str
    #: Whether `enqueue` may be captured in a graph.
    capturable: bool = True

    @abstractmethod
    def prepare(self, cuda: Cuda, size: Size, slots: int) -> None:
        """Get ready for frames of a size: contexts, work space, a warm-up run.

        Raises:
            EngineError: it does not take this size.
        """

    @abstractmethod
    def enqueue(
        self, slot: int, source: DeviceBuffer, target: DeviceBuffer, stream: Stream
    ) -> None:
        """Put one inference into a stream; the buffers of a slot are always the same."""

    @abstractmethod
    def close(self) -> None:
        """Free everything; idempotent. The device is idle."""
