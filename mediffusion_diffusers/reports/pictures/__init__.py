"""Pictures of explanations, studies and training runs."""
