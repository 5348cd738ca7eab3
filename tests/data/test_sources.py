import gzip
import json
import logging

import pytest

from jaxforget.data.records import variants
from jaxforget.data.sources import DataSource, load_records
from jaxforget.engine.errors import UserError

ROWS = [{"question": f"q{i}", "answer": f"a{i}", "perturbed_answer": ["x", "y"]} for i in range(6)]


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def jsonl(rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def read(path, **options):
    return load_records(DataSource(path, **options))


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_json_lines_are_read_whatever_the_file_is_called(write, name, end):
    records = read(write(name, jsonl(ROWS) + end))
    assert [(r.prompt, r.answer, r.row) for r in records] == [
        (f"q{i}", f"a{i}", i) for i in range(6)
    ]
    assert records[0].extra == {"perturbed_answer": ["x", "y"]}


def test_array_gzip_parquet_and_byte_order_mark_give_the_same_records(write, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    want = [(r.prompt, r.answer, r.row, r.extra) for r in read(write("a.jsonl", jsonl(ROWS)))]
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    paths = [
        write("a.json", "\n " + json.dumps(ROWS, indent=1)),
        write("a.jsonl.gz", gzip.compress(jsonl(ROWS).encode())),
        write("bom.json", "\ufeff" + jsonl(ROWS)),
        str(tmp_path / "a.parquet"),
    ]
    for path in paths:
        assert [(r.prompt, r.answer, r.row, r.extra) for r in read(path)] == want, path


@pytest.mark.parametrize("trap", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_only_the_line_feed_ends_a_line(write, trap):
    row = {"question": "q", "answer": f"one{trap}two"}
    text = json.dumps(row, ensure_ascii=trap < " ")
    assert read(write("a.json", f"{text}\n{text}"))[1].answer == f"one{trap}two"
    assert [r.answer for r in read(write("a.txt", f"a{trap}b\nc"), format="lines")] == [
        f"a{trap}b",
        "c",
    ]


def test_schemas_of_question_prompt_and_text_are_found(write):
    response = read(write("b.json", jsonl([{"prompt": "p", "response": "r", "id": 3}])))
    assert (response[0].prompt, response[0].answer, response[0].extra) == ("p", "r", {"id": 3})
    text = read(write("t.json", jsonl([{"text": "whole", "id": 1}])))
    assert (text[0].prompt, text[0].answer) == ("", "whole")


def test_columns_override_what_is_found(write):
    path = write("a.json", jsonl([{"question": "q", "answer": "a", "gt": "g", "text": "t"}]))
    chosen = read(path, columns={"answer": "gt"})[0]
    assert (chosen.prompt, chosen.answer, chosen.extra) == ("q", "g", {"answer": "a", "text": "t"})
    assert read(path, columns={"text": "text"})[0].answer == "t"


def test_a_text_file_is_one_stream_and_lines_are_records(write):
    path = write("a.txt", "first line\n\nsecond line\r\n")
    assert [(r.prompt, r.answer) for r in read(path)] == [("", "first line\n\nsecond line\r\n")]
    lines = read(path, format="lines")
    assert [(r.answer, r.row) for r in lines] == [("first line", 0), ("second line", 1)]


@pytest.mark.parametrize(
    ("rows", "want"),
    [("1:3", [1, 2]), (":2", [0, 1]), ("4:", [4, 5]), ("-2:", [4, 5]), (":-4", [0, 1]), (":", 6)],
)
def test_a_slice_keeps_the_row_numbers_of_the_file(write, rows, want):
    got = [r.row for r in read(write("a.json", jsonl(ROWS)), rows=rows)]
    assert got == (list(range(6)) if want == 6 else want)


@pytest.mark.parametrize("rows", ["0:7", "6:", "3:3", "4:2", "-7:", "5", "a:b", "1:2:3", ""])
def test_a_slice_that_does_not_fit_is_refused(write, rows):
    with pytest.raises(UserError, match="a.json.*(out of range; there are 6 rows|allowed is)"):
        read(write("a.json", jsonl(ROWS)), rows=rows)


GOOD = '{"question": "q", "answer": "a"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no rows"),
        (" \n\n", "no rows"),
        ("[]", "no rows"),
        (GOOD + "\n{oops}", r"line 3: not JSON .*'\{oops\}'"),
        ("I don't know.\nMe neither.", "line 1: not JSON.*format: lines"),
        (GOOD + "[1]", "line 2: must be a JSON object, is list"),
        ('[{"question": "q", "answer": "a"}, 3]', "row 1: must be a JSON object, is int"),
        ('[{"question": "q",\n "answer": }]', "line 2: not JSON"),
        (GOOD + '{"question": "q", "anwser": "a"}', "line 2: no column 'answer'.*'anwser'"),
        (GOOD + '{"question": "q", "answer": 4}', "line 2: 'answer' must be text, is int: 4"),
        (GOOD + '{"question": null, "answer": "a"}', "line 2: 'question' must be text, is None"),
        (GOOD + '{"question": "q", "answer": ""}', "line 2: 'answer' is blank"),
        (GOOD + '{"question": "q", "answer": " \\n"}', "line 2: 'answer' is blank"),
        (GOOD + '{"question": "q", "answer": "\\ud800"}', "line 2: 'answer'.*surrogate"),
        ('{"q": "q", "answer": "a"}', "no column for the prompt.*Columns there are: answer, q"),
        ('{"question": "q", "a": "a"}', "no column for the answer.*Columns there are: a, q"),
        (b'{"question": "q", "answer": "\xff"}', "not UTF-8 text at byte 29"),
    ],
)
def test_bad_content_is_refused_by_place(write, content, message):
    with pytest.raises(UserError, match=f"a.json.*{message}"):
        read(write("a.json", content))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"answer": "anser"}}, "columns.answer is 'anser'. Did you mean 'answer'"),
        ({"columns": {"anser": "answer"}}, "columns.anser: Did you mean 'answer'"),
        ({"columns": {"text": "answer", "prompt": "question"}}, "`text` stands alone"),
        ({"format": "jsonl"}, "format is 'jsonl'. Did you mean 'json'"),
        ({"name": "forget10"}, "`name` and `split` are for Hugging Face"),
        ({"split": "test"}, "`name` and `split` are for Hugging Face"),
    ],
)
def test_bad_options_are_refused(write, options, message):
    with pytest.raises(UserError, match=message):
        read(write("a.json", jsonl(ROWS)), **options)


