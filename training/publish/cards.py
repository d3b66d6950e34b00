"""What people read about a published data set or model: README.md and Kaggle's metadata.

Front matter: https://huggingface.co/docs/hub/model-cards and `datasets-cards`; its `model-index`
is that of Papers with Code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from training.dataset import SPLITS
from training.publish.dataset import Plan, counts
from training.publish.licences import hub_names, kaggle_name

TITLE = "Game frames at four resolutions"
SUBTITLE = "Aligned frames of games, rendered natively at 270p to 1080p"

_DATASET = """\
# {title}

Frames of games for super-resolution, each at several sizes: 480x270, 640x360, 960x540 and
1920x1080. Layout as in SRGD (`epishchik/SRGD`); a project is a game.

    data/{{GameEngineData,DownscaleData}}/{{game}}/{{train,val,test}}-{{270p,360p,540p,1080p}}.tar.gz
    data/{{GameEngineData,DownscaleData}}/manifest.jsonl     one JSON object a frame

An archive holds `{{episode}}_{{frame}}.png`, 8-bit colour; equal names in a game's archives are the
same moment.

## Authors

{authors}

## Sources and licences

{sources}

The pictures are derived from the games' art and stay under its licence, game by game; versions
and licences of every frame are in the manifests.
{left_out}
## Splits

{splits}

Split by sequence (map, track or level), never by frame: no sequence is in two splits.

## How it was made

{made}

sha256 of every file is in the manifests.

## Intended use

Training and measuring super-resolution of game frames. Not for: judging how natural pictures are
restored; passing off frames as one's own screenshots; training on `test` or `val`.
Few games, and free ones: results on others differ.
"""

_MADE = {
    "GameEngineData": """\
**GameEngineData**: every game rendered the same frames natively at each size, headless and seeded.
A sequence was kept only if its sizes are aligned, measured by phase correlation and by PSNR of the
area-averaged HR; the figures are in the manifest. LR is not averaged or interpolated HR: it has a
render's aliasing. Where the manifest's settings have `samples`, the game drew once, at 2160 lines,
and each size is every n-th pixel of that, from the first one given.""",
    "DownscaleData": """\
**DownscaleData**: LR degraded from 1080p, a recipe drawn for every picture from the seed and its
name{presets}. The recipes are in the manifest, and give the same pixels again. HR lies in
`1080p` here, or in GameEngineData under the same name.""",
}

_BY_GAMES = "The games' pictures are by the games' authors, below."

_MODEL = """\
# {name}

Upscales game frames x{scale}; single frames, RGB or luma, no input from the engine but its picture.

| | |
|---|---|
| Architecture | {architecture} |
| Parameters | {parameters} |
| Scale | {scale} |
| Licence | {licence} |
| Authors | {authors} |
| From | {origin} |
| sha256 of the weights | `{sha256}` |

## Data

{data}

## Metrics

{metrics}

## Intended use

Upscaling what a game shows on the screen, in real time, as `overlay run --model` does. Not for:
photographs, medical or forensic pictures, evidence: what it adds was not there.

## Limits

- What the source did not sample it cannot know: thin lines and distant text stay broken.
- It sees one picture at a time, so what flickers in the source flickers in the result.
- Games unlike those of its data were not seen, and may gain little over bilinear or bicubic.
- A whole-number factor, x{scale}; other sizes are left to a filter.

## Files

