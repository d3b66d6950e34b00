"""The parts by themselves: settings, sessions, models in a budget, slots, Accept."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from engines.errors import EngineError
from overlay.errors import BackendUnavailable, SettingsError
from service.backends import Model, Offer, open_backend
from service.errors import Busy, Refused, TimedOut, Unacceptable, Unavailable
from service.pool import ModelPool
from service.replies import accepted, safe_stem
from service.resize import ResizeBackend, ResizeModel
from service.schemas import Order
from service.sessions import LIFETIME_S, LIMIT, Sessions
from service.settings import Settings
from service.state import Service
from service.workers import Stop, Stopped, Workers
from tests.service.server import HeldBackend

ROOT = Path(__file__).parents[2]

# --- settings ------------------------------------------------------------------------------------


def test_settings_come_from_file_environment_and_options(tmp_path: Path) -> None:
    file = tmp_path / "service.toml"
    file.write_text('port = 1\nqueue = 5\nmodels = ["default-x2"]\nwarm = false\n')
    environ = {
        "OVERLAY_SERVICE_PORT": "2",
        "OVERLAY_SERVICE_API_KEYS": "sixteen letters!, another sixteen!",
        "OVERLAY_SERVICE_STALL_S": "0.5",
        "OVERLAY_OTHER": "x",
    }
    found = Settings.load(file, environ, host="::1", model=None)
    assert (found.host, found.port, found.queue, found.stall_s) == ("::1", 2, 5, 0.5)
    assert found.api_keys == ("sixteen letters!", "another sixteen!")
    assert found.models == ("default-x2",)
    assert (found.model, found.warm, found.local_only) == ("default", False, True)
    assert "sixteen" not in repr(found)
    assert Settings.load(file, environ, port=3).port == 3


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PROT", "1", "unknown setting 'prot'; did you mean 'port'"),
        ("PORT", "x", "port: 'x' is no int"),
        ("PORT", "65536", "65535 at most"),
        ("WORKERS", "0", "workers is 1 or more, not 0"),
        ("STALL_S", "nan", "stall_s is 0.01 or more"),
        ("STALL_S", "inf", "stall_s is 0.01 or more"),
        ("WARM", "maybe", "warm: 'maybe' is no bool"),
        ("API_KEYS", "short", "16 ASCII characters"),
        ("CORS_ORIGINS", "*", "name the origins"),
    ],
)
def test_bad_settings_are_said(name: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings.load(None, {f"OVERLAY_SERVICE_{name}": value})


def test_bad_files_are_said_without_the_keys(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read"):
        Settings.load(tmp_path / "none.toml", {})
    file = tmp_path / "bad.toml"
    file.write_text("port =")
    with pytest.raises(SettingsError, match="is no TOML"):
        Settings.load(file, {})
    file.write_text('api_keys = ["a secret of sixteen", 1]')
    with pytest.raises(SettingsError) as told:
        Settings.load(file, {})
    assert "secret" not in str(told.value)


def test_only_this_machine_reaches_it_by_default() -> None:
    assert Settings().local_only
    assert Settings().cors_origins == ()
    assert not Settings(host="0.0.0.0").local_only


def test_back_ends_are_known_by_name() -> None:
    assert open_backend(Settings(backend="resize")).name == "resize"
    with pytest.raises(SettingsError, match="no 'triton9'"):
        open_backend(Settings(backend="triton9"))


def test_nothing_is_loaded_by_importing_or_making_the_application() -> None:
    code = (
        "import sys; from service.api import create_app; from service.settings import Settings; "
        "create_app(Settings()); "
        "print([n for n in ('torch', 'openvino', 'onnxruntime') if n in sys.modules]); "
        "import threading; print(threading.active_count())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.split() == ["[]", "1"]


def test_the_command_says_what_is_wrong_in_a_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.api", "--port", "70000"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "port is 65535 at most" in done.stderr
    assert "Traceback" not in done.stderr


# --- sessions ------------------------------------------------------------------------------------


def test_sessions_end_and_are_bounded() -> None:
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    first = sessions.put(Order(model="default-x2"), "me", None)
    assert sessions.get(first, "me").model == "default-x2"
    with pytest.raises(Refused, match="no such session"):
        sessions.get(first, "you")
    assert sessions.put(Order(), "you", first) != first
    now[0] = LIFETIME_S + 1
    with pytest.raises(Refused):
        sessions.get(first, "me")
    for _ in range(LIMIT + 5):
        sessions.put(Order(), "", None)
    assert len(sessions) == LIMIT


def test_what_an_order_leaves_open_is_filled_in() -> None:
    session = Order(model="realesr-general-x4v3", denoise=0.3, outscale=2, format="webp")
    assert Order().over(session) == session
    other = Order(model="default-x2", width=10, height=10).over(session)
    assert other == Order(model="default-x2", width=10, height=10, format="webp")


# --- models in a budget --------------------------------------------------------------------------


class Counting(ResizeBackend):
    """Models of 10 bytes; notes what is opened and closed."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.slots = 1
        self.broken = False

    def offers(self) -> tuple[Offer, ...]:
        names = ("default-x2", "default-x3", "default-x4")
        return tuple(Offer(name, 2, "", "", "", True, bytes=10) for name in names)

    def open(self, model: str) -> Model:
        if self.broken:
            raise EngineError("it cannot be opened")
        self.log.append(f"open {model}")
        return Noted(model, self)


class Noted(ResizeModel):
    def __init__(self, name: str, backend: Counting) -> None:
        super().__init__(name, 2)
        self._log = backend.log
        self.slots = backend.slots

    @property
    def bytes(self) -> int:
        return 10

    def close(self) -> None:
        self._log.append(f"close {self.name}")


