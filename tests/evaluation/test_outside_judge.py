"""Judges from outside: transformers' classifiers and TorchXRayVision's, in the place of an oracle."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from support.studies import prepare_world
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from mediffusion_diffusers.evaluation.counterfactual_study import CounterfactualStudyRunner
from mediffusion_diffusers.evaluation.outside_judge import OutsideJudge, load_judge
from mediffusion_diffusers.guidance import ExternalClassifier
from mediffusion_diffusers.models.xray_vision import XRayVisionClassifier, check_independent


LABELS = ["Mass", "Effusion"]
THEIRS = {0: "pleural effusion", 1: "MASS", 2: "Something else"}


def save_vit(folder, problem_type="multi_label_classification", names=THEIRS):
    """A tiny classifier of transformers with its image processor."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ViTConfig(image_size=24, patch_size=8, id2label=names, problem_type=problem_type, **shape)
    ViTForImageClassification(config).save_pretrained(folder)
    processor = ViTImageProcessorPil(
        size={"height": 24, "width": 24}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]
    )
    processor.save_pretrained(folder)
    return folder


class DenseNet(torch.nn.Module):
    """What TorchXRayVision's class of the same name shows of itself."""

    def __init__(self, weights=None, num_classes=3, in_channels=1):
        super().__init__()
        torch.manual_seed(1)
        self.weights = weights
        self.pathologies = ["Effusion", "", "Mass"]
        self.op_threshs = torch.tensor([0.3, 0.5, 0.6]) if weights else None
        self.conv = torch.nn.Conv2d(in_channels, 4, 8, stride=8)
        self.classifier = torch.nn.Linear(4, num_classes)

    def features2(self, images):
        assert images.shape[1:] == (1, 224, 224) and images.abs().max() <= 1024
        return self.conv(images / 1024).relu().mean((2, 3))

    def forward(self, images):
        scores = self.classifier(self.features2(images)).sigmoid()
        return scores if self.op_threshs is None else scores ** (np.log(0.5) / self.op_threshs.log())


@pytest.fixture
def xray_vision(monkeypatch):
    """A stand-in for the library."""
    package, models = ModuleType("torchxrayvision"), ModuleType("torchxrayvision.models")
    package.models, models.DenseNet = models, DenseNet
    monkeypatch.setitem(sys.modules, "torchxrayvision", package)
    monkeypatch.setitem(sys.modules, "torchxrayvision.models", models)


def images(num=3, channels=1):
    return torch.rand(num, channels, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "single_label_classification"])
def test_labels_are_found_by_name_and_probabilities_are_the_models_own(tmp_path, problem_type):
    folder = save_vit(tmp_path, problem_type)
    judge, _ = load_judge(folder, LABELS, "phantom", names={"Effusion": "Pleural_Effusion"})
    external = ExternalClassifier.from_pretrained(str(folder))
    with torch.no_grad():
        logits = external(images())
    is_multi = problem_type.startswith("multi")
    expected = (logits.sigmoid() if is_multi else logits.softmax(1))[:, [1, 0]]
    assert torch.allclose(judge(images(), batch_size=2), expected, atol=1e-6)
    assert judge.label_names == LABELS and judge.is_multi_label == is_multi
    assert (judge.thresholds is None) != is_multi
    assert judge(images(channels=3)).shape == (3, 2)
    assert judge.features(images()).shape == (3, 16)


def test_a_judge_without_a_label_says_which(tmp_path):
    with pytest.raises(ValueError, match=r"but not Effusion: it has pleural effusion, MASS.*oracle_labels"):
        load_judge(save_vit(tmp_path), LABELS, "phantom")


def test_the_gradient_reaches_the_pixels_and_no_weight(tmp_path):
    judge, _ = load_judge(save_vit(tmp_path, names={0: "Mass", 1: "Effusion"}), LABELS, "phantom")
    pixels = images().requires_grad_()
    judge.logits(pixels).sum().backward()
    assert pixels.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in judge.model.parameters())


