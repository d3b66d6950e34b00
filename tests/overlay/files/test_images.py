"""Pictures read and written with what belongs to them; broken and hostile files."""

from __future__ import annotations

import errno
import logging
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from overlay.files import images, sixteen
from overlay.files.errors import FileError
from overlay.files.images import Picture

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SEEN = np.random.default_rng(1)


def noise(*shape: int, dtype: Any = np.uint8) -> Any:
    return SEEN.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("ending", [".png", ".webp", ".tiff", ".bmp"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
@pytest.mark.parametrize("clear", [False, True])
def test_eight_bits_come_back(
    tmp_path: Path, ending: str, shape: tuple[int, ...], clear: bool
) -> None:
    if ending == ".bmp" and clear:
        pytest.skip("a BMP holds no transparency")
    picture = Picture(noise(*shape), noise(5, 7) if clear else None, ICC)
    images.write(picture, tmp_path / f"a{ending}", 100)
    back = images.read(tmp_path / f"a{ending}")
    same = back.colour if back.grey == picture.grey else back.colour[..., 0]
    assert (same == picture.colour).all()
    assert back.grey == picture.grey or ending == ".webp"
    if clear:
        assert back.alpha is not None
        assert (back.alpha == picture.alpha).all()
    assert back.icc == (ICC if ending != ".bmp" else b"")


@pytest.mark.parametrize("ending", [".png", ".tif"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (900, 700, 3)])
@pytest.mark.parametrize("clear", [False, True])
def test_sixteen_bits_come_back(
    tmp_path: Path, ending: str, shape: tuple[int, ...], clear: bool
) -> None:
    if ending == ".tif" and clear and len(shape) == 2:
        pytest.skip("OpenCV reads no 16-bit TIFF of grey and alpha")
    alpha = noise(*shape[:2], dtype=np.uint16) if clear else None
    picture = Picture(noise(*shape, dtype=np.uint16), alpha, ICC)
    images.write(picture, tmp_path / f"a{ending}", 95)
    back = images.read(tmp_path / f"a{ending}")
    assert back.colour.dtype == np.uint16
    assert (back.colour == picture.colour).all()
    assert clear == (back.alpha is not None)
    if back.alpha is not None:
        assert (back.alpha == alpha).all()
    assert back.icc == ICC


def test_sixteen_bits_become_eight_where_there_are_no_more(tmp_path: Path) -> None:
    pixels = np.array([[0, 128, 129, 32767, 65535]], np.uint16)
    images.write(Picture(pixels), tmp_path / "a.bmp", 95)
    assert images.read(tmp_path / "a.bmp").colour.tolist() == [[0, 0, 1, 127, 255]]


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright_and_say_so(
    tmp_path: Path, ending: str, orientation: int
) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = 200
    upright[8:, 16:] = 90
    # What a camera stores: turned back by each orientation's inverse.
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    stored = images._turned(upright, inverse)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Model] = "a camera"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageWidth] = 7
    file = tmp_path / f"in{ending}"
    options = {} if ending == ".tif" else {"quality": 100}
    Image.fromarray(stored).save(file, exif=exif, **options)
    picture = images.read(file)
    assert picture.colour.shape == upright.shape
    assert np.abs(picture.colour.astype(int) - upright).max() < 12
    images.write(picture, tmp_path / f"out{ending}", 100)
    with Image.open(tmp_path / f"out{ending}") as back:
        found = back.getexif()
        assert found[ExifTags.Base.Orientation] == 1
        assert found[ExifTags.Base.Model] == "a camera"
        if ending != ".tif":
            assert found.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageWidth] == 24


@pytest.mark.parametrize("ending", [".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sixteen_bits_are_turned_upright(
    tmp_path: Path, ending: str, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    upright = noise(4, 6, 3, dtype=np.uint16)
    stored = images._turned(upright, {6: 8, 8: 6}.get(orientation, orientation))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    directory = sixteen._directory

    def with_tag(fields: Any, start: int) -> bytes:
        return directory(sorted([*fields, (274, "H", [orientation])]), start)

    monkeypatch.setattr(sixteen, "_directory", with_tag)
    encode = sixteen.png if ending == ".png" else sixteen.tiff
    (tmp_path / f"in{ending}").write_bytes(encode(stored, b"", exif.tobytes()))
    found = images.read(tmp_path / f"in{ending}")
    assert (found.colour == upright).all()
    assert found.exif is not None
    assert found.exif[ExifTags.Base.Orientation] == 1


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif"])
def test_exif_of_a_jpeg_goes_into_every_format(tmp_path: Path, ending: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "somebody"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime] = 0.5
    Image.fromarray(noise(8, 6, 3)).save(tmp_path / "in.jpg", exif=exif)
    images.write(images.read(tmp_path / "in.jpg"), tmp_path / f"out{ending}", 95)
    with Image.open(tmp_path / f"out{ending}") as back:
        found = back.getexif()
        assert found[ExifTags.Base.Artist] == "somebody"
        if ending != ".tif":
            assert found.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime] == 0.5


def test_orientation_is_pillows(tmp_path: Path) -> None:
    from PIL import ImageOps

    pixels = noise(3, 5, 3)
    for orientation in range(1, 9):
        image = Image.fromarray(pixels)
        image.getexif()[ExifTags.Base.Orientation] = orientation
        expected = np.asarray(ImageOps.exif_transpose(image))
        assert (images._turned(pixels, orientation) == expected).all(), orientation


def test_palettes_with_a_clear_colour(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0] + [0] * 750)
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=1)
    picture = images.read(tmp_path / "a.png")
    assert picture.alpha is not None
    assert picture.alpha.tolist() == [[255, 0]]
    assert picture.colour[0, 0].tolist() == [255, 0, 0]


