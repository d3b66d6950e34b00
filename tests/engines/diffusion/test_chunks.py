"""Pictures in chunks: any size, no seams, one chunk held at a time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.diffusion.chunks import Floats, spans, upscaled


def picture(height: int, width: int) -> Floats:
    return np.random.default_rng(0).random((height, width, 3), np.float32)


def enlarged(piece: Floats, top: int, left: int) -> Floats:
    """Repeat every pixel 4x4."""
    return piece.repeat(4, 0).repeat(4, 1)


@pytest.mark.parametrize("length", [1, 5, 15, 16, 17, 27, 28, 29, 40, 41, 100, 113])
def test_spans_cover_an_axis_and_overlap(length: int) -> None:
    found = spans(length, 16, 4, 3)
    assert found[0].start == 0
    assert found[-1].stop == length
    assert {span.stop - span.start for span in found} == {min(16, length)}
    for before, after in pairwise(found):
        assert before.start < after.start <= before.stop - 4
    total = np.zeros(length * 3)
    for span in found:
        total[span.start * 3 : span.stop * 3] += span.weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_no_more_chunks_than_are_needed() -> None:
    assert [span.start for span in spans(480, 256, 32, 4)] == [0, 224]
    assert [span.start for span in spans(481, 256, 32, 4)] == [0, 224, 225]
    assert [span.start for span in spans(1024, 512, 64, 4)] == [0, 448, 512]
    assert [span.start for span in spans(256, 256, 32, 4)] == [0]


@pytest.mark.parametrize(("length", "chunk", "overlap"), [(0, 8, 2), (20, 8, 0), (20, 8, 5)])
def test_what_cannot_be_cut_is_refused(length: int, chunk: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="cannot cut"):
        spans(length, chunk, overlap, 4)


@pytest.mark.parametrize("size", [(1, 1), (7, 16), (16, 16)])
def test_a_picture_no_larger_than_a_chunk_is_one_chunk(size: tuple[int, int]) -> None:
    small = picture(*size)
    calls = []

    def run(piece: Floats, top: int, left: int) -> Floats:
        calls.append((piece.shape, top, left))
        return enlarged(piece, top, left)

    result = upscaled(small, 4, 16, 4, run)
    assert calls == [(small.shape, 0, 0)]
    assert np.array_equal(result, enlarged(small, 0, 0))


@pytest.mark.parametrize("size", [(17, 3), (16, 40), (61, 45), (100, 33)])
def test_chunks_that_agree_are_the_whole(size: tuple[int, int]) -> None:
    small = picture(*size)
    result = upscaled(small, 4, 16, 4, enlarged)
    np.testing.assert_allclose(result, enlarged(small, 0, 0), atol=1e-6)


def test_chunks_are_told_where_they_are() -> None:
    small = picture(30, 50)

    def run(piece: Floats, top: int, left: int) -> Floats:
        assert np.array_equal(piece, small[top : top + 16, left : left + 16])
        return enlarged(piece, top, left)

    upscaled(small, 4, 16, 4, run)


@pytest.mark.parametrize("level", [0, 1, 100, 255])
def test_a_constant_model_leaves_no_seams(level: int) -> None:
    def run(piece: Floats, top: int, left: int) -> Floats:
        return np.full((piece.shape[0] * 4, piece.shape[1] * 4, 3), level / 255, np.float32)

    result = upscaled(picture(61, 45), 4, 16, 4, run)
    np.testing.assert_allclose(result, level / 255, atol=1e-6)
    assert (np.rint(result * 255) == level).all()


@pytest.mark.parametrize(("chunk", "overlap"), [(64, 16), (256, 32), (512, 64)])
def test_chunks_that_differ_flow_into_each_other(chunk: int, overlap: int) -> None:
    """Neighbours that are black and white: no two pixels side by side differ by 10 %."""

    def run(piece: Floats, top: int, left: int) -> Floats:
        number = left // (chunk - overlap)
        return np.full((piece.shape[0] * 4, piece.shape[1] * 4, 3), number % 2, np.float32)

    result = upscaled(np.zeros((8, 3 * chunk - 2 * overlap, 3), np.float32), 4, chunk, overlap, run)
    line: NDArray[np.float32] = result[0, :, 0]
    assert line[0] == pytest.approx(0, abs=1e-3)
    assert line[len(line) // 2] == pytest.approx(1, abs=1e-3)
    assert np.abs(np.diff(line)).max() < 0.1


def test_progress_ends_at_one() -> None:
    told: list[float] = []
    upscaled(picture(30, 50), 4, 16, 4, enlarged, told.append)
    assert told == sorted(told)
    assert len(told) == 3 * 4
    assert told[-1] == 1
