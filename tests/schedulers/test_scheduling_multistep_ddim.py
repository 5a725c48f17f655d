"""DDIM on any grid: diffusers' steps where both are defined, the known order of convergence elsewhere."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from support.components import TINY_SCHEDULE, tiny_scheduler

from mediffusion_diffusers import MultistepDDIMScheduler
from mediffusion_diffusers.schedulers import time_grid


PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
DATA_STD = 0.4


def make_scheduler(**overrides):
    return MultistepDDIMScheduler(**{**TINY_SCHEDULE, "set_alpha_to_one": False, **overrides})


def gaussian_noise_prediction(scheduler, sample, timestep):
    """The exact noise prediction for data from N(0, DATA_STD^2): E[eps | z_t]."""
    alpha = scheduler.alphas_cumprod[timestep].double()
    return (1 - alpha).sqrt() * sample / (alpha * DATA_STD**2 + 1 - alpha)


def travel(scheduler, sample):
    for t in scheduler.timesteps:
        sample = scheduler.step(gaussian_noise_prediction(scheduler, sample, t), t, sample).prev_sample
    return sample


class TestAgainstDiffusers:
    @pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
    @pytest.mark.parametrize("num_steps", [4, 9])
    def test_first_order_is_ddim(self, num_steps, prediction_type, eta):
        """On a uniform grid down to t = 0, step by step."""
        theirs = tiny_scheduler(prediction_type=prediction_type, timestep_spacing="leading")
        theirs.set_timesteps(num_steps + 1)
        ours = MultistepDDIMScheduler.from_config(theirs.config)
        ours.set_grid(num_steps, int(theirs.timesteps[0]), solver_order=1)
        assert ours.timesteps.tolist() == theirs.timesteps[:-1].tolist()
        torch.manual_seed(0)
        samples = [torch.randn(2, 4, 8, 8)] * 2
        random = [torch.Generator().manual_seed(1) for _ in samples]
        for t in ours.timesteps:
            output = torch.randn(2, 4, 8, 8)
            steps = [
                scheduler.step(output, t, sample, eta=eta, generator=generator)
                for scheduler, sample, generator in zip((ours, theirs), samples, random, strict=True)
            ]
            torch.testing.assert_close(steps[0].pred_original_sample, steps[1].pred_original_sample)
            samples = [step.prev_sample for step in steps]
            torch.testing.assert_close(*samples)

    def test_eta_one_on_every_timestep_is_ddpm(self):
        ddpm = tiny_scheduler("ddpm")
        ours = MultistepDDIMScheduler.from_config(ddpm.config)
        ours.set_grid(5, 5, solver_order=1)
        torch.manual_seed(0)
        sample, output = torch.randn(2, 2, 4, 8, 8)
        for t in ours.timesteps:
            expected = ddpm.step(output, t, sample, generator=torch.Generator().manual_seed(1)).prev_sample
            sample = ours.step(output, t, sample, eta=1.0, generator=torch.Generator().manual_seed(1)).prev_sample
            torch.testing.assert_close(sample, expected, rtol=1e-5, atol=1e-4)

    def test_made_from_either_scheduler(self):
        for kind in ("ddim", "ddpm"):
            scheduler = tiny_scheduler(kind, prediction_type="v_prediction")
            ours = MultistepDDIMScheduler.from_config(scheduler.config)
            assert torch.equal(ours.alphas_cumprod, scheduler.alphas_cumprod)
            assert ours.config.prediction_type == "v_prediction"


class TestConvergence:
    """The probability-flow ODE of Gaussian data has the solution z_t ~ sqrt(abar_t std^2 + 1 - abar_t)."""

    @staticmethod
    def error(num_steps, inverse, solver_order, max_timestep=600):
        scheduler = make_scheduler()
        scheduler.set_grid(num_steps, max_timestep, inverse=inverse, solver_order=solver_order)
        start, end = scheduler.grid[0], scheduler.grid[-1]
        alphas = scheduler.alphas_cumprod[torch.stack([start, end])].double()
        deviation = (alphas * DATA_STD**2 + 1 - alphas).sqrt()
        sample = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        return abs(travel(scheduler, sample).item() - (deviation[1] / deviation[0]).item())

    @pytest.mark.parametrize("inverse", [True, False])
    @pytest.mark.parametrize("solver_order, least_ratio", [(1, 1.6), (2, 2.5)])
    def test_error_falls_with_the_steps(self, solver_order, least_ratio, inverse):
        errors = [self.error(steps, inverse, solver_order) for steps in (10, 20, 40)]
        assert errors[0] / errors[1] > least_ratio and errors[1] / errors[2] > least_ratio

    @pytest.mark.parametrize("inverse", [True, False])
    def test_second_order_needs_fewer_steps(self, inverse):
        assert self.error(10, inverse, 2) < 0.5 * self.error(10, inverse, 1)

    @pytest.mark.parametrize("solver_order", [1, 2])
    def test_inversion_then_sampling_returns(self, solver_order):
        errors = []
        for num_steps in (10, 20, 40):
            scheduler = make_scheduler()
            sample = torch.ones(1, 1, 1, 1, dtype=torch.float64)
            for inverse in (True, False):
                scheduler.set_grid(num_steps, 300, inverse=inverse, solver_order=solver_order)
                sample = travel(scheduler, sample)
            errors.append(abs(sample.item() - 1))
        assert errors[0] > 1.6 * errors[1] > 1.6**2 * errors[2]

    def test_a_new_grid_forgets_the_past(self):
        scheduler = make_scheduler()
        results = []
        for _ in range(2):
            scheduler.set_grid(5, 300)
            results.append(travel(scheduler, torch.ones(1, 1, 1, 1, dtype=torch.float64)))
        assert torch.equal(*results)


class TestStep:
    def test_noise_has_the_variance_of_eq_16(self):
        scheduler, reference = make_scheduler(), tiny_scheduler()
        reference.set_timesteps(10)
        scheduler.set_grid(9, 900, solver_order=1)
        zeros = torch.zeros(64, 4, 16, 16)
        step = scheduler.step(zeros, 900, zeros, eta=1.0, generator=torch.Generator().manual_seed(0))
        assert step.prev_sample.var().item() == pytest.approx(reference._get_variance(900, 800).item(), rel=0.02)

    @pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("inverse", [True, False])
    def test_half_precision_stays_close(self, inverse, dtype, prediction_type):
        """1 - abar_t near t = 0 is below bfloat16's resolution; rounding it would divide by zero."""
        torch.manual_seed(0)
        results, start = [], torch.randn(1, 4, 8, 8)
        for kind in (torch.float32, dtype):
            scheduler = make_scheduler(prediction_type=prediction_type)
            scheduler.set_grid(10, 100, inverse=inverse)
            sample = start.to(kind)
            for t in scheduler.timesteps:
                sample = scheduler.step(0.9 * sample, t, sample).prev_sample
            assert sample.dtype == kind
            results.append(sample.float())
        assert (results[0] - results[1]).abs().max() < 0.1 * results[0].abs().max()

    def test_tuple(self):
        scheduler = make_scheduler()
        results = []
        for return_dict in (True, False):
            scheduler.set_grid(2, 10)
            results.append(scheduler.step(torch.ones(1, 1, 2, 2), 10, torch.ones(1, 1, 2, 2), return_dict=return_dict))
        assert torch.equal(results[0].prev_sample, results[1][0])
        assert torch.equal(results[0].pred_original_sample, results[1][1])

    def test_mistakes(self):
        sample = torch.zeros(1, 1, 2, 2)
        scheduler = make_scheduler()
        with pytest.raises(ValueError, match="Call `set_grid`"):
            scheduler.step(sample, 1, sample)
        scheduler.set_grid(2, 10)
        with pytest.raises(ValueError, match="`timestep` must be 10"):
            scheduler.step(sample, 5, sample)
        with pytest.raises(ValueError, match="`eta` > 0 needs"):
            scheduler.step(sample, 10, sample, eta=0.5)
        scheduler.set_grid(2, 10, inverse=True, solver_order=1)
        with pytest.raises(ValueError, match="`eta` > 0 needs"):
            scheduler.step(sample, 0, sample, eta=0.5)
        for _ in range(2):
            t = scheduler.grid[scheduler.step_index]
            scheduler.step(sample, t, sample)
        with pytest.raises(ValueError, match=r"walked to its end\. Call `set_grid`"):
            scheduler.step(sample, 10, sample)

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"num_inference_steps": 0, "max_timestep": 10}, r"\[1, 10\].*got 0"),
            ({"num_inference_steps": 11, "max_timestep": 10}, r"\[1, 10\].*got 11"),
            ({"num_inference_steps": 5, "max_timestep": 1000}, "below `num_train_timesteps`"),
            ({"num_inference_steps": 5, "max_timestep": 10, "solver_order": 3}, "`solver_order`"),
        ],
    )
    def test_impossible_grids(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            make_scheduler().set_grid(**arguments)


class TestTimeGrid:
    @pytest.mark.parametrize("power", [1.0, 1.5, 3.0])
    @pytest.mark.parametrize("num_steps, max_timestep", [(1, 1), (1, 300), (10, 300), (10, 10), (9, 10), (300, 300)])
    def test_rises_from_zero_to_the_end(self, num_steps, max_timestep, power):
        grid = time_grid(num_steps, max_timestep, power)
        assert grid.shape == (num_steps + 1,) and np.issubdtype(grid.dtype, np.integer)
        assert grid[0] == 0 and grid[-1] == max_timestep
        assert (np.diff(grid) > 0).all()

    def test_power_moves_points_towards_zero(self):
        assert (time_grid(10, 300, 1.5)[1:-1] < time_grid(10, 300, 1.0)[1:-1]).all()

    def test_uniform(self):
        assert time_grid(10, 300).tolist() == list(range(0, 301, 30))


def test_it_is_a_ddim_scheduler_that_saves(tmp_path):
    make_scheduler(prediction_type="v_prediction").save_pretrained(tmp_path)
    assert DDIMScheduler.from_pretrained(tmp_path).config.prediction_type == "v_prediction"
    assert MultistepDDIMScheduler.from_pretrained(tmp_path).config.beta_end == TINY_SCHEDULE["beta_end"]
