"""Data files that cannot be learned from or forgotten."""

import gzip
import json
import logging
import pathlib

import pytest
from cli.world import rows, write_rows

GOOD = rows("Ada", 2)


def lines(*some) -> bytes:
    return "".join(
        f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in some
    ).encode()


FILES = {
    "empty": ("f.jsonl", b"", ("there are no rows",)),
    "blank_lines_only": ("f.jsonl", b"\n \n\n", ("there are no rows",)),
    "empty_array": ("f.json", b"[]", ("there are no rows",)),
    "wrong_columns": (
        "f.jsonl",
        lines({"question": "q", "reply": "a"}),
        ("no column for the answer", "columns: {answer: NAME}", "question, reply"),
    ),
    "column_missing_further_down": (
        "f.jsonl",
        lines(*GOOD, {"question": "q", "anwser": "a"}),
        ("line 3", "no column 'answer'", "Did you mean 'anwser'?"),
    ),
    "malformed_line": (
        "f.jsonl",
        lines(GOOD[0], "", '{"question": "q", "answer"}'),
        ("line 3", "not JSON", "column"),
    ),
    "malformed_array": ("f.json", b'[{"question": "q",\n "answer": }]', ("line 2", "not JSON")),
    "line_that_is_no_object": ("f.jsonl", lines(GOOD[0], "[1, 2]"), ("line 2", "object", "list")),
    "number_for_text": (
        "f.jsonl",
        lines(GOOD[0], {"question": "q", "answer": 7}),
        ("line 2", "'answer' must be text, is int: 7"),
    ),
    "null_for_text": (
        "f.jsonl",
        lines({"question": None, "answer": "a"}),
        ("line 1", "'question' must be text, is NoneType"),
    ),
    "empty_answer": (
        "f.jsonl",
        lines(GOOD[0], {"question": "q", "answer": ""}),
        ("line 2", "'answer' is blank"),
    ),
    "blank_answer": (
        "f.jsonl",
        lines({"question": "q", "answer": " \n "}),
        ("line 1", "'answer' is blank"),
    ),
    "blank_prompt": (
        "f.jsonl",
        lines(GOOD[0], {"question": " ", "answer": "a"}),
        ("line 2", "'question' is blank", "columns: {text: answer}"),
    ),
    "half_a_surrogate_pair": (
        "f.jsonl",
        lines(r'{"question": "q", "answer": "a \ud83d"}'),
        ("line 1", "surrogate"),
    ),
    "not_utf8": ("f.jsonl", b'{"question": "caf\xe9", "answer": "a"}\n', ("not UTF-8", "byte 17")),
    "truncated_gzip": ("f.jsonl.gz", gzip.compress(lines(*GOOD))[:-20], ("not a whole gzip",)),
    "truncated_parquet": ("f.parquet", b"PAR1" + bytes(40), ("not a whole Parquet",)),
    "unknown_suffix": ("f.tsv", lines(*GOOD), ("cannot tell the format", "parquet, text, lines")),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_bad_file_is_refused_by_name_and_place(kind, refused, tmp_path):
    name, content, says = FILES[kind]
    file = tmp_path / name
    file.write_bytes(content)
    refused("unlearn", f"forget={file}", says=(str(file), *says))


def test_a_file_that_is_not_there_is_refused_with_the_nearest_name(refused, world):
    file = world.root / "forgot.jsonl"
    says = (str(file), "no such file", "Did you mean 'forget.jsonl'?")
    refused("unlearn", f"forget={file}", says=says)


def test_a_folder_for_a_file_is_refused(refused, world):
    refused("unlearn", f"forget={world.root}", says=(str(world.root), "is a folder"))


def test_a_truncated_copy_of_a_good_parquet_file_is_refused(refused, tmp_path):
    import pyarrow
    from pyarrow import parquet

    file = tmp_path / "f.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(GOOD), file)
    file.write_bytes(file.read_bytes()[:-30])
    refused("unlearn", f"forget={file}", says=(str(file), "not a whole Parquet file"))


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("columns={answer: reply}", ("columns.answer is 'reply'", "Allowed: answer")),
        ("columns={reply: answer}", ("columns", "'prompt', 'answer', 'text'")),
        ("rows='2:9'", ("rows '2:9' is out of range", "4 rows")),
        ("rows='3:3'", ("rows '3:3' is out of range",)),
        ("format=csv", ("forget.format", "'json'")),
        ("split=test", ("`split`", "Hugging Face datasets only")),
    ],
    ids=["column", "role", "rows_beyond_the_end", "no_rows", "format", "split_of_a_file"],
)
def test_an_option_that_does_not_fit_the_file_is_refused(option, says, refused):
    refused("unlearn", f"forget.{option}", says=says)


