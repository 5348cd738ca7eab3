"""Where examples come from: JSON (Lines), Parquet and text files, and Hugging Face datasets.

TOFU's schema (question, answer, paraphrased_*, perturbed_answer) is understood without options.
"""

import gzip
import json
import pathlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator

from jaxforget.data.builtin_text import builtin_rows
from jaxforget.data.records import Record, warn_of_repeats
from jaxforget.engine.errors import UserError, did_you_mean

_PROMPTS = ("question", "prompt")
_ANSWERS = ("answer", "response", "completion")
_FORMATS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".txt": "text",
}
_BUILTIN = "builtin:"
_READERS = ("auto", "json", "parquet", "text", "lines", "hub")
_WORDINGS = ("paraphrased_answer", "perturbed_answer", "paraphrased_question")
_NAMED = ("prompt", "answer", "text", *_WORDINGS)

type Row = Mapping[str, Any]


class Placed(NamedTuple):
    """A row as it was read, its 0-based index in its file, and its place for messages."""

    row: Row
    index: int
    where: str


def named(key: str) -> BeforeValidator:
    """Lets a bare string in a configuration stand for a mapping with that one key."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


@dataclass(frozen=True)
class DataSource:
    """One set of examples, as a configuration names it.

    Attributes:
      path: a file (.json and .jsonl hold JSON Lines or one array, .parquet, .txt; each but
        Parquet also with .gz), the id of a Hugging Face dataset, or "builtin:NAME", see
        `jaxforget.data.builtin_text`.
      name: configuration of a Hugging Face dataset, e.g. "forget10"; not for files.
      split: split of a Hugging Face dataset or of a builtin text; not for files.
      columns: which column is the `prompt` and which the `answer`, or which is `text` (no prompt:
        the whole text is learned). Found by themselves: question or prompt; answer, response or
        completion; else text. Further ones, for evaluation: `paraphrased_answer`,
        `perturbed_answer` and `paraphrased_question`, which are found under these names.
      rows: slice "start:stop" of the rows, 0-based, either end may be left out or negative
        (from the end); in YAML it needs quotes. None: all rows.
      format: how to read a file. "auto" goes by its name; "text" is one record holding the whole
        file; "lines" is one record a non-blank line.
    """

    path: str
    name: str | None = None
    split: str = "train"
    columns: Mapping[
        Literal[
            "prompt",
            "answer",
            "text",
            "paraphrased_answer",
            "perturbed_answer",
            "paraphrased_question",
        ],
        str,
    ] = field(default_factory=dict)
    rows: str | None = None
    format: Literal["auto", "json", "parquet", "text", "lines", "hub"] = "auto"


type Source = Annotated[DataSource, named("path")]
"""A `DataSource` in a configuration, where a bare string is its path."""


def load_records(source: DataSource) -> list[Record]:
    """Read the examples a source names.

    Args:
      source: see `DataSource`.
    Returns:
      Records in file order; at least one. Rows that repeat an earlier one are kept, with one
      counted warning.
    Raises:
      UserError: missing or unreadable file, nothing in it, bad JSON, a column that is not there,
        a value of the wrong type, a blank prompt or answer, a slice out of range, an unknown
        dataset id; names the file and the line or row.
    """
    label, placed = load_rows(source)
    prompt, answer = _columns(source, placed[0].row, label)
    wordings = {key: name for key, name in source.columns.items() if key in _WORDINGS}
    records = [_record(each, prompt, answer, wordings, label) for each in placed]
    warn_of_repeats(records)
    return records


def load_rows(source: DataSource) -> tuple[str, list[Placed]]:
    """Read rows as they are, for data of another kind than a prompt and an answer.

    Args:
      source: see `DataSource`; its `columns` are not looked at.
    Returns:
      (name of the source for messages, the rows of the slice in file order; at least one).
    Raises:
      UserError: as `load_records`, but nothing about columns.
    """
    file = pathlib.Path(source.path).expanduser()
    kind, label, lines = _kind(source, file), source.path, None
    if kind == "hub":
        label, rows = _read_hub(source)
    elif kind == "builtin":
        rows = builtin_rows(source.path.removeprefix(_BUILTIN), source.split)
    else:
        rows, lines = _read_file(file, kind, label)
    if not rows:
        raise UserError(f"{label}: there are no rows in it")
    start, stop = _slice(source.rows, len(rows), label)
    wheres = (
        (f"{label}, line {line}" for line in lines)
        if lines
        else (f"{label}, row {index}" for index in range(len(rows)))
    )
    placed = [Placed(*each) for each in zip(rows, range(len(rows)), wheres, strict=True)]
    return label, placed[start:stop]


def _kind(source: DataSource, file: pathlib.Path) -> str:
    if source.path.startswith(_BUILTIN):
        return "builtin"
    suffixes = [suffix for suffix in file.suffixes if suffix != ".gz"]
    known = _FORMATS.get(suffixes[-1].lower()) if suffixes else None
    looks_hub = known is None and not file.exists() and not source.path.endswith(".gz")
    kind = source.format
    if kind not in _READERS:
        raise UserError(f"{source.path}: format is {kind!r}. {did_you_mean(kind, _READERS)}")
    if kind == "auto":
        kind = "hub" if looks_hub and _is_dataset_id(source.path) else known
    if kind == "hub":
        return kind
    if not file.exists():
        raise UserError(f"no such file: {source.path}{_neighbours(file)}")
    if file.is_dir():
        raise UserError(f"{source.path} is a folder; name a file in it")
    if kind is None:
        raise UserError(
            f"{source.path}: cannot tell the format from the name; set `format`. "
            "Allowed: json, parquet, text, lines."
        )
    if source.name is not None or source.split != "train":
        raise UserError(f"{source.path}: `name` and `split` are for Hugging Face datasets only")
    return kind


def _is_dataset_id(path: str) -> bool:
    parts = path.split("/")
    return len(parts) <= 2 and all(parts) and not path.startswith((".", "~"))


def _neighbours(file: pathlib.Path) -> str:
    if not file.parent.is_dir():
        return f" (there is no folder {file.parent} either)"
    names = sorted(entry.name for entry in file.parent.iterdir() if entry.suffix == file.suffix)
    return f". {did_you_mean(file.name, names[:40])}" if names else ""


def _read_file(file: pathlib.Path, kind: str, label: str) -> tuple[list[Row], list[int] | None]:
    """Rows and, where a row is a line, the 1-based number of that line."""
    if kind == "parquet":
        return _read_parquet(file, label), None
    text = _read_text(file, label)
    if kind == "text":
        return ([{"text": text}] if text.strip() else []), None
    # a Unicode line separator may stand inside a string, so `splitlines` would be wrong
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    numbers = [number for number, _ in lines]
    if kind == "lines":
        return [{"text": line.removesuffix("\r")} for _, line in lines], numbers
    if text.lstrip().startswith("["):
        return _parse_array(text, label), None
    return [_parse_line(line, f"{label}, line {number}") for number, line in lines], numbers


def _read_text(file: pathlib.Path, label: str) -> str:
    try:
        data = file.read_bytes()
        return (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{label}: not UTF-8 text at byte {error.start}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{label}: not a whole gzip file ({error})") from error
    except OSError as error:
        raise UserError(f"{label}: cannot be read ({error.strerror})") from error


def _parse_line(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not JSON ({error.msg} at column {error.colno}): {line!r:.60}. A JSON file "
            "holds one object a line or one array of objects; plain lines need `format: lines`."
        ) from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: must be a JSON object, is {type(row).__name__}: {line!r:.60}")
    return row


def _parse_array(text: str, label: str) -> list[Row]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{label}, line {error.lineno}: not JSON ({error.msg})") from error
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(
                f"{label}, row {index}: must be a JSON object, is {type(row).__name__}: {row!r:.60}"
            )
    return rows


def _read_parquet(file: pathlib.Path, label: str) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{label}: not a whole Parquet file ({error})") from error


def _read_hub(source: DataSource) -> tuple[str, list[Row]]:
    import datasets

    label = f"{source.path}{f'/{source.name}' if source.name else ''}[{source.split}]"
    try:
        table = datasets.load_dataset(source.path, source.name, split=source.split)
    except Exception as error:  # the library raises a dozen kinds, several of them plain ValueError
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"{label}: there is no such file, and it cannot be had as a Hugging Face dataset: "
            f"{reason:.300}. Check the id, `name` and `split`; offline, only datasets already in "
            "the local cache can be used."
        ) from error
    return label, list(table)  # pyright: ignore[reportArgumentType,reportReturnType]


def _columns(source: DataSource, row: Row, label: str) -> tuple[str | None, str]:
    """Names of the prompt's column (None for plain text) and the answer's."""
    chosen = dict(source.columns)
    for key in chosen:
        if key not in _NAMED:
            raise UserError(f"columns.{key}: {did_you_mean(key, _NAMED)}")
    for key, column in chosen.items():
        if column not in row:
            raise UserError(f"{label}: columns.{key} is {column!r}. {did_you_mean(column, row)}")
    chosen = {key: column for key, column in chosen.items() if key not in _WORDINGS}
    if "text" in chosen:
        if len(chosen) > 1:
            raise UserError("columns: `text` stands alone, without `prompt` or `answer`")
        return None, chosen["text"]
    prompt = chosen.get("prompt") or next((name for name in _PROMPTS if name in row), None)
    answer = chosen.get("answer") or next((name for name in _ANSWERS if name in row), None)
    if prompt and answer:
        return prompt, answer
    if "text" in row and not chosen:
        return None, "text"
    missing = "answer" if prompt else "prompt"
    raise UserError(
        f"{label}: no column for the {missing}; set `columns: {{{missing}: NAME}}`. "
        f"Columns there are: {', '.join(sorted(row)) or 'none'}."
    )


def _slice(rows: str | None, count: int, label: str) -> tuple[int, int]:
    if rows is None:
        return 0, count
    first, colon, last = str(rows).partition(":")
    try:
        start, stop = int(first or 0), int(last or count)
    except ValueError:
        colon = ""
        start = stop = 0
    if not colon:
        raise UserError(
            f"{label}: rows is {rows!r}; allowed is 'start:stop' (in quotes), such as '0:400'"
        )
    start, stop = (index + count if index < 0 else index for index in (start, stop))
    if not 0 <= start < stop <= count:
        raise UserError(f"{label}: rows {rows!r} is out of range; there are {count} rows")
    return start, stop


def _record(
    placed: Placed,
    prompt: str | None,
    answer: str,
    wordings: Mapping[str, str],
    source: str,
) -> Record:
    row, index, where = placed
    taken = (prompt, answer, *wordings.values())
    extra = {key: value for key, value in row.items() if key not in taken}
    extra |= {key: row[column] for key, column in wordings.items() if column in row}
    asked = "" if prompt is None else text_in(row, prompt, where)
    if prompt is not None and not asked.strip():
        raise UserError(
            f"{where}: {prompt!r} is blank; to learn answers as plain text, without prompts, set "
            f"`columns: {{text: {answer}}}`"
        )
    answered = text_in(row, answer, where)
    if not answered.strip():
        raise UserError(f"{where}: {answer!r} is blank; an answer must have at least one character")
    return Record(asked, answered, index, source, extra)


def text_in(row: Row, column: str, where: str) -> str:
    """The text in a column of a row.

    Raises:
      UserError: no such column, something else in it, or half of a surrogate pair.
    """
    if column not in row:
        raise UserError(f"{where}: no column {column!r}. {did_you_mean(column, row)}")
    value = row[column]
    if not isinstance(value, str):
        raise UserError(
            f"{where}: {column!r} must be text, is {type(value).__name__}: {value!r:.60}"
        )
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{where}: {column!r} holds half of a surrogate pair at character {error.start}"
            ) from error
    return value
