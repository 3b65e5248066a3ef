"""The documentation: links that lead somewhere, pages that are found, linters and versions that agree."""

from __future__ import annotations

import inspect
import re
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import foreknow
from foreknow.config import (
    AuditConfig,
    CheckConfig,
    EvaluateConfig,
    ExtractConfig,
    MixConfig,
    RemediesConfig,
    TuneConfig,
)
from foreknow.settings import Settings
from foreknow.stages.study.settings import StudyConfig
from foreknow.version import __version__
from settings_page import on_page_markdown

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TOP = ("README.md", "PACKAGE.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "LOG.md")
PAGES = sorted([*(ROOT / name for name in TOP), *DOCS.rglob("*.md")])
MODELS: dict[str, type[Settings]] = {
    **{"audit": AuditConfig, "check": CheckConfig, "mix": MixConfig, "tune": TuneConfig},
    **{"evaluate": EvaluateConfig, "extract": ExtractConfig, "study": StudyConfig},
    "study remedies": RemediesConfig,
}
FENCE = re.compile(r"^(```|~~~).*?^\1", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")


def relative_links(page: Path) -> list[str]:
    """What the page links to, addresses and code left out."""
    text = re.sub(r"`[^`\n]+`", "", FENCE.sub("", page.read_text(encoding="utf-8")))
    return [link for link in LINK.findall(text) if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    plain = [re.sub(r"[`*]|\]\([^)]*\)|\[", "", title) for title in re.findall(r"^#+ (.+)$", text, re.M)]
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in relative_links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        whole = target.exists() and ROOT in (target, *target.parents)
        if not whole or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_pages_of_the_site_link_within_it() -> None:
    """The site holds docs/ alone: a link out of it would be broken there."""
    outside = {
        (page.name, link)
        for page in DOCS.rglob("*.md")
        for link in relative_links(page)
        if DOCS not in (page.parent / link.partition("#")[0]).resolve().parents
    }
    assert outside == set()


def navigation(entries: Any) -> list[str]:
    if isinstance(entries, str):
        return [entries]
    inner = entries.values() if isinstance(entries, dict) else entries
    return [page for entry in inner for page in navigation(entry)]


def test_every_page_is_in_the_navigation_once() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(navigation(site["nav"])) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
    assert site["strict"] is True


def test_every_public_name_is_in_the_reference() -> None:
    text = "".join((DOCS / name).read_text(encoding="utf-8") for name in ("api.md", "settings.md"))
    named = {name.rpartition(".")[2] for name in re.findall(r"^(?:::: |\{\{ settings )(foreknow[\w.]+)", text, re.M)}
    assert "errors" in named  # all of the tree, ForeknowError first
    assert set(foreknow.__all__) - named == {"ForeknowError"}


def test_the_settings_page_has_every_setting_of_every_verb() -> None:
    page = on_page_markdown((DOCS / "settings.md").read_text(encoding="utf-8"))
    assert "{{" not in page
    for verb, model in MODELS.items():
        table = page.partition(f"## {verb}\n")[2].partition("\n## ")[0]
        rows = re.findall(r"^\| `(\w+)` \| [^|]* \| (.+) \|$", table, re.M)
        assert {name for name, _ in rows} == set(model.model_fields), verb
        assert all(meaning.strip() for _, meaning in rows), verb


def test_every_image_is_shown() -> None:
    shown = {link for page in PAGES for link in relative_links(page)}
    images = {path.name for path in (DOCS / "images").iterdir()}
    assert images == {Path(link).name for link in shown if "images/" in link}


def test_files_named_by_contributing_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    stops = re.findall(r"^\| (\d+) \| `([^`]+)` \| `([^`]+)` \|", text, re.M)
    assert [int(number) for number, _, _ in stops] == list(range(1, len(stops) + 1))
    assert 0 < len(stops) <= 12
    for _, file, function in stops:
        code = (ROOT / "src" / "foreknow" / file).read_text(encoding="utf-8")
        for name in function.split("."):
            assert re.search(rf"^\s*(def|class) {name}\b", code, re.M), f"{file}: no {name}"


def test_every_package_stands_in_the_tree_of_contributing() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = text.partition("## The tree")[2].partition("## One row's way")[0]
    packages = {p.parent.name for p in (ROOT / "src" / "foreknow").rglob("__init__.py")} - {"foreknow"}
    named = set(re.findall(r"^ +(\w+)/ ", tree, re.M))
    assert named == packages | ({"presets"} & named)


def test_hooks_and_workflow_run_what_make_and_ci_run() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    entries = {" ".join(h["entry"].replace(" --force-exclude", "").split()) for r in hooks["repos"] for h in r["hooks"]}
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nlint:")[2].partition("\n\n")[0]
    lines = re.findall(r"^\t\$\(BIN\)/(.+)$", recipe, re.M)
    assert entries == {f".venv/bin/{line.removesuffix(' .')}" for line in lines}
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = [step.get("run") for job in workflow["jobs"].values() for step in job["steps"]]
    assert "bash .ci/run" in steps
    assert "make docs" in steps


def test_citation_and_changelog_name_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, source = settings["project"], settings["tool"]["hatch"]["version"]["path"]
    assert project["dynamic"] == ["version"]
    assert f'\n__version__ = "{__version__}"\n' in (ROOT / source).read_text(encoding="utf-8")
    assert citation["version"] == __version__
    assert citation["license"] == project["license"]
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("page", ["README.md", "docs/notebook.md"])
def test_a_python_snippet_runs_as_it_stands(
    page: str, tiny_folder: Path, facts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, tmp_path / "path" / "to" / "model")
    lines = facts_file.read_text(encoding="utf-8").splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:8] + lines[24:32]), encoding="utf-8")
    (block,) = python_blocks(ROOT / page)
    names: dict[str, Any] = {}
    exec(compile(block, page, "exec"), names)
    assert names["audit"].rows.height >= 8


