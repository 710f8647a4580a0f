"""What must agree across the repository. `nox -s lint` runs this file alone, so it imports nothing heavy."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ftdocs
from ftdocs.recipe import PROFILES, Recipe

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# The order in which data flows: a module imports only from modules before it, or beside it in its own package.
FLOW = """
    errors files recipe hardware measure processes gguf data.docstrings assets data manual methods attention llama
    models embed retrieve label_words loss intervals calibration fingerprint runs progress checkpoints storage
    shapes memory trace plan prices traffic metrics evaluate merge forgetting paired answer scores contestants compare
    card job trainer loop head train search search_ray records new export extraction feedback access protocol
    child backend gateway listen app chat meant
    cli
""".split()
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".json", ".jsonl", ".cfg", ".css", ".js", ".html", ""}
# Package indexes, where a mirror may stand instead, and folders that exist on one machine only.
HOSTS = re.compile(
    r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|npmjs\.org|deb\.debian\.org|index[-_]url[= ]+\S*://"
)
MACHINE_PATHS = re.compile(r"(?<![\w.:/~-])/(?:work|root|tmp|home|Users)/\w")


def tracked() -> list[Path]:
    """Text files that are, or are about to be, under version control."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in names if Path(name).suffix in TEXT and (ROOT / name).is_file()]


def read(path: Path | str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def pins() -> dict[str, set[str]]:
    """Versions of requirements/constraints.txt by package; more than one where they differ by platform."""
    found: dict[str, set[str]] = {}
    for line in read("requirements/constraints.txt").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            assert [s.operator for s in requirement.specifier] == ["=="], f"not pinned: {line}"
            versions = found.setdefault(canonicalize_name(requirement.name), set())
            versions.add(str(requirement.specifier).removeprefix("=="))
    return found


def test_every_dependency_is_pinned_to_a_version_it_allows():
    pinned = pins()
    extras = PROJECT["project"]["optional-dependencies"]
    for line in [*PROJECT["project"]["dependencies"], *(line for lines in extras.values() for line in lines)]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["project"]["name"]:
            assert requirement.extras <= extras.keys(), line  # the package with extras of its own
            continue
        versions = pinned.get(canonicalize_name(requirement.name))
        assert versions, f"{requirement.name}: run `nox -s pins`"
        assert all(requirement.specifier.contains(v) for v in versions), f"{line} against {versions}"


def test_what_sets_this_repository_up_installs_no_torch_without_a_version():
    bare = re.compile(r"pip install(?![^\n`]*(?:-c |--constraint))[^\n`]*(?<![\w=/.-])torch(?![\w=])")
    own = [path for path in tracked() if path.parent == ROOT or path.is_relative_to(ROOT / ".github")]
    found = [f"{path.relative_to(ROOT)}: {m.group()}" for path in own for m in bare.finditer(read(path))]
    assert not found, "a bare torch takes the newest, which nobody has tried"


def test_assets_are_pinned_by_hash():
    lines = [
        line for line in read("requirements/assets.txt").splitlines() if line and not line.startswith("#")
    ]
    assert lines
    for line in lines:
        assert re.fullmatch(r"[\w.-]+==[\w.]+ --hash=sha256:[0-9a-f]{64}", line), line


def test_versions_agree():
    newest = re.search(r"^## (\S+)", read("CHANGELOG.md"), re.M)
    assert newest
    assert newest[1] == ftdocs.__version__
    pinned = pins()
    for hook in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"][0]["hooks"]:
        for line in hook["additional_dependencies"]:
            name, version = line.split("==")
            assert pinned[name] == {version}, f".pre-commit-config.yaml: {line}"


def test_the_oldest_python_is_the_same_everywhere():
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    assert PROJECT["tool"]["pyrefly"]["python-version"] == oldest
    assert yaml.safe_load(read(".readthedocs.yaml"))["build"]["tools"]["python"] == oldest
    assert f"Python {oldest}" in read("README.md")
    assert f'"--python-version", "{oldest}"' in read("noxfile.py")


def test_no_file_names_a_package_host_or_a_path_of_one_machine():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group()}"
        for path in tracked()
        for number, line in enumerate(read(path).splitlines(), 1)
        for match in (HOSTS.search(line), MACHINE_PATHS.search(line))
        if match
    ]
    assert not found


def test_the_readme_shows_the_tree_as_it_is():
    tree = re.search(r"```text\n(pyproject\.toml.*?)```", read("README.md"), re.S)
    assert tree
    shown = {name for line in tree[1].splitlines() for name in re.split(r"\s{2,}", line)[0].split()}
    there = {
        first + "/" if rest else first
        for first, _, rest in (str(path.relative_to(ROOT).as_posix()).partition("/") for path in tracked())
    }
    hidden = {".gitignore", ".pre-commit-config.yaml"}
    assert shown == there - hidden


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs/decisions").glob("*.md")),
    ],
)
def test_relative_links_outside_the_book_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", read(page)):
        assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_one_in_every_size(path, profile):
    assert Recipe.load(path, profile=profile).model


def place(module: str) -> str:
    """Where a dotted module stands in FLOW: itself, or the package that it belongs to."""
    while module and module not in FLOW:
        module = module.rpartition(".")[0]
    return module


def imports(path: Path) -> set[str]:
    """Dotted modules of the package, without its name, that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("ftdocs.") for name in found if name.startswith("ftdocs.")} - {"__version__"}


MODULES = {
    ".".join(path.relative_to(ROOT / "ftdocs").with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "ftdocs").rglob("*.py"))
}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_its_left(module):
    imported = {place(name) or name for name in imports(MODULES[module])}
    if module == "__init__":
        assert not imported
        return
    assert place(module), f"say in {Path(__file__).name} where {module} stands"
    left = FLOW[: FLOW.index(place(module))]
    assert not imported - {place(module)} - set(left)


def test_the_package_knows_no_page_and_no_page_a_private_name():
    package = [path for path in tracked() if path.is_relative_to(ROOT / "ftdocs")]
    assert not [str(path) for path in package if re.search(r"\bdocs/\w", read(path))]
    pages = [path for path in tracked() if path.is_relative_to(ROOT / "docs") and path.suffix == ".md"]
    private = re.compile(r"from ftdocs[\w.]* import [^\n]*\b_[^\W_]|\bftdocs(?:\.\w+)*\._[^\W_]")
    assert not [str(path) for path in pages if private.search(read(path))]
