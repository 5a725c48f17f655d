"""Copy a trained pipeline at half its size: how the example checkpoint gets into the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..option_parser import OptionParser
from ..options import option
from .boundary import run_command


_EXAMPLE = Path(__file__).parents[1] / "examples" / "phantom"


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    pretrained_model_name_or_path: Path = option(Path("runs/phantom"), "Folder of the trained pipeline.")
    output_dir: Path = option(_EXAMPLE, "Folder to write; by default that of the example checkpoint.")


def main(argv: Sequence[str] | None = None) -> int:
    """Copy the pipeline.

    Raises:
        ValueError: if there is none.
    """
    from ..publishing.half_precision import write_half_precision

    (options,) = OptionParser(Options, description=(__doc__ or "")).parse(argv)
    write_half_precision(options.pretrained_model_name_or_path, options.output_dir)
    megabytes = sum(path.stat().st_size for path in options.output_dir.rglob("*") if path.is_file()) / 1e6
    print(f"Written: {options.output_dir} ({megabytes:.1f} MB)")
    return 0


if __name__ == "__main__":
    run_command(main, "box_checkpoint")
