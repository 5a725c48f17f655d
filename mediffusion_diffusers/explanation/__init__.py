"""Explain whole datasets: counterfactuals of every image of sharded parquet, by many processes, restartable.

One output shard per input shard (`shards`), written aside and renamed (`staging`), and a `manifest.json` that lists
them. Whoever is killed loses at most the part of a shard in work; the same command goes on from there.
"""
