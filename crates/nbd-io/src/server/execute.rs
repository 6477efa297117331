//! Doing requests.

use std::io;

use bytes::Bytes;
use nbd_codec::server::{
    BlockStatus32Request, BlockStatus64Request, ReadRequest, Reply, Request, ResizeRequest,
};
use nbd_codec::wire::number::ErrorValue;

use super::outbox::Outbox;
use super::receive::Work;
use super::{Device, Extents, ReadReply};

/// What becomes of a request.
#[derive(Debug)]
pub(super) enum Answer {
    Reply(Reply<'static>),
    /// Messages, in their order.
    Messages(Vec<Bytes>),
    /// Requests are to be checked against the new size.
    Resized(ResizeRequest),
}

impl Answer {
    /// Adds the reply to what is written.
    pub(super) fn put(
        self,
        out: &mut Outbox,
        resized: impl FnOnce(ResizeRequest) -> Reply<'static>,
    ) {
        match self {
            Self::Reply(reply) => out.push_reply(&reply),
            Self::Messages(messages) => messages.into_iter().for_each(|it| out.push(it)),
            Self::Resized(resize) => out.push_reply(&resized(resize)),
        }
    }

    fn failed(request: Request, error: &io::Error) -> Self {
        let fast = matches!(&request, Request::WriteZeroes(zeroes) if zeroes.fast_zero());
        let value = match error_value(error) {
            // The specification has it for fast zeroes only.
            ErrorValue::ENOTSUP if !fast => ErrorValue::EINVAL,
            value => value,
        };
        let text = error.to_string();
        Self::Messages(vec![request.fail(value, &text).into()])
    }
}

/// Does a request, which was validated.
pub(super) async fn execute<D: Device>(device: &D, work: Work) -> Answer {
    let Work { request, data, .. } = work;
    if let Err(error) = check_size(device, &request) {
        return Answer::failed(request, &error);
    }
    let result = match &request {
        Request::Write(write) => {
            let done = device.write(write.offset(), data).await;
            and_flush(device, write.fua(), done).await
        }
        Request::Flush(_) => device.flush().await,
        Request::Trim(trim) => {
            let done = device.trim(trim.offset(), trim.length()).await;
            and_flush(device, trim.fua(), done).await
        }
        Request::Cache(cache) => device.cache(cache.offset(), cache.length()).await,
        Request::WriteZeroes(zeroes) => {
            let (offset, length) = (zeroes.offset(), zeroes.length());
            let may_trim = !zeroes.no_hole();
            let done = if zeroes.fast_zero() {
                device.write_zeroes_fast(offset, length, may_trim).await
            } else {
                device.write_zeroes(offset, length, may_trim).await
            };
            and_flush(device, zeroes.fua(), done).await
        }
        Request::Resize(resize) => device.resize(resize.size()).await,
        Request::Read(_) | Request::BlockStatus32(_) | Request::BlockStatus64(_) => Ok(()),
        _ => Err(io::ErrorKind::Unsupported.into()),
    };
    if let Err(error) = result {
        return Answer::failed(request, &error);
    }
    Answer::Reply(match request {
        Request::Read(request) => return read(device, request).await,
        Request::BlockStatus32(request) => return status32(device, request).await,
        Request::BlockStatus64(request) => return status64(device, request).await,
        Request::Resize(resize) => return Answer::Resized(resize),
        Request::Write(request) => request.succeed(),
        Request::Flush(request) => request.succeed(),
        Request::Trim(request) => request.succeed(),
        Request::Cache(request) => request.succeed(),
        Request::WriteZeroes(request) => request.succeed(),
        other => other.fail(ErrorValue::EINVAL, "not offered"),
    })
}

/// The size may have changed since the handshake.
fn check_size<D: Device>(device: &D, request: &Request) -> io::Result<()> {
    let (offset, length) = match request {
        Request::Read(it) => (it.offset(), it.length().into()),
        Request::Write(it) => (it.offset(), it.length()),
        Request::WriteZeroes(it) => (it.offset(), it.length()),
        Request::Trim(it) => (it.offset(), it.length()),
        Request::Cache(it) => (it.offset(), it.length()),
        Request::BlockStatus32(it) => (it.offset(), it.length()),
        Request::BlockStatus64(it) => (it.offset(), it.length()),
        _ => return Ok(()),
    };
    if offset.saturating_add(length) <= device.size() {
        return Ok(());
    }
    let kind = match request {
        Request::Write(_) | Request::WriteZeroes(_) => io::ErrorKind::StorageFull,
        _ => io::ErrorKind::InvalidInput,
    };
    Err(io::Error::new(kind, "past the end of the device"))
}

async fn and_flush<D: Device>(device: &D, fua: bool, done: io::Result<()>) -> io::Result<()> {
    match done {
        Ok(()) if fua => device.flush().await,
        done => done,
    }
}

async fn read<D: Device>(device: &D, request: ReadRequest) -> Answer {
    let mut reply = ReadReply::new(request.length());
    let result = device.read(request.offset(), &mut reply).await;
    let result = match reply.remaining() {
        0 => result,
        left => result.and_then(|()| {
            let text = format!("the device left out {left} bytes of the read");
            Err(io::Error::other(text))
        }),
    };
    match result {
        Err(error) => Answer::failed(Request::Read(request), &error),
        Ok(()) => Answer::Messages(reply.encode(request)),
    }
}

/// Narrow and wide block status are different types with equal methods.
macro_rules! status {
    ($name:ident, $request:ident, $variant:ident) => {
        async fn $name<D: Device>(device: &D, request: $request) -> Answer {
            let contexts = device.contexts();
            let (offset, length) = (request.offset(), request.length());
            let mut out = Vec::new();
            let ids = request.contexts();
            let mut left = Some(request);
            for id in ids {
                let Some(request) = left.take() else { break };
                let place = usize::try_from(id.0).unwrap_or(usize::MAX);
                let name = contexts.get(place).map_or("", |context| context.name);
                let mut extents = Extents::new(length);
                let result = device
                    .block_status(name, offset, length, &mut extents)
                    .await;
                if let Err(error) = result {
                    return Answer::failed(Request::$variant(request), &error);
                }
                let list = extents.list().iter().copied();
                match request.reply_wide(id, list, &mut out) {
                    Ok(next) => left = next,
                    Err(rejected) => {
                        let error = io::Error::other(rejected.reason);
                        return Answer::failed(Request::$variant(rejected.request), &error);
                    }
                }
            }
            Answer::Messages(vec![out.into()])
        }
    };
}
status!(status32, BlockStatus32Request, BlockStatus32);
status!(status64, BlockStatus64Request, BlockStatus64);

/// The error value that a client gets.
fn error_value(error: &io::Error) -> ErrorValue {
    match (error.raw_os_error(), error.kind()) {
        (Some(errno), _) if cfg!(target_os = "linux") => {
            ErrorValue::from_linux_errno(errno.unsigned_abs())
        }
        (_, io::ErrorKind::Unsupported) => ErrorValue::ENOTSUP,
        (_, io::ErrorKind::OutOfMemory) => ErrorValue::ENOMEM,
        (_, io::ErrorKind::InvalidInput) => ErrorValue::EINVAL,
        (
            _,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge,
        ) => ErrorValue::ENOSPC,
        (_, io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
            ErrorValue::EPERM
        }
        _ => ErrorValue::EIO,
    }
}
