"""The hand-off: one slot, the newest wins, what it overwrites is counted."""

import threading
import time

from overlay.slot import LatestFrame


def test_the_newest_item_wins_and_the_lost_ones_are_told() -> None:
    lost: list[int] = []
    slot: LatestFrame[int] = LatestFrame(lost.append)
    for n in range(4):
        slot.put(n)
    assert slot.take(0) == 3
    assert lost == [0, 1, 2]
    assert slot.take(0) is None


def test_take_waits_for_an_item_from_another_thread() -> None:
    slot: LatestFrame[str] = LatestFrame()
    threading.Timer(0.05, slot.put, ("late",)).start()
    assert slot.take(5.0) == "late"


def test_take_gives_up_after_its_timeout() -> None:
    slot: LatestFrame[str] = LatestFrame()
    start = time.monotonic()
    assert slot.take(0.05) is None
    assert 0.04 <= time.monotonic() - start < 5


def test_close_wakes_a_waiting_consumer_for_good() -> None:
    slot: LatestFrame[int] = LatestFrame()
    threading.Timer(0.05, slot.close).start()
    assert slot.take(5.0) is None
    assert slot.closed
    assert slot.take(5.0) is None


def test_an_item_in_the_slot_survives_close() -> None:
    slot: LatestFrame[int] = LatestFrame()
    slot.put(7)
    slot.close()
    assert not slot.closed
    assert slot.take(0) == 7
    assert slot.closed


def test_on_put_is_called_after_the_item_is_there() -> None:
    seen: list[int | None] = []
    slot: LatestFrame[int] = LatestFrame(on_put=lambda: seen.append(slot.take(0)))
    slot.put(1)
    assert seen == [1]