def test_a_study_is_judged_from_outside(tmp_path):
    world = prepare_world(tmp_path)
    names = dict(enumerate(["cardiomegaly", "effusion", "mass", "infiltration", "Pneumo-Thorax"]))
    save_vit(tmp_path / "vit", names=names)
    runner = CounterfactualStudyRunner(
        *(world / "pipeline", world / "data", "test", tmp_path / "vit"),
        {"start": "inversion", "num_inference_steps": 2},
    )
    made = runner.explain(runner.select("remove", 1), "remove")
    assert isinstance(runner.oracle, OutsideJudge) and made.oracle.before.shape == (len(made), 5)
    assert len(runner.provenance["oracle"]) == 16


def test_our_own_oracle_is_still_one(tmp_path):
    world = prepare_world(tmp_path)
    judge, folder = load_judge(world / "oracle", ["any"], "phantom")
    assert not isinstance(judge, OutsideJudge) and folder == world / "oracle"


def test_a_network_of_torchxrayvision_judges_and_guides(tmp_path, xray_vision):
    theirs = DenseNet("densenet121-res224-chex").eval()
    XRayVisionClassifier(theirs).save_pretrained(tmp_path / "judge")
    judge, _ = load_judge(tmp_path / "judge", LABELS, "chestxray14")
    large = torch.nn.functional.interpolate(images(), (224, 224), mode="bilinear")
    with torch.no_grad():
        expected = theirs(1024 * large)[:, [2, 0]]
    assert torch.allclose(judge(images()), expected, atol=1e-5)
    assert judge.features(images()).shape == (3, 4)
    guide = ExternalClassifier(XRayVisionClassifier(theirs), (0.5,), (0.5,))
    assert guide.label_names == ["Effusion", "Mass"] and guide.problem_type == "multi_label_classification"
    pixels = images(channels=3).requires_grad_()
    guide(pixels).sum().backward()
    assert pixels.grad.abs().sum() > 0
    assert not any(path.suffix in (".pt", ".bin") for path in (tmp_path / "judge").iterdir())


@pytest.mark.parametrize("name", ["densenet121-res224-nih", "densenet121-res224-all"])
def test_weights_that_have_seen_the_test_images_are_refused(tmp_path, xray_vision, name):
    XRayVisionClassifier(DenseNet(name)).save_pretrained(tmp_path / "judge")
    with pytest.raises(ValueError, match=f"'{name}' has seen 81 % of ChestX-ray14's official test images"):
        load_judge(tmp_path / "judge", LABELS, "chestxray14")
    check_independent(name, "phantom")
    check_independent("densenet121-res224-chex", "chestxray14")


def test_what_is_no_classifier_of_torchxrayvision_or_damaged_is_named(tmp_path, xray_vision):
    with pytest.raises(ValueError, match=r"must be a classifier of TorchXRayVision.*but got Linear"):
        XRayVisionClassifier(torch.nn.Linear(1, 1))
    XRayVisionClassifier(DenseNet()).save_pretrained(tmp_path / "judge")
    (tmp_path / "judge" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot be used"):
        load_judge(tmp_path / "judge", LABELS, "phantom")


def test_without_the_library_it_is_named(tmp_path):
    XRayVisionClassifier(DenseNet()).save_pretrained(tmp_path / "judge")
    if "torchxrayvision" not in sys.modules:
        with pytest.raises(ImportError, match="needs TorchXRayVision: pip install torchxrayvision"):
            load_judge(tmp_path / "judge", LABELS, "phantom")


def test_a_network_with_a_resnet_stem_keeps_its_maps(tmp_path):
    """Features of convolutional networks are averaged over places."""
    torch.manual_seed(0)
    config = ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8], depths=[1], id2label={0: "Mass"})
    external = ExternalClassifier(ResNetForImageClassification(config), (0.5,), (0.5,), 32)
    assert OutsideJudge(external, ["Mass"]).features(images()).shape == (3, 8)


def test_names_for_labels_that_the_model_does_not_have_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="`oracle_labels` must name labels of the model, Mass, Effusion, but names 'mas'"
    ):
        load_judge(save_vit(tmp_path), LABELS, "made", names={"Effusion": "pleural effusion", "mas": "MASS"})
