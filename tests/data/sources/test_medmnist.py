import numpy as np
import pytest
from support.sources import write_medmnist

from mediffusion_diffusers.data import convert_medmnist, label_matrix, load_prepared
from mediffusion_diffusers.data.sources.medmnist import LABEL_NAMES


def test_grey_classes_with_the_official_splits(tmp_path):
    path = write_medmnist(tmp_path / "pneumoniamnist_28.npz")
    info = convert_medmnist(path, tmp_path / "set")
    assert (info.name, info.label_names, info.channels) == ("pneumoniamnist", ["normal", "pneumonia"], 1)
    assert info.num_rows == {"train": 6, "validation": 4, "test": 4}
    arrays = np.load(path)
    dataset = load_prepared(tmp_path / "set", "validation")
    np.testing.assert_array_equal(np.asarray(dataset[3]["image"]), arrays["val_images"][3])
    assert dataset["label"][:] == arrays["val_labels"][:, 0].tolist()
    assert dataset["image_id"][0] == "val-000000"


def test_colour_and_unknown_names(tmp_path):
    info = convert_medmnist(write_medmnist(tmp_path / "mine.npz", num_classes=3, colour=True), tmp_path / "set")
    assert (info.label_names, info.channels) == (["0", "1", "2"], 3)
    assert any("not the name of a known MedMNIST dataset" in note for note in info.notes)
    assert load_prepared(tmp_path / "set")[0]["image"].mode == "RGB"


def test_multi_label(tmp_path):
    path = write_medmnist(tmp_path / "chestmnist.npz", num_labels=14)
    info = convert_medmnist(path, tmp_path / "set")
    assert info.problem_type == "multi_label_classification"
    assert info.label_names == list(LABEL_NAMES["chestmnist"])
    dataset = load_prepared(tmp_path / "set", "test")
    np.testing.assert_array_equal(label_matrix(dataset, info), np.load(path)["test_labels"])


def test_known_names_are_complete_and_different():
    counts = {"pathmnist": 9, "chestmnist": 14, "dermamnist": 7, "octmnist": 4, "pneumoniamnist": 2, "retinamnist": 5}
    counts |= {"breastmnist": 2, "bloodmnist": 8, "tissuemnist": 8}
    counts |= dict.fromkeys(("organamnist", "organcmnist", "organsmnist"), 11)
    assert {name: len(set(names)) for name, names in LABEL_NAMES.items()} == counts


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        ({"test_labels": None}, r"lacks \['test_labels'\]"),
        ({"train_images": np.zeros((6, 28, 28, 28), np.uint8)}, "Volumes"),
        ({"train_images": np.zeros((6, 28, 28), np.float32)}, "must be uint8"),
        ({"val_labels": np.zeros((3, 1), np.uint8)}, r"'val_labels' must be integers of shape \(4, 1\)"),
        ({"val_labels": np.zeros(4, np.uint8)}, "'val_labels' must be integers"),
        ({"train_labels": np.full((6, 1), 2, np.uint8)}, "has 2 classes .* but the file has 3"),
        ({"test_labels": np.array([[None]] * 4, dtype=object)}, "Object arrays cannot be loaded"),
    ],
)
def test_refuses(tmp_path, replace, message):
    path = write_medmnist(tmp_path / "pneumoniamnist.npz", **replace)
    with pytest.raises(ValueError, match=message):
        convert_medmnist(path, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_label_that_is_no_class_number_takes_no_memory(tmp_path):
    labels = np.array([[10**9]] + [[0]] * 5)
    with pytest.raises(ValueError, match="numbers of classes from 0, but one is 1000000000"):
        convert_medmnist(write_medmnist(tmp_path / "mine.npz", train_labels=labels), tmp_path / "set")


def test_refuses_what_is_no_npz(tmp_path):
    (tmp_path / "a.npz").write_text("text")
    np.save(tmp_path / "b.npy", np.zeros(3))
    for name in ("a.npz", "b.npy", "none.npz"):
        with pytest.raises(ValueError, match="`npz_file` must be a MedMNIST file"):
            convert_medmnist(tmp_path / name, tmp_path / "set")
