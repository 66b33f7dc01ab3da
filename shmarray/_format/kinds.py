"""What messages call that which a block holds.

Owns: reading the one word that says so out of a block's description, for whom the rest of it is no matter.
Must not know: blocks; which kinds there are.
"""

from __future__ import annotations

import json

ANY = "object"
"""What to call it as long as nobody has read its description."""

REFERENCE = "reference"
"""The kind of a block that is a name for an object which was made without one, and stands in another block."""


def is_data(meta: bytes) -> bool:
    """Say whether that describes an array or a tree, and no other kind of object; at a glance: false where it may be one."""
    return b'"kind":' not in meta


def noun(meta: bytes) -> str:
    """Give "array", "tree", or the name of another kind of shared object, as its class has it; `ANY` for what is no description.

    >>> noun(b'{"name":null,"leaves":[],"tree":null,"kind":"Lock"}'), noun(b'{"leaves":[]}'), noun(b"?")
    ('Lock', 'array', 'object')
    """
    try:
        fields = json.loads(meta)
        return str(fields.get("kind") or ("array" if fields.get("tree") is None else "tree"))
    except (ValueError, AttributeError, RecursionError):
        return ANY
