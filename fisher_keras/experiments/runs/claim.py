"""Which process carries out a run: claims that a dead process gives back, on any shared folder.

A claim is a file in the run's directory. Whoever wants the run first makes such a file, under a
name of its own, and then looks whether a live one of another is there: if so, it takes its own
away again. Two that come at once may both step back, but never both go on: the later of the two
files was made before its maker looked. Nothing is renamed or replaced, so a network file system
needs no more than to show a new file to whoever makes and then looks for one.

A claim is dead

- if it was made on this machine, once the operating system has dropped its lock (`flock`): that
  happens as the process ends, however it ends, and no later process can be mistaken for it;
- else once its time of change has stood still for `EXPIRE_S` on the clock of the one that looks:
  its holder renews it every `HEARTBEAT_S`. No two machines' clocks are compared.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Self, TextIO

HEARTBEAT_S = 10.0
EXPIRE_S = 120.0  # NFS shows a file's times up to a minute late.


class Claim:
    """A claim that this process holds. Ends with `release`, or at the end of a `with` block."""

    def __init__(self, directory: pathlib.Path, on_lost: Callable[[], object]) -> None:
        """Makes the file and keeps it alive.

        Args:
            directory: of the run.
            on_lost: called by another thread if the file is taken away, as happens to a machine
                that was asleep for longer than `EXPIRE_S`: the run is another process's now.

        Raises:
            OSError: if the file cannot be written.
        """
        self._path = directory / f".claim_{_machine()}_{uuid.uuid4().hex}"
        self._on_lost = on_lost
        self._released = threading.Event()
        self._file = self._path.open("x+", encoding="utf-8")
        try:
            holder = {"host": socket.gethostname(), "pid": os.getpid(), "locked": self._lock()}
            json.dump(holder, self._file)
            self._file.flush()
            threading.Thread(target=self._beat, daemon=True).start()
        except BaseException:
            self.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def is_held(self) -> bool:
        """Returns whether the claim is still this process's."""
        return self._path.exists()

    def release(self) -> None:
        """Gives the run back."""
        self._released.set()
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # On a full disk the rest of the text.
            self._file.close()

    def _lock(self) -> bool:
        """Locks the file; returns False where the file system has no locks."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except OSError:
            return False
        return True

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            try:
                os.utime(self._path)
            except FileNotFoundError:
                if not self._released.is_set():
                    self._on_lost()
                return
            except OSError:
                pass  # The file server is away. If that takes too long, the file will be gone.


class Claims:
    """Takes claims. Remembers the others' heartbeats: keep one for the life of the process."""

    def __init__(self) -> None:
        self._heartbeats: dict[pathlib.Path, tuple[int, float]] = {}

    def take(self, directory: pathlib.Path, on_lost: Callable[[], object]) -> Claim | None:
        """Claims a run.

        Args:
            directory: of the run, which exists.
            on_lost: see `Claim`.

        Returns:
            The claim, or None if the run is another's, or wanted by another in this moment.

        Raises:
            OSError: if the directory cannot be read or written.
        """
        if any(map(self._is_live, directory.glob(".claim_*"))):
            return None
        claim = Claim(directory, on_lost)
        try:
            others = set(directory.glob(".claim_*")) - {claim._path}
            # Its own is gone if another took it for dead before it was locked.
            if any(map(self._is_live, others)) or not claim.is_held():
                claim.release()
                return None
            for dead in others:
                dead.unlink(missing_ok=True)
        except BaseException:
            claim.release()
            raise
        return claim

    def _is_live(self, path: pathlib.Path) -> bool:
        try:
            with path.open(encoding="utf-8") as file:
                locked = _is_locked(file) if _is_of_this_machine(path) else None
                heartbeat = os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return False
        if locked is not None:
            return locked
        seen, since = self._heartbeats.get(path, (None, 0.0))
        if seen != heartbeat:
            self._heartbeats[path] = heartbeat, time.monotonic()
            return True
        return time.monotonic() - since < EXPIRE_S


def _is_of_this_machine(claim: pathlib.Path) -> bool:
    machine = _machine()
    return machine is not None and claim.name.startswith(f".claim_{machine}_")


def _is_locked(claim: TextIO) -> bool | None:
    """Returns whether a claim of this machine is locked; None if it has never been."""
    try:
        fcntl.flock(claim, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return None if '"locked": false' in claim.read() else False


def _machine() -> str | None:
    """Returns what names this start of this machine. Containers on it share it, and its locks."""
    with contextlib.suppress(OSError):
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return None
