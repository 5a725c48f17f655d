"""What the output folder holds decides: what is done already, what belongs to another run, who else works on it."""

import shutil
import signal
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.explanation import job, manifest_of, output_bytes

from mediffusion_diffusers.commands.explain_dataset import sentence
from mediffusion_diffusers.explanation.dataset_runner import explain_dataset
from mediffusion_diffusers.requests import counterfactuals
from mediffusion_diffusers.stop_request import StoppedBySignal


def test_what_is_finished_is_not_done_again(pipe, phantoms, tmp_path, calls):
    explain_dataset(pipe, job(phantoms, tmp_path))
    assert sum(calls) == 36
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    calls.clear()
    summary = explain_dataset(pipe, job(phantoms, tmp_path, batch_size=5))
    assert calls == [] and summary.counts["num_rows"] == 0
    assert "Nothing was left to do: 5 of 5" in sentence(summary)
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
