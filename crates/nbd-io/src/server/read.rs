//! What a device delivers for a read.

use std::mem;

use bytes::{Buf, Bytes};
use nbd_codec::Misuse;
use nbd_codec::server::{ChunkedRead, ReadRequest};
use nbd_codec::wire::number::ErrorValue;

/// Room before the data for its header: 40 bytes with extended headers.
const HEADROOM: usize = 64;

/// Zeroes for holes in replies that cannot have holes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// The reply to a read, which a [`Device`](super::Device) fills in order.
///
/// | the device has | method | copies |
/// |---|---|---|
/// | a call that reads into memory (`pread`) | [`buffer`](Self::buffer) | none |
/// | shared memory | [`put_bytes`](Self::put_bytes) | none |
/// | borrowed memory | [`put`](Self::put) | one |
/// | zeroes | [`put_hole`](Self::put_hole) | none; not sent if the client has structured replies |
///
/// What is beyond the range of the request is ignored. A reply that is not
/// complete when the method returns success is an error (`EIO`).
#[derive(Debug)]
pub struct ReadReply {
    remaining: usize,
    pieces: Vec<Piece>,
    /// What [`ReadReply::buffer`] and [`ReadReply::put`] have after the last
    /// piece, after [`HEADROOM`]; empty if there is none.
    own: Vec<u8>,
}

#[derive(Debug)]
enum Piece {
    /// After [`HEADROOM`].
    Own(Vec<u8>),
    Shared(Bytes),
    Hole(u32),
}

impl Piece {
    fn length(&self) -> u32 {
        let length = match self {
            Self::Own(bytes) => bytes.len().saturating_sub(HEADROOM),
            Self::Shared(bytes) => bytes.len(),
            Self::Hole(length) => return *length,
        };
        narrow(length)
    }

    fn is_hole(&self) -> bool {
        matches!(self, Self::Hole(_))
    }
}

impl ReadReply {
    pub(super) fn new(length: u32) -> Self {
        Self {
            remaining: usize::try_from(length).unwrap_or(usize::MAX),
            pieces: Vec::new(),
            own: Vec::new(),
        }
    }

    /// How many bytes are still to be delivered; at first the length of the
    /// request.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.remaining
    }

    /// Delivers the next `n` bytes, or what remains if that is less: the caller
    /// writes them to the slice, which has zeroes.
    pub fn buffer(&mut self, n: usize) -> &mut [u8] {
        let n = self.take(n);
        let start = self.own.len().max(HEADROOM);
        let end = start.saturating_add(n);
        if self.own.is_empty() {
            // All at once, so that the allocator can supply zeroed memory.
            self.own = vec![0; end];
        } else {
            self.own.resize(end, 0);
        }
        self.own.get_mut(start..).unwrap_or_default()
    }

    /// Delivers a copy of `data`.
    pub fn put(&mut self, data: &[u8]) {
        let n = self.take(data.len());
        if self.own.is_empty() {
            self.own.reserve(HEADROOM.saturating_add(n));
            self.own.resize(HEADROOM, 0);
        }
        self.own
            .extend_from_slice(data.get(..n).unwrap_or_default());
    }

    /// Delivers `data` without a copy.
    pub fn put_bytes(&mut self, mut data: Bytes) {
        data.truncate(self.take(data.len()));
        if !data.is_empty() {
            self.finish_own();
            self.pieces.push(Piece::Shared(data));
        }
    }

    /// Delivers `n` zeroes.
    pub fn put_hole(&mut self, n: usize) {
        let n = narrow(self.take(n));
        self.finish_own();
        match self.pieces.last_mut() {
            _ if n == 0 => {}
            Some(Piece::Hole(length)) => *length = length.saturating_add(n),
            _ => self.pieces.push(Piece::Hole(n)),
        }
    }

    /// Takes up to `n` of the remaining bytes.
    fn take(&mut self, n: usize) -> usize {
        let n = n.min(self.remaining);
        self.remaining = self.remaining.saturating_sub(n);
        n
    }

    /// Makes a piece of what is buffered.
    fn finish_own(&mut self) {
        if self.own.len() > HEADROOM {
            self.pieces.push(Piece::Own(mem::take(&mut self.own)));
        }
    }

    /// The messages of the reply, in their order.
    pub(super) fn encode(mut self, request: ReadRequest) -> Vec<Bytes> {
        self.finish_own();
        let sparse = self.pieces.iter().any(Piece::is_hole);
        if !sparse || request.dont_fragment() {
            return encode_whole(request.data().as_bytes(), self.pieces);
        }
        let offset = request.offset();
        let mut chunks = match request.into_chunks() {
            Ok(chunks) => chunks,
            Err(request) => return encode_whole(request.data().as_bytes(), self.pieces),
        };
        let encoded = encode_chunks(&mut chunks, offset, self.pieces);
        let (mut messages, end) = match (encoded, chunks.finish()) {
            (Ok(messages), Ok(end)) => (messages, Bytes::from(end)),
            // The pieces cover the read exactly, so this does not happen.
            (_, Err(rejected)) => {
                let text = rejected.reason.to_string();
                let end = rejected.request.fail(ErrorValue::EIO, &text).into();
                (Vec::new(), end)
            }
            (Err(_), Ok(end)) => (Vec::new(), end.into()),
        };
        messages.push(end);
        messages
    }
}

