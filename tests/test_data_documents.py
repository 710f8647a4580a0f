"""Documents of seven kinds: what is read of each, and what cannot be read."""

import os

import make_documents
import pytest

from ftdocs.data.documents import read_document, read_folder, without_running_lines
from ftdocs.data.markup import html_blocks, markdown_blocks, rst_blocks
from ftdocs.data.questions import pairs
from ftdocs.errors import InputError


@pytest.mark.parametrize(("name", "write"), make_documents.WRITERS.items())
def test_every_kind_gives_its_text_structure_and_question(name, write, tmp_path):
    write(tmp_path / name)
    document = read_document(tmp_path / name)
    assert document.source == name and document.title.lower().endswith("pump")
    assert " ".join(make_documents.ANSWER.split()) in " ".join(document.text.split())
    asked = {pair.question.removeprefix("1.1 "): pair for pair in pairs(document)}
    assert " ".join(asked[make_documents.QUESTION].answer.split()).startswith(make_documents.ANSWER)
    assert all(block.where.split()[0] in ("line", "page", "paragraph", "cell") for block in document.blocks)
    if name not in ("pump.txt", "pump.pdf"):
        code = [block.text for block in document.blocks if block.kind == "code"]
        assert len(code) == 1 and make_documents.CODE in code[0]
        table = next(block.text for block in document.blocks if block.kind == "table")
        assert all(cell in table for row in make_documents.TABLE for cell in row)
        assert any("`speed`" in question for question in asked), "a table of options is asked row by row"
    for hidden in ("hidden", "Home", "printed by a cell"):
        assert hidden not in document.text
    if name == "pump.ipynb":
        assert document.notes == {"outputs of cells": 1}


def test_every_bad_document_is_one_line_and_the_good_ones_are_read(tmp_path):
    reasons = make_documents.bad(tmp_path)
    for name, words in reasons.items():
        with pytest.raises(InputError, match=f"{name}.*{words}") as caught:
            read_document(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(
        InputError, match=f"none of its {len(reasons)} documents can be read; binary.md: not text"
    ):
        list(read_folder(tmp_path))
    make_documents.markdown(tmp_path / "good.md")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "notes.md").write_text("not to be read")
    report = {}
    assert [document.source for document in read_folder(tmp_path, report)] == ["good.md"]
    assert report["files"] == {".md": 1} and report["other_files"] == {".png": 1} and report["pages"] == 1
    assert {line.split(":")[0].split(",")[0] for line in report["skipped"]} == set(reasons)


def test_a_folder_without_a_document_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no document in it \(\.md, .*\.ipynb"):
        list(read_folder(tmp_path))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "below").mkdir()
    (tmp_path / ".hidden.md").write_text("# not to be read")
    with pytest.raises(InputError, match="no document in it"):
        list(read_folder(tmp_path))


def test_what_may_not_be_opened_is_said(tmp_path):
    (tmp_path / "locked.txt").write_text("x")
    (tmp_path / "locked.txt").chmod(0)
    if os.access(tmp_path / "locked.txt", os.R_OK):
        pytest.skip("root may read everything")
    with pytest.raises(InputError, match="cannot be opened"):
        read_document(tmp_path / "locked.txt")


def test_folders_that_may_not_be_opened_and_links_that_lead_nowhere_are_said(tmp_path, monkeypatch):
    make_documents.markdown(tmp_path / "good.md")
    (tmp_path / "below").mkdir()
    make_documents.markdown(tmp_path / "below" / "good.md")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "b.md").write_text("x")
    (tmp_path / "gone.md").symlink_to(tmp_path / "nowhere.md")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("secret"):  # root, whom tests may run as, could open it
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    report = {}
    assert [each.source for each in read_folder(tmp_path, report)] == ["below/good.md", "good.md"]
    assert sorted(report["skipped"]) == [
        "gone.md: a link to what is not there; put that back, or remove the link",
        "secret/: cannot be opened (Permission denied); check its permissions",
    ]


def test_a_locked_pdf_and_one_that_only_restricts_printing(tmp_path):
    import pypdf

    make_documents.pdf(tmp_path / "open.pdf")
    for name, password in (("locked.pdf", "secret"), ("restricted.pdf", "")):
        writer = pypdf.PdfWriter(clone_from=tmp_path / "open.pdf")
        writer.encrypt(password, "owner", algorithm="RC4-128")
        writer.write(tmp_path / name)
    with pytest.raises(InputError, match="locked by a password; save it without one"):
        read_document(tmp_path / "locked.pdf")
    assert make_documents.ANSWER[:30] in read_document(tmp_path / "restricted.pdf").text


def test_a_pdf_loses_its_running_lines_and_counts_pages_without_text(tmp_path):
    import pypdf

    bodies = [
        f"Chapter words {name} begin here.\n"
        + "\n".join(f"Line {n} about {name} infor-\nmation." for n in range(6))
        + f"\nAnd so ends {name}."
        for name in ("alpha", "beta", "gamma", "delta", "epsilon")
    ]
    make_documents.pdf(tmp_path / "book.pdf", bodies, header="The Great Manual")
    writer = pypdf.PdfWriter(clone_from=tmp_path / "book.pdf")
    writer.add_blank_page()
    writer.add_outline_item(title="Chapter words gamma begin here.", page_number=2)
    writer.write(tmp_path / "book.pdf")
    document = read_document(tmp_path / "book.pdf")
    assert document.pages == 6
    assert document.notes == {"pages without text": 1, "lines at the head or foot of pages": 10}
    assert "Great Manual" not in document.text and "page 3" not in document.text
    assert document.text.count("information") == 30
    (heading,) = [block for block in document.blocks if block.kind == "heading"]
    assert (heading.text, heading.where) == ("Chapter words gamma begin here.", "page 3")
    assert without_running_lines(["a\nb"] * 9) == (["a\nb"] * 9, 0), "a page of two lines is all text"


