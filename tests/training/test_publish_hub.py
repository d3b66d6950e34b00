"""Uploading to Hugging Face by its own client, against a stand-in of the site on this machine."""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from engines import load, nets
from engines.archs.compact import Compact
from tests.hub import TOKEN, Hub, running, sha256
from tests.training.test_publish import FRAMES, run, tree
from training.dataset import SIZES
from training.errors import DataError
from training.publish.hub import Upload, upload

pytest.importorskip("huggingface_hub")
pytest.importorskip("yaml")

NAME = "me/net"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client waits between its tries
    with running(monkeypatch, str(tmp_path / "home")) as found:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(Compact(8, 1, 2).state_dict(), tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


def publish(model: Path | str, out: Path, *more: object) -> int:
    licence = ("--licence", "MIT") if isinstance(model, Path) else ()
    return run("--to", "huggingface", "--model", model, *licence, *more,
               *(() if "--dry-run" in more else ("--out", out)))  # fmt: skip


def picture(reference: str) -> np.ndarray[Any, Any]:
    """A small picture, enlarged by a model."""
    rgb = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.float32)
    return nets.open_net(load.read(load.locate(reference)), "cpu").run(rgb)


# --- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["a user's", "default-x2"])
def test_what_was_published_is_loaded_and_upscales_the_same(
    site: Hub, tmp_path: Path, mine: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    reference: Path | str = mine if model == "a user's" else model
    out = tmp_path / "out"
    assert publish(reference, out, "--upload", "--repository", NAME) == 0
    repository = site.repositories[f"model {NAME}"]
    assert repository.private
    commit, files = repository.commits[-1]
    assert files == tree(out) | {".gitattributes": b""}
    assert f"uploaded to {site.url}/{NAME}, commit {commit[:12]}" in capsys.readouterr().out
    assert np.array_equal(picture(f"hf:{NAME}"), picture(str(reference)))
    located = load.locate(f"hf:{NAME}")
    assert "(by its config.json: " in located.origin
    assert located.sha256 == load.locate(str(reference)).sha256


@pytest.mark.slow
def test_the_graph_upscales_the_same(site: Hub, tmp_path: Path, mine: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    assert publish(mine, tmp_path / "out", "--onnx", "--upload", "--repository", NAME) == 0
    graph = site.repositories[f"model {NAME}"].files["mine.onnx"]
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    rgb = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    bgra = np.dstack([rgb[..., ::-1], np.full((12, 16), 255, np.uint8)])[None]
    found = session.run(None, {"bgra": bgra})[0][0, ..., 2::-1]
    expected = np.clip(np.rint(picture(f"hf:{NAME}")), 0, 255)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert load.locate(f"hf:{NAME}").files[0].suffix == ".safetensors"


def test_published_again_unchanged_there_is_no_commit(
    site: Hub, tmp_path: Path, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (mine, tmp_path / "out", "--upload", "--repository", NAME)
    publish(*arguments)
    repository = site.repositories[f"model {NAME}"]
    commit = repository.commits[-1][0]
    site.asked.clear()
    capsys.readouterr()
    publish(*arguments)
    assert repository.commits[-1][0] == commit
    assert not site.lines("commit|PUT")
    assert f"nothing has changed at {site.url}/{NAME}, commit {commit[:12]}" in (
        capsys.readouterr().out
    )
    publish(*arguments, "--authors", "Somebody")
    assert len(site.lines("POST .*/commit/main")) == 1
    assert not site.lines("PUT")
    assert b"| Authors | Somebody |" in repository.files["README.md"]


def test_of_several_weights_the_newest_published_are_taken(
    site: Hub, tmp_path: Path, mine: Path
) -> None:
    publish(mine, tmp_path / "one", "--upload", "--repository", NAME)
    other = mine.with_name("other.safetensors")
    other.write_bytes(mine.read_bytes())
    publish(other, tmp_path / "two", "--upload", "--repository", NAME)
    assert load.locate(f"hf:{NAME}@main").files[0].name == "other.safetensors"


def test_a_data_set_arrives_as_it_was_packed(site: Hub, tmp_path: Path) -> None:
    split, name, licence = FRAMES[0]
    width, height = SIZES[270]
    folder = tmp_path / "data" / "GameEngineData"
    path = folder / "270p" / split / f"{name}.png"
    path.parent.mkdir(parents=True)
    cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))
    (folder / "manifest.jsonl").write_text(
        json.dumps({"name": name, "split": split, "licence": licence})
    )
    out = tmp_path / "out"
    arguments = ("--to", "huggingface", "--root", tmp_path / "data", "--out", out)
    assert run(*arguments, "--upload", "--repository", "me/frames", "--authors", "Me | I") == 0
    files = site.repositories["dataset me/frames"].files
    assert files == tree(out) | {".gitattributes": b""}
    assert "data/GameEngineData/freedoom/train-270p.tar.gz" in files
    assert b"Collected and packed by Me \\| I." in files["README.md"]


def test_large_files_go_by_lfs_without_the_token(site: Hub, tmp_path: Path, mine: Path) -> None:
    publish(mine, tmp_path / "out", "--upload", "--repository", NAME)
    sent = [asked for asked in site.asked if asked.host == "store"]
    assert [asked.line for asked in sent] == [f"PUT /{sha256(mine.read_bytes())}"]
    assert "authorization" not in sent[0].headers
    assert not site.lines("xet|telemetry|harness")
    assert site.lines(r"git/info/lfs/objects/batch|/verify") == [
        f"POST /{NAME}.git/info/lfs/objects/batch", "POST /verify",
    ]  # fmt: skip
    assert all("torch" not in asked.headers["user-agent"] for asked in site.asked)


# --- the dry run ---------------------------------------------------------------------------------


def test_a_dry_run_writes_what_an_upload_would_do(
    site: Hub, tmp_path: Path, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dry = tmp_path / "dry"
    for _ in range(2):
        assert publish(mine, dry, "--dry-run", dry, "--repository", NAME) == 0
    assert site.asked == []
    assert f"nothing was uploaded; {dry / 'upload'} is what would be" in capsys.readouterr().out
    assert sorted(path.name for path in dry.iterdir()) == ["operations.jsonl", "upload"]
    lines = (dry / "operations.jsonl").read_text().splitlines()
    first, *adds, last = map(json.loads, lines)
    assert (first["do"], first["repository"], first["private"]) == ("create", NAME, True)
    assert (last["do"], last["to"]) == ("commit", "main")

    publish(mine, tmp_path / "out", "--upload", "--repository", NAME)
    files = site.repositories[f"model {NAME}"].files
    del files[".gitattributes"]
    assert {add["path"]: (add["bytes"], add["sha256"]) for add in adds} == {
        name: (len(content), sha256(content)) for name, content in files.items()
    }
    assert tree(dry / "upload") == files
    assert str(tmp_path) not in "".join(lines)


def test_only_what_was_written_is_uploaded(site: Hub, tmp_path: Path, mine: Path) -> None:
    out = tmp_path / "out"
    publish(mine, out)
    (out / "notes.txt").write_text("private")
    publish(mine, out, "--upload", "--repository", NAME)
    assert "notes.txt" not in site.repositories[f"model {NAME}"].files


def test_dry_runs_leave_other_folders_alone(site: Hub, tmp_path: Path, mine: Path) -> None:
    with pytest.raises(DataError, match="holds something else"):
        publish(mine, tmp_path, "--dry-run", tmp_path)
    with pytest.raises(DataError, match="exclude each other"):
        publish(mine, tmp_path, "--dry-run", tmp_path / "dry", "--upload", "--repository", NAME)
    with pytest.raises(DataError, match="--dry-run is for Hugging Face"):
        run("--to", "kaggle", "--dry-run", tmp_path / "dry")
    assert not (tmp_path / "dry").exists()


# --- a site that fails ---------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 503, 429])
@pytest.mark.parametrize("where", ["preupload", "objects/batch", "PUT", "verify"])
def test_faults_that_pass_are_outlasted(
    site: Hub, tmp_path: Path, mine: Path, where: str, status: int
) -> None:
    site.fail(where, status=status, headers={"Retry-After": "1"} if status == 429 else {})
    publish(mine, tmp_path / "out", "--upload", "--repository", NAME)
    assert site.repositories[f"model {NAME}"].files["mine.safetensors"] == mine.read_bytes()
    assert len(site.lines(where)) == 2


@pytest.mark.parametrize("where", ["repos/create", "commit/main", "objects/batch", "PUT"])
def test_a_fault_that_stays_is_told_and_nothing_is_half_there(
    site: Hub, tmp_path: Path, mine: Path, where: str
) -> None:
    arguments = (mine, tmp_path / "out", "--upload", "--repository", NAME)
    site.fail(where, times=99)
    with pytest.raises(DataError, match=r"to me/net: .*503.*; running it again sends") as caught:
        publish(*arguments)
    assert "\n" not in str(caught.value)
    repository = site.repositories.get(f"model {NAME}")
    assert repository is None or list(repository.files) == [".gitattributes"]
    site.faults.clear()
    site.asked.clear()
    publish(*arguments)
    assert site.repositories[f"model {NAME}"].files["mine.safetensors"] == mine.read_bytes()
    assert len(site.lines("PUT")) == (0 if where == "commit/main" else 1)


def test_what_arrives_altered_is_refused(site: Hub, tmp_path: Path, mine: Path) -> None:
    publish(mine, tmp_path / "out")
    files = tuple((tmp_path / "out").iterdir())
    wanted = Upload(tmp_path / "out", files, NAME, "model")
    answer = site._stored

    def altered(method: str, path: str, asked: Any, query: Any) -> Any:
        asked.body = asked.body[:-1]
        return answer(method, path, asked, query)

    site._stored = altered  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"uploading 'mine\.safetensors'.*BadDigest"):
        upload(wanted)
    assert list(site.repositories[f"model {NAME}"].files) == [".gitattributes"]


def test_a_commit_between_is_not_overwritten(
    site: Hub, tmp_path: Path, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = site._preupload

    def meanwhile(*arguments: Any) -> Any:
        site.repositories[f"model {NAME}"].commit({"README.md": b"of somebody else"})
        return answer(*arguments)

    monkeypatch.setattr(site, "_preupload", meanwhile)
    with pytest.raises(DataError, match="412"):
        publish(mine, tmp_path / "out", "--upload", "--repository", NAME)
    assert site.repositories[f"model {NAME}"].files == {"README.md": b"of somebody else"}


def test_a_site_that_says_nothing_is_given_up(
    site: Hub, tmp_path: Path, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.publish.hub._TIMEOUT_S", 0.1)
    site.fail("preupload", kind="drip", pause_s=0.5, times=99)
    with pytest.raises(DataError, match="timed out"):
        publish(mine, tmp_path / "out", "--upload", "--repository", NAME)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "no token of Hugging Face: log in"),
        ("hf_wrong", r"401.*; log in with hf auth login, and a token that may write there"),
        ("hf_a\nb", "what HF_TOKEN holds is no token"),
    ],
)
def test_who_may_not_write_is_told_what_to_do(
    site: Hub, tmp_path: Path, mine: Path, monkeypatch: pytest.MonkeyPatch, token: str, message: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(DataError, match=message):
        publish(mine, tmp_path / "out", "--upload", "--repository", NAME)
    assert site.repositories == {}


def test_offline_nothing_is_uploaded(
    site: Hub, tmp_path: Path, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set"):
        publish(mine, tmp_path / "out", "--upload", "--repository", NAME)
    assert site.asked == []


@pytest.mark.parametrize("where", ["repos/create", "preupload", "objects/batch", "PUT", "commit"])
def test_the_token_is_in_no_message(
    site: Hub, tmp_path: Path, mine: Path, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, where: str,
) -> None:  # fmt: skip
    site.fail(where, status=503)
    site.fail(where, status=403)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    with caplog.at_level(logging.DEBUG), pytest.raises(DataError) as caught:
        publish(mine, tmp_path / "out", "--upload", "--repository", NAME)
    told = "".join(traceback.format_exception(caught.value)) + caplog.text
    told += "".join(capfd.readouterr())
    assert TOKEN not in told
    assert "?size=" not in told
    assert where != "PUT" or "HTTP Error 503 thrown while requesting PUT" in told


def test_without_the_client_there_is_the_line_to_install_it(
    site: Hub, tmp_path: Path, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(DataError, match=r'pip install "sr-overlay\[publish\]"'):
        publish(mine, tmp_path / "out", "--upload", "--repository", NAME)


# --- the card ------------------------------------------------------------------------------------


def test_the_hubs_own_reader_understands_the_card(site: Hub, tmp_path: Path, mine: Path) -> None:
    from huggingface_hub import ModelCard

    report = tmp_path / "report.json"
    rows = [
        {"model": str(mine), "psnr": 33.5, "ssim": 0.9, "lpips": float("nan"), "n": 48, "scale": 2},
        {"model": "bicubic", "psnr": 33.0, "n": 48},
    ]
    report.write_text(json.dumps({"results": rows, "frames": 48, "sequences": 4}))
    publish(mine, tmp_path / "out", "--metrics", report, "--authors", "A. Person",
            "--dataset", "me/frames", "--upload", "--repository", NAME)  # fmt: skip
    card = ModelCard(site.repositories[f"model {NAME}"].files["README.md"].decode())
    assert card.data.license == "mit"
    assert card.data.library_name == "sr-overlay"
    assert card.data.datasets == ["me/frames"]
    assert card.data.metrics == ["psnr", "ssim"]
    assert card.data.model_name == "mine"
    results = card.data.eval_results
    assert results is not None
    assert [(r.metric_type, r.metric_value) for r in results] == [("psnr", 33.5), ("ssim", 0.9)]
    assert results[0].dataset_name == "48 frames of 4 sequences"
    for line in ("| Authors | A. Person |", "## Limits", "## Intended use", "| mine | 33.5 |",
                 "| bicubic | 33 |", "On 48 frames of 4 sequences."):  # fmt: skip
        assert line in card.text
    assert str(tmp_path) not in card.content


def test_a_licence_that_the_hub_does_not_list_is_named(tmp_path: Path, mine: Path) -> None:
    import yaml

    run("--to", "huggingface", "--model", mine, "--licence", "My Own: 1.0", "--out", tmp_path / "o")
    front = yaml.safe_load((tmp_path / "o" / "README.md").read_text().split("---\n")[1])
    assert (front["license"], front["license_name"]) == ("other", "my-own-1.0")
    assert json.loads((tmp_path / "o" / "config.json").read_text())["licence"] == "My Own: 1.0"
