"""The worker's cache of experts: guesses, the order of asking, and ends half way."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest
import torch

from pieces import Pieces, used
from serving import wait_for
from tpad import BlockKey
from tpad.transformers.cache import ExpertCache
from tpad.transformers.source import ClientSource
from tpad.transformers.store import ServedStore


def test_a_guess_is_fetched_behind_the_back_and_found() -> None:
    source = Pieces()
    cache = ExpertCache(source, 40)
    cache.guess([1, 2])
    assert source.asked == [[1, 2]] and source.out == 0, "nobody waits for it"
    assert used(cache, 1) == [1]
    assert len(source.asked) == 1
    assert (cache.counters.hits, cache.counters.guesses_used) == (1, 1)
    used(cache, 3, 4, 5, 6)
    assert cache.counters.guesses_wasted == 1
    cache.close()


def test_a_guess_that_fails_fails_nobody() -> None:
    source = Pieces()
    source.failing = {1}
    cache = ExpertCache(source, 40)
    cache.guess([1])
    source.failing = set()
    assert used(cache, 2, 1) == [2, 1]
    assert source.asked == [[1], [2, 1]], "it had failed by then, and is asked for again"
    assert cache.bytes == source.out == 20
    cache.close()


def test_who_waits_for_a_guess_that_fails_fetches_for_himself() -> None:
    source = Pieces()
    source.gate.clear()
    source.failing, source.once = {1}, True
    cache = ExpertCache(source, 40)
    cache.guess([1])
    came: list[list[int]] = []
    waiting = threading.Thread(target=lambda: came.append(used(cache, 1)))
    waiting.start()
    wait_for(lambda: cache.counters.hits == 1, "somebody waits for the guess")
    source.gate.set()
    waiting.join(10)
    assert came == [[1]]
    assert source.asked == [[1], [1]]
    cache.close()
    assert source.out == 0


def test_guesses_are_asked_for_behind_what_is_needed_and_before_it_is_there() -> None:
    source = Pieces()
    cache = ExpertCache(source, 40)
    source.gate.clear()
    blocks = cache.use([1, 2], lambda: cache.guess([3, 4]))
    came: list[int] = []
    waiting = threading.Thread(target=lambda: came.extend(piece.key for piece in blocks))
    waiting.start()
    wait_for(lambda: source.asked == [[1, 2], [3, 4]], "the guess is behind the wish")
    assert not came and waiting.is_alive()
    source.gate.set()
    waiting.join(10)
    assert came == [1, 2]
    assert used(cache, 3, 4) == [3, 4] and len(source.asked) == 2
    cache.close()
    assert source.out == 0


def test_what_is_there_is_given_before_what_is_missing_arrives() -> None:
    source = Pieces()
    cache = ExpertCache(source, 40)
    used(cache, 1)
    source.gate.clear()
    blocks = cache.use([1, 2])
    assert next(blocks).key == 1
    assert source.asked == [[1], [2]], "what is missing was asked for first"
    source.gate.set()
    assert next(blocks).key == 2
    blocks.close()
    cache.close()
    assert source.out == 0


def test_what_is_there_comes_first_with_its_place_unless_order_is_wanted() -> None:
    source = Pieces()
    cache = ExpertCache(source, 40)
    used(cache, 3, 5)
    source.gate.clear()
    blocks = cache.use_placed([1, 2, 3, 4, 5], None, in_order=False)
    came = [next(blocks)]
    assert source.asked == [[3, 5], [1, 2]], "there is no room for more"
    source.gate.set()
    came += blocks
    assert [(place, piece.key) for place, piece in came] == [(2, 3), (0, 1), (1, 2), (3, 4), (4, 5)]
    source.gate.clear()
    blocks = cache.use_placed([7, 5], None, in_order=True)
    waiting = threading.Thread(target=lambda: came.append(next(blocks)))
    waiting.start()
    wait_for(lambda: source.asked[-1] == [7], "what is missing was asked for")
    assert waiting.is_alive()
    source.gate.set()
    waiting.join(10)
    assert came[-1][0] == 0 and [piece.key for _, piece in blocks] == [5]
    cache.close()
    assert source.out == 0


def test_large_blocks_come_one_by_one_and_small_ones_together() -> None:
    large = Pieces(lambda key: 40 << 20)
    cache = ExpertCache(large, 200 << 20)
    assert used(cache, 1, 2, 3) == [1, 2, 3]
    assert large.asked == [[1], [2], [3]]
    cache.close()
    small = Pieces(lambda key: 20 << 20)
    cache = ExpertCache(small, 200 << 20)
    assert used(cache, 1, 2, 3) == [1, 2, 3]
    assert small.asked == [[1, 2], [3]]
    cache.close()
    assert large.out == small.out == 0


def test_who_stops_half_way_leaves_nothing_behind() -> None:
    source = Pieces()
    cache = ExpertCache(source, 40)
    source.gate.clear()
    blocks = cache.use([1, 2], lambda: cache.guess([3]))
    waiting = threading.Thread(target=lambda: next(blocks))
    waiting.start()
    wait_for(lambda: len(source.asked) == 2, "both are asked for")
    source.gate.set()
    waiting.join(10)
    blocks.close()
    source.gate.clear()
    cache.guess([4])
    cache.clear()
    assert source.cancelled == [[3], [4]] and cache.bytes == source.out == 0
    source.gate.set()
    assert used(cache, 1, 2, 3, 4) == [1, 2, 3, 4]
    cache.close()


def test_guesses_on_their_way_make_room_when_they_are_there() -> None:
    source = Pieces()
    cache = ExpertCache(source, 20)
    source.gate.clear()
    cache.guess([1, 2])
    came: list[list[int]] = []
    waiting = threading.Thread(target=lambda: came.append(used(cache, 3)))
    waiting.start()
    wait_for(lambda: cache.counters.uses == 1, "somebody needs their room")
    source.gate.set()
    waiting.join(10)
    assert came == [[3]] and source.most == 20
    cache.close()
    assert source.out == 0


@pytest.mark.parametrize("guess", [True, False])
def test_an_interrupt_leaves_nothing_behind(guess: bool) -> None:
    source = Pieces()
    cache = ExpertCache(source, 40)
    used(cache, 1)
    if guess:
        cache.guess([2, 3])
    source.interrupt = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        used(cache, 1, 2, 3)
    assert source.cancelled == [[2, 3]] and cache.bytes == source.out == 10
    assert used(cache, 1, 2, 3, 4) == [1, 2, 3, 4]
    begin = source.begin

    def interrupted(keys):
        source.begin = begin  # type: ignore[method-assign]
        raise KeyboardInterrupt

    source.begin = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        cache.guess([5]) if guess else used(cache, 5)
    assert used(cache, 5, 6, 7, 8) == [5, 6, 7, 8]
    assert cache.bytes == source.out == 40
    cache.close()
    assert source.out == cache.bytes == 0


def test_a_fetch_is_timed_only_by_who_waits_for_it() -> None:
    source = Pieces()
    cache = ExpertCache(source, 100)
    for turn in range(5):
        for piece in cache.use([2 * turn, 2 * turn + 1]):
            time.sleep(0.01)
    assert cache.fetch_seconds is None, "all were there before they were waited for"
    source.gate.clear()
    threading.Timer(0.05, source.gate.set).start()
    used(cache, 50)
    assert cache.fetch_seconds is not None and 0.03 < cache.fetch_seconds < 5
    cache.close()


def test_many_threads_with_guesses_keep_to_the_budget() -> None:
    source = Pieces()
    cache = ExpertCache(source, 120)
    wrong: list[object] = []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(300):
            keys = draw.sample(range(16), draw.randrange(1, 4))
            likely = draw.sample(range(16), 2)
            came = [piece.key for piece in cache.use(keys, lambda likely=likely: cache.guess(likely))]
            if came != keys or source.out > 120:
                wrong.append((keys, came, source.out))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and not any(thread.is_alive() for thread in threads)
    cache.close()
    assert source.out == cache.bytes == 0


def test_guesses_are_fetched_while_they_gain_time() -> None:
    source = Pieces()
    store = ServedStore(ExpertCache(source, 1000), {5: range(16)}, guesses=True)

    def guessed(right: float, lead: float, fetch: float) -> bool:
        """Whether a guess is fetched after what was measured so far."""
        seen = store.cache.counters
        store.cache.clear()
        store.right[5], store.lead[5], store.cache.fetch_seconds = right, lead, fetch
        before = seen.guesses
        store.guess(5, [1, 2])
        return seen.guesses > before

    assert guessed(0.55, lead=5e-3, fetch=1e-3), "a fetch that is over before the layer begins"
    assert not guessed(0.45, lead=5e-3, fetch=1e-3)
    assert not guessed(0.9, lead=3e-4, fetch=6e-3), "a bus that is busy all the time"
    assert guessed(0.97, lead=3e-4, fetch=6e-3)
    store.cache.close()


def test_guesses_that_are_told_are_told_whatever_they_gain_and_nothing_is_begun_for_them() -> None:
    source = Pieces()
    source.hears = True
    store = ServedStore(ExpertCache(source, 1000), {5: range(16)}, guesses=True)
    used(store.cache, 1)
    store.right[5], store.lead[5], store.cache.fetch_seconds = 0.1, 1e-4, 1e-3
    assert not store.is_worth_it(5)
    store.guess(5, [1, 2, 3])
    store.guess(5, [3, 4])
    assert source.told == [[2, 3], [3, 4]], "all that the worker does not hold"
    assert source.asked == [[1]] and source.out == store.cache.bytes == 10
    assert store.cache.counters.guessed == {2, 3, 4}
    # What was told is asked for like anything else when it is needed.
    assert used(store.cache, 3, 1) == [3, 1]
    assert source.asked == [[1], [3]]
    # Where nobody hears, they are fetched if that gains time, and are none otherwise.
    source.hears = False
    store.guess(5, [6])
    assert source.asked[-1] == [3] and store.cache.counters.guesses == 4
    store.right[5] = 1.0
    store.guess(5, [6])
    assert source.asked[-1] == [6] and len(source.told) == 2
    store.cache.close()


def test_a_guess_that_cannot_be_told_is_nobodys_error() -> None:
    class Deaf(Pieces):
        def warm(self, keys) -> bool:
            raise ValueError("the client is closed")

    source = Deaf()
    store = ServedStore(ExpertCache(source, 1000), {5: range(16)}, guesses=True)
    used(store.cache, 1)
    store.guess(5, [2])
    assert source.asked == [[1], [2]]
    store.cache.close()


def test_guesses_are_told_by_where_experts_are_used() -> None:
    class Told:
        """A client that is told things."""

        def __init__(self) -> None:
            self.expected: list[object] = []
            self.prefetched: list[object] = []
            self.hears = True

        def expect_experts(self, model, keys, *, device) -> bool:
            self.expected.append((model, list(keys), device))
            return self.hears

        def prefetch(self, model, keys) -> None:
            self.prefetched.append((model, list(keys)))

    keys = [BlockKey("base", 0, 1, 2)]

    def source(device: str, in_place: bool) -> tuple[Told, ClientSource]:
        client: Any = Told()
        unpack: Any = None
        return client, ClientSource(client, "m", unpack, torch.device(device), in_place=in_place)

    client, on_gpu = source("cuda:1", True)
    assert on_gpu.warm(keys)
    assert client.expected == [("m", keys, "cuda:1")] and not client.prefetched
    client.hears = False
    assert not on_gpu.warm(keys), "they are fetched"
    client, copied = source("cuda:1", False)
    assert copied.warm(keys)
    assert client.prefetched == [("m", keys)] and not client.expected
    client, on_host = source("cpu", True)
    assert not on_host.warm(keys)
    assert not client.prefetched and not client.expected


def test_how_often_guesses_are_right_is_measured_whether_they_are_fetched_or_not() -> None:
    for guesses in (True, False):
        source = Pieces()
        store = ServedStore(ExpertCache(source, 1000), {5: range(16)}, guesses=guesses)
        for turn in range(100):
            store.guess(5, [1, 2])
            store._judge(5, [1, 2] if turn % 4 else [3, 4])
        assert 0.6 < store.right[5] < 0.9
        assert store.lead[5] >= 0
        assert (store.cache.counters.guesses > 0) == guesses
        store.cache.close()


def test_after_it_is_closed_nothing_is_guessed_and_nothing_held() -> None:
    source = Pieces()
    cache = ExpertCache(source, 40)
    used(cache, 1, 2)
    cache.close()
    cache.guess([3])
    assert source.out == cache.bytes == 0
    assert source.asked == [[1, 2]]


def test_a_thread_that_dies_while_it_waits_leaves_nobody_waiting() -> None:
    source = Pieces()
    cache = ExpertCache(source, 40)
    source.gate.clear()
    source.interrupt = KeyboardInterrupt()
    fail = cache._fail

    def interrupted(coming, blocks):
        cache._fail = fail  # type: ignore[method-assign]
        raise KeyboardInterrupt

    cache._fail = interrupted  # type: ignore[method-assign]
    blocks = cache.use([1])
    died: list[BaseException] = []

    def wait() -> None:
        try:
            next(blocks)
        except BaseException as error:
            died.append(error)

    first = threading.Thread(target=wait)
    first.start()
    wait_for(lambda: any(coming.landing for coming in cache._coming), "it waits")
    came: list[list[int]] = []
    second = threading.Thread(target=lambda: came.append(used(cache, 1)))
    second.start()
    wait_for(lambda: cache.counters.uses == 2, "another wants it, too")
    source.gate.set()
    first.join(10)
    second.join(10)
    assert isinstance(died[0], KeyboardInterrupt) and came == [[1]]
    assert used(cache, 2, 3, 4) == [2, 3, 4]
    cache.close()
    assert cache.bytes == source.out == 0
