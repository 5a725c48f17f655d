import os

import pytest

from mediffusion_diffusers.data.listing import list_files


def write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"content")
    return root


def test_every_file_is_accounted_for(tmp_path):
    names = ["a/1.PNG", "a/2.jpeg", "[2021] b::c *?/\u00fc \n1.png", "a/notes.txt", "a/scan.dcm", "labels"]
    left = ["a/.hidden.png", "a/._1.png", "__MACOSX/a/1.png", "a/Thumbs.db", ".git/x"]
    root = write(tmp_path / "root", *names, *left)
    (root / "a/empty.png").touch()
    (root / "b/c").mkdir(parents=True)
    os.symlink("nowhere", root / "a/broken.png")
    os.mkfifo(root / "a/pipe.png")
    outside = write(tmp_path / "shared", "x/3.tif")
    os.symlink(outside / "x", root / "linked")
    os.symlink(root, root / "a/loop")
    os.symlink(root / "a", root / "z-again")
    listing = list_files(root)
    assert sorted(listing.files) == sorted([*names, "linked/3.tif"])
    assert list(listing.pictures()) == sorted(["a/1.PNG", "a/2.jpeg", names[2], "linked/3.tif"])
    assert dict(listing.skipped) == {
        "a/empty.png": "the file is empty (0 bytes)",
        "a/broken.png": "the link leads nowhere",
        "a/pipe.png": "no regular file",
        "a/loop/": "the same folder as '.', which is read there",
        "z-again/": "the same folder as 'a', which is read there",
    }
    assert sorted(name for names in listing.ignored.values() for name in names) == sorted(
        [".git/", "__MACOSX/", "a/.hidden.png", "a/._1.png", "a/Thumbs.db"]
    )
    assert listing.empty_folders == ["b/c/", "b/"]
    before = listing.found
    listing.set_aside(["a/1.PNG", "linked/3.tif"])
    assert list(listing.files) == ["a/1.PNG", "linked/3.tif"]
    assert {name for name, _ in listing.skipped} >= {"a/2.jpeg", "a/scan.dcm", "labels"}
    assert listing.ignored["no picture: the suffix is .txt"] == ["a/notes.txt"]
    assert listing.found == before


def test_names_that_are_no_utf8(tmp_path):
    with open(os.fsencode(tmp_path) + b"/M\xfcller.png", "wb") as file:
        file.write(b"content")
    assert list(list_files(tmp_path).files) == ["M\\xfcller.png"]


def test_what_is_no_folder(tmp_path):
    with pytest.raises(ValueError, match="`source_dir` must be a folder"):
        list_files(tmp_path / "none")
