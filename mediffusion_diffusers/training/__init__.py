"""Training of the autoencoder and of the joint model; the scripts in `training/` call this.

- `joint_trainer`, `autoencoder_trainer`: the two loops, read top to bottom;
- `objectives`, `autoencoder_objective`: the losses;
- `streams`, `image_rows`, `training_data`: which images, when;
- `randomness`, `checkpoints`, `run`: keyed random numbers, exact resume, the run's folder and records;
- `presets`: one row per experiment.
"""
