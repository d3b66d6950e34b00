"""Settings: layers, checks, suggestions."""

import argparse
from pathlib import Path

import pytest

from overlay.errors import SettingsError
from overlay.frame import Region, Size
from overlay.settings import Configuration, add_arguments


def load(tmp_path: Path, text: str = "", *argv: str) -> Configuration:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    path = tmp_path / "overlay.toml"
    path.write_text(text, encoding="utf-8")
    return Configuration.load(path, parser.parse_args(argv))


def test_the_command_line_beats_the_profile_beats_the_file(tmp_path: Path) -> None:
    text = 'model = "bicubic"\nhud = "off"\nfps-cap = 30\n[profile."doom"]\nmodel = "fsr1"\n'
    found = load(tmp_path, text + "scale = 2\n", "--hud", "full")
    assert found.settings("Freedoom").model == "fsr1"
    assert found.settings("Freedoom").scale == 2.0
    assert found.settings("Freedoom").hud == "full"
    assert found.settings("Minetest").model == "bicubic"
    assert found.settings("Minetest").scale is None
    assert found.settings("Minetest").fps_cap == 30.0


def test_values_are_parsed(tmp_path: Path) -> None:
    found = load(
        tmp_path, "", "--output", "1920x1080", "--region", "480x270+-10+20", "--rate", "max"
    ).settings("")
    assert found.output == Size(1920, 1080)
    assert found.region == Region(-10, 20, 480, 270)
    assert found.rate is None


def test_hotkeys_of_a_profile_add_to_those_of_the_file(tmp_path: Path) -> None:
    text = '[hotkeys]\nquit = "ctrl+q"\n[profile."doom".hotkeys]\nhud = "ctrl+h"\n'
    found = load(tmp_path, text)
    assert found.settings("doom").hotkeys == {"quit": "ctrl+q", "hud": "ctrl+h"}
    assert found.settings("other").hotkeys == {"quit": "ctrl+q"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('modle = "fsr1"', r"unknown option 'modle'; did you mean 'model'"),
        ('[profile."x"]\nscael = 2', r'profile "x": unknown option .scael.; did you mean .scale.'),
        ('[profile."("]\nscale = 2', "not a regular expression"),
        ('[profile."x"]\npid = 2', "pid chooses the window"),
        ('[profile."x"]\nwindow = "y"', "window chooses the window"),
        ('windwo = "y"', "did you mean 'window'"),
        ("profile = 3", "profiles are written"),
        ('output = "big"', r"output: 'big': expected WIDTHxHEIGHT"),
        ('output = "99999x1"', "from 1 to 16384"),
        ("scale = 99", "expected a number from 0.25 to 16"),
        ('scale = "wide"', "expected a number from 0.25 to 16"),
        ("scale = true", "is of the wrong type"),
        ("vsync = 1", "expected true or false"),
        ('present = "overr"', r"not one of over.*did you mean 'over'"),
        ("hotkeys = 3", "hotkeys are written as a table"),
        ("[hotkeys]\nquit = 3", "hotkeys are written as a table"),
        ("= broken", "is not valid TOML"),
    ],
)
def test_a_mistake_gets_one_clear_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_the_command_line_can_undo_a_switch_of_the_file(tmp_path: Path) -> None:
    assert load(tmp_path, "vsync = true").settings("").vsync
    assert not load(tmp_path, "vsync = true", "--no-vsync").settings("").vsync


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(SettingsError, match="cannot read the configuration"):
        Configuration.load(tmp_path / "none.toml", parser.parse_args([]))


def test_a_bad_command_line_is_refused_even_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="title"):
        load(tmp_path, "", "--window", "[")
