import json

import numpy as np
import pytest
from support.sources import random_picture, write_chestxray14, write_dicom, write_isic2019, write_medmnist

from mediffusion_diffusers.commands.prepare_dataset import main as prepare_dataset
from mediffusion_diffusers.data import LabelledSplit, load_info, load_prepared


def main(*arguments):
    """As the command line calls it."""
    prepare_dataset([str(argument) for argument in arguments])


CHEST_ROWS = [(patient, 0, ("No Finding", "Mass", "Mass|Edema")[patient % 3]) for patient in range(1, 31)]


def test_chestxray14_then_split(tmp_path, capsys):
    source = write_chestxray14(tmp_path / "nih", CHEST_ROWS, test_patients=range(25, 31))
    (source / "images/00000002_000.png").unlink()
    main("chestxray14", "--source_dir", source, "--output_dir", tmp_path / "set", "--image_size", 8,
         "--validation_share", 10)  # fmt: skip
    printed = capsys.readouterr().out
    assert "Pleural_Thickening" in printed
    assert "missing: 00000002_000.png" in printed
    assert "Licence: No restrictions" in printed
    info = load_info(tmp_path / "set")
    assert info.image_size == 8
    assert info.num_rows == {"train": 21, "validation": 2, "test": 6}

    for by, path in (("patient", "p.json"), ("class", "c.json")):
        main("split", "--dataset_dir", tmp_path / "set", "--share", 30, "--by", by, "--seed", 4,
             "--output", tmp_path / path)  # fmt: skip
        split = LabelledSplit.load(tmp_path / path)
        assert (split.share, split.by, split.seed, split.dataset) == (30, by, 4, "chestxray14")
        printed, said = capsys.readouterr()
        assert split.hash in printed
        assert f"{split.num_images} of 21 training images" in printed
        assert "Warning: The labelled split (30.0 % by" in said  # no Hernia, among others
    main("split", "--dataset_dir", tmp_path / "set", "--share", 30, "--output", tmp_path / "j.json", "--json")
    told = json.loads(capsys.readouterr().out)
    split = LabelledSplit.load(tmp_path / "j.json")
    assert (told["sha256"], told["num_images"], told["positives"]) == (split.hash, split.num_images, split.positives)
    assert told["output"] == str(tmp_path / "j.json") and told["warnings"]
    with pytest.raises(ValueError, match="The labelled split is empty"):
        main("split", "--dataset_dir", tmp_path / "set", "--share", 1, "--output", tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


def test_other_sources(tmp_path, capsys):
    rows = [(f"ISIC_{index:07d}", ("MEL", "NV")[index % 2], f"HAM_{index:07d}") for index in range(30)]
    write_isic2019(tmp_path / "isic", rows)
    write_medmnist(tmp_path / "breastmnist.npz")
    (tmp_path / "study").mkdir()
    write_dicom(tmp_path / "study/a.dcm", np.arange(64, dtype=np.uint16).reshape(8, 8))
    for kind in "ab":
        (tmp_path / "photos" / kind).mkdir(parents=True)
        random_picture(0).save(tmp_path / "photos" / kind / "0.png")
    none = ("--test_share", 0, "--validation_share", 0)
    for command, arguments in (
        ("isic2019", ("--source_dir", tmp_path / "isic", "--test_share", 10, "--seed", 3)),
        ("medmnist", ("--npz_file", tmp_path / "breastmnist.npz")),
        ("dicom", ("--source_dir", tmp_path / "study", "--salt", "s", "--name", "mine", "--licence", "CC0", *none)),
        ("imagefolder", ("--source_dir", tmp_path / "photos", "--channels", 3, *none)),
        ("hub", ("--dataset_name", tmp_path / "photos", "--name", "again", *none)),
        ("phantom", ("--num_train", 4, "--num_validation", 2, "--num_test", 2, "--image_size", 16)),
    ):
        output = tmp_path / "sets" / command
        main(command, *arguments, "--output_dir", output)
        printed = capsys.readouterr().out
        assert printed.count("images") >= 1
        assert f"Written: {output}" in printed
        assert len(load_prepared(output)) == load_info(output).num_rows["train"]
    assert load_info(tmp_path / "sets/imagefolder").channels == 3
    assert load_info(tmp_path / "sets/dicom").licence == "CC0"
    assert load_info(tmp_path / "sets/isic2019").num_rows["test"] == 2


def test_errors(tmp_path, capsys):
    with pytest.raises(ValueError, match="`source_dir` must hold Data_Entry"):
        main("chestxray14", "--source_dir", tmp_path, "--output_dir", tmp_path / "set")
    write_medmnist(tmp_path / "a.npz")
    main("medmnist", "--npz_file", tmp_path / "a.npz", "--output_dir", tmp_path / "set")
    with pytest.raises(ValueError, match="already holds a prepared dataset"):
        main("medmnist", "--npz_file", tmp_path / "a.npz", "--output_dir", tmp_path / "set")
    capsys.readouterr()
    main("medmnist", "--npz_file", tmp_path / "a.npz", "--output_dir", tmp_path / "set", "--overwrite", "--json")
    told, info = json.loads(capsys.readouterr().out), load_info(tmp_path / "set")
    assert told["dataset"]["label_names"] == list(info.label_names) and told["output_dir"] == str(tmp_path / "set")
    assert {name: split["images"] for name, split in told["splits"].items()} == info.num_rows
    assert sum(info.num_rows.values()) == told["conversion"]["converted"]
    with pytest.raises(ValueError, match="must be a prepared dataset"):
        main("split", "--dataset_dir", tmp_path, "--share", 10, "--output", tmp_path / "a.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"`output_dir` must be a folder .* is a file"):
        main("medmnist", "--npz_file", tmp_path / "a.npz", "--output_dir", tmp_path / "file/set")
