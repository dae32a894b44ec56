"""What belongs to an operation is there: each entry of the registry, and nothing beside it.

`missing` names what an operation lacks and in which file. CONTRIBUTING.md lists these files: what
a new norm costs.
"""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import operations as drivers
import pytest

import cnorm
from cnorm import _operations, _reference, functional, modules
from cnorm._operations import OPERATIONS

ROOT = Path(__file__).parents[1]
if not (ROOT / "docs").is_dir():
    pytest.skip("needs the source tree", allow_module_level=True)


def text(path):
    file = ROOT / path
    return file.read_text(encoding="utf-8") if file.exists() else ""


def names(word, path):
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text(path)) is not None


def benchmarked():
    """(operation, direction) of every case of the comparison."""
    code = (
        "import sys; sys.path.insert(0, 'bench'); import cases\n"
        "print(*{(c.op + ' ' + c.direction) for c in cases.grid()}, sep=chr(10))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {tuple(line.split()) for line in done.stdout.splitlines()}


BENCHMARKED = benchmarked()


class Recorder:
    """`cnorm.functional`, which keeps the names of the functions it was asked for."""

    def __init__(self):
        self.asked = set()

    def __getattr__(self, name):
        self.asked.add(name)
        return getattr(functional, name)


# ---- what each file should have of an operation: a list of what it lacks ----


def lacks_function(op):
    for name in op.functions:
        function = getattr(functional, name, None)
        if function is None:
            yield f"the function {name}"
        elif name not in functional.__all__:
            yield f"{name} in __all__"
        elif not (function.__doc__ or "").strip():
            yield f"a docstring of {name}"


def lacks_stub(op):
    for name in op.functions:
        if not re.search(rf"^def {name}\(", text("cnorm/functional.pyi"), re.MULTILINE):
            yield f"a stub of {name}"


def lacks_reference(op):
    for name in op.functions:
        twin = getattr(_reference, name, None)
        function = getattr(functional, name, None)
        if twin is None:
            yield f"the reference of {name}"
        elif function is not None:
            has = inspect.signature(twin).parameters.values()
            passes_on = any(p.kind is p.VAR_KEYWORD for p in has)  # to a reference it calls
            wanted = inspect.signature(function).parameters.values()
            wanted = {p.name for p in wanted if not (passes_on and p.kind is p.KEYWORD_ONLY)}
            lost = wanted - {p.name for p in has} - {"residual_out"}
            if lost:
                yield f"the parameters {sorted(lost)} of {name}"


def lacks_case(op):
    recorder = Recorder()
    for name, case in op.cases:
        try:
            case(recorder, _operations.Inputs((3, 6, 4, 5), 1, np.dtype(np.float32)))
        except AttributeError as error:
            yield f"a case {name} that runs: {error}"
    for name in set(op.functions) - recorder.asked:
        yield f"a case that calls {name}"


def lacks_driver(op):
    lists = drivers.OPERATIONS if op.differentiable else drivers.STATISTICS
    if op.name not in {driver.function for driver in lists}:
        yield f"a class that draws arguments of {op.name} and calls it, in OPERATIONS"


def lacks_digests(op):
    prefix = f'"{op.name}'
    if prefix not in text("tests/digests.json"):
        yield f"digests of {op.name}: python tests/digests.py --write"


def lacks_benchmark(op):
    for direction in ("forward", "backward"):
        if (op.name, direction) not in BENCHMARKED and not op.no_benchmark:
            yield f"a case of {op.name} {direction}, or a reason in no_benchmark"


def lacks_layers(op):
    for layer in op.layers:
        if layer not in modules.__all__:
            yield f"{layer} in __all__"


def lacks_export(op):
    for layer in op.layers:
        if layer not in cnorm.__all__:
            yield f"{layer} in __all__"


def lacks_layer_stub(op):
    for layer in op.layers:
        if not re.search(rf"^class {layer}\b", text("cnorm/__init__.pyi"), re.MULTILINE):
            yield f"a stub of {layer}"


def lacks_interop(op):
    from cnorm.interop import _norms

    if op.interop is not None and not hasattr(_norms, op.interop):
        yield f"the class {op.interop}"


def lacks_page(op):
    if not any(names(word, op.document) for word in (op.name, *op.layers)):
        yield f"the page {op.document}, which names {op.name} or its layers"


def lacks_index(op):
    entry = op.document.removeprefix("docs/").removesuffix(".md")
    if f"\n{entry}\n" not in text("docs/index.md"):
        yield entry


def lacks_api(op):
    for word in (*op.functions, *op.layers):
        if not names(word, "docs/api.md"):
            yield word


def lacks_readme(op):
    for path in ("README.md", "README.zh.md"):
        for word in op.layers or (op.name,):
            shown = re.sub(r"[23]d$", "1d", word)  # the table has: BatchNorm1d, 2d, 3d
            if not shown.startswith("Lazy") and not any(names(w, path) for w in (shown, word)):
                yield f"{word} in {path}"


PLACES = {
    "cnorm/functional.pyx": lacks_function,
    "cnorm/functional.pyi": lacks_stub,
    "cnorm/_reference/": lacks_reference,
    "cnorm/_operations.py": lacks_case,
    "cnorm/modules/__init__.py": lacks_layers,
    "cnorm/__init__.py": lacks_export,
    "cnorm/__init__.pyi": lacks_layer_stub,
    "cnorm/interop/_norms.py": lacks_interop,
    "tests/operations.py": lacks_driver,
    "tests/digests.json": lacks_digests,
    "bench/cases.py": lacks_benchmark,
    "docs/norms/": lacks_page,
    "docs/index.md": lacks_index,
    "docs/api.md": lacks_api,
    "README.md": lacks_readme,
}


def missing(op):
    """`file: what`, for everything that the operation lacks."""
    return [f"{path}: {what}" for path, lacks in PLACES.items() for what in lacks(op)]


@pytest.mark.parametrize("op", OPERATIONS, ids=lambda op: op.name)
def test_nothing_is_missing(op):
    lost = missing(op)
    assert not lost, f"{op.name} lacks\n" + "\n".join(lost)


def test_what_is_missing_is_named():
    """An operation that is in the registry and nowhere else lacks something in every place."""
    fake = _operations.Operation(
        "unheard_norm",
        "rows",
        (("unheard_norm", lambda F, i: F.unheard_norm(i.x)),),
        page="unheard",
        layers=("UnheardNorm",),
        interop="UnheardNorm",
    )
    lost = missing(fake)
    assert {line.partition(": ")[0] for line in lost} == set(PLACES)
    for name in ("unheard_norm", "unheard_norm_backward"):
        assert f"cnorm/functional.pyx: the function {name}" in lost
        assert f"cnorm/functional.pyi: a stub of {name}" in lost


def test_the_registry_has_every_function():
    registered = {name for op in OPERATIONS for name in op.functions}
    assert registered == set(functional.__all__)
    assert len({op.name for op in OPERATIONS}) == len(OPERATIONS)


def test_the_registry_has_every_layer():
    registered = {layer for op in OPERATIONS for layer in op.layers}
    norms = {name for name in modules.__all__ if re.search(r"Norm|LRN", name)}
    assert registered == norms


def test_the_registry_has_every_page():
    pages = {path.stem for path in (ROOT / "docs/norms").glob("*.md")}
    assert {op.page for op in OPERATIONS if op.differentiable} == pages - {"sync"}


def test_the_cases_have_names_of_their_own():
    names = [name for op in OPERATIONS for name, _ in op.cases]
    assert len(set(names)) == len(names)
    assert {op.family for op in OPERATIONS} == {"rows", "channels", "window", "statistics", "image"}


def test_importing_cnorm_does_not_import_the_registry():
    code = "import sys, cnorm; sys.exit('cnorm._operations' in sys.modules)"
    package = str(Path(cnorm.__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], cwd=package, check=True)


def test_contributing_lists_what_a_new_norm_costs():
    """Every place that `missing` looks at is in the table of CONTRIBUTING.md; each exists."""
    section = text("CONTRIBUTING.md").partition("## A new norm\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)
    assert set(PLACES) <= set(listed)
    assert not [path for path in listed if not (ROOT / path).exists()]