def test_the_longest_unused_model_is_closed_first() -> None:
    backend = Counting()
    pool = ModelPool(backend, 20)
    for name in ("default-x2", "default-x3", "default-x2", "default-x4"):
        with pool.lease(name):
            pass
    assert backend.log == [
        "open default-x2", "open default-x3", "close default-x3", "open default-x4",
    ]  # fmt: skip
    assert pool.loaded == {"default-x2": 10, "default-x4": 10}
    pool.close()
    assert backend.log[-2:] == ["close default-x4", "close default-x2"]


def test_a_model_in_use_is_not_closed_and_the_other_waits_for_room() -> None:
    backend = Counting()
    pool = ModelPool(backend, 10)
    second = threading.Thread(target=lambda: _use(pool, "default-x3"))
    with pool.lease("default-x2"):
        second.start()
        time.sleep(0.15)
        assert backend.log == ["open default-x2"]
    second.join(5)
    assert backend.log == ["open default-x2", "close default-x2", "open default-x3"]


def _use(pool: ModelPool, name: str) -> None:
    with pool.lease(name):
        pass


def test_waiting_for_room_ends_when_nobody_wants_it_any_more() -> None:
    pool = ModelPool(Counting(), 10)
    stop = Stop()
    with pool.lease("default-x2"):
        threading.Timer(0.1, stop.set).start()
        with pytest.raises(Stopped), pool.lease("default-x3", stop):
            pass
        with pytest.raises(Stopped), pool.lease("default-x2", stop):
            pass
    with pool.lease("default-x3"):
        pass


def test_a_model_larger_than_the_budget_is_refused() -> None:
    with (
        pytest.raises(Unavailable, match="more than"),
        ModelPool(Counting(), 9).lease("default-x2"),
    ):
        pass


def test_a_model_that_failed_to_open_can_be_tried_again() -> None:
    backend = Counting()
    pool = ModelPool(backend, 20)
    backend.broken = True
    with pytest.raises(EngineError), pool.lease("default-x2"):
        pass
    assert pool.loaded == {}
    backend.broken = False
    with pool.lease("default-x2"):
        assert pool.loaded == {"default-x2": 10}


@pytest.mark.parametrize("slots", [1, 3])
def test_as_many_threads_have_a_model_as_it_has_slots(slots: int) -> None:
    backend = Counting()
    backend.slots = slots
    pool = ModelPool(backend, 20)
    most, now, lock = [0], [0], threading.Lock()

    def use() -> None:
        with pool.lease("default-x2"):
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            time.sleep(0.05)
            with lock:
                now[0] -= 1

    threads = [threading.Thread(target=use) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == slots
    assert backend.log == ["open default-x2"]


# --- slots ---------------------------------------------------------------------------------------


def test_slots_and_queue_are_bounded() -> None:
    async def trial() -> None:
        workers = Workers(1, 1, 5)
        go = threading.Event()
        first = asyncio.create_task(workers.run(lambda stop: go.wait(5)))
        second = asyncio.create_task(workers.run(lambda stop: "done"))
        await asyncio.sleep(0.05)
        assert (workers.running, workers.waiting) == (1, 1)
        with pytest.raises(Busy):
            await workers.run(lambda stop: None)
        second.cancel()
        await asyncio.sleep(0)
        assert workers.waiting == 0
        go.set()
        assert await first
        assert await workers.run(lambda stop: 7) == 7
        assert (workers.running, workers.waiting) == (0, 0)
        workers.close()

    asyncio.run(trial())


def test_a_slot_is_free_when_its_thread_has_ended_and_no_sooner() -> None:
    async def trial() -> None:
        workers = Workers(1, 0, 0.05)
        stubborn = threading.Event()
        with pytest.raises(TimedOut):
            await workers.run(lambda stop: stubborn.wait(5))
        assert workers.running == 1
        with pytest.raises(Busy):
            await workers.run(lambda stop: None)
        stubborn.set()
        while workers.running:
            await asyncio.sleep(0.01)
        assert await workers.run(lambda stop: 1) == 1
        workers.close()

    asyncio.run(asyncio.wait_for(trial(), 5))


# --- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "format"),
    [
        (None, "png"), ("", "png"), ("*/*", "png"), ("image/*", "png"), ("image/webp", "webp"),
        ("image/jpeg;q=0.5, image/webp;q=0.9", "webp"), ("image/png;q=0, */*", "jpeg"),
        ("text/html, image/avif, image/webp, */*;q=0.8", "webp"), ("IMAGE/TIFF", "tiff"),
        ("image/bmp;q=x, */*;q=0.1", "png"),
    ],
)  # fmt: skip
def test_the_format_is_chosen_by_accept(header: str | None, format: Any) -> None:
    assert accepted(header) == format


@pytest.mark.parametrize("header", ["text/html", "image/avif", "image/*;q=0", ","])
def test_what_is_not_written_is_not_accepted(header: str) -> None:
    with pytest.raises(Unacceptable):
        accepted(header)


def test_names_are_made_harmless() -> None:
    assert safe_stem("../a b/ö€x.tar.png") == "x-tar"
    assert safe_stem(None) == safe_stem("...") == "picture"
    assert safe_stem("/") == "picture"
    assert len(safe_stem("x" * 500)) == 64


def test_it_gets_ready_once_the_back_end_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.state._AGAIN_S", 0.01)
    backend = HeldBackend()
    backend.broken = BackendUnavailable("Triton is starting")

    async def starting() -> list[str]:
        service = Service(Settings(), backend)
        await service.start()
        seen = []
        for status in ("broken", "ok"):
            async with asyncio.timeout(20):
                while service.health.status != status:
                    await asyncio.sleep(0.005)
            seen.append(service.health.status)
            backend.broken = None
        await service.stop()
        return seen

    assert asyncio.run(starting()) == ["broken", "ok"]
