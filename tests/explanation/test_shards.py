import itertools
import time
from concurrent.futures import ThreadPoolExecutor

from mediffusion_diffusers.explanation.input_shards import InputShard
from mediffusion_diffusers.explanation.shards import ShardFolder, ShardRecord


SECONDS = 1.5


def test_processes_come_and_go_in_one_folder_without_tripping_over_one_another(tmp_path):
    """Each one writes, removes and looks while the others remove the folders that it is about to use or to enter."""
    end = time.monotonic() + SECONDS

    def write_and_remove(name):
        folder, shard = ShardFolder(tmp_path), InputShard(f"data/{name}.parquet", "", 0)
        for count in itertools.count(1):
            folder.write_part(shard, 0, 1, [], ShardRecord({}, shard.identity, num_rows=1))
            assert folder.read_part(shard, 0, 1).num_rows == 1
            folder.remove_parts(shard)
            if time.monotonic() > end:
                return count

    def look_and_clear_away():
        folder = ShardFolder(tmp_path)
        for count in itertools.count(1):
            folder.is_begun()
            folder.clear_away()
            if time.monotonic() > end:
                return count

    with ThreadPoolExecutor(4) as pool:
        work = [pool.submit(write_and_remove, name) for name in "ab"]
        work += [pool.submit(look_and_clear_away) for _ in range(2)]
        assert all(each.result() > 10 for each in work)
    ShardFolder(tmp_path).clear_away()
    assert list(tmp_path.iterdir()) == []
