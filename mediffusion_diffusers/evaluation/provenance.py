"""What a table must name so that another can repeat it: data, split, seed, checkpoint, weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..atomic_files import read_json
from ..data.schema import DatasetInfo
from ..models.oracle_classifier import PATIENTS_FILE, patient_digest
from ..version import __version__


TRAINING_CONFIG = "training_config.json"  # written by the training scripts beside the pipeline


def checkpoint_hash(folder: str | Path) -> str:
    """SHA-256 over the names and bytes of a checkpoint's weight files, the first 16 digits.

    Args:
        folder: a pipeline or model folder; checkpoints of its training inside it do not count.

    Raises:
        ValueError: if there is no safetensors file.
    """
    files = sorted(
        path
        for path in Path(folder).rglob("*.safetensors")
        if "checkpoint-" not in path.relative_to(folder).as_posix()
    )
    if not files:
        raise ValueError(f"Folder {str(folder)!r} holds no safetensors weights.")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def loaded_checkpoint_hash(pipe: Any) -> str:
    """The `checkpoint_hash` of the folder, or of the Hub's snapshot here, that a pipeline was loaded from.

    Args:
        pipe: one of the pipelines.

    Raises:
        ValueError: if it was made of components, or its folder is gone.
    """
    folder = Path(pipe.unet.config.get("_name_or_path") or "").parent
    if not folder.name or not folder.is_dir():
        raise ValueError(
            "`pipe` must be loaded from a folder or the Hub, which its checkpoint is named after, but was made of "
            "components or has lost its folder. Save it with `save_pretrained` and load it with `from_pretrained`."
        )
    return checkpoint_hash(folder)


def describe_provenance(pipeline_folder: str | Path, info: DatasetInfo, split: str) -> dict[str, Any]:
    """Data, labelled split, seed and checkpoint behind a table.

    Args:
        pipeline_folder: folder of the evaluated pipeline.
        info: of the dataset it is evaluated on.
        split: the evaluated split.

    Returns:
        Plain values for JSON; what the folder does not tell is `None`.

    Raises:
        ValueError: if the folder holds no weights, or its record of the training is damaged.
    """
    config = training_record(pipeline_folder)
    arguments, labelled = config.get("arguments") or {}, config.get("labelled_split") or {}
    return {
        "data": info.name,
        "split": split,
        "num_images_in_split": info.num_rows.get(split),
        "resolution": arguments.get("resolution"),
        "labelled_share_percent": labelled.get("share"),
        "labelled_by": labelled.get("by"),
        "labelled_split_hash": labelled.get("hash"),
        "diffusion_loss_weight": arguments.get("diffusion_loss_weight"),
        "num_labelled_images": config.get("num_labelled_images"),
        "seed": arguments.get("seed"),
        "steps": arguments.get("max_train_steps"),
        "checkpoint": checkpoint_hash(pipeline_folder),
        "weights": "EMA" if arguments.get("use_ema") else "last" if arguments else None,
        "selection": "last step; thresholds from the validation split",
        "figures": "own",
        "version": __version__,
    }


def patients_of_oracle(oracle_folder: str | Path, dataset_name: str, patient_ids: Iterable[str]) -> int | None:
    """How many of these patients an outside classifier was trained on; `None` if its folder does not tell.

    Args:
        oracle_folder: its folder.
        dataset_name: of the dataset that the patients are from.
        patient_ids: the patients, repeated or not.

    Raises:
        ValueError: if the record is damaged.
    """
    path = Path(oracle_folder) / PATIENTS_FILE
    if not path.is_file():
        return None
    try:
        digests = set(read_json(path))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is damaged: it must hold a list of digests ({error}).") from error
    return sum(patient_digest(dataset_name, patient) in digests for patient in set(patient_ids))


def training_record(pipeline_folder: str | Path) -> dict[str, Any]:
    """What the training wrote down beside a pipeline: `arguments`, `labelled_split`, `dataset`; empty if nothing.

    Args:
        pipeline_folder: folder of the pipeline.

    Raises:
        ValueError: if it is damaged.
    """
    path = Path(pipeline_folder) / TRAINING_CONFIG
    if not path.is_file():
        return {}
    config = read_json(path)
    names = ("arguments", "labelled_split", "dataset")
    parts = [config] if not isinstance(config, dict) else [config.get(name) for name in names]
    if not all(part is None or isinstance(part, dict) for part in parts):
        raise ValueError(f"{str(path)!r} is damaged: it must hold objects of names and values.")
    return config or {}
