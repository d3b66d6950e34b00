"""Collecting: written whole, listed, resumed, judged; with real games where they are installed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from training import cli
from training.collect import RUNNERS, freedoom, open_runner
from training.collect.align import Limits
from training.collect.collect import SMALL, Outcome, Task, collect, summary, tasks_of
from training.collect.freedoom import SAMPLES, Freedoom
from training.collect.openarena import video_script
from training.collect.raycaster import Raycaster, Scene
from training.collect.runner import (
    CollectError,
    Episode,
    Frame,
    Pixels,
    Runner,
    Size,
    dense_of,
)
from training.collect.splits import SPLITS, split_of
from training.collect.store import Store
from training.dataset import check, find_pairs, read_manifest, read_png
from training.errors import DataError

SIZES: tuple[Size, ...] = ((480, 270), (960, 540))


@cache
def drawn(seed: int, size: Size) -> Pixels:
    """Draw a scene of the ray caster once for all tests."""
    return Scene(seed).render(*size)


class Fake(Runner):
    """Scenes of the ray caster at two sizes; counts how often it drew, and can be told to fail.

    Args:
        late: the larger size shows the frame before.
        black: all frames are black.
        fails_at: raise before this frame of the larger size.
    """

    name = "fake"
    licence = "CC0"
    sizes = SIZES
    limits = Limits(shift_px=0.5, fit_px=0.5, psnr_db=22, frame_psnr_db=18)

    def __init__(
        self, *, late: bool = False, black: bool = False, fails_at: int | None = None
    ) -> None:
        self.late, self.black, self.fails_at, self.drawn = late, black, fails_at, 0

    def episodes(self, frames: int | None = None) -> list[Episode]:
        return [Episode("fake", "one", "one", "val", frames or 3, 3, {"tick": "scene"})]

    def versions(self) -> dict[str, str]:
        return {"fake": "1"}

    def render(self, episode: Episode, size: Size) -> Generator[Frame]:
        assert episode.frames is not None
        for number in range(episode.frames):
            self.drawn += 1
            if size == SIZES[1] and number == self.fails_at:
                raise CollectError("the game crashed")
            pixels = drawn(max(0, number - (self.late and size == SIZES[1])), size)
            yield Frame(number, number * 10, pixels // (255 if self.black else 1))


def run(root: Path, runner: Fake, frames: int | None = None, **options: bool) -> Outcome:
    (episode,) = runner.episodes(frames)
    return collect(Task(runner, episode), Store(root), **options)


def files(root: Path) -> list[str]:
    """All files but the bookkeeping, by path."""
    folder = root / "GameEngineData"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def test_a_sequence_is_written_and_listed(tmp_path: Path) -> None:
    outcome = run(tmp_path, Fake())
    assert (outcome.what, outcome.frames) == ("kept", 3)
    names = [f"fake_one_{number:04d}.png" for number in range(3)]
    assert files(tmp_path) == [f"{h}/val/{n}" for h in ("270p", "540p") for n in names]
    entries, problems = read_manifest(tmp_path / "GameEngineData")
    assert not problems
    entry = entries["fake_one_0002"]
    assert (entry["split"], entry["tick"], entry["licence"]) == ("val", 20, "CC0")
    assert entry["versions"] == {"fake": "1"}
    assert entry["alignment"]["270p->540p"]["whole_px"] == [0, 0]
    assert not check(tmp_path, "GameEngineData", thorough=True)
    pairs, problems = find_pairs(tmp_path, split="val", low=270, high=540)
    assert (len(pairs), problems) == (3, [])
    assert (read_png(pairs[2].low) == Scene(2).render(480, 270)).all()


def test_what_is_there_is_not_drawn_again(tmp_path: Path) -> None:
    run(tmp_path, Fake())
    again = Fake()
    assert run(tmp_path, again).what == "there"
    assert run(tmp_path, again, frames=2).what == "there"
    assert again.drawn == 0
    assert run(tmp_path, again, frames=4).what == "kept"
    assert again.drawn > 0


@pytest.mark.parametrize("harm", ["gone", "changed"])
def test_what_was_harmed_is_drawn_again(tmp_path: Path, harm: str) -> None:
    run(tmp_path, Fake())
    path = tmp_path / "GameEngineData/270p/val/fake_one_0001.png"
    before = path.read_bytes()
    path.unlink() if harm == "gone" else path.write_bytes(before[:-1] + b"x")
    assert run(tmp_path, Fake()).what == "kept"
    assert path.read_bytes() == before


def test_a_failed_game_leaves_nothing_behind(tmp_path: Path) -> None:
    outcome = run(tmp_path, Fake(fails_at=1))
    assert (outcome.what, outcome.reason) == ("failed", "the game crashed")
    assert files(tmp_path) == []
    assert [p.name for p in (tmp_path / "GameEngineData").iterdir()] == [".fake_one.lock"]
    assert run(tmp_path, Fake()).what == "kept"


def test_files_of_a_killed_run_are_replaced(tmp_path: Path) -> None:
    stray = tmp_path / "GameEngineData/270p/train/fake_one_0099.png"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"half a picture")
    run(tmp_path, Fake())
    assert not stray.exists()


KILLED = """
import os, sys
from pathlib import Path
from training.collect import store
real, count = os.replace, iter(range(99))
def replace(source, target):
    if next(count) == int(sys.argv[2]):
        os._exit(9)
    real(source, target)
