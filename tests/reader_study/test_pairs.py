"""Pairs from a table and from folders."""

import pytest
from PIL import Image
from support.components import random_pil

from mediffusion_diffusers.reader_study.pairs import Case, ImagePair, plain_picture, read_folders, read_table


HEADER = "case,label,direction,method,original,modified\n"


@pytest.fixture
def folders(tmp_path):
    first, second = random_pil(2)
    for name, picture in {"original/a": first, "ours/remove/Mass/a": second, "noise/remove/Mass/a": first}.items():
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return tmp_path


def test_folders_and_a_table_of_the_same_files_give_the_same_pairs(folders):
    table = folders / "pairs.csv"
    rows = [f"a,Mass,remove,{method},original/a.png,{method}/remove/Mass/a.png" for method in ("noise", "ours")]
    table.write_text(HEADER + "\n".join(rows))
    from_table, from_folders = read_table(table), read_folders(folders)
    assert len(from_table) == 2
    for one, other in zip(from_table, from_folders, strict=True):
        assert (one.case, one.method) == (other.case, other.method)
        assert (one.original, one.modified) == (other.original, other.modified)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,Mass,removed,ours,original/a.png,original/a.png", "line 2: `direction` must be one of 'remove', 'add'"),
        ("a,Mass,remove,ours,original/a.png,none.png", "line 2: .*none.png"),
        ("a,,remove,ours,original/a.png,original/a.png", "line 2: a cell is empty"),
        ("a,Mass,remove,ours,original/a.png,small.png", "one size and mode.*16 x 16 L and 8 x 8 L"),
        ("\n".join(["a,Mass,remove,ours,original/a.png,original/a.png"] * 2), "twice"),
        ("", "holds no pair"),
    ],
)
def test_what_a_table_cannot_hold_is_named(folders, row, message):
    Image.new("L", (8, 8)).save(folders / "small.png")
    (folders / "pairs.csv").write_text(HEADER + row)
    with pytest.raises(ValueError, match=message):
        read_table(folders / "pairs.csv")


def test_a_changed_image_needs_its_original(folders):
    (folders / "original" / "a.png").rename(folders / "original" / "b.png")
    with pytest.raises(ValueError, match="has no original"):
        read_folders(folders)
    with pytest.raises(ValueError, match="must hold pictures in original/"):
        read_folders(folders / "ours")


def test_what_folders_cannot_mean_is_named(folders):
    changed = folders / "ours" / "remove" / "a.png"
    random_pil(1)[0].save(changed)
    with pytest.raises(ValueError, match=r"a\.png must lie in a folder named by its finding"):
        read_folders(folders)
    changed.write_bytes(b"")
    with pytest.raises(ValueError, match=r"a.png cannot be used: the file is empty"):
        read_folders(folders)
    changed.unlink()
    (folders / "original" / "._a.png").write_bytes(b"left behind by a system")
    assert len(read_folders(folders)) == 2
    random_pil(1)[0].save(folders / "original" / "a.bmp")
    with pytest.raises(ValueError, match=r"a\.bmp and .*a\.png are two originals of one case, 'a'"):
        read_folders(folders)


def test_pictures_keep_pixels_and_lose_everything_else(tmp_path):
    picture = Image.new("RGB", (4, 4), (200, 10, 10))
    picture.info["comment"] = "JANE DOE"
    assert plain_picture(picture).getpixel((0, 0)) == (200, 10, 10) and plain_picture(picture).info == {}
    grey = plain_picture(Image.new("I;16", (4, 4), 65535))
    assert (grey.mode, grey.getpixel((0, 0))) == ("L", 255)
    with pytest.raises(ValueError, match="one size and mode"):
        ImagePair(Case("a", "Mass", "add"), "ours", grey, picture)
