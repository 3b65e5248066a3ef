"""Detect the encoding of a text file from its byte-order mark. Without a mark it must be UTF-8; nothing is guessed."""

from __future__ import annotations

import codecs
import re
from typing import Final

from foreknow.errors import InputError
from foreknow.io.data_file import DataFile
from foreknow.io.quoting import quoted

_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)


def encoding_of(part: DataFile) -> tuple[bytes, str, str]:
    """The byte-order mark, the encoding, and its name if there is a mark. Raises InputError if the file is no text."""
    with part.open() as stream:
        head = stream.read(4096)
    for bom, encoding, name in _BOMS:
        if head.startswith(bom) and not (bom == codecs.BOM_UTF16_LE and head.startswith(codecs.BOM_UTF32_LE)):
            return bom, encoding, name
    if len(head) > 3 and head.count(0) * 3 > len(head):
        end = "LE" if head[1:2] == b"\0" else "BE"
        raise InputError(
            f"{part.where}: looks like UTF-16 without a byte-order mark (every other byte is 0). Save the file as "
            f"UTF-8, for example: iconv -f UTF-16{end} -t UTF-8 OLD > NEW"
        )
    return b"", "utf-8", ""


def not_utf8(part: DataFile, longest: int) -> InputError:
    """The error for a part that is not UTF-8. Reads the part again to find the bad byte. `longest`: bytes of a line."""
    with part.open() as stream:
        for number, line in enumerate(iter(lambda: stream.readline(longest), b""), start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return InputError(
                    f"{part.where}:{number}: not UTF-8: found byte 0x{line[error.start]:02x} at byte "
                    f"{error.start + 1} of the line{_cp1252_hint(line, error.start)}. Save the file as UTF-8."
                )
    return InputError(f"{part.where}: not UTF-8. Save the file as UTF-8.")


def _cp1252_hint(line: bytes, at: int) -> str:
    """A hint that shows the text read as Windows-1252, with the command to convert it; empty if that fails."""
    word = re.search(rb"[^\s,;|\"]*$", line[:at])
    begin = max(at - 20, word.start() if word else at)
    try:
        excerpt = re.split(r"[\s,;|\"]", line[begin : at + 20].decode("cp1252"))[0]
    except UnicodeDecodeError:
        return ""
    return f" ({quoted(excerpt)} if it is Windows-1252: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW)"
