"""Every Python snippet of the README, the documentation and the docstrings runs.

The snippets of a page share their names, as a reader would type them one after the other. Two
comments help, which a reader does not see: `<!-- needs: module -->` above a snippet names an
optional package that it takes, and `<!-- setup` to `-->` holds code that runs in its place.
"""

import doctest
import importlib.util
import pkgutil
import re
import textwrap
from pathlib import Path

import pytest

import cnorm

ROOT = Path(__file__).parent.parent
SNIPPET = re.compile(
    r"(?:^<!-- needs: (\w+) -->\n)?(?:^ *```python\n(.*?)^ *```$|^<!-- setup\n(.*?)^-->$)",
    re.DOTALL | re.MULTILINE,
)
PAGES = [
    page
    for page in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    if "_build" not in page.parts and SNIPPET.search(page.read_text(encoding="utf-8"))
]


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    before = cnorm.get_num_threads()
    yield
    cnorm.set_num_threads(before)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_snippets_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    text = page.read_text(encoding="utf-8")
    names, missing = {"__name__": "snippet"}, set()
    for match in SNIPPET.finditer(text):
        needs, shown, setup = match.groups()
        if needs and importlib.util.find_spec(needs) is None:
            missing.add(needs)
            continue
        first_line = text.count("\n", 0, match.start(3 if shown is None else 2))
        # Newlines in front, so that a traceback shows the line of the page.
        code = "\n" * first_line + (setup if shown is None else textwrap.dedent(shown))
        exec(compile(code, str(page), "exec"), names)
    if missing:
        pytest.skip(f"the other snippets ran; these need {', '.join(sorted(missing))}")


@pytest.mark.parametrize("name", ["docs/recipes.md", "docs/zh/recipes.md"])
def test_a_recipe_stands_alone(name, tmp_path, monkeypatch):
    """Each section by itself, as somebody takes it who came for that."""
    monkeypatch.chdir(tmp_path)
    for section in re.split(r"^## ", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE):
        names = {"__name__": "snippet"}
        for code in re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE):
            exec(compile(code, section.partition("\n")[0], "exec"), names)


def test_pages_are_found():
    names = {page.name for page in PAGES}
    assert {"README.md", "README.zh.md", "getting_started.md", "batch.md"} <= names


def test_readme_opens_with_the_two_commands():
    for name in ("README.md", "README.zh.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        commands = re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        assert commands[0] == 'pip install -e ".[examples]" && python examples/quickstart.py\n'
        assert commands[1] == 'pip install -e ".[test]" && pytest -rs\n'


def test_readme_trains_in_under_twenty_lines():
    for name in ("README.md", "README.zh.md"):
        snippets = SNIPPET.findall((ROOT / name).read_text(encoding="utf-8"))
        (training,) = [code for _, code, _ in snippets if ".backward(" in code]
        assert len(training.splitlines()) < 20


def test_local_links_lead_somewhere():
    broken = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        if "_build" in page.parts:
            continue
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


def test_there_is_one_spelling():
    """Normalize, as in the names of the functions: in pages, comments and docstrings."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").iterdir()]
    sources = [p for p in Path(cnorm.__file__).parent.rglob("*.py*") if p.suffix in (".py", ".pyx")]
    for path in [*pages, *sources]:
        if "_build" not in path.parts and "kernels" not in path.parts and path.is_file():
            found = re.search(r"\b[Nn]ormalis\w+", path.read_text(encoding="utf-8"))
            assert found is None, f"{path}: {found[0]}"


def modules():
    """Return the names of all modules of the package that can be imported here."""
    names = ["cnorm"]
    for module in pkgutil.walk_packages(cnorm.__path__, "cnorm."):
        if not module.name.endswith("__main__") and "kernels._" not in module.name:
            names.append(module.name)
    return names


@pytest.mark.parametrize("name", modules())
def test_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.skip(f"needs {error.name}")
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    failed, tried = doctest.testmod(module, optionflags=flags)
    assert failed == 0
    assert tried or name != "cnorm.functional"  # compiled functions are found as well


def test_both_readmes_say_the_same():
    """The same headings, commands, code, figures and links, whatever the words around them."""

    def outline(name):
        text = (ROOT / name).read_text(encoding="utf-8")
        code = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        prose = re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
        return {
            "headings": len(re.findall(r"^#+ ", prose, re.MULTILINE)),
            "table rows": len(re.findall(r"^\|", prose, re.MULTILINE)),
            "code": [(kind, re.sub(r"  #.*", "", lines)) for kind, lines in code],
            "links": sorted(
                set(re.findall(r"\]\(([^)]+)\)", prose)) - {"README.md", "README.zh.md"}
            ),
            "inline code": sorted(set(re.findall(r"`([^`\n]+)`", prose))),
            "figures": sorted(re.findall(r"\d+(?:\.\d+)?", prose)),
        }

    english, chinese = outline("README.md"), outline("README.zh.md")
    for what, found in english.items():
        assert found == chinese[what], what
