"""The outside classifier that judges counterfactuals."""
