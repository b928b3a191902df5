"""What one of the ranks does that the program has started itself as (launch.py)."""

import atexit
import os
import select
import signal
import socket
import sys
import threading
import time

from scratchnet import ranks

STOP = 8.0  # seconds that a rank has to stop by itself once the first process or mpiexec is gone
DOOR = "SCRATCHNET_LAUNCHER"  # the variable with the path of the first process's socket


def take_terminal():
    """Become a rank (`ranks.start`), tell the first process, and from then on write where it writes.

    The first thing that the program does. Until then what is said goes to mpiexec, and tells why MPI cannot start. Nothing
    happens where `run_as_ranks` did not start this process.
    """
    path = os.environ.pop(DOOR, None)  # what this process starts is no rank
    if path is None:
        return
    link = socket.socket(socket.AF_UNIX)
    link.connect(path)
    link.sendall(f"{os.getpid()} ".encode())
    threading.Thread(target=_follow, args=(link,), daemon=True).start()
    ranks.start()
    link.sendall(f"of {ranks.size} ".encode())
    for own, given in zip((1, 2), socket.recv_fds(link, 1, 2)[1], strict=True):
        os.dup2(given, own)
        os.close(given)
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())  # type: ignore[union-attr]


def _follow(link):
    """End this process where the first one or mpiexec has ended: as if it were asked to, then without asking."""
    alive = select.poll()
    alive.register(link, 0)  # 0: of interest here is only that the other end is closed
    if "PMI_FD" in os.environ:  # MPICH's line to mpiexec
        alive.register(os.dup(int(os.environ["PMI_FD"])), 0)
    alive.poll()
    atexit.register(os.dup2, os.open(os.devnull, os.O_WRONLY), 2)  # MPI complains of mpiexec when it ends
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP)
    os._exit(1)
