"""Files, as methods of a store.

Owns: `load` and `save`: what they take and what they promise.
Must not know: how a file is read or written (`loading`, `saving`, which are loaded when first used).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shmarray._format import flags, names
from shmarray._os import late

if TYPE_CHECKING:
    import os
    from typing import Literal

    from numpy.typing import DTypeLike

    from shmarray import loading, rawdata, saving
    from shmarray.membership import Membership

if not TYPE_CHECKING:
    loading, rawdata, saving = (late.Module(f"shmarray.{name}") for name in ("loading", "rawdata", "saving"))


class Filing:
    """The part of `Store` that loads and saves files."""

    def _open(self) -> Membership:
        """Give the membership of an open store."""
        raise NotImplementedError

    def __getitem__(self, name: str) -> Any:
        """Attach what has that name."""
        raise NotImplementedError

    def load(
        self,
        path: str | os.PathLike[str] | Any,
        name: str | None = None,
        mmap: bool = False,  # noqa: FBT001, FBT002  as in the list of what a store can do
        *,
        dtype: DTypeLike | None = None,
        shape: Any = None,
        offset: int = 0,
        order: Literal["C", "F"] = "C",
        progress: bool | None = None,
    ) -> Any:
        """Load a file straight into shared memory, without a second copy in private memory; like `numpy.load`.

        A `.npy` file gives a `SharedArray` of its dtype, shape and order, a `.npz` file a `SharedTree` of all its arrays in one
        block; the file's first bytes decide, not its name. Any other is raw, and needs `dtype`; `shape` may hold one -1, or be
        left out for one dimension, and the data begin `offset` bytes on. `path` may also be an open file, or anything with
        `readinto` (a socket's `makefile("rb")`, `gzip.open`, `io.BytesIO`), read from where it stands to where the array ends;
        a `.npz` must be able to seek. With `mmap` a file is mapped and copied by the kernel out of the mapping instead of read:
        the result is a block of the store like any other, which needs the file no more; what cannot be mapped (archives, streams) is read.

        Under its `name` the array appears whole, when all has been read; what fails leaves nothing. In a terminal a load that takes
        long shows a bar on standard error; `progress` says that it must, or must not.

        Pickles are never loaded: `DTypeError` for arrays of Python objects. `FileFormatError` (a `ValueError`) for what is none of
        these formats, damaged, cut short, or longer than its header says. `FileNotFoundError` and the like as from `open`;
        `ArrayExistsError` before anything is read, and the rest as `empty` raises.

        >>> import io, numpy as np, shmarray as sa
        >>> np.save("frames.npy", np.arange(6).reshape(2, 3))
        >>> with sa.Store() as store:
        ...     frames = store.load("frames.npy", name="frames")
        ...     print(frames.sum(), store["frames"].shape)
        ...     print(store.load(io.BytesIO(b"abcdef"), dtype="S1", shape=(-1, 2)).shape)
        15 (2, 3)
        (3, 2)
        """
        member = self._open()
        if name is not None:
            names.check(name)
        told = rawdata.told(dtype, shape, offset, order)
        return loading.load(
            member, path, name, told, mmap=flags.check(mmap, "mmap"), progress=flags.check_if_said(progress, "progress")
        )

    def save(
        self,
        path: str | os.PathLike[str] | Any,
        value: Any,
        *,
        compressed: bool = False,
        progress: bool | None = None,
    ) -> None:
        """Save an array as a `.npy` file, or a dict or tree of arrays as a `.npz` file, without a second copy in memory.

        `value` is an array of any kind, a flat mapping of arrays, or the name of either in this store. The file gets exactly the
        name `path` (no suffix is added, and the wrong one of the two refused), in one step when it is whole and on the disk: whoever
        opens it sees the old file or the new one. C and Fortran order are kept, other orders become C. `path` may be an open file,
        or anything with `write`. `compressed` is for `.npz`. Others may write to the array meanwhile: take `read()` around it.

        Raises `DTypeError` for what such a file cannot hold, `TypeError` for what is no array or flat mapping of arrays,
        `ArrayNotFoundError` for a name that is not there, and `OSError` as from `open` and `write`.

        >>> import numpy as np, shmarray as sa
        >>> with sa.Store() as store:
        ...     store["w"] = np.eye(2)
        ...     store.save("w.npy", "w")
        ...     store.save("all.npz", {"w": store["w"], "step": 7})
        ...     tree = store.load("all.npz")
        ...     print(np.load("w.npy").sum(), tree["w"].sum(), tree["step"])
        2.0 2.0 7
        """
        self._open().require_open()
        saving.check_target(path)  # before `value`, which somebody who changed the two round may have given here
        small, shown = flags.check(compressed, "compressed"), flags.check_if_said(progress, "progress")
        saving.save(path, self[value] if isinstance(value, str) else value, compressed=small, progress=shown)
