"""The blocks of Markdown, HTML and reStructuredText, as their own parsers see them."""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftdocs.data.blocks import Block, Read, entry, one_line, table
from ftdocs.data.read import read_lines
from ftdocs.errors import InputError

# MyST's directives whose content is prose, such as a note; code-cell, code-block, math and the like are code.
PROSE = re.compile(r"\{(?!code|literal|math|eval|mermaid|parsed|plot|figure|image|toctree|raw)[\w:-]+\}")
DEEPEST = 8  # directives within directives
INVISIBLE = (
    "script style nav header footer aside noscript template svg form button iframe select head".split()
)
HEADINGS = "h1 h2 h3 h4 h5 h6".split()
STRUCTURE = [*HEADINGS, *"pre table dl ul ol".split()]
HTML_BLOCKS = [
    *STRUCTURE,
    *"html body main article section div blockquote figure details fieldset center p li dt dd tr td th tbody".split(),
    *"thead tfoot figcaption summary address caption legend hr".split(),
]
# What browsers read where a page names one of these encodings (https://encoding.spec.whatwg.org), by Python's names.
BROWSERS_READ = {
    "ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "iso8859-11": "cp874", "tis-620": "cp874",
    "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949",
}  # fmt: skip


def lines_of(path: Path) -> str:
    """A text file's text, its line ends ``\\n``; raises :class:`InputError` as ``read.read_lines`` does."""
    return "".join(read_lines(path)).replace("\r\n", "\n").replace("\r", "\n")


def read_markdown(path: Path) -> Read:
    """Markdown (CommonMark with tables, and MyST's directives): each block is what the file says, mark-up included."""
    text = lines_of(path)
    title = re.match(r"---\n(?:(?!---).*\n){0,50}?title:[ \t]*(.+)\n", text)
    return title[1].strip("\"' ") if title else "", list(markdown_blocks(text)), {}


def markdown_blocks(text: str, unit: str = "line", first: int = 1, depth: int = 0) -> Iterator[Block]:
    """The blocks of a Markdown text whose first line has the number ``first``.

    A list or a quotation is one block, but for code and tables within it. A directive whose content is prose gives
    the blocks of its content. ``unit`` other than ``line`` is the place of all blocks.
    """
    from markdown_it import MarkdownIt
    from mdit_py_plugins.colon_fence import colon_fence_plugin
    from mdit_py_plugins.front_matter import front_matter_plugin

    # What is nested deeper than maxNesting would be passed over without a word; the default is 20.
    parser = MarkdownIt("commonmark", {"maxNesting": 200}).enable("table")
    parser.use(front_matter_plugin).use(colon_fence_plugin)
    lines, tokens = text.split("\n"), parser.parse(text)
    pending: list[int] = []  # first and last line of the text block that is being gathered

    def block(kind: Any, start: int, end: int) -> Block:
        return Block(kind, "\n".join(lines[start:end]), f"line {first + start}" if unit == "line" else unit)

    def gathered() -> Iterator[Block]:
        if pending:
            yield block("text", *pending)
            pending.clear()

    for place, token in enumerate(tokens):
        if token.map is None or token.nesting < 0:
            continue
        start, end = token.map
        if token.level == 0:
            yield from gathered()
        if token.type == "html_block" and token.level == 0:
            yield from html_blocks("\n".join(lines[start:end]), block("text", start, end).where)
        elif token.type in ("paragraph_open", "html_block"):
            pending[:] = [pending[0] if pending else start, end]
        elif token.type == "heading_open":
            yield from gathered()
            words = "".join(piece.content for piece in tokens[place + 1].children or [] if not piece.nesting)
            yield Block("heading", words, block("text", start, end).where, level=int(token.tag[1]))
        elif token.type in ("fence", "code_block", "colon_fence", "table_open"):
            yield from gathered()
            if token.type in ("fence", "colon_fence") and PROSE.match(token.info.strip()) and depth < DEEPEST:
                words = token.info.strip().partition("}")[2].strip()
                yield Block("text", words * has_words(words), block("text", start, end).where)
                yield from markdown_blocks(without_options(token.content), unit, first + start + 1, depth + 1)
            else:
                yield block("table" if token.type == "table_open" else "code", start, end)
    yield from gathered()


