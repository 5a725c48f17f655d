"""The whole road on generated images: the plan of its steps, and their processes side by side."""
