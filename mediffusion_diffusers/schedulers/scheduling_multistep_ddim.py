"""DDIM on any time grid, in both directions, with an optional second-order step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor

from ..guidance import predict_original_sample


class MultistepDDIMScheduler(DDIMScheduler):
    """DDIM between the points of a chosen grid: upwards it inverts an image, downwards it denoises.

    Counterfactuals start at a partial noise level and take few steps, which `DDIMScheduler` cannot express: its grid
    always spans the whole schedule. Clean latents count as level t = 0, DDIM's convention with
    `set_alpha_to_one=False`. `clip_sample` and `thresholding` of the config are not applied: an inversion could not
    undo them.

    With `solver_order=2` the step uses `1.5 e_i - 0.5 e_(i-1)` instead of the noise prediction `e_i` (Adams-Bashforth
    in the grid's own parameter): second order without another evaluation of the model. Make one from any DDIM or DDPM
    scheduler with `MultistepDDIMScheduler.from_config(scheduler.config)`.
    """

    def set_grid(
        self,
        num_inference_steps: int,
        max_timestep: int,
        inverse: bool = False,
        solver_order: int = 2,
        device: str | torch.device | None = None,
    ) -> None:
        """Choose the grid and forget all earlier steps.

        Args:
            num_inference_steps: number of steps; the grid has one point more. At most `max_timestep`.
            max_timestep: noisiest level, in [1, num_train_timesteps).
            inverse: climb from 0 to `max_timestep` instead of descending to 0.
            solver_order: 1 is plain DDIM on a uniform grid; 2 uses the grid `t = max_timestep * u^1.5`, u uniform.
            device: of `timesteps`.

        Raises:
            ValueError: for numbers outside these ranges.
        """
        if solver_order not in (1, 2):
            raise ValueError(f"`solver_order` must be 1 (DDIM) or 2 (Adams-Bashforth), but got {solver_order}.")
        grid = time_grid(num_inference_steps, max_timestep, power=1.0 if solver_order == 1 else 1.5)
        if max_timestep >= self.config.num_train_timesteps:
            raise ValueError(
                f"`max_timestep` must be below `num_train_timesteps` ({self.config.num_train_timesteps}), but got "
                f"{max_timestep}."
            )
        grid = grid if inverse else grid[::-1].copy()
        self.grid = torch.from_numpy(grid).to(device)
        self.timesteps = self.grid[:-1]
        self.num_inference_steps = num_inference_steps
        self.solver_order = solver_order
        self.step_index = 0
        self.last_epsilon: torch.Tensor | None = None

    def skip_step(self) -> None:
        """Go on to the next grid point with the sample as it is."""
        self.step_index += 1

    def noise_weight(self) -> torch.Tensor:
        """What the noise adds to the next sample, dz / d eps, at the current step taken in first order; a scalar."""
        alpha_prod_t, alpha_prod_next = (
            self.alphas_cumprod[int(self.grid[index])] for index in (self.step_index, self.step_index + 1)
        )
        return (1 - alpha_prod_next).sqrt() - (alpha_prod_next * (1 - alpha_prod_t) / alpha_prod_t).sqrt()

    def step(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Move `sample` from this grid point to the next (Eq. 12 and 16 of DDIM).

        Args:
            model_output: prediction at `timestep`, in the config's `prediction_type`.
            timestep: the grid point where `sample` is; steps must be taken in order.
            sample: latents, shape `(batch, channels, height, width)`.
            eta: share of fresh noise in [0, 1]; 1 is ancestral sampling (DDPM). Descending, first order only.
            generator: source of that noise.
            variance_noise: that noise itself, instead of a generator's.
            return_dict: return a `DDIMSchedulerOutput` rather than a tuple.

        Returns:
            The latents at the next grid point and the predicted clean latents.

        Raises:
            ValueError: if no grid is set or it is finished, `timestep` is not the current point, or `eta` cannot be
                used.
        """
        if not hasattr(self, "grid"):
            raise ValueError("Call `set_grid` before `step`.")
        if self.step_index == self.num_inference_steps:
            raise ValueError("The grid has been walked to its end. Call `set_grid` to start again.")
        if int(timestep) != int(self.grid[self.step_index]):
            raise ValueError(
                f"`timestep` must be {int(self.grid[self.step_index])}, the grid's point number {self.step_index}, "
                f"but got {int(timestep)}. Steps are taken in order; call `set_grid` to start again."
            )
        following = int(self.grid[self.step_index + 1])
        if eta > 0 and (self.solver_order != 1 or following > int(timestep)):
            raise ValueError("`eta` > 0 needs `solver_order=1` and a descending grid.")
        # In full precision whatever the latents' dtype: half precision rounds 1 - abar_t away near t = 0.
        # Where they are, since single numbers need no copy, for which the host would wait for an accelerator.
        alpha_prod_t = self.alphas_cumprod[int(timestep)]
        alpha_prod_next = self.alphas_cumprod[following]

        pred_original_sample = predict_original_sample(model_output, sample, alpha_prod_t, self.config.prediction_type)
        if self.config.prediction_type == "epsilon":
            epsilon = model_output
        else:
            epsilon = (sample - alpha_prod_t.sqrt() * pred_original_sample) / (1 - alpha_prod_t).sqrt()

        if self.solver_order == 2:
            previous, self.last_epsilon = self.last_epsilon, epsilon
            if previous is not None:
                epsilon = 1.5 * epsilon - 0.5 * previous
                pred_original_sample = predict_original_sample(epsilon, sample, alpha_prod_t)

        # Eq. 16 of DDIM: sigma_t(eta); Eq. 12: the step.
        variance = (1 - alpha_prod_next) / (1 - alpha_prod_t) * (1 - alpha_prod_t / alpha_prod_next)
        sigma = eta * variance.clamp(min=0).sqrt()
        direction = (1 - alpha_prod_next - sigma**2).sqrt() * epsilon
        prev_sample = alpha_prod_next.sqrt() * pred_original_sample + direction
        if eta > 0:
            if variance_noise is None:
                place: dict[str, Any] = {"device": sample.device, "dtype": sample.dtype}
                variance_noise = randn_tensor(sample.shape, generator=generator, **place)
            prev_sample = prev_sample + sigma * variance_noise
        self.step_index += 1
        if not return_dict:
            return (prev_sample, pred_original_sample)
        return DDIMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=pred_original_sample)


def time_grid(num_steps: int, max_timestep: int, power: float = 1.0) -> np.ndarray:
    """Rising grid `max_timestep * u^power` for uniform u in [0, 1], rounded to distinct timesteps.

    Args:
        num_steps: number of intervals, in [1, max_timestep].
        max_timestep: last point; the first is 0.
        power: at least 1; larger puts more points near 0.

    Returns:
        Integers of shape `(num_steps + 1,)`, strictly increasing.

    Raises:
        ValueError: if `num_steps` is outside its range.
    """
    if not 1 <= num_steps <= max_timestep:
        raise ValueError(
            f"The number of steps must lie in [1, {max_timestep}] (one per timestep below the start at most), but got "
            f"{num_steps}."
        )
    grid = np.round(max_timestep * np.linspace(0, 1, num_steps + 1) ** power).astype(np.int64)
    # A convex curve lies below the line, so pushing points apart from 0 upwards never passes `max_timestep`.
    for index in range(1, num_steps + 1):
        grid[index] = max(grid[index], grid[index - 1] + 1)
    return grid
