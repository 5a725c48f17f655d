"""`--hub_strategy every_save`: checkpoints go to the Hub meanwhile, and a fresh machine goes on from there."""

import json
import shutil
from pathlib import Path

import pytest
from support.training import TINY_JOINT

from mediffusion_diffusers.data.phantom import prepare_phantoms
from mediffusion_diffusers.training.run.hub_checkpoints import hub_source, with_retries


REPOSITORY = "org/mediffusion-phantom"
RUN = """
import runpy, sys
from mediffusion_diffusers.training.run import hub_checkpoints

hub_checkpoints.FIRST_DELAY = 0.05
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
FETCH = """
import sys
from pathlib import Path
from mediffusion_diffusers.training.run.hub_checkpoints import download_for_resuming

folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
print(download_for_resuming(folder, sys.argv[2], sys.argv[3], None), *sorted(path.name for path in folder.iterdir()))
"""
SCRIPT = Path(__file__).parents[2] / "training" / "train_joint.py"
TIMINGS = ("seconds", "images_per_second", "data_wait_share")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    prepare_phantoms(folder, num_train=24, num_validation=12, num_test=0, image_size=16, show_progress=False)
    return folder


def train(hub, data, output_dir, *arguments, token=True, **options):
    line = (*TINY_JOINT, "--dataset_dir", data, "--output_dir", output_dir, "--hub_model_id", REPOSITORY)
    token = hub.token if token else None
    completed = hub.run_python(RUN, SCRIPT, *map(str, (*line, *arguments)), token=token, **options)
    assert hub.token not in completed.stdout + completed.stderr
    return completed


def records(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMINGS} for line in lines]


def damage_newest(hub):
    """Flip a bit of the newest checkpoint's weights, as storage may."""
    sha256 = hub.repository(REPOSITORY).resolve("checkpoints").files["checkpoint-6/unet.safetensors"].lfs_oid
    content = bytearray(hub.state.lfs_objects[sha256])
    content[-1] ^= 1
    hub.state.lfs_objects[sha256] = bytes(content)


