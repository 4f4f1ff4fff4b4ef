# Every command and flag of NBD through libnbd, and the errors that the protocol's document
# asks for. One argument: the URI of a writable disk of zeroes, 64 MiB, whose content is not
# needed any more.
import errno
import sys
import nbd

uri = sys.argv[1]
MiB = 1024 * 1024
SIZE = 64 * MiB
passed = 0


def check(condition, what):
    global passed
    assert condition, what
    passed += 1


def fails(number, what, call):
    try:
        call()
    except nbd.Error as error:
        check(error.errnum == number, f"{what}: {error}")
        return
    raise AssertionError(f"{what}: no error")


def connect(structured):
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(uri)
    # Requests that the library would refuse by itself are to reach the server.
    h.set_strict_mode(0)
    return h


for structured in (True, False):
    h = connect(structured)
    check(h.get_structured_replies_negotiated() == structured, "structured replies")
    check(h.get_size() == SIZE, "size")
    check(h.can_meta_context("base:allocation") == structured, "context")

    # READ and WRITE: any alignment, length 0, the last byte, one request of 32 MiB.
    for offset, length in ((0, 1), (511, 4099), (SIZE - 1, 1), (12345, 300000), (0, 32 * MiB)):
        data = bytes((offset + n) % 251 for n in range(4096)) * (length // 4096 + 1)
        data = data[:length]
        h.pwrite(data, offset)
        check(h.pread(length, offset) == data, f"{offset}+{length}")
        h.pwrite(data, offset, nbd.CMD_FLAG_FUA)
        check(h.pread(length, offset) == data, f"FUA {offset}+{length}")
    h.zero(4096, 0, nbd.CMD_FLAG_FUA)

    # The end of the disk and beyond, and where sums overflow.
    for offset in (SIZE, SIZE - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1):
        fails(errno.EINVAL, f"read at {offset}", lambda: h.pread(2, offset))
        fails(errno.ENOSPC, f"write at {offset}", lambda: h.pwrite(b"xx", offset))
        fails(errno.ENOSPC, f"zero at {offset}", lambda: h.zero(2, offset))
        fails(errno.ENOSPC, f"trim at {offset}", lambda: h.trim(2, offset))
        fails(errno.EINVAL, f"cache at {offset}", lambda: h.cache(2, offset))

    # More than 32 MiB.
    fails(errno.EINVAL, "a long read", lambda: h.pread(32 * MiB + 1, 0))
    fails(errno.EINVAL, "a long write", lambda: h.pwrite(bytes(32 * MiB + 1), 0))
    check(h.pread(4, 0) == bytes(4), "the line is in step")

    # Flags that do not go with the command.
    fails(errno.EINVAL, "flags of read", lambda: h.pread(1, 0, 1 << 9))
    fails(errno.EINVAL, "flags of write", lambda: h.pwrite(b"x", 0, 1 << 9))
    fails(errno.EINVAL, "flags of flush", lambda: h.flush(1 << 9))
    fails(errno.EINVAL, "flags of trim", lambda: h.trim(1, 0, nbd.CMD_FLAG_NO_HOLE))
    check(h.pread(4, 0) == bytes(4), "the line is in step")

    # Zeroes.
    for flags in (0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FUA, nbd.CMD_FLAG_FAST_ZERO):
        h.pwrite(b"x" * 200000, 1000)
        h.zero(199000, 1500, flags)
        check(h.pread(500, 1000) == b"x" * 500, "before the zeroes")
        check(h.pread(199000, 1500) == bytes(199000), "the zeroes")
        check(h.pread(500, 200500) == b"x" * 500, "after the zeroes")
    both = nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE
    fails(errno.ENOTSUP, "zeroes that can't be fast", lambda: h.zero(4096, 0, both))

    h.pwrite(b"y" * MiB, 2 * MiB)
    h.trim(MiB, 2 * MiB)
    check(h.pread(MiB, 2 * MiB) == bytes(MiB), "what was trimmed reads as zeroes")
    h.trim(MiB, 2 * MiB, nbd.CMD_FLAG_FUA)
    h.flush()
    h.cache(MiB, 0)
    h.trim(SIZE, 0)

    if structured:
        h.pwrite(b"z" * 65536, 65536)
        chunks = []

        def chunk(data, offset, status, error):
            chunks.append((offset, len(data), status))

        # Holes where there are any, and each byte once.
        h.pread_structured(MiB, 0, chunk)
        check(sum(c[1] for c in chunks if c[2] == nbd.READ_DATA) <= MiB, "chunks")
        chunks.clear()
        h.pread_structured(MiB, 0, chunk, nbd.CMD_FLAG_DF)
        check(chunks == [(0, MiB, nbd.READ_DATA)], f"DF: {chunks}")
        fails(errno.EOVERFLOW, "a long DF", lambda: h.pread(16 * MiB, 0, nbd.CMD_FLAG_DF))

        extents = []

        def extent(context, offset, entries, error):
            check(context == "base:allocation", context)
            extents.append((offset, entries))

        h.block_status(SIZE, 0, extent)
        check(extents == [(0, [65536, 3, 65536, 0, SIZE - 131072, 3])], f"{extents}")
        extents.clear()
        h.block_status(SIZE - 70000, 70000, extent, nbd.CMD_FLAG_REQ_ONE)
        check(extents == [(70000, [131072 - 70000, 0])], f"{extents}")
        fails(errno.EINVAL, "nothing asked", lambda: h.block_status(0, 0, extent))
    else:
        fails(errno.EINVAL, "DF in simple replies", lambda: h.pread(1, 0, nbd.CMD_FLAG_DF))
        fails(errno.EINVAL, "no context", lambda: h.block_status(512, 0, lambda *a: 0))

    # Many at once, answered in whatever order.
    handles = []
    for n in range(64):
        buffer = nbd.Buffer.from_bytearray(bytearray([n]) * 4096)
        handles.append(h.aio_pwrite(buffer, n * 4096, flags=n % 2))
    while handles:
        h.poll(-1)
        handles = [c for c in handles if not h.aio_command_completed(c)]
    for n in range(64):
        check(h.pread(4096, n * 4096) == bytes([n]) * 4096, f"block {n}")
    h.trim(SIZE, 0)
    h.shutdown()

# Options, one at a time.
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(uri.rsplit("/", 1)[0] + "/nothing-by-that-name")
for call in (h.opt_info, h.opt_go):
    try:
        call()
        raise AssertionError("a disk without its name")
    except nbd.Error as error:
        passed += 1
h.set_export_name(uri.rsplit("/", 1)[1])
names = []
check(h.opt_list(lambda name, description: names.append(name)) == 0 and not names, "no names")
contexts = []
h.opt_list_meta_context(lambda name: contexts.append(name))
check(contexts == ["base:allocation"], f"{contexts}")
h.opt_info()
check(h.get_size() == SIZE, "INFO tells the size")
h.opt_go()
check(h.pread(1, 0) == b"\0", "GO after INFO")
h.shutdown()

print(f"all cases passed: {passed}")
