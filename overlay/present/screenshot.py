"""Save pictures as PNG: the screenshot key's pairs, on a thread of their own."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np

from overlay.closing import Closing
from overlay.errors import OverlayError
from overlay.frame import Pixels

log = logging.getLogger(__name__)

#: Level 1 of 9: a 4K picture takes a third of the time and a tenth more space.
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1]
_WAITING = 8


def save_png(path: Path, pixels: Pixels) -> None:
    """Write a picture as PNG, in one step: the file is whole or not there.

    Args:
        path: the file; its folder is made.
        pixels: uint8 BGRA or BGR, (H, W, 4) or (H, W, 3), or luma, (H, W); alpha is left out.

    Raises:
        OverlayError: the file cannot be written.
    """
    visible = pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., :3])
    encoded = cv2.imencode(".png", visible, _PNG)[1]
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(encoded.tobytes())
        unfinished.replace(path)
    except OSError as exc:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise OverlayError(
            f"cannot write the picture {path} ({exc.strerror or exc}): choose a folder you may "
            "write to"
        ) from exc


class ScreenshotWriter(Closing):
    """Saves source and result of a moment side by side, without holding up the frame path.

    Args:
        folder: where to; made when the first pair is saved.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._jobs: queue.Queue[tuple[Path, Pixels] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._write, name="screenshots", daemon=True)
        self._thread.start()

    def save(self, source: Pixels, result: Pixels) -> Path:
        """Have a pair saved as `overlay-TIME-source.png` and `overlay-TIME-result.png`.

        Failures go to the log, one line each; so does a pair that comes while several wait.

        Args:
            source, result: uint8 BGRA, (H, W, 4); copied, so that buffers may be used again.
        Returns:
            The result's path; the file is there a moment later.
        """
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")[:-3]
        names = [self._folder / f"overlay-{stamp}-{part}.png" for part in ("source", "result")]
        if self._jobs.qsize() + 2 > _WAITING:
            log.warning("screenshot %s skipped: %s are still being written", stamp, _WAITING // 2)
            return names[1]
        for path, pixels in zip(names, (source, result), strict=True):
            self._jobs.put((path, pixels.copy()))
        return names[1]

    def _write(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                save_png(*job)
            except (OverlayError, cv2.error) as exc:
                log.error("no screenshot: %s", exc)
            else:
                log.info("screenshot %s", job[0])

    def close(self) -> None:
        """Finish what waits to be written; idempotent."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()
