"""The paper's tables and figures from own runs: printed figures as they are printed, own ones from the runs' files."""

import json

import pytest
from support.studies import QUICK, QUICK_LINE, prepare_world

from mediffusion_diffusers.atomic_files import read_json
from mediffusion_diffusers.commands import reproduce
from mediffusion_diffusers.reproduction import making
from mediffusion_diffusers.reproduction.finished_runs import OURS, WITHOUT_DIFFUSION, find_runs, nearest_share
from mediffusion_diffusers.reproduction.published import item_numbers, published_items
from mediffusion_diffusers.reproduction.sources import MissingSource, Sources


def classification(folder, auroc, name="classification.json", **provenance):
    """A results file of a classifier, with what the tables read of it."""
    origin = {"data": "chestxray14", "split": "test", "num_images_in_split": 25596, "checkpoint": f"{auroc}"}
    results = {
        "provenance": {**origin, "labelled_share_percent": 2.0, **provenance},
        "macro_auroc": auroc,
        "macro_auroc_interval": {"low": auroc - 0.01, "high": auroc + 0.01},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(results))
    return folder


def made(sources, *names):
    return [each.to_dict() for each in making.reproduce(names, Sources(**sources))[0]]


def test_every_table_and_figure_of_the_paper_has_a_maker():
    assert item_numbers("table") == list(range(1, 12)) and item_numbers("figure") == [3, 4, 5, 7, 8]
    assert {item.kind for item in published_items().values()} == set(making.MAKERS)
    assert all(item.notes and item.place.startswith(("Table", "Figure")) for item in published_items().values())


def test_printed_figures_agree_where_the_paper_prints_them_twice():
    """Diff is after minus before up to rounding; short and extended tables share their rows."""
    tables = {name: item.content for name, item in published_items().items()}
    for name in ("table-4", "table-5", "table-6", "table-7"):
        for row in tables[name]["rows"].values():
            assert row["after"] - row["before"] == pytest.approx(row["diff"], abs=0.0151)
            assert (row["diff"] < 0) == (tables[name]["direction"] == "remove")
    judged = [name for name in tables if tables[name]["kind"] == "counterfactuals"]
    before = {name: [row["before"] for row in tables[name]["rows"].values()] for name in judged}
    assert before["table-4"] == before["table-6"] and before["table-5"] == before["table-7"]
    for short, extended in (("table-1", "table-8"), ("table-2", "table-9"), ("table-3", "table-10")):
        for row in tables[short]["rows"]:
            twins = [
                each["values"]
                for each in tables[extended]["rows"]
                if each["method"] == row["method"] and each.get("pretraining") != "ImageNet"
            ]
            assert twins == [row["values"]]


def test_runs_are_grouped_by_method_share_and_seed(tmp_path):
    classification(tmp_path / "one", 0.70, seed=0)
    classification(tmp_path / "two", 0.74, seed=1)
    classification(tmp_path / "two" / "evaluation", 0.74, "classification-chestxray14-test.json", seed=1)  # the same
    classification(tmp_path / "without", 0.65, diffusion_loss_weight=0.0)
    classification(tmp_path / "dense", 0.60, labelled_share_percent=None)
    runs = [str(tmp_path / name) for name in ("one", "two", "without")] + [f"DenseNet={tmp_path / 'dense'}"]
    [table] = made({"runs": runs}, "table-3")
    methods = table["own"]["methods"]
    assert list(methods) == [WITHOUT_DIFFUSION, OURS, "DenseNet"]
    assert methods[OURS]["2"]["mean"] == pytest.approx(0.72) and methods[OURS]["2"]["sd"] == pytest.approx(
        0.0282843, abs=1e-6
    )
    assert len(methods[OURS]["2"]["runs"]) == 2 and methods["DenseNet"]["100"]["sd"] is None
    assert table["own"]["gain_of_diffusion"] == {"2": pytest.approx(0.07)}
    assert table["own"]["same_test_images"] and "as the paper's" in table["notes"][0]
    assert table["paper"]["rows"][-1]["values"]["2"] == 71.85


def test_runs_on_other_images_are_said_to_be_no_comparison(tmp_path):
    classification(tmp_path / "phantoms", 0.9, data="phantom", num_images_in_split=500)
    [table] = made({"runs": [str(tmp_path)]}, "table-1")
    assert not table["own"]["same_test_images"] and "no comparison" in table["notes"][0]
    classification(tmp_path / "chest", 0.7)
    [table] = made({"runs": [str(tmp_path)]}, "table-1")
    assert table["own"]["data"] == ["chestxray14"] and table["own"]["methods"][OURS]["2"]["mean"] == 0.7
    assert made({"runs": [str(tmp_path)]}, "table-2")[0]["own"]["same_test_images"] is False


def test_the_run_with_the_nearest_share_is_taken(tmp_path):
    for share in (5.0, 10.0, 30.0):
        classification(tmp_path / f"{share}", share / 100, labelled_share_percent=share)
    runs = find_runs([str(tmp_path)], "classification")
    found = {share: [run.share for run in nearest_share(runs, share)] for share in (2, 10, 19, None)}
    assert found == {2: [5], 10: [10], 19: [10], None: [10, 30, 5]}  # in the order of their folders


