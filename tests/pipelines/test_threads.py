"""One pipeline called from several threads gives each its own answer."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.components import assert_same_state, generators, random_images, state_of, tiny_pipeline

from mediffusion_diffusers import (
    MediffusionClassifyPipeline,
    MediffusionCounterfactualPipeline,
    MediffusionGuidedPipeline,
)


LABELS = ("Mass", "Effusion", "Cardiomegaly")
NUM_THREADS, NUM_CALLS = 4, 11


def explain(pipe, number):
    """A call that differs from all others in image, target, scale and way, and changes its scale half-way."""

    def callback(pipe, step, timestep, kwargs):
        assert pipe.guidance_scale == 1.0 + number and not pipe.interrupt
        pipe._interrupt = number % 7 == 3 and step == 0

    ways = ({"follow_inversion": True}, {"start": "noise"}, {"fade_guidance": True}, {"hold": 0.1})
    return pipe(
        random_images(1, seed=number),
        **{"away" if number % 2 else "towards": LABELS[number % 3]},
        guidance_scale=1.0 + number,
        num_inference_steps=1 + number % 3,
        strength=0.2,
        generator=generators(number),
        callback_on_step_end=callback,
        output_type="latent",
        **ways[number % 4],
    ).images


def generate(pipe, number):
    scale = float(number)
    output = pipe(LABELS[number % 3], guidance_scale=scale, num_inference_steps=2, generator=generators(number)[0])
    assert pipe.guidance_scale == scale and pipe.num_timesteps == 2
    return torch.from_numpy(output.probabilities)


def classify(pipe, number):
    pipe(random_images(1 + number % 3, seed=number), batch_size=1)
    assert pipe.num_timesteps == 1 + number % 3
    return torch.from_numpy(pipe(random_images(1, seed=number)).logits)


@pytest.mark.parametrize(
    "cls, call",
    [
        (MediffusionCounterfactualPipeline, explain),
        (MediffusionGuidedPipeline, generate),
        (MediffusionClassifyPipeline, classify),
    ],
)
def test_the_same_answers_as_one_after_another(cls, call):
    pipe = tiny_pipeline(cls)
    pipe.unet.train()
    before = state_of(pipe)
    numbers = range(NUM_THREADS * (NUM_CALLS if cls is MediffusionCounterfactualPipeline else 5))
    expected = [call(pipe, number) for number in numbers]
    together = threading.Barrier(NUM_THREADS)

    def work(thread):
        together.wait()
        return {number: call(pipe, number) for number in numbers[thread::NUM_THREADS]}

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        answers = {number: answer for part in pool.map(work, range(NUM_THREADS)) for number, answer in part.items()}
    assert all(torch.equal(answers[number], expected[number]) for number in numbers)
    assert_same_state(before, state_of(pipe))


def test_a_call_out_of_a_callback_leaves_the_outer_one_alone():
    pipe = tiny_pipeline(MediffusionCounterfactualPipeline)
    arguments = {"away": "Mass", "num_inference_steps": 3, "strength": 0.2, "output_type": "latent"}

    def callback(pipe, step, timestep, kwargs):
        pipe(random_images(1, seed=9), guidance_scale=1.0, **arguments)
        assert pipe.guidance_scale == 7.0 and pipe.num_timesteps == 3

    nested = pipe(random_images(1), guidance_scale=7.0, callback_on_step_end=callback, **arguments)
    assert torch.equal(nested.images, pipe(random_images(1), guidance_scale=7.0, **arguments).images)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_a_copy_begins_without_calls(copied):
    pipe = tiny_pipeline(MediffusionCounterfactualPipeline)
    expected = explain(pipe, 1)
    other = copied(pipe)
    assert other.num_timesteps == 0 and torch.equal(explain(other, 1), expected)
