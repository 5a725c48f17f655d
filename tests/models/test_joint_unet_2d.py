import pytest
import torch
from diffusers import UNet2DModel
from support.components import LABELS, MULTI_LABEL, SINGLE_LABEL, TINY_UNET, tiny_unet
from torch import nn

from mediffusion_diffusers import JointUNet2DModel
from mediffusion_diffusers.models.feature_pooling import pool_maps
from mediffusion_diffusers.models.presets import PAPER_UNET


HEAD = {"num_labels": 3, "classifier_hidden_size": 16}

# Every way in which the parent's forward branches.
CONFIGURATIONS = {
    "base": {},
    "fourier": {"time_embedding_type": "fourier"},
    "learned": {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "center_input": {"center_input_sample": True},
    "no_mid_block": {"mid_block_type": None},
    "num_class_embeds": {"num_class_embeds": 5},
    "class_timestep": {"class_embed_type": "timestep"},
    "class_identity": {"class_embed_type": "identity"},
    "scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "resnet_resampling": {"downsample_type": "resnet", "upsample_type": "resnet"},
    "resnet_blocks": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    },
    "skip_blocks": {
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        # These blocks are written for RGB and derive their number of groups from the width.
        "block_out_channels": (32, 64),
        "in_channels": 3,
        "out_channels": 3,
    },
    "four_levels": {
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
    "attention_everywhere": {
        "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
        "layers_per_block": 2,
    },
    "no_attention_in_middle": {"add_attention": False},
}
TIMESTEPS = {
    "int": 7,
    "scalar": torch.tensor(7),
    "one": torch.tensor([7]),
    "per_sample": torch.tensor([7, 500]),
    "float": torch.tensor([0.5, 7.25]),
}


def make_pair(overrides):
    """A parent model and the joint model with its weights."""
    torch.manual_seed(0)
    parent = UNet2DModel(**{**TINY_UNET, **overrides}).eval()
    return parent, JointUNet2DModel.from_unet(parent, **HEAD).eval()


def make_inputs(model, batch_size=2):
    torch.manual_seed(1)
    sample = torch.randn(batch_size, model.config.in_channels, 8, 8)
    if model.config.num_class_embeds:
        return sample, torch.tensor([1, 3])[:batch_size]
    if model.config.class_embed_type == "timestep":
        return sample, torch.tensor([1.0, 3.0])[:batch_size]
    if model.config.class_embed_type == "identity":
        return sample, torch.randn(batch_size, 32)
    return sample, None


@pytest.mark.parametrize("timestep", TIMESTEPS.values(), ids=TIMESTEPS)
@pytest.mark.parametrize("overrides", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_sample_is_the_parents(overrides, timestep):
    parent, joint = make_pair(overrides)
    sample, class_labels = make_inputs(parent)
    if overrides.get("time_embedding_type") == "learned" and torch.is_tensor(timestep):
        timestep = timestep.long()  # an embedding table

    with torch.no_grad():
        expected = parent(sample, timestep, class_labels).sample
        assert torch.equal(joint(sample, timestep, class_labels).sample, expected)
        assert torch.equal(joint.decode(joint.encode(sample, timestep, class_labels)), expected)
    assert torch.isfinite(expected).all()


@pytest.mark.parametrize("overrides", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_gradients_are_the_parents(overrides):
    parent, joint = make_pair(overrides)
    sample, class_labels = make_inputs(parent)
    gradients = []
    for model in (parent, joint):
        leaf = sample.clone().requires_grad_()
        model(leaf, 7, class_labels).sample.square().sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
    named = dict(joint.named_parameters())
    for name, parameter in parent.named_parameters():
        assert (parameter.grad is None) == (named[name].grad is None), name
        assert parameter.grad is None or torch.equal(parameter.grad, named[name].grad), name
    assert all(parameter.grad is None for parameter in joint.classifier.parameters())


@pytest.mark.parametrize("overrides", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
@pytest.mark.parametrize("pool_size", [1, 2])
def test_logits_are_the_head_on_pooled_features(overrides, pool_size):
    torch.manual_seed(0)
    joint = JointUNet2DModel(**{**TINY_UNET, **overrides}, **HEAD, classifier_pool_size=pool_size).eval()
    sample, class_labels = make_inputs(joint)
    with torch.no_grad():
        encoded = joint.encode(sample, 7, class_labels)
        features = joint.pool_features(encoded)
        logits = joint(sample, 7, class_labels).logits
    assert features.shape == (2, joint.num_classifier_features)
    assert logits.shape == (2, 3)
    assert torch.equal(logits, joint.classifier(features))
    # The first maps in the vector are those of `conv_in`; pooled to a grid, their mean is the global average.
    width = joint.config.block_out_channels[0]
    first = features[:, : width * pool_size**2].reshape(2, width, -1).mean(-1)
    torch.testing.assert_close(first, encoded.skips[0].mean(dim=(2, 3)))


def test_the_standard_deviation_of_each_map_follows_the_means():
    joint = tiny_unet(classifier_pool_size=2, classifier_pool_type="avg_std").eval()
    sample, class_labels = make_inputs(joint)
    with torch.no_grad():
        encoded = joint.encode(sample, 7, class_labels)
        features = joint.pool_features(encoded)
    maps = [*encoded.skips, encoded.sample]
    deviations = torch.cat([each.flatten(2).std(dim=2, correction=0) for each in maps], dim=1)
    assert features.shape[1] == joint.num_classifier_features == 5 * deviations.shape[1]
    torch.testing.assert_close(features[:, 4 * deviations.shape[1] :], deviations, atol=1e-3, rtol=0)


def test_a_map_without_contrast_has_a_finite_gradient():
    flat = torch.ones(1, 2, 4, 4, requires_grad=True)
    pool_maps([flat], 1, "avg_std").sum().backward()
    assert bool(flat.grad.isfinite().all())


def test_paper_shape():
    with torch.device("meta"):
        model = JointUNet2DModel(**PAPER_UNET, num_labels=14)
    head = sum(parameter.numel() for parameter in model.classifier.parameters())
    assert model.num_parameters() - head == 257_733_124
    assert model.num_classifier_features == 5632
    assert head == 5632 * 1024 + 1024 + 1024 * 14 + 14


def test_head_architecture():
    head = tiny_unet(classifier_dropout=0.3).classifier
    assert [type(layer) for layer in head] == [nn.Dropout, nn.Linear, nn.LeakyReLU, nn.Dropout, nn.Linear]
    assert (head[0].p, head[3].p, head[2].negative_slope) == (0.3, 0.3, 0.2)
    assert {name.split(".")[0] for name, _ in tiny_unet().named_parameters()} - set(
        dict(UNet2DModel(**TINY_UNET).named_children())
    ) == {"classifier"}


def test_dropout_only_in_training():
    model = tiny_unet(classifier_dropout=0.5)
    sample, _ = make_inputs(model)
    assert torch.equal(model(sample, 1).logits, model(sample, 1).logits)
    model.train()
    assert not torch.equal(model(sample, 1).logits, model(sample, 1).logits)


def test_outputs_follow_the_flags():
    model = tiny_unet()
    sample, _ = make_inputs(model)
    both = model(sample, 3)
    assert list(both.keys()) == ["sample", "logits"]
    only_sample = model(sample, 3, return_logits=False)
    only_logits = model(sample, 3, return_sample=False)
    assert list(only_sample.keys()) == ["sample"] and list(only_logits.keys()) == ["logits"]
    assert torch.equal(only_sample.sample, both.sample) and torch.equal(only_logits.logits, both.logits)
    assert all(torch.equal(a, b) for a, b in zip(model(sample, 3, return_dict=False), both.to_tuple(), strict=True))
    (logits,) = model(sample, 3, return_sample=False, return_dict=False)
    assert torch.equal(logits, both.logits)
    with pytest.raises(ValueError, match="return_sample"):
        model(sample, 3, return_sample=False, return_logits=False)


def test_detached_decoder_changes_no_value_and_no_gradient_of_the_logits():
    model = tiny_unet()
    sample, _ = make_inputs(model)
    gradients = []
    for detach_decoder in (False, True):
        leaf = sample.clone().requires_grad_()
        output = model(leaf, 3, detach_decoder=detach_decoder)
        assert output.sample.requires_grad is not detach_decoder
        gradients.append((output.sample.detach(), *torch.autograd.grad(output.logits.sum(), leaf)))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])


def test_conditioning_mistakes():
    plain, conditioned = tiny_unet(), tiny_unet(num_class_embeds=4)
    sample, labels = make_inputs(conditioned)
    with pytest.raises(ValueError, match="pipelines, not of the U-Net"):
        plain(sample, 1, labels)
    with pytest.raises(ValueError, match="`class_labels` must be given"):
        conditioned(sample, 1)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(use_reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_unet(dropout=0.0, classifier_dropout=0.0).train()
        if checkpointing:
            if use_reentrant:
                model.enable_gradient_checkpointing()
            else:
                model.enable_gradient_checkpointing(
                    lambda function, *inputs: torch.utils.checkpoint.checkpoint(function, *inputs, use_reentrant=False)
                )
            assert model.is_gradient_checkpointing
        sample, _ = make_inputs(model)
        output = model(sample.requires_grad_(), 5)
        (output.sample.square().mean() + output.logits.square().mean()).backward()
        gradients.append([output.sample, output.logits, sample.grad, *(p.grad for p in model.parameters())])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_compiles_as_one_graph():
    torch._dynamo.reset()
    model = tiny_unet()
    sample, _ = make_inputs(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected, actual = model(sample, torch.tensor([5, 6])), compiled(sample, torch.tensor([5, 6]))
    torch.testing.assert_close(actual.sample, expected.sample)
    torch.testing.assert_close(actual.logits, expected.logits)


class TestFromUNet:
    def test_keeps_weights_dtype_and_gives_a_finite_head(self):
        parent = UNet2DModel(**TINY_UNET).to(torch.float64)
        joint = JointUNet2DModel.from_unet(parent, id2label={0: "a", 1: "b"}, problem_type=SINGLE_LABEL)
        assert joint.dtype == torch.float64
        assert joint.config.problem_type == SINGLE_LABEL and joint.label_names == ["a", "b"]
        own = joint.state_dict()
        assert all(torch.equal(value, own[name]) for name, value in parent.state_dict().items())
        assert all(torch.isfinite(value).all() for value in own.values())

    def test_of_a_joint_model_copies_its_head(self):
        joint = tiny_unet(label_thresholds=[0.2, 0.3, 0.4])
        copy = JointUNet2DModel.from_unet(joint)
        assert copy.label_names == list(LABELS) and copy.config.label_thresholds == [0.2, 0.3, 0.4]
        assert all(torch.equal(a, b) for a, b in zip(joint.parameters(), copy.parameters(), strict=True))

    def test_new_labels_void_the_old_ones(self):
        joint = tiny_unet(label_thresholds=[0.2, 0.3, 0.4])
        other = JointUNet2DModel.from_unet(joint, num_labels=5)
        assert other.label_names == [f"LABEL_{index}" for index in range(5)]
        assert other.config.label_thresholds is None
        assert torch.equal(other.conv_in.weight, joint.conv_in.weight)

    def test_head_is_copied_whole_or_not_at_all(self):
        joint = tiny_unet()
        other = JointUNet2DModel.from_unet(joint, num_labels=5)
        assert not torch.equal(other.classifier[1].weight, joint.classifier[1].weight)

    def test_refuses_another_unet_shape(self):
        with pytest.raises(ValueError, match=r"conv_in\.weight.*in_channels"):
            JointUNet2DModel.from_unet(UNet2DModel(**TINY_UNET), num_labels=3, in_channels=8)


class TestLabels:
    def test_names_survive_saving(self, tmp_path):
        model = tiny_unet(id2label={1: "b", 0: "a"}, label2id={"a": 0, "b": 1}, label_thresholds=[0.25, 0.5])
        model.save_pretrained(tmp_path)
        loaded = JointUNet2DModel.from_pretrained(tmp_path)
        for each in (model, loaded):
            assert each.id2label == {0: "a", 1: "b"} and each.label_names == ["a", "b"]
            assert each.config.label2id == {"a": 0, "b": 1}
            assert each.config.num_labels == 2 and each.config.label_thresholds == [0.25, 0.5]

    def test_defaults_and_label2id_alone(self):
        assert tiny_unet(id2label=None, num_labels=2).label_names == ["LABEL_0", "LABEL_1"]
        assert tiny_unet(id2label=None, label2id={"b": 1, "a": 0}).label_names == ["a", "b"]

    @pytest.mark.parametrize(
        "overrides, message",
        [
            ({"problem_type": "regression"}, "problem_type"),
            ({"id2label": {0: "a", 2: "b"}}, "every index from 0 to 1"),
            ({"id2label": {0: "a", 1: "a"}}, "distinct names"),
            ({"id2label": None, "num_labels": 0}, r"whole number in \[1, 100000\]"),
            ({"id2label": {0: "a"}, "problem_type": SINGLE_LABEL}, "at least 2"),
            ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 1, "b": 0}}, "inverse"),
            ({"label_thresholds": [0.5]}, "3 numbers"),
            ({"label_thresholds": [0.5, 0.5, 1.0]}, r"\(0, 1\)"),
            ({"classifier_pool_type": "max"}, "classifier_pool_type.*'avg', 'avg_std'"),
            ({"classifier_pool_size": 4, "max_classifier_features": 600}, "max_classifier_features=600"),
        ],
    )
    def test_contradictions(self, overrides, message):
        with pytest.raises(ValueError, match=message):
            tiny_unet(**overrides)

    def test_problem_types(self):
        assert {tiny_unet(problem_type=kind).config.problem_type for kind in (MULTI_LABEL, SINGLE_LABEL)} == {
            MULTI_LABEL,
            SINGLE_LABEL,
        }
