import json
import shutil
import signal
from dataclasses import replace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.explanation import bad_pictures, output_bytes, output_table

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.explanation import counterfactuals, plan
from mediffusion_diffusers.explanation.dataset_runner import explain_dataset
from mediffusion_diffusers.explanation.difference_image import decode_difference
from mediffusion_diffusers.explanation.input_shards import InputShard
from mediffusion_diffusers.explanation.plan import ExplanationJob
from mediffusion_diffusers.explanation.request import ExplanationRequest
from mediffusion_diffusers.stop_request import StoppedBySignal


@pytest.fixture
def calls(monkeypatch):
    """How many images each call of the pipeline got."""
    sizes = []
    call = MediffusionCounterfactualPipeline.__call__

    def counted(self, image, *arguments, **kwargs):
        sizes.append(len(image))
        return call(self, image, *arguments, **kwargs)

    monkeypatch.setattr(MediffusionCounterfactualPipeline, "__call__", counted)
    return sizes


def job(dataset, output_dir, batch_size=3, **changes):
    """A quiet job that removes cardiomegaly, without controls, three rows a chunk; `changes` of request or job."""
    of_job = {name: changes.pop(name) for name in list(changes) if name in ExplanationJob.__dataclass_fields__}
    request = ExplanationRequest(**{"away": ("Cardiomegaly",), "controls": False, **changes})
    return ExplanationJob(
        str(dataset),
        output_dir,
        request,
        **{"batch_size": batch_size, "chunk_rows": 3, "show_progress": False, **of_job},
    )


def manifest_of(output_dir):
    return json.loads((output_dir / "manifest.json").read_text())


def test_every_shard_has_its_explanations(pipe, phantoms, tmp_path):
    summary = explain_dataset(pipe, job(phantoms, tmp_path, controls=True))
    assert summary.num_explained == 36 and summary.num_failed == 0 and summary.images_per_second > 0
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


def test_what_is_finished_is_not_done_again(pipe, phantoms, tmp_path, calls):
    explain_dataset(pipe, job(phantoms, tmp_path))
    assert sum(calls) == 36
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    calls.clear()
    summary = explain_dataset(pipe, job(phantoms, tmp_path, batch_size=5))
    assert calls == [] and summary.counts["num_rows"] == 0
    assert "Nothing was left to do: 5 of 5" in summary.sentence()
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}

    whole = output_bytes(tmp_path)
    gone, damaged, cut_off = sorted((tmp_path / "data").iterdir())[2:5]
    gone.unlink()
    damaged.write_bytes(b"damaged from outside")
    cut_off.write_bytes(cut_off.read_bytes()[:-20])
    summary = explain_dataset(pipe, job(phantoms, tmp_path))
    assert summary.damaged == (f"data/{damaged.name}", f"data/{cut_off.name}")
    assert sum(calls) == 2 + 3 + 3 and output_bytes(tmp_path) == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_stops_after_the_batch_and_the_rest_is_done_later(
    pipe, phantoms, tmp_path, calls, number, monkeypatch, capsys
):
    explain_dataset(pipe, job(phantoms, tmp_path / "whole"))
    calls.clear()
    encode = counterfactuals.encode_difference

    def interrupt(difference):
        if sum(calls) >= 17:  # while the seventh batch is encoded: the first chunk of the third shard
            signal.raise_signal(number)
        return encode(difference)

    with monkeypatch.context() as patch, pytest.raises(StoppedBySignal) as stopped:
        patch.setattr(counterfactuals, "encode_difference", interrupt)
        explain_dataset(pipe, job(phantoms, tmp_path / "run"))
    assert stopped.value.code == 128 + number and calls == [3, 3, 2, 3, 3, 2, 3]
    assert f"Stopped by {number.name}: 2 of 5 shards are finished" in capsys.readouterr().out
    assert manifest_of(tmp_path / "run")["num_finished_shards"] == 2

    calls.clear()
    explain_dataset(pipe, job(phantoms, tmp_path / "run"))
    assert sum(calls) == 36 - 19
    assert output_bytes(tmp_path / "run") == output_bytes(tmp_path / "whole")


