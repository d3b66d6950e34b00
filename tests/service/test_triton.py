"""The client of Triton against a stand-in, and against a real server where there is one."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("tritonclient.grpc", reason="it needs the extra triton")

from engines import zoo
from engines.errors import EngineError, EngineMismatch, EngineMissing
from overlay.errors import OverlayError, SettingsError
from overlay.frame import Size
from service.api import create_app, make_server
from service.backends import LocalBackend, Model
from service.catalogue import Catalogue
from service.errors import Unavailable
from service.pictures import upscale
from service.pool import ModelPool
from service.repository import Plan, write
from service.schemas import Order
from service.settings import Settings
from service.triton import Server, TritonAway, TritonBackend, TritonUpscaler
from service.workers import Stop
from tests.contracts.upscaler import SMALL, UpscalerContract, finish, frame
from tests.service.server import opened, picture, wait_for
from tests.service.triton_fake import FakeTriton
from tests.service.triton_server import TritonProcess, binary, free_port

Array = NDArray[Any]

X2 = zoo.spec("default-x2")


@pytest.fixture
def fake() -> Iterator[FakeTriton]:
    server = FakeTriton()
    yield server
    server.stop()


def blocks() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("overlay-*")}


@pytest.fixture(autouse=True)
def no_shared_memory_stays() -> Iterator[None]:
    before = blocks()
    yield
    assert blocks() <= before


def rgb(dtype: type = np.uint8, size: Size = SMALL) -> Array:
    top = np.iinfo(dtype).max
    ramp = np.linspace(0, 1, size.width * size.height * 3).reshape(size.height, size.width, 3)
    return (ramp[:, ::-1] * top).astype(dtype)


def quiet(fraction: float = 0.0) -> None:
    pass


# --- one upscaler ---------------------------------------------------------------------------------


class TestContractShared(UpscalerContract):
    @pytest.fixture
    def upscaler(self, fake: FakeTriton) -> Iterator[TritonUpscaler]:
        with TritonUpscaler(X2, Server(fake.address, "on"), merge=True) as one:
            yield one
        assert set(fake.seen) == {"load default-x2", "shared"} or not fake.seen
        assert not fake.regions, "the server still has our memory"


class TestContractOverTheWire(UpscalerContract):
    kind = "luma"

    @pytest.fixture
    def upscaler(self, fake: FakeTriton) -> Iterator[TritonUpscaler]:
        with TritonUpscaler(X2, Server(fake.address, "off")) as one:
            yield one
        assert "shared" not in fake.seen


@pytest.mark.parametrize("shared", ["on", "off"])
def test_pixels_arrive_as_they_are(fake: FakeTriton, shared: Any) -> None:
    with TritonUpscaler(X2, Server(fake.address, shared)) as one:
        given = frame(Size(46, 30))
        made = finish(one, given)
        assert made.kind == "luma"
        assert (made.pixels == given.pixels[..., 1].repeat(2, 0).repeat(2, 1)).all()


def test_a_server_that_cannot_open_memory_gets_pixels_by_wire(fake: FakeTriton) -> None:
    fake.refuses_shared = True
    with TritonUpscaler(X2, Server(fake.address)) as one:
        finish(one, frame())
        assert fake.seen[-1] == "wire"
    with (
        TritonUpscaler(X2, Server(fake.address, "on")) as one,
        pytest.raises(EngineError, match="no shared memory with Triton"),
    ):
        one.warm_up(SMALL)


def test_frames_are_padded_to_the_multiple_and_cut(fake: FakeTriton) -> None:
    fake.models = ("padded",)
    spec = zoo.ModelSpec("padded", "luma", 2, "MIT", (), output="luma", size_multiple=8)
    with TritonUpscaler(spec, Server(fake.address)) as one:
        given = frame(Size(13, 9))
        made = finish(one, given).pixels
        assert (made == given.pixels[..., 1].repeat(2, 0).repeat(2, 1)).all()
        inside = one._runner.input[0]
        assert inside.shape == (16, 16, 4)
        assert (inside[9:, :13] == given.pixels[-1]).all()
        assert (inside[:9, 13:] == given.pixels[:, -1:]).all()


def test_a_model_of_another_size_is_refused_before_pixels_are_sent(fake: FakeTriton) -> None:
    fake.fixed = (270, 480)
    with TritonUpscaler(X2, Server(fake.address)) as one:
        with pytest.raises(EngineMismatch, match=r"not for pictures of 48x32.*for any"):
            one.warm_up(SMALL)
        assert fake.seen == ["load default-x2"]
        one.warm_up(Size(480, 270))


@pytest.mark.parametrize("shared", ["on", "off"])
def test_an_answer_of_another_shape_is_refused(fake: FakeTriton, shared: Any) -> None:
    with TritonUpscaler(X2, Server(fake.address, shared)) as one:
        one.warm_up(SMALL)
        fake.answer = lambda made: made[:, 1:]
        with pytest.raises(OverlayError, match=r"failed on a frame: .*gave \(1, 63, 96\)"):
            finish(one, frame())
        fake.answer = lambda made: made
        finish(one, frame())


def test_a_model_that_is_not_there_is_named(fake: FakeTriton) -> None:
    with (
        TritonUpscaler(zoo.spec("default-x3"), Server(fake.address)) as one,
        pytest.raises(EngineMissing, match=r"service\.repository --models default-x3"),
    ):
        one.warm_up(SMALL)


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("localhost", "host:port"), ("http://a:8001", "no scheme"), (":8001", "host:port"),
        ("a:0", "host:port"), ("a:x", "host:port"), ("a:99999", "host:port"),
    ],
)  # fmt: skip
def test_an_address_that_cannot_be(address: str, match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        Server(address)


@pytest.mark.parametrize("options", [{"timeout_s": 0}, {"load_s": -1}, {"shared": "yes"}])
def test_settings_that_cannot_be(options: Any) -> None:
    with pytest.raises(SettingsError):
        Server(**options)


def test_memory_is_shared_with_this_machine_only() -> None:
    assert Server("127.0.0.1:8001").may_share
    assert not Server("triton:8001").may_share
    assert Server("triton:8001", "on").may_share
    assert not Server("localhost:8001", "off").may_share


# --- a server that goes away ----------------------------------------------------------------------


def test_nobody_there_is_one_clear_error_at_once() -> None:
    address = f"127.0.0.1:{free_port()}"
    began = time.monotonic()
    with (
        TritonUpscaler(X2, Server(address)) as one,
        pytest.raises(TritonAway, match=rf"Triton at {address} is not there .*: start it, or wait"),
    ):
        one.warm_up(SMALL)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("shared", ["on", "off"])
def test_it_comes_back_after_the_server_died_in_a_request(fake: FakeTriton, shared: Any) -> None:
    with TritonUpscaler(X2, Server(fake.address, shared)) as one:
        before = finish(one, frame()).pixels.copy()
        fake.held.clear()
        one.submit(frame())
        assert fake.begun.acquire(timeout=5)
        fake.stop()
        with pytest.raises(TritonAway, match="is not there"):
            one.poll(5)
        assert one.in_flight == 0
        with pytest.raises(TritonAway):
            one.submit(frame())
        fake.start(fake.port)
        wait_until_back(one)
        assert (finish(one, frame()).pixels == before).all()


def wait_until_back(one: TritonUpscaler) -> None:
    until = time.monotonic() + 10
    while True:
        try:
            finish(one, frame())
            return
        except TritonAway:
            assert time.monotonic() < until
            time.sleep(0.1)


@pytest.mark.parametrize("shared", ["on", "off"])
def test_a_restart_between_two_requests_is_not_noticed(fake: FakeTriton, shared: Any) -> None:
    with TritonUpscaler(X2, Server(fake.address, shared)) as one:
        before = finish(one, frame()).pixels.copy()
        fake.loaded.clear()  # what a new process does not know
        fake.regions.clear()
        assert (finish(one, frame()).pixels == before).all()
        assert fake.seen.count("load default-x2") == 2


def test_a_server_that_does_not_answer_is_given_up(fake: FakeTriton) -> None:
    with TritonUpscaler(X2, Server(fake.address, timeout_s=0.5)) as one:
        one.warm_up(SMALL)
        old = set(fake.regions)
        fake.held.clear()
        one.submit(frame())
        with pytest.raises(TritonAway, match=r"did not answer within 0\.5 s"):
            one.poll(5)
        fake.held.set()
        finish(one, frame())
        assert not old & set(fake.regions), "a late answer would land in the next picture"


# --- the back end ---------------------------------------------------------------------------------


def test_offers_are_what_is_in_the_repository(fake: FakeTriton) -> None:
    fake.models = ("default-x2", "default-x2.float", "default-x3", "somebodys")
    with TritonBackend(Server(fake.address)) as backend:
        assert [(one.id, one.scale, one.available) for one in backend.offers()] == [
            ("default-x2", 2, True),
            ("default-x3", 3, True),
        ]


def test_without_a_server_there_are_no_offers_but_503() -> None:
    with (
        TritonBackend(Server(f"127.0.0.1:{free_port()}")) as backend,
        pytest.raises(Unavailable, match="is not there"),
    ):
        backend.offers()


def test_what_was_offered_is_remembered(fake: FakeTriton) -> None:
    with TritonBackend(Server(fake.address)) as backend:
        before = backend.offers()
        fake.stop()
        backend._until = 0
        assert backend.offers() == before


def test_models_are_loaded_and_unloaded_by_name(fake: FakeTriton) -> None:
    with TritonBackend(Server(fake.address), unload=True) as backend:
        with backend.open("default-x2") as model:
            assert fake.loaded == {"default-x2"}
            model.upscale(rgb(np.uint16), seed=0, progress=quiet)
            assert fake.loaded == {"default-x2", "default-x2.float"}
        assert not fake.loaded
    with TritonBackend(Server(fake.address)) as backend:
        backend.open("default-x2").close()
        assert fake.loaded == {"default-x2"}, "others may use it"


def test_sixteen_bits_stay(fake: FakeTriton) -> None:
    with TritonBackend(Server(fake.address), tile=40) as backend, backend.open("default-x2") as one:
        given = rgb(np.uint16)
        grey = np.ascontiguousarray(given[..., :1].repeat(3, 2))
        made = one.upscale(grey, seed=0, progress=quiet)
        assert (made.dtype, made.shape) == (np.uint16, (64, 96, 3))
        assert len(np.unique(made)) > 256
        assert np.abs(made[..., 1].astype(int) - grey[..., 1].repeat(2, 0).repeat(2, 1)).max() <= 1


def test_without_the_twin_sixteen_bits_are_refused(fake: FakeTriton) -> None:
    fake.models = ("default-x2",)
    with TritonBackend(Server(fake.address)) as backend, backend.open("default-x2") as one:
        with pytest.raises(EngineMissing, match=r"default-x2\.float cannot be loaded"):
            one.upscale(rgb(np.uint16), seed=0, progress=quiet)
        one.upscale(rgb(), seed=0, progress=quiet)


def test_requests_are_under_way_side_by_side(fake: FakeTriton) -> None:
    with TritonBackend(Server(fake.address), slots=2) as backend, backend.open("default-x2") as one:
        assert one.slots == 2
        one.upscale(rgb(), seed=0, progress=quiet)
        while fake.begun.acquire(timeout=0):
            pass
        fake.held.clear()
        threads = [
            threading.Thread(
                target=one.upscale, args=(rgb(),), kwargs={"seed": 0, "progress": quiet}
            )
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        try:
            assert fake.begun.acquire(timeout=5)
            assert fake.begun.acquire(timeout=5)
        finally:
            fake.held.set()
            for thread in threads:
                thread.join(10)


def test_a_request_of_the_service_gets_503_and_the_next_one_its_picture(fake: FakeTriton) -> None:
    with TritonBackend(Server(fake.address)) as backend, ModelPool(backend, 1 << 30) as pool:
        catalogue = Catalogue(backend, ())
        order = Order(model="default-x2", format="png")

        def ask() -> tuple[int, int]:
            made = upscale(picture(), order, pool, catalogue.scale_of, Stop())
            return opened(made.data).size

        assert ask() == (48, 32)
        fake.stop()
        with pytest.raises(
            Unavailable, match=r"default-x2 cannot do it: Triton at .* is not there"
        ):
            ask()
        fake.start(fake.port)
        until = time.monotonic() + 10
        while True:
            try:
                assert ask() == (48, 32)
                return
            except Unavailable:
                assert time.monotonic() < until
                time.sleep(0.1)


@contextmanager
def serving_triton(address: str) -> Iterator[httpx.Client]:
    """Run the HTTP service over a server."""
    settings = Settings(port=0, warm=False)
    server = make_server(settings, create_app(settings, TritonBackend(Server(address))))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as one:
            yield one
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


# --- a real server --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    program = binary()
    pytest.importorskip("onnx", reason="the graphs need the extra build")
    folder = tmp_path_factory.mktemp("triton")
    for name in ("default-x2", "default-x4"):
        write(name, Plan("python", sizes=((48, 32), (64, 40)), threads=1), folder / "models")
    process = TritonProcess(program, folder / "models", folder)
    process.start()
    yield process
    process.kill()


def both(real: TritonProcess, name: str, picture: Array) -> tuple[Array, Array]:
    with (
        TritonBackend(Server(real.address)) as there,
        LocalBackend(Settings(threads=1)) as here,
        there.open(name) as far,
        here.open(name) as near,
    ):
        models: tuple[Model, Model] = (far, near)
        first, second = (one.upscale(picture, seed=0, progress=quiet) for one in models)
    return first, second


@pytest.mark.slow
@pytest.mark.parametrize("name", ["default-x2", "default-x4"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_real_server_gives_what_the_engine_here_gives(
    real: TritonProcess, name: str, dtype: type
) -> None:
    far, near = both(real, name, rgb(dtype, Size(64, 40)))
    assert far.dtype == near.dtype == dtype
    assert far.std() > 50, "it is blank"
    assert np.abs(far.astype(int) - near).max() <= 1


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_real_server_killed_in_a_request_gives_503_and_comes_back(real: TritonProcess) -> None:
    with (
        TritonUpscaler(X2, Server(real.address), merge=True) as one,
        serving_triton(real.address) as client,
    ):
        sent = {"image_file": ("a.png", picture(48, 32), "image/png")}
        before = client.post("/upscale/file?model=default-x2", files=sent)
        assert before.status_code == 200, before.text
        warm = finish(one, frame()).pixels.copy()
        real.signal(signal.SIGSTOP)  # it holds what is sent now
        one.submit(frame())
        threading.Timer(1.0, real.kill).start()
        during = client.post("/upscale/file?model=default-x2", files=sent)
        assert (during.status_code, "Retry-After" in during.headers) == (503, True)
        assert "Triton at" in during.text
        with pytest.raises(TritonAway, match="is not there"):
            one.poll(10)
        real.kill()
        real.start()
        wait_until_back(one)
        assert (finish(one, frame()).pixels == warm).all()
        until = time.monotonic() + 30
        while (after := client.post("/upscale/file?model=default-x2", files=sent)).is_error:
            assert (after.status_code, time.monotonic() < until) == (503, True)
            time.sleep(0.5)
        assert after.content == before.content
