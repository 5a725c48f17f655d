"""What a training sees: images, labels, cached latents, and streams of them."""