def test_bad_rows_are_recorded_and_good_ones_unaffected(pipe, broken_rows, phantoms, tmp_path):
    summary = explain_dataset(pipe, job(broken_rows, tmp_path / "out", batch_size=4))
    assert (summary.num_explained, summary.num_failed) == (3, 5) and summary.problems == ()
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
    assert summary.num_failed == 1 and summary.problems == ()
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
    assert [row["error"] is None for row in rows] == [True, False, True, True, True, True] and summary.num_failed == 1
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


def test_job_array_tasks_share_the_work(pipe, phantoms, tmp_path, calls):
    explain_dataset(pipe, job(phantoms, tmp_path / "whole"))
    calls.clear()
    for index, num_images in ((1, 8 + 6), (0, 8 + 8 + 6)):
        explain_dataset(pipe, job(phantoms, tmp_path / "tasks", num_tasks=2, task_index=index))
        assert sum(calls) == num_images and manifest_of(tmp_path / "tasks")["complete"] == (index == 0)
        calls.clear()
    assert output_bytes(tmp_path / "tasks") == output_bytes(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"`shard_index` must lie in \[0, num_shards - 1\], but got 2 of 2"):
        job(phantoms, tmp_path, num_tasks=2, task_index=2)


def test_only_rows_that_are_asked_about(pipe, phantoms, tmp_path):
    inputs = datasets.load_dataset(str(phantoms), split="train")
    labelled = [row["image_id"] for row in inputs if row["labels"][0] == 1]
    summary = explain_dataset(pipe, job(phantoms, tmp_path / "labelled", split="train", rows="labelled"))
    assert output_table(tmp_path / "labelled")["image_id"].to_pylist() == labelled and 0 < len(labelled) < 30
    assert summary.num_explained == len(labelled) and summary.counts["num_passed_over"] == 30 - len(labelled)

    pipe.unet.register_to_config(label_thresholds=[0.5] * 5)
    everything = explain_dataset(pipe, job(phantoms, tmp_path / "all", split="train"))
    assert everything.num_explained == 30
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


def test_another_question_model_or_input_is_refused(pipe, phantoms, tmp_path, calls):
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(phantoms, data)
    explain_dataset(pipe, job(data, out, split="train"))
    finished = output_bytes(out)
    calls.clear()
    with pytest.raises(ValueError, match=r"another run: `guidance_scale` is None there and 7.0 now. Choose another"):
        explain_dataset(pipe, job(data, out, split="train", guidance_scale=7.0))
    (out / "manifest.json").unlink()
    (out / ".chunk_rows.json").unlink()
    with pytest.raises(ValueError, match=r"'data/train-00000-of-00004-rows-0.*parquet' of another run: `away`"):
        explain_dataset(pipe, job(data, out, split="train", away=("Mass",)))
    with pytest.raises(ValueError, match=r"holds 'data/train-00000.*has no input shard 'data/train-00000"):
        explain_dataset(pipe, job(data, out, split="validation"))
    with pytest.raises(ValueError, match=r"`chunk_rows` must be 3, as `output_dir` .* was begun, but got 4"):
        explain_dataset(pipe, job(data, out, split="train", chunk_rows=4))
    explain_dataset(pipe, job(data, out, split="train", chunk_rows=None))
    del finished[".chunk_rows.json"]
    assert calls == [] and output_bytes(out) == finished

    path = data / "data" / "train-00001-of-00004.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(2), path)
    with pytest.raises(ValueError, match=r"'data/train-00001.*its input has changed since it was explained: `con"):
        explain_dataset(pipe, job(data, out, split="train"))
    explain_dataset(pipe, job(data, out, split="train", overwrite=True))
    assert sum(calls) == len(table) - 2  # the other shards still belong to this run

    calls.clear()
    explain_dataset(pipe, job(data, out, split="validation", away=("Mass",), overwrite=True))
    assert sum(calls) == 6 and len(list(out.rglob("*.parquet"))) == 2 and manifest_of(out)["complete"]


def test_a_mistake_that_explained_nothing_binds_nobody(pipe, phantoms, tmp_path):
    """The pipeline refuses what the request alone cannot see, after the folder is begun."""
    with pytest.raises(ValueError, match=r"`num_inference_steps` .* must lie in \[1, 1\]"):
        explain_dataset(pipe, job(phantoms, tmp_path, strength=0.001, num_inference_steps=50))
    assert explain_dataset(pipe, job(phantoms, tmp_path)).manifest["complete"]


