"""Tries everything that could change a slab whose descriptor is standard input.

Prints a line for each attempt: its name, and the error's name or `done`.
"""

import ctypes
import errno
import mmap
import os

READ, READ_WRITE, SHARED = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED
KEEP_SIZE, PUNCH_HOLE = 1, 2
F_ADD_SEALS, F_SEAL_WRITE = 1033, 8

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.fallocate.argtypes = [ctypes.c_int] * 2 + [ctypes.c_long] * 2


def checked(result):
    if result in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "")
    return result


def map_slab(descriptor, size, protection):
    return checked(libc.mmap(None, size, protection, SHARED, descriptor, 0))


def attempts(descriptor, size):
    yield "pwrite", lambda: os.pwrite(descriptor, b"x", 0)
    yield "mmap", lambda: map_slab(descriptor, size, READ_WRITE)
    yield "mprotect", lambda: checked(
        libc.mprotect(map_slab(descriptor, size, READ), size, READ_WRITE)
    )
    yield "shrink", lambda: os.ftruncate(descriptor, size - 4096)
    yield "empty", lambda: os.ftruncate(descriptor, 0)
    yield "grow", lambda: os.ftruncate(descriptor, size + 4096)
    yield "punch", lambda: checked(libc.fallocate(descriptor, PUNCH_HOLE | KEEP_SIZE, 0, size))
    yield "seal", lambda: checked(libc.fcntl(descriptor, F_ADD_SEALS, F_SEAL_WRITE))


def main():
    size = os.fstat(0).st_size
    reopened = os.open("/proc/self/fd/0", os.O_RDWR)
    for name, descriptor in [("received", 0), ("reopened", reopened)]:
        for attempt, act in attempts(descriptor, size):
            try:
                act()
                result = "done"
            except OSError as error:
                result = errno.errorcode.get(error.errno, str(error.errno))
            print(name, attempt, result)


main()