# --- broken and hostile --------------------------------------------------------------------------


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = sixteen._chunk(b"IHDR", header) + sixteen._chunk(b"IDAT", zlib.compress(b"\0" * 9))
    return sixteen.PNG_SIGNATURE + body + sixteen._chunk(b"IEND", b"")


def truncated(deep: bool) -> bytes:
    pixels = noise(64, 64, 3, dtype=np.uint16 if deep else np.uint8)
    data = cv2.imencode(".png", pixels)[1].tobytes()
    return data[: len(data) // 2]


def frames(kind: str, count: int) -> bytes:
    import io

    stack = [Image.fromarray(noise(8, 8, 3)) for _ in range(count)]
    file = io.BytesIO()
    stack[0].save(file, kind, save_all=True, append_images=stack[1:])
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.png", truncated(False), "is damaged"),
        ("a.png", truncated(True), "is damaged"),
        ("a.png", png_claiming(50_000, 50_000), "pictures of more than 67108864 pixels"),
        ("a.png", png_claiming(9_000, 9_000), "9000x9000: pictures of more than 67108864 pixels"),
        ("a.gif", frames("GIF", 3), "has several frames: save each one"),
        ("a.webp", frames("WEBP", 2), "has several frames: save each one"),
        ("a.png", frames("PNG", 2), "has several frames: save each one"),
        ("a.tif", frames("TIFF", 2), "has several pages: save each one"),
        ("a.png", b"once upon a time\n", "is no picture that can be read"),
        ("a.png", b"", "is no picture that can be read"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_line(
    tmp_path: Path, name: str, data: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(data)
    if "more than" in message:
        monkeypatch.setattr(Image.Image, "load", None)  # nothing may be decoded
    with pytest.raises(FileError, match=message) as caught:
        images.read(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_cmyk_is_refused(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8)).save(tmp_path / "a.jpg")
    with pytest.raises(FileError, match="is CMYK: save it as RGB or grey first"):
        images.read(tmp_path / "a.jpg")


def test_folders_and_missing_files(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no.png"):
        with pytest.raises(FileError, match="is not there, or is not a file"):
            images.read(path)


def test_damaged_exif_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\1\0\0\0\6"
    Image.fromarray(noise(8, 6, 3)).save(tmp_path / "a.jpg", exif=data)
    with caplog.at_level(logging.WARNING):
        assert images.read(tmp_path / "a.jpg").size in ((6, 8), (8, 6))


@pytest.mark.parametrize(
    ("picture", "name", "message"),
    [
        (Picture(noise(2, 2), np.zeros((2, 2), np.uint8)), "a.jpg", "JPEG holds no transparency"),
        (Picture(noise(2, 2), np.zeros((2, 2), np.uint8)), "a.bmp", "BMP holds no transparency"),
        (Picture(np.zeros((1, 16384), np.uint8)), "a.webp", "WEBP ends at 16383: --format png"),
        (Picture(np.zeros((65501, 1), np.uint8)), "a.jpg", "JPEG ends at 65500"),
    ],
)
def test_what_a_format_cannot_hold_is_said(
    tmp_path: Path, picture: Picture, name: str, message: str
) -> None:
    with pytest.raises(FileError, match=message):
        images.write(picture, tmp_path / name, 95)
    assert not list(tmp_path.iterdir())


def test_opaque_alpha_is_no_transparency(tmp_path: Path) -> None:
    images.write(Picture(noise(2, 2), np.full((2, 2), 255, np.uint8)), tmp_path / "a.jpg", 95)
    assert images.read(tmp_path / "a.jpg").grey


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"before")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FileError, match=r"cannot write .*a\.png: No space left on device"):
        images.write(Picture(noise(2, 2)), tmp_path / "a.png", 95)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"before"
