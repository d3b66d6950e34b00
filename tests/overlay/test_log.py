"""Logging: set up once, however often it is asked for."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from overlay import log


def ours() -> list[logging.Handler]:
    return [h for h in logging.getLogger().handlers if h.get_name() == log.HANDLER]


def test_a_second_set_up_takes_the_place_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(log, "log_path", lambda: tmp_path / "state" / "overlay.log")
    log.set_up()
    first = ours()
    log.set_up()
    assert len(ours()) == len(first) == 2
    assert not set(ours()) & set(first)
    logging.getLogger("overlay.test").error("once")
    assert capsys.readouterr().err.count("once") == 1


def test_no_handler_was_left_by_the_test_before() -> None:
    assert ours() == []
