import math

import pytest
import torch

from mediffusion_diffusers.digests import pipeline_digest
from mediffusion_diffusers.explanation.identity import identity_differences, run_identity
from mediffusion_diffusers.requests.counterfactuals import ExplanationRequest
from mediffusion_diffusers.requests.request import row_generator


def test_only_what_is_given_reaches_the_pipeline():
    request = ExplanationRequest(away=("Mass",), strength=0.3, rows="labelled", seed=4)
    assert request.pipeline_arguments() == {"away": ["Mass"], "strength": 0.3, "controls": True}
    with pytest.raises(ValueError, match="at least one label in `away`"):
        ExplanationRequest()
    with pytest.raises(ValueError, match="`rows` must be one of"):
        ExplanationRequest(away=("Mass",), rows="some")


def test_what_there_is_to_change():
    request = ExplanationRequest(away=("A",), towards=("B",))
    names = ("A", "B", "C")
    assert request.asks_about((1, 1, 0), names) and request.asks_about((0, 0, 0), names)
    assert not request.asks_about((0, 1, 1), names) and not request.asks_about((math.nan, math.nan, 1), names)


def test_noise_belongs_to_the_row():
    draws = [
        torch.randn(3, generator=row_generator(*place))
        for place in ((0, "a", 0), (0, "a", 0), (0, "a", 1), (0, "b", 0))
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[3])
    assert not torch.equal(draws[0], torch.randn(3, generator=row_generator(1, "a", 0)))


def test_the_hash_tells_weights_and_configs_apart(pipe, pipeline_folder):
    first = pipeline_digest(pipe)
    assert first == pipeline_digest(type(pipe).from_pretrained(pipeline_folder))
    for memory_format in (torch.channels_last, torch.contiguous_format):
        pipe.unet.to(memory_format=memory_format)
        assert pipeline_digest(pipe) == first
    pipe.scheduler.register_to_config(prediction_type="v_prediction")
    second = pipeline_digest(pipe)
    with torch.no_grad():
        pipe.unet.conv_in.bias[0] += 1e-6
    assert len({first, second, pipeline_digest(pipe)}) == 3


def test_differences_are_said_by_name(pipe):
    one = run_identity(ExplanationRequest(away=("Mass",)), pipe, {"image_column": "image"})
    two = run_identity(ExplanationRequest(away=("Mass",), strength=0.3), pipe, {"image_column": "image"})
    assert identity_differences(one, one) == []
    assert identity_differences(one, two) == ["`strength` is None there and 0.3 now"]
    earlier = {name: value for name, value in one.items() if value is not None}
    assert identity_differences(earlier, one) == identity_differences(one, earlier) == []
