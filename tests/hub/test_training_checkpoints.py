"""`--hub_strategy every_save`: checkpoints go to the Hub meanwhile, and a fresh machine goes on from there."""

import json
import shutil

import pytest
import torch
from huggingface_hub import create_repo
from support.training import TINY_JOINT

from mediffusion_diffusers.data.phantom import prepare_phantoms
from mediffusion_diffusers.training.run.checkpoints import save_checkpoint
from mediffusion_diffusers.training.run.hub_checkpoints import (
    HubUploads,
    download_for_resuming,
    hub_source,
    with_retries,
)


REPOSITORY = "org/mediffusion-phantom"
TIMINGS = ("seconds", "images_per_second", "data_wait_share")

pytestmark = pytest.mark.usefixtures("_short_waits")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    prepare_phantoms(folder, num_train=24, num_validation=12, num_test=0, image_size=16, show_progress=False)
    return folder


@pytest.fixture
def train(hub, data, run_script):
    """Train in this process as on a fresh machine that is logged in, or not."""

    def run(output_dir, *arguments, token=True):
        line = (*TINY_JOINT, "--dataset_dir", data, "--output_dir", output_dir, "--hub_model_id", REPOSITORY)
        with hub.this_process(hub.token if token else None):
            completed = run_script("train_joint.py", *line, *arguments)
        assert hub.token not in completed.said
        return completed

    return run


def fetch(hub, folder, resume_from, token=None):
    """What a fresh machine resumes from, and what lies in its folder then."""
    folder.mkdir(exist_ok=True)
    with hub.this_process(token):
        found = download_for_resuming(folder, resume_from, REPOSITORY, None)
    return found, sorted(path.name for path in folder.iterdir())


def records(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMINGS} for line in lines]


def damage_newest(hub):
    """Flip a bit of the newest checkpoint's weights, as storage may."""
    sha256 = hub.repository(REPOSITORY).resolve("checkpoints").files["checkpoint-6/unet.safetensors"].lfs_oid
    content = bytearray(hub.state.lfs_objects[sha256])
    content[-1] ^= 1
    hub.state.lfs_objects[sha256] = bytes(content)


def test_an_empty_disk_goes_on_from_the_hub(hub, train, tmp_path):
    """The upload of the first checkpoint fails at first; the run goes on all the same."""
    push = ("--push_to_hub", "--hub_strategy", "every_save", "--resume_from_checkpoint", "hub")
    hub.fail_next(2, path="/api/models/.*/commit/")
    completed = train(tmp_path / "whole", *push)
    assert completed.exit_code == 0
    assert "Starting afresh: there is no checkpoint." in completed.said and "Published it" in completed.said
    assert "failed (1 of 5), again in" in completed.said
    repository = hub.repository(REPOSITORY)
    history = repository.history("checkpoints")
    titles = [commit.title for commit in history]
    assert titles[0] == "checkpoint-6"
    state = {"checkpoint-6/manifest.json", "checkpoint-6/unet.safetensors", "checkpoint-6/optimizer.safetensors"}
    paths = set(repository.paths("checkpoints"))
    assert state <= paths and "metrics.jsonl" in paths and not any("checkpoint-3" in path for path in paths)
    assert not any("checkpoint" in path for path in repository.paths("main"))
    assert "model_index.json" in repository.paths("main")
    assert not list((tmp_path / "whole").glob(".*.partial"))

    if "checkpoint-3" in titles:  # a newer checkpoint may have taken its place in the line
        revision = history[titles.index("checkpoint-3")].oid
        shutil.rmtree(tmp_path / "fresh", ignore_errors=True)
        completed = train(tmp_path / "fresh", "--resume_from_checkpoint", f"{REPOSITORY}@{revision}", token=False)
        assert f"Resuming from {tmp_path / 'fresh' / 'checkpoint-3'}" in completed.said
        for name in (
            "checkpoint-6/unet.safetensors",
            "checkpoint-6/ema.safetensors",
            "checkpoint-6/optimizer.safetensors",
        ):
            assert (tmp_path / "fresh" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert records(tmp_path / "fresh") == records(tmp_path / "whole")

    assert fetch(hub, tmp_path / "newest", "hub") == ("latest", ["checkpoint-6", "metrics.jsonl"])
    with pytest.raises(OSError, match=r"'org/nothing' is neither a folder here nor a repository .* that may be read"):
        fetch(hub, tmp_path / "newest", "org/nothing@main")
    with pytest.raises(ValueError, match="must name a revision that holds a checkpoint, but org/nothing has none at"):
        fetch(hub, tmp_path / "newest", "org/nothing@main", token=hub.read_token)


def test_a_checkpoint_that_was_damaged_on_the_hub_is_not_used(hub, two_on_the_hub, tmp_path, caplog):
    damage_newest(hub)
    assert fetch(hub, tmp_path / "older", "hub") == ("latest", ["checkpoint-3"])
    assert "unet.safetensors has another SHA-256" in caplog.text
    with pytest.raises(ValueError, match=r"checkpoint-6 cannot be used: unet\.safetensors has another SHA-256"):
        fetch(hub, tmp_path / "named", f"{REPOSITORY}@checkpoints")


@pytest.fixture
def two_on_the_hub(hub, tmp_path):
    """Two checkpoints on the branch `checkpoints`, one after another."""
    with hub.this_process(hub.token):
        uploads = HubUploads(REPOSITORY)
        for step in (3, 6):
            weights = {"weight": torch.full((8,), float(step))}
            uploads.submit(save_checkpoint(tmp_path / "run", step, {"unet": weights}, {}))
            assert uploads.wait(timeout=60)


def test_nothing_on_the_hub_stops_the_training(hub, train, tmp_path):
    """All uploads fail for good, as with a token that may only read; the model is there, and the exit code tells."""
    line = ("--push_to_hub", "--hub_strategy", "every_save", "--max_train_steps", 4, "--hub_token", hub.read_token)
    completed = train(tmp_path / "run", *line, token=False)
    assert completed.exit_code == 1 and hub.read_token not in completed.said
    assert "Nothing more is uploaded while training" in completed.said
    assert "is saved in" in completed.said and "but was not published" in completed.said
    assert (tmp_path / "run" / "checkpoint-4").is_dir() and (tmp_path / "run" / "model_index.json").is_file()


@pytest.mark.parametrize("strategy", ["every_save", "end"])
def test_nothing_private_goes_to_a_public_repository(hub, train, tmp_path, strategy):
    with hub.this_process(hub.token):
        create_repo(REPOSITORY)
    line = ("--push_to_hub", "--hub_strategy", strategy, "--hub_private_repo")
    completed = train(tmp_path / "run", *line)
    assert completed.exit_code == 1 and f"{REPOSITORY} exists and is public" in completed.said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert_nothing_left(hub)

    hub.fail_next(3, path=f"/api/models/{REPOSITORY}$", method="GET")  # not to be asked at first
    completed = train(tmp_path / "run", *line, "--max_train_steps", 3)
    assert completed.exit_code == 1 and f"{REPOSITORY} exists and is public" in completed.said
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
