"""Check the built site: python docs/check_site.py site (make docs does it).

Every link within the site leads to a file and an anchor that exist, and no page loads anything from
elsewhere, so that it works from a disk without network.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {"script": "src", "img": "src", "link": "href", "source": "srcset", "iframe": "src", "video": "src"}
"""Tags that make a browser fetch something, with the attribute that says what."""


class Page(HTMLParser):
    """The links, loaded files and anchors of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag refers to."""
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.add(found["href"])
        if (attribute := LOADS.get(tag)) in found and found.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.add(found[attribute])


def faults(site: Path) -> list[str]:
    """What is wrong, one line each."""
    paths = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in paths}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        for target in sorted(page.links | page.loaded):
            url = urlsplit(target)
            if url.scheme in ("http", "https", "mailto", "data") or url.netloc:
                if target in page.loaded and url.scheme != "data":
                    found.append(f"{name}: loads {target}")
                continue
            file = (path.parent / unquote(url.path)).resolve() if url.path else path.resolve()
            file = file / "index.html" if file.is_dir() else file
            if not file.exists():
                found.append(f"{name}: {target} is missing")
            elif url.fragment and file.suffix == ".html":
                anchors = pages[site.resolve() / file.relative_to(site.resolve())].anchors
                if unquote(url.fragment) not in anchors | {"", "top"}:
                    found.append(f"{name}: {target} has no such anchor")
    for path in sorted(site.rglob("*.css")):
        for target in re.findall(r"url\(['\"]?(https?:[^)'\"]+)", path.read_text(encoding="utf-8")):
            found.append(f"{path.relative_to(site)}: loads {target}")
    return found


def main() -> None:
    """Print what is wrong; exit with 1 where something is."""
    site = Path(sys.argv[1]).resolve()
    found = faults(site)
    print("\n".join(found) or f"{len(list(site.rglob('*.html')))} pages: all links lead somewhere")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
