"""Training of the outside classifier that judges counterfactuals, robust to noise and blur.

An ordinary classifier cannot tell a counterfactual from adversarial noise: its scores move under random noise of the
same size. This one sees noised, blurred and shifted images while it learns, and how far random noise still moves its
scores is measured and saved with it. It shares neither architecture nor seed with the model that it judges, and
should be trained on other patients.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from ...atomic_files import write_json
from ...data.schema import DatasetInfo, label_matrix, load_info, load_prepared, parquet_files
from ...data.transforms import ImageTransform
from ...device import memory_format_for
from ...models.oracle_classifier import PATIENTS_FILE, OracleClassifier, patient_digest, resize_for_oracle
from ...options import Range, check_number
from ...version import __version__
from ..classification import auroc_record, classification_loss, count_known, label_thresholds
from ..config import check_shift
from ..data.image_rows import ImageRows, stream_batches
from ..data.streams import IndexStream, slice_bounds
from ..data.training_data import dataset_facts, dataset_folder, num_workers, train_transform
from ..loop import Task, Trained, TrainingLoop
from ..run.ema import EMAWeights, validation_weights
from ..run.optimizer import build_adamw, count_parameters
from ..run.output import new_model
from ..run.randomness import keyed_generator, seed_step
from ..run.run import TrainingRun, training_run
from .config import NetworkOptions, OracleConfig
from .disturbances import disturb
from .measures import measure_oracle


METRICS_FILE = "oracle_metrics.json"


def train_oracle(config: OracleConfig) -> dict[str, Any]:
    """Train, measure and save the classifier, or say what would be trained (`dry_run`).

    Args:
        config: all options.

    Returns:
        What is saved as `oracle_metrics.json`; of a dry run, its facts.

    Raises:
        ValueError: for options or data that cannot work.
    """
    config.check()
    if config.run.dry_run:
        return describe_oracle_run(config)
    with training_run(config) as run:
        task = OracleTask(config)
        TrainingLoop(run, task, config.optimizer).train()
    return task.metrics


def describe_oracle_run(config: OracleConfig) -> dict[str, Any]:
    """Resolve the configuration; what `--dry_run` prints."""
    facts: dict[str, Any] = {"arguments": config.public(), "num_train_steps": config.run.max_train_steps}
    if config.data.dataset_dir is not None or config.data.dataset_name is not None:
        folder = dataset_folder(config.data)
        info = load_info(folder)
        facts["dataset"] = dataset_facts(info, folder)
        oracle = build_oracle(info, _resolution(config, info), config.network)
        facts["num_parameters"] = count_parameters(oracle)
    return facts


def build_oracle(info: DatasetInfo, resolution: int, options: NetworkOptions) -> Any:
    """A small residual network from transformers, with random weights.

    Args:
        info: names the labels.
        resolution: height and width of the images in pixels.
        options: widths and depths.
    """
    from transformers import ResNetConfig, ResNetForImageClassification

    settings: dict[str, Any] = {
        "num_channels": info.channels,
        "embedding_size": options.hidden_sizes[0],
        "hidden_sizes": list(options.hidden_sizes),
        "depths": list(options.depths),
        "layer_type": "basic",
        "id2label": info.id2label,
        "label2id": info.label2id,
        "problem_type": info.problem_type,
        "image_size": resolution,
    }
    return ResNetForImageClassification(ResNetConfig(**settings))


class OracleObjective(nn.Module):
    """The network and its loss behind one `forward`, for distributed wrappers.

    Args:
        model: an image classifier of transformers.
        problem_type: see `classification_loss`.
    """

    def __init__(self, model: Any, problem_type: str):
        super().__init__()
        self.model, self.problem_type = model, problem_type

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor, num_known: int) -> torch.Tensor:
        """The loss of one slice: a sum over its images, divided by the global `num_known`."""
        return classification_loss(self.model(pixel_values=pixels).logits, labels, self.problem_type, num_known)


class OracleTask(Task):
    """Classification of disturbed images; a `Task` of the training loop.

    The network has batch normalisation, whose statistics are those of a slice: other numbers of processes or parts
    give another oracle.

    Args:
        config: all options, checked.

    Raises:
        ValueError: for data that cannot work.
    """

    config: OracleConfig

    def __init__(self, config: OracleConfig):
        self.config = config
        folder = dataset_folder(config.data)
        self.info = info = load_info(folder)
        self.resolution = _resolution(config, info)
        self.rows, self.labels, self.patients = self._load_split(folder, "train")
        torch.manual_seed(config.run.seed)
        self.model = build_oracle(info, self.resolution, config.network)
        self.transform = train_transform(config.data, self.resolution, info.channels)
        self.validation: tuple[torch.Tensor, np.ndarray] | None = None
        if parquet_files(folder, "validation"):
            rows, labels, _ = self._load_split(folder, "validation")
            plain = ImageTransform(self.resolution, info.channels)
            self.validation = rows.batch(rows.indices, plain), labels[rows.indices]
        self.metrics: dict[str, Any] = {}

    def facts(self) -> dict[str, Any]:
        """Data and sizes."""
        return {
            "dataset": {"name": self.info.name, "source": self.info.source, "licence": self.info.licence},
            "num_train_images": len(self.rows.indices),
            "num_validation_images": 0 if self.validation is None else len(self.validation[1]),
            "num_parameters": count_parameters(self.model),
        }

    def start(self, run: TrainingRun) -> None:
        """Network, optimizer and average on the run's device."""
        self.run, options = run, self.config.optimizer
        self.started = time.perf_counter()
        self.memory_format = memory_format_for(run.device)
        self.model.to(device=run.device, memory_format=self.memory_format)
        rate = options.learning_rate
        optimizer = build_adamw(
            [{"params": list(self.model.parameters()), "lr": rate, "initial_lr": rate}],
            betas=options.adam_betas,
            weight_decay=options.adam_weight_decay,
            eps=options.adam_epsilon,
        )
        objective = OracleObjective(self.model, self.info.problem_type)
        self.trained = [Trained("oracle", self.model, optimizer, objective)]
        self.ema: EMAWeights[Any] | None = EMAWeights(self.model, options.ema_decay) if options.use_ema else None
        self.stream = IndexStream(self.rows.indices, self.config.data.train_batch_size, self.config.run.seed, "oracle")

    def batches(self) -> Iterator[torch.Tensor]:
        """Augmented images, not yet disturbed."""
        run = self.run
        return stream_batches(
            self.rows,
            self.transform,
            self.stream,
            run.first_step,
            run.accelerator.process_index,
            run.num_processes,
            run.num_parts,
            num_workers(self.config.data, self.rows),
            run.device.type == "cuda",
        )

    def losses(self, batch: torch.Tensor, step: int, part: int) -> dict[str, torch.Tensor]:
        """The class loss of this process's slice of the disturbed images, differentiated."""
        run, size, seed = self.run, self.config.data.train_batch_size, self.config.run.seed
        own = slice(*slice_bounds(size, run.place(part), run.num_processes * run.num_parts))
        labels = torch.from_numpy(self.labels[[item.row for item in self.stream.batch(step)]])
        num_known = count_known(labels, self.info.problem_type)
        images = disturb(batch, keyed_generator(seed, "oracle noise", step), size, own)
        pixels = resize_for_oracle(run.to_device(images), self.resolution)
        pixels = pixels.contiguous(memory_format=self.memory_format)
        seed_step(seed, "dropout", step, part, run.accelerator.process_index)
        loss = self.trained[0].objective(pixels, run.to_device(labels[own]), num_known)
        run.backward(loss)
        return {"classification_loss": loss.detach()}

    def report_is_due(self, done: int) -> bool:
        """Whether to validate."""
        return self.validation is not None and self.run.is_due(done, self.config.run.validation_steps)

    def report(self, done: int) -> None:
        """AUROC on the validation images; every process finds the same."""
        assert self.validation is not None
        images, labels = self.validation
        with validation_weights(self.model, self.ema) as model:
            figures = auroc_record(labels, OracleClassifier(model)(images).numpy(), self.info.label_names)
        self.run.log({"kind": "validation", "step": done, **figures})

    def finish(self) -> None:
        """Measure the classifier, and save it with the digests of its patients."""
        config, run = self.config, self.run
        self.metrics = {
            "data": self.info.name,
            "notes": self.info.notes,
            "num_train_images": len(self.rows.indices),
            "resolution": self.resolution,
            "seed": config.run.seed,
            "steps": config.run.max_train_steps,
            "training_seconds": round(time.perf_counter() - self.started, 1),
            "num_parameters": count_parameters(self.model),
            "version": __version__,
        }
        with validation_weights(self.model, self.ema) as model:
            oracle = OracleClassifier(model)
            if self.validation is not None:
                images, labels = self.validation
                self.metrics["validation"] = measure_oracle(oracle, images, labels, seed=config.run.seed)
                if self.info.is_multi_label:
                    model.config.label_thresholds = label_thresholds(labels, oracle(images).numpy())
            if run.is_main:
                digests = sorted({patient_digest(self.info.name, patient) for patient in self.patients})
                with new_model(run.output_dir) as aside:
                    oracle.save_pretrained(aside)
                    write_json(aside / PATIENTS_FILE, digests)
                    write_json(aside / METRICS_FILE, self.metrics)
                run.say(f"Saved the oracle in {run.output_dir}.")

    def _load_split(self, folder: Any, split: str) -> tuple[ImageRows, np.ndarray, list[str]]:
        """Pictures, labels and patients of a split; rows without any known label are left out of `indices`."""
        dataset = load_prepared(folder, split)
        rows = ImageRows(dataset, self.config.data.cache_images, f"{split} images")
        labels = label_matrix(dataset, self.info)
        rows.indices = rows.indices[~np.isnan(labels[rows.indices]).all(axis=1)]
        if len(rows.indices) == 0:
            raise ValueError(f"The {split} split of {str(folder)!r} has no labelled image: an oracle needs labels.")
        patients = dataset["patient_id"]
        return rows, labels, [patients[index] for index in rows.indices.tolist()]


def _resolution(config: OracleConfig, info: DatasetInfo) -> int:
    """The images' size: the one asked for, or the dataset's."""
    resolution = config.data.resolution or info.image_size
    check_number("resolution", resolution, Range(at_least=8), whole=True)
    assert resolution is not None
    check_shift(config.data, resolution)
    return resolution
