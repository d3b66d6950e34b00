"""What becomes of a run, kept twice: a CSV of the curve, always, and MLflow where it is installed.

MLflow's store is a SQLite file beside the runs, unless MLFLOW_TRACKING_URI names another. Nothing
that happens to it stops the training: its first failure is one line in the log, and its last.
"""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engines.spec import Size
from training.config import Config, flat

log = logging.getLogger(__name__)

_SIZES: dict[int, tuple[Size, Size]] = {
    2: ((480, 270), (960, 540)), 3: ((640, 360), (320, 180)), 4: ((480, 270), (240, 136)),
}  # fmt: skip


class Curve:
    """The CSV; rows after `step` are dropped when it is opened again.

    Args:
        path: of the file.
        columns: names, "step" first.
        step: last one to keep; 0 begins anew.
    """

    def __init__(self, path: Path, columns: list[str], step: int) -> None:
        kept = []
        if step and path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                kept = [row for row in csv.DictReader(file) if int(row["step"] or 0) <= step]
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, columns, restval="", extrasaction="ignore")
        self._writer.writeheader()
        self._writer.writerows(kept)
        self._file.flush()

    def add(self, row: Mapping[str, float | int]) -> None:
        """Append a row, so that a killed run has it."""
        self._writer.writerow({k: f"{v:.8g}" for k, v in row.items()})
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Tracker:
    """A run in MLflow, or nothing.

    Args:
        config: of the run; its values are the parameters.
        out: folder of the run; the store is beside it.
        wanted: False: nothing is tracked.
    """

    def __init__(self, config: Config, out: Path, wanted: bool = True) -> None:
        self._out, self._run = out, ""
        self._client: Any = None
        self._scale = config.net.scale
        if wanted and find_spec("mlflow") is None:
            log.info('no MLflow here, the curve is in %s; pip install "sr-overlay[train]"', out)
        elif wanted:
            self._guarded(self._begin, config)

    def _guarded(self, action: Callable[..., None], *arguments: Any) -> None:
        """Do something with MLflow; the first failure is the last."""
        try:
            action(*arguments)
        except Exception as exc:  # of any kind: the store must never stop the training
            self._client = None
            line = (str(exc).strip().splitlines() or [type(exc).__name__])[0][:200]
            log.warning("MLflow failed and is left out from here on: %s", line)

    def _begin(self, config: Config) -> None:
        """Open the store and this run in it, which a resumed run finds again."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        from mlflow.tracking import MlflowClient

        folder = self._out.resolve().parent
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        client = MlflowClient(uri)
        note = self._out / "mlflow.json"
        if note.is_file():
            self._run = json.loads(note.read_text())["run"]
            client.update_run(self._run, status="RUNNING")
        else:
            found = client.get_experiment_by_name("overlay")
            place = (folder / "mlflow").as_uri() if uri.startswith("sqlite") else None
            experiment = (
                found.experiment_id if found else client.create_experiment("overlay", place)
            )
            self._run = client.create_run(experiment, run_name=config.name).info.run_id
            for key, value in flat(config).items():
                client.log_param(self._run, key, str(value)[:500])
            note.write_text(json.dumps({"run": self._run}))
        self._client, self._uri = client, uri
        log.info("MLflow: %s, run %s", uri, self._run)

    def row(self, row: Mapping[str, float | int]) -> None:
        """Log the figures of a step."""
        if self._client is not None:
            self._guarded(self._log_row, row)

    def _log_row(self, row: Mapping[str, float | int]) -> None:
        for key, value in row.items():
            if key != "step":
                self._client.log_metric(self._run, key, float(value), step=int(row["step"]))

    def file(self, path: Path) -> None:
        """Keep a file of the run."""
        if self._client is not None:
            self._guarded(self._client.log_artifact, self._run, str(path))

    def model(self, weights: Path, architecture: str) -> None:
        """Keep the model that the overlay runs, as ONNX, with its signature."""
        if self._client is not None:
            self._guarded(self._log_model, weights, architecture)

    def _log_model(self, weights: Path, architecture: str) -> None:
        import mlflow
        import numpy as np
        import onnx
        from mlflow.models.signature import ModelSignature
        from mlflow.types import Schema, TensorSpec

        graph = onnx.load_from_string(exported(weights, architecture, self._scale))
        last = self._scale**2 if architecture == "luma" else 4
        pixels = np.dtype(np.uint8)
        signature = ModelSignature(
            Schema([TensorSpec(pixels, (1, -1, -1, 4), "bgra")]),
            Schema([TensorSpec(pixels, (1, -1, -1, last), graph.graph.output[0].name)]),
        )
        mlflow.set_tracking_uri(self._uri)
        with mlflow.start_run(run_id=self._run):
            mlflow.onnx.log_model(
                graph, name="model", signature=signature, pip_requirements=["onnxruntime"]
            )

    def end(self, status: str) -> None:
        """Close the run: "FINISHED", "KILLED" or "FAILED"."""
        if self._client is not None:
            self._guarded(self._client.set_terminated, self._run, status)


def exported(weights: Path, architecture: str, scale: int) -> bytes:
    """Make the ONNX graph of a run's result: uint8 BGRA (1, H, W, 4) in, any H and W."""
    from engines import load
    from engines.export import export, onnx_model

    if architecture == "luma":
        from safetensors.torch import load_file

        model: bytes = onnx_model(load_file(weights), weights.stem).SerializeToString()
        return model
    return export(load.read(load.locate(str(weights))), _SIZES[scale], "fp32")
