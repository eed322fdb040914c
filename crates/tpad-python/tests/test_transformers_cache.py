"""The worker's cache of experts: its bound, its order, and what failures leave."""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict

import pytest

from pieces import Pieces, used
from serving import wait_for
from tpad.transformers import BudgetTooSmall
from tpad.transformers.cache import ExpertCache


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
    plan = cache._shelf.plan

    def counted(keys):
        nonlocal plans
        plans += 1
        return plan(keys)

    cache._shelf.plan = counted  # type: ignore[method-assign]
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
