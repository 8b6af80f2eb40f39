"""Nothing in the package unpickles, evaluates text, loads YAML objects or unpacks archives blindly."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.helpers import PROJECT

UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "joblib", "marshal"}
UNSAFE_CALLS = {
    *("eval", "exec", "torch.load", "os.system", "os.popen"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.unsafe_load_all"),
}
UNSAFE_METHODS = {"extractall", "unpack_archive", "read_pickle", "to_pickle", "unsafe_load"}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or an attribute; what is no name is a question mark."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def dangers(source: str) -> Iterator[str]:
    """What in a source must not be there, as `line: what`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or "", *(f"{node.module}.{name}" for name in modules)]
            for module in modules:
                if module.split(".")[0] in UNPICKLERS or module in UNSAFE_CALLS:
                    yield f"{node.lineno}: import {module}"
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            if name in UNSAFE_CALLS or name.rpartition(".")[2] in UNSAFE_METHODS:
                yield f"{node.lineno}: {name}()"
            if keywords.get("allow_pickle", False) is not False:
                yield f"{node.lineno}: allow_pickle"
            if keywords.get("weights_only", True) is not True:
                yield f"{node.lineno}: weights_only"
            if keywords.get("shell", False) is not False:
                yield f"{node.lineno}: shell"


def test_the_package_is_free_of_them():
    files = sorted((PROJECT / "facerec").rglob("*.py"))
    assert len(files) > 50
    found = {str(f): list(dangers(f.read_text(encoding="utf-8"))) for f in files}
    assert not {name: lines for name, lines in found.items() if lines}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "from torch import load",
        "import torch\ntorch.load(p)",
        "np.load(p, allow_pickle=True)",
        "np.load(p, allow_pickle=flag)",
        "eval(text)",
        "exec(text)",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
        "tarfile.open(p).extractall(folder)",
        "shutil.unpack_archive(p)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_scan_finds(source):
    assert list(dangers(source))


def test_the_scan_leaves_alone():
    assert not list(
        dangers("model.eval()\nyaml.safe_load(t)\nnp.load(p)\nsafetensors.torch.load(d)")
    )
