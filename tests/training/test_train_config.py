"""Configurations: what is shipped reads, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from training import config
from training.config import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "training" / "configs").glob("*.toml"))
PLAIN = """
name = "a"
[net]
architecture = "luma"
scale = 2
expand = 8
[train]
steps = 10
[loss]
mse = 1
"""


def read(tmp_path: Path, text: str = PLAIN, *changes: str) -> config.Config:
    path = tmp_path / "a.toml"
    path.write_text(text)
    return config.read(path, changes)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_read_and_are_named_as_their_nets(path: Path) -> None:
    settings = config.read(path)
    assert settings.name.startswith(path.stem.split("-")[0])
    assert sum(settings.lengths()) == settings.train.steps
    assert settings.validate.split == "val"
    assert all("freedoom" not in source.games for source in settings.data.sources)
    assert path.stem == "smoke" or all(source.games for source in settings.data.sources)


def test_there_are_shipped_configurations() -> None:
    assert len(CONFIGS) >= 9


def test_values_are_read_and_changed(tmp_path: Path) -> None:
    settings = read(tmp_path, PLAIN, "train.steps=20", "net.start=some-name", "loss.l1=0.5")
    assert settings.train.steps == 20
    assert settings.net.start == "some-name"
    assert (settings.loss.mse, settings.loss.l1) == (1.0, 0.5)
    assert settings.train.batch == 8
    staged = read(tmp_path, PLAIN + "[[stages]]\n[[stages]]\n", "stages.1.rate=0.5")
    assert [stage.rate for stage in staged.stages] == [1e-3, 0.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.stepz=3", r"unknown key 'train\.stepz'; did you mean 'steps'\?"),
        ("nett.scale=3", r"unknown key 'nett'; did you mean 'net'\?"),
        ("train.steps=many", r"train\.steps must be a whole number, not 'many'"),
        ("train.steps=1.5", r"train\.steps must be a whole number, not 1\.5"),
        ("train.steps=true", r"train\.steps must be a whole number, not True"),
        ("train.steps=0", r"train\.steps must be at least 1, not 0"),
        ("net.scale=5", r"net\.scale must be from 2 to 4, not 5"),
        ("net.architecture=unet", r"net\.architecture must be one of luma, compact.*'unet'"),
        ("net.architecture=[1]", r"net\.architecture must be one of"),
        ("net.expand=0", r"net\.expand must be at least 1 for luma"),
        ("net.edges=true", r"net\.edges needs"),
        ("loss.mse=nan", r"loss\.mse must be finite, not nan"),
        ("loss.mse=-1", r"loss\.mse must be at least 0, not -1"),
        ("loss.mse=0", r"loss has no term"),
        ("loss.teacher=1", r"loss\.teacher and teacher\.model belong together"),
        ("name=../a", r"name must be a plain file name"),
        ("name=..", r"name must be a plain file name"),
        ("validate.side=16", r"validate\.side must be from 24 to 1024, not 16"),
        ("train.steps=" + "[" * 20_000, r"train\.steps must be a whole number"),
        ("validate.split=test", r"validate\.split must be one of train, val, not 'test'"),
        ("data.sources=[]", r"data\.sources must not be empty"),
        ("data.sources=[{share=1}, {}]", r"data\.sources\.share must be given for all"),
        ("data.sources=[{heights=[[270, 1080]]}]", r"270 to 1080 is not net\.scale = 2"),
        ("data.sources=[{heights=[[270]]}]", r"data\.sources\.heights must be pairs"),
        ("stages=[{shares=[1.0, 2.0]}]", r"stages\.shares has 2 numbers for 1 data\.sources"),
        ("stages=[{milestones=[2.0]}]", r"stages\.milestones must lie between"),
        ("stages=7", r"stages must be a list, not 7"),
        ("net=7", r"net must be a table, not 7"),
        ("steps", r"--set 'steps' is not of the form"),
        ("train.steps.more=1", r"--set 'train\.steps\.more=1': there is no table"),
        ("loss.gan=1", None),
        ("data.crop=9", None),
    ],
)
def test_errors_name_the_key(tmp_path: Path, change: str, message: str | None) -> None:
    if message is None:
        read(tmp_path, PLAIN, change)
        return
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, PLAIN, change)
    assert "\n" not in str(caught.value)


def test_the_size_of_crops_suits_the_discriminator(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"multiple of 8 for loss\.gan, not 18"):
        read(tmp_path, PLAIN, "loss.gan=1", "data.crop=9")


def test_missing_keys_and_files_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.steps is missing"):
        read(tmp_path, PLAIN.replace("steps = 10", ""))
    with pytest.raises(ConfigError, match="net is missing"):
        read(tmp_path, 'name = "a"\ntrain = { steps = 1 }\nloss = { l1 = 1 }')
    with pytest.raises(ConfigError, match="is no TOML"):
        read(tmp_path, "name =")
    with pytest.raises(ConfigError, match="is no TOML"):
        read(tmp_path, "a = " + "[" * 20_000)
    with pytest.raises(ConfigError, match="cannot read"):
        config.read(tmp_path / "none.toml")


def test_stages_share_the_steps(tmp_path: Path) -> None:
    staged = PLAIN + "[[stages]]\npart = 2\n[[stages]]\npart = 1\n"
    assert read(tmp_path, staged, "train.steps=100").lengths() == [67, 33]
