"""The pages: links lead somewhere, files that are named exist, the README is short, and the site builds without a network."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastbert
from tests.docs.pages import PAGES, ROOT, name_of
from tests.test_public_names import OWN

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
NAMED = re.compile(r"`((?:kernels|fastbert|benchmarks|tests|docs|examples)/[\w./-]*(?:/|\.py|\.md|\.tsv))`")
README_WORDS = 900
TOP = {"fastbert", "kernels", "benchmarks", "tests", "docs", "examples"}
OUTSIDE = re.compile(r'(?:src|href)="(https?://[^"]+)"|url\(["\']?(https?://[^)"\']+)')
ALLOWED = ("https://squidfunk.github.io/mkdocs-material/", "https://github.com/triton-lang/triton/")  # links to click


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in LINK.findall(text):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), target
        if page.is_relative_to(ROOT / "docs"):
            assert found.is_relative_to(ROOT / "docs"), f"{target} is not part of the site"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings], target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page):
    for named in NAMED.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / named).exists(), named


def test_the_readme_is_short_and_its_two_commands_are_as_ever():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= README_WORDS
    assert "\nmake demo     # " in text
    assert "\nmake test     # " in text


def test_the_top_level_is_as_it_was():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    folders = {line.split("/")[0] for line in tracked.stdout.splitlines() if "/" in line}
    assert {folder for folder in folders if not folder.startswith(".")} == TOP


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        if importlib.util.find_spec(package.split(".")[0]) is None:
            pytest.skip(f"{package} is not installed: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    environment |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_builds_and_takes_nothing_from_elsewhere(site):
    for file in [*site.rglob("*.html"), *site.rglob("*.css")]:
        for found in OUTSIDE.findall(file.read_text(encoding="utf-8")):
            assert "".join(found).startswith(ALLOWED), (file.name, found)
    assert not list(site.rglob("*.py"))


def test_the_reference_has_every_name_with_its_arguments(site):
    text = "".join(file.read_text(encoding="utf-8") for file in (site / "reference").glob("*.html"))
    for name in set(OWN) - {"use_backend"}:
        assert f'id="fastbert.{name}"' in text, name
    assert 'id="kernels.backend.use_backend"' in text
    for name in ("padding", "cosine", "batch_tokens", "truncate_dim"):  # a paragraph of its own
        assert f"<p><strong><code>{name}</code></strong>: " in text, name
    assert fastbert.__version__
