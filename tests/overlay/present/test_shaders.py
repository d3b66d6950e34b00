"""Every scaling shader against a reference in numpy, in float64, from the definitions."""

import cv2
import numpy as np
import pytest

from overlay.frame import Size
from overlay.infer import SHADERS
from overlay.infer.merge import LUMA_BGR, merge_luma
from overlay.present import Look
from overlay.present.offscreen import OffscreenPresenter
from overlay.present.scaling import SHARPENING_STOPS
from tests.contracts.presenter import picture_of

SIZE = Size(60, 44)
SCALES = [2, 3, 4, 1.5]


def noise():
    return np.random.default_rng(5).integers(0, 256, (SIZE.height, SIZE.width, 4), np.uint8)


def scene():
    """Something like a game: smooth shading, hard edges at many angles, thin lines, letters."""
    large = np.zeros((SIZE.height * 4, SIZE.width * 4, 3), np.uint8)
    ramp = np.linspace(20, 180, large.shape[1])
    large[:] = np.stack([ramp, ramp[::-1], np.full_like(ramp, 90)], axis=1)
    cv2.circle(large, (70, 70), 50, (40, 200, 250), cv2.FILLED, cv2.LINE_AA)
    cv2.rectangle(large, (120, 20), (210, 90), (250, 250, 250), 5)
    cv2.line(large, (10, 170), (230, 110), (0, 0, 0), 4, cv2.LINE_AA)
    cv2.putText(large, "Hp 67", (60, 165), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (60, 60, 255), 4)
    small = cv2.resize(large, SIZE, interpolation=cv2.INTER_AREA)
    return np.dstack([small, np.full(small.shape[:2], 9, np.uint8)])


IMAGES = {"noise": noise(), "scene": scene()}


# References --------------------------------------------------------------------------------


def weights(count, out_count, kernel, support):
    """Matrix (out_count, count) of a kernel with half-pixel centres and clamped borders."""
    matrix = np.zeros((out_count, count))
    for row in range(out_count):
        centre = (row + 0.5) * count / out_count - 0.5
        for tap in range(int(np.floor(centre)) - support + 1, int(np.floor(centre)) + support + 1):
            matrix[row, min(max(tap, 0), count - 1)] += kernel(centre - tap)
    return matrix / matrix.sum(axis=1, keepdims=True)


def box_weights(count, out_count):
    """Matrix of the mean over each output pixel's own area."""
    matrix = np.zeros((out_count, count))
    for row in range(out_count):
        low, high = row * count / out_count, (row + 1) * count / out_count
        for tap in range(count):
            matrix[row, tap] = max(0.0, min(high, tap + 1) - max(low, tap))
    return matrix / matrix.sum(axis=1, keepdims=True)


def linear(x):
    return max(0.0, 1 - abs(x))


def cubic(b, c):
    def kernel(x):
        x = abs(x)
        if x < 1:
            return ((12 - 9 * b - 6 * c) * x**3 + (-18 + 12 * b + 6 * c) * x**2 + 6 - 2 * b) / 6
        if x < 2:
            return (
                (-b - 6 * c) * x**3 + (6 * b + 30 * c) * x**2 + (-12 * b - 48 * c) * x + 8 * b
            ) / 6 + 4 * c
        return 0.0

    return kernel


def lanczos3(x):
    return float(np.sinc(x) * np.sinc(x / 3)) if abs(x) < 3 else 0.0


def separable(image, out, across, down):
    return np.einsum("Yy,yxc,Xx->YXc", down, image, across, optimize=True)


def by_kernel(kernel, support):
    def scale(image, out):
        across = weights(image.shape[1], out.width, kernel, support)
        return separable(image, out, across, weights(image.shape[0], out.height, kernel, support))

    return scale


def by_area(image, out):
    across, down = box_weights(image.shape[1], out.width), box_weights(image.shape[0], out.height)
    return separable(image, out, across, down)


