"""csv and tsv files as they come: which quotation marks quote, what a file is that is no table; by file and line."""

import bz2
import csv
import gzip
import io
import random
import re

import polars as pl
import pyarrow as pa
import pytest

from ehr.sources import delimited
from ehr.sources.delimited import read_delimited, read_header
from ttepretrain.errors import ConfigError, IntegrityError

HEADER = "a,b,c\n"


def written(folder, text, name="t.csv"):
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / name


def read(folder, text, name="t.csv", **options):
    path = written(folder, text, name)
    return [row for frame in read_delimited(path, name, None, [""], **options) for row in frame.rows()]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('1,"x, y",2\n', [("1", "x, y", "2")]),
        ('1,"two\nlines",2\n3,4,5\n', [("1", "two\nlines", "2"), ("3", "4", "5")]),
        ('1,2,"two\nlines, with ""marks"""\n3,4,5', [("1", "2", 'two\nlines, with "marks"'), ("3", "4", "5")]),
        ('"three\r\nor\r\nfour",2,3\r\n4,"",6\r\n', [("three\r\nor\r\nfour", "2", "3"), ("4", None, "6")]),
        # a mark that is never closed, closed before text, or below in another row's text: the mark is text
        ('1,"x,2\n3,y,4\n', [("1", '"x', "2"), ("3", "y", "4")]),
        ('1,"x,2\n3,"y,4\n', [("1", '"x', "2"), ("3", '"y', "4")]),
        ('1,"x,2\n3,"y",4\n', [("1", '"x', "2"), ("3", "y", "4")]),
        ('1,"x,2\n3,"y, z",4\n', [("1", '"x', "2"), ("3", "y, z", "4")]),
        ('1,"Needle" 5,2\n3,tube 5",4\n', [("1", '"Needle" 5', "2"), ("3", 'tube 5"', "4")]),
        ('1,2,"\n', [("1", "2", '"')]),
        ('1,2,3\n4,5,"x', [("1", "2", "3"), ("4", "5", '"x')]),
        # one row has the header's cells only if its marks are text
        ('1,"x,2"\n', [("1", '"x', '2"')]),
        # no row is lost to blank lines and lone carriage returns
        ("\n1,2,3\r\n\r\n4,5,6", [("1", "2", "3"), ("4", "5", "6")]),
        ('1,"x,2\r3,"y",4\r', [("1", '"x', "2"), ("3", "y", "4")]),
    ],
)
@pytest.mark.parametrize("block", [5, 4 << 20])
def test_which_marks_quote(tmp_path, monkeypatch, text, rows, block):
    """Whatever the blocks that the file is read in."""
    monkeypatch.setattr(delimited, "_BLOCK_BYTES", block)
    assert read(tmp_path, HEADER + text) == rows


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        # the mark is closed, and the cells fit: but lines 2 and 4 are whole rows without it
        ('1,"x,2\n3,y,4\n5,tube 5",6\n', 2, "closed some lines below, and lines that look like whole rows"),
        ("1,2,3\n4,5\n", 3, "2 cells, but the header has 3; quote cells that hold ','"),
        ("1,2,3,\n", 2, "4 cells, but the header has 3"),
        ('"1",2,3\n\n"4",5,6,7\n', 4, "4 cells, but the header has 3, however its quotation marks are read"),
        ('1,"say \\"hi\\", please",2\n', 2, 'escaped by a backslash (\\"); export with marks doubled'),
        ('1,"say \\"hi\\" please",2\n', 2, "escaped by a backslash"),
        ('1,"C:\\",2\n3,"5\\", long",4\n', 3, "escaped by a backslash"),
    ],
)
@pytest.mark.parametrize("block", [5, 4 << 20])
def test_a_record_that_cannot_be_read_is_refused_by_line_and_not_shown(
    tmp_path, monkeypatch, text, line, message, block
):
    monkeypatch.setattr(delimited, "_BLOCK_BYTES", block)
    with pytest.raises(ConfigError, match=re.escape(f"t.csv, line {line}: ") + ".*" + re.escape(message)) as error:
        read(tmp_path, HEADER + text)
    assert not {"hi", "tube", "please", "x,"} & {*re.findall(r"[\w,]+", str(error.value))}


def test_one_mark_swallows_no_row_of_a_long_file(tmp_path, caplog):
    """The next mark that could close it is a megabyte and more below."""
    rows = [f"{n},{'name':>40},{n}" for n in range(60_000)]
    rows[100], rows[-100] = '100,"stray,0', '59900,tube 5",0'
    found = read(tmp_path, HEADER + "\n".join(rows))
    assert [row[0] for row in found] == [str(n) for n in range(60_000)]
    assert "t.csv: 1 cells begin with a quotation mark that quotes nothing" in caplog.text


def test_a_swallowed_part_is_found_by_what_lies_between(tmp_path):
    """The first line of the record is none by itself; most lines in it are."""
    text = HEADER + '1,"x\n' + "3,y,4\n" * 5 + '5,z",6\n'
    with pytest.raises(ConfigError, match="line 2: a cell begins with a quotation mark that is closed"):
        read(tmp_path, text)


ATHENA = "concept_id\tconcept_name\tconcept_code\n"


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('1\t"x\t2\n3\ty"\t4\n', [("1", '"x', "2"), ("3", 'y"', "4")]),  # today's Athena: never quoted
        ('1\t"Acute" pain\t2\n3\t"x"\t4\n', [("1", '"Acute" pain', "2"), ("3", '"x"', "4")]),
        ('1\t"two\nlines"\t2\n', [("1", "two\nlines", "2")]),  # only fits quoted
        ('1\t"a\ttab"\t2\n', [("1", "a\ttab", "2")]),
    ],
)
def test_tabs_do_not_quote_where_that_fits(tmp_path, text, rows):
    assert read(tmp_path, ATHENA + text, literal_first=True) == rows


