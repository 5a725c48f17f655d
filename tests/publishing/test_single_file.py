"""The self-contained files: up to date, whole, and of the form that diffusers takes."""

import ast
import sys
from pathlib import Path

import pytest

from mediffusion_diffusers.publishing.single_file import PIPELINES, outdated_files, single_files, write_single_files
from mediffusion_diffusers.publishing.single_file.closure import Closure
from mediffusion_diffusers.publishing.single_file.source import Module
from mediffusion_diffusers.publishing.single_file.text import file_text


ROOT = Path(__file__).parents[2]
LIBRARIES = {"torch", "numpy", "PIL", "diffusers", "transformers", "huggingface_hub", "safetensors"}


def test_the_files_are_up_to_date(tmp_path):
    assert outdated_files(ROOT / "pipelines") == [], "Run `make bundle`, and commit what it writes."
    write_single_files(tmp_path)
    assert outdated_files(tmp_path) == []
    (tmp_path / "mediffusion_guided.py").write_text("edited by hand")
    assert outdated_files(tmp_path) == ["mediffusion_guided.py"]


@pytest.mark.parametrize("name", single_files())
def test_a_file_needs_common_libraries_alone(name):
    imported = set()
    for node in ast.walk(ast.parse(single_files()[name])):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
    assert imported - set(sys.stdlib_module_names) <= LIBRARIES


@pytest.mark.parametrize("name", PIPELINES)
def test_a_file_has_one_pipeline_and_no_copy_of_the_models(name):
    classes = [node for node in ast.parse(single_files()[f"{name}.py"]).body if isinstance(node, ast.ClassDef)]
    pipelines = [
        node.name
        for node in classes
        if any(isinstance(base, ast.Name) and "Pipeline" in base.id for base in node.bases)
    ]
    assert pipelines == [PIPELINES[name][0]]
    assert not {"JointUNet2DModel", "SpaceToDepthAutoencoder"} & {node.name for node in classes}


@pytest.fixture
def inline(tmp_path):
    """The single file of the class `Root` in the module `root` of a package: its text, and what it holds when run."""

    def inline_and_run(modules, elsewhere=None, base=None):
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text)
        root = Module.at(tmp_path / "root.py").by_name["Root"]
        others = [] if elsewhere is None else [root.module.resolve(elsewhere)]
        roots = [root] if base is None else [root.module.resolve(base), root]
        text = file_text("A file.", Closure.of(roots, others), None if base is None else {root: roots[0]})
        scope = {"__name__": "single_file"}
        exec(text, scope)
        return text, scope

    return inline_and_run


def test_only_what_is_used_comes_along_in_an_order_that_works(inline):
    modules = {
        "root": "from .b import LATE\nfrom .a import twice\n\n\nclass Root:\n    value = twice(LATE)\n",
        "a": "import math\nimport json\n\n\ndef twice(x):\n    return 2 * math.ceil(x)\n\n\ndef unused():\n    json\n",
        "b": "from .a import twice\n\n\n# Why it is so.\nLATE = twice(2.5)  # of two\n",
    }
    text, scope = inline(modules)
    assert scope["Root"].value == 12
    assert "json" not in text and "unused" not in text and "# Why it is so.\nLATE = twice(2.5)  # of two" in text


def test_calls_of_a_module_come_along_with_it(inline):
    a = "from .b import KNOWN\n\n\nSIZE = 1\n# Known from now on.\nKNOWN.append(SIZE)\n"
    b = "KNOWN = []\n"
    root = "from .a import SIZE\nfrom .b import KNOWN\n\n\nclass Root:\n    value = SIZE, KNOWN\n"
    assert inline({"root": root, "a": a, "b": b})[1]["Root"].value == (1, [1])


