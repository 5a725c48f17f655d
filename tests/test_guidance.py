"""Eq. 2: its gradient against finite differences, its targets against loops, its modes against their formulas."""

import math

import numpy as np
import pytest
import torch
from support.components import LABELS, MULTI_LABEL, PROBLEM_TYPES, SINGLE_LABEL, tiny_scheduler, tiny_unet

from mediffusion_diffusers.guidance import (
    OWN_GUIDANCE_MODES,
    GuidanceTarget,
    build_target,
    gradient_of,
    guide_model_output,
    predict_guided,
    predict_original_sample,
    sampling_mode,
)


PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
TIMESTEP = torch.tensor(300)
ALPHA = tiny_scheduler().alphas_cumprod[TIMESTEP].double()


def make_latents(batch_size=2, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(batch_size, 4, 8, 8, dtype=dtype)


def make_target(problem_type, batch_size=2):
    """One image towards one label, the other away from it and, where several may be present, towards another."""
    direction = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 1.0]])[:batch_size]
    return GuidanceTarget(direction, problem_type)


def guidance_gradient(unet, latents, target, mode, prediction_type="epsilon"):
    """The gradient inside a guided prediction: what scale 1 adds, divided by its factor in Eq. 2."""
    guided, plain = (
        predict_guided(unet, latents, TIMESTEP, target, scale, ALPHA, prediction_type, mode).model_output
        for scale in (1.0, 0.0)
    )
    return -(guided - plain) / (1 - ALPHA).sqrt()


def finite_difference(function, latents, direction, step=1e-5):
    """Derivative of `function` at `latents` along `direction`, by central differences."""
    with torch.no_grad():
        return (function(latents + step * direction) - function(latents - step * direction)) / (2 * step)


