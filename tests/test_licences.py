"""The licences of what foreknow needs: each known, each allowed, each on the page."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from closure import extras, installed, needed
from licences import APART, Found, Line, Rules, found, judged, page, permitted, rules, stated
from lock import pins

ROOT = Path(__file__).parents[1]

ROW = re.compile(r"^\| (\S+) \| (\S+) \| ([^|]+) \| [^|]+ \|$", re.M)


@pytest.fixture(scope="module")
def here() -> Found:
    return found(installed(), rules())


@pytest.fixture(scope="module")
def on_the_page() -> dict[str, tuple[str, str]]:
    text = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8").partition("## What is allowed")[0]
    return {name: (version, licence) for name, version, licence in ROW.findall(text) if name != "package"}


def package(folder: Path, name: str, *lines: str) -> Distribution:
    """An installed package with these metadata."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    text = "\n".join(["Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0", *lines])
    (info / "METADATA").write_text(text + "\n", encoding="utf-8")
    return PathDistribution(info)


def test_every_installed_runtime_dependency_has_an_allowed_licence(here: Found) -> None:
    assert here.faults == []
    assert {"torch", "transformers", "polars", "tokenizers"} <= {line.name for line in here.table}


def test_the_page_lists_every_direct_dependency_of_every_extra(on_the_page: dict[str, tuple[str, str]]) -> None:
    direct = {canonicalize_name(r.name) for extra, wanted in extras().items() if extra not in APART for r in wanted}
    assert direct <= set(on_the_page)


def test_the_page_says_what_the_installed_metadata_say(here: Found, on_the_page: dict[str, tuple[str, str]]) -> None:
    licences = {line.name: line.licence for line in here.table}
    assert {name: on_the_page[name][1] for name in licences if name in on_the_page} == licences


def test_the_page_has_the_pinned_versions(on_the_page: dict[str, tuple[str, str]]) -> None:
    versions = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert {name: version for name, (version, _) in on_the_page.items() if version != versions.get(name, version)} == {}


def test_every_licence_on_the_page_is_allowed(on_the_page: dict[str, tuple[str, str]]) -> None:
    assert [name for name, (_, licence) in on_the_page.items() if not permitted(licence, rules().allowed)] == []


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("MIT AND GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", True),
        ("GPL-3.0-only OR AGPL-3.0-only OR MIT", True),
        ("GPL-3.0-only OR MIT AND Apache-2.0", True),
        ("(GPL-3.0-only OR MIT) AND AGPL-3.0-only", False),
        ("(GPL-3.0-only OR MIT) AND (Apache-2.0)", True),
        ("Apache-2.0 WITH LLVM-exception", False),
        ("MIT OR Apache-2.0 WITH LLVM-exception", True),
        ("LicenseRef-Proprietary", False),
    ],
)
def test_an_expression_is_permitted_when_one_way_through_it_is(expression: str, expected: bool) -> None:
    assert permitted(expression, {"MIT", "Apache-2.0"}) is expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (("License-Expression: mit or apache-2.0", "License: GPL"), "MIT OR Apache-2.0"),
        (("License: Apache 2.0",), "Apache-2.0"),
        (("License: BSD-3-Clause", "Classifier: License :: OSI Approved :: BSD License"), "BSD-3-Clause"),
        (("License: see LICENSE", "Classifier: License :: OSI Approved :: MIT License"), "MIT"),
        (("License: BSD", "Classifier: License :: OSI Approved :: BSD License"), None),
        (
            (
                "Classifier: License :: OSI Approved :: MIT License",
                "Classifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)",
            ),
            None,
        ),
        ((), None),
    ],
)
def test_a_licence_is_taken_from_metadata_only_where_they_name_one(
    tmp_path: Path, lines: tuple[str, ...], expected: str | None
) -> None:
    assert stated(package(tmp_path, "thing", *lines)) == expected


def test_an_unknown_licence_and_a_forbidden_one_and_a_needless_decision_are_faults() -> None:
    by = Rules(allowed={"MIT": ""}, decided={"read": {"licence": "MIT", "read": "the file"}}, why={})
    assert judged("plain", "MIT", by) == ("MIT", "")
    assert judged("read", None, by) == ("MIT", "")
    assert "name no one licence" in judged("dumb", None, by)[1]
    assert "GPL-3.0-only is not allowed" in judged("viral", "GPL-3.0-only", by)[1]
    assert "drop its line" in judged("read", "MIT", by)[1]


def test_what_a_dependency_requires_is_followed_with_its_extras(tmp_path: Path) -> None:
    have = {
        "one": package(tmp_path, "one", "Requires-Dist: two[more]", "Requires-Dist: never; extra == 'unasked'"),
        "two": package(tmp_path, "two", "Requires-Dist: three; extra == 'more'", "Requires-Dist: one"),
        "three": package(tmp_path, "three", "Requires-Dist: windows-only; sys_platform == 'win32'"),
    }
    closure = needed([Requirement("one")], "foreknow", have)
    assert {name: need.needed_by for name, need in closure.items()} == {
        "one": {"foreknow", "two"},
        "two": {"one"},
        "three": {"two"},
    }


def test_the_page_is_written_from_its_lines() -> None:
    text = page([Line("thing", "1.0", "MIT", "for a reason")], Rules({"MIT": "permissive"}, {}, {}))
    assert "| thing | 1.0 | MIT | for a reason |" in text
    assert "the 1 packages below" in text
    assert "| MIT | permissive |" in text
