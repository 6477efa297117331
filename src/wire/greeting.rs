//! Handshake: greetings, the client's flags, and the answer to
//! `NBD_OPT_EXPORT_NAME` (specification, "Handshake").

use super::DecodeError;
use super::bytes::{Fields, Writer, starts_like, take};
use super::flags::{ClientFlags, HandshakeFlags, TransmissionFlags};

/// `NBDMAGIC`, the first bytes of every session.
pub const INIT_PASSWD: u64 = 0x4e42_444d_4147_4943;
/// Second magic number of an oldstyle greeting.
pub const CLISERV_MAGIC: u64 = 0x0000_4202_8186_1253;
/// `IHAVEOPT`: second magic number of a newstyle greeting, and the magic
/// number of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Reserved bytes behind an oldstyle greeting, and behind the answer to
/// `EXPORT_NAME` unless `NO_ZEROES` was agreed on.
pub const RESERVED_ZEROES: usize = 124;

/// What an oldstyle server sends: the whole handshake.
///
/// ```text
/// S: NBDMAGIC:64 cliserv_magic:64 size:64 handshake_flags:16 flags:16 zeroes:124*8
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OldstyleGreeting {
    /// Size of the export in bytes.
    pub size: u64,
    /// Upper half of the 32 flag bits; a server must leave it zero.
    pub handshake_flags: HandshakeFlags,
    /// Lower half of the 32 flag bits.
    pub flags: TransmissionFlags,
}

impl OldstyleGreeting {
    /// Size of the greeting in bytes, reserved zeroes included.
    pub const SIZE: usize = Self::FIELDS + RESERVED_ZEROES;
    /// Size of the fields before the reserved zeroes, in bytes.
    pub(crate) const FIELDS: usize = 28;

    /// Encodes.
    #[must_use]
    pub fn encode(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        if let Some(fields) = bytes.first_chunk_mut() {
            *fields = self.encode_fields();
        }
        bytes
    }

    /// As [`encode`](Self::encode), without the zeroes.
    pub(crate) fn encode_fields(self) -> [u8; Self::FIELDS] {
        Writer::new()
            .u64(INIT_PASSWD)
            .u64(CLISERV_MAGIC)
            .u64(self.size)
            .u16(self.handshake_flags.0)
            .u16(self.flags.0)
            .done()
    }
}

/// What a newstyle server sends first.
///
/// ```text
/// S: NBDMAGIC:64 IHAVEOPT:64 handshake_flags:16
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NewstyleGreeting {
    /// What the server can do.
    pub flags: HandshakeFlags,
}

impl NewstyleGreeting {
    /// Size of the greeting in bytes.
    pub const SIZE: usize = 18;

    /// Encodes.
    #[must_use]
    pub fn encode(self) -> [u8; Self::SIZE] {
        Writer::new()
            .u64(INIT_PASSWD)
            .u64(OPTION_MAGIC)
            .u16(self.flags.0)
            .done()
    }
}

/// The first message of a session, of either style.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Greeting {
    /// The whole handshake.
    Oldstyle(OldstyleGreeting),
    /// The beginning of a negotiation, fixed or not by its flags.
    Newstyle(NewstyleGreeting),
}

impl Greeting {
    /// Decodes a whole greeting, the zeroes of an oldstyle one included
    /// (their value is not looked at).
    ///
    /// # Errors
    ///
    /// [`DecodeError::Magic`] at the first byte that fits neither style.
    pub fn decode(input: &mut &[u8]) -> Result<Option<Self>, DecodeError> {
        let mut rest = *input;
        let Some(greeting) = Self::decode_fields(&mut rest)? else {
            return Ok(None);
        };
        if matches!(greeting, Self::Oldstyle(_)) && take::<RESERVED_ZEROES>(&mut rest).is_none() {
            return Ok(None);
        }
        *input = rest;
        Ok(Some(greeting))
    }

    /// As [`decode`](Self::decode), but leaves the zeroes of an oldstyle
    /// greeting in the input.
    pub(crate) fn decode_fields(input: &mut &[u8]) -> Result<Option<Self>, DecodeError> {
        let wrong = DecodeError::Magic {
            message: "greeting",
        };
        if !starts_like(input, &INIT_PASSWD.to_be_bytes()) {
            return Err(wrong);
        }
        let second = input.get(8..).unwrap_or_default();
        if starts_like(second, &OPTION_MAGIC.to_be_bytes()) {
            let Some(bytes) = take::<{ NewstyleGreeting::SIZE }>(input) else {
                return Ok(None);
            };
            let mut fields = Fields::new(bytes);
            let (_, _) = (fields.u64(), fields.u64());
            return Ok(Some(Self::Newstyle(NewstyleGreeting {
                flags: HandshakeFlags(fields.u16()),
            })));
        }
        if !starts_like(second, &CLISERV_MAGIC.to_be_bytes()) {
            return Err(wrong);
        }
        let Some(bytes) = take::<{ OldstyleGreeting::FIELDS }>(input) else {
            return Ok(None);
        };
        let mut fields = Fields::new(bytes);
        let (_, _) = (fields.u64(), fields.u64());
        Ok(Some(Self::Oldstyle(OldstyleGreeting {
            size: fields.u64(),
            handshake_flags: HandshakeFlags(fields.u16()),
            flags: TransmissionFlags(fields.u16()),
        })))
    }
}

impl ClientFlags {
    /// Size of the field in bytes.
    pub const SIZE: usize = 4;

    /// Decodes the client's answer to a newstyle greeting.
    ///
    /// ```text
    /// C: client_flags:32
    /// ```
    #[must_use]
    pub fn decode(input: &mut &[u8]) -> Option<Self> {
        take::<4>(input).map(|bytes| Self(u32::from_be_bytes(*bytes)))
    }

    /// Encodes.
    #[must_use]
    pub fn encode(self) -> [u8; Self::SIZE] {
        self.0.to_be_bytes()
    }
}

/// The answer to `NBD_OPT_EXPORT_NAME`; it has no header.
///
/// ```text
/// S: size:64 flags:16 [zeroes:124*8]
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExportNameReply {
    /// Size of the export in bytes.
    pub size: u64,
    /// What the export can do.
    pub flags: TransmissionFlags,
}

impl ExportNameReply {
    /// Size without the reserved zeroes, in bytes. They follow unless
    /// `NO_ZEROES` was agreed on: [`RESERVED_ZEROES`].
    pub const SIZE: usize = 10;

    /// Decodes the fields; the zeroes, if any, are left in the input.
    #[must_use]
    pub fn decode(input: &mut &[u8]) -> Option<Self> {
        let mut fields = Fields::new(take::<{ Self::SIZE }>(input)?);
        Some(Self {
            size: fields.u64(),
            flags: TransmissionFlags(fields.u16()),
        })
    }

    /// Encodes the fields, without zeroes.
    #[must_use]
    pub fn encode(self) -> [u8; Self::SIZE] {
        Writer::new().u64(self.size).u16(self.flags.0).done()
    }
}
