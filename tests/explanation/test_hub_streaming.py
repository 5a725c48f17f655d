"""A dataset that lies on the Hub is read from there, shard by shard, and the pipeline as well."""

import json
import shutil
from pathlib import Path

import pytest
from hub_emulator import HubEmulator
from support.explanation import output_table

from mediffusion_diffusers.explanation.dataset_runner import explain_dataset
from mediffusion_diffusers.explanation.plan import ExplanationJob
from mediffusion_diffusers.requests.counterfactuals import ExplanationRequest


SCRIPT = Path(__file__).parents[2] / "training" / "explain_dataset.py"
CLIENT = """
import runpy, sys
from huggingface_hub import HfApi

script, pipeline, data, changed, output_dir = sys.argv[1:]
api = HfApi()

def upload(folder, repo_id, repo_type):
    api.create_repo(repo_id, repo_type=repo_type, exist_ok=True)
    return api.upload_folder(folder_path=folder, repo_id=repo_id, repo_type=repo_type).oid

def explain(*extra):
    places = ("--pretrained_model_name_or_path", "org/model", "--dataset", "org/data", "--output_dir", output_dir)
    sys.argv = [script, *places, "--away", "Cardiomegaly", "--split", "train", *extra]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        print("end:", end.code, flush=True)

upload(pipeline, "org/model", "model")
explain()
first = upload(data, "org/data", "dataset")
explain()
upload(changed, "org/data", "dataset")
explain()
explain("--dataset_revision", first)
"""


@pytest.fixture
def hub():
    with HubEmulator() as emulator:
        yield emulator


def test_a_dataset_on_the_hub(hub, pipe, pipeline_folder, phantoms, tmp_path):
    """Not there; explained in spite of failing requests; refused after a shard was changed; the old commit is fine."""
    request = ExplanationRequest(away=("Cardiomegaly",))
    explain_dataset(pipe, ExplanationJob(str(phantoms), tmp_path / "local", request, split="train"))
    changed = tmp_path / "changed"
    shutil.copytree(phantoms, changed)
    shutil.copy(changed / "data" / "train-00003-of-00004.parquet", changed / "data" / "train-00001-of-00004.parquet")

    fault = hub.fail_next(2, path=r"/org/data/resolve/.*parquet")  # the client tries again by itself
    out = tmp_path / "out"
    completed = hub.run_python(CLIENT, SCRIPT, pipeline_folder, phantoms, changed, out, token=hub.token, timeout=300)
    assert fault.remaining == 0
    missing, explained, first_end, refused, finished, last_end = completed.stdout.splitlines()
    assert (missing, first_end, refused, last_end) == ("end: 1", "end: 0", "end: 1", "end: 0")
    assert "Explained 30 images" in explained and "Nothing was left to do: 4 of 4" in finished
    assert "there is no folder 'org/data' nor, for this user, such a dataset" in completed.stderr
    assert "holds 'data/train-00001-of-00004-rows-" in completed.stderr
    assert "its input has changed since it was explained: `content`" in completed.stderr

    here, there = (output_table(folder).drop_columns(["settings"]) for folder in (tmp_path / "local", out))
    assert [name for name in here.column_names if not here[name].equals(there[name])] == []
    manifest = json.loads((out / "manifest.json").read_text())
    first = hub.repository("org/data", "dataset").history()[1].oid
    assert manifest["dataset"] == f"org/data@{first}" and manifest["model"] == "org/model"
    assert hub.token not in json.dumps(manifest)
