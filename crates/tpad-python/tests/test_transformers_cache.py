"""The worker's cache of experts: its bound, its order, and what failures leave."""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict

import pytest


from serving import wait_for
from tpad.transformers import BudgetTooSmall
from tpad.transformers.cache import ExpertCache
from tpad.transformers.store import ServedStore


class Piece:
    """A block that says when it was released."""

    def __init__(self, source: Pieces, key: int) -> None:
        self.source, self.key, self.nbytes = source, key, source.sizes(key)
        source.out += self.nbytes
        source.most = max(source.most, source.out)
        self.released = False

    def release(self) -> None:
        assert not self.released, f"{self.key} was released twice"
        self.released = True
        self.source.out -= self.nbytes


class Wanted:
    """Blocks that a source was asked for: they come when its gate is open."""

    def __init__(self, source: Pieces, keys) -> None:
        self.source, self.keys = source, list(keys)
        self.failing = bool(source.failing.intersection(keys))
        if source.once:
            source.failing = set()

    def done(self) -> bool:
        return self.source.gate.is_set()

    def wait(self) -> list[Piece]:
        assert self.source.gate.wait(10)
        if self.source.interrupt is not None:
            error, self.source.interrupt = self.source.interrupt, None
            raise error
        if self.failing:
            raise OSError(f"{self.keys} cannot be had")
        self.source.known = True
        return [Piece(self.source, key) for key in self.keys]

    def cancel(self) -> None:
        self.source.cancelled.append(self.keys)


class Pieces:
    """A source that counts what is out."""

    def __init__(self, sizes=lambda key: 10, known: bool = True) -> None:
        self.sizes, self.known = sizes, known
        self.out = self.most = 0
        self.asked: list[list[int]] = []
        self.cancelled: list[list[int]] = []
        self.interrupt: BaseException | None = None
        self.failing: set[int] = set()
        self.once = False
        self.gate = threading.Event()
        self.gate.set()

    def nbytes(self, key: int) -> int | None:
        return self.sizes(key) if self.known else None

    def begin(self, keys) -> Wanted:
        self.asked.append(list(keys))
        return Wanted(self, keys)

    def warm(self, keys) -> bool:
        return False


def used(cache: ExpertCache, *keys: int) -> list[int]:
    """Uses blocks; their keys as they came."""
    came = []
    for piece in cache.use(keys):
        assert not piece.released
        came.append(piece.key)
    return came


def test_it_is_lru_within_its_budget_whatever_is_asked() -> None:
    draw = random.Random(3)
    source = Pieces()
    cache = ExpertCache(source, 70)
    model: OrderedDict[int, None] = OrderedDict()
    for _ in range(2000):
        key = draw.randrange(14)
        asked = len(source.asked)
        assert used(cache, key) == [key]
        assert (len(source.asked) > asked) == (key not in model)
        model[key] = None
        model.move_to_end(key)
        if len(model) > 7:
            model.popitem(last=False)
        assert source.out == cache.bytes == 10 * len(model)
    assert source.most == cache.counters.peak_bytes == 70
    assert cache.counters.hits + cache.counters.fetches == cache.counters.uses == 2000
    cache.close()
    assert source.out == cache.bytes == 0


def test_more_than_the_budget_comes_in_turns_in_the_order_asked() -> None:
    draw = random.Random(5)
    source = Pieces(lambda key: 5 + key)
    cache = ExpertCache(source, 40)
    for _ in range(300):
        keys = draw.sample(range(16), draw.randrange(1, 16))
        assert used(cache, *keys) == keys
        assert source.out == cache.bytes <= 40
    assert source.most <= 40
    assert max(map(len, source.asked)) > 1, "what fits together is asked for together"
    cache.close()


def test_a_block_of_unknown_size_is_fetched_alone() -> None:
    source = Pieces(known=False)
    cache = ExpertCache(source, 40)
    assert used(cache, 1, 2, 3) == [1, 2, 3]
    assert source.asked == [[1], [2, 3]]
    assert cache.bytes == 30
    cache.close()


@pytest.mark.parametrize("known", [True, False])
def test_one_that_has_no_room_at_all_is_told_with_both_sizes(known: bool) -> None:
    source = Pieces(lambda key: 100, known=known)
    cache = ExpertCache(source, 40)
    with pytest.raises(BudgetTooSmall, match="100 bytes and expert_budget is 40"):
        used(cache, 1)
    assert source.out == cache.bytes == 0
    cache.close()