def without_options(content: str) -> str:
    """The content of a MyST directive with blank lines in place of its options."""
    options = r"\A(?:---\n(?:.*\n)*?---\n|(?:[ \t]*:[\w-]+:.*\n)+)"
    return re.sub(options, lambda found: "\n" * found[0].count("\n"), content)


def has_words(text: str) -> bool:
    """Whether there is a letter in it: what stands after a directive's name may be the number of columns."""
    return re.search(r"[^\W\d_]", text) is not None


def read_html(path: Path) -> Read:
    """The text of a web page: of its ``main`` or ``article`` where it has one; navigation and scripts are left out."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html_text(path), "html.parser")
    title = one_line(soup.title.get_text()) if soup.title else ""
    blocks = list(html_walk(soup.find("main") or soup.find("article") or soup.body or soup))
    return "" if any(block.kind == "heading" for block in blocks) else title, blocks, {}


def html_text(path: Path) -> str:
    """A web page as browsers decode it: a byte-order mark counts most, then the encoding that it names, else UTF-8.

    A page that can be read as such a name is not in UTF-16 or UTF-32, whatever it says.
    """
    from bs4.dammit import EncodingDetector

    content = path.read_bytes()
    named = EncodingDetector.find_declared_encoding(content, is_html=True)
    if not named or b"\0" in content or content.startswith(codecs.BOM_UTF8):
        return lines_of(path)
    try:
        encoding = codecs.lookup(named).name
        if encoding.startswith(("utf-16", "utf-32")):
            return lines_of(path)
        return content.decode(BROWSERS_READ.get(encoding, encoding))
    except (UnicodeError, LookupError) as error:
        raise InputError(f"{path}: not in the encoding that it names, {named}; save it as UTF-8") from error


def html_blocks(text: str, where: str) -> Iterator[Block]:
    """The blocks of a piece of HTML that stands at one place of another document; a comment has none."""
    from bs4 import BeautifulSoup

    for block in html_walk(BeautifulSoup(text, "html.parser")):
        yield Block(block.kind, block.text, where, block.level, block.name, block.meaning)


def html_walk(node: Any) -> Iterator[Block]:
    """The blocks below an element; words that stand in no block of their own are gathered into one."""
    words: list[str] = []
    where = f"line {node.sourceline or 1}"
    for child in node.children:
        if child.name in INVISIBLE:
            continue
        if child.name is None or not (child.name in HTML_BLOCKS or child.find(HTML_BLOCKS)):
            words.append(visible(child))
            continue
        yield Block("text", lines_in("".join(words)), where)
        words.clear()
        where = f"line {child.sourceline or 1}"
        yield from html_block(child, where)
    yield Block("text", lines_in("".join(words)), where)


def html_block(tag: Any, where: str) -> Iterator[Block]:
    """The blocks of one element that is a block or holds some."""
    if tag.name in HEADINGS:
        yield Block("heading", re.sub(r"[¶#]\s*$", "", visible(tag)), where, level=int(tag.name[1]))
    elif tag.name == "pre":
        yield Block("code", tag.get_text(), where)
    elif tag.name == "table" and not tag.find(STRUCTURE):
        rows = [row.find_all(["th", "td"]) for row in tag.find_all("tr")]
        yield table([[visible(cell) for cell in row] for row in rows], where)
    elif tag.name in ("ul", "ol") and not tag.find([*HEADINGS, "pre", "table", "dl"]):
        yield Block("text", "\n".join(html_list(tag)), where)
    elif tag.name == "dl":
        yield from html_terms(tag, where)
    else:
        yield from html_walk(tag)


def visible(node: Any) -> str:
    """The text of a node as its reader sees it: a comment has none, ``<br>`` is a line break."""
    from bs4 import NavigableString
    from bs4.element import PreformattedString

    if isinstance(node, NavigableString):
        return "" if isinstance(node, PreformattedString) else re.sub(r"\s+", " ", str(node))
    if node.name in INVISIBLE:
        return ""
    return "\n" if node.name == "br" else "".join(map(visible, node.children))


def lines_in(text: str) -> str:
    """Text with one space between its words; its line breaks stay."""
    return "\n".join(map(one_line, text.split("\n"))).strip("\n")


def html_list(tag: Any, indent: str = "") -> Iterator[str]:
    """A list's items, a line each; the items of a list within it are indented."""
    number = 0
    for child in tag.children:
        if child.name in ("ul", "ol"):
            yield from html_list(child, indent + "  ")
        elif child.name is None or child.name != "li":
            if words := one_line(visible(child)):
                yield indent + words
        else:
            number += 1
            inner = [each for each in child.find_all(["ul", "ol"]) if each.find_parent("li") is child]
            for each in inner:
                each.extract()
            yield f"{indent}{f'{number}.' if tag.name == 'ol' else '-'} {one_line(visible(child))}"
            for each in inner:
                yield from html_list(each, indent + "  ")


