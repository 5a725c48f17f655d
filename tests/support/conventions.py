"""One ordinary call of each pipeline, and whether two answers are the same."""

import numpy as np
import pytest
import torch

from mediffusion_diffusers import (
    MediffusionClassifyPipeline,
    MediffusionCounterfactualPipeline,
    MediffusionGuidedPipeline,
)
from support.components import (
    generators,
    random_pil,
)


# Weights in other memory are multiplied in another order.
ROUNDING = {"atol": 1e-5, "rtol": 1e-5}

CLASSES = (MediffusionClassifyPipeline, MediffusionGuidedPipeline, MediffusionCounterfactualPipeline)
BY_CLASS = pytest.mark.parametrize("cls", CLASSES, ids=[cls.__name__ for cls in CLASSES])
CALLS = {
    MediffusionClassifyPipeline: {
        "images": random_pil(2),
        "timesteps": [0, 100],
        "num_noise_samples": 2,
        "batch_size": 1,
        "output_type": "pt",
    },
    MediffusionGuidedPipeline: {
        "towards": "Mass",
        "guidance_scale": 5.0,
        "num_images": 2,
        "num_inference_steps": 3,
        "output_type": "pt",
    },
    MediffusionCounterfactualPipeline: {
        "image": random_pil(2),
        "away": "Mass",
        "guidance_scale": 5.0,
        "num_inference_steps": 3,
        "strength": 0.2,
        "output_type": "pt",
    },
}


def call(pipe, **changes):
    arguments = {**CALLS[type(pipe)], "generator": generators(0)[0], **changes}
    return pipe(**arguments)


def assert_same_output(first, second, **tolerance):
    for name in first.keys() | second.keys():
        a, b = first[name], second[name]
        if isinstance(a, (torch.Tensor, np.ndarray)):
            if tolerance:
                torch.testing.assert_close(torch.as_tensor(a).float(), torch.as_tensor(b).float(), **tolerance)
            else:
                assert np.array_equal(np.asarray(a), np.asarray(b)), name
        else:
            assert a == b, name
