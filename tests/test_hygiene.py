"""The hygiene check finds what it is there to find, and the tree passes it."""

import pytest

from data.testing import load_module

pytestmark = pytest.mark.source


@pytest.fixture(scope="module")
def hygiene(repository):
    return load_module(repository / "tests" / "hygiene.py")


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.py", b"x = 1 \n", [":1: whitespace at the end of the line"]),
        ("a.py", b"x = 1\r\n", [":1: Windows line ending"]),
        ("a.py", b"x = 1", [": must end with exactly one newline"]),
        ("a.py", b"x = 1\n\n", [": must end with exactly one newline"]),
        ("a.py", b"<" * 7 + b" ours\n", [":1: merge marker"]),
        ("a.md", b"Title\n=======\n", []),
        ("a.bin", b"\0" * 1_000_001, [": 1,000,001 bytes, more than 1,000,000"]),
        ("a.png", b"\0 \n\n", []),
        ("a.py", b"\xff\n", [": not UTF-8"]),
        ("a.yaml", b"a: [1\n", [": does not parse"]),
        ("a.toml", b"a =\n", [": does not parse"]),
        ("a.json", b"{'a': 1}\n", [": does not parse"]),
        ("empty.py", b"", []),
    ],
)
def test_every_kind_of_untidiness_is_found(hygiene, tmp_path, name, content, found):
    (tmp_path / name).write_bytes(content)
    lines = list(hygiene.problems(tmp_path / name))
    assert len(lines) == len(found)
    assert all(line.startswith(start) for line, start in zip(lines, found, strict=True))
