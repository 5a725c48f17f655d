import json
import shutil

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.tracking import GeneralTracker
from support.explanation import bad_pictures, job, manifest_of, output_bytes, output_table

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.commands.explain_dataset import sentence
from mediffusion_diffusers.data.difference_image import decode_difference
from mediffusion_diffusers.data.input_shards import InputShard
from mediffusion_diffusers.explanation import plan, progress
from mediffusion_diffusers.explanation.dataset_runner import explain_dataset


def test_every_shard_has_its_explanations(pipe, phantoms, tmp_path):
    summary = explain_dataset(pipe, job(phantoms, tmp_path, controls=True))
    assert (summary.counts["num_explained"], summary.counts["num_failed"]) == (36, 0)
    assert summary.images_per_second > 0
    names = {f"train-0000{index}-of-00004": (3, 6, 8) if index < 3 else (3, 6) for index in range(4)}
    names["validation-00000-of-00001"] = (3, 6)
    chunks = [(name, *place) for name, stops in names.items() for place in zip((0, *stops), stops, strict=False)]
    files = {f"data/{name}-rows-{start:08d}-{stop:08d}.parquet" for name, start, stop in chunks}
    assert set(output_bytes(tmp_path)) == {"manifest.json", ".chunk_rows.json", *files}
    manifest = manifest_of(tmp_path)
    assert manifest == summary.manifest and manifest["complete"] and manifest["num_explained"] == 36
    assert [shard["num_rows"] for shard in manifest["shards"]] == [8, 8, 8, 6, 6]
    assert str(phantoms.parent) not in json.dumps(manifest)

    # The pipeline's own answer to the same pictures, read by `datasets` from both sides
    inputs = datasets.load_dataset(str(phantoms), split="train")
    explained = datasets.load_dataset(str(tmp_path), split="train")
    assert explained["image_id"][:] == inputs["image_id"][:] and explained["row"][:9] == [*range(8), 0]
    rows = list(range(6, 12))
    expected = pipe([inputs[row]["image"] for row in rows], away="Cardiomegaly", output_type="pt")
    for place, row in enumerate(rows):
        found = explained[row]
        for name in ("before", "after", "null"):
            scores = getattr(expected, f"probabilities_{name}")[place]
            np.testing.assert_allclose(found[f"probabilities_{name}"], scores, atol=1e-5)
        for name, pictures in (("counterfactual", expected.images), ("null_edit", expected.null_images)):
            assert abs(np.asarray(found[name]) / 255 - pictures[place, 0].numpy()).max() < 0.51 / 255
        difference = decode_difference(found["difference"])[..., 0]
        assert abs(difference - expected.difference[place, 0].numpy()).max() < 3e-5
        assert found["error"] is None and found["reached"] is None
        assert found["guidance_scale"] == 5.0 and found["strength"] == np.float32(0.2)
        assert found["label_names"] == pipe.label_names and found["model_hash"] == manifest["identity"]["model_hash"]
        np.testing.assert_allclose(found["l1"], expected.l1[place], atol=1e-6)
        np.testing.assert_allclose(found["high_frequency_share"], expected.high_frequency_shares[place, 0], atol=1e-4)
        for index, (name, control) in enumerate(
            zip(("plain_gradient", "random_noise"), found["controls"], strict=True)
        ):
            assert control["name"] == name
            pictures = getattr(expected, f"{name}_images")
            assert abs(np.asarray(control["image"]) / 255 - pictures[place, 0].numpy()).max() < 0.51 / 255
            scores = getattr(expected, f"{name}_probabilities")[place]
            np.testing.assert_allclose(control["probabilities"], scores, atol=1e-4)
            share = expected.high_frequency_shares[place, index + 1]
            np.testing.assert_allclose(control["high_frequency_share"], share, atol=1e-4)
        settings = json.loads(found["settings"])
        assert settings["away"] == ["Cardiomegaly"] and settings["strength"] == 0.2
    assert not {"patient_id", "metadata", "labels", "boxes"} & set(explained.column_names)


class Notes(GeneralTracker):
    """A tracker that keeps what it is told."""

    name, requires_logging_directory = "notes", False

    def __init__(self):
        super().__init__()
        self.config, self.told = {}, []

    @property
    def tracker(self):
        return self.told

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **kwargs):
        self.told.append((step, values))


