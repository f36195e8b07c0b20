"""Long work leaves room for RPCs. Time is the event loop's and passes at once (looptime)."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from scaler.slices import LATE_SECONDS, PATIENCE, PAUSE_SECONDS, SLICE_SECONDS, Slices

pytestmark = pytest.mark.looptime


def on_this_loop(collected: list[float] | None = None) -> Slices:
    loop = asyncio.get_running_loop()
    return Slices(lambda: None if collected is None else collected.append(loop.time()), clock=loop.time)


async def test_slice_follows_a_pause() -> None:
    slices = on_this_loop()
    started = slices.clock()
    ends = await slices.next()
    assert slices.clock() - started == pytest.approx(PAUSE_SECONDS)
    assert ends - slices.clock() == pytest.approx(SLICE_SECONDS)


async def test_slices_of_different_work_never_come_without_a_pause_between() -> None:
    slices = on_this_loop()
    began: list[float] = []

    async def work() -> None:
        for _ in range(5):
            await slices.next()
            began.append(slices.clock())

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(work())
    gaps = [after - before for before, after in itertools.pairwise(began)]
    assert len(began) == 20
    assert min(gaps) >= PAUSE_SECONDS - 1e-9


async def test_work_takes_turns_with_other_work() -> None:
    slices = on_this_loop()
    order: list[str] = []

    async def work(name: str) -> None:
        for _ in range(3):
            await slices.next()
            order.append(name)

    async with asyncio.TaskGroup() as group:
        for name in "ab":
            group.create_task(work(name))
    assert "".join(order) == "ababab"


@pytest.mark.parametrize(
    ("late_pauses", "pauses"),
    [
        pytest.param(0, 1, id="a quiet loop"),
        pytest.param(1, 2, id="busy once"),
        pytest.param(PATIENCE - 1, PATIENCE, id="busy until the last pause"),
        pytest.param(1000, PATIENCE, id="busy for good"),
    ],
)
async def test_busy_loop_makes_work_wait_but_not_for_good(late_pauses: int, pauses: int) -> None:
    loop = asyncio.get_running_loop()
    looks = 0
    behind = 0.0

    def clock() -> float:
        nonlocal looks, behind
        looks += 1
        if looks % 2 == 0 and looks // 2 <= late_pauses:  # the second look at the clock is the end of a pause
            behind += 2 * LATE_SECONDS
        return loop.time() + behind

    started = loop.time()
    await Slices(clock=clock).next()
    assert loop.time() - started == pytest.approx(pauses * PAUSE_SECONDS)


async def test_garbage_is_looked_for_after_each_slice_and_before_the_pause() -> None:
    collected: list[float] = []
    slices = on_this_loop(collected)
    started = slices.clock()
    await slices.next()
    await slices.next()
    assert collected == pytest.approx([started, started + PAUSE_SECONDS])


async def test_work_that_is_cancelled_in_its_pause_leaves_the_turn_to_others() -> None:
    slices = on_this_loop()
    given_up = asyncio.create_task(slices.next())
    await asyncio.sleep(0)
    given_up.cancel()
    async with asyncio.timeout(1):
        await slices.next()
