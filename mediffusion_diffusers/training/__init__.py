"""Training of the autoencoder, the joint model and the oracle; the scripts in `training/` call this.

- `config`: the options, in typed groups; `presets`: one row per experiment; `loop`: the one loop;
- `joint`, `autoencoder`, `oracle`: what is trained: losses, validation, the final model;
- `data`: which images, when;
- `run`: keyed random numbers, exact resume, the run's folder and records.
"""
