"""What people who know transformers find: an image-classification call, and features as a module."""

import numpy as np
import pytest
import torch
from support.components import LABELS, PROBLEM_TYPES, SINGLE_LABEL, random_pil, tiny_pipeline

from mediffusion_diffusers import (
    MediffusionClassifyPipeline,
    MediffusionImageClassificationPipeline,
    MediffusionModel,
)


@pytest.fixture(scope="module", params=PROBLEM_TYPES)
def pipe(request):
    return tiny_pipeline(MediffusionClassifyPipeline, problem_type=request.param)


class TestClassification:
    def test_scores_are_the_pipelines_probabilities_the_most_probable_first(self, pipe):
        image = random_pil(1)[0]
        answer = MediffusionImageClassificationPipeline(pipe)(image)
        probabilities = dict(zip(LABELS, pipe(image).probabilities[0].tolist(), strict=True))
        assert {entry["label"]: entry["score"] for entry in answer} == pytest.approx(probabilities)
        assert [entry["score"] for entry in answer] == sorted(probabilities.values(), reverse=True)
        total = sum(entry["score"] for entry in answer)
        assert (total == pytest.approx(1)) == (pipe.unet.config.problem_type == SINGLE_LABEL)

    def test_a_list_gives_a_list_and_a_path_what_is_in_it(self, pipe, tmp_path):
        images = random_pil(2)
        for index, image in enumerate(images):
            image.save(tmp_path / f"{index}.png")
        classifier = MediffusionImageClassificationPipeline(pipe)
        answers = classifier([tmp_path / "0.png", str(tmp_path / "1.png")], top_k=2)
        assert answers == classifier(images, top_k=2) and [len(answer) for answer in answers] == [2, 2]
        assert classifier(str(tmp_path / "0.png"), top_k=None) == classifier(images[0])
        assert classifier([images[0]]) == [classifier(images[0])]

    def test_the_function_can_be_chosen(self, pipe):
        image = random_pil(1)[0]
        classifier = MediffusionImageClassificationPipeline(pipe)
        logits = torch.from_numpy(pipe(image).logits[0])
        expected = {"none": logits, "sigmoid": logits.sigmoid(), "softmax": logits.softmax(0)}
        for name, scores in expected.items():
            answer = {entry["label"]: entry["score"] for entry in classifier(image, function_to_apply=name)}
            assert answer == pytest.approx(dict(zip(LABELS, scores.tolist(), strict=True)))

    def test_bad_arguments_are_refused(self, pipe):
        classifier = MediffusionImageClassificationPipeline(pipe)
        with pytest.raises(ValueError, match="`top_k`"):
            classifier(random_pil(1), top_k=0)
        with pytest.raises(ValueError, match=r"`function_to_apply`.*'relu'"):
            classifier(random_pil(1), function_to_apply="relu")
        with pytest.raises(ValueError, match="Download it first"):
            classifier("https://example.org/chest.png")
        with pytest.raises(ValueError, match="does not exist"):
            classifier("nowhere.png")


class TestFeatures:
    @pytest.fixture(scope="class", params=["space_to_depth", "kl"])
    def pipe(self, request):
        return tiny_pipeline(MediffusionClassifyPipeline, vae=request.param, layers_per_block=2)

    def test_pooled_features_are_what_the_head_reads(self, pipe):
        model, images = MediffusionModel(pipe.vae, pipe.unet), random_pil(2)
        with torch.no_grad():
            output = model(model.preprocess(images))
            logits = pipe.unet.classifier(output.pooler_output)
        assert output.pooler_output.shape == (2, model.num_features)
        np.testing.assert_array_equal(logits.numpy(), pipe(images).logits)

    def test_there_is_a_map_for_each_level(self, pipe):
        model = MediffusionModel(pipe.vae, pipe.unet)
        seen = []
        hooks = [
            block.resnets[-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
            if not hasattr(block, "attentions")
            else block.attentions[-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
            for block in pipe.unet.down_blocks
        ]
        output = model(model.preprocess(random_pil(1)))
        for hook in hooks:
            hook.remove()
        assert [tuple(level.shape) for level in output.hidden_states] == [(1, 8, 8, 8), (1, 16, 4, 4)]
        assert all(torch.equal(level, block) for level, block in zip(output.hidden_states, seen, strict=True))
        assert output.last_hidden_state.shape == (1, 16, 4, 4)

    def test_it_is_a_module_through_which_gradients_flow(self, pipe):
        model = MediffusionModel(pipe.vae, pipe.unet)
        pixels = model.preprocess(random_pil(1)).requires_grad_()
        last, pooled, levels = model(pixels, return_dict=False)
        pooled.sum().backward()
        assert pixels.grad.abs().sum() > 0 and len(levels) == 2 and last.requires_grad
        assert set(model.state_dict()) == {
            *(f"vae.{name}" for name in pipe.vae.state_dict()),
            *(f"unet.{name}" for name in pipe.unet.state_dict()),
        }
        pipe.unet.zero_grad(set_to_none=True)

    def test_images_of_another_shape_are_refused(self, pipe):
        with pytest.raises(ValueError, match=r"\(batch, 1, 16, 16\).*\(1, 3, 16, 16\)"):
            MediffusionModel(pipe.vae, pipe.unet)(torch.zeros(1, 3, 16, 16))

    def test_both_load_from_a_folder(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        image = random_pil(1)[0]
        model = MediffusionModel.from_pretrained(tmp_path)
        classifier = MediffusionImageClassificationPipeline.from_pretrained(tmp_path)
        logits = model.unet.classifier(model(model.preprocess(image)).pooler_output)[0]
        answer = {entry["label"]: entry["score"] for entry in classifier(image, function_to_apply="none")}
        assert not model.training and answer == pytest.approx(
            dict(zip(LABELS, logits.tolist(), strict=True)), abs=1e-6
        )
