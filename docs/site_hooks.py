"""Hooks of the site's build: pages of the commands' keys, of notebooks and of the root's files, and links out of docs/."""

from __future__ import annotations

import posixpath
import re
import sys
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
ROOT_PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
"""Files of the root that are pages of the site too."""
LINKED = {**ROOT_PAGES, "README.md": "index.md"}
"""Where a link to a file of the root leads on the site."""
COMMANDS_PAGE = "reference/commands.md"
_PACKAGE = tempfile.TemporaryDirectory(prefix="maelift-docs-")


def _package_by_its_name() -> str:
    """A folder in which the package has its name, whatever the checkout's folder is called, without data and tests."""
    package = Path(_PACKAGE.name) / "maelift"
    package.mkdir(exist_ok=True)
    for path in ROOT.iterdir():
        source = path.suffix in (".py", ".json") or (path / "__init__.py").is_file()
        if source and not (package / path.name).is_symlink():
            (package / path.name).symlink_to(path)
    return str(package.parent)


@event_priority(100)  # type: ignore[untyped-decorator]  # before mkdocstrings reads its configuration
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let API pages and key pages read the package; add a page for each command to the navigation."""
    package = _package_by_its_name()
    sys.path.insert(0, package)
    handlers: dict[str, Any] = config.plugins["mkdocstrings"].config.handlers
    handlers["python"]["paths"] = [package]
    for section in config.nav or []:
        (items,) = section.values()
        if isinstance(items, list) and {"Commands": COMMANDS_PAGE} in items:
            place = items.index({"Commands": COMMANDS_PAGE})
            items[place] = {"Commands": [{"All commands": COMMANDS_PAGE}, *({n: _page_of(n)} for n in _commands())]}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of other files."""
    for name, uri in ROOT_PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text(encoding="utf-8")))
    files.append(File.generated(config, COMMANDS_PAGE, content=_overview()))
    for name in _commands():
        files.append(File.generated(config, _page_of(name), content=_command_page(name)))
    for script in sorted((ROOT / "docs" / "notebooks").glob("*.py")):
        for uri, content in _notebook(script):
            files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files outside of docs/ into links to their pages, to the repository if it is known, or into text."""
    here = page.file.src_uri
    at_root = here in ROOT_PAGES.values()
    if here == "index.md":
        page.meta["hide"] = ["navigation"]  # it has no other pages in its section

    def link(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not path:
            return found[0]
        outside = path if at_root else posixpath.normpath(posixpath.join("docs", posixpath.dirname(here), path))
        if at_root and outside.startswith("docs/"):
            return f"[{text}]({outside.removeprefix('docs/')}{'#' * bool(anchor)}{anchor})"
        if not at_root and outside.startswith("docs/"):
            return f"[{text}]({path.removesuffix('.py')}.md)" if outside.endswith(".py") else found[0]  # a notebook
        if outside in LINKED:
            start = posixpath.dirname(here) or "."
            anchored = f"#{anchor}" if anchor and outside in ROOT_PAGES else ""
            return f"[{text}]({posixpath.relpath(LINKED[outside], start)}{anchored})"
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/HEAD/{outside})" if config.repo_url else text

    return re.sub(r"(?<!!)\[([^\]\n]+)\]\(([^)\s]+)\)", link, markdown)


def _commands() -> list[str]:
    from maelift.commands import COMMANDS

    return list(COMMANDS)


def _page_of(command: str) -> str:
    return f"reference/{command.replace(' ', '_')}.md"


def _overview() -> str:
    """The page of all commands."""
    from maelift.commands import COMMANDS

    rows = [
        f"| [`maelift {name}`]({posixpath.basename(_page_of(name))}) | {_escaped(command.summary)} |"
        for name, command in COMMANDS.items()
    ]
    lines = [
        "# Commands",
        "Every command takes `key=value` words, `--config FILE` (YAML with the same keys), `--dry-run` (the plan; nothing is"
        " written), `--show-config` (the plan and the full configuration) and `-h`. Nested keys are dotted: `masking.ratio=0.6`,"
        " in YAML and Python mappings. The [functions](api.md) take the same keys. These pages have the same text as"
        " `maelift COMMAND -h all`.",
        "",
        "| command | what it does |\n|---|---|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def _command_page(name: str) -> str:
    """The page of a command: how it is called, its main keys, every key."""
    from maelift import cli_help, key_table
    from maelift.commands import COMMANDS

    command = COMMANDS[name]
    usage = cli_help.usage(name, command).removeprefix("usage: ")
    summary = _escaped(command.summary[:1].upper() + command.summary[1:])
    lines = [f"# maelift {name}", summary if summary.endswith("?") else f"{summary}.", "", f"```text\n{usage}\n```", ""]
    if name in key_table.MAIN_KEYS:
        lines += ["## Main keys", "The keys that most people need.", ""]
        for section in key_table.main_sections(name):
            links = ", ".join(f"[`{one.key}`](#{one.key})" for one in section.keys)
            lines += [_escaped(section.title.capitalize()), f":   {links}", ""]
    sections = [one for one in key_table.sections(name) if one.keys]
    lines += ["## All keys" if sections else "This command has no keys.", ""]
    anchors: set[str] = set()
    for section in sections:
        for number, (group, keys) in enumerate(groupby(section.keys, key=lambda one: one.key.rpartition(".")[0])):
            if section.title and number == 0:
                lines += [f"### {_escaped(section.title.strip(' :').capitalize())}", ""]
            if group:
                lines += [f"#### {group}" if section.title else f"### {group}", ""]
            for one in keys:
                lines += _key(one, anchors)
    return "\n".join(lines) + "\n"


def _key(one: Any, anchors: set[str]) -> Iterator[str]:
    """A key as an entry of a definition list; the first of its name on the page has the anchor."""
    default = one.origin or ("needed" if one.default is None else f"default {one.default}")
    anchor = "" if one.key in anchors else f"{{ #{one.key} }}"
    anchors.add(one.key)
    yield f"`{one.key}`{anchor} {_escaped(one.type)}; {_escaped(default)}"
    example = f" Example: <code>{_escaped(f'{one.key}={one.example}')}</code>" if one.example else ""
    yield f":   {_escaped(one.help)}.{example}"
    yield ""


def _escaped(text: str) -> str:
    """Text that stands for itself in Markdown, as HTML's entities where a letter would be markup."""
    return re.sub(r"_|[^\w\s,.;?()'/+%-]", lambda found: f"&#{ord(found[0])};", text)


def _notebook(script: Path) -> Iterator[tuple[str, str]]:
    """A notebook's page, and the notebook as .ipynb to download."""
    import jupytext

    notebook = jupytext.read(script, fmt="py:percent")
    file = f"{script.stem}.ipynb"
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    yield f"notebooks/{file}", jupytext.writes(notebook, fmt="ipynb")
    notebook.metadata = {}
    page = re.sub(r"\A---\n.*?\n---\n+", "", jupytext.writes(notebook, fmt="md"), flags=re.DOTALL)
    title, _, rest = page.partition("\n")
    yield f"notebooks/{script.stem}.md", f"{title}\n\n[Download as a notebook]({file}).\n{rest}"