class TestGradient:
    @pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
    @pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
    @pytest.mark.parametrize("mode", OWN_GUIDANCE_MODES)
    def test_is_the_finite_difference(self, mode, prediction_type, problem_type):
        unet = tiny_unet(problem_type=problem_type).double().eval()
        latents, target = make_latents(), make_target(problem_type)
        with torch.no_grad():
            held_output = unet(latents, TIMESTEP).sample
        held_epsilon = (
            latents - ALPHA.sqrt() * predict_original_sample(held_output, latents, ALPHA, prediction_type)
        ) / (1 - ALPHA).sqrt()

        def log_prob(z_t):
            if mode == "zt":
                logits = unet(z_t, TIMESTEP).logits
            elif mode == "x0":
                output = unet(z_t, TIMESTEP).sample
                logits = unet(predict_original_sample(output, z_t, ALPHA, prediction_type), 0).logits
            else:  # the noise prediction is held while z_t moves
                logits = unet((z_t - (1 - ALPHA).sqrt() * held_epsilon) / ALPHA.sqrt(), 0).logits
            return target.log_prob(logits).sum()

        with sampling_mode(unet):
            predictions = [
                predict_guided(unet, latents, TIMESTEP, target, scale, ALPHA, prediction_type, mode).model_output
                for scale in (1.0, 0.0)
            ]
        # Compare as noise: Eq. 2 is stated for eps.
        noises = [
            (latents - ALPHA.sqrt() * predict_original_sample(output, latents, ALPHA, prediction_type))
            / (1 - ALPHA).sqrt()
            for output in predictions
        ]
        gradient = (noises[1] - noises[0]) / (1 - ALPHA).sqrt()
        for seed in range(3):
            direction = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).double()
            expected = finite_difference(log_prob, latents, direction)
            assert abs((gradient * direction).sum() - expected) <= 1e-4 * abs(expected) + 1e-7
        assert gradient.abs().max() > 1e-5

    @pytest.mark.parametrize("mode", OWN_GUIDANCE_MODES)
    def test_is_a_sum_over_the_batch(self, mode):
        unet, latents, target = tiny_unet().double(), make_latents(), make_target(MULTI_LABEL)
        batch = guidance_gradient(unet, latents, target, mode)
        for row in range(2):
            single = GuidanceTarget(target.direction[row : row + 1], target.problem_type)
            torch.testing.assert_close(
                guidance_gradient(unet, latents[row : row + 1], single, mode), batch[row : row + 1]
            )

    def test_detached_decoder_keeps_the_full_gradient(self):
        unet, latents, target = tiny_unet().double(), make_latents(), make_target(MULTI_LABEL)
        leaf = latents.clone().requires_grad_()
        output = unet(leaf, TIMESTEP)
        (expected,) = torch.autograd.grad(target.log_prob(output.logits.float()).sum(), leaf)
        prediction = predict_guided(unet, latents, TIMESTEP, target, 2.0, ALPHA)
        assert torch.equal(prediction.logits, output.logits)
        assert torch.equal(prediction.model_output, guide_model_output(output.sample.detach(), expected, ALPHA, 2.0))

    @pytest.mark.parametrize("mode", OWN_GUIDANCE_MODES)
    def test_scale_zero_is_unguided(self, mode):
        unet, latents = tiny_unet(), make_latents(dtype=torch.float32)
        with torch.no_grad():
            expected = unet(latents, TIMESTEP, return_logits=False).sample
        prediction = predict_guided(unet, latents, TIMESTEP, make_target(MULTI_LABEL), 0.0, ALPHA, mode=mode)
        assert torch.equal(prediction.model_output, expected)

    @pytest.mark.parametrize("mode", OWN_GUIDANCE_MODES)
    def test_works_under_inference_mode_and_leaves_nothing_behind(self, mode):
        unet, latents, target = tiny_unet(), make_latents(dtype=torch.float32), make_target(MULTI_LABEL)
        with sampling_mode(unet):
            expected = predict_guided(unet, latents, TIMESTEP, target, 3.0, ALPHA, mode=mode)
            with torch.inference_mode():
                actual = predict_guided(unet, latents.clone(), TIMESTEP.clone(), target, 3.0, ALPHA.clone(), mode=mode)
        assert torch.equal(actual.model_output, expected.model_output)
        assert not expected.model_output.requires_grad and not expected.logits.requires_grad
        assert latents.grad is None and not latents.requires_grad
        assert all(parameter.grad is None for parameter in unet.parameters())

    def test_one_scale_per_image(self):
        unet, latents, target = tiny_unet().double(), make_latents(), make_target(MULTI_LABEL)
        both = predict_guided(unet, latents, TIMESTEP, target, torch.tensor([0.0, 5.0]), ALPHA).model_output
        for row, scale in enumerate((0.0, 5.0)):
            one = predict_guided(unet, latents, TIMESTEP, target, scale, ALPHA).model_output
            torch.testing.assert_close(both[row], one[row])

    def test_unknown_mode(self):
        with pytest.raises(ValueError, match="`guidance_mode` must be one of"):
            predict_guided(tiny_unet(), make_latents(), TIMESTEP, make_target(MULTI_LABEL), 1.0, ALPHA, mode="xt")


