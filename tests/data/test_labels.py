import math

import numpy as np
import pytest

from mediffusion_diffusers.data.cells import identifier, is_number, mark, number, typed_column
from mediffusion_diffusers.data.labels import class_names, read_column, read_columns


NAN = math.nan


def read(values, **kwargs):
    return read_column("label", values, [f"row {index}" for index in range(len(values))], **kwargs)


def targets(labels):
    return [next(iter(target.values())) for target in labels.targets]


@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        (["b", "a", "", None, " b "], ["a", "b"], [1, 0, -1, -1, 1]),
        (["None", "NA", "null", "nan", "x"], ["NA", "None", "nan", "null", "x"], [1, 0, 3, 2, 4]),
        ([2, 10, None, -1, NAN], ["2", "10"], [0, 1, -1, -1, -1]),
        ([1.0, 0.0, NAN], ["0", "1"], [1, 0, -1]),
        (["1.0", "1", "0", "-1"], ["0", "1"], [1, 1, 0, -1]),
        (["01", "02", "02"], ["01", "02"], [0, 1, 1]),
        (["2.5", "1.5"], ["1.5", "2.5"], [1, 0]),
        ([True, False, None], ["False", "True"], [1, 0, -1]),
        (["normal, benign", "malignant"], ["malignant", "normal, benign"], [1, 0]),
        (["left\n lung", "left lung"], ["left lung"], [0, 0]),
    ],
)
def test_one_class_per_image(values, names, expected):
    labels = read(values)
    assert labels.problem_type == "single_label_classification"
    assert (labels.label_names, targets(labels)) == (names, expected)


@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        ([["b", "a"], [], None, ["a"]], ["a", "b"], [[1, 1], [0, 0], None, [1, 0]]),
        (["a|b", "b", "", "No Finding"], ["a", "b"], [[1, 1], [0, 1], None, [0, 0]]),
        (["a; b;", "b"], ["a", "b"], [[1, 1], [0, 1]]),
        (["['a', 'b']", "[]", ""], ["a", "b"], [[1, 1], [0, 0], None]),
        ([[0, 1, 0], [1, 0, 0], []], ["0", "1", "2"], [[0, 1, 0], [1, 0, 0], [0, 0, 0]]),
        ([[1.0, 0.0], [0.0, NAN], [1.0, -1.0]], ["0", "1"], [[1, 0], [0, NAN], [1, NAN]]),
        ([[True, False], [False, True]], ["0", "1"], [[1, 0], [0, 1]]),
        (["[0 1 0]", "[1. 0. 0.]"], ["0", "1", "2"], [[0, 1, 0], [1, 0, 0]]),
        ([np.array([0, 0, 1]), np.array([1, 1, 1])], ["0", "1", "2"], [[0, 0, 1], [1, 1, 1]]),
        ([[0, 2], [1], []], ["0", "1", "2"], [[1, 0, 1], [0, 1, 0], [0, 0, 0]]),
        ([[0], [1], [0, 1]], ["0", "1"], [[1, 0], [0, 1], [1, 1]]),
        ([[3, 7], [7]], ["3", "7"], [[1, 1], [0, 1]]),
        (["3|7", "7"], ["3", "7"], [[1, 1], [0, 1]]),
        ([["NA"], ["x", None, ""]], ["NA", "x"], [[1, 0], [0, 1]]),
    ],
)
def test_several_classes_per_image(values, names, expected):
    labels = read(values)
    assert labels.problem_type == "multi_label_classification"
    assert labels.label_names == names
    for found, wanted in zip(targets(labels), expected, strict=True):
        assert (found is None) == (wanted is None)
        np.testing.assert_array_equal(found or [], wanted or [])


def test_names_behind_indices_and_vectors():
    names = ["none", "mass", "edema"]
    assert targets(read([2, 0, None], known_names=names)) == [2, 0, -1]
    assert targets(read([[2, 0], []], known_names=names)) == [[1, 0, 1], [0, 0, 0]]
    # No list of indices names a class twice: these are vectors.
    assert targets(read([[0, 1, 0], [0, 0, 0]], known_names=names)) == [[0, 1, 0], [0, 0, 0]]
    assert targets(read([[0, 1], [1, 0]], labels_as="vectors")) == [[0, 1], [1, 0]]
    assert targets(read([[0, 1], [1, 0]], labels_as="indices")) == [[1, 1], [1, 1]]
    assert targets(read(["a,b", "b"], separator=",")) == [[1, 1], [0, 1]]
    assert read(["a|b", "b"], separator="").label_names == ["a|b", "b"]


