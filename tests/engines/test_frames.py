"""Game frames of the size wanted, from pictures of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from engines import frames
from engines.errors import ModelInvalid


def write(folder: Path, width: int, height: int) -> None:
    columns = np.linspace(0, 255, width, dtype=np.uint8)
    picture = np.broadcast_to(columns[None, :, None], (height, width, 3))
    cv2.imwrite(str(folder / f"{width}x{height}.png"), picture)


@pytest.mark.parametrize(
    "shape", [(96, 64), (200, 100), (48, 32), (60, 50), (30, 100), (1, 5000), (5000, 1), (1, 1)]
)
def test_frames_have_the_size_wanted(tmp_path: Path, shape: tuple[int, int]) -> None:
    write(tmp_path, *shape)
    (frame,) = frames.read((96, 64), tmp_path)
    assert frame.shape == (64, 96, 4)
    assert frame.dtype == np.uint8
    assert frame.flags.c_contiguous
    assert (frame[..., 3] == 255).all()


def test_a_narrow_picture_takes_no_more_memory_than_the_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    real = cv2.resize

    def resize(picture: Any, size: tuple[int, int], **options: Any) -> Any:
        made.append(size[0] * size[1])
        return real(picture, size, **options)

    monkeypatch.setattr(cv2, "resize", resize)
    write(tmp_path, 1, 5000)
    frames.read((96, 64), tmp_path)
    assert made == [96 * 64]


def test_a_larger_picture_is_cut_in_its_middle(tmp_path: Path) -> None:
    write(tmp_path, 256, 64)
    (frame,) = frames.read((96, 64), tmp_path)
    assert frame[0, :, 0].tolist() == list(range(80, 176))


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "broken.png").write_bytes(b"no picture either")
    with pytest.raises(ModelInvalid, match="holds no picture"):
        frames.read((96, 64), tmp_path)
    with pytest.raises(ModelInvalid, match="cannot read the frames"):
        frames.read((96, 64), tmp_path / "missing")
