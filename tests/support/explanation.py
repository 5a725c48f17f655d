"""Sharded phantoms with good and bad rows, and what the shards of explanations hold."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mediffusion_diffusers.data.phantom import prepare_phantoms
from mediffusion_diffusers.data.pictures import encode_png
from mediffusion_diffusers.explanation.plan import ExplanationJob
from mediffusion_diffusers.requests.counterfactuals import ExplanationRequest

from .sources import random_picture


def write_shards(folder, split, num_shards, rows_per_group=3):
    """Cut a split of a prepared dataset into several files, each of several row groups."""
    (whole,) = sorted((folder / "data").glob(f"{split}-*.parquet"))
    table = pq.read_table(whole)
    whole.unlink()
    size = -(-len(table) // num_shards)
    for index in range(num_shards):
        path = folder / "data" / f"{split}-{index:05d}-of-{num_shards:05d}.parquet"
        pq.write_table(table.slice(index * size, size), path, row_group_size=rows_per_group)


def bad_pictures():
    """Values of an image column that cannot be explained, each with a part of the reason."""
    png = encode_png(random_picture(0))
    frames, holes = io.BytesIO(), io.BytesIO()
    random_picture(0).save(frames, format="TIFF", save_all=True, append_images=[random_picture(1)])
    Image.fromarray(np.full((16, 16), np.nan, dtype=np.float32)).save(holes, format="TIFF")
    return [
        ({"bytes": png[:-40], "path": None}, "Cannot decode the image"),
        ({"bytes": b"no picture", "path": None}, "Cannot decode the image"),
        ({"bytes": frames.getvalue(), "path": None}, "holds 2 frames"),
        ({"bytes": holes.getvalue(), "path": None}, "must be finite"),
        (None, "holds no encoded image"),
    ]


def with_broken_exif(png):
    """The picture with an EXIF chunk that no parser understands."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).save(buffer, format="PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    return buffer.getvalue()


def output_table(output_dir):
    """All rows of the finished shards, in the order of the shards' names."""
    paths = sorted(path for path in output_dir.rglob("*.parquet"))
    return pa.concat_tables(pq.read_table(path).replace_schema_metadata(None) for path in paths)


def prepare_sharded_phantoms(folder):
    """A prepared dataset of 30 training phantoms of 16x16 pixels in four files, and 6 validation phantoms in one."""
    prepare_phantoms(folder, 30, 6, 0, image_size=16, show_progress=False)
    write_shards(folder, "train", num_shards=4)
    return folder


def output_bytes(output_dir):
    """Every file of an output folder, by name; nothing of the work on them may be left."""
    return {
        path.relative_to(output_dir).as_posix(): path.read_bytes() for path in output_dir.rglob("*") if path.is_file()
    }


def job(dataset, output_dir, batch_size=3, **changes):
    """A quiet job that removes cardiomegaly, without controls, three rows a chunk; `changes` of request or job."""
    of_job = {name: changes.pop(name) for name in list(changes) if name in ExplanationJob.__dataclass_fields__}
    request = ExplanationRequest(**{"away": ("Cardiomegaly",), "controls": False, **changes})
    return ExplanationJob(
        str(dataset),
        output_dir,
        request,
        **{"batch_size": batch_size, "chunk_rows": 3, "show_progress": False, **of_job},
    )


def manifest_of(output_dir):
    """The manifest of an output folder."""
    return json.loads((output_dir / "manifest.json").read_text())
