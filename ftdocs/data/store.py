"""Rows in a file instead of in memory: ten times the rows take no more of it."""

import copy
import os
import pickle
import tempfile
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, overload

from ftdocs import files

if TYPE_CHECKING:  # NumPy is imported where it is used: broken rows are refused before it has been loaded
    import numpy as np

Row = dict[str, Any]
Key = Callable[[Row], bytes]  # 16 bytes that stand for a row


class Stored(Sequence[Row]):
    """Rows in a temporary file, each read when it is asked for; memory holds its place there, 16 bytes.

    It is used as a list is; a slice of it is one. The file lies in the cache folder, as the system's folder for
    temporary files is often memory. It has no name, so it goes with the process, however that ends. Rows are read by
    their position, which several threads and forked processes may do at once. They are not memory-mapped: mapped
    pages would count as the process's memory.

    Args:
        rows: the first rows; may be a generator's.
        keys: functions whose result for each row is kept in memory as well, for :func:`keys_of`.

    Raises:
        InputError: the disk is full, or nothing can be written into the cache folder.
    """

    def __init__(self, rows: Iterable[Row] = (), keys: Iterable[Key] = ()):
        self._folder = files.home()
        with files.explain_write_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115, it is closed with the last view
        self._flushed = True
        self.starts, self.sizes = array("Q"), array("Q")  # of each row's bytes in the file
        self.keys = {key: bytearray() for key in keys}
        for row in rows:
            self.append(row)

    def append(self, row: Row) -> None:
        """Write a row to the end of the file."""
        content = pickle.dumps(row, pickle.HIGHEST_PROTOCOL)
        self.starts.append(self._file.tell())
        self.sizes.append(len(content))
        with files.explain_write_errors(self._folder):
            self._file.write(content)
        self._flushed = False
        for key, found in self.keys.items():
            found += key(row)

    def take(self, indices: "np.ndarray") -> "Stored":
        """The rows at ``indices``, in that order, out of the same file."""
        import numpy as np

        taken = copy.copy(self)
        taken.starts = array("Q", np.asarray(self.starts)[indices].tobytes())
        taken.sizes = array("Q", np.asarray(self.sizes)[indices].tobytes())
        taken.keys = {key: bytearray(keys_of(self, key)[indices]) for key in self.keys}
        return taken

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        start, size = self.starts[index], self.sizes[index]
        if not self._flushed:
            with files.explain_write_errors(self._folder):
                self._file.flush()
            self._flushed = True
        if hasattr(os, "pread"):
            return pickle.loads(os.pread(self._file.fileno(), size, start))
        self._file.seek(start)  # Windows, where no process is forked
        content = self._file.read(size)
        self._file.seek(0, os.SEEK_END)
        return pickle.loads(content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


def keys_of(rows: Sequence[Row], key: Key) -> "np.ndarray":
    """The key of each row, (rows,) of 16 bytes; those that :class:`Stored` keeps are not computed again."""
    import numpy as np

    known = rows.keys.get(key) if isinstance(rows, Stored) else None
    return np.fromiter(map(key, rows), "V16", len(rows)) if known is None else np.frombuffer(known, "V16")


def take(rows: Sequence[Row], indices: "np.ndarray") -> Sequence[Row]:
    """The rows at ``indices``, in that order: of a list a list, of :class:`Stored` rows a view of their file."""
    return rows.take(indices) if isinstance(rows, Stored) else [rows[index] for index in indices]
