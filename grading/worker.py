"""The sandboxed side of the grader: shut this process in, load the submission, answer calls with plain numbers.

Started by `sandbox.py` as `python -I worker.py SETTINGS` from a scratch folder that holds copies of this file and of
`submission.py` and nothing else of the kit. Requests (one JSON object a line) come on stdin, replies go to stdout:

    -> {"source": str}                               <- {"missing": [...]}, before anything of the submission runs
                                                     <- {"loaded": true} or {"error": str}
    -> {"name": str, "args": [...], "kwargs": {}}    <- a reply of submission.call

There is nothing to steal in this process. The one that `sandbox.py` starts only forks and waits: a submission that
kills its parent kills that one. With a process namespace its first process waits too, out of the submission's reach:
when it ends, the kernel ends all in there. Resource limits always hold. The other layers are used if the kernel grants
them, and are else reported as `missing`: namespaces (no other process, no network, an almost empty file system), a user
id of its own when started as root, Landlock (files, where namespaces are refused). Standard library and Linux only.
"""

import ctypes
import json
import os
import resource
import select
import signal
import struct
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import submission

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
SYS_LANDLOCK_CREATE_RULESET, SYS_LANDLOCK_ADD_RULE, SYS_LANDLOCK_RESTRICT_SELF = 444, 445, 446

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def unshare_all(uid: int | None) -> str | None:
    """Enter new namespaces: "root" with root's own privilege, "user" by way of a user namespace, or None.

    As root without that privilege (a container), change to user `uid` first and try as that one.
    """
    rest = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    if os.geteuid() == 0 and libc.unshare(rest) == 0:
        return "root"
    become(uid)
    # First in a process to throw away: AppArmor (Ubuntu from 23.10 on) lets an ordinary user in and then refuses the
    # maps, and from in there is no way back.
    probe = os.fork()
    if not probe:
        try:
            enter_user_namespace(rest)
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(probe, 0)[1] != 0:
        return None
    enter_user_namespace(rest)
    return "user"


