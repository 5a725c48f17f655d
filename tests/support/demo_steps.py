"""What stands in for a command of the demo in tests: nothing heavy is loaded for it."""

import os
import time
from pathlib import Path

from mediffusion_diffusers.commands.demo.worker import end_with_the_parent


def work(words, log, num_threads, environment, report):
    """Do as the words say: write `begin` and `end` of a step into a file, fail, wait, or meet another process."""
    end_with_the_parent()
    action, name, place = words
    Path(log).write_text(f"{action}\rof {name}\n")
    with Path(place, "events").open("a") as file:
        file.write(f"begin {name} {num_threads} {environment.get('RANK')} {os.getpid()}\n")
    is_first = environment.get("RANK") == "0"
    while action == "fail_or_wait" and is_first and Path(place, "events").read_text().count("begin") < 2:
        time.sleep(0.02)
    if action == "wait" or (action == "fail_or_wait" and not is_first):
        time.sleep(60)
    ends = time.monotonic() + 30
    while action == "meet" and Path(place, "events").read_text().count("begin") < 2 and time.monotonic() < ends:
        time.sleep(0.02)
    report.send(1.0)
    if action.startswith("fail"):
        os._exit(3)
    Path(place, name).write_text("")
    with Path(place, "events").open("a") as file:
        file.write(f"end {name}\n")
