#!/usr/bin/env python
"""How long many workers need for many chunks: a discrete-event simulation of the engines' own ways of dealing.

Nothing is computed; `Dealer` deals as it does for Ray, and a static split stands beside it. Workers differ in speed,
some are ten times slower, and each may be lost in a chunk, which begins anew once somebody notices. Times are in units
of a worker's mean seconds per chunk; `ideal` is the sum of the work over the sum of the speeds.

    python benchmarks/explain_at_size.py --output benchmarks/results/explain_at_size.json
"""

from __future__ import annotations

import argparse
import heapq
import random
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mediffusion_diffusers.atomic_files import write_json
from mediffusion_diffusers.data.input_shards import InputShard
from mediffusion_diffusers.explanation.chunk import Chunk, cut
from mediffusion_diffusers.explanation.ray_engine import Dealer


@dataclass(frozen=True)
class Machines:
    """Workers and their misfortunes.

    Args:
        speeds: chunks per unit of time, one per worker.
        spread: standard deviation of a chunk's time over its mean.
        lost_share: probability that a worker is lost in a chunk.
        absence: time until a lost worker is there again, and begins its chunk anew.
        seed: of the draws.
    """

    speeds: Sequence[float]
    spread: float = 0.0
    lost_share: float = 0.0
    absence: float = 0.0
    seed: int = 0


@dataclass
class Course:
    """What a simulated run came to.

    Args:
        seconds: until every chunk was finished.
        dealt: chunks by worker, in their order.
        num_lost: workers that were lost.
        deal_seconds: real time that dealing took.
    """

    seconds: float = 0.0
    dealt: dict[int, list[Chunk]] = field(default_factory=dict)
    num_lost: int = 0
    deal_seconds: float = 0.0


def simulate(chunks: Sequence[Chunk], machines: Machines, dealer: Dealer | None = None) -> Course:
    """Let the workers make all chunks; without a dealer, each has its share from the beginning, and no other."""
    rng, course, finished = random.Random(machines.seed), Course(), set()
    count = len(machines.speeds)
    shares = {worker: list(chunks[worker::count])[::-1] for worker in range(count)}
    events: list[tuple[float, int, Chunk, bool]] = []

    def begin(worker: int, chunk: Chunk) -> None:
        takes = max(rng.gauss(1.0, machines.spread), 0.1) / machines.speeds[worker]
        is_lost = rng.random() < machines.lost_share
        ends = course.seconds + (rng.random() * takes + machines.absence if is_lost else takes)
        heapq.heappush(events, (ends, worker, chunk, is_lost))

    def deal(worker: int) -> bool:
        began = time.perf_counter()
        share = shares[worker]
        chunk = dealer.next() if dealer is not None else share.pop() if share else None
        course.deal_seconds += time.perf_counter() - began
        if chunk is not None:
            course.dealt.setdefault(worker, []).append(chunk)
            begin(worker, chunk)
        return chunk is not None

    idle = [worker for worker in range(count) if not deal(worker)]
    while len(finished) < len(chunks):
        course.seconds, worker, chunk, is_lost = heapq.heappop(events)
        course.num_lost += is_lost
        if is_lost and chunk not in finished:
            begin(worker, chunk)
            continue
        finished.add(chunk)
        if dealer is not None:
            dealer.finished(chunk)
        idle.append(worker)
        while idle and deal(idle[-1]):
            idle.pop()
    return course


def chunks_of(*num_rows: int) -> list[Chunk]:
    """Chunks of one row, of shards of so many rows."""
    shards = [InputShard(f"{index}.parquet", "", 0, num_rows=rows) for index, rows in enumerate(num_rows)]
    return [chunk for shard in shards for chunk in cut(shard, 1)]


def main() -> None:
    """Simulate each case with both dealers and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_chunks", type=int, default=10_000)
    parser.add_argument("--num_workers", type=int, default=1000)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    equal = [1.0] * args.num_workers
    slow = [0.1] * (args.num_workers // 100) + equal[args.num_workers // 100 :]
    cases = {
        "equal workers": Machines(equal),
        "times that vary by 10 %": Machines(equal, spread=0.1),
        "1 % of the workers ten times slower": Machines(slow, spread=0.1),
        "the same, and every hundredth chunk loses its worker for two chunks' time": Machines(slow, 0.1, 0.01, 2.0),
    }
    results = {}
    for name, machines in cases.items():
        chunks = chunks_of(*[args.num_chunks // 100] * 100)
        ideal = len(chunks) / sum(machines.speeds)
        courses = {
            "dynamic": simulate(chunks, machines, Dealer(chunks)),
            "static": simulate(chunks, machines),
        }
        results[name] = {
            "ideal": ideal,
            **{f"{kind}_over_ideal": round(course.seconds / ideal, 4) for kind, course in courses.items()},
            "num_lost": courses["dynamic"].num_lost,
            "chunks_dealt": sum(map(len, courses["dynamic"].dealt.values())),
            "deal_milliseconds_per_chunk": round(1000 * courses["dynamic"].deal_seconds / len(chunks), 4),
        }
        print(f"{name}: {results[name]}", flush=True)
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "num_chunks": args.num_chunks,
        "num_workers": args.num_workers,
        "cases": {name: {**result, "machines": _told(cases[name])} for name, result in results.items()},
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, report)


def _told(machines: Machines) -> dict[str, float]:
    """The settings without the list of speeds."""
    return {name: value for name, value in asdict(machines).items() if name != "speeds"}


if __name__ == "__main__":
    main()