from tests.training.test_collect import Fake, run
run(Path(sys.argv[1]), Fake(), 2)
os.replace = replace
run(Path(sys.argv[1]), Fake(), 3)
"""


def test_a_killed_run_lists_nothing_that_is_not_whole(tmp_path: Path) -> None:
    """Killed while it puts a longer sequence in the place of a shorter one."""
    command = [sys.executable, "-c", KILLED, str(tmp_path), "3"]
    here = Path(__file__).parents[2]
    assert subprocess.run(command, cwd=here, check=False).returncode == 9
    assert files(tmp_path) != []
    assert read_manifest(tmp_path / "GameEngineData")[0] == {}
    drafts = list((tmp_path / "GameEngineData").glob(".draft-*"))
    assert drafts != []
    assert run(tmp_path, Fake(), 3).what == "kept"
    assert len(files(tmp_path)) == 6
    assert not any(draft.exists() for draft in drafts)


def test_two_do_not_make_the_same_sequence(tmp_path: Path) -> None:
    (episode,) = Fake().episodes()
    with Store(tmp_path).draft(episode) as draft:
        outcome = run(tmp_path, Fake())
        assert (outcome.what, outcome.frames) == ("failed", 0)
        assert "another process is collecting fake_one" in outcome.reason
        assert draft.folder.is_dir()
    assert run(tmp_path, Fake()).what == "kept"


def test_a_game_that_draws_nothing_failed(tmp_path: Path) -> None:
    class Dark(Fake):
        def render(self, episode: Episode, size: Size) -> Generator[Frame]:
            yield from ()

    outcome = run(tmp_path, Dark())
    assert (outcome.what, outcome.reason) == ("failed", "fake drew no frame of one")
    assert run(tmp_path, Fake(), 1).what == "kept"  # not noted as dropped


def test_absurd_lines_of_a_manifest_do_no_harm(tmp_path: Path) -> None:
    folder = tmp_path / "GameEngineData"
    folder.mkdir()
    lines = [
        "[" * 100_000,
        '{"name": "fake_one_0000", "game": "fake", "episode": "one", "sha256": 3}',
        '{"name": "x", "game": ["a"], "note": "\\ud800"}',
        '{"name": "\\u001b[31m"}',
        '{"name": "y", "note": "' + "y" * (1 << 20) + '"}',
    ]
    for name in ("manifest.jsonl", "dropped.jsonl"):
        (folder / name).write_text("\n".join(lines))
    frames, problems = read_manifest(folder)
    assert sorted(frames) == ["fake_one_0000", "x"]
    assert [problem.what.split()[1] for problem in problems] == ["1", "4", "5"]
    store = Store(tmp_path)
    (episode,) = Fake().episodes(1)
    assert not store.complete(episode)
    store.drop(episode, "no reason", {})
    assert summary(store) == "['a'] ?: 1 frames"


def test_a_full_disk_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").write_text("a file")
    command = ["collect", "--games", "raycaster", "--out", str(tmp_path / "data")]
    assert cli.main(command) == 1
    assert "overlay data: error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("runner", "reason"),
    [(Fake(late=True), "desynchronised"), (Fake(black=True), "nothing to see")],
)
def test_bad_sequences_are_dropped_with_the_reason(
    tmp_path: Path, runner: Fake, reason: str
) -> None:
    outcome = run(tmp_path, runner)
    assert outcome.what == "dropped"
    assert files(tmp_path) == []
    (line,) = (tmp_path / "GameEngineData/dropped.jsonl").read_text().splitlines()
    dropped = json.loads(line)
    assert dropped["game"] == "fake"
    assert reason in dropped["reason"]
    drawn = runner.drawn
    assert run(tmp_path, runner).what == "dropped"
    assert runner.drawn == drawn
    runner.late = runner.black = False
    assert run(tmp_path, runner, retry=True).what == "kept"
    assert (tmp_path / "GameEngineData/dropped.jsonl").read_text() == ""


def test_no_map_is_in_two_splits_and_names_fit_into_files() -> None:
    for game, splits in SPLITS.items():
        names = [name for maps in splits.values() for name in maps]
        assert len(names) == len(set(names)), game
    for game in RUNNERS:
        episodes = open_runner(game).episodes()
        assert episodes
        assert len({episode.name for episode in episodes}) == len(episodes)
        for episode in episodes:
            assert "_" not in episode.game + episode.name
            assert episode.split == split_of(game, episode.map)
            assert json.loads(json.dumps(episode.settings)) == episode.settings
    assert set(SPLITS["freedoom"]) == set(SPLITS["minetest"]) == {"test"}


def test_unknown_names_are_refused() -> None:
    with pytest.raises(DataError, match=r"no game 'quake'.*openarena"):
        tasks_of(["quake"])
    with pytest.raises(DataError, match=r"no episode e1m1; there are .*map01"):
        tasks_of(["freedoom"], ["e1m1"])
    with pytest.raises(DataError, match=r"'de_dust2' is in no split.*splits\.py"):
        split_of("openarena", "de_dust2")


def test_the_command_lists_and_collects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["collect", "--list"]) == 0
    assert "openarena aggressor val\n" in capsys.readouterr().out
    monkeypatch.setattr(Raycaster, "sizes", SIZES)
    command = ["collect", "--games", "raycaster", "--frames", "2", "--out", str(tmp_path)]
    assert cli.main([*command, "--episodes", "seed1", "--jobs", "2"]) == 0
    assert "raycaster train: 2 frames" in capsys.readouterr().out
    assert cli.main(["collect", "--games", "quake"]) == 1
    assert "no game 'quake'" in capsys.readouterr().err


def test_help_needs_no_heavy_library() -> None:
    heavy = "{'torch', 'matplotlib', 'mlflow', 'tqdm', 'huggingface_hub'}"
    script = (
        "import sys; from training import cli\n"
        "try: cli.main(['--help'])\n"
        f"finally: assert not {heavy} & set(sys.modules)"
    )
    asked = [sys.executable, "-c", script]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    for command in ("collect", "from-folder", "from-video", "srgd", "degrade", "check"):
        assert f"\n    {command}" in said


def test_all_sizes_of_freedoom_are_sampled_at_one_place() -> None:
    across = np.arange(3840, dtype=np.float64)[None, :, None].repeat(16, 0)
    for step, first in SAMPLES.values():
        taken = across[first::step, first::step][0, :, 0]
        centres = (np.arange(len(taken)) + 0.5) * step - 0.5
        assert len(taken) == 3840 // step
        assert (centres - taken == 0.5).all()


def test_dense_sequences_are_of_no_map_that_is_trained_on() -> None:
    dense = {game: open_runner(game).dense() for game in RUNNERS}
    assert {game for game, episodes in dense.items() if episodes} == {"openarena", "freedoom"}
    for game, episodes in dense.items():
        usual = {episode.name: episode for episode in open_runner(game).episodes()}
        for episode in episodes:
            assert split_of(game, episode.map) == episode.split != "train"
            assert episode.name not in usual
            same = usual[episode.name.removesuffix("-dense")]
            assert (same.map, same.seed) == (episode.map, episode.seed)
            assert episode.settings["dense"] is True
            assert "dense" not in same.settings
            assert episode.frames == 24
    (one,) = (e for e in open_runner("openarena").dense(5) if e.name == "oa-dm6-dense")
    assert (one.frames, one.settings["fps"]) == (5, 20.0)


def test_a_video_ends_after_its_frames() -> None:
    assert video_script(None) == "video frames\n"
    words = video_script(44).split()
    assert words[:3] == ["video", "frames", "wait"]
    assert int(words[3]) >= 44
    assert words[4] == "quit"


@pytest.mark.parametrize("dense", [False, True])
def test_dense_and_single_frames_do_not_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dense: bool
) -> None:
    def episodes(self: Raycaster, frames: int | None = None) -> list[Episode]:
        return dense_of(Fake().episodes(), 2, {})

    monkeypatch.setattr(Raycaster, "dense", episodes)
    monkeypatch.setattr(Raycaster, "sizes", SIZES)
    monkeypatch.setattr(Raycaster, "render", lambda _, *how: Fake().render(*how))
    single = ["--frames", "2", "--episodes", "seed1"]
    first, second = ([*single], ["--dense"]) if dense else (["--dense"], [*single])
    command = ["collect", "--games", "raycaster", "--out", str(tmp_path)]
    assert cli.main([*command, *first]) == 0
    before = files(tmp_path)
    assert cli.main([*command, *second]) == 1
    refused = "has single frames" if dense else "has dense frames"
    assert refused in capsys.readouterr().err
    assert files(tmp_path) == before != []
    assert cli.main(["collect", "--small", "--dense", "--out", str(tmp_path)]) == 1


def test_dense_sequences_go_into_a_folder_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["collect", "--dense", "--list"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "openarena aggressor-dense val" in said
    assert "freedoom map01-dense test" in said
    assert not any(line.endswith("train") for line in said)
    monkeypatch.setattr(Raycaster, "dense", lambda self, frames=None: Fake().episodes(2))
    monkeypatch.setattr(Raycaster, "sizes", SIZES)
    monkeypatch.setattr(Raycaster, "render", lambda _, *how: Fake().render(*how))
    assert cli.main(["collect", "--dense", "--games", "raycaster"]) == 0
    assert len(files(tmp_path / "data" / "dense")) == 4


@pytest.mark.skipif(find_spec("vizdoom") is None, reason="pip install vizdoom==1.3.2")
def test_freedoom_walks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freedoom, "FAR", 30)  # six frames do not lead far
    runner = Freedoom()
    (episode,) = (e for e in runner.dense(6) if e.name == "map01-dense")
    outcome = collect(Task(runner, episode), Store(tmp_path))
    assert (outcome.what, outcome.frames) == ("kept", 6), outcome.reason
    pairs, problems = find_pairs(tmp_path, split="test", low=270, high=540)
    assert ([pair.frame for pair in pairs], problems) == ([*range(6)], [])
    shown = [read_png(pair.low).astype(float) for pair in pairs]
    steps = [np.abs(a - b).mean() for a, b in pairwise(shown)]
    assert min(steps) > 0
    assert max(steps) < np.abs(shown[0] - shown[5]).mean()  # nearer in time, nearer in looks


@pytest.mark.skipif(find_spec("vizdoom") is None, reason="pip install vizdoom==1.3.2")
def test_freedoom_draws_views_at_every_size(tmp_path: Path) -> None:
    (task,) = tasks_of(["freedoom"], ["map01"], 2)
    outcome = collect(task, Store(tmp_path))
    assert (outcome.what, outcome.frames) == ("kept", 2), outcome.reason
    for low, high in ((270, 1080), (540, 1080), (270, 540)):
        pairs, problems = find_pairs(tmp_path, split="test", low=low, high=high)
        assert (len(pairs), problems) == (2, [])
    (huge,) = task.runner.sizes
    for frame in task.runner.render(task.episode, huge):
        path = tmp_path / f"GameEngineData/270p/test/freedoom_map01_{frame.number:04d}.png"
        assert (read_png(path) == frame.pixels[3::8, 3::8]).all()
    assert not list(Path.cwd().glob("_vizdoom.ini"))


def test_the_small_collection_needs_nothing_but_pip() -> None:
    assert set(SMALL) == {"freedoom", "raycaster"}
    for game, (episodes, frames) in SMALL.items():
        assert len(tasks_of([game], episodes, frames)) == len(episodes)


def test_a_game_that_is_not_installed_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.collect.openarena.ENGINE", str(tmp_path / "ioquake3"))
    (task,) = tasks_of(["openarena"], ["oa-dm1"])
    outcome = collect(task, Store(tmp_path))
    assert outcome.what == "failed"
    assert "apt install openarena" in outcome.reason