def test_explanations_of_an_earlier_version_are_refused_by_name(pipe, phantoms, tmp_path):
    table = pa.table({"row": [0]}).replace_schema_metadata({"mediffusion_explanation": "{}"})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00004.parquet")
    with pytest.raises(ValueError, match=r"'data/train-00000-of-00004.parquet' of an earlier version.*`--overwrite`"):
        explain_dataset(pipe, job(phantoms, tmp_path))
    explain_dataset(pipe, job(phantoms, tmp_path, split="validation", overwrite=True))
    assert len(list(tmp_path.rglob("*.parquet"))) == 2


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


def test_the_first_one_says_how_the_input_is_cut(pipe, phantoms, tmp_path):
    """Launches that begin at once measure differently; a folder that holds nothing yet binds nobody else."""
    (tmp_path / ".chunk_rows.json").write_text("{")
    for chunk_rows, expected in ((4, 4), (None, 4)):
        summary = explain_dataset(
            pipe, job(phantoms, tmp_path, split="validation", batch_size=2, chunk_rows=chunk_rows)
        )
        assert summary.manifest["num_chunks"] == -(-6 // expected)
        for path in (tmp_path / "data").iterdir():
            path.unlink()


def test_a_dataset_of_which_nothing_is_explained_is_no_success(pipe, phantoms, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    table = pq.read_table(sorted((phantoms / "data").glob("validation-*"))[0])
    rows = [{**row, "image": None} for row in table.to_pylist()]
    pq.write_table(table.from_pylist(rows, schema=table.schema), data / "none.parquet")
    for num_rows in (6, 0):  # and the second run finds them done
        summary = explain_dataset(pipe, job(data, tmp_path / "out"))
        assert (summary.counts["num_rows"], summary.num_explained, summary.is_useful) == (num_rows, 0, False)
        assert summary.sentence().startswith("No image is explained: 6 rows could not be (column `error` says why)")
    good = explain_dataset(pipe, job(phantoms, tmp_path / "good"))
    assert good.is_useful and good.sentence().startswith("Explained 36 images")


def test_a_run_that_another_one_has_overtaken_ends(pipe, phantoms, tmp_path, monkeypatch):
    """Both began while the folder was empty, with different questions."""
    encode = counterfactuals.encode_difference
    begun = []

    def other_run(difference):
        if not begun:
            begun.append(True)
            explain_dataset(pipe, job(phantoms, tmp_path, split="validation", away=("Mass",)))
        return encode(difference)

    monkeypatch.setattr(counterfactuals, "encode_difference", other_run)
    with pytest.raises(ValueError, match=r"another run: `away` is .'Mass'. there and .'Cardiomegaly'. now"):
        explain_dataset(pipe, job(phantoms, tmp_path))
    assert begun


def test_what_is_not_ours_is_left_alone(pipe, phantoms, tmp_path):
    foreign = tmp_path / "notes.parquet"
    shutil.copy(next((phantoms / "data").glob("*.parquet")), foreign)
    with pytest.raises(ValueError, match=r"'notes.parquet', which is no explanation"):
        explain_dataset(pipe, job(phantoms, tmp_path))
    explain_dataset(pipe, job(phantoms, tmp_path, overwrite=True))
    assert foreign.is_file() and manifest_of(tmp_path)["complete"]
    with pytest.raises(ValueError, match="`output_dir` must lie outside the dataset"):
        explain_dataset(pipe, job(phantoms, phantoms / "out"))


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


def test_two_launches_of_the_same_task_end_well(pipe, phantoms, tmp_path, monkeypatch, calls):
    """The second one runs, from beginning to end, in the middle of the first one's second shard, which it leaves."""
    explain_dataset(pipe, job(phantoms, tmp_path / "whole"))
    first = job(phantoms, tmp_path / "run")
    encode = counterfactuals.encode_difference
    nested = []

    def second_launch(difference):
        if sum(calls) >= 36 + 12 and not nested:
            nested.append(None)
            nested[0] = explain_dataset(pipe, replace(first))
        return encode(difference)

    monkeypatch.setattr(counterfactuals, "encode_difference", second_launch)
    summary = explain_dataset(pipe, first)
    assert nested[0].manifest["complete"] and summary.manifest["complete"]
    assert output_bytes(tmp_path / "run") == output_bytes(tmp_path / "whole")
