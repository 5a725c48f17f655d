"""Whole datasets explained or classified: sharded parquet in, chunk by chunk, by many workers, restartable.

A chunk (`chunk`) is some rows of an input shard and becomes one file (`store`), whose footer says what it belongs to;
what is asked, and how the answers become rows, is in `requests`. A worker (`worker`) makes one chunk after the other.
Engines say who makes which: `dataset_runner` the processes of `accelerate launch`, `ray_engine` the actors of a
cluster. What is finished is what the folder holds, and whoever is killed loses a chunk.
"""
