"""Who gets which chunk, by a simulation of workers that are slow or are lost; Ray itself is not needed."""

from collections import Counter

import pytest
from explain_at_size import Machines, chunks_of, simulate

from mediffusion_diffusers.data.input_shards import InputShard
from mediffusion_diffusers.explanation.chunk import Chunk
from mediffusion_diffusers.explanation.ray_engine import Dealer


def test_an_empty_shard_is_an_empty_chunk():
    assert [(chunk.start, chunk.stop) for chunk in chunks_of(0, 2)] == [(0, 0), (0, 1), (1, 2)]
    assert Chunk(InputShard("data/a.parquet", "", 0), 0, 512).file_name == "data/a-rows-00000000-00000512.parquet"


@pytest.mark.parametrize("num_workers", [1, 2, 7])
def test_equal_workers_need_the_least_time_and_read_in_order(num_workers):
    chunks = chunks_of(*[30] * 4)
    course = simulate(chunks, Machines([1.0] * num_workers), Dealer(chunks))
    assert course.seconds == -(-len(chunks) // num_workers)
    place = {chunk: index for index, chunk in enumerate(chunks)}
    assert all(sorted(own, key=place.get) == own for own in course.dealt.values())


@pytest.mark.parametrize("num_workers", [2, 4, 8])
def test_a_slow_worker_keeps_nobody_waiting(num_workers):
    chunks, machines = chunks_of(40 * num_workers), Machines([0.1, *[1.0] * (num_workers - 1)])
    ideal = len(chunks) / sum(machines.speeds)
    assert simulate(chunks, machines, Dealer(chunks)).seconds <= 1.1 * ideal
    assert simulate(chunks, machines).seconds >= 4 * ideal


@pytest.mark.parametrize("seed", range(5))
def test_a_worker_that_is_lost_costs_little(seed):
    chunks = chunks_of(50, 50)
    course = simulate(chunks, Machines([1.0] * 5, lost_share=0.2, absence=1.0, seed=seed), Dealer(chunks))
    counts = Counter(chunk for own in course.dealt.values() for chunk in own)
    assert set(counts) == set(chunks) and course.num_lost > 0 and course.seconds < 40
    assert sum(counts.values()) <= 100 + 2 * 5


def test_a_chunk_is_dealt_three_times_at_most_and_only_when_nothing_else_is_left():
    one, two = chunks_of(2)
    dealer = Dealer([one, two])
    assert [dealer.next() for _ in range(7)] == [one, two, one, two, one, two, None]
    dealer.finished(one)
    dealer.finished(one)  # by its other workers
    assert dealer.next() is None
    dealer.finished(two)
    assert dealer.next() is None
