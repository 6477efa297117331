//! Handshake: greetings, the client flags, and the reply to
//! `NBD_OPT_EXPORT_NAME` (specification, "Handshake").

use super::DecodeError;
use super::bytes::{Fields, HeaderBuffer, Magic, find_magic, take, take_header};
use super::flags::{ClientFlags, HandshakeFlags, TransmissionFlags};

/// `NBDMAGIC`, the first bytes of every session.
pub const INIT_PASSWD: u64 = 0x4e42_444d_4147_4943;
/// Second magic number of an oldstyle greeting.
pub const CLISERV_MAGIC: u64 = 0x0000_4202_8186_1253;
/// `IHAVEOPT`: second magic number of a newstyle greeting, and the magic
/// number of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Number of reserved bytes after an oldstyle greeting, and after the reply to
/// `EXPORT_NAME` unless `NO_ZEROES` was negotiated.
pub const RESERVED_ZEROES: usize = 124;

/// The whole handshake of an oldstyle server (specification, "Oldstyle
/// negotiation").
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

    /// Decodes the fields; `None` if the second magic number is another one.
    fn parse(bytes: &[u8; Self::FIELDS]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        let magic = fields.next_is(INIT_PASSWD) && fields.next_is(CLISERV_MAGIC);
        magic.then(|| Self {
            size: fields.get(),
            handshake_flags: fields.get(),
            flags: fields.get(),
        })
    }

    /// Encodes the greeting, reserved zeroes included.
    #[must_use]
    pub fn encode(self) -> [u8; Self::SIZE] {
        self.put_fields().into_array()
    }

    /// Encodes the fields before the reserved zeroes.
    pub(crate) fn encode_fields(self) -> [u8; Self::FIELDS] {
        self.put_fields().into_array()
    }

    fn put_fields<const N: usize>(self) -> HeaderBuffer<N> {
        HeaderBuffer::new()
            .field(INIT_PASSWD)
            .field(CLISERV_MAGIC)
            .field(self.size)
            .field(self.handshake_flags)
            .field(self.flags)
    }
}

/// The first message of a newstyle server (specification, "Newstyle
/// negotiation").
///
/// ```text
/// S: NBDMAGIC:64 IHAVEOPT:64 handshake_flags:16
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NewstyleGreeting {
    /// What the server supports during the handshake.
    pub flags: HandshakeFlags,
}

impl NewstyleGreeting {
    /// Size of the greeting in bytes.
    pub const SIZE: usize = 18;

    /// Decodes the greeting; `None` if the second magic number is another one.
    fn parse(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        let magic = fields.next_is(INIT_PASSWD) && fields.next_is(OPTION_MAGIC);
        magic.then(|| Self {
            flags: fields.get(),
        })
    }

    /// Encodes the greeting.
    #[must_use]
    pub fn encode(self) -> [u8; Self::SIZE] {
        HeaderBuffer::new()
            .field(INIT_PASSWD)
            .field(OPTION_MAGIC)
            .field(self.flags)
            .into_array()
    }
}

/// The first message of a session, of either style (specification,
/// "Handshake").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Greeting {
    /// The whole handshake.
    Oldstyle(OldstyleGreeting),
    /// The beginning of a negotiation; the flags say whether it is fixed
    /// newstyle.
    Newstyle(NewstyleGreeting),
}

impl Greeting {
    /// Decodes a whole greeting, including the reserved zeroes of an oldstyle
    /// greeting, whose value is ignored.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Magic`] at the first byte that belongs to neither style.
    pub fn decode(input: &mut &[u8]) -> Result<Option<Self>, DecodeError> {
        let mut rest = *input;
        let Some(greeting) = Self::decode_fields(&mut rest, true)? else {
            return Ok(None);
        };
        if matches!(greeting, Self::Oldstyle(_)) && take::<RESERVED_ZEROES>(&mut rest).is_none() {
            return Ok(None);
        }
        *input = rest;
        Ok(Some(greeting))
    }

    /// Decodes a greeting; the reserved zeroes of an oldstyle greeting are left
    /// in the input. If `oldstyle` is false, it never ends (`Ok(None)`).
    ///
    /// # Errors
    ///
    /// [`DecodeError::Magic`] at the first byte that belongs to neither style.
    #[inline]
    pub(crate) fn decode_fields(
        input: &mut &[u8],
        oldstyle: bool,
    ) -> Result<Option<Self>, DecodeError> {
        if let Some(greeting) = take_header(input, NewstyleGreeting::parse) {
            return Ok(Some(Self::Newstyle(greeting)));
        }
        if oldstyle && let Some(greeting) = take_header(input, OldstyleGreeting::parse) {
            return Ok(Some(Self::Oldstyle(greeting)));
        }
        INIT_PASSWD.check(input, "greeting")?;
        let second = input.get(8..).unwrap_or_default();
        find_magic(second, &[OPTION_MAGIC, CLISERV_MAGIC], "greeting").map(|_| None)
    }
}

impl ClientFlags {
    /// Size of the field in bytes.
    pub const SIZE: usize = 4;

    /// Decodes the client's reply to a newstyle greeting; `None` if `input`
    /// ends before it does.
    ///
    /// ```text
    /// C: client_flags:32
    /// ```
    #[must_use]
    pub fn decode(input: &mut &[u8]) -> Option<Self> {
        take::<4>(input).map(|bytes| Self(u32::from_be_bytes(*bytes)))
    }

    /// Encodes the field.
    #[must_use]
    pub fn encode(self) -> [u8; Self::SIZE] {
        self.0.to_be_bytes()
    }
}

/// The reply to `NBD_OPT_EXPORT_NAME`, which has no header (specification,
/// "Newstyle negotiation").
///
/// ```text
/// S: size:64 flags:16 [zeroes:124*8]
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExportNameReply {
    /// Size of the export in bytes.
    pub size: u64,
    /// What the export supports.
    pub flags: TransmissionFlags,
}

impl ExportNameReply {
    /// Size without the reserved zeroes, in bytes. [`RESERVED_ZEROES`] follow
    /// unless `NO_ZEROES` was negotiated.
    pub const SIZE: usize = 10;

    /// Decodes the fields; `None` if `input` ends before they do. The reserved
    /// zeroes, if any, are left in the input.
    #[must_use]
    pub fn decode(input: &mut &[u8]) -> Option<Self> {
        let mut fields = Fields::new(take::<{ Self::SIZE }>(input)?);
        Some(Self {
            size: fields.get(),
            flags: fields.get(),
        })
    }

    /// Encodes the fields, without the reserved zeroes.
    #[must_use]
    pub fn encode(self) -> [u8; Self::SIZE] {
        HeaderBuffer::new()
            .field(self.size)
            .field(self.flags)
            .into_array()
    }
}
