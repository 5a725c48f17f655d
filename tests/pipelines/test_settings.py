"""Everything about the counterfactual pipeline's options follows from one class."""

import dataclasses
import inspect
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.components import random_images, tiny_pipeline, tiny_scheduler

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.counterfactual_options import given_options, stored_options
from mediffusion_diffusers.option_parser import OptionParser
from mediffusion_diffusers.pipelines.counterfactual import CounterfactualSettings
from mediffusion_diffusers.requests.counterfactuals import ExplanationRequest


OPTIONS = {entry.name: entry for entry in dataclasses.fields(CounterfactualSettings)}
ROOT = Path(__file__).parents[2]


def resolve(checkpoint=None, scheduler="ddim", **call):
    return CounterfactualSettings.resolve(call, checkpoint, tiny_scheduler(scheduler))


def test_the_signature_names_every_option_with_its_default():
    parameters = inspect.signature(MediffusionCounterfactualPipeline.__call__).parameters
    assert OPTIONS.keys() <= parameters.keys()
    for name, entry in OPTIONS.items():
        assert parameters[name].default == (None if name in stored_options() else entry.default)
        assert f"            {name}: " in MediffusionCounterfactualPipeline.__call__.__doc__
    assert not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    with pytest.raises(TypeError, match="guidance_weight"):
        tiny_pipeline(MediffusionCounterfactualPipeline)(random_images(1), away="Mass", guidance_weight=3.0)


def test_positions_of_the_arguments():
    order = list(inspect.signature(MediffusionCounterfactualPipeline.__call__).parameters)
    first = ["self", "image", "towards", "away", "strength", "guidance_scale", "num_inference_steps", "start"]
    assert order[:8] == first
    assert order[8:14] == ["guidance_mode", "num_inversion_steps", "solver_order", "eta", "generator", "noise"]
    pipe = tiny_pipeline(MediffusionCounterfactualPipeline)
    by_position = pipe(random_images(1), None, "Mass", 0.2, 5.0, 3, output_type="latent")
    by_name = pipe(
        image=random_images(1),
        away="Mass",
        strength=0.2,
        guidance_scale=5.0,
        num_inference_steps=3,
        output_type="latent",
    )
    assert torch.equal(by_position.images, by_name.images)


def test_a_request_has_every_option():
    names = {entry.name for entry in dataclasses.fields(ExplanationRequest)}
    assert OPTIONS.keys() <= names
    for wrong in ({"strength": 2.0}, {"strength": float("nan")}, {"mask": "lungs"}, {"guidance_mode": "external"}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
            ExplanationRequest(away=("Mass",), **wrong)


def test_a_command_line_of_them():
    options = OptionParser(given_options(exclude=["hold"]), given_options(only_stored=True, prefix="counterfactual_"))
    line = "--strength 0.2 --no-follow_inversion --counterfactual_mask auto --counterfactual_guidance_scale 3"
    own, stored = options.parse(line.split())
    assert own.given() == {"strength": 0.2, "follow_inversion": False} and not hasattr(own, "hold")
    assert stored.given() == {"mask": "auto", "guidance_scale": 3.0}


def test_the_call_comes_before_the_checkpoint_and_that_before_the_defaults():
    settings = resolve({"strength": 0.1, "num_inference_steps": 4}, strength=0.2)
    assert (settings.strength, settings.num_inference_steps, settings.eta) == (0.2, 4, 0.0)
    assert settings.num_inversion_steps == 4
    with pytest.raises(ValueError, match=r"checkpoint's `guidance_defaults` cannot be used: `strength` must be"):
        resolve({"strength": "high"})
    with pytest.raises(ValueError, match="`guidance_defaults` must be a dict"):
        resolve(["strength"])


def test_plain_values():
    settings = resolve(strength=np.float64(0.5), num_inference_steps=np.int64(3), guidance_scale=torch.tensor([1.0]))
    assert json.loads(json.dumps(settings.to_dict())) == settings.to_dict()
    assert resolve(mask=np.ones((4, 4))).to_dict()["mask"] == "given"
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.strength = 0.1


WRONG_NUMBERS = (float("nan"), float("inf"), -1, "1", True, [], 10**400)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "mask"])
def test_wrong_values_name_their_option(name):
    default = OPTIONS[name].default
    is_number = not isinstance(default, (str, bool))
    for wrong in WRONG_NUMBERS if is_number else (3, "middle", float("nan"), []):
        if name == "guidance_scale" and wrong == []:
            continue  # counted together with the images
        with pytest.raises(ValueError, match=f"`{name}`"):
            resolve(**{"target_probability": 0.1} if name.startswith("max_") else {}, **{name: wrong})


def test_pure_noise_and_a_predicted_noise():
    scheduler = tiny_scheduler(rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match=r"`strength=1.0` starts at pure noise"):
        CounterfactualSettings.resolve({"strength": 1.0}, None, scheduler)
    with pytest.raises(ValueError, match=r"`max_strength=1.0` starts at pure noise"):
        CounterfactualSettings.resolve({"target_probability": 0.1, "max_strength": 1.0}, None, scheduler)


SCRIPTS = ("evaluate_counterfactuals", "calibrate_guidance", "explain_images", "explain_dataset", "train_joint")

NEW_OPTION = """\
    dummy_option: Annotated[float, Range(at_least=0), Stored] = option(0.5, "An option that was added.")
"""
SAY = """
import contextlib, dataclasses, inspect, io, runpy, sys
for name in [name for name in sys.modules if name.partition(".")[0] == "mediffusion_diffusers"]:
    del sys.modules[name]  # the package that is tested elsewhere
from mediffusion_diffusers import MediffusionCounterfactualPipeline as Pipeline
from mediffusion_diffusers.requests.counterfactuals import ExplanationRequest
from mediffusion_diffusers.publishing.defaults_section import defaults_context
call = Pipeline.__call__
assert "dummy_option" in inspect.signature(call).parameters and "dummy_option: An option" in call.__doc__
card = defaults_context({"dummy_option": 0.25}, 1.0)
assert "dummy_option" in str(card) and "0.25" in str(card) and "dummy_option" in str(defaults_context(None, 1.0))
assert "dummy_option" in {entry.name for entry in dataclasses.fields(ExplanationRequest)}
for script in sys.argv[1:]:
    said, sys.argv = io.StringIO(), [script, "--help"]
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
    assert "dummy_option" in said.getvalue(), script
"""


def test_an_option_added_in_one_place_is_everywhere(tmp_path, monkeypatch, fork_server):
    package = shutil.copytree(ROOT / "mediffusion_diffusers", tmp_path / "mediffusion_diffusers")
    options = package / "counterfactual_options.py"
    text = options.read_text(encoding="utf-8")
    last = "    detail: "
    assert text.count(last) == 1
    options.write_text(text.replace(last, f"{NEW_OPTION}{last}"), encoding="utf-8")
    scripts = [ROOT / "training" / f"{name}.py" for name in SCRIPTS]
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "log"
    assert fork_server.start([sys.executable, "-c", SAY, *scripts], log).wait() == 0, log.read_text()
