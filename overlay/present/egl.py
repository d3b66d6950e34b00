"""An OpenGL 3.3 core context on no window and no display, by EGL (Linux).

ctypes, because PyOpenGL's own EGL module cannot be imported with error checking switched off.
The context belongs to the thread that made it.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int32, c_uint32, c_void_p

from overlay.errors import BackendUnavailable

_EXTENSIONS = 0x3055
_NONE = 0x3038
_PLATFORM_DEVICE = 0x313F
_PLATFORM_SURFACELESS = 0x31DD
_OPENGL_API = 0x30A2
_CONFIG = (0x3040, 0x0008, 0x3033, 0x0001, _NONE)  # OpenGL-renderable, can have pbuffers
_CONTEXT = (0x3098, 3, 0x30FB, 3, 0x30FD, 1, _NONE)  # version 3.3, core profile
_PBUFFER = (0x3057, 1, 0x3056, 1, _NONE)  # 1x1
_MOST_DEVICES = 16


def _ints(values: tuple[int, ...]) -> ctypes.Array[c_int32]:
    return (c_int32 * len(values))(*values)


class EglContext:
    """A current OpenGL context without a surface; draw into a framebuffer object.

    Tries the GPUs that EGL names, then Mesa's surfaceless platform, then software devices and
    the default display.

    Raises:
        BackendUnavailable: libEGL is missing, or no device gives OpenGL 3.3; the message lists
            what was tried.
    """

    def __init__(self) -> None:
        try:
            self._egl = ctypes.CDLL("libEGL.so.1", mode=ctypes.RTLD_GLOBAL)
        except OSError as exc:
            raise BackendUnavailable(f"EGL is not installed ({exc})") from exc
        self._egl.eglGetProcAddress.restype = c_void_p
        self._egl.eglGetProcAddress.argtypes = [c_char_p]
        for name in ("eglQueryString", "eglGetDisplay", "eglCreateContext"):
            getattr(self._egl, name).restype = c_void_p
        self._egl.eglCreatePbufferSurface.restype = c_void_p
        self._display = self._context = self._surface = 0
        tried = []
        for name, display in self._displays():
            problem = self._open(display)
            if not problem:
                return
            tried.append(f"{name}: {problem}")
        raise BackendUnavailable(f"EGL gives no OpenGL 3.3 ({'; '.join(tried)})")

    def _displays(self) -> list[tuple[str, int]]:
        """List what may give a context, best first."""
        get_platform_display = self._extension(
            "eglGetPlatformDisplayEXT", c_void_p, c_uint32, c_void_p, c_void_p
        )
        found: list[tuple[str, int]] = []
        software: list[tuple[str, int]] = []
        if get_platform_display:
            for index, (device, extensions) in enumerate(self._devices()):
                display = get_platform_display(_PLATFORM_DEVICE, device, None) or 0
                soft = "EGL_MESA_device_software" in extensions.split()
                (software if soft else found).append((f"device {index}", display))
            surfaceless = get_platform_display(_PLATFORM_SURFACELESS, None, None) or 0
            found.append(("surfaceless", surfaceless))
        default = self._egl.eglGetDisplay(c_void_p(0)) or 0
        return [*found, *software, ("default display", default)]

    def _devices(self) -> list[tuple[int, str]]:
        query = self._extension("eglQueryDevicesEXT", c_uint32, c_int32, c_void_p, c_void_p)
        query_string = self._extension("eglQueryDeviceStringEXT", c_char_p, c_void_p, c_int32)
        if not query or not query_string:
            return []
        devices = (c_void_p * _MOST_DEVICES)()
        count = c_int32()
        if not query(_MOST_DEVICES, devices, ctypes.byref(count)):
            return []
        found = [device for device in devices[: count.value] if device]
        return [(d, (query_string(d, _EXTENSIONS) or b"").decode()) for d in found]

    def _extension(self, name: str, result: type, *args: type) -> ctypes._CFunctionType | None:
        address = self._egl.eglGetProcAddress(name.encode())
        return ctypes.CFUNCTYPE(result, *args)(address) if address else None

    def _open(self, display: int) -> str:
        """Make a context current on `display`; give what failed, or "" if nothing did."""
        egl, handle = self._egl, c_void_p(display)
        if not display or not egl.eglInitialize(handle, None, None):
            return "not available"
        if not egl.eglBindAPI(_OPENGL_API):
            return "no desktop OpenGL"
        config, count = c_void_p(), c_int32()
        egl.eglChooseConfig(handle, _ints(_CONFIG), ctypes.byref(config), 1, ctypes.byref(count))
        if not count.value:
            return "no suitable configuration"
        context = egl.eglCreateContext(handle, config, None, _ints(_CONTEXT)) or 0
        if not context:
            return "no OpenGL 3.3 core context"
        self._display, self._context = display, context
        if self.make_current():
            return ""
        self._surface = egl.eglCreatePbufferSurface(handle, config, _ints(_PBUFFER)) or 0
        if self._surface and self.make_current():
            return ""
        egl.eglDestroyContext(handle, c_void_p(context))
        self._display = self._context = self._surface = 0
        return "the context cannot be made current"

    def make_current(self) -> bool:
        """Make the context current on this thread."""
        drawable = c_void_p(self._surface)
        return bool(
            self._egl.eglMakeCurrent(
                c_void_p(self._display), drawable, drawable, c_void_p(self._context)
            )
        )

    def close(self) -> None:
        """Destroy the context; idempotent.

        The EGL display stays initialised: it is shared by the whole process.
        """
        if not self._context:
            return
        self._egl.eglMakeCurrent(c_void_p(self._display), None, None, None)
        self._egl.eglDestroyContext(c_void_p(self._display), c_void_p(self._context))
        if self._surface:
            self._egl.eglDestroySurface(c_void_p(self._display), c_void_p(self._surface))
        self._display = self._context = self._surface = 0
