"""What every diffusers pipeline promises of its components: saved, loaded, shared, cast and exchanged."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, DiffusionPipeline, UNet2DModel
from support.components import (
    TINY_UNET,
    random_pil,
    tiny_components,
    tiny_pipeline,
    tiny_unet,
    tiny_vae,
)
from support.conventions import BY_CLASS, CLASSES, ROUNDING, assert_same_output, call

from mediffusion_diffusers import (
    JointUNet2DModel,
    MediffusionClassifyPipeline,
    MediffusionCounterfactualPipeline,
    MediffusionGuidedPipeline,
    SpaceToDepthAutoencoder,
)


@pytest.fixture(scope="module", params=CLASSES, ids=[cls.__name__ for cls in CLASSES])
def pipe(request):
    return tiny_pipeline(request.param)


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
