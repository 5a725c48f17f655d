"""What every diffusers pipeline promises, for all three: after the checks of diffusers' own pipeline tester."""

import inspect
import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, DiffusionPipeline, UNet2DModel
from PIL import Image
from support.components import (
    PROBLEM_TYPES,
    TINY_UNET,
    assert_same_state,
    generators,
    random_images,
    random_pil,
    state_of,
    tiny_components,
    tiny_pipeline,
    tiny_unet,
    tiny_vae,
)

from mediffusion_diffusers import (
    JointUNet2DModel,
    MediffusionClassifyPipeline,
    MediffusionCounterfactualPipeline,
    MediffusionGuidedPipeline,
    SpaceToDepthAutoencoder,
)


# Weights in other memory are multiplied in another order.
ROUNDING = {"atol": 1e-5, "rtol": 1e-5}

CLASSES = (MediffusionClassifyPipeline, MediffusionGuidedPipeline, MediffusionCounterfactualPipeline)
BY_CLASS = pytest.mark.parametrize("cls", CLASSES, ids=[cls.__name__ for cls in CLASSES])
CALLS = {
    MediffusionClassifyPipeline: {
        "images": random_pil(2),
        "timesteps": [0, 100],
        "num_noise_samples": 2,
        "batch_size": 1,
        "output_type": "pt",
    },
    MediffusionGuidedPipeline: {
        "towards": "Mass",
        "guidance_scale": 5.0,
        "num_images": 2,
        "num_inference_steps": 3,
        "output_type": "pt",
    },
    MediffusionCounterfactualPipeline: {
        "image": random_pil(2),
        "away": "Mass",
        "guidance_scale": 5.0,
        "num_inference_steps": 3,
        "strength": 0.2,
        "output_type": "pt",
    },
}


def call(pipe, **changes):
    arguments = {**CALLS[type(pipe)], "generator": generators(0)[0], **changes}
    return pipe(**arguments)


def assert_same_output(first, second, **tolerance):
    for name in first.keys() | second.keys():
        a, b = first[name], second[name]
        if isinstance(a, (torch.Tensor, np.ndarray)):
            if tolerance:
                torch.testing.assert_close(torch.as_tensor(a).float(), torch.as_tensor(b).float(), **tolerance)
            else:
                assert np.array_equal(np.asarray(a), np.asarray(b)), name
        else:
            assert a == b, name


@pytest.fixture(scope="module", params=CLASSES, ids=[cls.__name__ for cls in CLASSES])
def pipe(request):
    return tiny_pipeline(request.param)


class TestCall:
    def test_same_generator_same_output(self, pipe):
        assert_same_output(call(pipe), call(pipe))

    def test_dict_is_tuple(self, pipe):
        output, values = call(pipe), call(pipe, return_dict=False)
        assert isinstance(values, tuple) and len(values) == len(output.keys())
        assert_same_output(output, type(output)(**dict(zip(output.keys(), values, strict=True))))

    def test_conventional_signature(self, pipe):
        names = set(inspect.signature(type(pipe).__call__).parameters)
        assert {"generator", "output_type", "return_dict", "callback_on_step_end"} <= names
        assert "callback_on_step_end_tensor_inputs" in names
        assert "Examples:" in pipe.__call__.__doc__ and "from_pretrained" in pipe.__call__.__doc__

    @pytest.mark.parametrize("training", [True, False])
    def test_components_are_left_alone(self, pipe, training):
        pipe.unet.train(training)
        before = state_of(pipe)
        call(pipe)
        with pytest.raises(ValueError):
            call(pipe, output_type="jpg")
        assert_same_state(before, state_of(pipe))
        pipe.unet.eval()

    def test_training_mode_changes_nothing(self, pipe):
        """Dropout stays off while sampling, whatever mode the trainer left the model in."""
        expected = call(pipe)
        pipe.unet.train()
        assert_same_output(call(pipe), expected)
        pipe.unet.eval()

    def test_state_is_restored_after_an_error_in_a_callback(self, pipe):
        def fail(*_):
            raise RuntimeError("stop")

        before = state_of(pipe)
        with pytest.raises(RuntimeError, match="stop"):
            call(pipe, callback_on_step_end=fail)
        assert_same_state(before, state_of(pipe))

    def test_no_graph_comes_out(self, pipe):
        with torch.enable_grad():
            output = call(pipe)
        assert not any(value.requires_grad for value in output.values() if isinstance(value, torch.Tensor))

    def test_works_under_inference_mode(self, pipe):
        expected = call(pipe)
        with torch.inference_mode():
            actual = call(pipe)
        assert_same_output(actual, expected)

    @pytest.mark.parametrize("mode", ["x0", "x0_detached"])
    @pytest.mark.parametrize("cls", CLASSES[1:], ids=["guided", "counterfactual"])
    def test_other_modes_work_under_inference_mode(self, cls, mode):
        pipe = tiny_pipeline(cls)
        with torch.inference_mode():
            actual = call(pipe, guidance_mode=mode)
        assert_same_output(actual, call(pipe, guidance_mode=mode))

    @BY_CLASS
    def test_progress_bar(self, cls, capsys):
        pipe = cls(**tiny_components())
        call(pipe)
        assert "it/s" in capsys.readouterr().err
        pipe.set_progress_bar_config(disable=True)
        call(pipe)
        assert capsys.readouterr().err == ""


