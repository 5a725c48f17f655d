"""What the scripts in `training/` call."""
