"""Short counterfactual calls from every kind of start."""

import torch


FAST = {"num_inference_steps": 4, "strength": 0.2, "guidance_scale": 30.0, "output_type": "latent"}
STARTS = {
    "path": {"follow_inversion": True},
    "inversion": {},
    "noise": {"start": "noise"},
    "noise-eta": {"start": "noise", "eta": 1.0},
    "noised-paths": {"start": "noised_paths", "num_noises": 3},
}


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