def test_a_failed_fetch_leaves_nothing_and_may_be_tried_again() -> None:
    source = Pieces()
    cache = ExpertCache(source, 40)
    used(cache, 1)
    source.failing = {2}
    with pytest.raises(OSError, match="cannot be had"):
        used(cache, 1, 2)
    assert cache.bytes == source.out == 10
    source.failing = set()
    assert used(cache, 1, 2, 3, 4) == [1, 2, 3, 4]
    assert cache.bytes == 40, "a pin that was left would stand in the way"
    assert used(cache, 5, 6, 7, 8) == [5, 6, 7, 8]
    cache.close()


def test_what_is_computed_with_stays_whoever_else_wants_room() -> None:
    source = Pieces()
    cache = ExpertCache(source, 20)
    first = cache.use([1, 2])
    held = next(first)
    other = threading.Thread(target=used, args=(cache, 3))
    other.start()
    cache.guess([4, 5])
    assert not held.released
    assert [piece.key for piece in first] == [2]
    other.join(10)
    assert not other.is_alive() and held.released
    assert source.most == 20
    cache.close()


def test_two_threads_that_want_one_block_fetch_it_once() -> None:
    source = Pieces()
    source.gate.clear()
    cache = ExpertCache(source, 40)
    threads = [threading.Thread(target=used, args=(cache, 1)) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: cache.counters.uses == 4, "all have asked")
    source.gate.set()
    for thread in threads:
        thread.join(10)
    assert source.asked == [[1]]
    cache.close()
    assert source.out == 0


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


def test_a_block_that_is_too_large_leaves_no_pin() -> None:
    source = Pieces(lambda key: 1000 if key == 9 else 10)
    cache = ExpertCache(source, 40)
    used(cache, 1, 2)
    with pytest.raises(BudgetTooSmall, match="1000 bytes"):
        used(cache, 1, 2, 9)
    cache.guess([9])
    assert used(cache, 3, 4, 5, 6) == [3, 4, 5, 6], "a pin that was left would stand in the way"
    assert cache.bytes == source.out == 40
    cache.close()


def test_one_that_turns_out_too_large_is_told_to_all_who_want_it() -> None:
    # As its size is not known, it is asked for; a guess in between takes it in.
    source = Pieces(lambda key: 100, known=False)
    cache = ExpertCache(source, 40)
    with pytest.raises(BudgetTooSmall, match="100 bytes"):
        list(cache.use([1], lambda: cache.guess([2])))
    assert source.out == cache.bytes == 0
    source.known = False
    source.gate.clear()
    told: list[object] = []

    def work() -> None:
        try:
            told.append(used(cache, 1))
        except BudgetTooSmall as error:
            told.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_for(lambda: cache.counters.uses == 4, "all have asked")
    source.gate.set()
    for thread in threads:
        thread.join(10)
    assert len(told) == 3 and all(isinstance(one, BudgetTooSmall) for one in told), told
    cache.close()
    assert source.out == cache.bytes == 0


def test_threads_that_wait_for_room_do_not_wake_each_other() -> None:
    source = Pieces()
    cache = ExpertCache(source, 20)
    plans = 0
    plan = cache._plan

    def counted(keys):
        nonlocal plans
        plans += 1
        return plan(keys)

    cache._plan = counted  # type: ignore[method-assign]
    holding = cache.use([1, 2])
    next(holding)
    threads = [threading.Thread(target=used, args=(cache, key)) for key in (3, 4, 5)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    assert plans < 20, plans
    assert [piece.key for piece in holding] == [2]
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    cache.close()


def test_a_key_may_be_asked_for_twice_at_once() -> None:
    source = Pieces()
    cache = ExpertCache(source, 40)
    cache.guess([5, 5])
    assert used(cache, 1, 1, 2, 1, 5) == [1, 1, 2, 1, 5]
    assert cache.bytes == source.out == 30
    cache.close()
    assert source.out == cache.bytes == 0


def test_what_is_used_while_it_closes_goes_afterwards() -> None:
    source = Pieces()
    cache = ExpertCache(source, 40)
    blocks = cache.use([1, 2])
    assert not next(blocks).released
    cache.close()
    assert source.out > 0, "it is being computed with"
    blocks.close()
    assert source.out == cache.bytes == 0
    with pytest.raises(ValueError, match="closed"):
        used(cache, 1)
    cache = ExpertCache(source, 40)
    source.gate.clear()
    blocks = cache.use([1])
    waiting = threading.Thread(target=lambda: list(blocks))
    waiting.start()
    wait_for(lambda: source.asked[-1] == [1] and cache.counters.uses == 1, "it was asked for")
    cache.close()
    source.gate.set()
    waiting.join(10)
    assert source.out == cache.bytes == 0


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