def test_tabs_quote_where_the_header_does(tmp_path):
    text = '"concept_id"\t"concept_name"\t"concept_code"\n"1"\t"a\ttab"\t"2"\n"3"\t"x"\t4\n5\t"y\t6\n'
    expected = [("1", "a\ttab", "2"), ("3", "x", "4"), ("5", '"y', "6")]
    assert read(tmp_path, text, literal_first=True) == read(tmp_path, text) == expected


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_what_separates_is_read_from_the_header(tmp_path, delimiter):
    text = delimiter.join(["a", "b (c, d)" if delimiter == ";" else "b", "c"]) + "\n" + delimiter.join("123") + "\n"
    assert read(tmp_path, text) == [("1", "2", "3")]


@pytest.mark.parametrize("seed", range(30))
def test_what_pythons_writer_wrote_is_read_as_pythons_reader_reads_it(tmp_path, monkeypatch, seed):
    rng = random.Random(seed)
    monkeypatch.setattr(delimited, "_BLOCK_BYTES", rng.choice([3, 17, 100, 4096]))
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    commas = 1 if quoting == csv.QUOTE_ALL else 0.1  # or a line of a cell may look like a row
    pieces = ['"', "\n", ",", "x", "yy", " ", '""', "\r\n", "ä"]
    weights = [2, 1, commas, 6, 6, 3, 1, 1, 3]
    rows = [["".join(rng.choices(pieces, weights, k=rng.randrange(7))) for _ in range(9)] for _ in range(40)]
    out = io.StringIO()
    writer = csv.writer(out, quoting=quoting, lineterminator=rng.choice(["\n", "\r\n"]))
    writer.writerows([list("abcdefghi"), *rows])
    text = out.getvalue()
    expected = [tuple(cell or None for cell in row) for row in csv.reader(io.StringIO(text, newline=""))][1:]
    assert read(tmp_path, text) == expected


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lambda data: pa.compress(data, "zstd", asbytes=True)])
@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_compression_is_told_by_content(tmp_path, pack, name):
    text = '\ufeffa,b,c\n1,"x,2\n'
    assert read(tmp_path, pack(text.encode()), name) == read(tmp_path, text, name) == [("1", '"x', "2")]
    packed = gzip.compress((HEADER + "1,2,3\n" * 9000).encode())
    with pytest.raises(IntegrityError, match=rf"^{name}: is damaged or cut short \(\w+\); copy it again"):
        read(tmp_path, packed[:-9], name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,ä\n".encode("latin-1"), "t.csv, line 2: is not UTF-8 text, perhaps Latin-1"),
        ("ä,b\n1,2\n".encode("latin-1"), "t.csv, line 1: is not UTF-8 text"),
        ("a,b\n1,2\n".encode("utf-16"), "t.csv is UTF-16 text; save it as UTF-8"),
        ("a,b\n1,2\n".encode("utf-16-be"), "t.csv is UTF-16 text"),
        ("a,b\n1,2\n".encode("utf-16-le"), "t.csv is UTF-16 text"),
        (b"a,b\n1\0\0,2\n", "holds bytes that are zero"),
        (b"PK\x03\x04....xl/workbook.xml", "t.csv is an Excel workbook; save it as csv"),
        (b"PK\x03\x04....person.csv", "t.csv is a zip archive; unpack it"),
        (b"\xd0\xcf\x11\xe0....", "t.csv is an old Excel or Office file"),
        (b"PAR1....", "t.csv is a parquet file; name it .parquet"),
        (b"\n <!DOCTYPE html><html>", "t.csv is a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "t.csv is a Git LFS pointer"),
        (b'[{"a": 1}]', "t.csv is JSON"),
    ],
)
def test_what_is_no_table_is_called_what_it_is(tmp_path, content, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        read(tmp_path, content)
    assert not re.search("damaged|restore", str(error.value))


def test_a_cell_of_another_encoding_does_not_matter_where_it_is_not_read(tmp_path):
    (tmp_path / "t.csv").write_bytes("a,b\n1,ä\n".encode("latin-1"))
    (frame,) = read_delimited(tmp_path / "t.csv", "t.csv", ("a",), [""])
    assert frame.equals(pl.DataFrame({"a": ["1"]}))


@pytest.mark.parametrize("text", ["", "\n", "\r\n\r\n", "\ufeff\n"])
def test_a_file_of_nothing_has_no_columns(tmp_path, text):
    assert read_header(written(tmp_path, text), "t.csv").names == []


@pytest.mark.parametrize("blank", ["\n", "\r\n\r\n", "\r", "\ufeff\n"])
def test_blank_lines_may_stand_before_the_header_and_count(tmp_path, blank):
    end = "\r" if blank == "\r" else "\n"
    lines = [HEADER.strip(), "1,2,3", '"4",5,6']
    assert read(tmp_path, blank + end.join(lines)) == [("1", "2", "3"), ("4", "5", "6")]
    with pytest.raises(ConfigError, match=rf"line {4 + blank.count(chr(10))}: 2 cells" if end == "\n" else "line 5: 2"):
        read(tmp_path, blank + end.join([*lines, "7,8"]))
