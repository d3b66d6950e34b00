"""The table of models: names, choice of the default, errors, import cost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import engines
from engines import errors, load, zoo


def test_every_row_names_files_that_are_there_and_whole() -> None:
    assert [row.id for row in zoo.ZOO][:3] == ["default-x2", "default-x3", "default-x4"]
    assert len(zoo.SHIPPED) == 3
    quality = [zoo.spec(f"quality-x{scale}") for scale in (2, 3, 4)]
    for row in (*zoo.SHIPPED, *quality):
        zoo.verify(row)
        assert row.scale == int(row.id[-1])
        assert load.read(load.locate(row.id)).module is not None


def test_shipped_files_stay_small() -> None:
    total = sum(file.stat().st_size for file in load.weights_folder().iterdir())
    assert 10_000 < total < 8_000_000


def test_spec_finds_a_model_by_name() -> None:
    assert zoo.spec("default-x3").scale == 3


def test_names_from_elsewhere_are_understood() -> None:
    assert zoo.spec("RealESRGAN_x4plus").id == "realesrgan-x4plus"
    assert zoo.spec("RealESRGAN_x4plus_anime_6B").id == "realesrgan-x4plus-anime-6b"
    assert zoo.spec("realesr-animevideov3").scale == 4


def test_rows_are_complete() -> None:
    assert len({row.id for row in zoo.ZOO}) == len(zoo.ZOO)
    for row in zoo.ZOO:
        assert (row.receptive_field > 0) != row.offline
        assert row.licence
        assert not row.licence.startswith(("GPL", "AGPL"))
        for source in (*row.sources, *([row.blend] if row.blend else []), *row.beside):
            assert len(source.sha256) == 64 or (row.offline and not source.sha256)
            assert (source.kind == "package") == bool(source.package)


def test_an_unknown_name_is_a_usage_error_with_a_suggestion() -> None:
    with pytest.raises(errors.UnknownModel, match="did you mean 'default-x2'") as caught:
        zoo.spec("defualt-x2")
    assert caught.value.exit_code == 2


def test_a_far_off_name_gets_the_list_and_no_suggestion() -> None:
    with pytest.raises(errors.UnknownModel, match="default-x4") as caught:
        zoo.spec("qqqq")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "output", "scale"),
    [
        ((480, 270), (480, 270), 2),
        ((480, 270), (960, 540), 2),
        ((480, 270), (961, 540), 3),
        ((640, 360), (1920, 1080), 3),
        ((480, 270), (1920, 1080), 4),
        ((320, 200), (1920, 1080), 4),
        ((480, 270), (600, 1000), 4),
    ],
)
def test_default_takes_the_smallest_scale_that_reaches_the_output(
    source: tuple[int, int], output: tuple[int, int], scale: int
) -> None:
    assert zoo.default_for(source, output).scale == scale


def test_default_refuses_an_empty_size() -> None:
    with pytest.raises(ValueError, match="positive"):
        zoo.default_for((0, 270), (960, 540))


def test_errors_say_how_the_program_ends() -> None:
    kinds = (errors.EngineMissing, errors.EngineMismatch, errors.BuildFailed, errors.ModelInvalid)
    assert {kind.exit_code for kind in kinds} == {5}


def test_importing_the_zoo_imports_nothing_heavy() -> None:
    code = (
        "import sys, engines.zoo, engines.load; "
        "print([m for m in ('torch', 'onnx', 'openvino', 'numpy', 'cv2', 'safetensors') "
        "if m in sys.modules])"
    )
    root = Path(engines.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout.strip() == "[]"