class TestCallbacks:
    def test_gets_what_it_asks_for(self, pipe):
        seen = []

        def callback(pipeline, step, timestep, kwargs):
            assert pipeline is pipe and isinstance(timestep, int)
            assert set(kwargs) == set(pipe._callback_tensor_inputs)
            assert all(isinstance(value, torch.Tensor) and len(value) in (1, 2) for value in kwargs.values())
            seen.append(step)
            return kwargs

        output = call(
            pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=pipe._callback_tensor_inputs
        )
        assert seen == list(range(pipe.num_timesteps))
        assert_same_output(output, call(pipe))

    def test_can_ask_for_nothing(self, pipe):
        output = call(pipe, callback_on_step_end=lambda *_: {}, callback_on_step_end_tensor_inputs=[])
        assert_same_output(output, call(pipe))

    @pytest.mark.parametrize("cls", CLASSES[1:], ids=["guided", "counterfactual"])
    def test_changes_the_latents(self, cls):
        pipe = tiny_pipeline(cls)

        def callback(pipeline, step, timestep, kwargs):
            if step == pipeline.num_timesteps - 1:
                kwargs["latents"] = torch.zeros_like(kwargs["latents"])
            return kwargs

        output = call(pipe, callback_on_step_end=callback, output_type="latent")
        assert output.images.eq(0).all()

    def test_changes_the_logits(self):
        pipe = tiny_pipeline(MediffusionClassifyPipeline)
        output = call(pipe, callback_on_step_end=lambda *args: {"logits": torch.zeros(1, 3)})
        assert output.probabilities.eq(0.5).all()

    @pytest.mark.parametrize("cls", CLASSES[1:], ids=["guided", "counterfactual"])
    def test_interrupts(self, cls):
        pipe, steps = tiny_pipeline(cls), []

        def callback(pipeline, step, timestep, kwargs):
            steps.append(step)
            pipeline._interrupt = step == 0
            return kwargs

        interrupted = call(pipe, callback_on_step_end=callback)
        assert steps == [0] and pipe.interrupt
        whole = call(pipe)
        assert not pipe.interrupt  # forgotten by the next call
        assert not torch.equal(interrupted.images, whole.images)

    @pytest.mark.parametrize("cls", CLASSES[1:], ids=["guided", "counterfactual"])
    def test_changes_the_guidance_scale(self, cls):
        pipe = tiny_pipeline(cls)

        def callback(pipeline, step, timestep, kwargs):
            pipeline._guidance_scale += 10.0
            return kwargs

        output = call(pipe, callback_on_step_end=callback)
        assert pipe.guidance_scale == 5.0 + 10.0 * pipe.num_timesteps
        assert not torch.equal(output.images, call(pipe).images)
        assert pipe.guidance_scale == 5.0


