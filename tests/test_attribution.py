"""What a change adds to the log-odds, position by position: against calculus and against the decision itself."""

import pytest
import torch
from support.components import PROBLEM_TYPES, tiny_unet
from support.edits import close

from mediffusion_diffusers.guidance import GuidanceTarget, attribute_change


DIRECTION = torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


def make_change(dtype=torch.float64):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return latents, latents.flip(0) - latents


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
class TestLogOdds:
    def test_are_those_of_the_probability(self, problem_type):
        logits = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        target = GuidanceTarget(DIRECTION, problem_type)
        close(target.log_odds(logits).sigmoid(), target.log_prob(logits).exp())

    def test_are_shared_out_among_the_positions(self, problem_type):
        """Completeness: what all positions add is what the change makes of the log-odds."""
        unet, target = tiny_unet(problem_type=problem_type).double(), GuidanceTarget(DIRECTION, problem_type)
        unet.requires_grad_(False)

        def classify(latents):
            return unet(latents, 0, return_sample=False).logits

        latents, change = make_change()
        evidence = attribute_change(classify, latents, change, target, num_points=64)
        gained = target.log_odds(classify(latents + change)) - target.log_odds(classify(latents))
        assert evidence.shape == (2, 1, 8, 8) and gained.abs().min() > 0.01
        torch.testing.assert_close(evidence.sum((1, 2, 3)), gained, rtol=0.02, atol=0.0)


def test_a_change_that_the_classifier_does_not_see_is_no_evidence():
    latents, change = make_change()

    def classify(latents):  # of the left half, quadratic
        return latents[..., :4].square().flatten(1)[:, :3] + latents[..., :4].mean((1, 2, 3))[:, None]

    target = GuidanceTarget(DIRECTION, "multi_label_classification")
    evidence = attribute_change(classify, latents, change, target, num_points=1)
    gained = target.log_odds(classify(latents + change)) - target.log_odds(classify(latents))
    assert not evidence[..., 4:].any()
    close(evidence.sum((1, 2, 3)), gained)
