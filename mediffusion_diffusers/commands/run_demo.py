"""The whole road in minutes: phantoms, oracle, joint training, classification, counterfactuals, a report.

Every step is a command that a user would type; a finished step is not repeated when the demo is run again.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from ..option_parser import OptionParser
from ..options import option
from ..output_folder import claimed_folder
from .command import Command, first_paragraph
from .demo.plan import EXAMPLE_FOLDER, EXPLANATION_FOLDER, FULL, MODEL_FOLDER, SMALL, plan


LOCK_FILE = ".demo.lock"  # beside that of the steps which write into the same folder
LOG_FOLDER = "logs"


@dataclass(frozen=True)
class Options:
    """Where everything goes, and how much of it."""

    output_dir: Path = option(Path("demo"), "Folder for everything the demo makes.")
    overwrite: bool = option(False, "Begin anew instead of keeping finished steps.")
    full: bool = option(False, "The long road: more images, more training, closer calibration; three times as long.")


def run(options: Options) -> int:
    """Run the demo, write its report and check its figures.

    Returns:
        1 if the demo's figures are not what it promises, else 0.

    Raises:
        ValueError: if `output_dir` cannot be used.
        SystemExit: if a step fails.
    """
    from .demo.schedule import Schedule

    with claimed_folder(options.output_dir, lock_file=LOCK_FILE) as folder:
        if options.overwrite and (folder / "phantoms").exists():
            _empty(folder)
        schedule = Schedule(plan(folder, FULL if options.full else SMALL), folder / LOG_FOLDER)
        schedule.run()

        from ..reports.pages.demo import check_demo, write_demo_report

        seconds = {**schedule.seconds, "all together, side by side": schedule.wall_seconds}
        report = write_demo_report(folder, seconds, schedule.busy_share)
        checks = check_demo(folder)

    print("What the demo promises, and what it measured:")
    for check in checks:
        print(f"  {'ok  ' if check.passed else 'FAIL'} {check.sentence}")
    print(f"\n{schedule.busy_share:.0%} of the time of {schedule.num_cores} cores was used: ", end="")
    print(f"{schedule.cpu_seconds / 60:.1f} CPU minutes in {schedule.wall_seconds / 60:.1f} minutes.")
    print(f"Report: {report}")
    print(f"Explained in detail: {folder / EXPLANATION_FOLDER / 'explanations.html'}")
    print(f"With the checkpoint in the box: {folder / EXAMPLE_FOLDER / 'explanations.html'}")
    print(f"Try: mediffusion explain IMAGE --away Cardiomegaly --model {folder / MODEL_FOLDER}")
    if all(check.passed for check in checks):
        return 0
    print("The demo's own check failed: see above.", file=sys.stderr)
    return 1


def _empty(folder: Path) -> None:
    """Delete what an earlier demo made; the lock stays."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            path.unlink()


COMMAND = Command(OptionParser(Options, description=first_paragraph(__doc__)), run)
main = COMMAND.main
