import logging
import os
import re
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from overlay.errors import OverlayError
from overlay.present import screenshot
from overlay.present.screenshot import ScreenshotWriter, save_png


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 4), np.uint8)


def test_saves_pairs(tmp_path):
    source, result = picture(1), np.zeros((40, 60, 4), np.uint8)
    with ScreenshotWriter(tmp_path / "new" / "folder") as writer:
        kept = source.copy()
        path = writer.save(source, result)
        source[:] = 0  # buffers are used again at once
    names = sorted(file.name for file in (tmp_path / "new" / "folder").iterdir())
    assert len(names) == 2
    pattern = r"overlay-\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{3}-(result|source)\.png"
    assert all(re.fullmatch(pattern, name) for name in names)
    assert path.name == names[0]
    np.testing.assert_array_equal(cv2.imread(str(path)), result[..., :3])
    saved = cv2.imread(str(path.with_name(names[1])))
    np.testing.assert_array_equal(saved, kept[..., :3])


def test_writing_is_on_another_thread(tmp_path, monkeypatch):
    threads = []
    monkeypatch.setattr(screenshot, "save_png", lambda *_: threads.append(threading.get_ident()))
    with ScreenshotWriter(tmp_path) as writer:
        writer.save(picture(), picture())
    assert len(threads) == 2
    assert threading.get_ident() not in threads


def test_a_folder_that_cannot_be_written_is_one_line_a_picture(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with caplog.at_level(logging.INFO), ScreenshotWriter(blocked) as writer:
        writer.save(picture(), picture())
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert all(str(blocked) in message and "choose a folder" in message for message in messages)


def test_more_than_can_be_written_is_skipped_with_a_line(tmp_path, monkeypatch, caplog):
    go = threading.Event()
    written = []

    def slow(path, pixels):
        go.wait(10)
        written.append(path)

    monkeypatch.setattr(screenshot, "save_png", slow)
    with ScreenshotWriter(tmp_path) as writer:
        for _ in range(10):
            writer.save(picture(), picture())
        go.set()
    assert "skipped" in caplog.text
    assert 6 <= len(written) <= 10
    assert len(written) % 2 == 0


def test_close_twice(tmp_path):
    writer = ScreenshotWriter(tmp_path)
    writer.close()
    writer.close()


def test_png_replaces_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_png(path, picture(1))
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OverlayError, match="No space left"):
        save_png(path, picture(2))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]  # nothing unfinished stays


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_png_has_the_permissions_of_an_ordinary_file(tmp_path):
    save_png(tmp_path / "a.png", picture())
    (tmp_path / "b").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3), (5, 4, 4)])
def test_png_of_any_picture(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    save_png(tmp_path / "a.png", pixels)
    back = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(back, pixels[..., :3] if len(shape) == 3 else pixels)
