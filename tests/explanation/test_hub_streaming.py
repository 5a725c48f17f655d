"""A dataset that lies on the Hub is read from there, shard by shard, and the pipeline as well."""

import json
import shutil

import pytest
from huggingface_hub import HfApi
from support.explanation import output_table

from mediffusion_diffusers.commands.boundary import run_command
from mediffusion_diffusers.commands.explain_dataset import COMMAND
from mediffusion_diffusers.explanation.dataset_runner import explain_dataset
from mediffusion_diffusers.explanation.plan import ExplanationJob
from mediffusion_diffusers.requests.counterfactuals import ExplanationRequest


def upload(folder, repo_id, repo_type):
    api = HfApi()
    api.create_repo(repo_id, repo_type=repo_type, exist_ok=True)
    return api.upload_folder(folder_path=folder, repo_id=repo_id, repo_type=repo_type).oid


@pytest.fixture
def explain(capsys, tmp_path):
    """Explains `org/data` by `org/model`; returns the exit code and what was said."""
    places = ("--pretrained_model_name_or_path", "org/model", "--dataset", "org/data")
    places = (*places, "--output_dir", str(tmp_path / "out"))

    def run(*extra):
        with pytest.raises(SystemExit) as ended:
            run_command(lambda: COMMAND.main([*places, "--away", "Cardiomegaly", "--split", "train", *extra]), "it")
        out, err = capsys.readouterr()
        return ended.value.code, out + err

    return run


def test_a_dataset_on_the_hub(hub, pipe, pipeline_folder, phantoms, tmp_path, explain):
    """Not there; explained in spite of failing requests; refused after a shard was changed; the old commit is fine."""
    request = ExplanationRequest(away=("Cardiomegaly",))
    explain_dataset(pipe, ExplanationJob(str(phantoms), tmp_path / "local", request, split="train"))
    changed = tmp_path / "changed"
    shutil.copytree(phantoms, changed)
    shutil.copy(changed / "data" / "train-00003-of-00004.parquet", changed / "data" / "train-00001-of-00004.parquet")

    fault = hub.fail_next(2, path=r"/org/data/resolve/.*parquet")  # the client tries again by itself
    with hub.this_process(hub.token):
        upload(pipeline_folder, "org/model", "model")
        code, said = explain()
        assert code == 1 and "there is no folder 'org/data' nor, for this user, such a dataset" in said, said
        first = upload(phantoms, "org/data", "dataset")
        code, said = explain()
        assert code == 0 and "Explained 30 images" in said, said
        assert fault.remaining == 0
        upload(changed, "org/data", "dataset")
        code, said = explain()
        assert code == 1 and "holds 'data/train-00001-of-00004-rows-" in said, said
        assert "its input has changed since it was explained: `content`" in said
        code, said = explain("--dataset_revision", first)
        assert code == 0 and "Nothing was left to do: 4 of 4" in said, said

    out = tmp_path / "out"
    here, there = (output_table(folder).drop_columns(["settings"]) for folder in (tmp_path / "local", out))
    assert [name for name in here.column_names if not here[name].equals(there[name])] == []
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["dataset"] == f"org/data@{first}" and manifest["model"] == "org/model"
    assert hub.token not in json.dumps(manifest)
