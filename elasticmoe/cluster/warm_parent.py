"""A process that has imported everything and forks children within milliseconds.

`python -m elasticmoe.cluster.warm_parent FD MODULE...` imports the modules, accepts one agent on
the listening socket FD and then does what it is asked until that agent's connection closes. It
stays single-threaded, never touches an accelerator and never runs a backward pass, because all
three make a fork unsafe. Importing torch takes more than a second, forking from here a few
milliseconds.

No child outlives its agent: the agent's end closes this process's connection, this process ends,
and the kernel kills its children (PR_SET_PDEATHSIG, which belongs to the forking thread; there
is only one here).
"""

import ctypes
import faulthandler
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

CLAIM_TIMEOUT_S: Final = 60.0
"""Without an agent by then, whoever wanted this process is gone."""
MAX_REQUEST_BYTES: Final = 1 << 17
MAX_LINE_BYTES: Final = 1 << 26
"""Of one message of a child to the agent; a checkpoint part lists thousands of units."""
READY: Final = b"\n"
"""What a process that stands by says when it has done all that it can do before it is needed."""
PR_SET_PDEATHSIG: Final = 1
PR_SET_NAME: Final = 15
ENVIRONMENT: Final = {
    # OpenMP and OpenBLAS start threads at import; a forked child would hang waiting for them.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # pyarrow's allocator keeps a background thread otherwise.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    # A step allocates the same large tensors again and again: memory that goes back to the
    # kernel in between costs a page fault per 4 KiB (some 6 % of a step, measured).
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 26),
}

CHILDREN: Final = {
    "worker": "elasticmoe.cluster.children:run_worker_child",
    "standby": "elasticmoe.cluster.children:stand_by",
    "store": "elasticmoe.cluster.children:serve_store",
    "clerk": "elasticmoe.cluster.clerk:serve_one_request",
}
"""What may be forked: functions of (socket, arguments)."""
PREPARE: Final = "elasticmoe.cluster.children:prepare_for_job"
"""What a request of kind `prepare` has this process do itself."""


@dataclass(frozen=True, slots=True)
class ForkRequest:
    """Asks for one child; its end of a socket pair travels beside the request."""

    child: str
    """Name that the answers carry: `worker-3`, `store-1`."""
    kind: str
    """A key of `CHILDREN`, or `prepare`: no child, but work that children then need not do."""
    arguments: dict[str, Any]
    log: str
    """File that its output is appended to."""
    environment: dict[str, str]


class WarmParent:
    """Forks on request, and reports every child's end."""

    def __init__(self, agent: socket.socket) -> None:
        self._agent = agent
        self._selector = selectors.DefaultSelector()
        self._selector.register(agent, selectors.EVENT_READ, None)
        self._libc = ctypes.CDLL(None, use_errno=True)

    def serve(self) -> None:
        """Answer requests until the agent is gone."""
        while True:
            for key, _ in self._selector.select():
                if key.data is not None:
                    self._reap(key.fd, key.data)
                elif not self._answer():
                    return

    def say(self, **message: Any) -> None:
        """Tell the agent something. If it is gone, the next read ends `serve`."""
        try:
            self._agent.send(json.dumps(message).encode())
        except (BrokenPipeError, ConnectionResetError):
            return

    def _answer(self) -> bool:
        try:
            packet, fds, _, _ = socket.recv_fds(self._agent, MAX_REQUEST_BYTES, 1)
        except ConnectionResetError:
            return False
        if not packet:
            return False
        request = ForkRequest(**json.loads(packet))
        (fd,) = fds
        if request.kind == "prepare":
            os.close(fd)
            self._prepare(request)
        else:
            self._fork(request, fd)
        return True

    def _prepare(self, request: ForkRequest) -> None:
        """Children inherit what is done here. If it fails, they meet the error themselves."""
        try:
            _resolve(PREPARE)(request.arguments)
        except Exception:
            traceback.print_exc()
        gc.freeze()

    def _fork(self, request: ForkRequest, fd: int) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(fd)
            self.say(kind="not_forked", child=request.child, reason=str(error))
            return
        if pid == 0:
            self._become(request, socket.socket(fileno=fd), parent)
        os.close(fd)
        pidfd = os.pidfd_open(pid)
        self._selector.register(pidfd, selectors.EVENT_READ, request.child)
        self.say(kind="forked", child=request.child, pid=pid)

    def _reap(self, pidfd: int, child: str) -> None:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        assert result is not None
        self._selector.unregister(pidfd)
        os.close(pidfd)
        if result.si_code == os.CLD_EXITED:
            evidence = f"exit status {result.si_status}"
        else:
            evidence = f"killed by signal {result.si_status}"
        self.say(kind="exited", child=child, evidence=evidence)

    def _become(self, request: ForkRequest, sock: socket.socket, parent: int) -> NoReturn:
        status = 1
        try:
            os.setsid()
            self._libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:  # it died before the line above took effect
                os._exit(1)
            self._libc.prctl(PR_SET_NAME, request.child.encode(), 0, 0, 0)  # for `ps` and `top`
            self._let_go_of_parent()
            write_output_to(request.log)
            os.environ.update(request.environment)
            _resolve(CHILDREN[request.kind])(sock, request.arguments)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # never unwinds into the parent's frames

    def _let_go_of_parent(self) -> None:
        for key in list(self._selector.get_map().values()):
            os.close(key.fd)  # a copy of the agent's connection would hide the parent's death
        self._selector.close()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())


def main(arguments: list[str]) -> None:
    """Import, wait for the agent, serve it."""
    began_s = time.monotonic()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is for the children; we end with our agent
    listener = socket.socket(fileno=int(arguments[0]))
    problem = _preload(arguments[1:])
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page it marks
    listener.settimeout(CLAIM_TIMEOUT_S)
    try:
        agent, _ = listener.accept()
    except TimeoutError:
        return
    listener.close()
    _, uid, _ = struct.unpack("3i", agent.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid != os.getuid():  # abstract addresses have no file permissions
        return
    agent.settimeout(None)
    parent = WarmParent(agent)
    if problem is not None:
        parent.say(kind="broken", reason=problem)
        while agent.recv(MAX_REQUEST_BYTES):  # closing with requests unread would drop the reason
            continue
        return
    threads = len(os.listdir("/proc/self/task"))
    parent.say(kind="warm", seconds=time.monotonic() - began_s, threads=threads)
    parent.serve()


def _preload(modules: list[str]) -> str | None:
    try:
        for module in (*modules, *(path.partition(":")[0] for path in CHILDREN.values())):
            importlib.import_module(module)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


def _resolve(path: str) -> Callable[..., None]:
    module, _, name = path.partition(":")
    function: Callable[..., None] = getattr(importlib.import_module(module), name)
    return function


def write_output_to(path: str) -> None:
    """Append this process's output to a file, from now on."""
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    faulthandler.enable()


if __name__ == "__main__":
    main(sys.argv[1:])
