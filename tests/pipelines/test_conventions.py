"""What every diffusers pipeline promises of a call, for all three: after the checks of diffusers' own tester."""

import inspect

import numpy as np
import pytest
import torch
from PIL import Image
from support.components import (
    PROBLEM_TYPES,
    assert_same_state,
    random_images,
    random_pil,
    state_of,
    tiny_components,
    tiny_pipeline,
)
from support.conventions import BY_CLASS, CLASSES, assert_same_output, call

from mediffusion_diffusers import (
    MediffusionClassifyPipeline,
    MediffusionCounterfactualPipeline,
)


@pytest.fixture(scope="module", params=CLASSES, ids=[cls.__name__ for cls in CLASSES])
def pipe(request):
    return tiny_pipeline(request.param)


class TestCall:
    def test_same_generator_same_output(self, pipe):
        assert_same_output(call(pipe), call(pipe))

    def test_dict_is_tuple(self, pipe):
        output, values = call(pipe), call(pipe, return_dict=False)
        assert isinstance(values, tuple) and len(values) == len(output.keys())
        assert_same_output(output, type(output)(**dict(zip(output.keys(), values, strict=True))))

    def test_conventional_signature(self, pipe):
        names = set(inspect.signature(type(pipe).__call__).parameters)
        assert {"generator", "output_type", "return_dict", "callback_on_step_end"} <= names
        assert "callback_on_step_end_tensor_inputs" in names
        assert "Examples:" in pipe.__call__.__doc__ and "from_pretrained" in pipe.__call__.__doc__

    @pytest.mark.parametrize("training", [True, False])
    def test_components_are_left_alone(self, pipe, training):
        pipe.unet.train(training)
        before = state_of(pipe)
        call(pipe)
        with pytest.raises(ValueError):
            call(pipe, output_type="jpg")
        assert_same_state(before, state_of(pipe))
        pipe.unet.eval()

    def test_training_mode_changes_nothing(self, pipe):
        """Dropout stays off while sampling, whatever mode the trainer left the model in."""
        expected = call(pipe)
        pipe.unet.train()
        assert_same_output(call(pipe), expected)
        pipe.unet.eval()

    def test_state_is_restored_after_an_error_in_a_callback(self, pipe):
        def fail(*_):
            raise RuntimeError("stop")

        before = state_of(pipe)
        with pytest.raises(RuntimeError, match="stop"):
            call(pipe, callback_on_step_end=fail)
        assert_same_state(before, state_of(pipe))

    def test_no_graph_comes_out(self, pipe):
        with torch.enable_grad():
            output = call(pipe)
        assert not any(value.requires_grad for value in output.values() if isinstance(value, torch.Tensor))

    def test_works_under_inference_mode(self, pipe):
        expected = call(pipe)
        with torch.inference_mode():
            actual = call(pipe)
        assert_same_output(actual, expected)

    @pytest.mark.parametrize("mode", ["x0", "x0_detached"])
    @pytest.mark.parametrize("cls", CLASSES[1:], ids=["guided", "counterfactual"])
    def test_other_modes_work_under_inference_mode(self, cls, mode):
        pipe = tiny_pipeline(cls)
        with torch.inference_mode():
            actual = call(pipe, guidance_mode=mode)
        assert_same_output(actual, call(pipe, guidance_mode=mode))

    @BY_CLASS
    def test_progress_bar(self, cls, capsys):
        pipe = cls(**tiny_components())
        call(pipe)
        assert "it/s" in capsys.readouterr().err
        pipe.set_progress_bar_config(disable=True)
        call(pipe)
        assert capsys.readouterr().err == ""


