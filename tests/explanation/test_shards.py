from concurrent.futures import ThreadPoolExecutor

from mediffusion_diffusers.explanation.input_shards import InputShard
from mediffusion_diffusers.explanation.shards import ShardFolder, ShardRecord


ROUNDS = 12


def test_processes_come_and_go_in_one_folder_without_tripping_over_one_another(tmp_path):
    """Each one writes, removes and looks while the others remove the folders that it is about to use or to enter."""

    def write_and_remove(name):
        folder, shard = ShardFolder(tmp_path), InputShard(f"data/{name}.parquet", "", 0)
        for _ in range(ROUNDS):
            folder.write_part(shard, 0, 1, [], ShardRecord({}, shard.identity, num_rows=1))
            assert folder.read_part(shard, 0, 1).num_rows == 1
            folder.remove_parts(shard)

    def look_and_clear_away():
        folder = ShardFolder(tmp_path)
        while not all(each.done() for each in writers):
            folder.is_begun()
            folder.clear_away()

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write_and_remove, name) for name in "ab"]
        lookers = [pool.submit(look_and_clear_away) for _ in range(2)]
        for each in (*writers, *lookers):
            each.result()
    ShardFolder(tmp_path).clear_away()
    assert list(tmp_path.iterdir()) == []
