"""One U-Net, two outputs: the diffusion model's prediction and, from its encoder, class logits (paper Sec. 3.2)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.utils import BaseOutput
from torch import nn

from ..hub import hub_access
from .checkpoint_head import fitting_weights, is_whole, warn_about_fresh_head, with_label_defaults
from .classifier_head import classifier_head
from .config_rules import check_config
from .feature_pooling import num_pooled_features, pool_maps
from .label_config import resolve_label_config
from .model_folder import check_model_folder, safetensors_alone


MAX_HEAD_PARAMETERS = 2**28


@dataclass
class JointUNet2DOutput(BaseOutput):
    """Output of [`JointUNet2DModel`]; a field that was not asked for is `None` and vanishes.

    Args:
        sample: prediction of the diffusion model, shape `(batch, out_channels, height, width)`.
        logits: class scores before sigmoid or softmax, shape `(batch, num_labels)`.
    """

    sample: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class EncoderOutput(NamedTuple):
    """What the encoder half hands to the classifier and to the decoder half.

    Args:
        sample: output of the middle block (of the last down block, if there is none).
        skips: every encoder output, `conv_in` first: the decoder's skip connections, last first.
        emb: timestep (and conditioning) embedding, shape `(batch, time_embed_dim)`.
        timesteps: one timestep per image, shape `(batch,)`.
    """

    sample: torch.Tensor
    skips: tuple[torch.Tensor, ...]
    emb: torch.Tensor
    timesteps: torch.Tensor


class JointUNet2DModel(UNet2DModel, PeftAdapterMixin):
    r"""[`~diffusers.UNet2DModel`] whose encoder also classifies: `p(y | z_t)` and `eps(z_t)` share their weights.

    The encoder's feature maps (every skip connection and the middle block) are average pooled, concatenated and
    classified by a two-layer MLP with LeakyReLU(0.2) (paper Sec. 3.2 and App. B; the dropout is its authors').
    `sample` equals the parent's output bit for bit.

    Args:
        sample_size: see [`~diffusers.UNet2DModel`], like all arguments up to `num_train_timesteps`.
        num_labels: number of classes or findings; taken from `id2label` when that is given.
        problem_type: `"multi_label_classification"` (independent findings, sigmoid) or
            `"single_label_classification"` (one class per image, softmax), as in transformers.
        id2label: names of the labels; `LABEL_0`, ... when absent.
        label2id: the inverse of `id2label`, derived when absent.
        classifier_pool_size: each feature map is pooled to this many bins per side; 1 is global average pooling.
        classifier_pool_type: `"avg"`: the bins' means; `"avg_std"`: also the standard deviation of each whole map.
        max_classifier_features: upper bound of the concatenated features (paper Sec. 4: 10,000).
        classifier_hidden_size: width of the MLP's hidden layer; 0 for one linear layer, which starts at zero.
        classifier_norm_type: `"batch_norm"` standardises the pooled features first; `None`, as in the paper, does not.
        classifier_dropout: dropout before each of the MLP's linear layers, in [0, 1).
        label_thresholds: probability from which a label counts as present, one per label in (0, 1); written by
            training from the validation split.
        guidance_defaults: defaults of the counterfactual pipeline for this checkpoint, such as `strength` and
            `guidance_scale` (one number, or one for `"towards"` and one for `"away"`): the options that
            `CounterfactualSettings` marks as stored. The guided pipeline takes its scale and mode. Scales and
            strengths belong to a checkpoint and its autoencoder; they do not transfer.
        label_calibration: `slope` and `intercept` of the logits, one per label each; used only by `calibrated=True`.

    Raises:
        ValueError: for label settings that contradict each other or more features than `max_classifier_features`.
    """

    _no_split_modules = ("ResnetBlock2D", "Attention")

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
        num_labels: int = 2,
        problem_type: str = "multi_label_classification",
        id2label: dict[int, str] | None = None,
        label2id: dict[str, int] | None = None,
        classifier_pool_size: int = 1,
        classifier_pool_type: str = "avg",
        max_classifier_features: int = 10000,
        classifier_hidden_size: int = 1024,
        classifier_norm_type: str | None = None,
        classifier_dropout: float = 0.3,
        label_thresholds: list[float] | None = None,
        guidance_defaults: dict[str, Any] | None = None,
        label_calibration: dict[str, Any] | None = None,
    ):
        check_config("JointUNet2DModel", locals())
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            center_input_sample=center_input_sample,
            time_embedding_type=time_embedding_type,
            time_embedding_dim=time_embedding_dim,
            freq_shift=freq_shift,
            flip_sin_to_cos=flip_sin_to_cos,
            down_block_types=tuple(down_block_types),
            mid_block_type=mid_block_type,
            up_block_types=tuple(up_block_types),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            mid_block_scale_factor=mid_block_scale_factor,
            downsample_padding=downsample_padding,
            downsample_type=downsample_type,
            upsample_type=upsample_type,
            dropout=dropout,
            act_fn=act_fn,
            attention_head_dim=attention_head_dim,
            norm_num_groups=norm_num_groups,
            attn_norm_num_groups=attn_norm_num_groups,
            norm_eps=norm_eps,
            resnet_time_scale_shift=resnet_time_scale_shift,
            add_attention=add_attention,
            class_embed_type=class_embed_type,
            num_class_embeds=num_class_embeds,
            num_train_timesteps=num_train_timesteps,
        )
        described = (num_labels, problem_type, id2label, label2id, label_thresholds, label_calibration)
        self.register_to_config(**resolve_label_config(*described))

        num_features = self.num_classifier_features
        if num_features > max_classifier_features:
            raise ValueError(
                f"`classifier_pool_size={classifier_pool_size}` gives {num_features} classifier features, more than "
                f"`max_classifier_features={max_classifier_features}`. Lower the former or raise the latter."
            )
        if num_features * classifier_hidden_size > MAX_HEAD_PARAMETERS:
            raise ValueError(
                f"`classifier_hidden_size` {classifier_hidden_size} times {num_features} features is more than the "
                f"{MAX_HEAD_PARAMETERS} weights that a head may have. Lower it or `classifier_pool_size`."
            )
        self.classifier = self._new_head()

    @property
    def num_classifier_features(self) -> int:
        """Length of the concatenated, pooled feature vector (5,632 at the paper's shape)."""
        config = self.config
        channels = [config.block_out_channels[0]]
        for index, width in enumerate(config.block_out_channels):
            is_last = index == len(config.block_out_channels) - 1
            channels += [width] * (config.layers_per_block + (not is_last))
        if self.mid_block is not None:
            channels.append(config.block_out_channels[-1])
        return num_pooled_features(channels, config.classifier_pool_size, config.classifier_pool_type)

    def _new_head(self) -> nn.Sequential:
        config = self.config
        shape = (self.num_classifier_features, config.num_labels, config.classifier_hidden_size)
        return classifier_head(*shape, config.classifier_dropout, config.classifier_norm_type)

    @property
    def id2label(self) -> dict[int, str]:
        """Label names by index (JSON turns the keys into strings; this turns them back)."""
        return {int(index): name for index, name in self.config.id2label.items()}

    @property
    def label_names(self) -> list[str]:
        """Label names in the order of the logits."""
        return [self.id2label[index] for index in range(self.config.num_labels)]

    def encode(
        self, sample: torch.Tensor, timestep: torch.Tensor | float | int, class_labels: torch.Tensor | None = None
    ) -> EncoderOutput:
        """Run the encoder half: `conv_in`, the down blocks and the middle block.

        Args:
            sample: noisy latents, shape `(batch, in_channels, height, width)`.
            timestep: one number for all images, or shape `(1,)` or `(batch,)`.
            class_labels: *conditioning* of a class-conditional U-Net (not targets), shape `(batch,)`.

        Returns:
            The features for `classify` and `decode`.

        Raises:
            ValueError: if `class_labels` is given without, or missing with, class conditioning.
        """
        if self.config.center_input_sample:
            sample = 2 * sample - 1.0

        if not torch.is_tensor(timestep):
            timestep = torch.tensor(timestep, dtype=torch.long)
        # A single number stays where it is: to copy it would make the host wait for an accelerator.
        timesteps = timestep.reshape(()) if timestep.numel() == 1 else timestep.reshape(-1).to(sample.device)
        timesteps = timesteps * torch.ones(sample.shape[0], dtype=timesteps.dtype, device=sample.device)
        emb = self.time_embedding(self.time_proj(timesteps).to(dtype=self.dtype))

        if self.class_embedding is None and class_labels is not None:
            raise ValueError(
                "`class_labels` condition the U-Net and need `num_class_embeds` or `class_embed_type` in its config, "
                "but there is neither. The labels to guide towards are arguments of the pipelines, not of the U-Net."
            )
        if self.class_embedding is not None:
            if class_labels is None:
                raise ValueError("`class_labels` must be given, because this U-Net is conditioned on classes.")
            if self.config.class_embed_type == "timestep":
                class_labels = self.time_proj(class_labels)
            emb = emb + self.class_embedding(class_labels).to(dtype=self.dtype)

        skip_sample = sample
        sample = self.conv_in(sample)
        skips: tuple[torch.Tensor, ...] = (sample,)
        for block in self.down_blocks:
            if hasattr(block, "skip_conv"):
                sample, outputs, skip_sample = block(hidden_states=sample, temb=emb, skip_sample=skip_sample)
            else:
                sample, outputs = block(hidden_states=sample, temb=emb)
            skips += outputs
        if self.mid_block is not None:
            sample = self.mid_block(sample, emb)
        return EncoderOutput(sample, skips, emb, timesteps)

    def pool_features(self, encoded: EncoderOutput) -> torch.Tensor:
        """Pool every encoder map and concatenate: shape `(batch, num_classifier_features)`."""
        maps = encoded.skips if self.mid_block is None else (*encoded.skips, encoded.sample)
        return pool_maps(maps, self.config.classifier_pool_size, self.config.classifier_pool_type)

    def classify(self, encoded: EncoderOutput) -> torch.Tensor:
        """Run the classifier head on encoder features: logits of shape `(batch, num_labels)`."""
        return self.classifier(self.pool_features(encoded))

    def decode(self, encoded: EncoderOutput) -> torch.Tensor:
        """Run the decoder half: the diffusion model's prediction, shape `(batch, out_channels, height, width)`."""
        sample, skips, emb, timesteps = encoded
        skip_sample = None
        for block in self.up_blocks:
            count = len(block.resnets)
            skips, block_skips = skips[:-count], skips[-count:]
            if hasattr(block, "skip_conv"):
                sample, skip_sample = block(sample, block_skips, emb, skip_sample)
            else:
                sample = block(sample, block_skips, emb)

        sample = self.conv_out(self.conv_act(self.conv_norm_out(sample)))
        if skip_sample is not None:
            sample = sample + skip_sample
        if self.config.time_embedding_type == "fourier":
            sample = sample / timesteps.reshape(-1, *([1] * (sample.ndim - 1)))
        return sample

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_sample: bool = True,
        return_logits: bool = True,
        return_dict: bool = True,
        detach_decoder: bool = False,
    ) -> JointUNet2DOutput | tuple[torch.Tensor, ...]:
        """Predict the noise, the class logits, or both from one encoder pass.

        Args:
            sample: noisy latents, shape `(batch, in_channels, height, width)`.
            timestep: one number for all images, or shape `(1,)` or `(batch,)`.
            class_labels: conditioning of a class-conditional U-Net, shape `(batch,)`; not the classifier's targets.
            return_sample: run the decoder half.
            return_logits: run the classifier head.
            return_dict: return a [`JointUNet2DOutput`] rather than a tuple without the missing fields.
            detach_decoder: run the decoder half without a graph, on detached features. Guidance needs the gradient
                of the logits alone, and this saves the decoder's activations.

        Returns:
            `sample` and `logits`, as asked for.

        Raises:
            ValueError: if neither output is asked for, or as in `encode`.
        """
        if not (return_sample or return_logits):
            raise ValueError("At least one of `return_sample` and `return_logits` must be True.")
        encoded = self.encode(sample, timestep, class_labels)
        logits = self.classify(encoded) if return_logits else None
        prediction = None
        if return_sample and detach_decoder:
            with torch.no_grad():
                skips = tuple(skip.detach() for skip in encoded.skips)
                prediction = self.decode(encoded._replace(sample=encoded.sample.detach(), skips=skips))
        elif return_sample:
            prediction = self.decode(encoded)
        if not return_dict:
            return tuple(value for value in (prediction, logits) if value is not None)
        return JointUNet2DOutput(sample=prediction, logits=logits)

    @classmethod
    def from_unet(cls, unet: UNet2DModel, **classifier_kwargs: Any) -> JointUNet2DModel:
        """Build a joint model from any [`~diffusers.UNet2DModel`], copying its weights; the head starts fresh.

        Args:
            unet: the diffusion model to extend. If it is a joint model, its head is copied too, unless the new head
                has another shape.
            classifier_kwargs: any of this class's own arguments (`num_labels`, `id2label`, `problem_type`, ...).

        Returns:
            A new model with the dtype and device of `unet`.

        Raises:
            ValueError: if an argument changes the shape of the U-Net itself, so that its weights no longer fit.
        """
        config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
        if {"num_labels", "id2label"} & classifier_kwargs.keys():  # new labels: the old names and thresholds are void
            for name in ("num_labels", "id2label", "label2id", "label_thresholds", "label_calibration"):
                config.pop(name, None)
        model = cls(**{**config, **classifier_kwargs})
        weights = fitting_weights(model.state_dict(), unet.state_dict(), sorted(classifier_kwargs))
        model.load_state_dict(weights, strict=False)
        model = model.to(unet.device)
        # ModelMixin.to warns about every cast.
        return model if model.dtype == unet.dtype else model.to(unet.dtype)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, **kwargs: Any
    ) -> JointUNet2DModel | tuple[JointUNet2DModel, dict[str, Any]]:
        """Load a joint model; see [`~diffusers.ModelMixin.from_pretrained`].

        A head that the checkpoint lacks, or holds for another number of labels, would be left as uninitialised
        memory by the parent; here it is refused, unless the caller asks for a fresh one.

        Args:
            pretrained_model_name_or_path: folder or Hub repository.
            kwargs: as for the parent, and config overrides such as `num_labels`. `ignore_mismatched_sizes=True`
                (transformers' argument) initialises a missing or mismatched head afresh, with a warning.

        Raises:
            ValueError: if the head's weights are missing or of another shape, there are pickled weights alone, or a
                file is damaged.
        """
        kwargs = safetensors_alone(kwargs)
        source, subfolder = str(pretrained_model_name_or_path), kwargs.get("subfolder")
        if os.path.isdir(source):
            check_model_folder(source, subfolder)
        fresh_head = kwargs.pop("ignore_mismatched_sizes", False)
        output_loading_info = kwargs.pop("output_loading_info", False)
        kwargs = with_label_defaults(kwargs)
        try:
            with hub_access(source, kwargs.get("revision"), kwargs.get("token")):
                model, info = super().from_pretrained(
                    pretrained_model_name_or_path, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
                )
        except NotImplementedError as error:
            if kwargs.get("device_map") is None:
                raise
            # The parent moves the model to its devices before it reports what is missing.
            raise ValueError(
                f"Checkpoint {source!r} lacks weights, probably those of the classifier "
                "head, and cannot be spread by `device_map`. Load it without `device_map` to see which."
            ) from error
        if not is_whole(info, source, model.config.num_labels, fresh_head):
            warn_about_fresh_head()
            model.classifier = model._new_head().to(model.conv_in.weight)
        return (model, info) if output_loading_info else model
