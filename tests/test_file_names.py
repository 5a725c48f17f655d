import pytest

from mediffusion_diffusers.file_names import file_stems


NAMES = [
    "Mass",
    "mass",
    "a/b",
    "a b",
    "a:b~3",
    "../../etc",
    ".hidden",
    "-rf",
    "",
    "/",
    "x" * 1000,
    "x" * 999,
    "é" * 300,
]


def test_each_has_a_name_of_its_own_that_every_file_system_takes(tmp_path):
    stems = file_stems(NAMES)
    for stem in stems:
        (tmp_path / f"panel-{stem}.png").touch()
        assert not stem.startswith((".", "-")) and "/" not in stem
    assert len({path.name.casefold() for path in tmp_path.iterdir()}) == len(NAMES)


@pytest.mark.parametrize("name", ["Mass", "Pleural_Thickening", "phantom-0-17", "ISIC_0000000.jpg"])
def test_plain_names_stay(name):
    assert file_stems(["other", name]) == ["other", name]
