import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mediffusion_diffusers.data.cells import identifier, is_number, typed_column
from mediffusion_diffusers.data.label_table import read_label_table
from mediffusion_diffusers.data.tables import read_list, read_records, read_rows


@pytest.mark.parametrize(
    "content",
    [
        b'file_name,label\na.png,x\n\nb.png,"y, z"\n',
        b"\xef\xbb\xbffile_name;label\r\na.png;x\r\nb.png;y, z\r\n",
        b"file_name\tlabel\ra.png\tx\rb.png\ty, z\r",
        b'file_name,label,,\na.png , x,,\nb.png,"y, z",\n'.replace(b'z",', b'z",,'),
    ],
)
def test_separators_marks_and_line_ends(tmp_path, content):
    path = tmp_path / "metadata.csv"
    path.write_bytes(content)
    columns, records = read_records(path)
    assert columns == ["file_name", "label"]
    assert [record for _, record in records] == [
        {"file_name": "a.png", "label": "x"},
        {"file_name": "b.png", "label": "y, z"},
    ]


def test_a_cell_may_hold_line_ends(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('id,note\n1,"two\nlines"\n2,one\n')
    assert [record["note"] for _, record in read_records(path)[1]] == ["two\nlines", "one"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,who\na,M\u00fcller\n".encode("cp1252"), r"a\.csv must be UTF-8, but byte 0xfc in line 2 .*cp1252"),
        ("file,who\na,b\n".encode("utf-16"), r"a\.csv must be UTF-8, but is UTF-16"),
        ("file,who\na,b\n".encode("utf-16-le"), "is UTF-16 or no text"),
        (b"", "is empty"),
        (b"file,who\na\n", "line 2: 2 columns are expected, but got 1"),
        (b"file,who\na,b,c\n", "line 2: 2 columns are expected, but got 3"),
        (b"file,who,File\na,b,c\n", "must name every column once"),
        (b'file,who\na,"b\nc,d\n', "cannot be read as a table"),
    ],
)
def test_errors_name_file_encoding_and_line(tmp_path, content, message):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_records(path)


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "007"}\n\n{"a": 7, "b": [1]}\n')
    assert read_records(path) == (["a", "b"], [(1, {"a": "007"}), (3, {"a": 7, "b": [1]})])
    for text, message in (
        ('{"a": 1}\n{"a": ', "line 2: no JSON"),
        ("[1]\n", "line 1: a JSON object is expected"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 1: no JSON .*recursion"),
        (r'{"a": "\ud800"}', "line 1: no JSON .*surrogates"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_records(path)


def test_missing_files(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_list(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="does not exist"):
        read_rows(tmp_path / "none.csv")


def test_identifiers_are_texts():
    assert [identifier(value, "a") for value in ("007", 7, "p0 ", "1.0", 7.0, "", None, float("nan"))] == [
        *("007", "7", "p0", "1.0", "7"),
        *(None, None, None),
    ]
    for value in (7.5, 2.0**53, [7], True):
        with pytest.raises(ValueError, match="row 3: an identifier must be text or a whole number"):
            identifier(value, "row 3")


def test_columns_of_numbers():
    assert typed_column(["35", "", "7"]) == [35, None, 7]
    assert typed_column(["3.5", "7", ""]) == [3.5, 7.0, None]
    assert typed_column(["007", "7"]) == ["007", "7"]
    assert typed_column(["", ""]) == [None, None]


def test_parquet(tmp_path):
    path = tmp_path / "metadata.parquet"
    pq.write_table(pa.table({"file_name": ["a.png", "b.png"], "label": [1, None]}), path)
    rows = [(1, {"file_name": "a.png", "label": 1}), (2, {"file_name": "b.png", "label": None})]
    assert read_records(path) == (["file_name", "label"], rows)
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"Cannot read the table .*metadata\.parquet"):
        read_records(path)


def test_errors_do_not_repeat_what_a_table_says(tmp_path):
    path = tmp_path / "labels.csv"
    for text in ("id,Mass\nJane Doe,1,0\n", "id,Mass\nJane Doe,1\nJane Doe,0\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"labels\.csv, line [23]") as caught:
            read_label_table(path)
        assert "Jane" not in str(caught.value)


def test_a_number_is_finite_also_as_text():
    assert is_number("1e300") and not is_number("1e400") and not is_number("inf") and not is_number("nan")