class TestCallbacks:
    def test_gets_what_it_asks_for(self, pipe):
        seen = []

        def callback(pipeline, step, timestep, kwargs):
            assert pipeline is pipe and isinstance(timestep, int)
            assert set(kwargs) == set(pipe._callback_tensor_inputs)
            assert all(isinstance(value, torch.Tensor) and len(value) in (1, 2) for value in kwargs.values())
            seen.append(step)
            return kwargs

        output = call(
            pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=pipe._callback_tensor_inputs
        )
        assert seen == list(range(pipe.num_timesteps))
        assert_same_output(output, call(pipe))

    def test_can_ask_for_nothing(self, pipe):
        output = call(pipe, callback_on_step_end=lambda *_: {}, callback_on_step_end_tensor_inputs=[])
        assert_same_output(output, call(pipe))

    @pytest.mark.parametrize("cls", CLASSES[1:], ids=["guided", "counterfactual"])
    def test_changes_the_latents(self, cls):
        pipe = tiny_pipeline(cls)

        def callback(pipeline, step, timestep, kwargs):
            if step == pipeline.num_timesteps - 1:
                kwargs["latents"] = torch.zeros_like(kwargs["latents"])
            return kwargs

        output = call(pipe, callback_on_step_end=callback, output_type="latent")
        assert output.images.eq(0).all()

    def test_changes_the_logits(self):
        pipe = tiny_pipeline(MediffusionClassifyPipeline)
        output = call(pipe, callback_on_step_end=lambda *args: {"logits": torch.zeros(1, 3)})
        assert output.probabilities.eq(0.5).all()

    @pytest.mark.parametrize("cls", CLASSES[1:], ids=["guided", "counterfactual"])
    def test_interrupts(self, cls):
        pipe, steps = tiny_pipeline(cls), []

        def callback(pipeline, step, timestep, kwargs):
            steps.append(step)
            pipeline._interrupt = step == 0
            return kwargs

        interrupted = call(pipe, callback_on_step_end=callback)
        assert steps == [0] and pipe.interrupt
        whole = call(pipe)
        assert not pipe.interrupt  # forgotten by the next call
        assert not torch.equal(interrupted.images, whole.images)

    @pytest.mark.parametrize("cls", CLASSES[1:], ids=["guided", "counterfactual"])
    def test_changes_the_guidance_scale(self, cls):
        pipe = tiny_pipeline(cls)

        def callback(pipeline, step, timestep, kwargs):
            pipeline._guidance_scale += 10.0
            return kwargs

        output = call(pipe, callback_on_step_end=callback)
        assert pipe.guidance_scale == 5.0 + 10.0 * pipe.num_timesteps
        assert not torch.equal(output.images, call(pipe).images)
        assert pipe.guidance_scale == 5.0


IMAGE_KINDS = {
    "grey": Image.new("L", (20, 12), 100),
    "colour": Image.new("RGB", (20, 12), (10, 200, 30)),
    "alpha": Image.new("RGBA", (20, 12), (10, 200, 30, 128)),
    "palette": Image.new("RGB", (20, 12), (10, 200, 30)).quantize(4),
    "16_bit": Image.fromarray(np.full((12, 20), 30000, dtype=np.uint16)),
    "array_2d": random_images(1, 20)[0, :, :, 0],
    "array_3d": random_images(1, 20)[0],
    "array_4d": random_images(2, 20),
    "array_colour": random_images(2, 20, channels=3),
    "tensor_chw": torch.rand(3, 10, 20),
    "tensor_bchw": torch.rand(2, 1, 10, 20),
    "list_of_all_sizes": [Image.new("L", (5, 50), 9), Image.new("RGB", (200, 16), 80), random_images(1, 16)[0]],
}


@pytest.mark.parametrize("kind", IMAGE_KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_image(kind, channels):
    images = IMAGE_KINDS[kind]
    components = tiny_components(channels=channels)
    for cls in (MediffusionClassifyPipeline, MediffusionCounterfactualPipeline):
        pipe = cls(**components)
        pipe.set_progress_bar_config(disable=True)
        if cls is MediffusionClassifyPipeline:
            count = len(pipe(images).probabilities)
        else:
            output = pipe(images, away="Mass", num_inference_steps=1, guidance_scale=1.0)
            count = len(output.images)
            assert {picture.size for picture in output.images} == {(16, 16)}
        assert count == (
            len(images) if "4d" in kind or "bchw" in kind or kind in ("array_colour", "list_of_all_sizes") else 1
        )


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_pipelines_agree_on_probabilities(problem_type):
    components = tiny_components(problem_type=problem_type)
    classify, counterfactual = (
        MediffusionClassifyPipeline(**components),
        MediffusionCounterfactualPipeline(**components),
    )
    for pipe in (classify, counterfactual):
        pipe.set_progress_bar_config(disable=True)
    images = random_pil(2)
    output = counterfactual(images, away="Mass", num_inference_steps=1)
    np.testing.assert_allclose(classify(images).probabilities, output.probabilities_before, atol=1e-6)