def easu(image, out):
    """Edge-adaptive upscaling for every output pixel at once; 0 to 1."""
    image = image / 255.0
    y, x = np.mgrid[0 : out.height, 0 : out.width]
    y = (y + 0.5) * image.shape[0] / out.height - 0.5
    x = (x + 0.5) * image.shape[1] / out.width - 0.5
    row, column = np.floor(y + 1e-9).astype(int), np.floor(x + 1e-9).astype(int)
    v, u = y - row, x - column

    def texel(dx, dy):
        rows = np.clip(row + dy, 0, image.shape[0] - 1)
        return image[rows, np.clip(column + dx, 0, image.shape[1] - 1)]

    def bright(dx, dy):
        return texel(dx, dy) @ np.array([0.5, 1.0, 0.5])

    gx = gy = strength = 0
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        share = (u if dx else 1 - u) * (v if dy else 1 - v)
        centre = bright(dx, dy)
        for axis, (sx, sy) in enumerate(((1, 0), (0, 1))):
            after, before = bright(dx + sx, dy + sy), bright(dx - sx, dy - sy)
            slope = after - before
            most = np.maximum(abs(after - centre), abs(centre - before))
            strength = strength + share * np.clip(abs(slope) / np.maximum(most, 1e-6), 0, 1) ** 2
            gx, gy = (gx + share * slope, gy) if axis == 0 else (gx, gy + share * slope)
    length = np.sqrt(gx**2 + gy**2)
    flat = length**2 < 1 / 32768
    ax = np.where(flat, 1.0, gx / np.maximum(length, 1e-9))
    ay = np.where(flat, 0.0, gy / np.maximum(length, 1e-9))
    strength = (strength / 2) ** 2
    stretch = 1 + (1 / np.maximum(abs(ax), abs(ay)) - 1) * strength
    narrow = 1 - strength / 2
    lobe = 0.5 - 0.29 * strength
    total, colour = 0, 0
    for dy in (-1, 0, 1, 2):
        for dx in (-1, 0, 1, 2):
            if dx in (-1, 2) and dy in (-1, 2):
                continue
            ox, oy = dx - u, dy - v
            along, aside = (ox * ax + oy * ay) * stretch, (oy * ax - ox * ay) * narrow
            square = np.minimum(along**2 + aside**2, 1 / lobe)
            window = (25 / 16 * (0.4 * square - 1) ** 2 - 9 / 16) * (lobe * square - 1) ** 2
            total = total + window
            colour = colour + window[..., None] * texel(dx, dy)
    nearest = np.stack([texel(dx, dy) for dx in (0, 1) for dy in (0, 1)])
    return np.clip(colour / total[..., None], nearest.min(axis=0), nearest.max(axis=0))


