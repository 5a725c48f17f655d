"""Time stepping for counterfactuals."""

from .scheduling_multistep_ddim import MultistepDDIMScheduler, time_grid


__all__ = ["MultistepDDIMScheduler", "time_grid"]