def html_terms(tag: Any, where: str) -> Iterator[Block]:
    """A definition list's terms; where code, a table or a list belongs to one it is a heading, and those follow."""
    names: list[str] = []
    for child in tag.find_all(["dt", "dd"]):
        if child.find_parent("dl") is not tag:
            continue
        if child.name == "dt":
            names.append(re.sub(r"[¶#]\s*$", "", one_line(visible(child))))
            continue
        name, names = ", ".join(names), []
        if child.find(STRUCTURE):
            yield Block("heading", name, where, level=6)
            yield from html_walk(child)
        else:
            meaning = "\n\n".join(block.text for block in html_walk(child) if block.text)
            yield entry("term", name, meaning, where)
    yield Block("text", ", ".join(names), where)


# reStructuredText. A role such as :func:`len` becomes ``len``: docutils alone does not know Sphinx's.
ROLE = re.compile(r"(?<![\w`:]):(?!math:)[a-zA-Z][\w:+.-]*:`[~!]?([^`<]+?)(?:\s*<[^`]*>)?`")
OBJECTS = """function class method attribute data exception option envvar macro type module decorator property
    classmethod staticmethod decoratormethod describe object confval opcode var member struct cmdoption
    pdbcommand 2to3fixer""".split()
LEFT_OUT = """toctree index image figure currentmodule module sectionauthor moduleauthor highlight automodule autoclass
    autofunction automethod autosummary literalinclude include raw contents tabularcolumns only meta""".split()
CODE = """code code-block sourcecode testcode testoutput testsetup doctest ipython prompt plot jupyter-execute
    productionlist parsed-literal graphviz mermaid""".split()
DIRECTIVE = re.compile(r"\.\. ([\w:+.-]+?)::[ \t]*(.*)")
FIELD = re.compile(r"(?:param|parameter|arg|argument|keyword|kwarg|key)\s+(?:.*\s)?(\S+)$")


def read_rst(path: Path) -> Read:
    """reStructuredText as docutils reads it, Sphinx's directives and roles included; nothing else is opened or run."""
    return "", list(rst_blocks(lines_of(path))), {}


def rst_blocks(text: str, first: int = 1, depth: int = 1) -> Iterator[Block]:
    """The blocks of a reStructuredText whose first line has the number ``first``; its headings begin at ``depth``."""
    from docutils.core import publish_doctree

    settings = {
        "report_level": 5, "halt_level": 6, "file_insertion_enabled": False, "raw_enabled": False,
        "_disable_config": True, "doctitle_xform": False, "smart_quotes": False, "line_length_limit": 10**9,
    }  # fmt: skip
    tree = publish_doctree(ROLE.sub(r"``\1``", text), settings_overrides=settings)
    yield from rst_walk(tree, first, depth)


def rst_walk(node: Any, first: int, depth: int) -> Iterator[Block]:
    """The blocks of a docutils node's children."""
    for child in node.children:
        yield from rst_block(child, f"line {max(1, first + line_of(child) - 1)}", first, depth)


def line_of(node: Any) -> int:
    """The line of a docutils node: its own, the first one within it, or that of what it stands in."""
    found = node.line or next((each.line for each in node.findall() if each.line), None)
    while found is None and node.parent is not None:
        node = node.parent
        found = node.line
    return found or 1


