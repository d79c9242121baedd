"""Files as people have them: read as they are meant, or refused in a line that names what they are."""

import csv
import io
import json
import re

import pytest

from polyjax.data.candidates import read_candidates
from polyjax.data.tables import read_table
from polyjax.data.tasks.jsonl import parse
from polyjax.errors import InputError

ROWS = [{"context": ["a", "b"], "label": "c"}, {"context": "d\u2028e", "label": "f"}]
MEANT = [(("a", "b"), ("c",)), (("d\u2028e",), ("f",))]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TABLE = "context,label\nhi,hello\n"
HELLO = [(("hi",), ("hello",))]
LISTED = [(("q",), ("b", "it's"))]
DEEP, LONG = "[" * 100_000, "[" + "1" * 5000 + "]"

READ = {
    "JSON lines": ("f.jsonl", LINES, MEANT),
    "another ending of JSON lines": ("f.ndjson", LINES, MEANT),
    "endings in capitals": ("F.JSONL", LINES, MEANT),
    "a table's ending in capitals": ("F.CSV", TABLE, HELLO),
    "a byte order mark": ("f.jsonl", LINES.encode("utf-8-sig"), MEANT),
    "a list": ("f.json", json.dumps(ROWS), MEANT),
    "a pretty-printed list": ("f.json", json.dumps(ROWS, indent=2), MEANT),
    "a list with a mark and Windows's line ends": (
        "f.jsonl",
        json.dumps(ROWS, indent=1).replace("\n", "\r\n").encode("utf-8-sig"),
        MEANT,
    ),
    "pretty-printed objects": ("f.json", "\n".join(json.dumps(row, indent=2) for row in ROWS), MEANT),
    "JSON lines in UTF-16": ("f.jsonl", LINES.encode("utf-16"), MEANT),
    "a list in UTF-16": ("f.json", json.dumps(ROWS, indent=1).encode("utf-16"), MEANT),
    "a table in UTF-16": ("f.csv", TABLE.encode("utf-16"), HELLO),
    "a table in big-endian UTF-16": ("f.csv", b"\xfe\xff" + TABLE.encode("utf-16-be"), HELLO),
    "a table in UTF-32": ("f.tsv", TABLE.replace(",", "\t").encode("utf-32"), HELLO),
    "other columns": ("f.csv", "n,context,label,n,ids\n1,hi,hello,2,3\n", HELLO),
    "turns in lines": ("f.csv", 'context,label\n"a\nb\r\nc\rd",x\n', [(("a", "b", "c", "d"), ("x",))]),
    "line breaks within a turn": (
        "f.csv",
        'context,label\n"a\u2028b\x0bc\x85d\x1ee\x0cf\ng",x\n',
        [(("a\u2028b\x0bc\x85d\x1ee\x0cf", "g"), ("x",))],
    ),
    "a mark where another file was joined": (
        "f.csv",
        b"context,label\nhi,hello\n\xef\xbb\xbfho,yes\n",
        [*HELLO, (("ho",), ("yes",))],
    ),
    "rows that end with \\r": ("f.csv", "context,label\rhi,hello\r", HELLO),
    "turns as JSON": ("f.csv", 'context,label\n"[""a"", ""b""]",x\n', [(("a", "b"), ("x",))]),
    "turns as Python writes them": (
        "f.csv",
        'context,label\n"[\'a\', ""b\'s""]",x\n',
        [(("a", "b's"), ("x",))],
    ),
    "a text that begins with a bracket": (
        "f.csv",
        "context,label\n[sic] it hums,x\n",
        [(("[sic] it hums",), ("x",))],
    ),
    "a note in brackets": (
        "f.csv",
        "context,label\n[None of it] hums,\"['x'] marks it\"\n",
        [(("[None of it] hums",), ("['x'] marks it",))],
    ),
    "a context that is a number in brackets": (
        "f.csv",
        'context,label\n[1],x\n"[2, 3]",y\n',
        [(("[1]",), ("x",)), (("[2, 3]",), ("y",))],
    ),
    "a text that begins as a list": (
        "f.csv",
        "context,label\n\"['a', 'b'] I see\",x\n",
        [(("['a', 'b'] I see",), ("x",))],
    ),
    "candidates as JSON": ("f.csv", 'context,label,candidates\nq,b,"[""b"", ""it\'s""]"\n', LISTED),
    "candidates as Python writes them": (
        "f.csv",
        'context,label,candidates\nq,b,"[\'b\', ""it\'s""]"\n',
        LISTED,
    ),
    "candidates as numpy writes them": (
        "f.csv",
        'context,label,candidates\nq,b,"[\'b\'\n ""it\'s""]"\n',
        LISTED,
    ),
    "escapes in Python's lists": ("f.tsv", "context\tlabel\tcandidates\nq\tb\t['b', 'it\\'s']\n", LISTED),
    "no candidates in a cell": ("f.csv", "context,label,candidates\nhi,hello, \n", HELLO),
    "files with byte order marks, joined": (
        "f.jsonl",
        b'\xef\xbb\xbf{"context": "hi", "label": "hello"}\n\xef\xbb\xbf{"context": "a", "label": "b"}\n',
        [*HELLO, (("a",), ("b",))],
    ),
    "quotation marks within": ("f.csv", 'context,label\nhi,5" disk\n', [(("hi",), ('5" disk',))]),
    "doubled quotation marks": (
        "f.csv",
        'context,label\nhi,"say ""so"", he"\n',
        [(("hi",), ('say "so", he',))],
    ),
    "a long cell": ("f.csv", f"context,label\n{'a' * 200_000},b\n", [(("a" * 200_000,), ("b",))]),
}


