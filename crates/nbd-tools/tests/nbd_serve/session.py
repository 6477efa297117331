"""A session of libnbd with nbd-serve: every command, every flag.

usage: session.py URI simple|structured memory|file
The export has 16 MiB, all of it a hole, and block sizes 512:4096:1M.
"""

import errno
import sys

import nbd

uri, framing, disk = sys.argv[1:]
structured = framing == "structured"
K, M = 1024, 1024 * 1024


def connected():
    handle = nbd.NBD()
    handle.add_meta_context("base:allocation")
    handle.set_request_structured_replies(structured)
    # So that the server validates requests, not the library.
    handle.set_strict_mode(0)
    handle.connect_uri(uri)
    return handle


h = connected()


def refused(number, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errnum == number, (error, errno.errorcode.get(number))
    else:
        raise AssertionError("not refused")


def status(length, offset, flags=0):
    found = []

    def extents(context, start, entries, error):
        assert context == "base:allocation" and start == offset
        found.extend(zip(entries[0::2], entries[1::2]))
        return 0

    h.block_status(length, offset, extents, flags)
    return found


def pieces(length, offset, flags=0):
    found = []

    def chunk(data, start, kind, error):
        found.append((start, len(data), kind))
        return 0

    data = h.pread_structured(length, offset, chunk, flags)
    assert len(data) == length
    return data, found


# What is advertised.
assert h.get_size() == 16 * M
assert h.get_structured_replies_negotiated() == structured
assert h.can_flush() and h.can_fua() and h.can_trim() and h.can_zero()
assert h.can_fast_zero() and h.can_cache() and h.can_multi_conn()
assert h.can_df() == structured
assert not h.is_read_only() and not h.is_rotational()
assert h.can_meta_context("base:allocation") == structured
assert h.get_block_size(nbd.SIZE_MINIMUM) == 512
assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096
assert h.get_block_size(nbd.SIZE_MAXIMUM) == M

# Write, read, flush; FUA.
a, b = b"a" * (64 * K), b"b" * (64 * K)
h.pwrite(a, 1 * M)
h.pwrite(b, 1 * M + 64 * K, nbd.CMD_FLAG_FUA)
h.flush()
assert h.pread(128 * K, 1 * M) == a + b
assert h.pread(512, 0) == bytes(512)

# Block status, all of it and one extent of it.
if structured:
    expected = [(1 * M, 3), (128 * K, 0), (15 * M - 128 * K, 3)]
    assert status(16 * M, 0) == expected
    assert status(16 * M, 0, nbd.CMD_FLAG_REQ_ONE) == [(1 * M, 3)]
    assert status(512, 1 * M + 512, nbd.CMD_FLAG_REQ_ONE) == [(512, 0)]
    assert status(64 * K, 1 * M - 512) == [(512, 3), (64 * K - 512, 0)]
else:
    refused(errno.EINVAL, status, 16 * M, 0)

# A read with holes: they are sent as holes, unless the request has DF.
if structured:
    data, found = pieces(384 * K, 1 * M - 128 * K)
    assert data == bytes(128 * K) + a + b + bytes(128 * K)
    assert found == [
        (1 * M - 128 * K, 128 * K, nbd.READ_HOLE),
        (1 * M, 128 * K, nbd.READ_DATA),
        (1 * M + 128 * K, 128 * K, nbd.READ_HOLE),
    ], found
    again, found = pieces(384 * K, 1 * M - 128 * K, nbd.CMD_FLAG_DF)
    assert again == data
    assert found == [(1 * M - 128 * K, 384 * K, nbd.READ_DATA)], found
else:
    data, found = pieces(384 * K, 1 * M - 128 * K)
    assert data == bytes(128 * K) + a + b + bytes(128 * K)
    refused(errno.EINVAL, pieces, 512, 0, nbd.CMD_FLAG_DF)

# Zeroes and trim, with every flag.
h.zero(4 * K, 1 * M)
h.zero(4 * K, 1 * M + 4 * K, nbd.CMD_FLAG_FUA)
h.zero(4 * K, 1 * M + 8 * K, nbd.CMD_FLAG_NO_HOLE)
h.zero(512, 1 * M + 12 * K, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.zero(4 * K, 1 * M + 16 * K, nbd.CMD_FLAG_FAST_ZERO)
both = nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE
if disk == "memory":
    # Filling pages is not faster than writing them; the content is unchanged.
    refused(errno.ENOTSUP, h.zero, 4 * K, 1 * M + 20 * K, both)
    assert h.pread(4 * K, 1 * M + 20 * K) == a[: 4 * K]
else:
    h.zero(4 * K, 1 * M + 20 * K, both)
    assert h.pread(4 * K, 1 * M + 20 * K) == bytes(4 * K)
h.trim(4 * K, 1 * M + 24 * K)
h.trim(4 * K, 1 * M + 28 * K, nbd.CMD_FLAG_FUA)
data = h.pread(64 * K, 1 * M)
assert data[: 12 * K + 512] == bytes(12 * K + 512)
assert data[12 * K + 512 : 16 * K] == a[: 4 * K - 512]
assert data[16 * K : 20 * K] == bytes(4 * K)
assert data[32 * K :] == a[32 * K :]
if structured:
    assert status(4 * K, 1 * M) == [(4 * K, 3)]
    assert status(4 * K, 1 * M + 32 * K) == [(4 * K, 0)]

# A hint, and a flag that has no effect.
h.cache(16 * M, 0)
assert h.pread(64 * K, 1 * M + 64 * K, nbd.CMD_FLAG_FUA) == b
h.flush()

# Errors.
refused(errno.EINVAL, h.pread, 512, 16 * M)
refused(errno.ENOSPC, h.pwrite, bytes(1024), 16 * M - 512)
refused(errno.ENOSPC, h.zero, 1024, 16 * M - 512)
refused(errno.EINVAL, h.trim, 1024, 16 * M - 512)
refused(errno.EINVAL, h.cache, 1024, 16 * M - 512)
refused(errno.EINVAL, h.pread, 100, 0)
refused(errno.EINVAL, h.pread, 512, 100)
refused(errno.EINVAL, h.pwrite, bytes(513), 0)
refused(errno.EINVAL, h.pwrite, bytes(M + 512), 0)
refused(errno.EOVERFLOW if structured else errno.EINVAL, h.pread, M + 512, 0)
refused(errno.EINVAL, h.zero, 512, 0, nbd.CMD_FLAG_DF)
assert h.pread(64 * K, 1 * M + 64 * K) == b

# Two hundred in flight, answered in any order.
def wait(handle, cookies):
    while cookies:
        handle.poll(-1)
        cookies = [cookie for cookie in cookies if not handle.aio_command_completed(cookie)]


wait(h, [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([n] * 4096)), 8 * M + n * 4096)
         for n in range(200)])
buffers = [nbd.Buffer(4096) for _ in range(200)]
wait(h, [h.aio_pread(buffer, 8 * M + n * 4096) for n, buffer in enumerate(buffers)])
for n, buffer in enumerate(buffers):
    assert buffer.to_bytearray() == bytearray([n] * 4096), n

# Another connection reads what was flushed.
other = connected()
h.pwrite(b, 3 * M)
h.flush()
assert other.pread(64 * K, 3 * M) == b
other.shutdown()
h.shutdown()