def rst_block(node: Any, where: str, first: int, depth: int) -> Iterator[Block]:
    """The blocks of one docutils node, by its kind."""
    from docutils import nodes

    if isinstance(node, nodes.title | nodes.rubric):
        yield Block("heading", node.astext(), where, level=depth)
    elif isinstance(node, nodes.section):
        if "system-messages" not in node["classes"]:
            yield from rst_walk(node, first, depth + (not isinstance(node.parent, nodes.document)))
    elif isinstance(node, nodes.system_message):
        for literal in node.findall(nodes.literal_block):  # a directive that docutils does not know
            yield from rst_directive(literal.astext(), first + (node.get("line") or 1) - 1, depth)
    elif isinstance(node, nodes.FixedTextElement) and not isinstance(node, nodes.comment | nodes.raw):
        yield Block("code", node.astext(), where)
    elif isinstance(node, nodes.bullet_list | nodes.enumerated_list):
        yield from rst_list(node, where, first, depth)
    elif isinstance(node, nodes.table):
        rows = [[cell.astext() for cell in row.children] for row in node.findall(nodes.row)]
        yield table(rows, where)
    elif isinstance(node, nodes.definition_list_item):
        terms = ", ".join(term.astext() for term in node.findall(nodes.term) if term.parent is node)
        yield from rst_entry("term", terms, node.children[-1], where, first, depth)
    elif isinstance(node, nodes.field | nodes.option_list_item):
        name, body = node.children[0].astext(), node.children[-1]
        found = FIELD.match(name) if isinstance(node, nodes.field) else re.match("(.*)", name)
        yield from rst_entry(
            "parameter" if found else "term", found[1] if found else name, body, where, first, depth
        )
    elif isinstance(node, nodes.Invisible | nodes.image | nodes.decoration | nodes.raw):
        return
    elif isinstance(node, nodes.TextElement):
        yield Block("text", node.astext(), where)
    else:
        yield from rst_walk(node, first, depth)


def rst_list(node: Any, where: str, first: int, depth: int) -> Iterator[Block]:
    """A list as lines; one that holds code or tables gives the blocks of its items instead."""
    from docutils import nodes

    inner = list(rst_walk(node, first, depth))
    if all(block.kind in ("text", "term", "parameter") for block in inner):
        lines = []
        for number, item in enumerate(node.children, 1):
            mark = f"{number}. " if isinstance(node, nodes.enumerated_list) else "- "
            words = "\n".join(block.text for block in rst_walk(item, first, depth))
            lines.append(mark + words.replace("\n", "\n  "))
        inner = [Block("text", "\n".join(lines), where)]
    yield from inner


def rst_entry(kind: Any, name: str, body: Any, where: str, first: int, depth: int) -> Iterator[Block]:
    """A parameter or a term and its meaning; where code or a table belongs to it, those are blocks of their own."""
    inner = list(rst_walk(body, first, depth))
    meaning = []
    while inner and inner[0].kind == "text":
        meaning.append(inner.pop(0).text)
    yield entry(kind, name, "\n\n".join(meaning), where)
    yield from inner


def rst_directive(text: str, first: int, depth: int) -> Iterator[Block]:
    """The blocks of one of Sphinx's directives: a described object is a heading, what is prose is read on."""
    head, _, rest = text.partition("\n")
    found = DIRECTIVE.match(head)
    if found is None:
        yield Block("text", text, f"line {first}")
        return
    name, words = found[1].split(":")[-1], found[2].strip()
    lines = rest.split("\n")
    width = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    lines = [line[width:] for line in lines]
    start = first + 1
    signatures = [words] if words else []
    while name in OBJECTS and lines and lines[0].strip() and not lines[0].startswith(":"):
        signatures.append(lines.pop(0).strip())  # a second signature, aligned with the first one
        start += 1
    while (
        lines and re.match(r":[\w-]+:( |$)", lines[0]) and not FIELD.match(lines[0].strip(":").split(":")[0])
    ):
        lines.pop(0)  # an option
        start += 1
    content = "\n".join(lines)
    if name in LEFT_OUT:
        return
    if name in CODE:
        yield Block("code", content.strip("\n") or words, f"line {first}")
    elif name in OBJECTS:
        yield Block("heading", ", ".join(signatures), f"line {first}", level=depth + 1)
        yield from rst_blocks(content, start, depth + 1)
    elif depth < 4 * DEEPEST:
        yield Block("text", words * has_words(words), f"line {first}")
        yield from rst_blocks(content, start, depth + 1)
