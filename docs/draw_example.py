"""Draw the README's picture from the checkpoint and an image that come with the package.

python docs/draw_example.py
"""

from pathlib import Path

from mediffusion_diffusers import MediffusionCounterfactualPipeline, examples
from mediffusion_diffusers.reports.pictures.drawing import save_picture
from mediffusion_diffusers.reports.pictures.explained_output import explain_output
from mediffusion_diffusers.reports.pictures.explanations import explanation_panel


PICTURE = Path(__file__).parent / "images" / "explanation.png"


def main(path: Path = PICTURE) -> None:
    """Explain the first example and save its panel.

    Args:
        path: of the PNG file.
    """
    pipe = MediffusionCounterfactualPipeline.from_pretrained(examples.checkpoint())
    example = examples.images()[0]
    finding = example.labels[0]
    output = pipe(example.image, away=finding)
    explained = explain_output(output, finding, "removed", boxes=[[example.boxes[finding]]])[0]
    save_picture(explanation_panel(explained), path)


if __name__ == "__main__":
    main()
