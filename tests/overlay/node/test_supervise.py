import itertools

import trio

from overlay.node.supervise import LONGEST_RESTART_S, keep_running


class Log:
    def __init__(self) -> None:
        self.events: list[tuple[str, Exception]] = []

    def error(self, event: str, *, exc_info: Exception) -> None:
        self.events.append((event, exc_info))


async def test_a_task_that_fails_is_begun_again_and_said(autojump_clock: object) -> None:
    log, runs = Log(), []

    async def task() -> None:
        runs.append(trio.current_time())
        if len(runs) < 3:
            raise KeyError("a bug")

    await keep_running(task, log, "work failed")
    assert len(runs) == 3
    assert [event for event, _ in log.events] == ["work failed"] * 2


async def test_a_task_that_always_fails_fills_no_log(autojump_clock: object) -> None:
    log = Log()

    async def task() -> None:
        raise KeyError("a bug")

    with trio.move_on_after(86_400):
        await keep_running(task, log, "work failed")
    assert 250 < len(log.events) < 86_400 / LONGEST_RESTART_S + 10


async def test_one_that_ran_for_long_is_begun_again_soon(autojump_clock: object) -> None:
    log, runs = Log(), []

    async def task() -> None:
        runs.append(trio.current_time())
        await trio.sleep(2 * LONGEST_RESTART_S)
        raise KeyError("a bug")

    with trio.move_on_after(10 * 2 * LONGEST_RESTART_S + 60):
        await keep_running(task, log, "work failed")
    assert all(later - earlier < 2 * LONGEST_RESTART_S + 11 for earlier, later in itertools.pairwise(runs))
