"""The queue before an engine, without an engine."""

import asyncio
from math import inf

import pytest

from lissom.server.worker import Job, Piece

PIECE = Piece(index=0, text="a", tokens=[1], choices=(), finish=None)


def test_who_leaves_as_a_piece_comes_leaves_for_good() -> None:
    """Both in one turn of the loop: the piece must not be taken for an answer to being cancelled."""

    async def run() -> None:
        job = Job(0, 1, "", inf, lambda _: None)
        job.accepted.set_result(None)

        async def read() -> None:
            async for _ in job.pieces():
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0)
        job.tell(PIECE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 5)

    asyncio.run(run())


def test_a_first_piece_that_is_late_is_told() -> None:
    from fastapi import HTTPException

    async def run() -> list[Piece | None]:
        loop = asyncio.get_running_loop()
        job = Job(0, 1, "", loop.time() + 0.05, lambda _: None)
        job.accepted.set_result(None)
        return [piece async for piece in job.pieces()]

    with pytest.raises(HTTPException, match="within the timeout"):
        asyncio.run(run())
