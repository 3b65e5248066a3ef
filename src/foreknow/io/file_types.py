"""File types, detected from a file's first bytes and not from its name. Pure.

A file of a type that cannot be read gets a `Refusal`: one line that says what the file is and what to do.
"""

from __future__ import annotations

import json
import re
from typing import Final, NamedTuple

from foreknow.io.json_shapes import is_turns, wraps

HEAD: Final = 1 << 16
"""The number of bytes at the beginning of a file that decide its type."""
LONGEST_FIRST_LINE: Final = 1 << 25
"""The most bytes of the first line that are read to distinguish JSON lines from other JSON."""
_PACKED: Final = (
    (rb"\x1f\x8b", ".gz"), (rb"\x28\xb5\x2f\xfd", ".zst"), (rb"BZh[1-9]1AY&SY", ".bz2"), (rb"\xfd7zXZ\x00", ".xz"),
)  # fmt: skip
"""The first bytes of compressed files."""
_TABLES: Final = (".csv", ".tsv")


class Refusal(NamedTuple):
    """A type of file that is not read: what it is, and what to do."""

    what: str
    advice: str

    def __str__(self) -> str:
        return f"is {self.what}. {self.advice}"


_EXPORT: Final = "Write its rows as JSON lines or Parquet."
_NEVER_LOADED: Final = "Such a file can run code and is never loaded: write its rows as JSON lines or Parquet."
_UNPACK: Final = "Unpack it and give the folder."
_BINARY: Final[tuple[tuple[int, bytes, Refusal], ...]] = (
    (0, b"FEA1", Refusal("a Feather file of version 1", "Write it as version 2: pyarrow.feather.write_feather(...).")),
    (0, b"SQLite format 3\x00", Refusal("an SQLite database", "Write the table as CSV: sqlite3 -csv -header FILE ...")),
    (0, b"\x93NUMPY", Refusal("a NumPy array", _EXPORT)),
    (0, b"\x89HDF\r\n", Refusal("an HDF5 file", _EXPORT)),
    (0, b"Obj\x01", Refusal("an Avro file", _EXPORT)),
    (0, b"ORC", Refusal("an ORC file", _EXPORT)),
    (0, b"%PDF", Refusal("a PDF document", "Give a file of rows.")),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Refusal("an old Office file, such as .xls", "Save the sheet as CSV.")),
    (0, b"7z\xbc\xaf\x27\x1c", Refusal("a 7z archive", _UNPACK)),
    (0, b"Rar!\x1a\x07", Refusal("a RAR archive", _UNPACK)),
    (257, b"ustar", Refusal("a tar archive", "Unpack it (tar xf) and give the folder.")),
    (0, b"GGUF", Refusal("a model's weights", "Give a model with --model, and a file of rows here.")),
)
_WIDE: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\xff\xfe\x00\x00", "UTF-32"), (b"\x00\x00\xfe\xff", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"),
)  # fmt: skip
"""Byte-order marks of the encodings that are read in tables but not in JSON."""
_ZIPPED: Final[tuple[tuple[str, Refusal], ...]] = (
    (r"xl/", Refusal("an Excel workbook", "Save the sheet as CSV.")),
    (r"word/|ppt/", Refusal("an Office document", "Give a file of rows.")),
    (r"content\.xml$", Refusal("an OpenDocument file", "Save the sheet as CSV.")),
    (r"(^|/)data\.pkl$", Refusal("a PyTorch file", _NEVER_LOADED)),
    (r"\.npy$", Refusal("a NumPy archive (.npz)", _EXPORT)),
)
_TEXTS: Final[tuple[tuple[str, Refusal], ...]] = (
    (
        r"version https://git-lfs",
        Refusal("a Git LFS pointer and not the file itself", "Fetch the file: git lfs pull."),
    ),
    (
        r"(?i)(<!--.{0,200}?-->\s*)?<(!doctype\s+html|html|head|body)\b",
        Refusal("an HTML page, such as an error page saved in the file's place", "Fetch the file again."),
    ),
    (
        r"(?is)(<\?xml.{0,200}?\?>\s*)?<(error|response|result)\b",
        Refusal("an XML reply of a server, such as an error", "Fetch the file again."),
    ),
    (r"<\?xml", Refusal("an XML file", _EXPORT)),
    (r"%YAML|---\s*\n", Refusal("a YAML file", _EXPORT)),
)


