"""An explained phantom: real shapes, a known change, made-up probabilities."""

import numpy as np
import torch
import torch.nn.functional as F

from mediffusion_diffusers.controls import random_noise_control
from mediffusion_diffusers.data import phantom
from mediffusion_diffusers.reports.pages.explanations import ExplanationReport
from mediffusion_diffusers.reports.pictures.explained_image import ExplainedImage, GuidanceSweep, ScoredImage


def explained_phantom(image_size=32, channels=1, **changes):
    """A phantom's cardiomegaly removed, with a null edit, a random-noise control, its box and a sweep of three."""
    patients, labels = phantom.sample_patients(1, seed=0)
    labels[:, 0] = 1
    without = labels.clone()
    without[:, 0] = 0
    original, truth = (phantom.render(patients, findings, image_size) for findings in (labels, without))
    l1 = (truth - original).abs().flatten(1).mean(1)
    noisy = random_noise_control(original, l1, torch.Generator().manual_seed(0))
    boxes = [box for box in phantom.finding_boxes(patients, labels, original)[0] if box["label"] == 0]

    def scored(image, probability, oracle_probability=None):
        pixels = np.repeat(image[0].double().numpy(), channels, axis=0)
        return ScoredImage(pixels, probability, oracle_probability)

    stops = [scored(original + share * (truth - original), 0.9 - 0.8 * share) for share in (0, 0.5, 1)]
    values = {
        "label": "Cardiomegaly",
        "action": "removed",
        "original": scored(original, 0.93),
        "counterfactual": scored(truth, 0.04),
        "null_edit": scored(F.avg_pool2d(original, 3, stride=1, padding=1, count_include_pad=False), 0.92),
        "random_noise": scored(noisy, 0.91),
        "boxes": boxes,
        "sweep": GuidanceSweep([0, 10, 20], stops),
    }
    return ExplainedImage(**{**values, **changes})


def sliders_alone(explained):
    """A page with the sliders of one explained image and nothing else."""
    return ExplanationReport(explained.heading, explained.name).add_sliders(explained).render()
