"""Parses report pages for tests."""

from html.parser import HTMLParser

VOID = {"meta", "img"}
INLINE = {"bdi", "b", "code", "i"}


class Page(HTMLParser):
    """A strictly parsed page: fails on unclosed tags, scripts and external resources. `text` is by section."""

    def __init__(self, content):
        super().__init__(convert_charrefs=True)
        self.size = len(content)
        self.open, self.section, self.text, self.images, self.rows = [], "", {"": ""}, {"": []}, {"": []}
        self.feed(content.decode("utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        assert tag not in ("script", "iframe", "object", "embed", "link", "base", "form")
        assert not [name for name in found if name.startswith("on")]
        assert found.get("href", "#").startswith("#")
        assert found.get("src", "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
        assert len(found) == len(attributes)
        if tag == "section":
            self.section = found["id"]
            self.text[self.section], self.images[self.section], self.rows[self.section] = "", [], []
        if tag not in INLINE:
            self.text[self.section] += " "
        if tag == "img":
            self.images[self.section].append(found["src"])
        if tag == "tr":
            self.rows[self.section].append([])
        if tag in ("td", "th"):
            self.rows[self.section][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            cells = self.rows[self.section][-1]
            cells[-1] = " ".join(cells[-1].split())
        if tag == "section":
            self.section = ""

    def handle_data(self, data):
        if "style" in self.open:
            assert "url(" not in data and "@import" not in data
            return
        self.text[self.section] += data
        if self.rows[self.section] and {"td", "th"} & set(self.open):
            self.rows[self.section][-1][-1] += data

    def words(self, section):
        return " ".join(self.text[section].split())
