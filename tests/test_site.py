"""The documentation site: built without a warning, every key of every command on it, every quoted error one of the code's."""

from __future__ import annotations

import ast
import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from maelift import key_table
from maelift.commands import COMMANDS
from maelift.tests.support import ROOT, framework
from maelift.tests.test_layout import MODULES, tracked


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    framework("mkdocs")
    out = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(ROOT / "mkdocs.yml"),
        "--site-dir",
        str(out),
    ]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "REPO_URL": "", "SITE_URL": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out


def text_of(page: Path) -> str:
    """The words of a page, without its markup."""
    article = re.search(r"<article.*?</article>", page.read_text(encoding="utf-8"), re.DOTALL)
    assert article is not None, page
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", article[0])).split())


@pytest.mark.slow
def test_every_key_is_on_its_commands_page_as_the_help_has_it(site: Path) -> None:
    overview = text_of(site / "reference" / "commands" / "index.html")
    for name, command in COMMANDS.items():
        assert f"maelift {name}" in overview and command.summary in overview
        page = site / "reference" / name.replace(" ", "_") / "index.html"
        shown, source = text_of(page), page.read_text(encoding="utf-8")
        for one in key_table.keys_of(name):
            default = one.origin or ("needed" if one.default is None else f"default {one.default}")
            assert f"{one.key} {one.type}; {default} {one.help}" in shown, (name, one.key)
            assert source.count(f'id="{one.key}"') == 1, (name, one.key)


@pytest.mark.slow
def test_no_link_of_a_page_leads_out_of_the_site(site: Path) -> None:
    broken = [
        f"{page.relative_to(site)}: {target}"
        for page in site.rglob("*.html")
        if page.name != "404.html"
        for target in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text(encoding="utf-8"))
        if not re.match(r"[a-z]+:", target) and not (page.parent / target).resolve().exists()
    ]
    assert not broken, "\n".join(broken[:20])


@pytest.mark.slow
def test_lists_are_lists_and_notebooks_can_be_downloaded(site: Path) -> None:
    unread = [
        f"{page.relative_to(site)}: {line}"
        for page in site.rglob("index.html")
        for line in re.findall(r"^(?:<p>)?- .*", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert not unread, "an empty line is missing above\n" + "\n".join(unread[:10])
    for script in (ROOT / "docs" / "notebooks").glob("*.py"):
        assert (site / "notebooks" / f"{script.stem}.ipynb").is_file()


def test_every_page_is_in_the_navigation() -> None:
    navigation = re.search(r"^nav:\n(.*)", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE | re.DOTALL)
    assert navigation is not None
    named = set(re.findall(r"[\w/]+\.md", navigation[1]))
    pages = {name.removeprefix("docs/") for name in tracked("docs/*.md")}
    pages |= {name.removeprefix("docs/")[:-3] + ".md" for name in tracked("docs/notebooks/*.py")}
    assert pages - named == set()
    assert yaml.safe_load(navigation[1])


def strings() -> str:
    """Every string of the code, those of a sentence joined, with … for what is filled in."""
    found = []
    for module in sorted(MODULES):
        for node in ast.walk(ast.parse((ROOT / f"{module}.py").read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))  # type: ignore[misc]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_every_error_of_the_troubleshooting_page_is_one_of_the_code() -> None:
    page, code = (ROOT / "docs" / "troubleshooting.md").read_text(), strings()
    headings = re.findall(r"^### `(.*)`$", page, re.MULTILINE)
    assert len(headings) >= 12
    for heading in headings:
        parts = [part.strip(" ():.,") for part in re.split(r"…|, such as|Did you mean", heading)]
        missing = [part for part in parts if len(part) > 3 and part not in code]
        assert not missing, (heading, missing)
