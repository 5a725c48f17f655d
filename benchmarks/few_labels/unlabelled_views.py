"""Two views of the same unlabelled images, for methods that ask for the same answer to both."""

from __future__ import annotations

from typing import Any

import torch

from mediffusion_diffusers.data.transforms import ImageTransform
from mediffusion_diffusers.latents import encode_pixels
from mediffusion_diffusers.training.data.streams import IndexStream
from mediffusion_diffusers.training.run.randomness import keyed_rng

from .pixel_network import PixelTask


class UnlabelledViewsTask(PixelTask):
    """A `PixelTask` with a stream of unlabelled images beside the labelled one."""

    num_unlabelled = 32

    def start(self, run: Any) -> None:
        """See `JointTask`; one process only."""
        super().start(run)
        assert run.num_processes == run.num_parts == 1
        seed = self.config.run.seed
        self.pool_stream = IndexStream(self.data.train_indices, self.num_unlabelled, seed, "unlabelled")

    def view(self, step: int, name: str, transform: ImageTransform) -> torch.Tensor:
        """Latents of the step's unlabelled images, each seen at random; another `name` is another view of the same."""
        seed, rows = self.config.run.seed, self.data.rows
        images = [
            transform(rows.picture(item.row), keyed_rng(seed, "unlabelled", name, item.position))
            for item in self.pool_stream.batch(step)
        ]
        return encode_pixels(self.vae, torch.stack(images)).contiguous(memory_format=torch.channels_last)