def test_private_names_of_two_modules_stay_apart(inline):
    a = "_SIZE = 2\n_SAME = 1\n\n\ndef _size():\n    return _SIZE * _SAME\n\n\ndef a():\n    return _size()\n"
    b = a.replace("2", "3").replace("def a", "def b")
    root = "from .a import a\nfrom .b import b\n\n\nclass Root:\n    value = (a(), b())\n"
    text, scope = inline({"root": root, "a": a, "b": b})
    assert scope["Root"].value == (2, 3)
    assert "_SIZE_b = 3" in text and "def _size_b():" in text and text.count("_SAME = 1") == 1


def test_public_names_that_collide_are_refused(inline):
    a, b = "def f():\n    return 1\n", "def f():\n    return 2\n\n\ndef g():\n    return f()\n"
    root = "from .a import f\nfrom .b import g\n\n\nclass Root:\n    value = f() + g()\n"
    with pytest.raises(ValueError, match=r"`f` is defined in b\.py and in a\.py"):
        inline({"root": root, "a": a, "b": b})


def test_imports_that_collide_are_refused(inline):
    a, b = "from json import dumps as f\n\n\ndef a():\n    f\n", "from math import floor as f\n\n\ndef b():\n    f\n"
    root = "from .a import a\nfrom .b import b\n\n\nclass Root:\n    value = a, b\n"
    with pytest.raises(ValueError, match="`f` is both"):
        inline({"root": root, "a": a, "b": b})


ROOT_CLASS = '''
from .base import Base
from .model import Model


class Root(Base):
    """A root."""

    name = "root"

    def takes(self, model: Model):
        return model
'''
BASE = '''
from fractions import Fraction
from .model import Model


class Base(Fraction):
    """A base."""

    name = "base"

    def doubled(self, model: Model):
        return super().__mul__(2)

    @property
    def called(self):
        return self.name
'''
MODEL = '''
from decimal import Decimal


class Model(Decimal):
    """A model."""
'''
FAMILY = {"root": ROOT_CLASS, "base": BASE, "model": MODEL}


def test_a_base_is_merged_and_a_model_of_another_file_is_known_by_its_parent(inline):
    text, scope = inline(FAMILY, elsewhere="Model", base="Base")
    root = scope["Root"]
    assert root.__mro__[1].__name__ == "Fraction" and "class Base" not in text and "class Model" not in text
    assert root(3).doubled(None) == 6 and root(3).called == "root" and root.__doc__ == "A root."
    assert scope["Model"].__name__ == "Decimal"


def test_private_names_of_a_base_stay_its_own(inline):
    base = BASE.replace("return super().__mul__(2)", "return _two() * self") + "\n\ndef _two():\n    return 2\n"
    root = ROOT_CLASS.replace("from .model", "from .other import three\nfrom .model")
    root = root.replace("return model", "return three()")
    other = "def _two():\n    return 3\n\n\ndef three():\n    return _two()\n"
    _, scope = inline({**FAMILY, "base": base, "root": root, "other": other}, elsewhere="Model", base="Base")
    assert scope["Root"](1).doubled(None) == 2 and scope["Root"](1).takes(None) == 3


@pytest.mark.parametrize(
    ("root", "message"),
    [
        (ROOT_CLASS.replace("return model", "return isinstance(model, Model)"), "line 12: .* by its parent"),
        (ROOT_CLASS.replace("return model", "return Model.of(model)"), "by its parent"),
        (
            ROOT_CLASS.replace("def takes", "def doubled").replace("return model", "return super()"),
            "line 11: .* extends",
        ),
        (ROOT_CLASS.replace("return model", "from .base import Base"), "inside a function"),
        ("from . import model\n" + ROOT_CLASS, "whole module of the package"),
        (
            ROOT_CLASS + "\n    x = f\n\n\nif 1:\n    from math import floor as f\n",
            "line 17: .* `f` under a condition",
        ),
    ],
)
def test_what_cannot_be_one_file_is_refused_with_its_place(inline, root, message):
    with pytest.raises(ValueError, match=message):
        inline({**FAMILY, "root": root}, elsewhere="Model", base="Base")
