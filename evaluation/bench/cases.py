"""What is measured: one upscaler at one size each, all behind the same call."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import cv2

from engines import zoo
from engines.errors import EngineError
from overlay.errors import BackendUnavailable, SettingsError
from overlay.frame import BufferRing, Frame, Picture, Size
from overlay.infer import SHADERS, Upscaler, open_upscaler
from overlay.settings import suggestion

log = logging.getLogger(__name__)

#: Measured in every run, beside whatever was asked for.
BASELINES = ("bilinear", "bicubic")
_CV2 = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}

Kind = Literal["net", "shader", "cv2"]


class Cv2Resize(Upscaler):
    """cv2.resize by a whole factor, on the calling thread and cv2's own.

    Args:
        name: "bilinear" or "bicubic".
        scale: output size / input size.
        threads: as told to cv2, for the device's name.
    """

    backend = "cv2"

    def __init__(self, name: str, scale: int, threads: int) -> None:
        self.model = name
        self.scale = scale
        self.device = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
        self._flag = _CV2[name]
        self._picture: Picture | None = None

    def warm_up(self, size: Size) -> None:
        self._ring = BufferRing.of_shape((size.height * self.scale, size.width * self.scale, 4))

    def submit(self, frame: Frame) -> None:
        lease = self._ring.take()
        height, width = lease.buffer.shape[:2]
        cv2.resize(frame.pixels, (width, height), lease.buffer, interpolation=self._flag)
        self._picture = Picture(
            frame, "bgra", lease.buffer, self.scale, self.model, self.backend, "bilinear", lease
        )

    def poll(self, timeout_s: float) -> Picture | None:
        picture, self._picture = self._picture, None
        return picture

    @property
    def in_flight(self) -> int:
        return int(self._picture is not None)


@dataclass(frozen=True, slots=True)
class Case:
    """One upscaler at one size, warmed up.

    Attributes:
        kind: "net", "shader" (in the presenter) or "cv2".
        input, output: sizes in pixels.
        merged: the net's luma is joined with the chroma on the host, as `overlay run` does
            where OpenGL runs on the CPU.
    """

    kind: Kind
    upscaler: Upscaler
    input: Size
    output: Size
    merged: bool = False

    @property
    def backend(self) -> str:
        """The back end's name, and what it was told beside."""
        return f"{self.upscaler.backend}, merged" if self.merged else self.upscaler.backend

    def upscale(self, frame: Frame) -> Picture:
        """Give the picture of a frame; returns when it is finished (a shader has not begun)."""
        self.upscaler.submit(frame)
        while (picture := self.upscaler.poll(1.0)) is None:
            pass
        return picture


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A model that was not asked for by name and cannot run here."""

    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure.

    Attributes:
        models: names; empty = all nets and the baselines.
        every: also all shaders.
        sizes: input sizes.
        scales: output size / input size.
        largest: pairs of size and scale whose output is larger are left out.
        threads: of nets and cv2.
    """

    models: tuple[str, ...]
    every: bool
    sizes: tuple[Size, ...]
    scales: tuple[int, ...]
    largest: Size
    threads: int

    def pairs(self) -> list[tuple[Size, int]]:
        """List input size and scale, in order."""
        return [
            (size, scale)
            for size in self.sizes
            for scale in self.scales
            if size.width * scale <= self.largest.width
            and size.height * scale <= self.largest.height
        ]


def open_cases(
    stack: ExitStack, wanted: Wanted, software_gl: bool
) -> tuple[list[Case], list[LeftOut]]:
    """Open every upscaler on `stack`, warmed up.

    Args:
        software_gl: OpenGL runs on the CPU: measure nets in both forms, luma merged with chroma
            by the shader, and on the host.
    Raises:
        SettingsError: an unknown name, or nothing is left to measure.
        BackendUnavailable, EngineError: a model that was asked for by name cannot run.
    """
    shaders, nets = _names(wanted)
    left_out: dict[str, LeftOut] = {}
    cases: list[Case] = []
    for size, scale in wanted.pairs():
        output = Size(size.width * scale, size.height * scale)
        for name in nets:
            if zoo.spec(name).scale != scale or name in left_out:
                continue
            try:
                opened = [
                    (merged, open_upscaler(
                        name, source=size, output=output, threads=wanted.threads,
                        software_gl=merged,
                    ))
                    for merged in ((False, True) if software_gl else (False,))
                ]  # fmt: skip
            except (BackendUnavailable, EngineError) as exc:
                if wanted.models:
                    raise
                log.warning("leaving out %s: %s", name, exc)
                left_out[name] = LeftOut(name, str(exc))
                continue
            for merged, upscaler in opened:
                stack.enter_context(upscaler)
                cases.append(Case("net", upscaler, size, output, merged))
        for name in shaders:
            shader = open_upscaler(name, source=size, output=output)
            cases.append(Case("shader", stack.enter_context(shader), size, output))
        for name in BASELINES:
            resize = stack.enter_context(Cv2Resize(name, scale, wanted.threads))
            resize.warm_up(size)
            cases.append(Case("cv2", resize, size, output))
    if not cases:
        raise SettingsError(f"nothing to measure: every output is larger than {wanted.largest}")
    return cases, list(left_out.values())


def _names(wanted: Wanted) -> tuple[list[str], list[str]]:
    """Sort the names into shaders (with the baselines first) and nets."""
    every_net = [spec.id for spec in zoo.SHIPPED]
    if not wanted.models:
        return list(_unique(BASELINES + (SHADERS if wanted.every else ()))), every_net
    shaders, nets = list(BASELINES), []
    for name in wanted.models:
        if name in SHADERS:
            shaders.append(name)
        elif name == "default":
            nets += [f"default-x{scale}" for scale in wanted.scales]
        elif name in every_net:
            nets.append(name)
        else:
            known = ("default", *SHADERS, *every_net)
            raise SettingsError(
                f"--models: unknown model {name!r} (one of {', '.join(known)})"
                + suggestion(name, known)
            )
    return list(_unique(shaders)), list(_unique(nets))


def _unique(names: tuple[str, ...] | list[str]) -> Iterator[str]:
    return iter(dict.fromkeys(names))
