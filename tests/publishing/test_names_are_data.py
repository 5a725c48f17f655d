"""A label, a dataset or a file called like markup changes no page and no card but for its own words."""

import copy
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import yaml
from diffusers import AutoencoderKL
from markdown_it import MarkdownIt
from PIL import Image
from support.components import tiny_pipeline
from support.explanations import explained_phantom, sliders_alone

from mediffusion_diffusers import MediffusionCounterfactualPipeline
from mediffusion_diffusers.privacy import is_local_path
from mediffusion_diffusers.publishing.autoencoder_card import render_autoencoder_card
from mediffusion_diffusers.publishing.evaluations import Evaluation
from mediffusion_diffusers.publishing.markdown import one_line
from mediffusion_diffusers.publishing.model_card import render_model_card
from mediffusion_diffusers.reports.pages.counterfactual_study import write_study
from mediffusion_diffusers.reports.pages.demo import write_demo_report
from mediffusion_diffusers.reports.pages.explanations import write_explanation_html
from mediffusion_diffusers.reports.pages.report import HtmlReport, KeyFigure


PLAIN = "Mass"
HOSTILE = [
    *("# Mass", "## Results", "a|b", "<script>alert(1)</script>", "</style></script><img src=x onerror=alert(1)>"),
    *("```", "`Mass`", "[x](https://evil.example)", "![x](y)", "two\nlines", "a\n\n# b\n---\nlicense: mit\n", "---"),
    *(
        "- Mass",
        "1. Mass",
        "> Mass",
        "<!-- Mass",
        "&lt;b&gt;",
        "'\"",
        "' onload='x",
        "{{ 7 * 7 }}",
        "{% raw %}",
        "$x_1$",
    ),
    *("__Mass__", "**Mass**", "null", "%s {0} {name}", "Masse à l'œil 肿块"),
]