/// One message; holes as zeroes.
fn encode_whole(header: &[u8], pieces: Vec<Piece>) -> Vec<Bytes> {
    let mut out = Vec::with_capacity(pieces.len().saturating_add(1));
    let mut header = Some(header);
    for piece in pieces {
        put_piece(header.take(), piece, &mut out);
    }
    out
}

/// A chunk for each hole, and for the data between them; not the end.
fn encode_chunks(
    chunks: &mut ChunkedRead,
    mut at: u64,
    pieces: Vec<Piece>,
) -> Result<Vec<Bytes>, Misuse> {
    let mut out = Vec::with_capacity(pieces.len().saturating_mul(2).saturating_add(1));
    let mut pieces = pieces.into_iter().peekable();
    while let Some(piece) = pieces.next() {
        let mut length = piece.length();
        if piece.is_hole() {
            out.push(Bytes::from(chunks.hole(at, length)?));
        } else {
            let mut run = vec![piece];
            while let Some(piece) = pieces.next_if(|piece| !piece.is_hole()) {
                length = length.saturating_add(piece.length());
                run.push(piece);
            }
            let header = chunks.data(at, length)?;
            out.append(&mut encode_whole(header.as_bytes(), run));
        }
        at = at.saturating_add(length.into());
    }
    Ok(out)
}

fn put_piece(header: Option<&[u8]>, piece: Piece, out: &mut Vec<Bytes>) {
    match piece {
        Piece::Own(mut own) => {
            let header = header.unwrap_or_default();
            let start = HEADROOM.saturating_sub(header.len());
            if let Some(place) = own.get_mut(start..HEADROOM) {
                place.copy_from_slice(header);
            }
            let mut bytes = Bytes::from(own);
            bytes.advance(start);
            out.push(bytes);
        }
        Piece::Shared(bytes) => {
            out.extend(header.map(Bytes::copy_from_slice));
            out.push(bytes);
        }
        Piece::Hole(length) => {
            out.extend(header.map(Bytes::copy_from_slice));
            let mut left = usize::try_from(length).unwrap_or(usize::MAX);
            while left > 0 {
                let n = left.min(ZEROES.len());
                out.push(Bytes::from_static(ZEROES.get(..n).unwrap_or_default()));
                left = left.saturating_sub(n);
            }
        }
    }
}

/// Lengths here are parts of a read, whose length has 32 bits.
fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