class TestSaving:
    @BY_CLASS
    @pytest.mark.parametrize("scheduler", ["ddim", "ddpm"])
    def test_any_class_loads_what_any_class_saved(self, cls, scheduler, tmp_path):
        source = tiny_pipeline(cls, scheduler=scheduler)
        source.save_pretrained(tmp_path)
        index = json.loads((tmp_path / "model_index.json").read_text())
        assert index["unet"] == ["mediffusion_diffusers", "JointUNet2DModel"]
        assert index["vae"] == ["mediffusion_diffusers", "SpaceToDepthAutoencoder"]
        assert index["_class_name"] == cls.__name__
        for other in CLASSES:
            loaded = other.from_pretrained(tmp_path)
            loaded.set_progress_bar_config(disable=True)
            assert type(loaded.unet) is JointUNet2DModel and type(loaded.vae) is SpaceToDepthAutoencoder
            assert type(loaded.scheduler) is (DDIMScheduler if scheduler == "ddim" else DDPMScheduler)
            changes = {"start": "noise"} if other is MediffusionCounterfactualPipeline else {}
            expected = call(tiny_pipeline(other, scheduler=scheduler), **changes)
            assert_same_output(call(loaded, **changes), expected, **ROUNDING)

    def test_with_a_variational_autoencoder(self, tmp_path):
        tiny_pipeline(MediffusionGuidedPipeline, vae="kl", channels=3).save_pretrained(tmp_path)
        assert json.loads((tmp_path / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderKL"]
        loaded = MediffusionClassifyPipeline.from_pretrained(tmp_path)
        assert type(loaded.vae) is AutoencoderKL and loaded.image_processor.config.channels == 3

    def test_variant_and_dtype(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path, variant="bf16")
        loaded = type(pipe).from_pretrained(tmp_path, variant="bf16", dtype=torch.bfloat16)
        assert loaded.unet.dtype == loaded.vae.dtype == loaded.dtype == torch.bfloat16
        with pytest.raises((OSError, ValueError)):
            type(pipe).from_pretrained(tmp_path, variant="fp16")

    def test_dtype_for_each_component(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        loaded = type(pipe).from_pretrained(tmp_path, dtype={"unet": torch.bfloat16, "default": torch.float32})
        loaded.set_progress_bar_config(disable=True)
        assert loaded.unet.dtype == torch.bfloat16 and loaded.vae.dtype == torch.float32
        assert torch.isfinite(call(loaded)[0]).all()

    def test_shards(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
        loaded = type(pipe).from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        assert_same_output(call(loaded), call(pipe), **ROUNDING)

    def test_device_map(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        loaded = type(pipe).from_pretrained(tmp_path, device_map="cpu")
        loaded.set_progress_bar_config(disable=True)
        assert_same_output(call(loaded), call(pipe), **ROUNDING)

    def test_only_safetensors(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}

    def test_given_components_replace_saved_ones(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
        loaded = type(pipe).from_pretrained(tmp_path, scheduler=scheduler)
        assert loaded.scheduler is scheduler

    def test_diffusers_own_loader_needs_a_class(self, tmp_path):
        """`DiffusionPipeline` looks pipelines up in diffusers alone; should it find ours one day, tell the users."""
        tiny_pipeline(MediffusionGuidedPipeline).save_pretrained(tmp_path)
        with pytest.raises(AttributeError, match="MediffusionGuidedPipeline"):
            DiffusionPipeline.from_pretrained(tmp_path)


class TestSharing:
    def test_components(self, pipe):
        assert set(pipe.components) == {"vae", "unet", "scheduler"}
        again = type(pipe)(**pipe.components)
        again.set_progress_bar_config(disable=True)
        assert_same_output(call(again), call(pipe))

    @BY_CLASS
    def test_from_pipe_shares_the_models(self, pipe, cls):
        other = cls.from_pipe(pipe)
        other.set_progress_bar_config(disable=True)
        assert other.unet is pipe.unet and other.vae is pipe.vae
        assert_same_output(call(other), call(tiny_pipeline(cls)))


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("vae", ["space_to_depth", "kl"])
    @BY_CLASS
    def test_half_precision_stays_close(self, cls, vae, dtype):
        expected = call(tiny_pipeline(cls, vae=vae))
        pipe = tiny_pipeline(cls, vae=vae).to(dtype)
        assert pipe.dtype == pipe.unet.dtype == pipe.vae.dtype == dtype
        output = call(pipe)
        assert output[0].dtype == torch.float32  # images and scores come back in full precision
        assert torch.isfinite(output[0]).all()
        if cls is not MediffusionGuidedPipeline:  # whose noise is drawn in the model's dtype
            torch.testing.assert_close(
                output.probabilities_after if "images" in output else output.probabilities,
                expected.probabilities_after if "images" in expected else expected.probabilities,
                atol=0.1,
                rtol=0,
            )

    @pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
    def test_inversion_in_bfloat16(self, prediction_type):
        pipe = tiny_pipeline(MediffusionCounterfactualPipeline)
        pipe.scheduler.register_to_config(prediction_type=prediction_type)
        output = call(pipe.to(torch.bfloat16))
        assert torch.isfinite(output.images).all() and torch.isfinite(output.difference).all()

    @pytest.mark.parametrize("mode", ["zt", "x0_detached", "x0"])
    @pytest.mark.parametrize("cls", CLASSES[1:], ids=["guided", "counterfactual"])
    def test_gradient_checkpointing_changes_nothing(self, cls, mode):
        pipe = tiny_pipeline(cls)
        expected = call(pipe, guidance_mode=mode)
        pipe.unet.enable_gradient_checkpointing()
        assert_same_output(call(pipe, guidance_mode=mode), expected, **ROUNDING)

    @pytest.mark.parametrize("storage_dtype", [torch.bfloat16, torch.float8_e4m3fn])
    @pytest.mark.parametrize("mode", ["zt", "x0_detached", "x0"])
    def test_layerwise_casting_keeps_the_guidance(self, mode, storage_dtype):
        """The backward pass needs the weights that the forward pass used, not the small copies."""
        expected = call(tiny_pipeline(MediffusionCounterfactualPipeline), guidance_mode=mode, output_type="latent")
        pipe = tiny_pipeline(MediffusionCounterfactualPipeline)
        pipe.unet.enable_layerwise_casting(storage_dtype=storage_dtype, compute_dtype=torch.float32)
        output = call(pipe, guidance_mode=mode, output_type="latent")
        assert pipe.unet.conv_in.weight.dtype == storage_dtype
        cosine = torch.cosine_similarity(output.null_difference.flatten(), expected.null_difference.flatten(), dim=0)
        assert cosine > 0.98

    @pytest.mark.parametrize("mode", ["zt", "x0_detached", "x0"])
    @pytest.mark.parametrize("offload", ["group", "model"])
    def test_offloading_changes_nothing(self, offload, mode):
        expected = call(tiny_pipeline(MediffusionCounterfactualPipeline), guidance_mode=mode)
        pipe = tiny_pipeline(MediffusionCounterfactualPipeline)
        if offload == "group":
            cpu = torch.device("cpu")
            pipe.unet.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
        else:
            pipe.enable_model_cpu_offload(device="cpu")
        assert_same_output(call(pipe, guidance_mode=mode), expected, **ROUNDING)

    def test_compiled_unet(self):
        cls = MediffusionCounterfactualPipeline
        expected = call(tiny_pipeline(cls))
        pipe = tiny_pipeline(cls)
        components = {**pipe.components, "unet": torch.compile(pipe.unet, backend="eager")}
        pipe = cls(**components)
        pipe.set_progress_bar_config(disable=True)
        assert_same_output(call(pipe), expected, **ROUNDING)


class TestComponents:
    @BY_CLASS
    def test_plain_unet_is_refused(self, cls):
        with pytest.raises(ValueError, match=r"must be a JointUNet2DModel.*from_unet"):
            cls(**{**tiny_components(), "unet": UNet2DModel(**TINY_UNET)})

    def test_plain_unet_in_a_folder_is_refused(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        UNet2DModel(**TINY_UNET).save_pretrained(tmp_path / "unet")
        with pytest.raises(ValueError, match="no classifier head"):
            type(pipe).from_pretrained(tmp_path)

    @BY_CLASS
    def test_autoencoder_of_another_model(self, cls):
        with pytest.raises(ValueError, match="takes 4 latent channels, but `vae` makes 12"):
            cls(**{**tiny_components(), "vae": tiny_vae(channels=3)})

    def test_what_is_no_autoencoder(self):
        components = tiny_components()
        with pytest.raises(ValueError, match=r"`vae` must be an AutoencoderKL .* but got JointUNet2DModel"):
            MediffusionClassifyPipeline(**{**components, "vae": components["unet"]})

    def test_autoencoder_of_odd_channels(self):
        components = {"vae": tiny_vae(channels=2), "unet": tiny_unet(in_channels=8, out_channels=8)}
        with pytest.raises(ValueError, match="1 \\(grey\\) or 3 \\(RGB\\)"):
            MediffusionClassifyPipeline(**components, scheduler=tiny_components()["scheduler"])

    def test_scheduler_without_a_noise_schedule(self):
        from diffusers import FlowMatchEulerDiscreteScheduler

        with pytest.raises(ValueError, match=r"`scheduler` must be one of DDIMScheduler, .* but got FlowMatch"):
            MediffusionGuidedPipeline(**{**tiny_components(), "scheduler": FlowMatchEulerDiscreteScheduler()})

    @pytest.mark.parametrize("sample_size", [8, (8, 8), [8, 8], (8, 16)])
    def test_sample_size(self, sample_size):
        pipe = tiny_pipeline(MediffusionClassifyPipeline, sample_size=sample_size)
        expected = (16, 32) if sample_size == (8, 16) else (16, 16)
        assert pipe.image_size == expected and pipe(random_pil(1)).image_size == expected

    def test_sample_size_must_be_known(self):
        pipe = tiny_pipeline(MediffusionClassifyPipeline, sample_size=None)
        with pytest.raises(ValueError, match="`sample_size`"):
            pipe(random_pil(1))

    def test_offload_order(self, pipe):
        assert pipe.model_cpu_offload_seq == "vae->unet->vae"

    @pytest.mark.parametrize("vae", ["space_to_depth", "kl"])
    def test_latents_are_scaled_and_unscaled(self, vae):
        pipe = tiny_pipeline(MediffusionClassifyPipeline, vae=vae)
        pixels = torch.rand(1, 1, 16, 16) * 2 - 1
        with torch.no_grad():
            latents = pipe.encode_pixels(pixels)
            unscaled = pipe.vae.encode(pixels).latent_dist.mode()
            torch.testing.assert_close(latents, unscaled * pipe.vae.config.scaling_factor)
            torch.testing.assert_close(pipe.decode_latents(latents), pipe.vae.decode(unscaled).sample.clamp(-1, 1))

    def test_shift_factor_is_undone(self):
        pipe = tiny_pipeline(MediffusionClassifyPipeline, vae="kl")
        pixels = torch.rand(1, 1, 16, 16) * 2 - 1
        with torch.no_grad():
            expected = pipe.decode_latents(pipe.encode_pixels(pixels))
            pipe.vae.register_to_config(shift_factor=0.3)
            torch.testing.assert_close(pipe.decode_latents(pipe.encode_pixels(pixels)), expected)


IMAGE_KINDS = {
    "grey": Image.new("L", (20, 12), 100),
    "colour": Image.new("RGB", (20, 12), (10, 200, 30)),
    "alpha": Image.new("RGBA", (20, 12), (10, 200, 30, 128)),
    "palette": Image.new("RGB", (20, 12), (10, 200, 30)).quantize(4),
    "16_bit": Image.fromarray(np.full((12, 20), 30000, dtype=np.uint16)),
    "array_2d": random_images(1, 20)[0, :, :, 0],
    "array_3d": random_images(1, 20)[0],
    "array_4d": random_images(2, 20),
    "array_colour": random_images(2, 20, channels=3),
    "tensor_chw": torch.rand(3, 10, 20),
    "tensor_bchw": torch.rand(2, 1, 10, 20),
    "list_of_all_sizes": [Image.new("L", (5, 50), 9), Image.new("RGB", (200, 16), 80), random_images(1, 16)[0]],
}


@pytest.mark.parametrize("kind", IMAGE_KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_image(kind, channels):
    images = IMAGE_KINDS[kind]
    components = tiny_components(channels=channels)
    for cls in (MediffusionClassifyPipeline, MediffusionCounterfactualPipeline):
        pipe = cls(**components)
        pipe.set_progress_bar_config(disable=True)
        if cls is MediffusionClassifyPipeline:
            count = len(pipe(images).probabilities)
        else:
            output = pipe(images, away="Mass", num_inference_steps=1, guidance_scale=1.0)
            count = len(output.images)
            assert {picture.size for picture in output.images} == {(16, 16)}
        assert count == (
            len(images) if "4d" in kind or "bchw" in kind or kind in ("array_colour", "list_of_all_sizes") else 1
        )


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_pipelines_agree_on_probabilities(problem_type):
    components = tiny_components(problem_type=problem_type)
    classify, counterfactual = (
        MediffusionClassifyPipeline(**components),
        MediffusionCounterfactualPipeline(**components),
    )
    for pipe in (classify, counterfactual):
        pipe.set_progress_bar_config(disable=True)
    images = random_pil(2)
    output = counterfactual(images, away="Mass", num_inference_steps=1)
    np.testing.assert_allclose(classify(images).probabilities, output.probabilities_before, atol=1e-6)
