"""Names: which texts are names, and that the spelling in a file name is one to one."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmarray._format import names
from shmarray.errors import ArrayNameError

NAME_MAX = 255
KEY = names.StoreKey((1 << 32) - 2, (1 << 64) - 1)
GOOD = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=120).filter(
    lambda text: len(text.encode()) <= names.MAX_NAME_BYTES
)


@pytest.mark.core
@given(GOOD)
def test_a_name_is_spelled_in_letters_that_every_directory_takes(name: str) -> None:
    """The spelling needs no quoting anywhere: ASCII letters, digits, `-_.%~`, never a slash."""
    assert re.fullmatch(r"[A-Za-z0-9._%~-]+", names.encode(names.check(name)))


@given(GOOD)
def test_a_short_spelling_is_read_back_and_a_long_one_says_that_it_cannot_be(name: str) -> None:
    """`decode` undoes `encode`, or gives None for a name that is spelled by its hash."""
    assert names.decode(names.encode(name)) in (name, None)


@given(GOOD.filter(lambda name: len(name.encode()) <= 53))
def test_names_up_to_53_bytes_are_always_read_back(name: str) -> None:
    """A third of the room is enough for any letters, so names of usual length are never hashed."""
    assert names.decode(names.encode(name)) == name


@pytest.mark.core
@given(GOOD, GOOD)
def test_two_names_never_share_a_spelling(one: str, other: str) -> None:
    """Different names, different files."""
    assert (names.encode(one) == names.encode(other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a/b", "a%2Fb"),
        ("a", "A"),
        ("é", unicodedata.normalize("NFD", "é")),
        ("x" * 160, "x" * 161),
        ("x" * 254 + "y", "x" * 254 + "z"),
        ("ü" * 127, "ü" * 126 + "ö"),
        ("a.b", "a/b"),
        (" ", "  "),
    ],
)
def test_names_that_look_alike_are_kept_apart(one: str, other: str) -> None:
    """Neither escapes, nor case, nor Unicode forms, nor the hash of long names make two names one."""
    assert names.encode(names.check(one)) != names.encode(names.check(other))


def test_a_name_cannot_pose_as_the_hash_of_another() -> None:
    """A name that is written like a hashed spelling gets a spelling of its own."""
    hashed = names.encode("ü" * 127)
    assert hashed.startswith("%~")
    assert names.encode(hashed) != hashed
    assert names.decode(names.encode(hashed)) == hashed


@given(GOOD)
def test_every_file_name_fits_into_a_directory_entry(name: str) -> None:
    """The longest user and store identities with any name stay within 255 bytes."""
    assert len(f"{KEY.prefix}{names.NAMED}{names.encode(name)}") <= NAME_MAX
    assert len(names.store_link(KEY.uid, name)) <= NAME_MAX


@given(st.text(max_size=200) | st.text(st.sampled_from("%~0123456789ABCDEFabcdef"), max_size=40))
def test_only_what_encode_writes_can_be_decoded(text: str) -> None:
    """Any other text is refused, so that no two directory entries ever mean the same name."""
    try:
        name = names.decode(text)
    except ValueError:
        return
    assert text == names.encode(name) if name is not None else re.fullmatch(r"%~[0-9a-f]{32}", text)


@pytest.mark.parametrize(
    "text",
    ["", "%", "%4", "%41", "%2f", "%FF", "%ED%A0%80", "a/b", "a b", "%0A", "%~", "%~" + "0" * 31, "x" * 161, "a\n"],
)
def test_a_wrong_spelling_is_refused(text: str) -> None:
    """Escapes that `encode` never makes, broken UTF-8, control characters, too long: `ValueError`."""
    with pytest.raises(ValueError, match=r"spelling|codec"):
        names.decode(text)


@pytest.mark.parametrize(
    "name", ["a", "train/images/0", ".", "..", "ctl", "~", "%", "ü" * 127, "x" * 255, "名前", "a:b", "-rf", " "]
)
def test_any_reasonable_text_is_a_name(name: str) -> None:
    """Slashes, colons, dots, spaces and other scripts are allowed, up to 255 bytes."""
    assert names.check(name) is name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "is empty"),
        ("a\nb", "control character"),
        ("a\0", "control character"),
        ("\x7f", "control character"),
        ("\x85", "control character"),
        ("\x9b31m", "control character"),
        ("\ud800", "surrogate"),
        ("x" * 256, "256 bytes"),
        ("ü" * 128, "256 bytes"),
        (7, "type int"),
        (None, "type NoneType"),
        (b"a", "type bytes"),
    ],
)
def test_what_cannot_be_a_name_is_refused_with_the_reason_and_the_remedy(name: object, reason: str) -> None:
    """`ArrayNameError`, which is a `ValueError`, carries the name and says what is wrong with it."""
    with pytest.raises(ArrayNameError, match=reason) as caught:
        names.check(name)
    assert isinstance(caught.value, ValueError)
    assert caught.value.name == name
    assert str(caught.value).splitlines()[-1].startswith("Use a non-empty text")


def test_the_message_speaks_of_a_store_where_a_store_is_named() -> None:
    """What cannot be named is said."""
    with pytest.raises(ArrayNameError, match="cannot name a store"):
        names.check("", "a store")


@given(st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1))
def test_a_store_is_recognised_by_its_files(uid: int, store: int) -> None:
    """Every file of a store leads back to it, its control file as such."""
    key = names.StoreKey(uid, store)
    assert names.control_file(key.prefix + names.CONTROL) == key
    for kind in (names.CONTROL, names.CLAIM, names.NAMED + "x", names.ANONYMOUS + "0", names.IN_FLIGHT + "0.1"):
        assert names.store_of(key.prefix + kind) == key
    assert names.store_of(names.draft(key, "ab")) == key
    assert names.control_file(key.prefix + names.NAMED + names.CONTROL) is None
    assert key.prefix.startswith(names.user_prefix(uid))


@pytest.mark.parametrize(
    "entry",
    ["", "shmarray", "shmarray.1.ctl", "shmarray.1.name.ctl", "shmarray.1.0123456789abcde.ctl", "shmarray.1.0123456789ABCDEF.ctl",
     "psm_1234", "xshmarray.1.0123456789abcdef.ctl", "shmarray.x.0123456789abcdef.ctl"],
)  # fmt: skip
def test_a_foreign_file_belongs_to_no_store(entry: str) -> None:
    """What is not spelled like a file of a store is none."""
    assert names.control_file(entry) is None
    assert names.store_of(entry) is None


def test_a_control_file_is_recognised_only_by_its_whole_name() -> None:
    """Neither a longer name nor a newline at the end passes for a control file."""
    name = KEY.prefix + names.CONTROL
    assert [names.control_file(name + tail) for tail in ("", "x", ".", "\n")] == [KEY, None, None, None]


@given(GOOD)
def test_the_name_of_a_store_is_never_taken_for_a_file_of_one(name: str) -> None:
    """The link that carries a store's name cannot look like a store's own file."""
    assert names.store_of(names.store_link(0, name)) is None
