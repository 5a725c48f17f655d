import pytest

from mediffusion_diffusers.app.edit_request import EditRequest, recommended_scale


def test_what_is_left_to_the_checkpoint_is_not_given(pipe):
    assert EditRequest(remove=("Mass",)).arguments(pipe) == {"away": ["Mass"]}
    assert EditRequest(remove=("Mass",), add=("Effusion",)).arguments(pipe) == {
        "towards": ["Effusion"],
        "away": ["Mass"],
    }


def test_each_choice_becomes_the_pipelines_own_option(pipe):
    request = EditRequest(add=("Mass",), push="target", target_probability=0.2, care="fast", place="auto")
    expected = {"towards": ["Mass"], "target_probability": 0.2, "quality": "fast", "mask": "auto"}
    assert request.arguments(pipe) == expected
    box = {"x": 0.1, "y": 0.2, "width": 0.5, "height": 0.5}
    request = EditRequest(add=("Mass",), push="by_hand", guidance_scale=5.0, strength=0.1, place="box", box=box)
    assert request.arguments(pipe) == {"towards": ["Mass"], "guidance_scale": 5.0, "strength": 0.1, "mask": [box]}


def test_a_penalty_is_the_weaker_the_larger_the_scale(pipe):
    weights = {scale: scale * hold_at(pipe, scale) for scale in (3.0, 30.0)}
    assert weights[3.0] == pytest.approx(weights[30.0]) and weights[3.0] > 0
    request = EditRequest(remove=("Mass",), hold_others=True)
    assert request.arguments(pipe)["hold"] == pytest.approx(hold_at(pipe, 30.0))  # the checkpoint's for removing


def hold_at(pipe, scale):
    request = EditRequest(remove=("Mass",), push="by_hand", guidance_scale=scale, strength=0.2, hold_others=True)
    return request.arguments(pipe)["hold"]


def test_the_recommended_scale_is_that_of_the_direction(pipe):
    assert recommended_scale(pipe, {"away": ["Mass"]}) == 30
    assert recommended_scale(pipe, {"towards": ["Mass"], "away": ["Effusion"]}) == 20


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "at least one finding"),
        ({"remove": ("Mass",), "add": ("Mass",)}, "Mass is chosen for both"),
        ({"remove": ("Mass",), "push": "target", "target_probability": 1.0}, "`target_probability` must be a number"),
        (
            {"remove": ("Mass",), "push": "by_hand", "guidance_scale": None, "strength": 0.1},
            "`guidance_scale` must",
        ),
        ({"remove": ("Mass",), "push": "by_hand", "guidance_scale": 1.0, "strength": 0.0}, "`strength` must be"),
    ],
)
def test_what_cannot_be_asked_is_said(fields, message):
    with pytest.raises(ValueError, match=message):
        EditRequest(**fields)