def test_markdown_blocks_are_what_the_file_says():
    text = (
        "---\ntitle: x\n---\n\n# A *b* `c`\n\n- one\n- two\n\n  ```py\n  x\n  ```\n\n> quoted\n\n"
        "```{note} Mind\n:class: tip\n\nthe gap\n```\n\n"
        ":::{tip}\n# Inner\nwords\n:::\n\n```{code-cell} python\n1 + 1\n```\n\n<!-- no -->\n"
    )
    found = [
        (block.kind, block.text.strip(), block.where) for block in markdown_blocks(text) if block.text.strip()
    ]
    assert found == [
        ("heading", "A b c", "line 5"),
        ("text", "- one\n- two", "line 7"),
        ("code", "```py\n  x\n  ```", "line 10"),
        ("text", "> quoted", "line 14"),
        ("text", "Mind", "line 16"),
        ("text", "the gap", "line 19"),
        ("heading", "Inner", "line 23"),
        ("text", "words", "line 24"),
        ("code", "```{code-cell} python\n1 + 1\n```", "line 27"),
    ]


def test_restructured_text_knows_sphinx_and_opens_nothing(tmp_path):
    (tmp_path / "secret.txt").write_text("a secret")
    text = (
        "Guide\n=====\n\nUse :func:`~os.path.join` and :ref:`the rest <rest>`.\n\n"
        f".. include:: {tmp_path / 'secret.txt'}\n\n.. raw:: html\n   :file: {tmp_path / 'secret.txt'}\n\n"
        ".. function:: join(a, b)\n   :module: os\n\n   Join.\n\n   :param str a: the first part\n"
        "   :returns: the whole\n\n   .. note:: Mind.\n\n"
        ".. code-block:: c\n   :linenos:\n\n   int x;\n\n   int y;\n\nterm\n   its meaning\n"
    )
    blocks = [block for block in rst_blocks(text) if block.text]
    assert [(block.kind, block.text, block.level) for block in blocks] == [
        ("heading", "Guide", 1),
        ("text", "Use os.path.join and the rest.", 0),
        ("heading", "join(a, b)", 2),
        ("text", "Join.", 0),
        ("parameter", "a: the first part", 0),
        ("term", "returns: the whole", 0),
        ("text", "Mind.", 0),
        ("code", "int x;\n\nint y;", 0),
        ("term", "term: its meaning", 0),
    ]
    lines = text.split("\n")
    assert lines[int(blocks[3].where.split()[1]) - 1].strip() == "Join."


def test_html_blocks_keep_code_tables_lists_and_terms_apart():
    text = (
        "<div>loose <b>bold</b><p>para<br>next</p><ul><li>one<ol><li>in</li></ol></li><li>two</li></ul>"
        "<dl><dt>alpha</dt><dd>first</dd><dt>f(x)</dt><dd>calls<pre>f(1)\n\nf(2)</pre></dd></dl>"
        "<table><tr><td><h2>Layout</h2><p>is no table</p></td></tr></table><style>p {}</style><!-- no --></div>"
    )
    assert [(block.kind, block.text) for block in html_blocks(text, "line 1") if block.text] == [
        ("text", "loose bold"),
        ("text", "para\nnext"),
        ("text", "- one\n  1. in\n- two"),
        ("term", "alpha: first"),
        ("heading", "f(x)"),
        ("text", "calls"),
        ("code", "f(1)\n\nf(2)"),
        ("heading", "Layout"),
        ("text", "is no table"),
    ]


def test_html_is_decoded_as_browsers_do(tmp_path):
    def read(named: str, content: bytes) -> str:
        head = f'<html><head><meta charset="{named}"></head><body><p>'.encode()
        mark, words = (content[:3], content[3:]) if content.startswith(b"\xef\xbb\xbf") else (b"", content)
        (tmp_path / "page.html").write_bytes(mark + head + words)
        return read_document(tmp_path / "page.html").text

    windows = "It costs 5 € – “quoted”, Größe"
    for named in ("iso-8859-1", "latin1", "us-ascii", "windows-1252"):
        assert read(named, windows.encode("cp1252")) == windows
    assert read("iso-8859-1", b"\xef\xbb\xbf" + "Größe der Tür".encode()) == "Größe der Tür"
    for named in ("utf-16", "utf-16le", "utf-32"):
        assert [read(named, b"Hello, pump" + b"s" * more) for more in (0, 1)] == [
            "Hello, pump",
            "Hello, pumps",
        ]
    assert (
        read("gb2312", "水泵開".encode("gbk")) == "水泵開"
        and read("koi8-r", "Насос".encode("koi8-r")) == "Насос"
    )
    for named, content in (("undefined", b"Hello"), ("klingon", b"Hello"), ("latin1", "“Größe”".encode())):
        with pytest.raises(InputError, match=f"not in the encoding that it names, {named}; save it as UTF-8"):
            read(named, content)


def test_a_page_nested_without_end_is_refused_not_crashed(tmp_path):
    (tmp_path / "deep.html").write_text("<div>" * 5000 + "words" + "</div>" * 5000)
    with pytest.raises(InputError, match="nested too deeply"):
        read_document(tmp_path / "deep.html")
