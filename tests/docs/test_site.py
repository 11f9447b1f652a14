"""The documentation site: it builds without warnings, needs no network, and works on a desktop and on a phone.

`mkdocs build --strict` checks links and anchors between its pages.
"""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from docs import make_pictures
from tests.browser import Browser, missing_browser
from tests.processes import REPOSITORY

DOCS = REPOSITORY / "docs"
MARKDOWN = sorted({*REPOSITORY.glob("*.md"), *REPOSITORY.glob(".github/**/*.md")})
FORMS = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
WIDTHS = {"desktop": 1280, "phone": 375}
SEEN = ("index.html", "tutorials/first-classifier.html", "reference/config.html", "results/speed.html")
_FENCES = re.compile(r"^ *(```|~~~).*?^ *\1", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"""\]\(<?([^)>\s]+)[^)]*\)|(?:src|srcset|href)="([^"]+)\"""")


class External(HTMLParser):
    """Finds the resources of a page that other servers would have to send."""

    def __init__(self, content: str):
        super().__init__()
        self.urls: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        urls = [found[name] for name in ("src", "srcset", "data", "poster") if found.get(name)]
        if tag == "link" and found.get("rel") not in ("prev", "next", "canonical"):
            urls.append(found["href"])
        self.urls += [url for url in urls if re.match(r"(https?:)?//", url)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={folder}"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    output = result.stdout + result.stderr
    assert result.returncode == 0 and not re.search("^WARNING", output, re.MULTILINE), output
    return folder


def test_no_page_needs_a_network(site):
    pages = list(site.rglob("*.html"))
    external = {page.name: urls for page in pages if (urls := External(page.read_text()).urls)}
    assert (len(pages) > 1, external) == (True, {})
    own = [*(DOCS / "stylesheets").glob("*.css"), *site.glob("assets/stylesheets/*.css")]
    assert [path.name for path in own if re.search(r"url\(.?(https?:)?//|@import", path.read_text())] == []
    # Diagrams would load their program from another server.
    assert [page.name for page in pages if 'class="mermaid"' in page.read_text()] == []


def test_only_pages_and_what_they_show_is_published(site):
    suffixes = {path.suffix for path in site.rglob("*") if path.is_file()}
    assert suffixes <= {".html", ".css", ".js", ".json", ".png", ".svg", ".xml", ".gz", ".inv", ".map"}


def _anchors(path):
    """Returns the anchors that GitHub gives to the headings of a file."""
    headings = re.findall(r"^#+ +(.+?) *#*$", _FENCES.sub("", path.read_text()), re.MULTILINE)
    texts = [re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_relative_links_on_the_forge_hold(path):
    text = _FENCES.sub("", path.read_text())
    broken = []
    for link in (first or second for first, second in _LINK.findall(text)):
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        is_page = target.suffix == ".md" and target.is_file()
        if not re.match(r"(https?|mailto):", link) and not (
            target.exists() and (not anchor or not is_page or anchor in _anchors(target))
        ):
            broken.append(link)
    assert broken == []


def test_named_files_exist():
    """Pages name files outside of `docs/` in code font."""
    named = re.compile(r"`((?:benchmarks|configs|convoy|examples|input_pipeline|launch|tests|trainer)/[\w./-]+)`")
    missing = {
        f"{path.name}: {name}"
        for path in (*MARKDOWN, *DOCS.rglob("*.md"))
        for name in named.findall(path.read_text())
        if not (REPOSITORY / name).exists()
    }
    assert missing == set()


def test_pictures_are_shown_and_can_be_made_again():
    texts = [path.read_text() for path in (REPOSITORY / "README.md", *DOCS.rglob("*.md"))]
    pictures = {path.name for path in (DOCS / "pictures").iterdir()}
    assert {name for name in pictures if not any(f"pictures/{name}" in text for text in texts)} == set()
    assert {name for name in pictures if name.endswith(".png")} == set(make_pictures.PICTURES)
    large = {name for name in pictures if (DOCS / "pictures" / name).stat().st_size > 150_000}
    assert large == set()


def test_workflows_run_what_a_checkout_runs():
    workflow = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text())
    jobs = {name: " ".join(step.get("run", "") for step in job["steps"]) for name, job in workflow["jobs"].items()}
    assert ".ci/run" in jobs["test"] and "mkdocs build --strict" in jobs["site"]
    versions = [entry["python"] for entry in workflow["jobs"]["test"]["strategy"]["matrix"]["include"]]
    assert versions == ["3.11", "3.12", "3.13"]


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem
)
def test_issue_templates_are_valid(path):
    form = yaml.safe_load(path.read_text())
    if path.stem == "config":
        assert form == {"blank_issues_enabled": False}
        return
    assert {"name", "description", "body"} <= set(form)
    for part in form["body"]:
        assert part["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes")
        assert ("id" in part and "label" in part["attributes"]) or part["type"] == "markdown"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if reason := missing_browser():
        pytest.skip(reason)
    with Browser(tmp_path_factory.mktemp("browser") / "window") as browser:
        yield browser


def _open(browser: Browser, page: Path) -> None:
    browser.open(page.as_uri())
    browser.wait_until("document.readyState == 'complete' && !!document.querySelector('article h1')")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_pages_fit_the_window(site, browser, width, dark):
    browser.emulate(width, 800, dark=dark)
    for page in SEEN:
        _open(browser, site / page)
        browser.wait_until(f"document.body.dataset.mdColorScheme == '{'slate' if dark else 'default'}'")
        assert browser.value("document.documentElement.scrollWidth") <= width, page
        wide = "[...document.querySelectorAll('article img')].filter(e => e.getBoundingClientRect().right > innerWidth)"
        assert browser.value(f"{wide}.length") == 0, page
        assert browser.problems == [], page


@pytest.mark.parametrize("query", ["virtual_replicas", "config.virtual_replicas", "virtual replicas"])
def test_search_without_a_server_leads_to_the_config_reference(site, browser, query):
    browser.emulate(1280, 800)
    _open(browser, site / "index.html")
    browser.value(f"""
        const box = document.querySelector('.md-search__input');
        box.focus(); box.value = '{query}'; box.dispatchEvent(new Event('keyup'));
    """)
    found = "document.querySelector('.md-search-result__link[href*=\"reference/config.html\"]')"
    browser.wait_until(f"!!{found}")
    browser.value(f"{found}.click()")
    browser.wait_until("location.pathname.endsWith('/reference/config.html') && document.readyState == 'complete'")
    assert "virtual_replicas" in browser.text()
    assert browser.problems == []