@pytest.mark.parametrize(("name", "content", "expected"), READ.values(), ids=READ)
def test_a_file_is_read_as_it_is_meant(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert [(row.context, row.candidates) for row in parse(path)] == expected


SCORES = {
    "JSON": "[0.5, -2]",
    "a tuple": "(0.5, -2.)",
    "an array": "[ 0.5 -2. ]",
    "a long array": "[ 5.e-01\n -2.0e+00]",
    "numpy's numbers": "[np.float64(0.5), np.int64(-2)]",
}


@pytest.mark.parametrize("cell", SCORES.values(), ids=SCORES)
def test_scores_are_read_as_json_python_and_numpy_write_them(tmp_path, cell):
    path = tmp_path / "f.csv"
    path.write_text(f'context,label,negatives,scores\nq,a,"[""b""]","{cell}"\n')
    assert [row.scores for row in parse(path)] == [(0.5, -2.0)]


def test_rows_without_an_id_get_one_that_no_other_row_has(tmp_path):
    path = tmp_path / "f.jsonl"  # a file with such ids, as mining keeps them, between rows without
    ids = (None, "line-3", None, "line-1", "line-1+")
    rows = [{"context": f"q{i}", "label": "a"} | ({"id": name} if name else {}) for i, name in enumerate(ids)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(row.id, row.group) for row in parse(path)] == [
        (name, name) for name in ("line-1++", "line-3", "line-3+", "line-1", "line-1+")
    ]


AGAIN = "the column names once more, as where files were joined; remove this line"
REFUSED = {
    "another kind": ("f.txt", "a", 0, "expected a .jsonl, .json, .ndjson, .csv or .tsv file, got '.txt'"),
    "nothing": ("f.jsonl", "", 0, "is empty"),
    "an empty list": ("f.json", "[ ]\n", 0, "is empty"),
    "an empty table": ("f.csv", "", 1, "expected columns named context, label, .*got nothing"),
    "a column twice": ("f.csv", "context,label,label\nq,a,b\n", 1, "the column 'label' is given twice"),
    "a key twice": (
        "f.jsonl",
        '{"context": "q", "label": "a", "label": "b"}\n',
        1,
        "the key 'label' is given twice",
    ),
    "a key twice in a list": (
        "f.json",
        '[\n{"context": "q",\n"label": "a", "label": "b"}]',
        2,
        "the key 'label' is given twice",
    ),
    "an object of splits": (
        "f.json",
        '{\n"train": [{"context": "q", "label": "a"}],\n"test": []}',
        1,
        "the key 'context' is missing; write the rows of 'train' to a file of their own, without the object",
    ),
    "an object around the rows": (
        "f.json",
        '{"version": 1, "data": [{"context": "q", "label": "a"}]}',
        1,
        "the key 'context' is missing; write the rows of 'data' to a file of their own, without the object",
    ),
    "a column in the singular": (
        "f.csv",
        "context,label,candidate\n",
        1,
        "'candidate' is nearly 'candidates'",
    ),
    "a column in capitals": ("f.csv", "context,label,Candidates\n", 1, "'Candidates' is nearly 'candidates'"),
    "a column with a space": (
        "f.tsv",
        "context\tlabel\tcandidates \n",
        1,
        "'candidates ' is nearly 'candidates'",
    ),
    "a column in the plural": ("f.csv", "contexts,label\n", 1, "'contexts' is nearly 'context'"),
    "an id in capitals": ("f.csv", "ID,context,label\n", 1, "the column 'ID' is nearly 'id'"),
    "a second label as pandas names it": (
        "f.csv",
        "context,label,label.1\n",
        1,
        "'label' and 'label.1' have nearly the same name",
    ),
    "a table of pandas, split": (
        "f.json",
        '{"columns": ["context", "label"], "index": [0], "data": [["q", "a"]]}',
        1,
        "the key 'context' is missing; write an object for each row: to_json",
    ),
    "turns with a missing one": (
        "f.csv",
        "context,label\n\"['a', nan]\",b\n",
        2,
        "context: .*JSON list of turns",
    ),
    "turns as bytes": ("f.csv", "context,label\n\"[b'a', b'b']\",b\n", 2, "context: .*JSON list of turns"),
    "turns as an array": (
        "f.csv",
        "context,label\n\"array(['a', 'b'], dtype=object)\",b\n",
        2,
        "context: .*JSON list of turns",
    ),
    "labels with a missing one": ("f.csv", "context,label\nq,\"['a', nan]\"\n", 2, "label: expected a text"),
    "a label and nothing": ("f.csv", "context,label\nq,\"['a', None]\"\n", 2, "label: expected a text"),
    "a list that numpy shortened": (
        "f.csv",
        "context,label\n\"['hi' 'there' ... 'bye']\",yo\n",
        2,
        "a JSON list of turns",
    ),
    "a list with a quote too many": ("f.csv", "context,label\n\"['it's', 'b']\",yo\n", 2, "a JSON list of"),
    "a list that is cut": ("f.csv", "context,label\n\"['a', 'b'\",yo\n", 2, "a JSON list of turns"),
    "a list of arrays": (
        "f.csv",
        "context,label\n\"[array(['a'], dtype=object)]\",yo\n",
        2,
        "a JSON list of",
    ),
    "a list as a text in JSON": (
        "f.jsonl",
        '{"context": "[\'a\', \'b\']", "label": "yo"}\n',
        1,
        "not a list written as a text",
    ),
    "a deque": ("f.csv", "context,label\n\"deque(['a', 'b'])\",yo\n", 2, "a JSON list of turns"),
    "an array of pandas": ("f.csv", "context,label\n<ArrowStringArray>,yo\n", 2, "a JSON list of turns"),
    "a column for each candidate": (
        "f.csv",
        "context,label,candidate_1,candidate_2\n",
        1,
        "'candidate_1' is nearly 'candidates'; put the texts of all such columns into one list, 'candidates'",
    ),
    "a column for each place": ("f.csv", "context,label,candidates[0]\n", 1, "is nearly 'candidates'"),
    "negatives by another name": ("f.csv", "context,label,hard_negatives\n", 1, "is nearly 'negatives'"),
    "nothing but a mark": ("f.jsonl", b"\xef\xbb\xbf", 0, "no rows|holds no|is empty|no examples"),
    "two columns that are nearly one": (
        "f.csv",
        "context,label,Label\n",
        1,
        "'label' and 'Label' have nearly the same name",
    ),
    "no such column": ("f.csv", "context,reply\n", 1, "expected columns named .*, got context, reply"),
    "too many cells": ("f.csv", "context,label\na,b,c\n", 2, "expected 2 columns, got 3"),
    "candidates that are no list": (
        "f.csv",
        "context,label,candidates\na,b,c\n",
        2,
        "candidates: expected a JSON list",
    ),
    "an array of numpy": (
        "f.csv",
        "context,label,candidates\na,b,\"array(['b', 'c'])\"\n",
        2,
        "candidates: expected a JSON list",
    ),
    "scores that are no numbers": (
        "f.csv",
        "context,label,scores\na,b,high\n",
        2,
        "scores: expected a JSON list of numbers",
    ),
    "a nested context": ("f.csv", f"context,label\n{DEEP},b\n", 2, "context: .*nested too deeply"),
    "a number as context": (
        "f.csv",
        f"context,label\n{LONG},b\n",
        2,
        "context: .*a number of thousands of digits",
    ),
    "nested candidates": (
        "f.csv",
        f"context,label,candidates\na,b,{DEEP}\n",
        2,
        "candidates: .*nested too deeply",
    ),
    "a number as candidates": (
        "f.csv",
        f"context,label,candidates\na,b,{LONG}\n",
        2,
        "candidates: .*thousands of digits",
    ),
    "a nested line": ("f.jsonl", f'{{"context": {DEEP}\n', 1, "expected JSON, got lists nested too deeply"),
    "a quoted cell that does not end": ("f.csv", 'context,label\na,"b\n', 2, "a quoted cell is not closed"),
    "a text after a quotation": (
        "f.csv",
        'context,label\na,"b"c\n',
        2,
        "cell 2: expected a delimiter or the end",
    ),
    "a header in the middle": ("f.csv", "context,label\na,b\ncontext,label\nc,d\n", 3, AGAIN),
    "a header in another order, with a mark": (
        "f.csv",
        "\ufeffcontext,label\na,b\n\ufeffLabel, context\nc,d\n",
        3,
        AGAIN,
    ),
    "a header with other columns": (
        "f.csv",
        "context,label,source\na,b,s\nlabel,context,url\nc,d,u\n",
        3,
        AGAIN,
    ),
    "a quoted header with a mark": (
        "f.csv",
        '\ufeff"context","label"\na,b\n\ufeff"context","label"\nc,d\n',
        3,
        AGAIN,
    ),
    "a column answer": ("f.csv", "context,label,answer\na,b,c\n", 1, "'answer' is nearly 'answers'"),
    "a column Groups": ("f.csv", "context,label,Groups\na,b,c\n", 1, "'Groups' is nearly 'group'"),
    "a list as label": (
        "f.csv",
        "context,label\na,\"['b', 'c']\"\n",
        2,
        "further right answers into a column",
    ),
    "a list that does not end": ("f.json", '[{"context": "a", "label": "b"}\n', 2, "the list does not end"),
    "a list without a comma": (
        "f.json",
        '[{"context": "a", "label": "b"}\n{"context": "c"}]',
        2,
        "expected ',' or ']' in the list",
    ),
    "a list and more": ("f.json", '[{"context": "a", "label": "b"}]\n{}', 2, "expected the end of the file"),
    "a broken list": (
        "f.json",
        '[{"context": "a", "label": "b"},\n{"context": oh}]',
        2,
        "expected JSON, got",
    ),
    "UTF-16 without a mark": ("f.csv", TABLE.encode("utf-16-le"), 0, "UTF-16 without a byte order mark"),
    "binary data": ("f.jsonl", b"\x89PNG\x00\x01abcdef" * 20, 0, "binary data"),
    "a zip archive": ("f.jsonl", b"PK\x03\x04" + b"\0" * 50, 0, "got a zip archive"),
    "a gzip file": ("f.csv", b"\x1f\x8b\x08" + b"\0" * 50, 0, "got a gzip file"),
    "a table of other bytes": ("f.csv", b"context,label\ncaf\xe9,b\n", 2, "not valid UTF-8"),
    "broken UTF-16": ("f.csv", TABLE.encode("utf-16") + b"\x00\xd8", 0, "not valid UTF-16"),
}


@pytest.mark.parametrize(("name", "content", "line", "message"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_cannot_be_meant_is_named_in_one_line(tmp_path, name, content, line, message):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as caught:
        parse(path)
    assert caught.value.argument.split(": ")[0] == (f"{path}:{line}" if line else str(path))
    assert re.search(message, str(caught.value)) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 400


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "f.jsonl").mkdir()
    with pytest.raises(InputError) as caught:
        parse(tmp_path / "f.jsonl")
    assert caught.value.problem == "a folder"


CANDIDATES = {
    "c.txt": ("a\nb b \na\n", ["a", "b b"]),
    "C.TXT": ("a\r\nb\u2028c\r\n", ["a", "b\u2028c"]),
    "marked.txt": ("a\n".encode("utf-8-sig"), ["a"]),
    "joined.txt": (b"a\n\xef\xbb\xbfb\n", ["a", "b"]),
    "brackets.txt": ("[sic]\n{text}\n", ["[sic]", "{text}"]),
    "wide.txt": ("a\nü\n".encode("utf-16"), ["a", "ü"]),
    "no_ending": ("a\n", ["a"]),
}


@pytest.mark.parametrize(("name", "content", "expected"), [(n, *c) for n, c in CANDIDATES.items()])
def test_candidates_are_plain_lines(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert read_candidates(path) == expected


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (None, 0, "is missing"),
        (b"\n", 0, "holds no candidate"),
        (b"a\n\nb\n", 2, "expected a candidate, got an empty line"),
        ("a\n\u200b\nb\n".encode(), 2, "expected a candidate, got an empty line"),
        (b"\xff", 0, "not valid UTF-8"),
        (b'["yes",\n "no"]\n', 0, "got JSON"),
        (b'{"text": "yes"}\n{"text": "no"}\n', 0, "got JSON"),
        (b'{"context": "hi", "label": "yes"}\n{"context": "hi", "label": "no"}\n', 0, "got JSON"),
        (b"a\0b\0\n\0", 0, "UTF-16 without a byte order mark"),
    ],
)
def test_candidates_that_cannot_be_used_are_named(tmp_path, content, line, message):
    path = tmp_path / "c.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_candidates(path)
    assert caught.value.argument == (f"{path}:{line}" if line else str(path))


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".JSONL", ".ndjson", ".tab", ".Tsv", ".xlsx"])
def test_a_table_is_no_list_of_candidates(tmp_path, ending):
    path = tmp_path / f"c{ending}"
    path.write_text("text,score\nhello,1\n")
    with pytest.raises(InputError) as caught:
        read_candidates(path)
    assert caught.value.argument == str(path) and caught.value.got == f"a table or JSON ({ending})"


def test_tables_agree_with_the_standard_librarys(rng):
    """Over random cells, quoted or not; with any line ends."""
    letters = ['"', ",", "\n", "\r\n", "a", "b c", "é", "'", "\t", ""]
    for _ in range(300):
        rows = [["".join(rng.choice(letters, rng.integers(0, 6))) for _ in range(3)] for _ in range(4)]
        file = io.StringIO(newline="")
        csv.writer(file, quoting=int(rng.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]))).writerows(rows)
        text = file.getvalue()
        split = text.splitlines(keepends=True) if rng.random() < 0.5 else re.findall(r"[^\n]*\n", text)
        found = list(read_table(iter(split), delimiter=",", longest=100))
        assert [cells for _, cells in found] == rows
    assert csv.field_size_limit() == 131072, "nobody has set it for the process"


def test_a_cell_is_not_read_beyond_its_limit():
    lines = iter(['a,"' + "b" * 60 + "\n"] + ["c" * 60 + "\n"] * 2 + ['d"\n', "e,f\n"])
    found = list(read_table(lines, delimiter=",", longest=100))
    assert isinstance(found[0][1], InputError) and found[-1] == (5, ["e", "f"])