def test_an_empty_disk_goes_on_from_the_hub(hub, data, tmp_path):
    """The upload of the first checkpoint fails at first; the run goes on all the same."""
    push = ("--push_to_hub", "--hub_strategy", "every_save", "--resume_from_checkpoint", "hub")
    hub.fail_next(2, path="/api/models/.*/commit/")
    completed = train(hub, data, tmp_path / "whole", *push)
    assert "Starting afresh: there is no checkpoint." in completed.stdout and "Published it" in completed.stdout
    assert "failed (1 of 5), again in" in completed.stderr
    repository = hub.repository(REPOSITORY)
    history = repository.history("checkpoints")
    titles = [commit.title for commit in history]
    assert titles[0] == "checkpoint-6"
    state = {"checkpoint-6/manifest.json", "checkpoint-6/unet.safetensors", "checkpoint-6/optimizer.safetensors"}
    paths = set(repository.paths("checkpoints"))
    assert state <= paths and "metrics.jsonl" in paths and not any("checkpoint-3" in path for path in paths)
    assert not any("checkpoint" in path for path in repository.paths("main"))
    assert "model_index.json" in repository.paths("main")
    assert not list((tmp_path / "whole").glob(".*"))

    if "checkpoint-3" in titles:  # a newer checkpoint may have taken its place in the line
        revision = history[titles.index("checkpoint-3")].oid
        shutil.rmtree(tmp_path / "fresh", ignore_errors=True)
        completed = train(
            hub, data, tmp_path / "fresh", "--resume_from_checkpoint", f"{REPOSITORY}@{revision}", token=False
        )
        assert f"Resuming from {tmp_path / 'fresh' / 'checkpoint-3'}" in completed.stdout
        for name in (
            "checkpoint-6/unet.safetensors",
            "checkpoint-6/ema.safetensors",
            "checkpoint-6/optimizer.safetensors",
        ):
            assert (tmp_path / "fresh" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert records(tmp_path / "fresh") == records(tmp_path / "whole")

    completed = hub.run_python(FETCH, tmp_path / "newest", "hub", REPOSITORY)
    assert completed.stdout.split() == ["latest", "checkpoint-6", "metrics.jsonl"]
    completed = hub.run_python(FETCH, tmp_path / "newest", "org/nothing@main", REPOSITORY, check=False)
    assert "'org/nothing' is neither a folder here nor a repository on the Hub that may be read" in completed.stderr
    line = (FETCH, tmp_path / "newest", "org/nothing@main", REPOSITORY)
    completed = hub.run_python(*line, token=hub.read_token, check=False)
    assert "must name a revision that holds a checkpoint, but org/nothing has none at 'main'" in completed.stderr

    damage_newest(hub)
    completed = hub.run_python(FETCH, tmp_path / "older", "hub", REPOSITORY)
    assert "unet.safetensors has another SHA-256" in completed.stderr
    older = ["checkpoint-3", "metrics.jsonl"] if "checkpoint-3" in titles else []
    assert completed.stdout.split() == ["latest", *older]
    completed = hub.run_python(FETCH, tmp_path / "named", f"{REPOSITORY}@checkpoints", REPOSITORY, check=False)
    assert "checkpoint-6 cannot be used: unet.safetensors has another SHA-256" in completed.stderr


def test_nothing_on_the_hub_stops_the_training(hub, data, tmp_path):
    """All uploads fail for good, as with a token that may only read; the model is there, and the exit code tells."""
    line = ("--push_to_hub", "--hub_strategy", "every_save", "--max_train_steps", 4, "--hub_token", hub.read_token)
    completed = train(hub, data, tmp_path / "run", *line, token=False, check=False)
    assert completed.returncode == 1 and hub.read_token not in completed.stdout + completed.stderr
    assert "Nothing more is uploaded while training" in completed.stderr
    assert "is saved in" in completed.stderr and "but was not published" in completed.stderr
    assert (tmp_path / "run" / "checkpoint-4").is_dir() and (tmp_path / "run" / "model_index.json").is_file()


@pytest.mark.parametrize("strategy", ["every_save", "end"])
def test_nothing_private_goes_to_a_public_repository(hub, data, tmp_path, strategy):
    hub.run_python(f"from huggingface_hub import create_repo; create_repo({REPOSITORY!r})", token=hub.token)
    line = ("--push_to_hub", "--hub_strategy", strategy, "--hub_private_repo")
    completed = train(hub, data, tmp_path / "run", *line, check=False)
    assert completed.returncode != 0 and f"{REPOSITORY} exists and is public" in completed.stderr
    assert "Traceback" not in completed.stderr and not (tmp_path / "run" / "metrics.jsonl").exists()
    assert_nothing_left(hub)

    hub.fail_next(3, path=f"/api/models/{REPOSITORY}$", method="GET")  # not to be asked at first
    completed = train(hub, data, tmp_path / "run", *line, "--max_train_steps", 3, check=False)
    assert completed.returncode != 0 and f"{REPOSITORY} exists and is public" in completed.stderr
    assert (tmp_path / "run" / "checkpoint-3").is_dir()
    assert_nothing_left(hub)


def assert_nothing_left(hub):
    assert hub.repository(REPOSITORY).paths() == [".gitattributes"] and hub.state.lfs_objects == {}
    assert set(hub.repository(REPOSITORY).branches) == {"main"}


def test_where_to_resume_from(tmp_path):
    assert hub_source("hub", "org/name") == ("org/name", "checkpoints")
    assert hub_source("org/name@refs/pr/1", None) == ("org/name", "refs/pr/1")
    assert hub_source("latest", "org/name") is None and hub_source(None, "org/name") is None
    folder = tmp_path / "checkpoint@3"
    folder.mkdir()
    assert hub_source(str(folder), None) is None
    with pytest.raises(ValueError, match="='hub'` needs `hub_model_id`"):
        hub_source("hub", None)


def test_retries_wait_longer_each_time_and_hide_the_token(caplog):
    failures = iter([OSError("bad my-secret"), OSError("worse hf_" + "a" * 34)])

    def action():
        for failure in failures:
            raise failure
        return "done"

    assert with_retries(action, "Uploading", "my-secret", num_attempts=3, first_delay=0.001) == "done"
    assert "again in 0.001 s: bad ***" in caplog.text and "again in 0.002 s: worse ***" in caplog.text
    calls = []

    def forbidden():
        calls.append(1)
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        with_retries(forbidden, "Uploading", num_attempts=3, first_delay=0.001)
    assert len(calls) == 1
