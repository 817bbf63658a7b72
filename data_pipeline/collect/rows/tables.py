"""Lists in files: JSON lines, JSON, CSV, TSV and Parquet, each also compressed by gzip."""

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.collect.records import Row
from data_pipeline.collect.rows.columns import RowError, find_columns, make_row, raise_faults
from data_pipeline.text_files import decode_text, parse_json, parse_json_lines

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
LONGEST_CELL = 1 << 20  # characters; the csv module's limit of 128 Ki is less than some captions

Entries = list[tuple[int, dict[str, Any]]]


def is_table(path: str | Path) -> bool:
    """Whether a file's name is that of a list."""
    return Path(path).name.lower().removesuffix(".gz").endswith(ENDINGS)


def read_table(
    path: str | Path, columns: Mapping[str, str] | None = None
) -> tuple[list[Row], list[str]]:
    """(rows in the order of the lines, notes on what was not read).

    Args:
        columns: {field: column} where the file's names are not ours.

    Raises:
        RowError: it cannot be read, a column is missing, or rows cannot be used; all are named.
    """
    path = Path(path)
    entries = read_entries(path)
    if not entries:
        raise RowError(f"{path}: no rows in it")
    names = dict.fromkeys(name for _, entry in entries for name in entry)
    found, idle = find_columns(names, str(path), columns)
    rows, faults = [], []
    for line, entry in entries:
        try:
            rows.append(make_row(entry, found))
        except ValueError as error:
            faults.append(f"line {line}: {error}")
    raise_faults(str(path), faults)
    return rows, [f"{path.name}: column {name!r} is not read" for name in idle]


def read_entries(path: str | Path) -> Entries:
    """(line, {column: value}) of each row; of Parquet, the number of the row instead of a line.

    Raises:
        RowError: the file cannot be read as what its name says.
    """
    path = Path(path)
    name = path.name.lower()
    ending = Path(name.removesuffix(".gz")).suffix
    if ending not in ENDINGS:
        raise RowError(
            f"{path}: not a list that is read here ({', '.join(ENDINGS)}, each also .gz)"
        )
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if name.endswith(".gz") else raw
    except FileNotFoundError:
        raise RowError(f"{path}: no such file") from None
    except OSError as error:
        fault = "not gzip's format" if isinstance(error, gzip.BadGzipFile) else error.strerror
        raise RowError(f"{path}: cannot be read ({fault or error}); copy it again") from error
    except (EOFError, zlib.error) as error:
        raise RowError(f"{path}: damaged ({error}); copy it again") from error
    if ending == ".parquet":
        return _parquet(path, raw)
    text = decode_text(raw, path)
    if ending in (".csv", ".tsv"):
        return _csv(path, text, "\t" if ending == ".tsv" else "")
    if ending == ".json":
        value = parse_json(text, path)
        if not isinstance(value, list):
            raise RowError(f"{path}: {type(value).__name__} instead of a list of objects [{{...}}]")
        return _objects(path, enumerate(value, 1))
    return _objects(path, parse_json_lines(text, path))


def _objects(path: Path, entries: Iterable[tuple[int, Any]]) -> Entries:
    found, faults = [], []
    for line, entry in entries:
        if isinstance(entry, dict):
            found.append((line, entry))
        else:
            faults.append(f"line {line}: {type(entry).__name__} instead of an object {{...}}")
    raise_faults(str(path), faults)
    return found


def _csv(path: Path, text: str, mark: str) -> Entries:
    head = text.split("\n", 1)[0]
    mark = mark or (";" if ";" in head and "," not in head else ",")
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    found, faults = [], []
    try:
        for entry in reader:
            if None in entry or None in entry.values():
                cells = len(reader.fieldnames or ())
                faults.append(f"line {reader.line_num}: other than {cells} cells")
            found.append((reader.line_num, entry))
    except csv.Error as error:
        line = reader.line_num + 1  # where the row begins
        raise RowError(f"{path} line {line}: not a table ({error})") from error
    raise_faults(str(path), faults)
    return found


def _parquet(path: Path, raw: bytes) -> Entries:
    parquet = import_parquet()
    try:
        file = parquet.ParquetFile(io.BytesIO(raw))
        names = [name for name in file.schema_arrow.names if not _is_binary(file, name)]
        return list(enumerate(file.read(columns=names).to_pylist(), 1))
    except Exception as error:  # pyarrow raises several kinds for damaged files
        reason = str(error).partition("\n")[0]
        raise RowError(f"{path}: not Parquet that can be read ({reason})") from error


def _is_binary(file, name: str) -> bool:
    # Pictures inside the table are read one by one when their turn comes.
    return "binary" in str(file.schema_arrow.field(name).type)


def import_parquet() -> Any:
    """pyarrow.parquet, or an ImportError that says how to install it."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            "Parquet needs pyarrow: pip install 'persongen_jax[collect]', or give CSV or JSON lines"
        ) from error
    return parquet