@pytest.mark.parametrize(
    ("values", "kwargs", "message"),
    [
        ([[0, 1], [1, 0]], {}, r"may be vectors of 0 and 1 or indices.*`labels_as`"),
        ([[0], [1]], {}, "`labels_as`"),
        (["a, b", "a"], {}, r"comma may separate names or belong to one.*`label_separator`"),
        (["a|b", "c;d"], {}, "'|' and by ';'"),
        ([[0, 0, 1], [0, 1]], {}, "row 1: a vector of 3 labels is expected, but got 2"),
        ([["a"], "b"], {}, "row 1: the column 'label' holds lists elsewhere"),
        ([[0, 3]], {"known_names": ["a", "b"]}, "row 0: the index of a class must be from 0 to 1, but got 3"),
        ([4, 0], {"known_names": ["a", "b"]}, "row 0: the index of a class must be from 0 to 1, but got 4"),
        ([[-2, 3], [5]], {}, "row 0: whole numbers from 0"),
        ([[0, 0, 2]], {}, "row 0: a label must be 1"),
        (["[1, x]", "[3]"], {}, "row 0: a list is expected.*but got a text of 6 characters"),
        (["Normal", "normal"], {}, "'Normal' and 'normal' are the same but for case"),
        (["01", "1"], {}, "the way to write a number"),
        (["a\x07b"], {}, "without control characters"),
        (["", None], {}, "empty in every row"),
        ([-1, None], {}, "unknown in every row"),
        ([[], None], {}, "only empty lists"),
        ([{"a": 1}], {}, "row 0: the column 'label' must hold names"),
        ([math.inf, 1.0], {}, "row 0: the column 'label' must hold names"),
        ([[math.inf], [1.0]], {}, "must hold lists of names or numbers, but one holds inf"),
    ],
)
def test_what_cannot_be_told_is_refused(values, kwargs, message):
    with pytest.raises(ValueError, match=message):
        read(values, **kwargs)


def test_one_column_per_class():
    labels = read_columns(
        ["Mass", "Edema "], [["1.0", "0"], ["-1", ""], [True, "no"], ["NA", None]], ["a", "b", "c", "d"]
    )
    assert labels.label_names == ["Mass", "Edema"]
    np.testing.assert_array_equal(targets(labels), [[1, 0], [NAN, NAN], [1, 0], [NAN, NAN]])
    assert labels.notes == [
        "1 labels are -1 and count as unknown.",
        "1 labels are the text 'NA' and count as unknown.",
    ]
    for cell in ("2", "maybe", 0.5, [1]):
        with pytest.raises(ValueError, match="a, column 'Mass': a label must be 1"):
            read_columns(["Mass"], [[cell]], ["a"])
    for names in (["Mass", "mass"], ["Mass", "Mass"], ["Mass", " "]):
        with pytest.raises(ValueError, match="name"):
            class_names(names)


def test_texts_that_read_as_missing_are_classes_and_said():
    assert read(["NA", "MEL", "NA"]).notes == [
        "The text 'NA' is a class (2 images). Leave the cell empty where the label is unknown."
    ]


@pytest.mark.parametrize(
    "values",
    [
        [["Mass"], "DOE^JANE"],
        ["[1, DOE^JANE]", "[3]"],
        ["DOE^JANE, Mass", "Mass"],
        [[["DOE^JANE"]]],
        [[{"name": "DOE^JANE"}], ["Mass"]],
    ],
)
def test_no_message_quotes_a_cell_which_may_be_about_a_person(values):
    with pytest.raises(ValueError) as raised:
        read_column("label", values, [f"row {number}" for number in range(len(values))])
    assert "DOE" not in str(raised.value) and ("row " in str(raised.value) or "'label'" in str(raised.value))


@pytest.mark.parametrize("read", [mark, number, lambda cell, where: identifier([cell], where)])
def test_no_message_about_a_cell_quotes_it(read):
    with pytest.raises(ValueError, match=r"^line 3: ") as raised:
        read("DOE^JANE", "line 3")
    assert "DOE" not in str(raised.value)


HUGE = 10**400  # an integer of JSON, beyond every float


@pytest.mark.parametrize("value", [HUGE, -HUGE, "9" * 5000])
def test_numbers_beyond_all_floats_are_no_numbers(value):
    assert not is_number(value)
    with pytest.raises(ValueError, match=r"table\.csv, line 2, column 'Mass': a label must be 1"):
        read_columns(["Mass"], [[value]], ["table.csv, line 2"])
    assert read_column("label", ["9" * 5000, "8"], ["a", "b"]).problem_type == "single_label_classification"
    assert typed_column(["9" * 5000, "8"]) == ["9" * 5000, "8"]