def test_a_tracker_is_told_how_far_all_workers_are(pipe, phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "REPORT_SECONDS", 0.0)
    notes = Notes()
    first, second = (job(phantoms, tmp_path, report_to=notes, num_tasks=2, task_index=index) for index in range(2))
    explain_dataset(pipe, first)
    assert notes.config["away"] == "['Cardiomegaly']"
    (began, before), *_, (ended, after) = notes.told
    assert (began, before["explanation/num_waiting_chunks"]) == (0, 8)
    assert (ended, after["explanation/num_explained"], after["explanation/seconds_left"]) == (22, 22, 0)
    explain_dataset(pipe, second)
    assert notes.told[-1][0] == 14
    with pytest.raises(ValueError, match="`report_to` must be an installed tracker, but 'no_such_tracker' is not"):
        job(phantoms, tmp_path, report_to="no_such_tracker")


def test_a_search_says_where_it_arrived(pipe, phantoms, tmp_path):
    explain_dataset(pipe, job(phantoms, tmp_path / "most", guidance_scale=20.0, split="validation"))
    target = float(np.median([row[0] for row in output_table(tmp_path / "most")["probabilities_after"].to_pylist()]))
    assert target < 0.5
    changes = {"target_probability": target, "max_guidance_scale": 20.0, "split": "validation"}
    explain_dataset(pipe, job(phantoms, tmp_path / "search", **changes))
    rows = output_table(tmp_path / "search").to_pylist()
    for row in rows:
        assert row["reached"] == (row["probabilities_after"][0] <= target)
        assert row["controls"] is None and row["l1"] is None
    assert {row["reached"] for row in rows} == {True, False} and len({row["guidance_scale"] for row in rows}) > 1


def test_bad_rows_are_recorded_and_good_ones_unaffected(pipe, broken_rows, phantoms, tmp_path):
    summary = explain_dataset(pipe, job(broken_rows, tmp_path / "out", batch_size=4))
    assert (summary.counts["num_explained"], summary.counts["num_failed"]) == (3, 5) and summary.problems == ()
    rows = output_table(tmp_path / "out").to_pylist()
    assert [row["row"] for row in rows] == list(range(8))
    for row, (_, reason) in zip(rows[1:], bad_pictures(), strict=False):
        assert reason in row["error"] and row["image_id"] and row["counterfactual"] is None
        assert row["probabilities_before"] is None
    explain_dataset(pipe, job(phantoms, tmp_path / "good", split="train"))
    good = output_table(tmp_path / "good").to_pylist()
    for row in (0, 6, 7):
        assert rows[row]["error"] is None
        np.testing.assert_allclose(rows[row]["probabilities_after"], good[row]["probabilities_after"], atol=1e-5)


def test_labels_that_cannot_be_read_fail_their_row_alone(pipe, phantoms, tmp_path):
    folder = tmp_path / "odd"
    shutil.copytree(phantoms, folder)
    (path, *_) = sorted((folder / "data").glob("validation-*"))
    table = pq.read_table(path)
    labels = [[str(value) for value in row] for row in table["labels"].to_pylist()]
    labels[2][0] = "present"
    table = table.set_column(table.schema.get_field_index("labels"), "labels", [labels]).replace_schema_metadata(None)
    pq.write_table(table, path)
    summary = explain_dataset(pipe, job(folder, tmp_path / "out", split="validation", rows="labelled"))
    assert summary.counts["num_failed"] == 1 and summary.problems == ()
    (failed,) = [row for row in output_table(tmp_path / "out").to_pylist() if row["error"] is not None]
    assert failed["row"] == 2 and "Cannot read the labels" in failed["error"]


def test_a_model_that_returns_nan_fails_the_row_alone(pipe, phantoms, tmp_path, monkeypatch):
    call = MediffusionCounterfactualPipeline.__call__

    def poisoned(self, *arguments, **kwargs):
        output = call(self, *arguments, **kwargs)
        output.probabilities_after[1] = torch.nan
        return output

    monkeypatch.setattr(MediffusionCounterfactualPipeline, "__call__", poisoned)
    summary = explain_dataset(pipe, job(phantoms, tmp_path, split="validation", batch_size=6, chunk_rows=6))
    rows = output_table(tmp_path).to_pylist()
    assert [row["error"] is None for row in rows] == [True, False, True, True, True, True] and summary.counts[
        "num_failed"
    ] == 1
    assert rows[1]["error"] == "The model returned NaN or infinite values."
    assert summary.to_dict()["failures"] == manifest_of(tmp_path)["failures"] == {rows[1]["error"]: 1}


def test_noise_is_that_of_the_row_whatever_the_batch(pipe, phantoms, tmp_path):
    noise = {"start": "noise", "split": "train"}
    for name, changes in (("three", {}), ("five", {"batch_size": 5, "chunk_rows": 5}), ("seed", {"seed": 1})):
        explain_dataset(pipe, job(phantoms, tmp_path / name, **noise, **changes))
    tables = {name: output_table(tmp_path / name) for name in ("three", "five", "seed")}
    after = {name: np.array(table["probabilities_after"].to_pylist()) for name, table in tables.items()}
    np.testing.assert_allclose(after["five"], after["three"], atol=1e-5)
    assert abs(after["seed"] - after["three"]).max() > 1e-3


