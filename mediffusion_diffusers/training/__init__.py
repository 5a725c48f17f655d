"""Training of the autoencoder and of the joint model; the scripts in `training/` call this.

- `joint`, `autoencoder`, `oracle`: what is trained: losses, validation, the final model;
- `data`: which images, when;
- `run`: keyed random numbers, exact resume, the run's folder and records;
- `presets`: one row per experiment.
"""
