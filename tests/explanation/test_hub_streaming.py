"""A dataset that lies on the Hub is read from there, shard by shard, and the pipeline as well."""

import json
import shutil
from pathlib import Path

import pytest
from hub_emulator import HubEmulator
from support.explanation import output_table

from mediffusion_diffusers.explanation.dataset_runner import explain_dataset
from mediffusion_diffusers.explanation.plan import ExplanationJob
from mediffusion_diffusers.explanation.request import ExplanationRequest


SCRIPT = Path(__file__).parents[2] / "training" / "explain_dataset.py"
UPLOAD = """
import sys
from huggingface_hub import HfApi

folder, repo_id, repo_type = sys.argv[1:]
api = HfApi()
api.create_repo(repo_id, repo_type=repo_type)
api.upload_folder(folder_path=folder, repo_id=repo_id, repo_type=repo_type)
"""
RUN = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.fixture
def hub():
    with HubEmulator() as emulator:
        yield emulator


def explain(hub, output_dir, *arguments, **options):
    line = ("--pretrained_model_name_or_path", "org/model", "--dataset", "org/data", "--away", "Cardiomegaly")
    return hub.run_python(RUN, SCRIPT, *line, "--output_dir", output_dir, *arguments, token=hub.token, **options)


def test_a_dataset_on_the_hub(hub, pipe, pipeline_folder, phantoms, tmp_path):
    hub.run_python(UPLOAD, pipeline_folder, "org/model", "model", token=hub.token)
    hub.run_python(UPLOAD, phantoms, "org/data", "dataset", token=hub.token)
    explain_dataset(
        pipe,
        ExplanationJob(str(phantoms), tmp_path / "local", ExplanationRequest(away=("Cardiomegaly",)), split="train"),
    )
    hub.fail_next(2, path="/org/data/resolve/.*parquet")  # the client tries again by itself
    completed = explain(hub, tmp_path / "out", "--split", "train")
    assert "Explained 30 images" in completed.stdout
    here, there = (output_table(tmp_path / name).drop_columns(["settings"]) for name in ("local", "out"))
    assert here.equals(there)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    commit = hub.repository("org/data", "dataset").history()[0].oid
    assert manifest["dataset"] == f"org/data@{commit}" and manifest["model"] == "org/model"
    assert hub.token not in json.dumps(manifest)

    # A new commit that leaves the shards alone changes nothing; one that changes a shard is noticed.
    changed = tmp_path / "changed"
    shutil.copytree(phantoms, changed)
    (changed / "README.md").write_text("# Phantoms\n")
    hub.run_python(
        UPLOAD.replace("api.create_repo(repo_id, repo_type=repo_type)", ""),
        changed,
        "org/data",
        "dataset",
        token=hub.token,
    )
    num_requests = len(hub.requests)
    assert "Nothing was left to do" in explain(hub, tmp_path / "out", "--split", "train").stdout
    later = [request.path for request in hub.requests[num_requests:]]
    assert later
    shutil.copy(changed / "data" / "train-00003-of-00004.parquet", changed / "data" / "train-00001-of-00004.parquet")
    hub.run_python(
        UPLOAD.replace("api.create_repo(repo_id, repo_type=repo_type)", ""),
        changed,
        "org/data",
        "dataset",
        token=hub.token,
    )
    refused = explain(hub, tmp_path / "out", "--split", "train", check=False)
    assert refused.returncode == 1 and "has changed since it was explained: `content`" in refused.stderr
    before = ("--split", "train", "--dataset_revision", commit)
    assert "Nothing was left to do" in explain(hub, tmp_path / "out", *before).stdout


def test_a_dataset_that_is_not_there_or_not_reached(hub, pipeline_folder, tmp_path):
    hub.run_python(UPLOAD, pipeline_folder, "org/model", "model", token=hub.token)
    missing = explain(hub, tmp_path / "out", check=False)
    assert missing.returncode == 1 and "Traceback" not in missing.stderr
    assert "there is no folder 'org/data' nor, for this user, such a dataset" in missing.stderr
