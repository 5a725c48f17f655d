"""A conversion in parts: the same files whoever makes them, and nothing done twice after a kill."""

import multiprocessing
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mediffusion_diffusers.data import conversion, load_prepared
from mediffusion_diffusers.data.conversion import SourceImage, file_content, write_sources
from mediffusion_diffusers.data.schema import MULTI_LABEL, DatasetInfo
from mediffusion_diffusers.data.writer import REPORT_FILE, ConversionReport


INFO = DatasetInfo("toy", "nowhere", "none", "nobody", MULTI_LABEL, ["Mass"], 1, None)


@dataclass(frozen=True)
class Picture:
    """A file that notes whenever it is read; what stands in `trap` happens to who reads it first."""

    path: Path
    trap: Path | None = None

    @property
    def content(self):
        return file_content(self.path)

    def __call__(self):
        if self.trap is not None and self.trap.exists():
            action = self.trap.read_text()
            self.trap.unlink()
            if action == "interrupt":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGKILL)
        with open(self.path.parent / "read.txt", "a") as file:
            file.write(f"{self.path.stem}\n")
        return str(self.path)


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Ten pictures, of which the fourth is torn and the eighth a trap, in parts of three."""
    monkeypatch.setattr(conversion, "PART_IMAGES", 3)
    folder = tmp_path / "source"
    folder.mkdir()
    for index in range(10):
        Image.fromarray(np.full((4, 4), 20 * index, np.uint8)).save(folder / f"{index}.png")
    (folder / "3.png").write_bytes(b"torn")
    return [
        SourceImage(f"im{index}", Picture(folder / f"{index}.png", tmp_path / "trap" if index == 7 else None))
        for index in range(10)
    ]


def convert(folder, sources, num_workers=1, **options):
    fields = {"labels": [1]}
    splits = {"train": sources[:7], "test": sources[7:]}
    for source in sources:
        source.fields.update(fields, patient_id=source.image_id)
    return write_sources(folder, splits, INFO, ConversionReport(), num_workers=num_workers, **options)


def bytes_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def was_read(tmp_path):
    path = tmp_path / "source" / "read.txt"
    names = sorted(path.read_text().split())
    path.unlink()
    return names


def test_several_processes_write_what_one_does(tmp_path, sources):
    info = convert(tmp_path / "one", sources)
    convert(tmp_path / "two", sources, num_workers=2)
    assert info.num_rows == {"train": 6, "test": 3}
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    assert sorted(bytes_of(tmp_path / "one")) == [
        REPORT_FILE,
        *("data/test-00000-of-00001.parquet", "data/train-00000-of-00003.parquet"),
        *("data/train-00001-of-00003.parquet", "data/train-00002-of-00003.parquet"),
        "dataset_info.json",
    ]
    train = load_prepared(tmp_path / "two", "train", ["image_id"])
    assert train["image_id"][:] == [f"im{index}" for index in (0, 1, 2, 4, 5, 6)]


def run_and_be_killed(folder, sources):
    convert(folder, sources, num_workers=1)


@pytest.mark.parametrize("killed", ["Ctrl-C", "the run", "a worker"])
def test_a_run_goes_on_where_it_was_ended(tmp_path, sources, killed):
    convert(tmp_path / "whole", sources)
    was_read(tmp_path)
    (tmp_path / "trap").write_text("interrupt" if killed == "Ctrl-C" else "kill")
    if killed == "Ctrl-C":
        with pytest.raises(KeyboardInterrupt):
            convert(tmp_path / "set", sources)
    elif killed == "the run":
        run = multiprocessing.get_context("fork").Process(target=run_and_be_killed, args=(tmp_path / "set", sources))
        run.start()
        run.join()
        assert run.exitcode == -signal.SIGKILL
    else:
        with pytest.raises(OSError, match=r"was killed.*The same command goes on.*`num_workers`"):
            convert(tmp_path / "set", sources, num_workers=2)
    assert not (tmp_path / "trap").exists() and not (tmp_path / "set").exists()

    done = was_read(tmp_path)
    convert(tmp_path / "set", sources, num_workers=2)
    again = was_read(tmp_path)
    assert "7" in again and "0" not in again and {*done, *again} == set("012345678") | {"9"}
    assert bytes_of(tmp_path / "set") == bytes_of(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "source", "whole"]


def test_another_source_begins_anew(tmp_path, sources):
    (tmp_path / "trap").write_text("interrupt")
    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "set", sources)
    was_read(tmp_path)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "source" / "9.png")
    convert(tmp_path / "set", sources)
    assert was_read(tmp_path) == sorted("0123456789")


def test_a_mistake_leaves_nothing(tmp_path, sources):
    for num_workers in (1, 2):
        with pytest.raises(ValueError, match="Cannot decode im3: the file is corrupt"):
            convert(tmp_path / "set", sources, num_workers, strict=True)
        assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_same_image_twice_is_found_across_parts(tmp_path, sources):
    twice = [*sources[:6], SourceImage("im0", sources[0].picture), *sources[7:]]
    with pytest.raises(ValueError, match="'im0' is there twice"):
        convert(tmp_path / "set", twice)
