"""Classifier guidance by the model's own head (paper Sec. 3.4, Eq. 2 and 7), as pure functions of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from .models import JointUNet2DModel


GUIDANCE_MODES = ("zt", "x0_detached", "x0")

# One image's labels: a name, an index, or several of them.
Labels = str | int | Sequence[str | int]


@dataclass(frozen=True)
class GuidanceTarget:
    """Where guidance pushes each image's labels.

    Args:
        direction: shape `(batch, num_labels)`: +1 towards a label, -1 away from it, 0 leaves it alone.
        problem_type: as in the model's config.
    """

    direction: torch.Tensor
    problem_type: str

    def log_prob(self, logits: torch.Tensor) -> torch.Tensor:
        r"""Log-probability of the target under the classifier: the `log g(y | .)` of Eq. 2.

        Several labels add up. Independent findings (sigmoid) give `log p` towards and `log(1 - p)` away; one class
        per image (softmax) gives the log of the wanted class and `log(1 - p)` of the unwanted ones.

        Args:
            logits: shape `(batch, num_labels)`.

        Returns:
            Shape `(batch,)`, at most 0.
        """
        direction = self.direction.to(logits)
        if self.problem_type == "multi_label_classification":
            return (F.logsigmoid(direction * logits) * direction.abs()).sum(dim=1)
        log_p = F.log_softmax(logits, dim=1)
        # log(1 - p_k) = logsumexp of the other log-probabilities: exact where 1 - p would underflow.
        others = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
        log_not_p = log_p[:, None, :].masked_fill(others, -torch.inf).logsumexp(dim=2)
        return (torch.where(direction > 0, log_p, log_not_p) * direction.abs()).sum(dim=1)


@dataclass(frozen=True)
class GuidedPrediction:
    """One guided evaluation of the model.

    Args:
        model_output: the guided prediction in the scheduler's `prediction_type`, shape of the latents.
        logits: class scores that the gradient was taken of, shape `(batch, num_labels)`.
    """

    model_output: torch.Tensor
    logits: torch.Tensor


def build_target(
    towards: Labels | Sequence[Labels] | None,
    away: Labels | Sequence[Labels] | None,
    batch_size: int,
    label_names: Sequence[str],
    problem_type: str,
) -> GuidanceTarget:
    """Turn label names or indices into a target.

    A single label or a flat list holds for every image; a list of lists gives one list of labels per image (an empty
    one leaves that image without).

    Args:
        towards: labels to make more probable.
        away: labels to make less probable.
        batch_size: number of images.
        label_names: the model's labels in order.
        problem_type: as in the model's config.

    Returns:
        The target, on the CPU.

    Raises:
        ValueError: for an unknown label, a label named towards and away, no label at all, several classes towards
            for a single-label model, or a list of lists whose length is not `batch_size`.
    """
    direction = torch.zeros(batch_size, len(label_names))
    for name, labels, sign in (("towards", towards, 1.0), ("away", away, -1.0)):
        for row, row_labels in enumerate(_labels_per_image(name, labels, batch_size)):
            for label in row_labels:
                column = _label_index(name, label, label_names)
                if direction[row, column] == -sign:
                    raise ValueError(
                        f"Label {label_names[column]!r} is named in both `towards` and `away` for the same image. "
                        "Name it in one of them."
                    )
                direction[row, column] = sign
    if not direction.any(dim=1).all():
        raise ValueError(
            "Every image needs at least one label in `towards` or `away`, but some have none. "
            f"Known labels: {', '.join(label_names)}."
        )
    if problem_type == "single_label_classification" and ((direction > 0).sum(dim=1) > 1).any():
        raise ValueError(
            "This model knows one class per image, so `towards` must name one class for each image, but it names "
            "several."
        )
    return GuidanceTarget(direction, problem_type)


def _labels_per_image(name: str, labels: Labels | Sequence[Labels] | None, batch_size: int) -> list[list[str | int]]:
    """Spread `towards` or `away` over the batch."""
    if labels is None:
        return [[] for _ in range(batch_size)]
    if isinstance(labels, (str, int, Integral)):
        return [[labels]] * batch_size
    nested = [isinstance(item, (list, tuple)) for item in labels]
    if not any(nested):
        return [list(labels)] * batch_size  # type: ignore[arg-type]
    if not all(nested) or len(labels) != batch_size:
        raise ValueError(
            f"`{name}` as a list of lists must hold one list of labels for each of the {batch_size} images, but it "
            f"holds {len(labels)} items: {labels!r}."
        )
    return [list(item) for item in labels]  # type: ignore[arg-type]


def _label_index(name: str, label: str | int, label_names: Sequence[str]) -> int:
    """Index of a label given by name or index."""
    if isinstance(label, str) and label in label_names:
        return list(label_names).index(label)
    if isinstance(label, (int, Integral)) and not isinstance(label, bool) and 0 <= label < len(label_names):
        return int(label)
    raise ValueError(
        f"`{name}` names the unknown label {label!r}. Known labels: "
        f"{', '.join(f'{known} ({index})' for index, known in enumerate(label_names))}."
    )


def guide_model_output(
    model_output: torch.Tensor,
    log_prob_grad: torch.Tensor,
    alpha_prod_t: torch.Tensor,
    guidance_scale: float | torch.Tensor,
    prediction_type: str = "epsilon",
) -> torch.Tensor:
    r"""Shift a prediction towards a target: Eq. 2 with a scale s, for every `prediction_type`.

    eps'(z_t) = eps(z_t) - s * sqrt(1 - abar_t) * grad_{z_t} log g(y | z_t)

    `z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps` carries the shift of eps over to the predicted `z_0`
    (`"sample"`) and to `v = sqrt(abar_t) eps - sqrt(1 - abar_t) z_0`.

    Args:
        model_output: prediction of the U-Net, shape `(batch, channels, height, width)`.
        log_prob_grad: gradient of the *summed* log-probability with respect to z_t, same shape.
        alpha_prod_t: abar_t in [0, 1], a scalar. At 0 (zero terminal SNR) z_t holds nothing of an image, and the
            prediction of `z_0` or v stays unguided.
        guidance_scale: s >= 0, no unit, a number or one per image; 0 is unguided (unlike classifier-free guidance,
            where 1 is).
        prediction_type: `"epsilon"`, `"sample"` or `"v_prediction"`.

    Returns:
        Guided prediction, same shape and dtype.

    Raises:
        ValueError: if the shapes differ, the scale is negative or the prediction type unknown.
    """
    if model_output.shape != log_prob_grad.shape:
        raise ValueError(
            f"`log_prob_grad` must have the shape of `model_output`, {tuple(model_output.shape)}, but got "
            f"{tuple(log_prob_grad.shape)}."
        )
    scale = torch.as_tensor(guidance_scale, dtype=model_output.dtype, device=model_output.device)
    if (scale < 0).any():
        raise ValueError(
            f"`guidance_scale` must be at least 0, but got {guidance_scale}. To lower a label's probability name it "
            "in `away`."
        )
    is_pure_noise = bool(alpha_prod_t == 0)
    alpha_prod_t = alpha_prod_t.to(model_output.device)  # not to its dtype: half precision rounds 1 - abar_t away
    shift = -scale.reshape(-1, 1, 1, 1) * (1 - alpha_prod_t).sqrt() * log_prob_grad
    if prediction_type == "epsilon":
        return model_output + shift
    if is_pure_noise:
        return model_output.clone()
    if prediction_type == "v_prediction":
        return model_output + shift / alpha_prod_t.sqrt()
    if prediction_type == "sample":
        return model_output - shift * ((1 - alpha_prod_t) / alpha_prod_t).sqrt()
    raise ValueError(f"`prediction_type` must be 'epsilon', 'sample' or 'v_prediction', but got {prediction_type!r}.")


def predict_original_sample(
    model_output: torch.Tensor, sample: torch.Tensor, alpha_prod_t: torch.Tensor, prediction_type: str = "epsilon"
) -> torch.Tensor:
    """The clean latents z_0 that a prediction implies (Eq. 12 of DDIM, "predicted x_0"); same shape."""
    alpha_prod_t = alpha_prod_t.to(sample.device)
    if prediction_type == "epsilon":
        return (sample - (1 - alpha_prod_t).sqrt() * model_output) / alpha_prod_t.sqrt()
    if prediction_type == "v_prediction":
        return alpha_prod_t.sqrt() * sample - (1 - alpha_prod_t).sqrt() * model_output
    return model_output


def predict_guided(
    unet: JointUNet2DModel,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    target: GuidanceTarget,
    guidance_scale: float | torch.Tensor,
    alpha_prod_t: torch.Tensor,
    prediction_type: str = "epsilon",
    mode: str = "zt",
) -> GuidedPrediction:
    """Predict the noise and steer it by the gradient of the model's own classifier (Eq. 2 and 7).

    The classifier is asked in one of three places:

    - `"zt"`: at z_t and its timestep, Eq. 2 as printed. One shared encoder pass gives logits, gradient and skips.
    - `"x0_detached"`: at the predicted clean latents and t = 0 with eps held constant, so that
      d z_0 / d z_t = 1 / sqrt(abar_t); the head may have been trained at t = 0 only.
    - `"x0"`: the same with the gradient through the whole U-Net, as the paper's authors do.

    Only `sample` carries a gradient; `unet` should be frozen (see `sampling_mode`). Works under
    `torch.inference_mode`.

    Args:
        unet: the joint model.
        sample: z_t, shape `(batch, channels, height, width)`.
        timestep: t, a scalar.
        target: labels to push, one row per image.
        guidance_scale: s >= 0, a number or one per image, shape `(batch,)`.
        alpha_prod_t: abar_t, a scalar.
        prediction_type: of the scheduler.
        mode: see above.

    Returns:
        Guided prediction and logits, without a graph.

    Raises:
        ValueError: for an unknown mode, and as `guide_model_output`.
    """
    if mode not in GUIDANCE_MODES:
        raise ValueError(f"`guidance_mode` must be one of {GUIDANCE_MODES}, but got {mode!r}.")
    with torch.inference_mode(False), torch.enable_grad(), hold_saved_tensors():
        # Clones, because tensors made under an outer inference mode can never carry a gradient.
        z_t, t, alpha = sample.detach().clone(), timestep.clone(), alpha_prod_t.clone()
        target = GuidanceTarget(target.direction.clone(), target.problem_type)
        if mode == "zt":
            leaf = z_t.requires_grad_()
            output = unet(leaf, t, detach_decoder=True)
            model_output, logits = output.sample, output.logits
        elif mode == "x0":
            leaf = z_t.requires_grad_()
            model_output = unet(leaf, t, return_logits=False).sample
            z_0 = predict_original_sample(model_output, leaf, alpha, prediction_type)
            logits = unet(z_0, 0, return_sample=False).logits
        else:
            with torch.no_grad():
                model_output = unet(z_t, t, return_logits=False).sample
            leaf = predict_original_sample(model_output, z_t, alpha, prediction_type).requires_grad_()
            logits = unet(leaf, 0, return_sample=False).logits
        # The sum, not the mean: images of a batch must not dilute one another.
        (gradient,) = torch.autograd.grad(target.log_prob(logits.float()).sum(), leaf)
        if mode == "x0_detached":
            gradient = gradient / alpha.to(gradient).sqrt()
    guided = guide_model_output(model_output.detach(), gradient, alpha_prod_t, guidance_scale, prediction_type)
    return GuidedPrediction(guided, logits.detach())


def hold_saved_tensors() -> saved_tensors_hooks:
    """Keep for the backward pass the weights that the forward pass used.

    Layerwise casting and group offloading exchange a parameter's data right after its forward; a graph that refers to
    the parameter would find the small or absent copy.
    """
    return saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor)


@contextmanager
def sampling_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules in evaluation mode and freeze their parameters, and restore both afterwards."""
    training = [(module, module.training) for root in modules for module in root.modules()]
    # By name: sequential offloading puts new parameters in the place of the old ones.
    frozen = [
        (module, name)
        for root in modules
        for module in root.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    ]
    try:
        for root in modules:
            root.eval()
        for module, name in frozen:
            getattr(module, name).requires_grad_(False)
        yield
    finally:
        for module, was_training in training:
            module.training = was_training
        for module, name in frozen:
            getattr(module, name).requires_grad_(True)