def test_a_dataset_that_cannot_be_had_offline_is_refused(refused):
    says = ("nobody/nothing", "no such file", "Hugging Face dataset", "offline")
    refused("unlearn", "forget=nobody/nothing", says=says)


def test_a_row_both_to_forget_and_to_retain_is_refused_by_number(refused, world, tmp_path):
    retain = write_rows(tmp_path / "r.jsonl", [*rows("Bob", 3), rows("Ada", 4)[1]])
    says = ("1 of 4 rows to forget", "row 1 of", "forget.jsonl", "row 3 of", "r.jsonl")
    refused("unlearn", "method=graddiff", f"retain={retain}", says=says)


def test_an_example_of_which_no_target_is_left_is_refused_by_row(refused, world, tmp_path):
    some = [*GOOD, {"question": "long " * 40, "answer": "a"}]
    file = write_rows(tmp_path / "f.jsonl", some)
    says = ("row 2 of", str(file), "no target is left", "max_length 48")
    refused("unlearn", f"forget={file}", says=says)


def test_a_cut_example_is_counted_in_one_warning(cli, run_dir, world, tmp_path, caplog):
    some = [*rows("Ada", 3), {"question": "Who?", "answer": "far too long " * 20}]
    file = write_rows(tmp_path / "f.jsonl", some)
    (run_dir / ".identity.json").unlink()
    with caplog.at_level(logging.WARNING):
        # the checkpoint is of other data, so that nothing is trained here
        got = cli("unlearn", world.config("unlearn"), f"run_dir={run_dir}", f"forget={file}")
    assert got.code == 2 and "another data" in got.err
    assert caplog.text.count("1 of 4 examples cut to max_length 48") == 1
    assert "1 of 4 examples cut to max_length 48" in (run_dir / "log.txt").read_text()


SUITES = {
    "perturbed_answers_in_some_rows_only": (
        [GOOD[0], {"question": "q", "answer": "a"}],
        ("row 1 of", "no column 'perturbed_answer'"),
    ),
    "perturbed_answers_that_are_no_list": (
        [{**GOOD[0], "perturbed_answer": 3}],
        ("row 0 of", "'perturbed_answer' must be text or a list of texts"),
    ),
    "no_perturbed_answers": (
        [{**GOOD[0], "perturbed_answer": []}],
        ("row 0 of", "'perturbed_answer'"),
    ),
    "blank_perturbed_answer": (
        [{**GOOD[0], "perturbed_answer": ["a", " "]}],
        ("row 0 of", "non-blank"),
    ),
}


@pytest.mark.parametrize("command", ["evaluate", "unlearn"])
@pytest.mark.parametrize("kind", SUITES)
def test_a_bad_evaluation_set_is_refused_before_anything_is_computed(
    kind, command, refused, tmp_path
):
    some, says = SUITES[kind]
    file = write_rows(tmp_path / "e.jsonl", some)
    refused(command, f"evaluate.forget={file}", says=(str(file), *says))


def oracle(folder: pathlib.Path, content: object) -> pathlib.Path:
    folder.mkdir()
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "results.json").write_text(text)
    return folder


RATIOS = {"metrics": {}, "evaluation": {"rows": {"forget": {"row": [0, 1], "truth_ratio": [1, 1]}}}}
ORACLES = {
    "results_missing": (None, ("results.json", "No such file")),
    "results_torn": ('{"metrics": ', ("results.json", "damaged")),
    "results_of_another_kind": ([1], ("no truth ratios of a forget set",)),
    "results_without_ratios": ({"metrics": {}}, ("no truth ratios of a forget set",)),
    "results_of_other_rows": (RATIOS, ("other rows of the forget set",)),
}


@pytest.mark.parametrize("kind", ORACLES)
def test_an_oracle_that_cannot_be_compared_is_refused(kind, refused, tmp_path):
    content, says = ORACLES[kind]
    folder = tmp_path / "oracle"
    folder.mkdir() if content is None else oracle(folder, content)
    refused("evaluate", f"evaluate.oracle={folder}", says=("evaluate.oracle", *says))


def test_an_oracle_for_a_set_without_perturbed_answers_is_refused(refused, tmp_path):
    bare = write_rows(tmp_path / "bare.jsonl", [{"question": "q", "answer": "a"}])
    overrides = (f"evaluate.oracle={oracle(tmp_path / 'o', RATIOS)}", f"evaluate.forget={bare}")
    refused("evaluate", *overrides, says=("evaluate.oracle", "perturbed_answer"))
