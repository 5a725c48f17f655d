import json
import warnings

import datasets
import numpy as np
import pydicom
import pytest
from support.sources import write_dicom

from mediffusion_diffusers.data import convert_dicom, label_matrix, load_prepared


RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)


def write_study(folder, num_patients=10):
    """Two files of each of ten patients, in folders that repeat the file names, and one colour file."""
    for patient in range(num_patients):
        for view in range(2):
            path = folder / f"case{patient:02d}" / f"IM{view}"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_dicom(path, RAMP + patient, PatientID=f"MRN-{patient}", ViewPosition="PA")
    rgb = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    write_dicom(folder / "colour.dcm", np.zeros((16, 16, 3), np.uint8), PatientID="MRN-colour", **rgb)
    (folder / "notes.txt").write_text("no DICOM, no suffix of one")
    return folder


def convert(source, output, **kwargs):
    return convert_dicom(source, output, **{"test_share": 20, "validation_share": 25, "num_workers": 2, **kwargs})


def test_folder_without_labels(tmp_path):
    source = write_study(tmp_path / "study")
    info = convert(source, tmp_path / "set", salt="s")
    assert sum(info.num_rows.values()) == 20
    patients = {split: load_prepared(tmp_path / "set", split)["patient_id"][:] for split in info.num_rows}
    assert not set(patients["train"]) & set(patients["test"])
    assert np.isnan(label_matrix(load_prepared(tmp_path / "set"), info)).all()
    assert load_prepared(tmp_path / "set")[0]["image"].mode == "I;16"
    skipped = json.loads((tmp_path / "set/conversion_report.json").read_text())["skipped"]
    assert [entry["file"] for entry in skipped] == ["colour.dcm"]
    assert "colour image" in skipped[0]["reason"]
    with pytest.raises(ValueError, match=r"colour\.dcm is a colour image"):
        convert(source, tmp_path / "strict", strict=True)


def test_nothing_of_the_patient_is_kept(tmp_path):
    source = write_study(tmp_path / "study")
    convert(source, tmp_path / "set", salt="s", key_file=tmp_path / "key.csv")
    uids = [str(pydicom.dcmread(path).SOPInstanceUID) for path in source.rglob("IM*")]
    secrets = [b"Doe", b"MRN", b"19700101", b"20200202", b"case00", *(uid.encode() for uid in uids)]
    for split in ("train", "validation", "test"):
        rows = load_prepared(tmp_path / "set", split).cast_column("image", datasets.Image(decode=False))
        for row in rows:
            text = json.dumps({key: value for key, value in row.items() if key != "image"}).encode()
            content = text + row["image"]["bytes"] + row["image"]["path"].encode()
            assert not [secret for secret in secrets if secret in content]
            assert json.loads(row["metadata"]) == {"modality": "CR", "view": "PA"}
    key = (tmp_path / "key.csv").read_text()
    assert "case00/IM0" in key
    assert load_prepared(tmp_path / "set")["image_id"][0] in key
    with pytest.raises(ValueError, match="`key_file` must not lie in `output_dir`"):
        convert(source, tmp_path / "other", key_file=tmp_path / "other/key.csv")


