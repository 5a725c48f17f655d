"""Whatever is escaped is shown by a Markdown parser as it was given."""

import doctest

import pytest
from markdown_it import MarkdownIt

from mediffusion_diffusers.publishing import markdown
from mediffusion_diffusers.publishing.markdown import code, escape_markdown, literal, one_line, prose


PARSER = MarkdownIt("commonmark").enable("table")
NAMES = [
    *("Mass", "Pleural_Thickening", "CC BY-NC 4.0 (non-commercial)", "__init__", "a_b_"),
    *("snake_case_name", "10 % of 5", "# Mass", "#", "###### six", "- item", "+", "* star", "1. one"),
    *("1)", "2021) study", "---", "- - -", "***", "===", "a|b", "|", "<script>alert(1)</script>"),
    *("<!-- -->", "```", "`code`", "~~~", "[x](y)", "![x](y)", "[x]: y", "&lt;", "<https://example.org>"),
    *("https://example.org", "www.example.org", "**bold**", "~~gone~~", "$x^2$", "\\", "a\\|b"),
    *("two\nlines", "a\n\n# b", "tab\t# x", "  indented", "\u2028# x", "trailing\\", "> quote"),
    *("a\r---\r", "\u0000"),
]


def shown(text):
    """Kinds of tokens, and the words that a reader sees."""
    kinds, words = [], []
    for token in PARSER.parse(text):
        for part in [token, *(token.children or [])]:
            if part.type in ("text", "code_inline", "text_special"):
                words.append(part.content)
            else:
                kinds.append((part.type, part.tag))
    return kinds, "".join(words)


@pytest.mark.parametrize("name", NAMES)
def test_escaped_text_is_a_paragraph_of_that_text(name):
    if not one_line(name):
        assert escape_markdown(name) == ""
        return
    assert shown(escape_markdown(name)) == (shown("Mass")[0], one_line(name))
    assert shown(f"- {escape_markdown(name)}") == (shown("- Mass")[0], one_line(name))
    table = "| a | b |\n|---|---|\n| {} | 1 |"
    assert shown(table.format(escape_markdown(name))) == (shown(table.format("Mass"))[0], f"ab{one_line(name)}1")


@pytest.mark.parametrize("name", NAMES)
def test_a_literal_is_a_string_of_python_on_one_line_of_code(name):
    fenced = f"```python\nname = {literal(name)}\n```"
    tokens = PARSER.parse(fenced)
    assert [token.type for token in tokens] == ["fence"]
    values = {}
    exec(tokens[0].content, values)
    assert values["name"] == name


@pytest.mark.parametrize("name", NAMES)
def test_inline_code_ends_where_it_should(name):
    if not one_line(name):
        return
    kinds, words = shown(f"| a |\n|---|\n| {code(name)} |")
    assert kinds == shown("| a |\n|---|\n| Mass |")[0] and words == f"a{one_line(name)}"


def test_addresses_in_prose_are_links_to_what_they_say():
    text = "See https://example.org/a_b*c_d?x=1, (https://example.org/two). # no heading [x](https://evil.example)"
    tokens = PARSER.parse(str(prose(text)))[1].children
    links = [token.attrs["href"] for token in tokens if token.type == "link_open"]
    assert links == ["https://example.org/a_b*c_d?x=1", "https://example.org/two", "https://evil.example"]
    assert "".join(token.content for token in tokens) == text


def test_examples_run():
    results = doctest.testmod(markdown)
    assert results.attempted > 0 and results.failed == 0
