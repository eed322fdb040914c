"""Runs one program as a container runtime would: a few lines of system calls.

Called as root in a mount namespace of its own, with a JSON document: the image's
root file system, volumes, user, groups, environment, arguments. The root is
mounted read-only, no capability is left, and none can be gained.
"""

import ctypes
import errno
import json
import os
import sys

MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC = 1, 32, 4096, 16384
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38

libc = ctypes.CDLL(None, use_errno=True)


def called(result, what):
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def bind(source, target, read_only):
    called(libc.mount(source.encode(), target.encode(), None, MS_BIND | MS_REC, None), target)
    if read_only:
        flags = MS_REMOUNT | MS_BIND | MS_RDONLY
        called(libc.mount(None, target.encode(), None, flags, None), target)


def drop_capabilities():
    """Root, too, has none after the next exec."""
    capability = 0
    while libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    if ctypes.get_errno() != errno.EINVAL:
        raise OSError(ctypes.get_errno(), "capabilities cannot be dropped")
    called(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        plan = json.load(file)
    root = plan["root"]
    # The mount points that a runtime would make.
    mounts = [["/proc", "/proc", False], ["/dev", "/dev", False], *plan["mounts"]]
    for _, target, _ in mounts:
        os.makedirs(root + target, exist_ok=True)
    bind(root, root, True)
    for source, target, read_only in mounts:
        bind(source, root + target, read_only)
    os.chroot(root)
    os.chdir("/")
    drop_capabilities()
    os.setgroups(plan["groups"])
    os.setgid(plan["group"])
    os.setuid(plan["user"])
    os.execve(plan["argv"][0], plan["argv"], plan["env"])


main()
