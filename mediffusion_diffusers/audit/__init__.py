"""Shortcuts found by counterfactuals, and mended with them: what a classifier goes by that is not the finding."""
