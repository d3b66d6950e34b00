"""Counts and times for Prometheus, one registry a server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from service.pictures import Timings
from service.pool import ModelPool
from service.workers import Workers

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """What a server counts; names begin with `overlay_`."""

    def __init__(self, workers: Workers, pool: ModelPool) -> None:
        self._registry = CollectorRegistry()
        self._pool = pool
        self.requests = Counter(
            "overlay_requests", "Answers, by route and status.", ("route", "status"),
            registry=self._registry,
        )  # fmt: skip
        self._stages = Histogram(
            "overlay_stage_seconds", "Time of each stage of a picture.", ("stage", "model"),
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self.dropped = self._counter("overlay_stream_dropped", "Frames that newer ones replaced.")
        self.frames = self._counter("overlay_stream_frames", "Frames that were answered.")
        self.streams = self._gauge("overlay_streams", "Open WebSockets.")
        self.uploads = self._gauge("overlay_uploads", "Bodies that are being read.")
        self._gauge("overlay_running", "Pictures in work.").set_function(lambda: workers.running)
        self._gauge("overlay_waiting", "Pictures that wait.").set_function(lambda: workers.waiting)
        self._gauge("overlay_models_bytes", "Memory of open models, estimated.").set_function(
            lambda: sum(pool.loaded.values())
        )
        self._gauge("overlay_models", "Open models.").set_function(lambda: len(pool.loaded))

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self._registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self._registry)

    def observe(self, model: str, timings: Timings) -> None:
        """Count a picture's stages."""
        plain = model.partition("@")[0]  # strengths are without number
        for stage, took_ms in timings.items():
            self._stages.labels(stage, plain).observe(took_ms / 1e3)

    def text(self) -> bytes:
        """Give all in Prometheus's text format 0.0.4."""
        return generate_latest(self._registry)
