"""The fake of the seam: the shipped nets' names and scales, cv2's cubic in their place.

For tests, and for pages that are drawn where no net can run.
"""

from __future__ import annotations

from typing import cast

import cv2

from engines import zoo
from engines.offline import Progress
from service.backends import Backend, Model, Offer, Pixels


class ResizeBackend(Backend):
    """Offers `zoo.SHIPPED`, and does none of them."""

    name = "resize"

    def offers(self) -> tuple[Offer, ...]:
        """List the shipped nets, a byte each."""
        return tuple(
            Offer(row.id, row.scale, row.licence, row.author, "cv2's cubic", True, bytes=1)
            for row in zoo.SHIPPED
        )

    def open(self, model: str) -> Model:
        """Give a resize by a net's scale."""
        return ResizeModel(model, zoo.spec(model).scale)


class ResizeModel(Model):
    """Enlarges with cv2.

    Args:
        name, scale: as of a net.
    """

    device = "CPU, cv2"

    def __init__(self, name: str, scale: int) -> None:
        self.name, self.scale = name, scale

    @property
    def bytes(self) -> int:
        """Hardly any."""
        return 1

    def upscale(self, picture: Pixels, *, seed: int, progress: Progress) -> Pixels:
        """Enlarge, see `Model`."""
        progress(0.0)
        height, width = picture.shape[:2]
        size = width * self.scale, height * self.scale
        return cast("Pixels", cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC))

    def close(self) -> None:
        """There is nothing to free."""