def rcas(image):
    """Contrast-adaptive sharpening of an image from 0 to 1."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    cross = np.stack([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])
    low, high = cross.min(axis=0), cross.max(axis=0)
    to_black = np.minimum(low, image) / np.maximum(4 * high, 1e-6)
    to_white = (1 - np.maximum(high, image)) / np.maximum(4 - 4 * low, 1e-6)
    room = np.minimum(to_black, to_white).min(axis=2, keepdims=True)
    weight = -np.clip(room, 0, 3 / 16) * 2.0**-SHARPENING_STOPS
    return (image + weight * cross.sum(axis=0)) / (1 + 4 * weight)


def fsr1(image, out):
    between = np.rint(easu(image, out) * 255) / 255  # the pass between is 8 bits deep
    return rcas(between) * 255


REFERENCES = {
    "nearest": by_area,
    "bilinear": by_kernel(linear, 1),
    "bicubic": by_kernel(cubic(0, 0.5), 2),
    "mitchell": by_kernel(cubic(1 / 3, 1 / 3), 2),
    "lanczos": by_kernel(lanczos3, 3),
    "fsr1": fsr1,
}


# Tests -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def presenter():
    with OffscreenPresenter() as presenter:
        yield presenter


def scaled(presenter, image, shader, out, *, kind="source", result=None):
    presenter.adapt(Look(size=out, fit="stretch", filter=shader))
    presenter.show(picture_of(image, kind, result, shader), None)
    return presenter.grab()[..., :3].astype(np.int32)


def test_every_shader_has_a_reference():
    assert set(REFERENCES) == set(SHADERS)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shader", SHADERS)
def test_shader_equals_its_reference(presenter, shader, scale, name):
    image = IMAGES[name]
    out = Size(round(SIZE.width * scale), round(SIZE.height * scale))
    expected = np.clip(REFERENCES[shader](image[..., :3].astype(np.float64), out), 0, 255)
    off = np.abs(scaled(presenter, image, shader, out) - expected)
    assert off.mean() < (0.6 if shader == "lanczos" else 0.3)  # rounding alone makes 0.25
    if shader == "lanczos":
        assert off.max() <= 1.8  # 8 bits between its passes
    elif shader == "fsr1":
        # one level in the pass between, at a tie, becomes up to three by the sharpening
        assert np.percentile(off, 98) <= 1.0
        assert off.max() <= 6
    else:
        assert off.max() <= 1.0


@pytest.mark.parametrize("shader", SHADERS)
def test_a_flat_picture_stays_flat_to_the_last_level(presenter, shader):
    image = np.empty((SIZE.height, SIZE.width, 4), np.uint8)
    image[:] = (3, 130, 255, 0)
    for out in (Size(150, 110), Size(120, 88), SIZE, Size(31, 17)):
        shown = scaled(presenter, image, shader, out)
        np.testing.assert_array_equal(shown, np.broadcast_to((3, 130, 255), shown.shape))


def test_nearest_is_exact_at_whole_multiples(presenter):
    for scale in (1, 2, 3, 4):
        shown = scaled(presenter, noise(), "nearest", Size(SIZE.width * scale, SIZE.height * scale))
        expected = noise()[..., :3].repeat(scale, axis=0).repeat(scale, axis=1)
        np.testing.assert_array_equal(shown, expected)


def test_bilinear_is_that_of_opencv(presenter):
    out = Size(133, 97)
    expected = cv2.resize(noise()[..., :3], out, interpolation=cv2.INTER_LINEAR)
    assert np.abs(scaled(presenter, noise(), "bilinear", out) - expected).max() <= 1


@pytest.mark.parametrize("shader", SHADERS)
@pytest.mark.parametrize("out", [Size(30, 22), Size(37, 13), Size(90, 20), Size(1, 1)])
def test_shrinking_averages_and_does_not_alias(presenter, shader, out):
    expected = by_area(noise()[..., :3].astype(np.float64), out)
    assert np.abs(scaled(presenter, noise(), shader, out) - expected).max() <= 1
    stripes = np.zeros((SIZE.height, SIZE.width, 4), np.uint8)
    stripes[::2, :, :3] = 255
    half = scaled(presenter, stripes, shader, Size(30, 22))
    assert np.abs(half - 127.5).max() <= 1


def test_sharpening_goes_no_further_than_black_and_white(presenter):
    """A checkerboard of extremes has no room: RCAS must leave it as EASU made it."""
    board = np.zeros((8, 8, 4), np.uint8)
    board[::2, ::2, :3] = board[1::2, 1::2, :3] = 255
    shown = scaled(presenter, board, "fsr1", Size(16, 16))
    expected = np.clip(easu(board[..., :3].astype(float), Size(16, 16)) * 255, 0, 255)
    assert np.abs(shown - rcas(expected / 255) * 255).max() <= 2


# Results of nets ---------------------------------------------------------------------------


def net_luma(scale):
    """A luma picture that is not the source's own: sharper, and with overshoot."""
    large = cv2.resize(IMAGES["scene"][..., :3], None, fx=scale, fy=scale)
    luma = large.astype(np.float32) @ LUMA_BGR
    luma += 1.5 * (luma - cv2.GaussianBlur(luma, (0, 0), 2))
    return np.clip(np.rint(luma), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", IMAGES)
def test_luma_with_the_chroma_of_the_source(presenter, name, scale):
    image, luma = IMAGES[name], net_luma(scale)
    out = Size(SIZE.width * scale, SIZE.height * scale)
    up = REFERENCES["bilinear"](image[..., :3].astype(np.float64), out)
    expected = np.clip(up + (luma - up @ LUMA_BGR.astype(np.float64))[..., None], 0, 255)
    shown = scaled(presenter, image, "bicubic", out, kind="luma", result=luma)
    merged = merge_luma(image, luma)
    assert merged.dtype == np.uint8
    assert merged.shape == (*luma.shape, 4)
    assert (merged[..., 3] == 255).all()
    for got in (shown, merged[..., :3].astype(np.int32)):
        off = np.abs(got - expected)
        assert off.mean() < 0.35
        assert off.max() <= 1
    assert np.abs(merged[..., :3].astype(int) - shown).max() <= 1


def test_grey_has_no_chroma(presenter):
    grey = IMAGES["scene"].copy()
    grey[..., :3] = grey[..., 1:2]
    luma = net_luma(2)
    shown = scaled(presenter, grey, "bicubic", Size(120, 88), kind="luma", result=luma)
    np.testing.assert_array_equal(shown, np.broadcast_to(luma[..., None], shown.shape))


@pytest.mark.parametrize("shader", SHADERS)
def test_what_is_left_between_result_and_surface_is_filtered(presenter, shader):
    out = Size(150, 110)
    luma = net_luma(2)
    merged = merge_luma(IMAGES["scene"], luma)
    shown = scaled(presenter, IMAGES["scene"], shader, out, kind="luma", result=luma)
    expected = np.clip(REFERENCES[shader](merged[..., :3].astype(np.float64), out), 0, 255)
    assert np.percentile(np.abs(shown - expected), 98.5) <= 2.5
    again = scaled(presenter, IMAGES["scene"], shader, out, kind="bgra", result=merged)
    assert np.percentile(np.abs(again - expected), 98.5) <= 2.5


def test_result_of_the_right_size_is_shown_as_it_is(presenter):
    result = np.random.default_rng(1).integers(0, 256, (88, 120, 4), np.uint8)
    shown = scaled(presenter, noise(), "lanczos", Size(120, 88), kind="bgra", result=result)
    np.testing.assert_array_equal(shown, result[..., :3])