def renamed(value, old, new):
    """Results in which one label has another name."""
    if isinstance(value, dict):
        return {new if key == old else key: renamed(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [renamed(item, old, new) for item in value]
    return new if value == old else value


def with_name(evaluated, name):
    """Classification and study of a model, one label and the dataset of which are called by a name."""
    study = evaluated["study"]
    directions = {
        direction: replace(studied, results=renamed(studied.results, PLAIN, name))
        for direction, studied in study.directions.items()
    }
    label_names = [name if label == PLAIN else label for label in study.label_names]
    provenance = {**study.provenance, "data": name}
    classification = renamed(evaluated["classification"], PLAIN, name)
    classification["provenance"] |= {"data": name, "num_labelled_images": 20, "labelled_share_percent": 10.0}
    return classification, replace(
        study, directions=directions, label_names=label_names, provenance=provenance, notes=[f"{name}: a note"]
    )


def pages(evaluated, name, folder):
    """Every kind of page, with the name in all places that take one."""
    explained = explained_phantom(label=name, name=name)
    classification, study = with_name(evaluated, name)
    report = HtmlReport(name, name).add_section(name, name).add_code(name)
    report.add_key_figures([KeyFigure(name, name, name)]).add_table([name], [[name]], name)
    report.add_provenance({name: name}).add_figure(Image.new("L", (4, 4)), name, name)
    model = folder / "mediffusion-phantom"
    model.mkdir(parents=True)
    (model / "metrics.jsonl").write_text(json.dumps({"kind": "train", "step": 1, "diffusion_loss": 1.0}) + "\n")
    (folder / "oracle").mkdir()
    (folder / "oracle" / "oracle_metrics.json").write_text(json.dumps({name: 0.9, "note": name}))
    (folder / "classification.json").write_text(json.dumps(classification))
    write_study(study, folder / "counterfactuals")
    write_explanation_html([explained], folder / "page.html", name, name, {name: name})
    return {
        "report": report.render(),
        "slider": sliders_alone(explained),
        "explanations": (folder / "page.html").read_text(encoding="utf-8"),
        "study": (folder / "counterfactuals" / "report.html").read_text(encoding="utf-8"),
        "demo": write_demo_report(folder, {name: 2.0}).read_text(encoding="utf-8"),
    }


def cards(evaluated, run, name):
    """Every kind of card, likewise."""
    classification, study = with_name(evaluated, name)
    labels = study.label_names
    origin = name.replace("https://", "")  # addresses of origins are links, which say where they lead
    info = replace(
        copy.deepcopy(run["dataset_info"]),
        name=name,
        source=origin,
        licence=origin,
        attribution=origin,
        label_names=labels,
        notes=[origin],
        num_rows={name: 10, "test": 3},
        demographics={name: {"patients": 3, "sex": {name: 1}, "view": {name: 1}}},
    )
    split = replace(run["labelled_split"], positives=dict.fromkeys(labels, 1), by=name)
    auroc = {"kind": "validation", "step": 1, "macro_auroc": 0.5, "auroc": dict.fromkeys(labels, 0.5), "num_images": 3}
    note = "left out" if is_local_path(name) else name  # paths are none of a card's arguments
    config = {"arguments": {"seed": 0, "note": note, "notes": [note, note]}, "versions": {name: name}}
    pipeline = tiny_pipeline(MediffusionCounterfactualPipeline, guidance_defaults={"mask": name})
    evaluations = [Evaluation("classification", classification), Evaluation("counterfactuals", study.to_dict())]
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    quality = [{"kind": "validation", "step": 1, "l1": 0.1, "psnr": 20.0, "ssim": 0.5}]
    joint = render_model_card(
        pipeline, info, config, [auroc], split, repo_id=f"org/{name}", license="mit", evaluations=evaluations
    )
    folder = render_model_card(pipeline, info, config, [auroc], None, license="mit", evaluations=evaluations)
    autoencoder = render_autoencoder_card(vae, info, config, quality, f"org/{name}")
    return {"joint": joint, "joint in a folder": folder, "autoencoder": autoencoder}


class _Page(HTMLParser):
    """Elements with the names of their attributes, and the words between them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, [key for key, _ in attrs]))

    def handle_endtag(self, tag):
        self.elements.append(("/" + tag, []))

    def handle_comment(self, data):
        self.elements.append(("comment", []))

    def handle_data(self, data):
        self.words.append(data)


def outline(card):
    """Kinds of the elements of a card's text, and its words."""
    kinds, words = [], []
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(card.text):
        for part in [token, *(token.children or [])]:
            if part.type in ("text", "code_inline", "text_special", "fence"):
                words.append(part.content)
            if part.type not in ("text", "text_special", "code_inline"):
                kinds.append((part.type, part.tag))
    return kinds, " ".join("".join(words).split())


def test_pages(evaluated, tmp_path):
    name = " ".join(one_line(name) for name in HOSTILE)  # what HTML takes for markup does not depend on its place
    plain = pages(evaluated, PLAIN, tmp_path / "plain")
    for kind, text in pages(evaluated, name, tmp_path / "hostile").items():
        page = _Page(text)
        assert page.elements == _Page(plain[kind]).elements, kind
        assert name in "".join(page.words), kind


@pytest.mark.parametrize("name", HOSTILE)
def test_cards(evaluated, run, name):
    plain = cards(evaluated, run, PLAIN)
    for kind, card in cards(evaluated, run, name).items():
        kinds, words = outline(card)
        assert kinds == outline(plain[kind])[0], kind
        assert one_line(name) in words, kind
        metadata = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card.content, re.S)[1])
        assert list(metadata) == list(yaml.safe_load(re.match(r"---\n(.*?)\n---\n", plain[kind].content, re.S)[1]))
        assert metadata["license"] == (plain[kind].data.license if kind != "autoencoder" else "other")
        for fence in re.findall(r"```python\n(.*?)```\n", card.content, re.S):
            compile(fence, kind, "exec")
