"""A run as a schedule of stages."""

import pytest
import torch
from support.training import TINY_JOINT, joint_config

from mediffusion_diffusers.training.joint.batches import draw_timesteps
from mediffusion_diffusers.training.joint.config import DiffusionOptions
from mediffusion_diffusers.training.joint.dry_run import describe_joint_run
from mediffusion_diffusers.training.joint.stages import joint_stages
from mediffusion_diffusers.training.presets import JOINT_PRESETS
from mediffusion_diffusers.training.run.learning_rate import LR_SCHEDULERS, lr_factor
from mediffusion_diffusers.training.stages import stage_at


ALL = (
    *("--max_train_steps", 100, "--classifier_start_step", 40, "--consolidation_start_step", 60),
    *("--decoder_start_step", 90, "--learning_rate", 1e-3),
)


def stages(*arguments):
    return joint_stages(joint_config(*arguments))


def bounds(*arguments):
    return [(stage.name, stage.first_step, stage.end_step) for stage in stages(*arguments)]


@pytest.mark.parametrize("preset", JOINT_PRESETS)
def test_the_stages_of_a_preset_follow_each_other_without_gaps(preset):
    found = joint_stages(JOINT_PRESETS[preset])
    ends = [0, *(stage.end_step for stage in found)]
    assert [stage.first_step for stage in found] == ends[:-1]
    assert ends[-1] == JOINT_PRESETS[preset].run.max_train_steps
    for step in (0, ends[-1] // 2, ends[-1] - 1):
        assert step in stage_at(found, step)


def test_the_papers_presets_know_two_stages():
    """As printed: diffusion, then both losses, on one schedule and one average."""
    diffusion, joint = joint_stages(JOINT_PRESETS["chestxray14-2pct"])
    assert (diffusion.name, joint.name, joint.first_step) == ("diffusion", "joint", 5000)
    assert diffusion.lr_schedule == joint.lr_schedule and not joint.restarts_average and not joint.begins_averaged
    (alone,) = joint_stages(JOINT_PRESETS["chestxray14-2pct-no-diffusion"])
    assert alone.name == "classification"


@pytest.mark.parametrize(
    ("preset", "names"),
    [
        ("pneumoniamnist-small", ["diffusion", "joint", "consolidation"]),
        ("isic2019-small", ["diffusion", "classification", "consolidation", "decoder"]),
        ("chestxray14-small", ["diffusion", "joint", "consolidation"]),
        ("phantom", ["diffusion", "joint", "consolidation"]),
    ],
)
def test_the_small_presets_consolidate_what_few_labels_taught(preset, names):
    facts = describe_joint_run(joint_config("--preset", preset, "--dry_run"))
    assert [stage["name"] for stage in facts["stages"]] == names
    assert facts["arguments"]["prediction_type"] == "sample" and facts["num_classifier_features"] <= 10_000


def test_what_each_stage_learns_from():
    found = {stage.name: stage for stage in stages(*ALL)}
    assert list(found) == ["diffusion", "joint", "consolidation", "decoder"]
    assert [stage.first_step for stage in found.values()] == [0, 40, 60, 90]
    assert [stage.is_labelled for stage in found.values()] == [False, True, False, False]
    assert [stage.is_consolidating for stage in found.values()] == [False, False, True, False]
    assert [stage.trains_encoder for stage in found.values()] == [True, True, True, False]
    assert all(stage.diffusion_loss_weight == 1 for stage in found.values())
    with_class_stage = stages(*ALL, "--joint_diffusion_loss_weight", 0)
    assert [stage.name for stage in with_class_stage][1] == "classification"
    assert [stage.diffusion_loss_weight for stage in with_class_stage] == [1, 0, 1, 1]


def test_stages_that_are_not_asked_for_are_not_there():
    assert bounds("--max_train_steps", 9) == [("joint", 0, 9)]
    assert bounds("--max_train_steps", 9, "--classifier_loss_weight", 0) == [("diffusion", 0, 9)]
    assert bounds("--max_train_steps", 9, "--classifier_start_step", 20) == [("diffusion", 0, 9)]
    assert bounds("--max_train_steps", 9, "--consolidation_start_step", 20) == [("joint", 0, 9)]
    assert bounds("--max_train_steps", 9, "--decoder_start_step", 4) == [("joint", 0, 4), ("decoder", 4, 9)]


@pytest.mark.parametrize("name", LR_SCHEDULERS)
def test_a_restarted_schedule_is_two_runs(name):
    line = ("--max_train_steps", 30, "--classifier_start_step", 10, "--lr_scheduler", name, "--lr_warmup_steps", 3)
    restarted, whole = stages(*line, "--lr_restart_at_classifier_start"), stages(*line)
    factors = [stage_at(restarted, step).lr_schedule.factor(step) for step in range(30)]
    assert factors[:10] == [lr_factor(step, name, 3, 10) for step in range(10)]
    assert factors[10:] == [lr_factor(step, name, 3, 20) for step in range(20)]
    factors = [stage_at(whole, step).lr_schedule.factor(step) for step in range(30)]
    assert factors == [lr_factor(step, name, 3, 30) for step in range(30)]


def test_the_last_stages_warm_up_and_fall_by_themselves():
    found = stages(*ALL, "--consolidation_learning_rate", 2e-3, "--consolidation_warmup_steps", 5)
    for stage in found[2:]:
        factors = [stage.lr_schedule.factor(step) for step in range(stage.first_step, stage.end_step)]
        assert factors[0] == 0 and max(factors) == factors[5] == 2 and factors[-1] < 0.2


def test_a_dry_run_lists_them():
    line = (*ALL, "--resolution", 16, "--vae", "space_to_depth", "--block_out_channels", 8, 16)
    line = (*line, "--down_block_types", "DownBlock2D", "AttnDownBlock2D", "--norm_num_groups", 4)
    facts = describe_joint_run(joint_config(*line, "--labelled_batch_size", 3, "--dry_run"))
    assert [(stage["name"], stage["num_steps"]) for stage in facts["stages"]] == [
        *(("diffusion", 40), ("joint", 20), ("consolidation", 30), ("decoder", 10))
    ]
    assert [stage["images_per_step"] for stage in facts["stages"]] == [
        {"diffusion": 16},
        {"diffusion": 16, "labelled": 3},
        {"diffusion": 16, "answered": 24},
        {"diffusion": 16},
    ]
    assert facts["stages"][-1]["trains"] == "the decoder" and facts["num_classification_steps"] == 20


def test_a_class_stage_of_its_own_begins_from_the_average_with_its_own_schedule():
    line = (*ALL, "--lr_restart_at_classifier_start", "--classifier_lr_scheduler", "cosine")
    diffusion, joint, consolidation, decoder = stages(*line)
    assert [stage.begins_averaged for stage in (diffusion, joint, consolidation, decoder)] == [False, True, True, True]
    assert [stage.holds_statistics for stage in (diffusion, joint, consolidation, decoder)] == [False] * 2 + [True] * 2
    assert (diffusion.lr_schedule.name, joint.lr_schedule.name) == ("constant_with_warmup", "cosine")
    assert not stages(*ALL)[1].begins_averaged


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--classifier_lr_scheduler", "cosine"), "lr_restart_at_classifier_start"),
        (("--cache_latents", "--classifier_color_jitter", 0.1), "cache_latents"),
        (("--decoder_start_step", 4, "--diffusion_loss_weight", 0), "diffusion_loss_weight"),
        (("--consolidation_start_step", 4, "--classifier_loss_weight", 0), "classifier_loss_weight"),
    ],
)
def test_options_that_do_not_go_together_are_refused(phantoms, tmp_path, arguments, named):
    line = (*TINY_JOINT, "--dataset_dir", phantoms, "--output_dir", tmp_path, *arguments)
    with pytest.raises(ValueError, match=named):
        joint_config(*line).check()


def test_stratified_timesteps_come_one_from_each_part():
    options = DiffusionOptions(stratified_timesteps=True, num_train_timesteps=1000)
    timesteps = draw_timesteps(20, options, torch.Generator().manual_seed(0))
    assert (timesteps.sort().values // 50).tolist() == list(range(20))
    assert timesteps.tolist() != timesteps.sort().values.tolist()