def packing_of(head: bytes) -> str:
    """The suffix of the compression that the first bytes show; "" if they show none."""
    return next((suffix for magic, suffix in _PACKED if re.match(magic, head)), "")


def refusal_of(head: bytes, suffix: str) -> Refusal | None:
    """Why decompressed content cannot be read, judged by its first `HEAD` bytes; None if nothing is wrong with them.

    `suffix`: the end of the file's name. The encoding of CSV and TSV is checked later, when they are read.
    """
    for at, magic, refusal in _BINARY:
        if head[at : at + len(magic)] == magic and not (magic == b"ORC" and head[3:4].isalnum()):
            return refusal
    if re.match(rb"\x80[\x02-\x05]", head):
        return Refusal("a pickle", _NEVER_LOADED)
    if table_suffix(head):
        return None
    if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < 1 << 27 and b"\x00" in head[:8]:
        return Refusal("a safetensors file", "Give a model with --model, and a file of rows here.")
    if suffix not in _TABLES and (wide := _wide(head)):
        return Refusal(f"{wide} text", f"Save it as UTF-8: iconv -f {wide} -t UTF-8 FILE > NEW.")
    if head and not head.strip(b"\x00"):
        return Refusal("nothing but NUL bytes, as a cut download leaves", "Fetch the file again.")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1024].decode("utf-8", "replace")
    return next((refusal for pattern, refusal in _TEXTS if re.match(pattern, text)), None)


def _wide(head: bytes) -> str:
    """The name of UTF-16 or UTF-32, recognised by the mark, or by NUL bytes as every other byte of Latin text."""
    if marked := next((name for mark, name in _WIDE if head.startswith(mark)), ""):
        return marked
    even, odd = head[0:512:2].count(0), head[1:512:2].count(0)
    half = len(head[:512]) // 2
    if half < 2 or max(even, odd) <= 0.4 * half or min(even, odd) >= 0.1 * half:
        return ""
    return "UTF-16LE" if odd > even else "UTF-16BE"


def table_suffix(head: bytes) -> str:
    """`.parquet` or `.arrow` if the first bytes show one of them, else ""."""
    if head.startswith((b"PAR1", b"PARE")):
        return ".parquet"
    stream = head.startswith(b"\xff\xff\xff\xff") and 0 < int.from_bytes(head[4:8], "little") < 1 << 27
    return ".arrow" if stream or head.startswith(b"ARROW1") else ""


def refusal_of_zip(names: list[str]) -> Refusal | None:
    """Why a zip with members of these names does not hold data files; None if it may."""
    return next((refusal for pattern, refusal in _ZIPPED if any(re.search(pattern, name) for name in names)), None)


def text_suffix(head: bytes, suffix: str) -> str:
    """How a text is to be read whose name ends in `suffix`: as `.jsonl`, `.json`, or by its own suffix.

    `head`: its first bytes, the whole first line among them if that is shorter than 32 MiB. JSON lines are a row a
    line; `.json` is all else that is JSON: an array, an object that wraps rows, objects one behind the other.
    """
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    if text[:1] not in (b"{", b"["):
        return suffix
    line, _, rest = text.partition(b"\n")
    value, more = _value(line), bool(rest.strip())
    by_line = suffix != ".json"
    lines = suffix if suffix in (".jsonl", ".ndjson") else ".jsonl"
    if suffix in _TABLES:
        return lines if isinstance(value, dict) else suffix
    if isinstance(value, dict):
        return lines if more or (by_line and not wraps(value)) else ".json"
    if isinstance(value, list):
        return lines if (is_turns(value) and (more or by_line)) or (by_line and more) else ".json"
    return lines if by_line and not _goes_on(line) else ".json"


def _value(line: bytes) -> object:
    """The JSON value of a line; None if the line is not one complete value."""
    try:
        return json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None


def _goes_on(line: bytes) -> bool:
    """Whether a line begins a JSON value that ends on a later line, or holds a value followed by another."""
    try:
        json.loads(line.decode("utf-8", "replace"))
    except json.JSONDecodeError as error:
        return error.pos >= len(error.doc.rstrip()) or error.doc[error.pos] in "{["
    except (ValueError, RecursionError):
        return False
    return False
