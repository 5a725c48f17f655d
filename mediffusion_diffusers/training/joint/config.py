"""The options of `train_joint.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from ...counterfactual_options import given_options
from ...options import Range, option
from ..config import HubOptions, LRScheduler, TrainingConfig, check_hub, check_resolution


_Count = Annotated[int, Range(at_least=1)]
_OptionalCount = Annotated[int | None, Range(at_least=1)]
_Step = Annotated[int, Range(at_least=0)]
_Weight = Annotated[float, Range(at_least=0)]
_StoredOptions: Any = given_options(only_stored=True, prefix="counterfactual_")
_Dropout = Annotated[float | None, Range(at_least=0, below=1)]


@dataclass(frozen=True)
class LabelOptions:
    """Which images are labelled, and how the class loss takes part."""

    _argument_group_name = "classification"

    labelled_split: str | None = option(
        None, "Split file that names the labelled images; by default all that have a label."
    )
    labelled_batch_size: _Count = option(16, "Labelled images per step, over all processes.")
    classifier_loss_weight: _Weight = option(1.0, "w in L_diff + w * L_class.")
    classifier_learning_rate: Annotated[float | None, Range(above=0)] = option(None, "By default `learning_rate`.")
    classifier_start_step: _Step = option(0, "Diffusion alone before this step.")
    classifier_every: _Count = option(1, "Class loss on every n-th step.")
    joint_diffusion_loss_weight: Annotated[float | None, Range(at_least=0)] = option(
        None, "Weight of L_diff beside the class loss; 0: class loss alone. By default `diffusion_loss_weight`."
    )
    lr_restart_at_classifier_start: bool = option(
        False, "Begin warm-up and schedule, and the warm-up of the average, anew when the class loss begins."
    )
    joint_learning_rate: Annotated[float | None, Range(above=0)] = option(
        None,
        "Largest learning rate from `classifier_start_step` on, where it begins anew. By default `learning_rate`.",
    )
    linear_probe_first: bool = option(
        False,
        "Where the class loss begins, make the head a linear probe of the labelled images on the features as they "
        "are, so that fine-tuning need not bend them (LP-FT). Needs `classifier_hidden_size` 0.",
    )
    classifier_noise_prob: Annotated[float, Range(at_least=0, at_most=1)] = option(
        0.0, "Share of labelled images that are noised."
    )
    classifier_max_timestep: _Count = option(
        400, "Noised images get a uniform t below this; the rest stay clean at t = 0."
    )

    classifier_lr_scheduler: LRScheduler | None = option(
        None, "Course of the learning rate from `classifier_start_step` on, where it begins anew. By default the same."
    )
    classifier_warmup_steps: Annotated[int | None, Range(at_least=0)] = option(
        None, "Steps in which it rises from 0 then. By default `lr_warmup_steps`."
    )
    classifier_color_jitter: Annotated[float, Range(at_least=0, below=1)] = option(
        0.0,
        "Random contrast, brightness, saturation and white balance of the images that are classified; the diffusion "
        "loss sees true colours.",
    )

    def is_due(self, step: int) -> bool:
        """Whether a step of joint training has a class loss: from the start on, every n-th, if its weight is not 0."""
        since = step - self.classifier_start_step
        return self.classifier_loss_weight > 0 and since >= 0 and since % self.classifier_every == 0

    def steps_before(self, step: int) -> int:
        """How many steps before `step` have a class loss, if nothing follows joint training."""
        if self.classifier_loss_weight == 0:
            return 0
        return max(0, -(-(step - self.classifier_start_step) // self.classifier_every))


@dataclass(frozen=True)
class ConsolidationOptions:
    """Last stages, in which the model learns its own soft answers of all images, and the decoder fits itself again."""

    _argument_group_name = "consolidation (beyond the paper, off by default)"

    consolidation_start_step: Annotated[int | None, Range(at_least=1)] = option(
        None,
        "From this step on the averaged model's answers to all training images replace the labels, on clean and on "
        "noised latents, with the diffusion loss beside them.",
    )
    consolidation_batch_size: _Count = option(24, "Images per step that are answered.")
    consolidation_loss_weight: Annotated[float, Range(above=0)] = option(1.0, "Weight of the loss on soft answers.")
    consolidation_noise_prob: Annotated[float, Range(at_least=0, at_most=1)] = option(
        0.5, "Share of the answered images that are noised."
    )
    consolidation_max_timestep: _Count = option(600, "Noised images get a uniform t below this.")
    consolidation_num_views: _Count = option(2, "Views of an image whose mean is the answer: plain, then augmented.")
    consolidation_learning_rate: Annotated[float | None, Range(above=0)] = option(
        None, "Largest learning rate of these stages' cosines. By default `learning_rate`."
    )
    consolidation_warmup_steps: _Step = option(20, "Steps in which it rises from 0.")
    consolidation_ema_decay: Annotated[float, Range(at_least=0, below=1)] = option(
        0.98, "Largest decay of the average in these stages."
    )
    decoder_start_step: Annotated[int | None, Range(at_least=1)] = option(
        None, "From this step on the decoder alone learns to denoise; what the classifier answers stays as it is."
    )


@dataclass(frozen=True)
class ModelOptions:
    """The autoencoder and the U-Net that a training starts from."""

    _argument_group_name = "model"

    vae_path: str | None = option(None, "AutoencoderKL: folder or Hub repository.")
    vae_subfolder: str | None = option(None, "Folder inside `vae_path`, for example vae.")
    vae: Literal["space_to_depth"] | None = option(None, "A lossless latent instead of `vae_path`.")
    vae_block_size: _Count = option(2, "Pixels per latent pixel of space_to_depth.")
    unet_path: str | None = option(None, "U-Net to start from (UNet2DModel or joint): folder or repo.")
    unet_subfolder: str | None = option(None, "Folder inside `unet_path`, for example unet.")
    unet_config: str | None = option(None, "JSON file with the U-Net's config, or 'paper'.")
    block_out_channels: Annotated[list[int] | None, Range(at_least=1)] = option(None, "Widths of the levels.")
    layers_per_block: _OptionalCount = option(None, "Residual blocks per level.")
    down_block_types: list[str] | None = option(None, "Kinds of the down blocks, one per level.")
    up_block_types: list[str] | None = option(None, "By default the mirror of the down blocks.")
    attention_head_dim: _OptionalCount = option(None, "Channels per head of attention.")
    norm_num_groups: _OptionalCount = option(None, "Groups of the group normalisation.")
    dropout: _Dropout = option(None, "Dropout in the U-Net's residual blocks.")
    classifier_pool_size: _OptionalCount = option(None, "Pooled bins per side of each map.")
    classifier_pool_type: Literal["avg", "avg_std"] | None = option(
        None, "Means of the bins, or also the standard deviation of each whole map."
    )
    classifier_hidden_size: Annotated[int | None, Range(at_least=0)] = option(
        None, "Width of the classifier's hidden layer; 0: one linear layer, which starts at zero."
    )
    classifier_norm_type: Literal["batch_norm"] | None = option(
        None, "Standardise the pooled features before the classifier; frozen from consolidation on."
    )
    classifier_dropout: _Dropout = option(None, "Dropout in the classifier.")


@dataclass(frozen=True)
class DiffusionOptions:
    """The noise schedule, the diffusion loss, and samples."""

    _argument_group_name = "diffusion"

    diffusion_loss_weight: _Weight = option(1.0, "0: classify only (Table 3).")
    stratified_timesteps: bool = option(
        False, "Draw a batch's timesteps one from each of as many equal parts of the noise schedule."
    )
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = option("epsilon", "What the U-Net predicts.")
    num_train_timesteps: _Count = option(1000, "Steps of the noise schedule.")
    beta_start: Annotated[float, Range(above=0, below=1)] = option(0.0015, "Variance of the first step's noise.")
    beta_end: Annotated[float, Range(above=0, below=1)] = option(0.0195, "Variance of the last step's noise.")
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = option(
        "scaled_linear", "Course between them, by diffusers' names: those that DDIM knows, which samples afterwards."
    )
    rescale_betas_zero_snr: bool = option(
        False, "Let the last timestep be noise alone (Lin et al., 2023); the saved scheduler then spaces from the end."
    )
    snr_gamma: Annotated[float | None, Range(above=0)] = option(
        None, "Bound on how much a little noise weighs in the diffusion loss; Min-SNR's authors use 5."
    )
    snr_weighting: Literal["min", "soft_min"] = option(
        "min", "Whether the weight ends at the bound (Min-SNR) or approaches it; soft_min with 1 is abar_t."
    )
    sample_steps: _OptionalCount = option(None, "Steps between sample grids; by default `validation_steps`.")
    num_sample_images: _Count = option(16, "Images in a sample grid.")
    sample_inference_steps: _Count = option(25, "DDIM steps of the sample grids.")


class CounterfactualDefaults(_StoredOptions):
    """What calls of the counterfactual pipeline leave open; stored with the model, better calibrated afterwards."""

    _argument_group_name = "counterfactuals: defaults that are stored with the model"


@dataclass(frozen=True)
class SemiSupervisedOptions:
    """What few and unequal labels can need."""

    _argument_group_name = "few and unequal labels (beyond the paper, off by default)"

    pseudo_label_start_step: Annotated[int | None, Range(at_least=0)] = option(
        None, "From this step on, what the averaged model is sure about on the diffusion stream is a label too."
    )
    pseudo_label_threshold: Annotated[float, Range(above=0.5, below=1)] = option(
        0.95, "Least probability of an answer that is sure."
    )
    pseudo_label_weight: Annotated[float, Range(above=0)] = option(1.0, "Weight of the loss on pseudo-labels.")
    pos_weight: list[str] = option(
        ["none"],
        "Weights of the positives in the class loss: none, balanced, or one number per label.",
        metavar="WEIGHT",
    )
    balanced_labelled_sampling: bool = option(
        False, "Show labelled images of every class, and of none, equally often."
    )
    square_root_labelled_sampling: bool = option(
        False, "Show them as often as the square root of their number: between that and as they are."
    )

    def is_due(self, step: int) -> bool:
        """Whether the teacher labels the diffusion stream's images on a step that has a class loss."""
        return self.pseudo_label_start_step is not None and step >= self.pseudo_label_start_step


