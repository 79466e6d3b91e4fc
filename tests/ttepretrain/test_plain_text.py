"""Text from files on a terminal: one line, nothing that moves a cursor, hides, turns the reading direction or rings."""

import pickle
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttepretrain.config import require
from ttepretrain.errors import BadStudy, ConfigError
from ttepretrain.log import log, show_log
from ttepretrain.plain_text import plain, shown


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Pneumonia, décès, 肺炎, ß <b>", "Pneumonia, décès, 肺炎, ß <b>"),
        ("\x1b[2J\x1b[1;31mred", "\\x1b[2J\\x1b[1;31mred"),
        ("\x9b2J", "\\x9b2J"),  # CSI in one character
        ("\x1b]8;;http://a\x07click\x1b]8;;\x07", "\\x1b]8;;http://a\\x07click\\x1b]8;;\\x07"),
        ("good\rbad", "good\\rbad"),
        ("good\b\b\b\bbad", "good\\x08\\x08\\x08\\x08bad"),
        ("a\nttepretrain: error: b", "a\\nttepretrain: error: b"),
        ("a\0b", "a\\x00b"),
        ("\u202ecod.exe\u2066", "\\u202ecod.exe\\u2066"),  # reading direction
        ("a\u2028b\u2029c\x85d", "a\\u2028b\\u2029c\\x85d"),  # more ends of lines
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("\U000e0041", "\\U000e0041"),  # tags: invisible letters
        ("\ud800", "\\ud800"),  # of a file name that is not UTF-8
    ],
)
def test_what_is_not_printable_is_its_escape(text, line):
    assert plain(text) == line


@given(st.text())
def test_any_text_becomes_one_printable_line(text):
    line = plain(text)
    assert line.isprintable()
    assert not any(unicodedata.category(c)[0] == "C" for c in line)
    assert plain(line) == line
    line.encode()


def test_long_texts_are_cut_and_say_by_how_much():
    assert plain("x" * 1000, 10) == "xxxxxxxxxx... (990 more characters)"


def test_values_in_messages_are_short_whatever_they_are():
    deep = []
    for _ in range(5000):
        deep = [deep]
    for value in ("x" * 10**7, list(range(10**6)), deep, 10**4000, {"a" * 10**6: 1}, "\x1b[2J\u202e"):
        assert len(shown(value)) < 260
        assert shown(value).isprintable()
        with pytest.raises(ConfigError, match="key must be small; got ") as caught:
            require(False, "key", value, "must be small")
        assert len(str(caught.value)) < 300
    assert shown([0, 30.0, None, "é"]) == "[0, 30.0, None, 'é']"


@pytest.fixture
def terminal(capsys):
    handlers, level = log.handlers[:], log.level
    show_log("embed")
    yield lambda: capsys.readouterr().err
    log.handlers[:] = handlers
    log.setLevel(level)


def test_a_log_line_cannot_be_forged(terminal):
    log.warning("column %s is missing", "a\x1b[2K\r\nembed: error: disk full\n  two")
    assert terminal() == "embed: warning: column a\\x1b[2K\\r is missing".replace(
        " is missing", "\n  embed: error: disk full\n  two is missing\n"
    )


def test_what_a_scan_says_of_itself_is_plain_in_its_refusal():
    error = BadStudy("BAD_SCALING", "slope '\x1b[31m1\u202e\n'")
    assert error.detail == "slope '\\x1b[31m1\\u202e\\n'"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
