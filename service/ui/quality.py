"""The tab that draws quality against latency."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import streamlit as st

from evaluation import results
from evaluation.metrics.errors import EvaluationError
from evaluation.report import pareto
from evaluation.report.__main__ import latency_rows
from service.ui.comparison import kept, without_folder
from service.ui.words import plain

#: Larger files are not read.
MAX_MIB = 32
#: Most files of a folder that are looked at.
_MOST = 200
_HEIGHT = 520
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:8px;color:#222;background:#fff}
svg{width:100%}svg text{font-size:12px;fill:#333}.grid{stroke:#e3e3e3}
.front{fill:none;stroke:#009e73;stroke-dasharray:6 4}.mid{text-anchor:middle}
.end{text-anchor:end}
"""


@dataclass(slots=True)
class Found:
    """Results of one place.

    Attributes:
        quality: of `evaluation.evaluate --json`, by name.
        latency: rows of `overlay bench --json`.
        machines: what they ran on.
        problems: what could not be read, for people.
    """

    quality: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    latency: list[dict[str, Any]] = field(default_factory=list)
    machines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, path: Path, name: str, asked_for: bool) -> None:
        """Take in a file.

        Args:
            name: for people.
            asked_for: it is a problem if it is neither.
        """
        try:
            if path.stat().st_size > MAX_MIB << 20:
                raise EvaluationError(f"{name} is larger than {MAX_MIB} MiB")
            content = json.loads(path.read_text("utf-8"))
            kind = content if isinstance(content, dict) else {}
            if "paired" in kind:
                self.quality[name] = results.read(path)
            elif "rows" in kind:
                self.latency += latency_rows(path)
                machine = kind.get("machine")
                self.machines.append(str(machine.get("cpu", "?")) if machine else "?")
            elif asked_for:
                raise EvaluationError(
                    f"{name} is neither of evaluation.evaluate --json nor of overlay bench --json"
                )
        except EvaluationError as exc:
            self.problems.append(without_folder(str(exc), path.parent))
        except (OSError, ValueError, AttributeError, RecursionError) as exc:
            if asked_for:
                self.problems.append(without_folder(f"{name} cannot be read: {exc}", path.parent))


def draw(folder: Path | None) -> None:
    """Draw the tab.

    Args:
        folder: of results, or None.
    """
    files = st.file_uploader(
        "Results of `evaluation.evaluate --json` and `overlay bench --json`, instead of the "
        "project's own", ["json"], accept_multiple_files=True, key="results",
        max_upload_size=MAX_MIB,
    )  # fmt: skip
    found = (
        in_files([(file.name, file.getvalue()) for file in files]) if files else in_folder(folder)
    )
    for problem in found.problems:
        st.warning(plain(problem))
    if not found.quality:
        st.info(
            "There is no quality result here. `python -m evaluation.evaluate --json quality.json` "
            "makes one; give it here together with one of `overlay bench --json`."
        )
    else:
        _diagram(found)
    _latency(found)


def in_folder(folder: Path | None) -> Found:
    """Read what a folder has."""
    found = Found()
    if folder is not None:
        for path in sorted(folder.rglob("*.json"))[:_MOST]:
            found.add(path, path.relative_to(folder).as_posix(), asked_for=False)
    return found


def in_files(files: Sequence[tuple[str, bytes]]) -> Found:
    """Read what was uploaded: names and contents."""
    found = Found()
    for name, data in files[:_MOST]:
        with kept({"file.json": data}) as folder:
            found.add(folder / "file.json", name, asked_for=True)
    return found


def _diagram(found: Found) -> None:
    name = st.selectbox("Quality of", list(found.quality), key="quality result")
    result = found.quality[name]
    metric = st.selectbox("Metric", list(result["metrics"]), key="metric")
    st.caption(plain(
        f"{result['lr_size']} to {result['hr_size']}, {result['frames']} frames of "
        f"{result['sequences']} sequences"
    ))  # fmt: skip
    points = pareto.points(result, metric, found.latency)
    if not points:
        st.info(
            f"No benchmark here has a model of this result at {result['scale']}x from "
            f"{plain(result['lr_size'])}: the means alone are below."
        )
    else:
        st.iframe(_page(pareto.svg(points, metric)), height=_HEIGHT, alt="quality and latency")
        st.dataframe(
            [
                {"model": p.model, "ms (p50)": p.ms, metric: p.quality,
                 f"minus {results.REFERENCE}": p.gain, "beaten by none": p.best, "where": p.where}
                for p in points
            ],
            hide_index=True,
        )  # fmt: skip
    good = [row for row in result["results"] if row["status"] == "ok"]
    columns = ("model", "n", *result["metrics"])
    st.dataframe([{key: row.get(key) for key in columns} for row in good], hide_index=True)


def _page(svg: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape('Quality and latency')}</title><style>{_STYLE}</style></head>"
        f"<body>{svg}</body></html>"
    )


def _latency(found: Found) -> None:
    if not found.latency:
        st.info("There is no benchmark here: `overlay bench --json` makes one.")
        return
    st.markdown("**Measured latency**, " + plain(", ".join(dict.fromkeys(found.machines))))
    st.dataframe(
        [
            {
                "model": str(row["model"]), "kind": str(row["kind"]),
                "back end": str(row["backend"]), "device": str(row["device"]),
                "from": str(row["input_size"]), "to": str(row["output_size"]),
                "upscaler, ms (p50)": float(row["upscale"]["ms"]["p50"]),
                "whole frame, ms (p50)": float(row["whole"]["ms"]["p50"]),
            }
            for row in found.latency
        ],
        hide_index=True,
    )  # fmt: skip
