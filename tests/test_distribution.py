"""What is installed is `cnorm-layers`; on the public index `cnorm` is another project."""

import re
import tomllib
from pathlib import Path

import pytest

import cnorm
from cnorm._version import DISTRIBUTION, install

ROOT = Path(__file__).parent.parent
FOLDERS = (".ci", "bench", "cnorm", "docs", "examples", "tests", "tools")
KINDS = {".cff", ".h", ".md", ".pxi", ".py", ".pyi", ".pyx", ".sh", ".toml"}
# `cnorm` as pip's argument, not `cnorm-layers`, nor a path or a module such as `cnorm.interop`
ARGUMENT = re.compile(r"""(?<![\w./-])cnorm(?=["'`,;)\s\[]|$|[=<>~!]=)""")
COMMAND = re.compile(r"\bpip\S* (?:install|download|wheel)\b(.*?)(?:&&| #|`|$)")
EXTRA = re.compile(r"(?<![\w./-])cnorm\[[a-z, ]+\]")


def texts():
    """Return everything in the repository that people read or run, and `pyproject.toml`."""
    files = [path for path in ROOT.iterdir() if path.suffix in KINDS or path.name == "Makefile"]
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in KINDS or path.name == "run":
                files.append(path)
    built = {"_build", "__pycache__"}
    return [path for path in files if path.is_file() and not built & set(path.parts)]


def wrong_names(line):
    """Return what of a line would have pip install the other project."""
    return EXTRA.findall(line) or ARGUMENT.findall(" ".join(COMMAND.findall(line)))


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("pip install cnorm", True),
        ("$ python -m pip install -U cnorm", True),
        ("`pip install 'cnorm[torch]'`", True),
        ('pip install "cnorm>=0.2"', True),
        ("this needs ``cnorm[checkpoint]``", True),
        ('test = ["cnorm[half, sklearn]", "pytest"]', True),
        ('bin/pip" install --no-binary cnorm "$sdist"', True),
        ("pip install 'cnorm-layers[torch]'", False),
        ('pip install -e ".[test]" && python -m cnorm check', False),
        ("pip install ./cnorm", False),
        ("run `pip install -e .`, to have an installed cnorm", False),
        ("pip install numpy    # before cnorm", False),
        ("import cnorm", False),
    ],
)
def test_what_counts_as_a_wrong_name(line, wrong):
    assert bool(wrong_names(line)) == wrong


def test_nothing_tells_people_to_install_another_project():
    here = Path(__file__).name
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in texts()
        if path.name != here
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if wrong_names(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_texts_are_found():
    names = {path.relative_to(ROOT).as_posix() for path in texts()}
    expected = {"README.md", "pyproject.toml", "Makefile", "docs/interop.md"}
    expected |= {"examples/sentence_embeddings.py", "cnorm/functional.pyx", "tools/check_wheel.sh"}
    assert expected <= names


def test_one_version_is_named_everywhere():
    """The changelog begins with it, whether it is released or not yet."""
    first = re.search(
        r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert re.fullmatch(
        rf"{re.escape(cnorm.__version__)} \((unreleased|\d{{4}}-\d\d-\d\d)\)", first[1]
    )
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {cnorm.__version__}\n" in citation
    platforms = (ROOT / "docs/platforms.md").read_text(encoding="utf-8")
    assert f"cnorm {cnorm.__version__};" in platforms


def test_the_platform_tables_are_those_of_the_metadata():
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)
    text = (ROOT / "docs/platforms.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|", text, re.MULTILINE))
    lower = dict(r.split(">=") for r in project["build-system"]["requires"])
    (numpy,) = project["project"]["dependencies"]
    assert rows["CPython"] == project["project"]["requires-python"].removeprefix(">=")
    assert rows["NumPy"] == numpy.removeprefix("numpy>=")
    assert rows["to build: Cython"] == lower["cython"]
    extras = project["project"]["optional-dependencies"]
    for name in ("half", "checkpoint", "mpi", "torch", "jax", "sklearn", "dask", "xarray"):
        needs = [r.partition(";")[0].replace(">=", " ") for r in extras.pop(name)]
        assert rows[f"`{name}`"] == ", ".join(needs)
    assert all(f"`{name}`" in text for name in extras)


def test_the_constant_is_the_name_in_the_metadata():
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    assert project["name"] == DISTRIBUTION
    assert install("torch") == f"pip install '{DISTRIBUTION}[torch]'"


def test_every_extra_that_is_named_exists():
    with open(ROOT / "pyproject.toml", "rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"])
    named = set()
    for path in texts():
        text = path.read_text(encoding="utf-8")
        for names in re.findall(rf"{DISTRIBUTION}\[([a-z, ]+)\]", text):
            named |= set(map(str.strip, names.split(",")))
        named |= set(re.findall(r"\binstall\(['\"]([a-z]+)['\"]\)", text))
    assert {"checkpoint", "mpi"} <= named
    assert named <= extras
