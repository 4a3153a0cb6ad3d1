"""Text for a terminal: escaped so that it can be printed, and quoted so that a shell accepts it."""

from __future__ import annotations

import logging
import shlex
import unicodedata

_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: object, lines: bool = False) -> str:
    """A text without characters that act on a terminal or can't be encoded, such as escape sequences: escaped as \\x1b.

    ``lines``: it may have several lines, and tabs.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(letter if lines and letter in "\n\t" else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    """A letter, or its escape where it is none: control, format (direction of writing), surrogate, or another line's end."""
    if unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return letter
    if letter in _ESCAPES:
        return _ESCAPES[letter]
    if "\udc80" <= letter <= "\udcff":  # a byte of a name that isn't UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def quoted(text: object) -> str:
    """A text as a word of a shell command that can be pasted; with $'...' where it has letters that can't be shown."""
    text = str(text)
    shown = printable(text)
    if shown == text:
        return shlex.quote(text)
    return f"$'{''.join(map(_shell_escaped, text))}'"


def _shell_escaped(letter: str) -> str:
    """A letter within $'...': its bytes, where it isn't to be shown."""
    if letter in "\\'":
        return f"\\{letter}"
    if _escaped(letter) == letter:
        return letter
    return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "surrogateescape"))


class LineFormatter(logging.Formatter):
    """Messages as they are, with what stands in for their %s on one line each, and nothing that acts on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The message of a record."""
        if isinstance(record.args, tuple) and record.args and record.msg != "%s":
            shown = tuple(arg if isinstance(arg, int | float) else printable(arg) for arg in record.args)
            return printable(str(record.msg) % shown, lines=True)
        return printable(record.getMessage(), lines=True)
