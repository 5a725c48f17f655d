"""The page as a Hugging Face Space; see README.md for its settings."""

import os

from mediffusion_diffusers import app


app.launch(os.environ.get("MODEL"), server_name="0.0.0.0", server_port=7860)