def test_every_line_of_the_table_of_what_you_have_is_a_call() -> None:
    table = (DOCS / "notebook.md").read_text(encoding="utf-8").partition("## What you have")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| [^|]+ \| `(foreknow\..+)` \|$", table, re.M)
    assert len(lines) > 10
    calls: list[str] = []

    def bound(name: str) -> Any:
        def call(*args: Any, **settings: Any) -> Any:
            inspect.signature(getattr(foreknow, name)).bind(*args, **settings)
            calls.append(name)
            return SimpleNamespace(records=list)

        return call

    recorder = SimpleNamespace(
        **{name: bound(name) for name in ("audit", "check", "mix", "tune", "evaluate", "compare", "compare_runs")}
    )
    words = {word for line in lines for word in re.findall(r"(?<![\w\".])[a-z_]+(?![\w(=.\"])", line)}
    for line in lines:
        eval(line, {"foreknow": recorder, **dict.fromkeys(words)})
    assert {"audit", "check", "mix", "tune", "evaluate", "compare", "compare_runs"} == set(calls)


def test_the_readme_of_the_package_links_nowhere_relative() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert relative_links(ROOT / project["readme"]) == []
    assert "pip install" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_term_of_the_glossary_is_one_sentence_and_linked() -> None:
    text_of_page = (DOCS / "glossary.md").read_text(encoding="utf-8")
    entries = re.findall(r"^### ([^\n]+)\n\n(.+?)(?=\n\n|\Z)", text_of_page, re.M | re.S)
    assert len(entries) > 25
    for term, text in entries:
        assert text.count(". ") == 0, term
        assert text.rstrip().endswith("."), term
    links = {link for page in PAGES for link in relative_links(page) if "glossary.md#" in link}
    assert len(links) >= 8


def test_issue_forms_are_forms() -> None:
    for name in ("bug", "idea"):
        form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(form)
        assert all(entry["attributes"]["label"] for entry in form["body"])
