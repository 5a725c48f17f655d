"""The page: pick an image, see what the model sees in it, and what would have to change for it to decide otherwise.

[`build`] lays it out with gradio, [`launch`] serves it. What it computes and shows needs no browser: `edit_request`
says what is asked, `answers` computes, `blocks` puts answers into HTML, `desk` does what a click asks for. Needs the
extra `app` (`pip install "mediffusion-diffusers[app]"`).
"""

from .desk import Example
from .serving import boxed_examples, build, launch, serve


__all__ = ["Example", "boxed_examples", "build", "launch", "serve"]
