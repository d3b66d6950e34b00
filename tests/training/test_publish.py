"""What would be published: layout, licences, cards, and that nothing leaves unasked."""

from __future__ import annotations

import argparse
import hashlib
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from training import publish
from training.dataset import HEIGHTS, SIZES
from training.errors import DataError
from training.publish.cards import dataset_card, kaggle_metadata
from training.publish.dataset import pack, plan, write_archive
from training.publish.licences import hub_names, is_free, kaggle_name

FRAMES = [
    ("train", "freedoom_map01_0000", "BSD-3-Clause (Freedoom)"),
    ("train", "freedoom_map01_0001", "BSD-3-Clause (Freedoom)"),
    ("test", "freedoom_map02_0000", "BSD-3-Clause (Freedoom)"),
    ("train", "openarena_oa-dm1_0000", "GPL-2.0-or-later (OpenArena)"),
    ("train", "mine_day1_0000", "unknown: the user's own"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    folder = root / "GameEngineData"
    lines = []
    for number, (split, name, licence) in enumerate(FRAMES):
        sums = {}
        for height in HEIGHTS:
            path = folder / f"{height}p" / split / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            width, _ = SIZES[height]
            cv2.imwrite(str(path), np.full((height, width, 3), number, np.uint8))
            sums[f"{height}p"] = hashlib.sha256(path.read_bytes()).hexdigest()
        entry = {"name": name, "split": split, "licence": licence, "sha256": sums}
        lines.append(json.dumps(entry | {"versions": {"engine": "1.2"}}))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return root


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    publish.add_command(parser.add_subparsers())
    parsed = parser.parse_args(["publish", *map(str, arguments)])
    code: int = parsed.data_run(parsed)
    return code


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")
            if p.is_file()}  # fmt: skip


# --- licences ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("licence", "free"),
    [
        ("BSD-3-Clause (Freedoom)", True),
        ("GPL-2.0-or-later (OpenArena)", True),
        ("GPL-3.0+ and CC-BY-SA-4.0, CC0-1.0 (per track)", True),
        ("Apache-2.0 (made by this project)", True),
        ("CC-BY-NC-SA-4.0", False),
        ("CC-BY-ND-4.0", False),
        ("GPL-2.0 AND Proprietary", False),
        ("unknown: the user's own", False),
        ("(MIT)", False),
        ("CC-BY-4.0 (non-commercial)", False),
        ("GPL-2.0-or-later (code; textures: except where stated)", False),
        ("", False),
    ],
)
def test_only_licences_that_say_so_are_passed_on(licence: str, free: bool) -> None:
    assert is_free(licence) is free


def test_licences_by_other_names() -> None:
    assert hub_names(["GPL-2.0-or-later (x)", "BSD-3-Clause"]) == ["bsd-3-clause", "gpl-2.0"]
    assert hub_names(["odd"]) == ["other"]
    assert [kaggle_name(x) for x in (["GPL-2.0"], ["MIT"], ["GPL-2.0", "CC0-1.0"])] == [
        "GPL-2", "other", "other",
    ]  # fmt: skip


# --- data ----------------------------------------------------------------------------------------


