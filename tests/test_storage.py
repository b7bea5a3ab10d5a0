"""Atomic writes, and locks that end with their process."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ckasr import storage
from ckasr.storage import ClaimedError, check_writable, claim, replacing, write_between, write_text
from ckasr.training import checkpoint


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "é old")
    with pytest.raises(TypeError), replacing(target) as part:
        part.write_text("half") + "then an error"
    assert target.read_bytes() == "é old".encode()
    assert os.listdir(tmp_path) == ["a.txt"]


def test_text_between_marks_is_replaced_and_the_rest_stays(tmp_path):
    target = tmp_path / "a.md"
    target.write_text("top\n<begin>\nold\n<end>\nbottom\n")
    for text in ("new", "newer"):
        write_between(target, "<begin>", "<end>", text)
        assert target.read_text() == f"top\n<begin>\n\n{text}\n\n<end>\nbottom\n"


@pytest.mark.parametrize(
    "text", ["", "<begin>", "<end> <begin>", "<begin> <begin> <end>", "<begin> <end> <end>"]
)
def test_marks_that_are_not_there_once_each_are_refused(tmp_path, text):
    target = tmp_path / "a.md"
    target.write_text(text)
    with pytest.raises(ValueError, match=r"a\.md must hold the lines <begin> and <end> once each"):
        write_between(target, "<begin>", "<end>", "new")
    assert target.read_text() == text


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    target = tmp_path / "a.txt"
    with replacing(target) as one:
        one.write_text("first to start, last to end")
        write_text(target, "between")
        assert target.read_text() == "between"
    assert target.read_text() == "first to start, last to end"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "x" * 100_000),
        lambda path: checkpoint.save(path, {"w": torch.zeros(100_000)}),
    ],
    ids=["text", "checkpoint"],
)
def test_a_full_disk_is_one_line_with_the_file(tmp_path, write):
    """A limit on the size of files stands for the disk; torch's writer raises RuntimeError then."""
    target = tmp_path / "a"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=f"^cannot write {target}: ") as caught:
            write(target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    check_writable(tmp_path / "new" / "folder")
    with pytest.raises(NotADirectoryError, match=r"cannot write to .*file/records: .*file is not"):
        check_writable(tmp_path / "file" / "records")
    # The tests may run as root, who may write anywhere.
    monkeypatch.setattr(storage.os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="no permission to write to"):
        check_writable(tmp_path / "new")
    assert os.listdir(tmp_path) == ["file"]


def test_a_claim_is_exclusive_and_leaves_nothing(tmp_path):
    lock = tmp_path / "new" / "deep" / "run.lock"
    with claim(lock):
        message = f"^run is being run by process {os.getpid()} of "
        with pytest.raises(ClaimedError, match=message), claim(lock):
            pass
        with claim(lock.with_name("other.lock")):
            pass
    with claim(lock):  # the one that failed has not taken it away
        pass
    assert os.listdir(tmp_path) == []


def test_a_claim_ends_with_its_process(tmp_path):
    lock = tmp_path / "run.lock"
    code = (
        "import sys, time; from pathlib import Path; from ckasr.storage import claim\n"
        "with claim(Path(sys.argv[1])): print('claimed', flush=True); time.sleep(60)"
    )
    root = Path(__file__).resolve().parents[1]
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True, cwd=root
    )
    try:
        assert child.stdout.readline() == "claimed\n"
        with pytest.raises(ClaimedError, match=f"process {child.pid} "), claim(lock):
            pass
    finally:
        child.kill()
        child.wait()
    assert lock.exists()
    with claim(lock):
        pass


def test_a_lock_that_was_removed_meanwhile_is_not_taken_for_the_new_one(tmp_path, monkeypatch):
    """Between our opening of the file and our lock, its holder removes it and another claims."""
    import fcntl

    lock, others = tmp_path / "run.lock", []
    real = fcntl.flock

    def flock(file: int, how: int) -> None:
        if not others:
            lock.unlink()
            others.append(os.open(lock, os.O_RDWR | os.O_CREAT))
            real(others[0], how)
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ClaimedError), claim(lock):
        pass
    os.close(others[0])


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc, where nothing can be made")
def test_a_folder_that_cannot_be_made_is_an_error_and_does_not_block():
    with (
        pytest.raises(OSError, match=r"cannot write /proc/none/run\.lock"),
        claim(Path("/proc/none/run.lock")),
    ):
        pass


def test_without_locks_there_is_a_warning(tmp_path, monkeypatch):
    import errno
    import fcntl

    def flock(file: int, how: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(RuntimeWarning, match="has no locks: run one sweep"), claim(tmp_path / "a"):
        pass
