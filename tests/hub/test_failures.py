"""Whatever goes wrong with the Hub: one true line, no traceback and no token."""

import json
import socket

import pytest


WRONG_TOKEN = "hf_" + 17 * "xY"
KINDS = ("pipeline", "unet", "part", "raw")
CLIENT = """
import json, os, sys
from huggingface_hub import HfApi
from mediffusion_diffusers import JointUNet2DModel, MediffusionClassifyPipeline
from mediffusion_diffusers.commands.boundary import explain
from mediffusion_diffusers.models.model_folder import local_model

LOADERS = {
    "pipeline": lambda source, revision: MediffusionClassifyPipeline.from_pretrained(source, revision=revision),
    "unet": lambda source, revision: JointUNet2DModel.from_pretrained(source, revision=revision, subfolder="unet"),
    "part": lambda source, revision: local_model(source, "vae", revision),
    "raw": lambda source, revision: HfApi().model_info(source, revision=revision),
}
for kind, source, revision, token in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    try:
        LOADERS[kind](source, revision)
        print("loaded")
    except Exception as error:
        print(explain(error))
"""


@pytest.fixture
def model(hub, pipeline_folder):
    upload = (
        "import sys; from huggingface_hub import HfApi; api = HfApi(); api.create_repo('org/model', private=True);"
        "api.upload_folder(repo_id='org/model', folder_path=sys.argv[1], ignore_patterns=['checkpoint-*', '.*'])"
    )
    hub.run_python(upload, pipeline_folder, token=hub.token)
    return "org/model"


def explained(hub, cases, kinds=KINDS, **environment):
    """What a client says to each (source, revision, token), by kind of loading."""
    line = [(kind, *case) for case in cases for kind in kinds]
    completed = hub.run_python(CLIENT, json.dumps(line), environment=environment, timeout=600)
    said = completed.stdout.splitlines()
    assert len(said) == len(line), "one line for each"
    for sentence in said:
        for never in ("fault of the software", "outgoing traffic", "huggingface_hub", WRONG_TOKEN):
            assert never not in sentence, sentence
    return [said[place : place + len(kinds)] for place in range(0, len(said), len(kinds))]


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
    for sentences, part in zip(explained(hub, list(expected)), expected.values(), strict=True):
        for kind, sentence in zip(KINDS, sentences, strict=True):
            assert part in sentence or (kind == "raw" and part.partition("'")[0] in sentence), (kind, sentence)


@pytest.mark.parametrize("environment", ["closed", "unknown", "offline"])
def test_no_network(hub, environment):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    variables, part = {
        "closed": ({"HF_ENDPOINT": endpoint}, f"Hub at {endpoint} cannot be reached"),
        "unknown": ({"HF_ENDPOINT": "http://hub.invalid"}, "Hub at http://hub.invalid cannot be reached"),
        "offline": ({"HF_HUB_OFFLINE": "1"}, "Offline mode is on"),
    }[environment]
    (sentences,) = explained(hub, [("org/model", None, "")], **variables)
    assert all(part in sentence for sentence in sentences), sentences