def test_the_layout_is_srgds(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--to", "huggingface", "--root", root, "--out", tmp_path / "out") == 0
    archives = [
        *(f"data/GameEngineData/freedoom/test-{h}p.tar.gz" for h in HEIGHTS),
        *(f"data/GameEngineData/freedoom/train-{h}p.tar.gz" for h in HEIGHTS),
        *(f"data/GameEngineData/openarena/train-{h}p.tar.gz" for h in HEIGHTS),
    ]
    written = tree(tmp_path / "out")
    assert sorted(written) == sorted([*archives, "data/GameEngineData/manifest.jsonl", "README.md"])
    with tarfile.open(tmp_path / "out" / "data/GameEngineData/freedoom/train-270p.tar.gz") as tar:
        members = tar.getmembers()
        assert [(m.name, m.mtime, m.uid, m.uname, m.mode) for m in members] == [
            (f"map01_{n:04}.png", 0, 0, "", 0o644) for n in range(2)
        ]
        data = tar.extractfile(members[1])
        assert data is not None
        source = root / "GameEngineData" / "270p" / "train" / "freedoom_map01_0001.png"
        assert data.read() == source.read_bytes()
    manifest = written["data/GameEngineData/manifest.jsonl"].decode().splitlines()
    names = [json.loads(line)["name"] for line in manifest]
    assert names == sorted(name for _, name, licence in FRAMES if is_free(licence))
    out = capsys.readouterr().out
    assert "left out: mine: its licence, unknown: the user's own, is not one to pass on" in out
    assert "nothing was uploaded" in out


def test_equal_frames_give_equal_bytes(root: Path, tmp_path: Path) -> None:
    pack(plan(root), tmp_path / "a")
    for path in root.rglob("*.png"):
        path.touch()
    pack(plan(root), tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b") != {}


def test_all_includes_what_is_not_free(root: Path) -> None:
    assert sorted(plan(root).games) == ["freedoom", "openarena"]
    whole = plan(root, include_all=True)
    assert sorted(whole.games) == ["freedoom", "mine", "openarena"]
    assert whole.left_out == {}
    assert "other" in dataset_card(whole).splitlines()[2]


def test_the_card(root: Path) -> None:
    yaml = pytest.importorskip("yaml")
    chosen = plan(root)
    _, front, text = dataset_card(chosen).split("---\n", 2)
    data = yaml.safe_load(front)
    assert data["license"] == ["bsd-3-clause", "gpl-2.0"]
    assert data["task_categories"] == ["image-to-image"]
    assert data["size_categories"] == ["n<1K"]
    assert "| freedoom | BSD-3-Clause (Freedoom) | engine 1.2 |" in text
    sizes = ", ".join(sorted(f"GameEngineData/{height}p" for height in HEIGHTS))
    assert f"| freedoom | train | 2 | 1 | {sizes} |" in text
    assert "| freedoom | test | 1 | 1 | " in text
    assert "Left out, as their licence does not let frames be passed on: mine (unknown" in text
    assert "## Intended use" in text
    assert "**GameEngineData**: every game" in text
    assert "**DownscaleData**" not in text


def test_kaggles_metadata(root: Path, tmp_path: Path) -> None:
    assert (
        run("--to", "kaggle", "--root", root, "--out", tmp_path, "--repository", "me/frames") == 0
    )
    data = json.loads((tmp_path / "dataset-metadata.json").read_text())
    assert (data["id"], data["licenses"]) == ("me/frames", [{"name": "other"}])
    assert 6 <= len(data["title"]) <= 50
    assert 20 <= len(data["subtitle"]) <= 80
    assert data["description"].startswith("# Game frames")
    assert json.loads(kaggle_metadata(plan(root), "a/bcd"))["id"] == "a/bcd"


def test_bad_frames_are_left_out(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    for path in root.rglob("*.*"):
        if path.is_file():
            target = copy / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    (copy / "GameEngineData" / "360p" / "train" / "freedoom_map01_0001.png").unlink()
    chosen = plan(copy)
    assert [problem.name for problem in chosen.problems] == ["freedoom_map01_0001"]
    assert chosen.games["freedoom"].frames("train") == 1
    assert "freedoom_map01_0001" not in chosen.entries["GameEngineData"]


def test_a_leaking_sequence_is_left_out(root: Path, tmp_path: Path) -> None:
    for split, name in (("train", FRAMES[0][1]), ("val", "freedoom_map01_0005"),
                        ("test", FRAMES[2][1])):  # fmt: skip
        target = tmp_path / "GameEngineData" / "270p" / split / f"{name}.png"
        target.parent.mkdir(parents=True)
        source = root / "GameEngineData" / "270p" / "train" / f"{FRAMES[0][1]}.png"
        target.write_bytes(source.read_bytes())
    chosen = plan(tmp_path, include_all=True)
    assert [problem.name for problem in chosen.problems] == ["freedoom_map01"]
    assert [split for _, split, _ in chosen.games["freedoom"].archives] == ["test"]


def test_the_card_names_the_presets(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "DownscaleData"
    name = FRAMES[0][1]
    for height in (270, 1080):
        source = root / "GameEngineData" / f"{height}p" / "train" / f"{name}.png"
        target = folder / f"{height}p" / "train" / source.name
        target.parent.mkdir(parents=True)
        target.write_bytes(source.read_bytes())
    entry = {"name": name, "licence": "MIT", "degraded": {"270p": {"recipe": {"preset": "render"}}}}
    (folder / "manifest.jsonl").write_text(json.dumps(entry))
    assert "name (presets render)." in dataset_card(plan(tmp_path))
    (folder / "manifest.jsonl").write_text(json.dumps(entry | {"degraded": {"270p": 3}}))
    assert "name. The recipes" in dataset_card(plan(tmp_path)).replace("\n", " ")


def test_what_an_earlier_run_left_is_not_uploaded(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--to", "huggingface", "--root", root, "--out", out)
    assert run(*arguments, "--all") == 0
    assert (out / "data/GameEngineData/mine").is_dir()
    with pytest.raises(DataError, match=r"mine.*is of another run; delete"):
        run(*arguments)
    with pytest.raises(DataError, match="is of another run"):
        run("--to", "huggingface", "--model", "default-x2", "--out", out)
    assert run(*arguments, "--all") == 0


def test_what_was_not_checked_is_not_packed(root: Path, tmp_path: Path) -> None:
    name = f"{FRAMES[0][1]}.png"
    folder = tmp_path / "GameEngineData"
    for size in ("270p", "1080p", "old-1080p"):
        target = folder / size / "train" / name
        target.parent.mkdir(parents=True)
        target.write_bytes((root / "GameEngineData" / size[-5:].lstrip("-") / "train" / name)
                           .read_bytes())  # fmt: skip
    entry = {"name": FRAMES[0][1], "licence": "MIT", "sha256": {"270p": "0" * 64}}
    (folder / "manifest.jsonl").write_text(json.dumps(entry))
    chosen = plan(tmp_path)
    assert sorted(size for _, _, size in chosen.games["freedoom"].archives) == ["1080p", "270p"]
    with pytest.raises(DataError, match=r"270p.*is not the one in manifest\.jsonl"):
        pack(chosen, tmp_path / "out")


def test_long_names_are_packed(root: Path, tmp_path: Path) -> None:
    name = f"freedoom_{'long' * 40}_0000.png"
    source = root / "GameEngineData" / "270p" / "train" / f"{FRAMES[0][1]}.png"
    (tmp_path / name).write_bytes(source.read_bytes())
    write_archive(tmp_path / "a.tar.gz", [tmp_path / name], {})
    with tarfile.open(tmp_path / "a.tar.gz") as tar:
        assert tar.getnames() == [name.partition("_")[2]]


def test_no_game_may_be_passed_on(root: Path, tmp_path: Path) -> None:
    (tmp_path / "GameEngineData" / "270p" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="no frames in"):
        plan(tmp_path)
    for path in root.glob("GameEngineData/*p/train/mine_*.png"):
        target = tmp_path / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=r"no game's licence .*mine: unknown.*--all"):
        plan(tmp_path)


# --- a model -------------------------------------------------------------------------------------


def test_a_shipped_models_folder(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    import yaml
    from safetensors.torch import load_file

    from engines import load

    metrics = tmp_path / "report.json"
    rows = [{"model": "default-x4", "psnr": 33.74456, "n": 48, "note": "x"}, {"model": "bicubic"}]
    metrics.write_text(json.dumps({"results": rows}))
    out = tmp_path / "out"
    arguments = ("--to", "huggingface", "--model", "default-x4", "--metrics", metrics)
    assert run(*arguments, "--root", root, "--out", out) == 0
    assert sorted(tree(out)) == [
        "README.md", "config.json", "default-x4.onnx", "default-x4.safetensors",
    ]  # fmt: skip
    shipped = load.weights_folder() / "default-x4.safetensors"
    assert (out / "default-x4.safetensors").read_bytes() == shipped.read_bytes()
    card = (out / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---\n", 2)[1])
    assert (front["license"], front["pipeline_tag"]) == ("apache-2.0", "image-to-image")
    parameters = sum(tensor.numel() for tensor in load_file(shipped).values())
    assert f"| Parameters | {parameters:,} |" in card
    assert "| model | psnr | n |\n| --- | --- | --- |\n| default-x4 | 33.745 | 48 |" in card
    assert "- openarena: 1 frames of 1 sequences; GPL-2.0-or-later (OpenArena)" in card
    assert "### Where the weights come from" in card
    assert hashlib.sha256(shipped.read_bytes()).hexdigest() in card


def test_a_users_model_needs_a_licence(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from engines.archs.compact import Compact

    mine, out = tmp_path / "My Net.safetensors", tmp_path / "out"
    save_file(Compact(16, 1, 2).state_dict(), mine)
    with pytest.raises(DataError, match=r"licence of .* is not known; give it with --licence"):
        run("--to", "huggingface", "--model", mine, "--out", out)
    assert not out.exists()
    assert run("--to", "huggingface", "--model", mine, "--licence", "MIT", "--out", out) == 0
    assert (out / "My Net.safetensors").read_bytes() == mine.read_bytes()
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "Not measured." in card
    assert 'license: "mit"' in card
    assert str(tmp_path) not in card


def test_other_formats_become_safetensors(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from engines.archs.compact import Compact

    state = Compact(16, 1, 2).state_dict()
    torch.save(state, tmp_path / "net.pth")
    out = tmp_path / "out"
    arguments = ("--model", tmp_path / "net.pth", "--licence", "MIT", "--out", out)
    assert run("--to", "huggingface", *arguments) == 0
    found = load_file(out / "net.safetensors")
    assert len(found) == len(state)
    total = sum(tensor.numel() for tensor in state.values())
    assert sum(tensor.numel() for tensor in found.values()) == total
    assert f"| Parameters | {total:,} |" in (out / "README.md").read_text(encoding="utf-8")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(b"nothing")
    for reference in (tmp_path / "net.pth", "default-x9"):
        with pytest.raises(DataError, match=r"net\.pth|default-x9"):
            run("--to", "huggingface", "--model", reference, "--out", tmp_path / "out")


@pytest.mark.parametrize("text", ["{", "[]", '{"results": [{"psnr": 1}]}', '{"results": 3}'])
def test_a_report_that_is_none(tmp_path: Path, text: str) -> None:
    report = tmp_path / "report.json"
    report.write_text(text)
    with pytest.raises(DataError, match="is no quality report"):
        run("--to", "huggingface", "--model", "default-x2", "--metrics", report,
            "--out", tmp_path / "out")  # fmt: skip


# --- the upload ----------------------------------------------------------------------------------


def test_nothing_is_uploaded_without_a_place(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="--upload needs --repository"):
        run("--to", "huggingface", "--root", root, "--out", out, "--upload")
    with pytest.raises(DataError, match="no repository; give OWNER/NAME"):
        run("--to", "huggingface", "--out", out, "--upload", "--repository", "https://x/y")
    with pytest.raises(DataError, match="kaggle datasets create"):
        run("--to", "kaggle", "--out", out, "--upload", "--repository", "me/frames")
    with pytest.raises(DataError, match="models go to Hugging Face"):
        run("--to", "kaggle", "--out", out, "--model", "default-x2")
    assert not out.exists()


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="holds something else"):
        run("--to", "huggingface", "--model", "default-x2", "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_upload_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"cannot upload .* to me/net: .*refused") as caught:
        run("--to", "huggingface", "--model", "default-x2", "--out", out, "--upload",
            "--repository", "me/net")  # fmt: skip
    assert "\n" not in str(caught.value)
    assert (out / "default-x2.safetensors").is_file()