class TestGuideModelOutput:
    def test_is_eq_2(self):
        torch.manual_seed(0)
        output, gradient = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64)
        guided = guide_model_output(output, gradient, ALPHA, 7.0)
        torch.testing.assert_close(guided, output - 7.0 * math.sqrt(1 - ALPHA) * gradient)

    @pytest.mark.parametrize("timestep", [1, 300, 999])
    def test_prediction_types_agree(self, timestep):
        alpha = tiny_scheduler().alphas_cumprod[timestep].double()
        torch.manual_seed(0)
        z_t, epsilon, gradient = torch.randn(3, 2, 4, 8, 8, dtype=torch.float64)
        z_0 = predict_original_sample(epsilon, z_t, alpha)
        outputs = {
            "epsilon": epsilon,
            "sample": z_0,
            "v_prediction": alpha.sqrt() * epsilon - (1 - alpha).sqrt() * z_0,
        }
        guided = [
            predict_original_sample(guide_model_output(output, gradient, alpha, 3.0, kind), z_t, alpha, kind)
            for kind, output in outputs.items()
        ]
        torch.testing.assert_close(guided[1], guided[0])
        torch.testing.assert_close(guided[2], guided[0])

    @pytest.mark.parametrize("kind", PREDICTION_TYPES)
    def test_predicted_sample_is_that_of_diffusers(self, kind):
        scheduler = tiny_scheduler(prediction_type=kind)
        scheduler.set_timesteps(10)
        output, z_t = torch.randn(2, 2, 4, 8, 8)
        expected = scheduler.step(output, 300, z_t).pred_original_sample
        torch.testing.assert_close(predict_original_sample(output, z_t, scheduler.alphas_cumprod[300], kind), expected)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_keeps_the_shift_near_the_clean_image(self, dtype):
        # 1 - abar_1 is 0.003: below bfloat16's resolution at 1.
        alpha = tiny_scheduler().alphas_cumprod[1]
        gradient = torch.ones(1, 1, 2, 2)
        exact = guide_model_output(torch.zeros(1, 1, 2, 2), gradient, alpha, 10.0)
        rounded = guide_model_output(torch.zeros(1, 1, 2, 2, dtype=dtype), gradient.to(dtype), alpha, 10.0)
        assert rounded.dtype == dtype
        torch.testing.assert_close(rounded.float(), exact, rtol=0.01, atol=0)

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"log_prob_grad": torch.zeros(1, 4, 8, 8)}, "must have the shape of `model_output`"),
            ({"guidance_scale": -1.0}, "must be at least 0"),
            ({"guidance_scale": torch.tensor([1.0, -1.0])}, "must be at least 0"),
            ({"prediction_type": "score"}, "`prediction_type` must be"),
        ],
    )
    def test_mistakes(self, change, message):
        arguments = {
            "model_output": torch.zeros(2, 4, 8, 8),
            "log_prob_grad": torch.zeros(2, 4, 8, 8),
            "alpha_prod_t": torch.tensor(0.5),
            "guidance_scale": 1.0,
        }
        with pytest.raises(ValueError, match=message):
            guide_model_output(**{**arguments, **change})


class TestLogProb:
    @pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
    def test_against_a_loop(self, problem_type):
        torch.manual_seed(0)
        logits = torch.randn(8, 4, dtype=torch.float64) * 3
        direction = torch.randint(-1, 2, (8, 4)).double()
        if problem_type == SINGLE_LABEL:
            direction[direction > 0] = 0
            direction[:, 1] = 1
        probabilities = logits.sigmoid() if problem_type == MULTI_LABEL else logits.softmax(1)
        expected = []
        for row in range(8):
            total = 0.0
            for label in range(4):
                p = probabilities[row, label].item()
                total += math.log(p) if direction[row, label] > 0 else 0.0
                total += math.log(1 - p) if direction[row, label] < 0 else 0.0
            expected.append(total)
        actual = GuidanceTarget(direction, problem_type).log_prob(logits)
        torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))
        assert actual.max() <= 0

    @pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_certain_classifiers_still_give_a_gradient(self, problem_type, sign):
        # Towards what is believed impossible, away from what is believed certain: 1 - p underflows, its log must not.
        logits = torch.tensor([[-sign * 80.0, 0.0, 0.0]], requires_grad=True)
        target = GuidanceTarget(torch.tensor([[sign, 0.0, 0.0]]), problem_type)
        value = target.log_prob(logits)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert torch.isfinite(value).all() and value.item() < -70
        assert gradient[0, 0].item() == pytest.approx(sign, abs=1e-4)

    @pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
    def test_labels_left_alone_have_no_gradient_of_their_own(self, problem_type):
        logits = torch.randn(1, 3, requires_grad=True)
        direction = torch.tensor([[1.0, 0.0, 0.0]])
        (gradient,) = torch.autograd.grad(GuidanceTarget(direction, problem_type).log_prob(logits).sum(), logits)
        if problem_type == MULTI_LABEL:
            assert gradient[0, 1:].eq(0).all()
        else:  # softmax: what one class gains the others lose
            assert gradient.sum().item() == pytest.approx(0, abs=1e-6)


