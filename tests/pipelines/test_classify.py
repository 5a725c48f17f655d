"""Classification: the head on clean latents, its averages, thresholds and labels."""

import numpy as np
import pytest
import torch
from support.components import (
    LABELS,
    PROBLEM_TYPES,
    SINGLE_LABEL,
    generators,
    random_images,
    random_pil,
    tiny_pipeline,
)

from mediffusion_diffusers import MediffusionClassifyPipeline


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(MediffusionClassifyPipeline)


class TestProbabilities:
    @pytest.mark.parametrize("vae", ["space_to_depth", "kl"])
    @pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
    def test_are_those_of_the_clean_latents(self, problem_type, vae):
        pipe = tiny_pipeline(MediffusionClassifyPipeline, problem_type=problem_type, vae=vae)
        images = random_images(3)
        output = pipe(images, output_type="pt")
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1
        with torch.no_grad():
            latents = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
            logits = pipe.unet(latents, 0).logits
        expected = logits.softmax(1) if problem_type == SINGLE_LABEL else logits.sigmoid()
        torch.testing.assert_close(output.logits, logits)
        torch.testing.assert_close(output.probabilities, expected)
        assert output.label_names == list(LABELS) and output.image_size == (16, 16)

    def test_deterministic(self, pipe):
        first, second = (pipe(random_pil(2)).probabilities for _ in range(2))
        assert np.array_equal(first, second)

    @pytest.mark.parametrize("batch_size", [1, 2, 5, 16])
    def test_batch_is_single(self, pipe, batch_size):
        images = random_pil(5)
        batch = pipe(images, batch_size=batch_size).probabilities
        singles = np.concatenate([pipe(image).probabilities for image in images])
        np.testing.assert_allclose(batch, singles, atol=1e-5, rtol=0)

    def test_batch_is_single_with_noise(self, pipe):
        images = random_pil(3)
        arguments = {"timesteps": [50, 100], "num_noise_samples": 2}
        for batch_size in (2, 3):
            batch = pipe(images, generator=generators(0, 1, 2), batch_size=batch_size, **arguments).logits
            singles = np.concatenate(
                [pipe(image, generator=generators(seed), **arguments).logits for seed, image in enumerate(images)]
            )
            np.testing.assert_allclose(batch, singles, atol=1e-5, rtol=0)

    def test_average_over_timesteps_is_the_mean_of_logits(self, pipe):
        images = random_pil(2)
        both = pipe(images, timesteps=[0, 200]).logits
        np.testing.assert_allclose(
            both, (pipe(images, timesteps=0).logits + pipe(images, timesteps=200).logits) / 2, rtol=1e-5, atol=1e-6
        )

    def test_noise_is_the_schedulers(self, pipe):
        output = pipe(
            random_images(1), timesteps=300, num_noise_samples=1, generator=generators(0)[0], output_type="pt"
        )
        latents = pipe.encode_images(random_images(1))
        noise = torch.randn(latents.shape, generator=generators(0)[0])
        noisy = pipe.scheduler.add_noise(latents, noise, torch.tensor([300]))
        torch.testing.assert_close(output.logits, pipe.classify_latents(noisy, 300).detach())

    def test_noise_has_no_place_at_the_clean_image(self, pipe):
        images = random_pil(1)
        assert np.array_equal(pipe(images, num_noise_samples=3).logits, pipe(images).logits)


class TestLabels:
    @pytest.mark.parametrize("given", [None, 0.3, [0.1, 0.5, 0.9]])
    def test_thresholds(self, given):
        pipe = tiny_pipeline(MediffusionClassifyPipeline, label_thresholds=[0.2, 0.4, 0.6])
        output = pipe(random_images(6), thresholds=given)
        expected = {None: [0.2, 0.4, 0.6], 0.3: [0.3] * 3}.get(given if not isinstance(given, list) else "", given)
        assert output.thresholds == expected
        for row, names in zip(output.probabilities, output.labels, strict=True):
            assert names == [name for name, p, limit in zip(LABELS, row, expected, strict=True) if p >= limit]

    def test_half_without_thresholds(self, pipe):
        assert pipe(random_pil(1)).thresholds == [0.5] * 3

    def test_single_label_names_the_most_probable(self):
        pipe = tiny_pipeline(MediffusionClassifyPipeline, problem_type=SINGLE_LABEL)
        output = pipe(random_images(6))
        np.testing.assert_allclose(output.probabilities.sum(1), 1, rtol=1e-5)
        assert output.labels == [[LABELS[index]] for index in output.probabilities.argmax(1)]


def test_output_types(pipe):
    assert isinstance(pipe(random_pil(1)).probabilities, np.ndarray)
    tensor = pipe(random_pil(1), output_type="pt")
    assert isinstance(tensor.logits, torch.Tensor) and not tensor.logits.requires_grad


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"timesteps": []}, "`timesteps` must name at least one timestep"),
        ({"timesteps": 1000}, r"`timesteps` must be a whole number in \[0, 999\]"),
        ({"timesteps": [0, -1]}, r"`timesteps` must be a whole number in \[0, 999\]"),
        ({"num_noise_samples": -1}, "`num_noise_samples` must be a whole number at least 0"),
        ({"batch_size": 0}, "`batch_size` must be a whole number at least 1"),
        ({"thresholds": [0.5]}, "`thresholds` must be one number"),
        ({"thresholds": np.array([0.5, 0.5])}, "`thresholds` must be one number"),
        ({"thresholds": 1.5}, r"in \(0, 1\)"),
        ({"generator": generators(0)}, "one generator per image, 2"),
        ({"output_type": "pil"}, "`output_type` must be one of"),
        ({"callback_on_step_end_tensor_inputs": ["null_latents"]}, "must be among"),
    ],
)
def test_mistakes(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(random_pil(2), **arguments)
