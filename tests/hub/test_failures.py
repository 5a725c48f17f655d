"""Whatever goes wrong with the Hub: one true line, no traceback and no token."""

import socket

import pytest
from huggingface_hub import HfApi

from mediffusion_diffusers import JointUNet2DModel, MediffusionClassifyPipeline
from mediffusion_diffusers.commands.boundary import explain
from mediffusion_diffusers.hub import HubFailure, hub_access
from mediffusion_diffusers.models.model_folder import local_model


WRONG_TOKEN = "hf_" + 17 * "xY"
LOADERS = {
    "pipeline": lambda source, revision: MediffusionClassifyPipeline.from_pretrained(source, revision=revision),
    "unet": lambda source, revision: JointUNet2DModel.from_pretrained(source, revision=revision, subfolder="unet"),
    "part": lambda source, revision: local_model(source, "vae", revision),
    "raw": lambda source, revision: HfApi().model_info(source, revision=revision),
}

pytestmark = pytest.mark.usefixtures("_short_waits")


@pytest.fixture
def model(hub, pipeline_folder):
    with hub.this_process(hub.token):
        api = HfApi()
        api.create_repo("org/model", private=True)
        api.upload_folder(repo_id="org/model", folder_path=pipeline_folder, ignore_patterns=["checkpoint-*", ".*"])
    return "org/model"


def explained(hub, source, revision=None, token="", **environment):
    """What a client says that loads a model, by kind of loading."""
    said = {}
    with hub.this_process(token, environment):
        for kind, load in LOADERS.items():
            try:
                load(source, revision)
                said[kind] = "loaded"
            except Exception as error:
                said[kind] = explain(error)
    for sentence in said.values():
        assert "\n" not in sentence
        for never in ("fault of the software", "outgoing traffic", "huggingface_hub", WRONG_TOKEN):
            assert never not in sentence, sentence
    return said


def test_what_is_not_there_may_not_be_read_or_fails(hub, model):
    statuses = (403, 429, 500, None)
    for status in statuses:
        hub.fail_next(1000, status=status, path=f"org/fails-with-{status}")
    reader = hub.read_token
    expected = {
        (model, None, WRONG_TOKEN): "401",
        (model, None, ""): "without a login (401)",
        ("org/nothing", None, reader): "'org/nothing' is neither a folder here nor a repository on the Hub (404)",
        (model, "v9", reader): "'org/model' has no such revision",
        ("org/fails-with-403", None, reader): "no right to this at 'org/fails-with-403' (403)",
        ("org/fails-with-429", None, reader): "fewer requests (429)",
        ("org/fails-with-500", None, reader): "a fault of its own (500)",
        ("org/fails-with-None", None, reader): "cannot be reached (",
        (model, None, reader): "loaded",
    }
    for (source, revision, token), part in expected.items():
        for kind, sentence in explained(hub, source, revision, token).items():
            assert part in sentence or (kind == "raw" and part.partition("'")[0] in sentence), (kind, sentence)


def test_weights_that_arrive_damaged_are_refused(hub, model):
    """The Hub's client compares sizes alone; weights with other numbers would answer, and wrongly."""
    for digest, content in hub.state.lfs_objects.items():
        hub.state.lfs_objects[digest] = content[:-4] + bytes(4)  # the last number
    with hub.this_process(hub.read_token), pytest.raises(ValueError, match=r"SHA-256 .* Delete \S+ and load"):
        MediffusionClassifyPipeline.from_pretrained(model)


def closed_endpoint():
    """An address at which nobody answers."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}"


@pytest.mark.parametrize("environment", ["closed", "unknown", "offline"])
def test_no_network(hub, environment):
    endpoint = closed_endpoint()
    variables, part = {
        "closed": ({"HF_ENDPOINT": endpoint}, f"Hub at {endpoint} cannot be reached"),
        "unknown": ({"HF_ENDPOINT": "http://hub.invalid"}, "Hub at http://hub.invalid cannot be reached"),
        "offline": ({"HF_HUB_OFFLINE": "1"}, "Offline mode is on"),
    }[environment]
    said = explained(hub, "org/model", **variables)
    assert all(part in sentence for sentence in said.values()), said


def test_a_fresh_process_says_the_same(hub):
    """What the tests above show in one process, whose settings they change, a command shows from its start."""
    code = """
from mediffusion_diffusers import MediffusionClassifyPipeline
from mediffusion_diffusers.commands.boundary import run_command

run_command(lambda: MediffusionClassifyPipeline.from_pretrained("org/model"), "a_command.py")
"""
    completed = hub.run_python(code, token=WRONG_TOKEN, check=False)
    said = completed.stderr.splitlines()[-1]
    assert completed.returncode == 1 and "Traceback" not in completed.stderr
    assert said.startswith("a_command.py: ") and "(401)" in said and WRONG_TOKEN not in completed.stderr


def test_a_connection_that_an_older_client_lost():
    error = RuntimeError("Cannot send a request, as the client has been closed.")
    assert "cannot be reached" in explain(error)
    with pytest.raises(HubFailure, match="cannot be reached"), hub_access("org/model"):
        raise error
    with pytest.raises(RuntimeError, match="of another kind"), hub_access("org/model"):
        raise RuntimeError("of another kind")