@dataclass(frozen=True)
class SpeedOptions:
    """What costs less and changes nothing, or nothing but rounding."""

    _argument_group_name = "speed"

    cache_latents: bool = option(
        False,
        "Encode all images once and keep their latents on disk; a later run with the same images, autoencoder and "
        "augmentation finds them there.",
    )
    cache_latents_variants: _Count = option(4, "Augmented variants per image; one without augmentation.")
    latent_cache_dir: str | None = option(None, "Folder of cached latents; by default 'latents' beside `output_dir`.")
    share_forward: bool = option(True, "Run the encoder once for both losses.")
    compile: str | None = option(
        None,
        "Compile the U-Net's pass with torch.compile; the backend is inductor unless another is named.",
        const="inductor",
        metavar="BACKEND",
    )


@dataclass(frozen=True)
class JointConfig(TrainingConfig):
    """A joint training: L = L_diff + w * L_class (paper Sec. 3.3)."""

    labels: LabelOptions = field(default_factory=LabelOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    diffusion: DiffusionOptions = field(default_factory=DiffusionOptions)
    counterfactuals: CounterfactualDefaults = field(default_factory=CounterfactualDefaults)
    consolidation: ConsolidationOptions = field(default_factory=ConsolidationOptions)
    semi_supervised: SemiSupervisedOptions = field(default_factory=SemiSupervisedOptions)
    speed: SpeedOptions = field(default_factory=SpeedOptions)
    hub: HubOptions = field(default_factory=HubOptions)

    def labelled_steps_before(self, step: int) -> int:
        """How many steps before `step` had a class loss: where the labelled stream stands."""
        ends = (self.consolidation.consolidation_start_step, self.consolidation.decoder_start_step)
        return self.labels.steps_before(min([step, *(end for end in ends if end is not None)]))

    def check(self) -> None:
        """See `TrainingConfig.check`."""
        super().check()
        check_resolution(self.data)
        check_hub(self.run, self.hub)
        model, diffusion, labels = self.model, self.diffusion, self.labels
        if labels.labelled_split is not None and not Path(labels.labelled_split).is_file():
            raise ValueError(f"`labelled_split` must be a split file, but {labels.labelled_split!r} does not exist.")
        if (model.vae_path is None) == (model.vae is None) and not (self.run.dry_run and model.vae is None):
            raise ValueError("Exactly one of `vae_path` (a trained autoencoder) and `vae` (space_to_depth) is needed.")
        if diffusion.diffusion_loss_weight == 0 and (labels.classifier_start_step > 0 or labels.classifier_every > 1):
            raise ValueError(
                "`diffusion_loss_weight=0` leaves steps without any loss: set `classifier_start_step=0` and "
                "`classifier_every=1`."
            )
        if diffusion.diffusion_loss_weight == 0 and labels.classifier_loss_weight == 0:
            raise ValueError("At least one of `diffusion_loss_weight` and `classifier_loss_weight` must be above 0.")
        if labels.classifier_max_timestep > diffusion.num_train_timesteps:
            raise ValueError(
                f"`classifier_max_timestep` must be in [1, {diffusion.num_train_timesteps}], but got "
                f"{labels.classifier_max_timestep}."
            )
        if diffusion.sample_inference_steps > diffusion.num_train_timesteps:
            raise ValueError(
                f"`sample_inference_steps` must be in [1, {diffusion.num_train_timesteps}], the steps of the noise "
                f"schedule, but got {diffusion.sample_inference_steps}."
            )
        if diffusion.rescale_betas_zero_snr and diffusion.prediction_type == "epsilon":
            raise ValueError(
                "`rescale_betas_zero_snr` makes the last timestep noise alone, from which the noise tells nothing: "
                "set `prediction_type` to 'v_prediction' or 'sample'."
            )
        sampling = self.semi_supervised
        if sampling.balanced_labelled_sampling and sampling.square_root_labelled_sampling:
            raise ValueError(
                "At most one of `balanced_labelled_sampling` and `square_root_labelled_sampling` can be chosen."
            )
        if labels.linear_probe_first and labels.classifier_loss_weight == 0:
            raise ValueError("`linear_probe_first` needs a classifier: set `classifier_loss_weight`.")
        self._check_pseudo_labels()
        self._check_last_stages()
        if self.speed.cache_latents and labels.classifier_color_jitter > 0:
            raise ValueError(
                "`classifier_color_jitter` changes pixels, which `cache_latents` encodes once for all losses: choose "
                "one, or `intensity_jitter` for the images of all losses."
            )
        for name in ("classifier_lr_scheduler", "classifier_warmup_steps", "joint_learning_rate"):
            if getattr(labels, name) is not None and not labels.lr_restart_at_classifier_start:
                raise ValueError(f"`{name}` needs `lr_restart_at_classifier_start`.")
        if self.speed.compile is not None:
            _check_backend(self.speed.compile)

    def _check_pseudo_labels(self) -> None:
        start_step, first = self.semi_supervised.pseudo_label_start_step, self.labels.classifier_start_step
        if start_step is None:
            return
        if start_step < first:
            raise ValueError(
                f"`pseudo_label_start_step` must not be below `classifier_start_step` ({first}), before which the "
                f"teacher knows nothing, but got {start_step}."
            )
        if not self.optimizer.use_ema:
            raise ValueError("`pseudo_label_start_step` needs `use_ema`: the averaged model is the teacher.")
        if self.diffusion.diffusion_loss_weight == 0 or self.labels.classifier_loss_weight == 0:
            raise ValueError(
                "`pseudo_label_start_step` needs both losses: set `diffusion_loss_weight` and "
                "`classifier_loss_weight`."
            )

    def _check_last_stages(self) -> None:
        options, labels, diffusion = self.consolidation, self.labels, self.diffusion
        starts = {"classifier_start_step": labels.classifier_start_step}
        for name in ("consolidation_start_step", "decoder_start_step"):
            step = getattr(options, name)
            if step is None:
                continue
            before, earliest = list(starts.items())[-1]
            if step <= earliest:
                raise ValueError(f"`{name}` must be above `{before}` ({earliest}), but got {step}.")
            if not self.optimizer.use_ema:
                raise ValueError(f"`{name}` needs `use_ema`: the averaged weights are what goes on.")
            if labels.classifier_loss_weight == 0:
                raise ValueError(f"`{name}` needs a classifier: set `classifier_loss_weight`.")
            if name == "decoder_start_step" and diffusion.diffusion_loss_weight == 0:
                raise ValueError(f"`{name}` needs the diffusion loss: set `diffusion_loss_weight`.")
            starts[name] = step
        if options.consolidation_max_timestep > diffusion.num_train_timesteps:
            raise ValueError(
                f"`consolidation_max_timestep` must be in [1, {diffusion.num_train_timesteps}], but got "
                f"{options.consolidation_max_timestep}."
            )
        if labels.joint_diffusion_loss_weight == 0 and labels.classifier_every > 1:
            raise ValueError(
                "`joint_diffusion_loss_weight=0` leaves steps without any loss: set `classifier_every=1`."
            )


def _check_backend(name: str) -> None:
    import torch._dynamo  # takes seconds

    known = torch._dynamo.list_backends(exclude_tags=())
    if name not in known:
        raise ValueError(f"`compile` must be a backend of torch.compile, one of {', '.join(known)}, but got {name!r}.")
