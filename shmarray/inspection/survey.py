"""Making a survey.

Owns: finding every file of a user's stores, and judging how each store stands.
Must not know: how anything is shown. It removes nothing.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from shmarray import reaper
from shmarray._format import control as layout
from shmarray._format import names
from shmarray._os import flocks, processes, segments, words
from shmarray.inspection import links, orphans
from shmarray.inspection.holders import Holders, is_alive
from shmarray.inspection.reading import UNREADABLE, Reader, identity, text
from shmarray.inspection.records import Process, Store, Stray, Survey

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shmarray._format.names import StoreKey

SHM = segments.SHM_DIRECTORY


def survey(directories: Iterable[str] = (), *, aloof: bool = False) -> Survey:
    """Look at all stores of this user, wherever their blocks are, and at what else lies in `directories`.

    `aloof` is for who looks again and again: no kernel lock is asked for, not for a moment, so nobody ever waits for it; guards are not
    read, and what may be in use counts as in use. Raises `OSError` for a directory that cannot be read. What is damaged or goes away
    meanwhile raises nothing.
    """
    return _Look(os.geteuid(), aloof=aloof).survey([SHM, *(os.path.realpath(directory) for directory in directories)])


class _Look:
    """One survey under way."""

    def __init__(self, uid: int, *, aloof: bool) -> None:
        self.uid = uid
        self.now = time.time()
        self.holders = Holders(uid, aloof=aloof)
        self.others = 0
        self.strays: list[Stray] = []
        self._files: dict[StoreKey, list[str]] = defaultdict(list)
        self._links: list[str] = []
        self._listed: set[str] = set()
        self._named: set[tuple[int, int]] = set()

    def survey(self, directories: list[str]) -> Survey:
        for directory in directories:
            self._list(directory)
        controls = {key: path for key, paths in self._files.items() if (path := reaper.control_path(key)) in paths}
        self._follow_links(controls)
        stores = [self._store(key, path) for key, path in controls.items()]
        stores += [self._deserted(key) for key in list(self._files) if key not in controls]
        found = sorted((store for store in stores if store is not None), key=lambda store: (store.name or "", store.id))
        return Survey(self.uid, tuple(found), tuple(self.strays), self.others, _commands(found))

    def _list(self, directory: str) -> None:
        """Sort the files of a directory that begin as ours do by the store they belong to."""
        if directory in self._listed:
            return
        self._listed.add(directory)
        for entry in sorted(segments.entries(directory, "shmarray.")):
            path = os.path.join(directory, entry)
            try:
                info = segments.status_of(path)
            except FileNotFoundError:
                continue
            self._named.add((info.st_dev, info.st_ino))
            key = names.store_of(entry)
            if info.st_uid != self.uid:
                self.others += 1
            elif key is not None and key.uid == self.uid:
                self._files[key].append(path)
            elif directory == SHM and entry.startswith(names.user_prefix(self.uid) + "name."):
                self._links.append(path)
            else:
                self.strays.append(Stray(path, info.st_size, "no file of shmarray has such a name"))

    def _follow_links(self, controls: dict[StoreKey, str]) -> None:
        """See where names of stores lead: a control file that was listed, one with this link alone, or nothing."""
        known = {identity(path) for path in controls.values()}
        for path in self._links:
            if identity(path) in known:
                continue
            try:
                key = names.StoreKey(self.uid, self._read_control(path)[0].store)
            except FileNotFoundError:
                continue
            except (OSError, *UNREADABLE) as error:
                self.strays.append(Stray(path, 0, f"it is not the name of a store: {text(error)}"))
                continue
            if segments.exists(reaper.control_path(key)):
                if key in controls:
                    self.strays.append(Stray(path, 0, f"it is not the name of a store: a copy of {controls[key]}"))
                continue
            controls[key] = path

    def _read_control(self, path: str) -> tuple[layout.Control, bytes, os.stat_result]:
        """Read a control file; raises `OSError`, and what `UNREADABLE` lists for one that is damaged."""
        fd = segments.open_existing(path, write=False)
        try:
            info = segments.status(fd)
            if not segments.is_regular(info) or info.st_uid != self.uid:
                message = "it is no file of this user"
                raise ValueError(message)
            page = segments.read(fd, layout.SIZE + 1, 0)
        finally:
            fd.close()
        return layout.unpack(page)[0], page, info

    def _store(self, key: StoreKey, path: str) -> Store | None:
        """Describe a store by its control file; None if it has gone meanwhile."""
        try:
            record, page, info = self._read_control(path)
            if record.store != key.store:
                message = f"it is a copy of that of the store {record.store:016x}"
                raise ValueError(message)
        except FileNotFoundError:
            return None
        except (OSError, *UNREADABLE) as error:
            damage = f"its control file is damaged: {text(error)}"
            return self._with_blocks(key, Store(_id(key), "damaged", SHM, reason=damage, control=path))
        reason = self._list_also(record.directory)
        owned, guarded = _marks(path)
        guardian = _word(page, layout.GUARDIAN_AT)
        # The guardian maps the control file too, and takes no part in the store.
        participants = tuple(pid for pid in self.holders.of(info, SHM) if pid != guardian)
        state = layout.STATES[_word(page, layout.STATE_AT)]
        if not owned and self.holders.is_free(path) and self._is_unclaimed(key, record.directory):
            state, participants = "leftover", ()  # who maps it has left, and cannot come back
        elif state == "open" and not owned:
            state = "dead"
        store = Store(
            id=_id(key),
            state=state,
            directory=record.directory,
            name=record.name,
            reason=reason,
            removable=state == "leftover",
            control=path,
            capacity=record.capacity,
            owner=_owner(record, owned=owned),
            guardian=Process(guardian, guarded or path in processes.command(guardian)) if guardian else None,
            participants=participants,
            age=max(0.0, self.now - record.born / 1e9),
        )
        return self._with_blocks(key, store, elsewhere=_is_elsewhere(record))

    def _list_also(self, directory: str) -> str | None:
        """List the directory of a store; says why if it cannot be read."""
        try:
            self._list(directory)
        except OSError as error:
            return f"its directory cannot be read: {text(error)}"
        return None

    def _is_unclaimed(self, key: StoreKey, directory: str) -> bool:
        path = reaper.claim_path(directory, key)
        return directory == SHM or not segments.exists(path) or self.holders.is_free(path)

    def _deserted(self, key: StoreKey) -> Store | None:
        """Describe what there is of a store without a control file; None if nothing is, or it has one after all."""
        files = [path for path in self._files[key] if segments.exists(path)]
        # Blocks were listed before this question is put: see `orphans`.
        if not files or segments.exists(reaper.control_path(key)):
            return None
        directory = os.path.dirname(files[0])
        claim = reaper.claim_path(directory, key)
        if claim in files:
            if self.holders.is_free(claim):
                reason = "its control file went with an earlier boot"
                return self._with_blocks(key, Store(_id(key), "leftover", directory, reason=reason, removable=True))
            reason = "a process holds its claim on the directory"
            return self._with_blocks(key, Store(_id(key), "orphan", directory, reason=reason))
        store = self._with_blocks(key, Store(_id(key), "orphan", directory))
        doubt = orphans.doubt(store.blocks, self.holders, self._named)
        return replace(store, reason=doubt, removable=doubt is None) if store.blocks else None

    def _with_blocks(self, key: StoreKey, store: Store, *, elsewhere: bool = False) -> Store:
        """Add the blocks of a store, biggest first."""
        kinds = [(path, os.path.basename(path)[len(key.prefix) :]) for path in self._files[key]]
        handles = links.sort(key, kinds)
        reader = Reader(store, self.holders, self.now, elsewhere=elsewhere)
        found = [
            reader.block(path, kind, handles.pop(kind, links.NONE))
            for path, kind in kinds
            if kind not in (names.CONTROL, names.CLAIM) and not kind.startswith(names.IN_FLIGHT)
        ]
        found += [reader.stranded(key.prefix + kind, stranded) for kind, stranded in handles.items()]
        blocks = links.follow((block for block in found if block is not None), self.holders)
        there = sorted(blocks, key=lambda block: (-block.bytes, block.file))
        return replace(store, blocks=tuple(there), bytes=sum(block.file_bytes for block in there))


def _id(key: StoreKey) -> str:
    return f"{key.store:016x}"


def _word(page: bytes, offset: int) -> int:
    return int.from_bytes(page[offset : offset + words.WORD], "little")


def _marks(path: str) -> tuple[bool, bool]:
    """Whether the owner and the guardian hold their marks of a control file."""
    try:
        fd = segments.open_existing(path, write=False)
    except OSError:
        return False, False
    try:
        return flocks.is_marked(fd, layout.OWNER_MARK), flocks.is_marked(fd, layout.GUARDIAN_MARK)
    finally:
        fd.close()


def _is_elsewhere(record: layout.Control) -> bool:
    """Whether a store was opened, in this boot, in a pid namespace where our pids are other processes."""
    return record.boot == processes.boot_id() and record.owner[2] != processes.pid_namespace()


def _owner(record: layout.Control, *, owned: bool) -> Process:
    pid, start, _ = record.owner
    if owned:
        return Process(pid, alive=True)
    if _is_elsewhere(record):
        return Process(pid, alive=None)
    return Process(pid, record.boot == processes.boot_id() and is_alive(pid, start))


def _commands(stores: list[Store]) -> dict[int, str]:
    wanted = {pid for store in stores for pid in store.participants}
    wanted |= {pid for store in stores for block in store.blocks for pid in block.holders}
    wanted |= {party.pid for store in stores for party in (store.owner, store.guardian) if party and party.alive}
    return {pid: processes.command(pid) for pid in sorted(wanted)}
