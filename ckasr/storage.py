"""Atomic writes of files, and lock files that are released when their process ends."""

import errno
import itertools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


class ClaimedError(OSError):
    """Raised if the lock is already held, by this process or by another one."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context manager that yields a temporary path, and renames it to ``path`` at the end.

    A reader finds either the old file or the new one, never a part of it. Temporary names are
    unique, so several processes can write the same file at the same time; the last one to finish
    determines the content. If the block raises, the temporary file is removed and ``path`` is not
    changed.

    Raises:
        OSError: if the file cannot be written. The message contains the path.
    """
    part = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise type(error)(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            part.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, either completely or not at all (see `replacing`)."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_between(path: Path, begin: str, end: str, text: str) -> None:
    """Replace the text between two marks in a text file. The marks themselves are kept.

    Args:
        path: the file.
        begin: mark before the text.
        end: mark after the text.
        text: the new text.

    Raises:
        ValueError: if the file does not contain each mark exactly once, in this order.
    """
    before, opened, rest = path.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed or begin in rest or end in before + after:
        raise ValueError(f"{path} must hold the lines {begin} and {end} once each, in this order")
    write_text(path, f"{before}{begin}\n\n{text}\n\n{end}{after}")


def check_writable(folder: Path) -> None:
    """Raise OSError if files cannot be created in ``folder``, which need not exist yet.

    This function creates nothing. Call it before a long computation that will write to the folder.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"cannot write to {folder}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write to {folder}: no permission to write to {there}")


@contextmanager
def claim(path: Path) -> Iterator[None]:
    """Context manager that holds the lock file ``path``.

    The operating system releases the lock when the process ends, even if it is killed. After the
    block, the file is removed, and so are the folders that were created for it, if they are empty.
    On a file system without locks, a RuntimeWarning is issued and the block runs without a lock.

    Raises:
        ClaimedError: if the lock is already held.
        OSError: if the lock file cannot be created.
    """
    import fcntl  # not on Windows

    folders = [folder for folder in path.parents if not folder.exists()]
    for attempt in itertools.count():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            # Another process may have removed the empty folder between the two calls.
            if isinstance(error, FileNotFoundError) and attempt < 10:
                continue
            raise type(error)(f"cannot write {path}: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous owner may have removed the file after we opened it.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), path.stat()):
                    break
        except BlockingIOError:
            owner = os.pread(file, 100, 0).decode(errors="replace").strip() or "another process"
            os.close(file)
            raise ClaimedError(f"{path.stem} is being run by {owner}") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
            warnings.warn(
                f"the file system of {path.parent} has no locks: run one sweep at a time on it",
                RuntimeWarning,
                stacklevel=3,
            )
            break
        os.close(file)
    try:
        os.truncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} of {os.uname().nodename}\n".encode(), 0)
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(file)
        for folder in folders:
            with suppress(OSError):
                folder.rmdir()
