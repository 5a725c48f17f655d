import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from mediffusion_diffusers.atomic_files import (
    create_json,
    new_file,
    new_folder,
    read_json,
    remove,
    write_bytes,
    write_json,
    write_text,
)


def test_text_is_written_as_given(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "naïve\r\nsecond\n")
    assert path.read_bytes() == "naïve\r\nsecond\n".encode()
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_bytes_are_written_as_given(tmp_path):
    write_bytes(tmp_path / "a.bin", bytes(range(256)))
    assert (tmp_path / "a.bin").read_bytes() == bytes(range(256))


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_permissions(tmp_path):
    write_text(tmp_path / "open.txt", "")
    write_text(tmp_path / "private.txt", "", mode=0o600)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("open.txt", "private.txt")]
    assert modes == [0o644, 0o600]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_a_file_written_in_parts_gets_its_name_at_the_end(tmp_path):
    path = tmp_path / "a.bin"
    path.write_text("before")
    with new_file(path) as aside, aside.open("wb") as file:
        file.write(b"first")
        assert path.read_text() == "before" and aside.parent == tmp_path
        assert aside.name.startswith(".a.bin.") and aside.name.endswith(".partial")
        file.write(b", second")
    assert path.read_text() == "first, second"
    with pytest.raises(KeyboardInterrupt), new_file(path) as aside:
        aside.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "first, second" and list(tmp_path.iterdir()) == [path]


def test_a_folder_gets_its_name_at_the_end(tmp_path):
    folder = tmp_path / "folder"
    for content in ("first", "second"):
        with new_folder(folder) as aside:
            (aside / f"{content}.txt").write_text(content)
            assert not (folder / f"{content}.txt").exists()
        assert [path.name for path in folder.iterdir()] == [f"{content}.txt"]
    with pytest.raises(OSError, match="full"), new_folder(folder) as aside:
        (aside / "third.txt").write_text("half")
        raise OSError("full")
    assert [path.name for path in folder.iterdir()] == ["second.txt"] and list(tmp_path.iterdir()) == [folder]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_folder_is_as_open_as_others(tmp_path):
    with new_folder(tmp_path / "folder"):
        pass
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755


def test_of_many_at_once_one_is_the_first(tmp_path, monkeypatch):
    path = tmp_path / "choice.json"
    with ThreadPoolExecutor(8) as pool:
        were_first = list(pool.map(lambda choice: create_json(path, choice), range(8)))
    assert were_first.count(True) == 1 and read_json(path) == were_first.index(True)
    assert list(tmp_path.iterdir()) == [path]

    def without_links(*arguments):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", without_links)
    assert not create_json(path, "other") and create_json(tmp_path / "new.json", "mine")
    assert read_json(tmp_path / "new.json") == "mine" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(os.devnull)
    for name in ("pipe", "link"):
        with pytest.raises(FileExistsError, match=f"{name} is a device or pipe"):
            write_text(tmp_path / name, "text")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]


def test_a_link_is_removed_and_not_what_it_points_to(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("kept")
    names = ("folder", "file", "to a folder", "to a file", "to nothing")
    folder, file, *links = (tmp_path / name for name in names)
    (folder / "in it").mkdir(parents=True)
    file.write_text("")
    for link, target in zip(links, (kept, kept / "file", tmp_path / "nowhere"), strict=True):
        link.symlink_to(target)
    for name in (*names, "not there"):
        remove(tmp_path / name)
    assert os.listdir(tmp_path) == ["kept"] and (kept / "file").read_text() == "kept"


def test_a_folder_takes_the_place_of_a_link_to_nothing(tmp_path):
    (tmp_path / "folder").symlink_to(tmp_path / "nowhere")
    with new_folder(tmp_path / "folder") as aside:
        (aside / "file").write_text("new")
    assert (tmp_path / "folder" / "file").read_text() == "new" and not (tmp_path / "folder").is_symlink()