def enter_user_namespace(rest: int) -> None:
    """A user namespace, and in it the `rest`, with this process's own user and group; OSError where refused."""
    uid, gid = os.geteuid(), os.getegid()
    check(libc.unshare(rest | CLONE_NEWUSER), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def become(uid: int | None) -> None:
    """From root to a user that nothing else runs as; nothing to do for anybody else."""
    if uid is not None and os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # a change of user takes /proc/self away, which uid_map needs


def mount(source: str, target: str | Path, kind: str | None, flags: int = 0, data: str | None = None) -> None:
    """mount(2), with None for an argument that is left out; OSError where the kernel refuses."""
    encoded = [None if x is None else str(x).encode() for x in (source, target, kind, data)]
    check(libc.mount(*encoded[:3], ctypes.c_ulong(flags), encoded[3]), f"mount {target}")


def enter_view(root: Path, readable: list[str], disk: int) -> None:
    """Leave the file system for one that holds the `readable` paths, read-only, and an empty /tmp of `disk` bytes."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, f"size={disk},mode=755")
    for path in map(Path, (*readable, "/dev/null", "/dev/zero", "/dev/urandom")):
        inside = root / path.relative_to("/")
        if inside.exists() or not path.exists():
            continue
        inside.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():  # /lib -> usr/lib
            inside.symlink_to(path.resolve())  # in one step, as a link in between need not be there
            continue
        inside.mkdir() if path.is_dir() else inside.touch()
        mount(str(path), inside, None, MS_BIND | MS_REC)
        if path.parts[1] != "dev":
            kept = os.statvfs(path).f_flag & 0b1110  # nosuid, nodev, noexec may not be lifted
            mount("none", inside, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | kept)
    (root / "tmp").mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    (root / "proc").mkdir()
    with suppress(OSError):  # refused where the outer /proc is itself masked; python does without
        mount("proc", root / "proc", "proc")
    os.chroot(root)
    os.chdir("/tmp")
    os.environ["HOME"] = os.environ["TMPDIR"] = "/tmp"


def landlock(readable: list[str], writable: list[str]) -> int:
    """Deny every file but the given trees, TCP, and signals to processes outside; returns the ABI, 0 without it.

    Layouts and bits: Documentation/userspace-api/landlock.rst of the kernel.
    """
    abi = libc.syscall(SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        return 0
    everything = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    read, write_file = 0b1101, 0b10  # execute, read a file, list a folder; write a file
    attributes = struct.pack("=QQQ", everything, 0b11, 0b11)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = libc.syscall(SYS_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return 0
    rules = [(path, read) for path in (*readable, "/proc", "/dev/zero", "/dev/urandom")]
    rules += [("/dev/null", read | write_file), *((path, everything) for path in writable)]
    for path, allowed in rules:
        if not Path(path).is_dir():
            allowed &= 0b111 | (everything & (1 << 14))  # the rights a plain file can have
        with suppress(OSError):  # it is not there
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            libc.syscall(SYS_LANDLOCK_ADD_RULE, ruleset, 1, struct.pack("=Qi", allowed, fd), 0)
            os.close(fd)
    restricted = libc.syscall(SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return abi if restricted == 0 else 0


def check_that_python_can_be_read() -> None:
    """Raise PermissionError if imports fail in here: the submission would be blamed for it."""
    try:
        import colorsys  # noqa: F401
        import encodings.utf_8_sig  # noqa: F401
    except (ImportError, OSError):
        what = f"the user that the submission runs as may not read python in {sys.base_prefix}"
        raise PermissionError(f"{what}: install python for all users, or grade as an ordinary user") from None


def set_limits(limits: dict[str, int]) -> None:
    for name, limit in limits.items():
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(which, (limit, limit))


def confine(namespaces: str | None, settings: dict) -> list[str]:
    """Use every layer that the kernel grants; returns what is left open, in words."""
    readable, uid = settings["readable"], settings["uid"]
    viewed = False
    if namespaces:
        with suppress(OSError):
            enter_view(Path.cwd(), readable, settings["disk"])
            viewed = True
    set_limits(settings["limits"])
    with suppress(OSError):  # if memory runs out, it is this process that goes
        Path("/proc/self/oom_score_adj").write_text("1000")
    become(uid)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # a change of user clears it, so not before
    abi = landlock(readable, [str(Path.cwd())]) if "landlock" in settings["layers"] else 0
    if (namespaces == "user" or os.geteuid() == 0) and os.uname().machine in SYS_CAPSET:
        header, none = struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", *[0] * 6)
        check(libc.syscall(SYS_CAPSET[os.uname().machine], header, none), "capset")
    missing = []
    if not (viewed or abi) and os.geteuid() == 0:
        raise PermissionError("nothing would stand between the submission, run as root, and this machine")
    if not (viewed or abi):
        missing.append("files: it could read what its user may read")
    if not viewed:
        missing.append("disk: only the size of each file was limited")
    if not namespaces:
        missing.append("network: only TCP was closed" if abi >= 4 else "network: it was open")
        if uid is None and abi < 6:
            missing.append("processes: it could signal other processes of its user")
        if uid is None:
            missing.append("processes: one that hides from the grader could outlive it")
        if uid is None and os.geteuid() == 0:
            missing.append("user: it ran as root, whom the limit on processes does not bind")
    return missing


def serve(requests: int, replies: int, missing: list[str]) -> None:
    def answer(reply: dict) -> None:
        data = memoryview(json.dumps(reply).encode() + b"\n")
        while data:
            data = data[os.write(replies, data) :]

    with os.fdopen(requests, "rb") as lines:
        first = json.loads(lines.readline())
        answer({"missing": missing})
        sys.meta_path.insert(0, submission.PlainImports)
        try:
            Path("rewards.py").write_text(first["source"], encoding="utf-8")
            module = submission.load("rewards.py")
        except BaseException as error:
            answer({"error": submission.explain(error, "rewards.py")})
            return
        answer({"loaded": True})
        for line in lines:
            request = json.loads(line)
            answer(submission.call(module, request["name"], request["args"], request["kwargs"]))


def wait_for_child(*fds: int) -> bool:
    """Fork: the child returns False at once; the parent closes `fds` and returns True once the child has ended."""
    child = os.fork()
    if child:
        for fd in fds:
            os.close(fd)
        while os.wait()[0] != child:  # in a namespace of processes the first one inherits the orphans
            pass
    return bool(child)


def main() -> None:
    settings = json.loads(sys.argv[1])
    requests, replies = os.dup(0), os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    try:
        namespaces = unshare_all(settings["uid"]) if "namespaces" in settings["layers"] else None
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != settings["parent"]:
            return  # the grader was gone before that call
        dies_with_parent, parent_end = os.pipe()
        if wait_for_child(requests, replies):
            return
        os.close(parent_end)
        missing = confine(namespaces, settings)
        check_that_python_can_be_read()
        if select.select([dies_with_parent], [], [], 0)[0]:
            os._exit(1)  # the parent was gone before confine() asked for a signal
        os.close(dies_with_parent)
        if namespaces:
            libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # nobody in there may trace the first process
            if wait_for_child(requests, replies):
                os._exit(0)
    except Exception as error:  # not the submission's fault, which has not been read yet
        os.write(replies, json.dumps({"broken": f"{type(error).__name__}: {error}"}).encode() + b"\n")
        os._exit(1)
    try:
        serve(requests, replies, missing)
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
