import itertools

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from mediffusion_diffusers.data.schema import load_prepared
from mediffusion_diffusers.data.transforms import ImageTransform
from mediffusion_diffusers.models import SpaceToDepthAutoencoder
from mediffusion_diffusers.training.data.image_rows import ImageRows, stream_batches
from mediffusion_diffusers.training.data.latent_statistics import check_latent_std, measure_latent_std
from mediffusion_diffusers.training.data.streams import IndexStream, take_slice


def rows_of(stream, steps):
    return [item.row for step in steps for item in stream.batch(step)]


def test_every_pass_shows_every_row_once_in_a_new_order():
    stream = IndexStream([3, 5, 8, 13, 21, 34], 4, seed=0, name="a")
    shown = rows_of(stream, range(6))
    passes = [shown[start : start + 6] for start in range(0, 24, 6)]
    assert all(sorted(each) == [3, 5, 8, 13, 21, 34] for each in passes)
    assert len({tuple(each) for each in passes}) > 1


def test_a_step_depends_on_seed_and_name_alone():
    first, again = (IndexStream(range(20), 8, seed=1, name="a") for _ in range(2))
    expected = [first.batch(step) for step in range(7)]
    assert [again.batch(step) for step in (6, 2)] == [expected[6], expected[2]]
    for other in (IndexStream(range(20), 8, seed=2, name="a"), IndexStream(range(20), 8, seed=1, name="b")):
        assert rows_of(other, range(7)) != rows_of(first, range(7))


def test_positions_number_the_places():
    stream = IndexStream(range(5), 3, seed=0, name="a")
    positions = [item.position for step in range(4) for item in stream.batch(step)]
    assert positions == list(range(12))


def test_a_batch_may_be_larger_than_the_dataset():
    shown = rows_of(IndexStream([7, 9], 5, seed=0, name="a"), [0])
    assert len(shown) == 5 and set(shown[:2]) == {7, 9} and set(shown[2:4]) == {7, 9}


@pytest.mark.parametrize("num_parts", [1, 2, 3, 5, 9])
def test_slices_are_the_batch(num_parts):
    batch = IndexStream(range(30), 7, seed=0, name="a").batch(2)
    slices = [take_slice(batch, part, num_parts) for part in range(num_parts)]
    assert list(itertools.chain.from_iterable(slices)) == batch
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


def test_an_empty_stream_is_refused():
    with pytest.raises(ValueError, match="labelled stream needs at least one example"):
        IndexStream([], 4, seed=0, name="labelled")
    with pytest.raises(ValueError, match="`batch_size` of the labelled stream must be at least 1, but got 0"):
        IndexStream([1], 0, seed=0, name="labelled")


@pytest.fixture(scope="module")
def rows(phantoms):
    return ImageRows(load_prepared(phantoms, "train"))


TRANSFORM = ImageTransform(16, 1, shift=2, intensity=0.2)


def take(count, *args, **kwargs):
    return list(itertools.islice(stream_batches(*args, **kwargs), count))


def test_processes_and_parts_share_the_same_augmented_batch(rows):
    stream = IndexStream(rows.indices, 6, seed=0, name="a")
    whole = take(3, rows, TRANSFORM, stream)
    for num_ranks, num_parts in ((2, 1), (1, 3), (2, 2)):
        slices = [
            take(3 * num_parts, rows, TRANSFORM, stream, 0, rank, num_ranks, num_parts) for rank in range(num_ranks)
        ]
        for step in range(3):
            parts = range(step * num_parts, (step + 1) * num_parts)
            together = torch.cat([slices[rank][part] for part in parts for rank in range(num_ranks)])
            assert torch.equal(together, whole[step])


def test_entering_later_shows_what_comes_next(rows):
    stream = IndexStream(rows.indices, 5, seed=0, name="a")
    whole = take(6, rows, TRANSFORM, stream)
    assert all(map(torch.equal, take(2, rows, TRANSFORM, stream, 4), whole[4:]))


def test_workers_and_the_cache_change_nothing(rows, phantoms):
    stream = IndexStream(rows.indices, 5, seed=0, name="a")
    uncached = ImageRows(load_prepared(phantoms, "train"), cache="never")
    assert rows.is_cached and not uncached.is_cached
    expected = take(2, rows, TRANSFORM, stream)
    assert all(map(torch.equal, take(2, uncached, TRANSFORM, stream), expected))
    assert all(map(torch.equal, take(2, rows, TRANSFORM, stream, num_workers=1), expected))


def test_a_slice_may_be_empty(rows):
    stream = IndexStream(rows.indices, 1, seed=0, name="a")
    assert take(1, rows, TRANSFORM, stream, rank=0, num_ranks=2)[0].shape == (0, 1, 16, 16)


def test_rows_without_pictures_are_left_out(phantoms):
    dataset = load_prepared(phantoms, "train").select(range(4))
    missing = dataset.map(lambda row, index: {"image": None if index != 2 else row["image"]}, with_indices=True)
    rows = ImageRows(missing)
    assert rows.num_missing == 3 and np.array_equal(rows.indices, [2])
    with pytest.raises(ValueError, match="None of the 2 images has a picture"):
        ImageRows(missing.select([0, 1]))
    with pytest.raises(ValueError, match="`cache_images` must be 'auto', 'always' or 'never'"):
        ImageRows(dataset, cache="maybe")


@pytest.mark.parametrize("cache", ["always", "never"])
def test_a_picture_that_is_damaged_is_named(phantoms, cache):
    table = load_prepared(phantoms, "train").select(range(3)).with_format("arrow")[:]
    pictures = table["image"].to_pylist()
    pictures[1]["bytes"] = pictures[1]["bytes"][:60]
    damaged = datasets.Dataset.from_dict({"image": pictures}).cast_column("image", datasets.Image())
    with pytest.raises(ValueError, match="Cannot decode the picture of row 2 of the training images: "):
        ImageRows(damaged, cache, "training images").picture(1)


def test_images_that_show_nothing_are_refused(phantoms):
    rows = ImageRows(load_prepared(phantoms, "train").select(range(3)))
    assert check_latent_std(measure_latent_std(SpaceToDepthAutoencoder(), rows, TRANSFORM)) > 0.1
    rows._pictures = {index: Image.new("L", (16, 16), 77) for index in range(3)}
    for std in (measure_latent_std(SpaceToDepthAutoencoder(), rows, TRANSFORM), float("nan")):
        with pytest.raises(ValueError, match="all the same number"):
            check_latent_std(std)