{files}
{provenance}"""


def dataset_card(plan: Plan, authors: str = "") -> str:
    """Write the README.md of a data set, with Hugging Face's front matter.

    Args:
        authors: who packed it; the pictures are by their games' authors.
    """
    games = list(plan.games.values())
    licences = sorted({licence for game in games for licence in game.licences})
    total = sum(counts(games).values())
    front: dict[str, Any] = {
        "pretty_name": TITLE,
        **_licence(licences),
        "task_categories": ["image-to-image"],
        "tags": ["super-resolution", "video-games", "image-restoration"],
        "size_categories": [_size_category(total)],
    }
    sources = _table(
        ("Game", "Licence of its pictures", "Made with"),
        [(g.name, "; ".join(sorted(g.licences)), ", ".join(sorted(g.versions)) or "not stated")
         for g in games],
    )  # fmt: skip
    rows = [
        (g.name, split, str(g.frames(split)), str(len(g.episodes[split])),
         ", ".join(sorted({f"{kind}/{size}" for kind, s, size in g.archives if s == split})))
        for g in games for split in SPLITS if g.frames(split)
    ]  # fmt: skip
    presets = sorted({preset for game in games for preset in game.presets})
    named = f" (presets {', '.join(presets)})" if presets else ""
    kinds = sorted({kind for game in games for kind, _, _ in game.archives}, reverse=True)
    left_out = ""
    if plan.left_out:
        names = "; ".join(
            f"{n} ({', '.join(sorted(g.licences))})" for n, g in plan.left_out.items()
        )
        left_out = f"\nLeft out, as their licence does not let frames be passed on: {names}.\n"
    text = _DATASET.format(
        title=TITLE,
        authors=f"{_BY_GAMES} Collected and packed by {_cell(authors)}." if authors else _BY_GAMES,
        sources=sources,
        splits=_table(("Game", "Split", "Frames", "Sequences", "Sizes"), rows),
        made="\n\n".join(_MADE[kind].format(presets=named) for kind in kinds),
        left_out=left_out,
    )
    return _front(front) + text


def kaggle_metadata(plan: Plan, identifier: str) -> str:
    """Write dataset-metadata.json; `identifier` is "owner/name"."""
    licences = sorted({licence for game in plan.games.values() for licence in game.licences})
    metadata = {
        "title": TITLE,
        "subtitle": SUBTITLE,
        "id": identifier,
        "licenses": [{"name": kaggle_name(licences)}],
        "keywords": ["image", "video games", "computer vision"],
        "description": dataset_card(plan).partition("\n---\n\n")[2],
    }
    return json.dumps(metadata, indent=2, ensure_ascii=False) + "\n"


def model_card(
    facts: Mapping[str, str],
    results: Sequence[Mapping[str, Any]],
    measured_on: str = "",
    datasets: Sequence[str] = (),
) -> str:
    """Write the README.md of a model.

    Args:
        facts: name, architecture, parameters, scale, licence, authors, origin, sha256, data,
            files, provenance.
        results: rows of a quality report: `model`, and numbers by the name of the measure. Those
            whose `model` is the name are this model's, and go into the front matter too.
        measured_on: what the report measured, for people.
        datasets: "owner/name" on the Hub of what it was trained on.
    """
    own = [row for row in results if row["model"] == facts["name"]]
    measures = list(dict.fromkeys(key for row in own for key in _measures(row)))
    front: dict[str, Any] = {
        **_licence([facts["licence"]]),
        "library_name": "sr-overlay",
        "pipeline_tag": "image-to-image",
        "tags": ["super-resolution", "video-games", "real-time", f"x{facts['scale']}"],
    }
    if datasets:
        front["datasets"] = list(datasets)
    if measures:
        front["metrics"] = measures
        front["model-index"] = [_index(facts, own, measured_on)]
    columns = ["model", *dict.fromkeys(
        key for row in results for key, value in row.items()
        if key != "model" and isinstance(value, int | float) and not isinstance(value, bool)
    )]  # fmt: skip
    rows = [tuple(_figure(row.get(column)) for column in columns) for row in results]
    metrics = _table(columns, rows) if rows else "Not measured."
    if rows and measured_on:
        metrics = f"On {measured_on}.\n\n{metrics}"
    return _front(front) + _MODEL.format(
        **{**facts, "authors": _cell(facts["authors"])}, metrics=metrics
    )


def _index(
    facts: Mapping[str, str], own: Sequence[Mapping[str, Any]], measured_on: str
) -> dict[str, Any]:
    """Give a model's figures in the form that the Hub shows beside the card."""
    results = [
        {
            "task": {"type": "image-to-image", "name": f"Super-resolution x{facts['scale']}"},
            "dataset": {"type": "game-frames", "name": measured_on or "game frames"},
            "metrics": [
                {"type": key, "name": key.upper(), "value": row[key]} for key in _measures(row)
            ],
        }
        for row in own
    ]
    return {"name": facts["name"], "results": [found for found in results if found["metrics"]]}


def _measures(row: Mapping[str, Any]) -> list[str]:
    """Name the measures of a row: finite numbers that are not about the report itself."""
    return [
        key
        for key, value in row.items()
        if key not in ("model", "n", "scale", "frames")
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and isfinite(value)
    ]


def _licence(licences: list[str]) -> dict[str, Any]:
    """Give the front matter's licence, with the name of one that the Hub does not list."""
    names = hub_names(licences)
    if names == ["other"] and len(licences) == 1:
        name = re.sub(r"[^a-z0-9.]+", "-", licences[0].lower()).strip("-")
        return {"license": "other", "license_name": name or "unknown"}
    return {"license": names if len(names) > 1 else names[0]}


def _front(values: Mapping[str, Any]) -> str:
    """Write YAML front matter; JSON's strings and lists are YAML."""
    lines = (f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items())
    return "---\n" + "\n".join(lines) + "\n---\n\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(c) for c in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _figure(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str("" if value is None else value)


def _size_category(count: int) -> str:
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K")):
        if count < limit:
            return name
    return "100K<n<1M"
