"""Pictures that CUDA has in its own memory, taken into textures without the host.

CUDA copies a picture into an OpenGL buffer object that was registered with it once, and the
texture is filled from there:

    present   waits for `ready` │ map │ copy │ unmap │ record `released`
    OpenGL                                         └─ texture from buffer ─ draw

`unmap` keeps the two apart: what OpenGL is asked for after it starts when the copy is complete,
and the next `map` waits until OpenGL has read the buffer. The host waits for neither.

Where OpenGL cannot share memory with CUDA (another GPU drives the display, OpenGL runs on the CPU,
pycuda was built without it), the picture at hand is downloaded instead, and `failed` asks for
pictures in host memory from then on.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from overlay.cuda import Cuda, CudaError, Event, GlBuffer, Stream
from overlay.errors import PresentError
from overlay.frame import DevicePicture, Pixels
from overlay.present.gl import GL, check, forget_errors
from overlay.present.texture import Texture

log = logging.getLogger(__name__)

#: How long a download may take before the device counts as stuck.
_DOWNLOAD_S = 2.0
#: How long the host sleeps between two questions whether it is done.
_STEP_S = 100e-6


@dataclass(frozen=True, slots=True, eq=False)
class _Shared:
    """An OpenGL buffer object that CUDA writes."""

    id: int
    size: int
    registered: GlBuffer


class Interop:
    """Fills textures with pictures of a device; for the thread that owns the GL context.

    All is made at the first picture, and again for one of another device or size, which waits
    for the device.
    """

    def __init__(self) -> None:
        #: OpenGL cannot share memory with CUDA: pictures should come in host memory.
        self.failed = False
        self._cuda: Cuda | None = None
        self._stream: Stream
        self._downloaded: Event
        self._shared: _Shared | None = None
        self._host: Pixels | None = None

    def fill(self, texture: Texture, picture: DevicePicture) -> None:
        """Fill a texture of the picture's size and kind.

        Raises:
            CudaError: not even a download works.
        """
        self._open(picture.cuda)
        if not self.failed:
            try:
                self._share(picture)
            except (CudaError, PresentError) as exc:
                self._give_up(exc)
            else:
                assert self._shared is not None
                texture.upload_buffer(self._shared.id)
                return
        texture.upload(self._download(picture))

    def close(self) -> None:
        """End the sharing and free everything; the context must be current; idempotent."""
        cuda, self._cuda = self._cuda, None
        if cuda is None:
            return
        try:
            self._unshare(cuda)
            made = (self._stream, self._downloaded)
            cuda.free(*made, *(() if self._host is None else (self._host,)))
        except (CudaError, ValueError) as exc:  # the device was closed before
            log.debug("freeing what shared pictures with OpenGL: %s", exc)
        self._host = None

    def _open(self, cuda: Cuda) -> None:
        if self._cuda is cuda:
            return
        self.close()
        self._stream = cuda.stream("present", urgent=True)
        self._downloaded = cuda.event("picture in host memory")
        self._cuda = cuda

    def _share(self, picture: DevicePicture) -> None:
        """Copy the picture into the buffer object, which OpenGL may read after this."""
        cuda, stream = picture.cuda, self._stream
        shared = self._buffer(picture.cuda, picture.buffer.size)
        cuda.wait(stream, picture.ready)
        with cuda.mapped(shared.registered, stream) as target:
            cuda.copy(target, picture.buffer, stream)
        cuda.record(picture.released, stream)

    def _buffer(self, cuda: Cuda, size: int) -> _Shared:
        """Give a registered buffer object of this size."""
        if self._shared is not None and self._shared.size == size:
            return self._shared
        self._unshare(cuda)
        forget_errors()
        buffer = int(GL.glGenBuffers(1))
        try:
            GL.glBindBuffer(GL.GL_PIXEL_UNPACK_BUFFER, buffer)
            GL.glBufferData(GL.GL_PIXEL_UNPACK_BUFFER, size, None, GL.GL_STREAM_DRAW)
            GL.glBindBuffer(GL.GL_PIXEL_UNPACK_BUFFER, 0)
            check(f"allocate a buffer of {size} bytes")
            registered = cuda.register_gl(buffer, size)
        except BaseException:
            GL.glDeleteBuffers(1, [buffer])
            raise
        self._shared = _Shared(buffer, size, registered)
        return self._shared

    def _unshare(self, cuda: Cuda) -> None:
        shared, self._shared = self._shared, None
        if shared is None:
            return
        try:
            cuda.unregister_gl(shared.registered)
        finally:
            GL.glDeleteBuffers(1, [shared.id])

    def _give_up(self, reason: CudaError | PresentError) -> None:
        self.failed = True
        log.warning("pictures go through host memory, not straight from CUDA to OpenGL: %s", reason)
        assert self._cuda is not None
        try:
            self._unshare(self._cuda)
        except CudaError as exc:
            log.debug("ending the sharing with OpenGL: %s", exc)

    def _download(self, picture: DevicePicture) -> Pixels:
        """Give the picture in host memory, which the next one overwrites."""
        cuda, stream = picture.cuda, self._stream
        if self._host is None or self._host.shape != picture.shape:
            if self._host is not None:
                cuda.free(self._host)
                self._host = None
            self._host = cuda.pinned(picture.shape, "picture for OpenGL")
        cuda.wait(stream, picture.ready)
        cuda.download(self._host, picture.buffer, stream)
        cuda.record(picture.released, stream)
        cuda.record(self._downloaded, stream)
        deadline = time.perf_counter() + _DOWNLOAD_S
        while not cuda.done(self._downloaded):
            if time.perf_counter() > deadline:
                raise CudaError(f"a picture did not leave the GPU within {_DOWNLOAD_S:g} s")
            time.sleep(_STEP_S)
        return self._host
