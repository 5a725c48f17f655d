"""Two raylets on loopback as two machines: a worker, a machine and the driver are killed; the same command ends well.

At the end the folder must hold the same files with the same bytes as that of one process without Ray. Needs Ray.

    python tests/explanation/ray_losses.py --output benchmarks/results/explain_ray_losses.json
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import kill_matrix
from support.warm_start import Forked, fork

from mediffusion_diffusers.atomic_files import write_text


def actors() -> list[int]:
    """Process ids of the actors that are there."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(b"ray::RayWorker"):
                found.append(int(folder.name))
    return sorted(found)


def prepare_driver(line: list[str], log: Path, go: Path) -> Forked:
    """Fork a driver that begins when `go` appears, which holds the address of the cluster: forks must not know Ray."""
    warm = kill_matrix.WarmStarter()

    def drive() -> int | None:
        while not go.exists():
            time.sleep(0.05)
        os.environ["RAY_ADDRESS"] = go.read_text()
        return warm.run(line)

    return fork(drive, log)


def wait_for_chunks(process: Forked, output_dir: Path, count: int, log: Path) -> None:
    """Wait until so many chunks are finished."""
    while len(list(output_dir.rglob("*.parquet"))) < count:
        if process.poll() is not None:
            raise RuntimeError(f"The driver has ended:\n{log.read_text()[-3000:]}")
        time.sleep(0.02)


def main() -> None:
    """Kill one after the other and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=480)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="explain-ray-losses-") as folder:
        scratch = Path(folder)
        pipeline, data = kill_matrix.prepare(scratch, args.num_images, 4)
        reference, output_dir, log = scratch / "reference", scratch / "out", scratch / "ray.log"
        warm = kill_matrix.WarmStarter()
        kill_matrix.run_to_the_end(
            kill_matrix.command(pipeline, data, reference), scratch / "reference.log", warm.start
        )
        num_chunks = len(list(reference.rglob("*.parquet")))
        line = [*kill_matrix.command(pipeline, data, output_dir, "ray"), "--device", "cpu"]
        starts = scratch / "first", scratch / "second"
        driver, second_driver = (prepare_driver(line, log, go) for go in starts)
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        second = cluster.add_node(num_cpus=1)
        killed = []

        def note(what: str, began: float) -> None:
            chunks = len(list(output_dir.rglob("*.parquet")))
            killed.append({"what": what, "num_chunks": chunks, "seconds": round(time.monotonic() - began, 1)})
            print(killed[-1], flush=True)

        try:
            began = time.monotonic()
            write_text(starts[0], cluster.address)
            wait_for_chunks(driver, output_dir, num_chunks // 8, log)
            os.kill(actors()[-1], signal.SIGKILL)
            note("worker", began)
            wait_for_chunks(driver, output_dir, num_chunks // 4, log)
            cluster.remove_node(second, allow_graceful=False)
            note("machine", began)
            wait_for_chunks(driver, output_dir, num_chunks // 2, log)
            driver.kill()
            driver.wait()
            note("driver", began)
            cluster.add_node(num_cpus=1)
            write_text(starts[1], cluster.address)
            code = second_driver.wait()
            note("nothing", began)
        finally:
            cluster.shutdown()
        manifest = json.loads((output_dir / "manifest.json").read_text())
        result = {
            "command": " ".join(["python", *sys.argv]),
            "num_images": args.num_images,
            "num_chunks": num_chunks,
            "killed": killed,
            "exit_code": code,
            "complete": manifest["complete"],
            "num_duplicates": kill_matrix.duplicates(output_dir),
            "bit_identical": not kill_matrix.differences(output_dir, reference),
        }
    print(json.dumps(result, indent=1))
    args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