def test_a_report_repeats_no_tag(tmp_path):
    """Exports name folders and files after the patient, the date and the UID; skipped ones must not tell."""
    source, rgb = tmp_path / "study", {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}
    colour = np.zeros((16, 16, 3), np.uint8)
    uid = "1.2.826.0.1.999"
    paths = [
        "MRN-77/a.dcm",
        "doe_jane/b.dcm",
        "20200202/c.dcm",
        f"{uid}.dcm",
        "7/d.dcm",
        "chest7/e.dcm",
        "Doe/DICOMDIR",
    ]
    for path in paths:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        patient = "7" if "7/" in path and "MRN" not in path else "MRN-77"
        write_dicom(source / path, colour, PatientID=patient, SOPInstanceUID=uid, PlanarConfiguration=0, **rgb)
    write_dicom(source / "fine.dcm", RAMP, PatientID="MRN-78", BodyPartExamined="CHEST Doe", ViewPosition="")
    (source / "Doe Jane, letter.txt").write_text("Doe")
    (tmp_path / "labels.csv").write_text("id,Mass\nfine.dcm,1\nMRN-4711,0\nMRN-4712,1\n")
    convert(source, tmp_path / "set", labels_file=tmp_path / "labels.csv", salt="s", test_share=0, validation_share=0)
    text = "".join((tmp_path / "set" / name).read_text() for name in ("conversion_report.json", "dataset_info.json"))
    for secret in ("MRN", "doe", "jane", "20200202", uid, "7/d.dcm", "471"):
        assert secret.lower() not in text.lower().replace("chest7/e.dcm", "")
    report = json.loads((tmp_path / "set/conversion_report.json").read_text())
    assert len(report["skipped"]) == 6 and {len(entry["file"]) for entry in report["skipped"]} == {22, 12}
    assert (report["found"], report["converted"]) == (9, 1) and not report["missing"]
    assert "2 identifiers of the label file fit no file." in report["notes"]
    assert json.loads(load_prepared(tmp_path / "set")[0]["metadata"]) == {"modality": "CR"}


def test_what_else_lies_in_an_export_is_skipped_with_its_reason(tmp_path):
    source = tmp_path / "export"
    source.mkdir()
    write_dicom(source / "fine.dcm", RAMP)
    for name, change in {
        "report.dcm": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11"},
        "letter.dcm": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1"},
        "key.dcm": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.59"},
    }.items():
        header = pydicom.dcmread(write_dicom(source / name, RAMP, **change))
        del header.Rows, header.Columns, header.PixelData
        header.save_as(source / name)
    (source / "text.dcm").write_text("no DICOM")
    (source / "empty.dcm").write_bytes(b"")
    (source / "half.dcm").write_bytes((source / "fine.dcm").read_bytes()[:140])
    (source / "DICOMDIR").write_bytes((source / "fine.dcm").read_bytes())
    convert(source, tmp_path / "set", test_share=0, validation_share=0)
    report = json.loads((tmp_path / "set/conversion_report.json").read_text())
    reasons = {entry["file"]: entry["reason"] for entry in report["skipped"]}
    for name, reason in {
        "report.dcm": "holds no image (its kind is Basic Text SR Storage)",
        "letter.dcm": "holds no image (its kind is Encapsulated PDF Storage)",
        "key.dcm": "holds no image (its kind is Key Object Selection Document Storage)",
        "text.dcm": "is no readable DICOM file: it lacks the mark DICM",
        "empty.dcm": "empty",
        "half.dcm": "half.dcm",
    }.items():
        assert reason in reasons.pop(name)
    assert reasons == {} and report["ignored"] == {"DICOMDIR: the index of a medium": ["(not named)"]}


def test_pseudonyms_depend_on_the_salt_and_draws_do_not(tmp_path):
    source = write_study(tmp_path / "study")
    names, pictures = [], []
    for folder, salt in (("a", "s"), ("b", "s"), ("c", "t"), ("d", None), ("e", None)):
        convert(source, tmp_path / folder, salt=salt)
        test = load_prepared(tmp_path / folder, "test")
        names.append(test["patient_id"][:])
        pictures.append({np.asarray(image).tobytes() for image in test["image"]})
    assert names[0] == names[1]
    assert len({*map(tuple, names)}) == 4
    assert all(found == pictures[0] for found in pictures)