@pytest.mark.parametrize(
    ("sources", "name", "message"),
    [
        ({}, "table-1", "table-1 cannot be made: .*classification.json.*--model --dataset_dir"),
        ({"model": "m", "dataset_dir": "d"}, "table-4", "give --oracle_path to make one now"),
        ({"model": "m"}, "figure-3", "give --dataset_dir"),
        ({}, "figure-7", "give --model"),
        ({"runs": ["nowhere"]}, "table-1", "`run` must name folders"),
    ],
)
def test_what_is_missing_is_named(sources, name, message):
    with pytest.raises(ValueError, match=message):
        made(sources, name)


def test_nothing_can_be_made_of_nothing(tmp_path):
    with pytest.raises(MissingSource, match="No table or figure can be made"):
        made({})
    (tmp_path / "classification.json").write_text("{}")
    with pytest.raises(ValueError, match="must hold results with their provenance"):
        made({"runs": [str(tmp_path)]}, "table-1")


@pytest.mark.parametrize(
    ("option", "message"), [("--table=12", "`table` must be among 1, 2"), ("--figure=6", "3, 4, 5, 7, 8")]
)
def test_numbers_that_are_not_the_papers_are_refused(option, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        reproduce.main([f"--output_dir={tmp_path / 'out'}", option])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return prepare_world(tmp_path_factory.mktemp("world"), num_train=12)


def test_the_whole_set_twice_is_the_same_to_the_byte(world):
    """From a model alone: everything is measured now."""
    sizes = {"num_images_per_label": 1, "num_generated_per_label": 3, "num_inference_steps": 2, "measures": QUICK}
    given = {"model": world / "pipeline", "dataset_dir": world / "data", "oracle_path": world / "oracle"}
    first, second = (json.dumps(made({**given, **sizes})) for _ in range(2))
    assert first == second
    assert [each["item"] for each in json.loads(first)] == list(published_items())


def test_the_command_writes_json_markdown_and_a_picture(world, tmp_path, capsys):
    line = [f"--model={world / 'pipeline'}", f"--dataset_dir={world / 'data'}", f"--oracle_path={world / 'oracle'}"]
    line += ["--num_images_per_label=1", "--num_generated_per_label=3", "--num_inference_steps=2", "--device=cpu"]
    first = tmp_path / "first"
    reproduce.main([*line, *QUICK_LINE, "--table", "4", "11", "--figure", "4", "7", f"--output_dir={first}"])
    names = {path.name for path in first.iterdir() if not path.name.startswith(".")}
    items = ("table-4", "table-11", "figure-4", "figure-7")
    assert names == {f"{item}.{suffix}" for item in items for suffix in ("json", "md", "png")} | {"reproduction.md"}
    page = (first / "reproduction.md").read_text()
    assert "Not a medical device" in page and all(f"]({item}.png)" in page for item in items)
    assert (
        "| Pneumonia | – |" in page and "| 0.62 | 0.50 | -0.12 | 0.05 |" in page
    )  # printed, and not among own labels
    assert "| others' average change |" in page and "edited or real" in page  # what explains nothing stands beside
    capsys.readouterr()

    table = read_json(first / "table-11.json")
    classification(tmp_path / "runs", 0.7)
    (tmp_path / "runs" / "generation.json").write_text(json.dumps(table["own"][0]))
    reproduce.main(
        ["--table", "11", "1", f"--run={tmp_path / 'runs'}", f"--output_dir={tmp_path / 'again'}", "--json"]
    )
    again = json.loads(capsys.readouterr().out)
    assert again[0] == table and again[1]["own"]["methods"][OURS]["2"]["mean"] == 0.7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"provenance": {"checkpoint": "a", "split": "test"}}, "must name data in their provenance"),
        ({"provenance": 3}, "must name data, split, checkpoint"),
        ({"macro_auroc_interval": ...}, "there is no macro_auroc_interval"),
        ({"labelled_share_percent": "few"}, "`labelled_share_percent` must be a number .* but got 'few'"),
    ],
)
def test_results_that_no_table_can_be_made_of_are_named(tmp_path, changes, message):
    path = classification(tmp_path, 0.7) / "classification.json"
    results = json.loads(path.read_text())
    (results["provenance"] if "labelled_share_percent" in changes else results).update(changes)
    path.write_text(json.dumps({key: value for key, value in results.items() if value is not ...}))
    with pytest.raises(ValueError, match=f"classification.json' must hold results .*{message}"):
        find_runs([str(tmp_path)], "classification")


def test_a_folder_may_hold_an_equals_sign(tmp_path):
    folder = classification(tmp_path / "lr=0.1", 0.7)
    assert [run.method for run in find_runs([str(folder)], "classification")] == [OURS]
    assert [run.method for run in find_runs([f"mine={folder}"], "classification")] == ["mine"]
