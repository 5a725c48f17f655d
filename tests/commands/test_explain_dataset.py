import pytest

from mediffusion_diffusers.commands.explain_dataset import COMMAND, job_of
from mediffusion_diffusers.commands.job_array import job_array_place


LINE = ("--pretrained_model_name_or_path", "org/model", "--dataset", "org/data", "--output_dir", "out")


def test_a_command_line_becomes_a_job():
    line = (
        *LINE,
        "--away",
        "Mass",
        "Effusion",
        "--strength",
        "0.3",
        "--no-controls",
        "--rows",
        "labelled",
        "--batch_size",
        "4",
    )
    job = job_of(*COMMAND.parser.parse(line)[:2], {})
    assert job.request.away == ("Mass", "Effusion") and job.request.towards == ()
    expected = {"away": ["Mass", "Effusion"], "strength": 0.3, "controls": False}
    assert job.request.pipeline_arguments() == expected
    assert job.request.rows == "labelled" and job.batch_size == 4 and (job.num_tasks, job.task_index) == (1, 0)
    assert job.model == "org/model"


def test_controls_are_made_unless_they_are_left_out():
    made, left_out = (
        job_of(*COMMAND.parser.parse((*LINE, "--away", "Mass", *extra))[:2], {}) for extra in ((), ("--no-controls",))
    )
    assert made.request.controls and not left_out.request.controls


def test_the_manifest_never_names_a_local_path(tmp_path):
    line = (*LINE[2:], "--pretrained_model_name_or_path", str(tmp_path), "--away", "Mass")
    assert job_of(*COMMAND.parser.parse(line)[:2], {}).model is None


@pytest.mark.parametrize(
    "task, count, first, step, expected",
    [("0", "4", "0", "1", (4, 0)), ("7", "3", "5", "1", (3, 2)), ("9", "3", "1", "4", (3, 2))],
)
def test_the_place_in_a_job_array(task, count, first, step, expected):
    names = ("ID", "COUNT", "MIN", "STEP")
    slurm = {f"SLURM_ARRAY_TASK_{name}": value for name, value in zip(names, (task, count, first, step), strict=True)}
    assert job_array_place(None, None, slurm) == expected
    assert job_array_place(8, 3, slurm) == (8, 3)


def test_places_that_cannot_be():
    assert job_array_place(None, None, {}) == (1, 0)
    with pytest.raises(ValueError, match="belong together"):
        job_array_place(4, None, {})
    slurm = {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"}
    with pytest.raises(ValueError, match="not evenly spaced"):
        job_array_place(None, None, slurm)
    with pytest.raises(ValueError, match="`SLURM_ARRAY_TASK_COUNT` must be a whole number, but is 'many'"):
        job_array_place(None, None, {**slurm, "SLURM_ARRAY_TASK_COUNT": "many"})


def test_classifying_alone():
    line = (*LINE, "--no_counterfactuals", "--timesteps", "0", "100", "--num_noise_samples", "2", "--no-embeddings")
    request = job_of(*COMMAND.parser.parse(line)[:2], {}).request
    assert (request.timesteps, request.num_noise_samples, request.embeddings) == ((0, 100), 2, False)
    with pytest.raises(ValueError, match=r"`away` is about counterfactuals, but `--no-counterfactuals` was given"):
        job_of(*COMMAND.parser.parse((*line, "--away", "Mass"))[:2], {})
    with pytest.raises(ValueError, match=r"`strength` is about counterfactuals"):
        job_of(*COMMAND.parser.parse((*line, "--strength", "0.2"))[:2], {})