def test_labels_by_path_instance_and_patient(tmp_path):
    source = write_study(tmp_path / "study")
    uid = str(pydicom.dcmread(source / "case01/IM0").SOPInstanceUID)
    labels = tmp_path / "labels.csv"
    labels.write_text(f"id,Mass,Edema,age\ncase00/IM0,1,0,61\n{uid},0,,\nMRN-2,1,1,\ncase99/IM0,1,1,\n")
    info = convert(source, tmp_path / "set", labels_file=labels, test_share=0, validation_share=0, salt="s",
                   key_file=tmp_path / "key.csv")  # fmt: skip
    assert info.label_names == ["Mass", "Edema"]
    dataset = load_prepared(tmp_path / "set")
    image_of = dict(line.split(",")[:2] for line in (tmp_path / "key.csv").read_text().splitlines()[1:])
    found = dict(zip(dataset["image_id"][:], label_matrix(dataset, info).tolist(), strict=True))
    nan = np.nan
    for file, expected in (
        ("case00/IM0", [1, 0]),
        ("case00/IM1", [nan, nan]),
        ("case01/IM0", [0, nan]),
        ("case02/IM0", [1, 1]),
        ("case02/IM1", [1, 1]),
    ):
        np.testing.assert_array_equal(found[image_of[file]], expected)
    assert info.demographics["train"]["age"]["known"] == 1
    report = (tmp_path / "set/conversion_report.json").read_text()
    assert "1 identifiers of the label file fit no file." in report
    assert "case99" not in report


def test_one_class_per_file(tmp_path):
    source = write_study(tmp_path / "study")
    labels = tmp_path / "labels.csv"
    labels.write_text("patient_id,label\n" + "\n".join(f"MRN-{n},{('sick', 'well', '')[n % 3]}" for n in range(10)))
    info = convert(source, tmp_path / "set", labels_file=labels, test_share=0, validation_share=0)
    assert (info.problem_type, info.label_names) == ("single_label_classification", ["sick", "well"])
    counts = label_matrix(load_prepared(tmp_path / "set"), info)
    assert np.nansum(counts, axis=0).tolist() == [8, 6]
    assert np.isnan(counts).all(axis=1).sum() == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,Mass\nIM0,1\n", "'IM0' is the name of 10 files"),
        ("id,Mass\nnobody,1\n", "none of its 1 identifiers fits"),
        ("id,Mass\ncase00/IM0,maybe\n", r"labels\.csv, line 2, column 'Mass': a label must be 1"),
        ("id,Mass\ncase00/IM0\n", "line 2: 2 columns are expected"),
        ("id,Mass\nx,1\nx,0\n", "line 3: its 'id' is there twice"),
        ("id,label\ncase00/IM0,\n", "The column 'label' is empty in every row"),
        ("id,Mass,age\ncase00/IM0,1,old\n", "age: a number is expected"),
        ("name,Mass\ncase00/IM0,1\n", "must have a column 'file_name' or"),
        ("id,age\ncase00/IM0,1\n", "must have a column 'label' or one column per class"),
        ("", "is empty"),
    ],
)
def test_label_files_that_do_not_fit(tmp_path, text, message):
    source = write_study(tmp_path / "study")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "set", labels_file=tmp_path / "labels.csv")


def test_folders_without_anything_to_convert(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="none was found"):
        convert(tmp_path / "empty", tmp_path / "set")
    with pytest.raises(ValueError, match="`source_dir` must be a folder"):
        convert(tmp_path / "none", tmp_path / "set")
    (tmp_path / "empty/a.dcm").write_text("no DICOM")
    with pytest.raises(ValueError, match=r"No image of dicom could be converted.*a\.dcm is no readable DICOM file"):
        convert(tmp_path / "empty", tmp_path / "set")


def test_warnings_that_quote_tags_do_not_reach_the_console(tmp_path, recwarn):
    (tmp_path / "study").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_dicom(tmp_path / "study/a.dcm", RAMP, BodyPartExamined="Doe^Jane", WindowCenter="1")
    convert(tmp_path / "study", tmp_path / "set", validation_share=0, test_share=0)
    assert not [warning for warning in recwarn if "Doe" in str(warning.message)]
