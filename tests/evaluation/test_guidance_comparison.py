"""Own and outside guidance, side by side."""

import torch
from support.components import random_pil, tiny_pipeline
from transformers import ResNetConfig, ResNetForImageClassification

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.evaluation.guidance_comparison import compare_guidance


def test_each_mode_moves_its_own_classifier_and_both_are_reported():
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], id2label={0: "sick", 1: "well"})
    classifier = ResNetForImageClassification(config).eval()
    pipe = tiny_pipeline(MediffusionCounterfactualPipeline)
    outputs = compare_guidance(
        pipe,
        random_pil(2),
        {"zt": 30.0, "x0_detached": 30.0, "external": 100.0},
        {"away": "Mass"},
        classifier,
        {"away": "sick"},
        num_inference_steps=3,
        strength=0.2,
        output_type="pt",
    )
    assert list(outputs) == ["zt", "x0_detached", "external"]
    for mode, output in outputs.items():
        assert output.settings["guidance_mode"] == mode
        before, after = output.external_probabilities_null[:, 0], output.external_probabilities_after[:, 0]
        own_before, own_after = output.probabilities_null[:, 2], output.probabilities_after[:, 2]
        assert (after < before).all() if mode == "external" else (own_after < own_before).all()
