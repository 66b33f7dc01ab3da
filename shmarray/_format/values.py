"""Text and single Python values as JSON values, and back without loss.

Owns: what JSON alone would alter, and how it is written instead:

    null, true, 7, 0.5, "text"   itself
    ["i", "-0xff"]               int beyond 64 bits (JSON readers, Python's among them, limit the digits)
    ["f", "7ff8000000000000"]    float that is not finite, as IEEE 754, big endian
    ["z", RE, IM]                complex: two floats
    ["y", BASE64]                bytes
    ["u", HEX]                   str that is not valid Unicode, as UTF-8 with surrogates
    ["U", STR], ["S", BASE64]    numpy.str_, numpy.bytes_ (an array of one would lose trailing zeros)

Must not know: arrays, containers, files.
"""

from __future__ import annotations

import binascii
import math
import re
import struct
from typing import Any

import numpy as np

_SURROGATE = re.compile("[\ud800-\udfff]")
_HEX_INT = re.compile("-?0x[0-9a-f]+")
_HEX_DOUBLE = re.compile("[0-9a-f]{16}")
_DOUBLE = struct.Struct(">d")
_WORD = 64

#: The types of a value. A subclass is none: its type would be lost.
VALUE_TYPES = frozenset([type(None), bool, int, float, complex, str, bytes, np.str_, np.bytes_])
#: The types that a value has in JSON, if it is not a list with a tag.
_PLAIN_TYPES = frozenset([type(None), bool, int, float, str])


def encode_text(text: str) -> str | list[str]:
    """Write text; what is not valid Unicode, and so would not survive as UTF-8, as hexadecimal digits in a list.

    >>> encode_text("ä"), encode_text(chr(0xD800))
    ('ä', ['eda080'])
    """
    if not text.isascii() and _SURROGATE.search(text):
        return [text.encode("utf-8", "surrogatepass").hex()]
    return str.__str__(text)  # of a subclass, only the text


def decode_text(encoded: object) -> str:
    """Read what `encode_text` wrote; anything else is a `ValueError`."""
    match encoded:
        case str(text):
            return text
        case [str(digits)]:
            return bytes.fromhex(digits).decode("utf-8", "surrogatepass")
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
    if kind is int:
        return value if value.bit_length() <= _WORD else ["i", hex(value)]
    if kind is float:
        return value if math.isfinite(value) else ["f", _DOUBLE.pack(value).hex()]
    if kind is complex:
        return ["z", encode_value(value.real), encode_value(value.imag)]
    if kind is np.str_:
        return ["U", encode_value(str(value))]
    tag = "y" if kind is bytes else "S"
    return [tag, binascii.b2a_base64(value, newline=False).decode("ascii")]


def decode_value(encoded: object) -> Any:
    """Read what `encode_value` wrote; anything else is a `ValueError`."""
    if type(encoded) in _PLAIN_TYPES:
        return encoded
    match encoded:
        case ["i", str(digits)] if _HEX_INT.fullmatch(digits):
            return int(digits, 16)
        case ["f", str(digits)] if _HEX_DOUBLE.fullmatch(digits):
            return _DOUBLE.unpack(bytes.fromhex(digits))[0]
        case ["z", re, im]:
            real, imaginary = decode_value(re), decode_value(im)
            if type(real) is type(imaginary) is float:
                return complex(real, imaginary)
        case ["y", str(base64)]:
            return binascii.a2b_base64(base64, strict_mode=True)
        case ["S", str(base64)]:
            return np.bytes_(binascii.a2b_base64(base64, strict_mode=True))
        case ["u", str(digits)]:
            return decode_text([digits])
        case ["U", inner]:
            text = decode_value(inner)
            if type(text) is str:
                return np.str_(text)
    raise ValueError("not a value")