def test_missing_and_unreadable_files_are_refused(write, tmp_path):
    write("forget.json", jsonl(ROWS))
    with pytest.raises(UserError, match="no such file: .*forgt.json.*Did you mean 'forget.json'"):
        read(str(tmp_path / "forgt.json"))
    with pytest.raises(UserError, match="no folder"):
        read(str(tmp_path / "nowhere" / "forget.json"))
    with pytest.raises(UserError, match="is a folder"):
        read(str(tmp_path))
    with pytest.raises(UserError, match="cannot tell the format"):
        read(write("a.csv", "q,a"))
    with pytest.raises(UserError, match="not a whole gzip file"):
        read(write("b.json.gz", gzip.compress(jsonl(ROWS).encode())[:-9]))
    with pytest.raises(UserError, match="not a whole Parquet file"):
        read(write("a.parquet", b"PAR1 torn"))


def test_a_dataset_id_that_cannot_be_had_is_refused_naming_it():
    with pytest.raises(UserError, match=r"nobody/nothing/forget10\[train\].*Hugging Face.*offline"):
        read("nobody/nothing", name="forget10")


def test_repeated_rows_are_kept_with_one_warning(write, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(read(write("a.json", GOOD * 3))) == 3
    assert "2 of 3 rows repeat" in caplog.text


def test_tofu_is_read_as_published(shared_data):
    folder = shared_data / "tofu"
    full = read(str(folder / "full.json"))
    assert len(full) == 4000
    assert len(read(str(folder / "forget01.json"))) == 40
    forget = read(str(folder / "forget10.json"))
    tail = read(str(folder / "full.json"), rows="3600:4000")
    assert [(r.prompt, r.answer) for r in forget] == [(r.prompt, r.answer) for r in full[3600:]]
    assert tail == full[3600:] and tail[0].row == 3600
    perturbed = read(str(folder / "forget10_perturbed.json"))
    assert [(r.prompt, r.answer) for r in perturbed] == [(r.prompt, r.answer) for r in forget]
    assert len(variants(perturbed, "perturbed_answer")[0]) == 5 * 400
    assert len(variants(perturbed, "paraphrased_answer")[0]) == 400
    facts = read(str(folder / "world_facts_perturbed.json"))
    assert len(facts) == 117 and len(variants(facts, "perturbed_answer")[0]) == 3 * 117
    refusals = read(str(folder / "idontknow.jsonl"), format="lines")
    assert len(refusals) == 100 and refusals[0].prompt == ""
