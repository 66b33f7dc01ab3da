"""Text and single Python values as JSON values, and back without loss.

Owns: what JSON alone would alter, and how it is written instead:

    null, true, 7, 0.5, "text"   itself
    ["i", "-0xff"]               int beyond 64 bits (JSON readers, Python's among them, limit the digits)
    ["f", "7ff8000000000000"]    float that is not finite, as IEEE 754, big endian
    ["z", RE, IM]                complex: two floats
    ["y", BASE64]                bytes
    ["u", HEX]                   str that is not valid Unicode, as UTF-8 with surrogates
    ["U", HEX], ["S", BASE64]    numpy.str_, numpy.bytes_ (an array of one would lose trailing zeros)

Must not know: arrays, containers, files.
"""

from __future__ import annotations

import binascii
import math
import re
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

_SURROGATE = re.compile("[\ud800-\udfff]")
_HEX_INT = re.compile("-?0x[0-9a-f]+")
_HEX_DOUBLE = re.compile("[0-9a-f]{16}")
_DOUBLE = struct.Struct(">d")
_WORD = 64

#: The types of a value. A subclass is none: its type would be lost.
VALUE_TYPES = frozenset([type(None), bool, int, float, complex, str, bytes, np.str_, np.bytes_])
_PLAIN_TYPES = frozenset([type(None), bool, int, float, str])


def encode_text(text: str) -> str | list[str]:
    """Write text; what is not valid Unicode, and so would not survive as UTF-8, as hexadecimal digits in a list.

    >>> encode_text("ä"), encode_text(chr(0xD800))
    ('ä', ['eda080'])
    """
    if not text.isascii() and _SURROGATE.search(text):
        return [_to_hex(text)]
    return str.__str__(text)  # of a subclass, only the text


def decode_text(encoded: object) -> str:
    """Read what `encode_text` wrote; anything else is a `ValueError`."""
    match encoded:
        case str(text):
            return text
        case [str(digits)]:
            return _from_hex(digits)
        case _:
            raise ValueError("not a text, nor the hexadecimal digits of one")


def encode_value(value: Any) -> Any:
    """Write a value whose type is one of `VALUE_TYPES`.

    >>> encode_value(0.5), encode_value(float("nan")), encode_value(b"ab")
    (0.5, ['f', '7ff8000000000000'], ['y', 'YWI='])
    """
    kind = type(value)
    if kind is str:
        text = encode_text(value)
        return text if type(text) is str else ["u", *text]
    if value is None or kind is bool:
        return value
    if (kind is float and math.isfinite(value)) or (kind is int and value.bit_length() <= _WORD):
        return value
    return _TAGGED[kind](value)


def decode_value(encoded: object) -> Any:
    """Read what `encode_value` wrote; anything else is a `ValueError`."""
    if type(encoded) in _PLAIN_TYPES:
        return encoded
    match encoded:
        case [str(tag), str(text)] if tag in _FROM_TEXT:
            return _FROM_TEXT[tag](text)
        case ["z", re, im]:
            return complex(_decode_float(re), _decode_float(im))
    raise ValueError("not a value")


def _decode_float(encoded: object) -> float:
    match encoded:
        case float():
            return encoded
        case ["f", str(digits)]:
            return _float_from_hex(digits)
        case _:
            raise ValueError("not a float")


def _to_hex(text: str) -> str:
    return text.encode("utf-8", "surrogatepass").hex()


def _from_hex(digits: str) -> str:
    return bytes.fromhex(digits).decode("utf-8", "surrogatepass")


def _to_base64(value: bytes) -> str:
    return binascii.b2a_base64(value, newline=False).decode("ascii")


def _from_base64(text: str) -> bytes:
    return binascii.a2b_base64(text, strict_mode=True)


def _int_from_hex(digits: str) -> int:
    if not _HEX_INT.fullmatch(digits):
        raise ValueError("not the hexadecimal digits of an int")
    return int(digits, 16)


def _float_from_hex(digits: str) -> float:
    if not _HEX_DOUBLE.fullmatch(digits):
        raise ValueError("not the hexadecimal digits of a float")
    value: float = _DOUBLE.unpack(bytes.fromhex(digits))[0]
    return value


_TAGGED: dict[type, Callable[[Any], list[Any]]] = {
    int: lambda value: ["i", hex(value)],
    float: lambda value: ["f", _DOUBLE.pack(value).hex()],
    complex: lambda value: ["z", encode_value(value.real), encode_value(value.imag)],
    bytes: lambda value: ["y", _to_base64(value)],
    np.str_: lambda value: ["U", _to_hex(value)],
    np.bytes_: lambda value: ["S", _to_base64(value)],
}
_FROM_TEXT: dict[str, Callable[[str], Any]] = {
    "i": _int_from_hex,
    "f": _float_from_hex,
    "y": _from_base64,
    "u": _from_hex,
    "U": lambda text: np.str_(_from_hex(text)),
    "S": lambda text: np.bytes_(_from_base64(text)),
}