def test_only_rows_that_are_asked_about(pipe, phantoms, tmp_path):
    inputs = datasets.load_dataset(str(phantoms), split="train")
    labelled = [row["image_id"] for row in inputs if row["labels"][0] == 1]
    summary = explain_dataset(pipe, job(phantoms, tmp_path / "labelled", split="train", rows="labelled"))
    assert output_table(tmp_path / "labelled")["image_id"].to_pylist() == labelled and 0 < len(labelled) < 30
    assert summary.counts["num_explained"] == len(labelled) and summary.counts["num_passed_over"] == 30 - len(labelled)

    pipe.unet.register_to_config(label_thresholds=[0.5] * 5)
    everything = explain_dataset(pipe, job(phantoms, tmp_path / "all", split="train"))
    assert everything.counts["num_explained"] == 30
    before = np.array(output_table(tmp_path / "all")["probabilities_before"].to_pylist())[:, 0]
    threshold = float(np.median(before))
    pipe.unet.register_to_config(label_thresholds=[threshold] * 5)
    explain_dataset(pipe, job(phantoms, tmp_path / "predicted", split="train", rows="predicted"))
    predicted = output_table(tmp_path / "predicted")
    ids = np.array(inputs["image_id"][:])
    assert predicted["image_id"].to_pylist() == ids[before >= threshold].tolist()


def test_labels_are_needed_where_they_decide(pipe, phantoms, broken_rows, tmp_path):
    with pytest.raises(ValueError, match=r"needs a prepared dataset.*'broken' is none"):
        explain_dataset(pipe, job(broken_rows, tmp_path / "out", rows="labelled"))
    with pytest.raises(ValueError, match="Gout"):
        explain_dataset(pipe, job(phantoms, tmp_path / "out", away=("Gout",)))


@pytest.mark.parametrize(
    "seconds, num_rows, batch_size, expected",
    [
        (0.01, 10**6, 8, 512),  # a fast model: no more than 512
        (1.0, 10**6, 8, 32),  # 32 of 60 rows that a minute takes: a power of two of batches
        (30.0, 10**6, 8, 8),  # a slow one: a batch
        (0.1, 1000, 8, 32),  # few rows: 16 chunks ...
        (0.1, 200, 8, 32),  # ... but not below five seconds
        (0.1, 7, 8, 8),
        (0.1, 10**6, 600, 512),
    ],
)
def test_a_chunk_takes_about_a_minute(seconds, num_rows, batch_size, expected):
    shard = InputShard("a", "a", 0, num_rows=num_rows)
    wanted = job("data", "out", batch_size=batch_size, chunk_rows=None)
    assert plan._best_chunk_rows(wanted, [shard], lambda job, chunk: seconds) == expected


def test_a_dataset_of_which_nothing_is_explained_is_no_success(pipe, phantoms, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    table = pq.read_table(sorted((phantoms / "data").glob("validation-*"))[0])
    rows = [{**row, "image": None} for row in table.to_pylist()]
    pq.write_table(table.from_pylist(rows, schema=table.schema), data / "none.parquet")
    for num_rows in (6, 0):  # and the second run finds them done
        summary = explain_dataset(pipe, job(data, tmp_path / "out"))
        assert (summary.counts["num_rows"], summary.counts["num_explained"], summary.is_useful) == (num_rows, 0, False)
        assert sentence(summary).startswith("No image is explained: 6 rows could not be (column `error` says why)")
    good = explain_dataset(pipe, job(phantoms, tmp_path / "good"))
    assert good.is_useful and sentence(good).startswith("Explained 36 images")


def test_a_broken_input_shard_does_not_stop_the_others(pipe, phantoms, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    path = data / "data" / "train-00001-of-00004.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    broken = explain_dataset(pipe, job(data, tmp_path / "out"))
    assert len(broken.problems) == 1 and "train-00001" in broken.problems[0]
    assert not broken.manifest["complete"] and broken.manifest["num_finished_shards"] == 4
    middle = bytearray(whole)  # the footer is fine, a page of the second row group is not
    place = pq.read_metadata(sorted((phantoms / "data").glob("*"))[1]).row_group(1).column(0).data_page_offset
    middle[place : place + 40] = bytes(40)
    path.write_bytes(middle)
    broken = explain_dataset(pipe, job(data, tmp_path / "out"))
    assert len(broken.problems) == 1 and broken.manifest["num_finished_shards"] == 4
    path.write_bytes(whole)
    assert explain_dataset(pipe, job(data, tmp_path / "out")).manifest["complete"]
