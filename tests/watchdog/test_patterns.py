"""Patterns that are looked for in a process of their own."""

import asyncio
import os
import subprocess
from collections.abc import Awaitable, Callable
from typing import Any

from healer.watchdog.probes.patterns import Patterns


def ask(questions: Callable[[Patterns], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        patterns = Patterns()
        try:
            return await questions(patterns)
        finally:
            await patterns.close()

    return asyncio.run(run())


def test_patterns_are_looked_for_in_turn() -> None:
    async def questions(patterns: Patterns) -> list[int | None]:
        texts = ["one", "tw\no", "thr\u00e9e \ud800", "x" * 1_000_000 + "end"]
        looked_for = ["n", r"^o$", r"(?m)^o$", "\u00e9", "end$", "four"]
        return await asyncio.gather(*(patterns.first(each, texts) for each in looked_for))

    assert ask(questions) == [0, None, 1, 2, 3, None]


def test_an_endless_pattern_costs_only_its_question() -> None:
    async def questions(patterns: Patterns) -> tuple[object, object]:
        endless = patterns.first("(a+)+$", ["a" * 50 + "b"])
        after = patterns.first("b", ["a", "b"])
        return await asyncio.gather(endless, after, return_exceptions=True)

    first, second = ask(questions)
    assert isinstance(first, ValueError)
    assert second == 1


def test_a_question_that_is_given_up_is_not_answered_to_the_next() -> None:
    async def questions(patterns: Patterns) -> int | None:
        assert await patterns.first("a", ["a"]) == 0
        given_up = asyncio.ensure_future(patterns.first("(a+)+$", ["a" * 50 + "b"]))
        # It has its turn once it was begun: the lock is free.
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        return await patterns.first("b", ["a", "b"])

    assert ask(questions) == 1


def test_a_process_that_was_killed_is_no_answer() -> None:
    async def questions(patterns: Patterns) -> list[object]:
        found: list[object] = []
        # Its pipes may be seen closed before the question, or by it.
        for pause in (0, 0.1, 0, 0.1):
            assert await patterns.first("a", ["a"]) == 0
            subprocess.run(["pkill", "--signal=KILL", f"--parent={os.getpid()}"], check=True)
            await asyncio.sleep(pause)
            # More than a pipe holds.
            asked = patterns.first("a", ["b" * 1_000_000])
            found += await asyncio.gather(asked, return_exceptions=True)
        return found

    assert {type(each) for each in ask(questions)} == {ValueError}
