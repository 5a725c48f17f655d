"""Other papers' procedures, as `benchmarks/peers/` writes them: what must hold whatever the networks say."""

from dataclasses import replace

import pytest
import torch
from peers import PEERS, change_images
from peers.problem import PeerSettings, Problem, change_mask
from support.components import LABELS, MULTI_LABEL, generators, random_images, tiny_pipeline

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.guidance import build_target, sampling_mode


SHORT = {
    "DiME": {"num_inference_steps": 3},
    "ACE": {"num_inference_steps": 3, "num_filter_steps": 2, "num_attack_steps": 2},
    "FastDiME": {"num_inference_steps": 4},
    "MaskDiME-like": {"num_inference_steps": 4},
}
# Of the whole U-Net and of its classifier alone: n(n + 1)/2 - with the last step's inner diffusion empty - and n for
# DiME, the filter at each attack and once more and the inpainting for ACE, one of each per step for the others.
CALLS = {"DiME": (3 + 3, 3), "ACE": (2 * 3 + 3, 2), "FastDiME": (4, 4), "MaskDiME-like": (4, 4)}


def settings_of(name, guidance_scale=5.0, **others):
    return PEERS[name][1](guidance_scale=guidance_scale, **{**SHORT[name], **others})


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(MediffusionCounterfactualPipeline)


@pytest.fixture(scope="module")
def problem(pipe):
    """Two images, of which each has noise of its own."""
    with torch.no_grad():
        latents = pipe.encode_images(random_images(2))
    return Problem(pipe, latents, build_target("Mass", None, 2, LABELS, MULTI_LABEL), generators(0, 1))


class KnowsTheImage(Problem):
    """The perfect denoiser of data that are one image each."""

    def predict(self, z_t, t):
        alpha = self.alpha(t)
        return self.latents + 0 * z_t, (z_t - alpha.sqrt() * self.latents) / (1 - alpha).sqrt()


@torch.no_grad()
def run(problem, name, seeds=(0, 1), **settings):
    with sampling_mode(problem.pipe.vae, problem.pipe.unet):
        return PEERS[name][0](replace(problem, generator=generators(*seeds)), settings_of(name, **settings))


@pytest.mark.parametrize("name", PEERS)
class TestEveryPeer:
    def test_without_guidance_a_perfect_denoiser_gives_the_image_back(self, problem, name):
        known = KnowsTheImage(problem.pipe, problem.latents, problem.target, problem.generator)
        assert torch.equal(run(known, name, guidance_scale=0.0), problem.latents)

    def test_a_batch_gives_what_single_images_give(self, problem, name):
        together = run(problem, name)
        for row in range(2):
            rows = torch.tensor([row])
            alone = replace(problem, latents=problem.latents[rows], target=problem.target.select(rows))
            torch.testing.assert_close(run(alone, name, seeds=(row,)), together[rows], atol=1e-4, rtol=1e-4)

    def test_the_seed_decides_and_guidance_changes_the_result(self, problem, name):
        first = run(problem, name)
        assert torch.equal(first, run(problem, name))
        assert not torch.equal(first, run(problem, name, seeds=(2, 3)))
        assert not torch.allclose(first, run(problem, name, guidance_scale=0.0))

    def test_what_it_costs(self, problem, name):
        calls = []
        hook = problem.pipe.unet.register_forward_hook(
            lambda *seen: calls.append(seen[2].get("return_sample", True)), with_kwargs=True
        )
        run(problem, name)
        hook.remove()
        assert (calls.count(True), calls.count(False)) == CALLS[name]

    def test_pictures_in_and_out(self, pipe, problem, name):
        images = change_images(pipe, random_images(2), problem.target, name, settings_of(name), generators(0, 1))
        assert images.shape == (2, 1, 16, 16) and images.min() >= 0 and images.max() <= 1

    def test_another_classifier_can_be_explained(self, problem, name):
        def darkness(latents):
            return -latents.flatten(1).mean(1, keepdim=True).expand(-1, len(LABELS)) * 50

        changed = run(replace(problem, classifier=darkness), name)
        assert not torch.allclose(changed, run(problem, name))


@pytest.mark.parametrize(
    "name, narrow",
    [
        ("ACE", {"threshold": 0.999, "dilation": 0}),
        ("FastDiME", {"threshold": 0.999, "dilation": 0}),
        ("MaskDiME-like", {"region_share": 1 / 64, "dilation": 0}),
    ],
)
def test_outside_of_the_mask_the_original_stays(problem, name, narrow):
    """A mask of one position lets one position change."""
    changed = (run(problem, name, **narrow) != problem.latents).any(dim=1)
    assert changed.flatten(1).sum(1).tolist() == [1, 1]


def test_dime_knows_the_way_back_from_each_step(problem):
    """Steps end at the clean image, and never rise."""
    steps = problem.steps(PeerSettings(1.0, strength=0.3, num_inference_steps=5))
    assert [pair[0] for pair in steps] == [300, 240, 180, 120, 60] and steps[-1][1] == 0
    assert [first[1] for first in steps[:-1]] == [second[0] for second in steps[1:]]


def test_a_mask_of_no_change_is_empty():
    assert change_mask(torch.zeros(1, 4, 3, 3), 0.15, 1).sum() == 0


def test_one_step_adds_the_noise_that_ddpm_adds(problem):
    """Of a perfect prediction, z_next has the mean and the variance of q(z_next | z_0)."""
    many = Problem(problem.pipe, torch.ones(1, 1, 200, 200), problem.target, generators(0))
    t, next_t = 300, 200
    z_t = many.add_noise(many.latents, t)
    epsilon = (z_t - many.alpha(t).sqrt()) / (1 - many.alpha(t)).sqrt()
    z_next = many.step(many.latents, epsilon, t, next_t)
    assert z_next.mean().item() == pytest.approx(many.alpha(next_t).sqrt().item(), abs=0.01)
    assert z_next.var().item() == pytest.approx(1 - many.alpha(next_t).item(), rel=0.03)