class TestBuildTarget:
    @pytest.mark.parametrize(
        "towards, away, expected",
        [
            ("Mass", None, [[0, 0, 1], [0, 0, 1]]),
            (1, None, [[0, 1, 0], [0, 1, 0]]),
            (np.int64(1), None, [[0, 1, 0], [0, 1, 0]]),
            (None, ["Effusion", 0], [[-1, -1, 0], [-1, -1, 0]]),
            ("Mass", ("Effusion",), [[0, -1, 1], [0, -1, 1]]),
            ([["Mass"], ["Effusion", "Mass"]], None, [[0, 0, 1], [0, 1, 1]]),
            ([["Mass"], []], [[], ["Mass"]], [[0, 0, 1], [0, 0, -1]]),
            (["Mass", "Mass"], None, [[0, 0, 1], [0, 0, 1]]),
        ],
    )
    def test_rules(self, towards, away, expected):
        target = build_target(towards, away, 2, LABELS, MULTI_LABEL)
        assert target.direction.tolist() == expected
        assert target.problem_type == MULTI_LABEL

    @pytest.mark.parametrize(
        "towards, away, problem_type, message",
        [
            ("Hernia", None, MULTI_LABEL, r"`towards` names the unknown label 'Hernia'.*Cardiomegaly \(0\)"),
            (None, "mass", MULTI_LABEL, "`away` names the unknown label 'mass'"),
            (3, None, MULTI_LABEL, "unknown label 3"),
            (-1, None, MULTI_LABEL, "unknown label -1"),
            ([True], None, MULTI_LABEL, "unknown label True"),
            ("Mass", "Mass", MULTI_LABEL, "'Mass' is named in both"),
            ("Mass", [["Effusion"], [2]], MULTI_LABEL, "'Mass' is named in both"),
            (None, None, MULTI_LABEL, "at least one label"),
            ([], [], MULTI_LABEL, "at least one label"),
            ([["Mass"], []], None, MULTI_LABEL, "some have none"),
            ([["Mass"]], None, MULTI_LABEL, "each of the 2 images"),
            ([["Mass"], "Effusion"], None, MULTI_LABEL, "each of the 2 images"),
            (["Mass", "Effusion"], None, SINGLE_LABEL, "one class per image"),
        ],
    )
    def test_mistakes(self, towards, away, problem_type, message):
        with pytest.raises(ValueError, match=message):
            build_target(towards, away, 2, LABELS, problem_type)


class TestSamplingMode:
    def test_freezes_and_restores(self):
        unet = tiny_unet().train()
        unet.mid_block.eval()
        unet.conv_in.weight.requires_grad_(False)
        before = [module.training for module in unet.modules()], [p.requires_grad for p in unet.parameters()]
        with sampling_mode(unet):
            assert not any(module.training for module in unet.modules())
            assert not any(parameter.requires_grad for parameter in unet.parameters())
        assert before == ([module.training for module in unet.modules()], [p.requires_grad for p in unet.parameters()])

    def test_restores_after_an_error(self):
        unet = tiny_unet().train()
        with pytest.raises(RuntimeError, match="inside"), sampling_mode(unet):
            raise RuntimeError("inside")
        assert all(module.training for module in unet.modules())
        assert all(parameter.requires_grad for parameter in unet.parameters())


class TestGradientOfLogits:
    def leaf(self, dtype=torch.float32):
        return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_is_autograds_own_bit_for_bit(self, sign):
        unet, target = (
            tiny_unet().requires_grad_(False),
            GuidanceTarget(sign * torch.tensor([[1.0, 0, -1]] * 2), MULTI_LABEL),
        )
        leaf = self.leaf()
        logits = unet(leaf, 100, return_sample=False).logits
        (expected,) = torch.autograd.grad(target.log_prob(logits).sum(), leaf, retain_graph=True)
        assert torch.equal(gradient_of(target.log_prob, logits, leaf), expected)

    def test_does_not_vanish_in_half_precision(self):
        """Of a target that is certain up to 1e-9, which float16 rounds to 0."""
        unet = tiny_unet().requires_grad_(False)
        target = GuidanceTarget(torch.tensor([[0.0, 0, 1]] * 2), MULTI_LABEL)
        with torch.no_grad():
            unet.classifier[-1].bias[2] = 20.0
        gradients = []
        for dtype in (torch.float32, torch.float16):
            unet.to(dtype)
            leaf = self.leaf(dtype)
            gradients.append(gradient_of(target.log_prob, unet(leaf, 100, return_sample=False).logits, leaf).flatten())
        full, half = gradients
        assert half.dtype == torch.float32 and 0 < full.abs().max() < 6e-8
        torch.testing.assert_close(half / full.norm(), full / full.norm(), atol=5e-3, rtol=0)
