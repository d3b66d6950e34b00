"""What people read about a published data set or model: README.md and Kaggle's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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

_MODEL = """\
# {name}

Upscales game frames x{scale}; single frames, RGB or luma, no input from the engine but its picture.

| | |
|---|---|
| Architecture | {architecture} |
| Parameters | {parameters} |
| Scale | {scale} |
| Licence | {licence} |
| From | {origin} |
| sha256 of the weights | `{sha256}` |

## Data

{data}

## Metrics

{metrics}

## Intended use

Upscaling what a game shows on the screen, in real time, as `overlay run --model` does. Not for:
photographs, medical or forensic pictures, evidence: what it adds was not there.

## Files

{files}
{provenance}"""


def dataset_card(plan: Plan) -> str:
    """Write the README.md of a data set, with Hugging Face's front matter."""
    games = list(plan.games.values())
    licences = sorted({licence for game in games for licence in game.licences})
    total = sum(counts(games).values())
    front: dict[str, Any] = {
        "pretty_name": TITLE,
        "license": hub_names(licences),
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


def model_card(facts: Mapping[str, str], results: Sequence[Mapping[str, Any]]) -> str:
    """Write the README.md of a model.

    Args:
        facts: name, architecture, parameters, scale, licence, origin, sha256, data, files,
            provenance.
        results: rows of a quality report: `model`, and numbers by the name of the measure.
    """
    front = {
        "license": hub_names([facts["licence"]])[0],
        "pipeline_tag": "image-to-image",
        "tags": ["super-resolution", "video-games", "real-time"],
    }
    columns = ["model", *dict.fromkeys(
        key for row in results for key, value in row.items()
        if key != "model" and isinstance(value, int | float) and not isinstance(value, bool)
    )]  # fmt: skip
    rows = [tuple(_figure(row.get(column)) for column in columns) for row in results]
    metrics = _table(columns, rows) if rows else "Not measured."
    return _front(front) + _MODEL.format(**facts, metrics=metrics)


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
