"""Models with real weights give the PSNR on game frames that they gave before, by the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.spec import ModelSpec
from tests.overlay.files import golden

TOLERANCE_DB = 0.02
AGAIN = "python -m tests.overlay.files.golden measures the table anew"


@pytest.mark.timeout(400)  # ten seconds of one core, on which others may run too
@pytest.mark.parametrize("row", golden.MODELS, ids=lambda row: row.id)
def test_psnr_is_as_it_was(row: ModelSpec, tmp_path: Path) -> None:
    stored = json.loads(golden.TABLE.read_text(encoding="utf-8"))[row.id]
    assert list(stored) == golden.stems(row.scale), f"the frames are others: {AGAIN}"
    assert len(stored) == 2
    found = {stem: golden.measured(row.id, stem, tmp_path) for stem in stored}
    assert found == pytest.approx(stored, abs=TOLERANCE_DB), AGAIN
