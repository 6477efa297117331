//! The notation of transcripts: words that stand for bytes.
//!
//! | word | bytes |
//! |---|---|
//! | `2a00_ffff` | these bytes |
//! | `4096:32`, `2^63-1:64`, `EIO:32` | a big-endian number of 32 or 64 bits |
//! | `aa*512` | a byte, 512 times |
//! | `"disk"` | a text |
//! | `#0` | the cookie of the first command, 64 bits |
//!
//! The numbers are copied from the specification: the crate's own encoders are
//! not used.

/// The commands that were sent, for the cookies of a transcript.
pub(crate) trait Commands {
    /// Cookie, and offset of the request.
    fn command(&self, number: usize) -> (u64, u64);
    fn extended(&self) -> bool;
}

/// For handshakes.
pub(crate) struct NoCommands;

impl Commands for NoCommands {
    fn command(&self, number: usize) -> (u64, u64) {
        panic!("no command #{number} in a handshake")
    }

    fn extended(&self) -> bool {
        panic!("no chunk in a handshake")
    }
}

const NUMBERS: &[(&str, u64)] = &[
    // Options.
    ("EXPORT_NAME", 1),
    ("ABORT", 2),
    ("LIST", 3),
    ("PEEK_EXPORT", 4),
    ("STARTTLS", 5),
    ("INFO", 6),
    ("GO", 7),
    ("STRUCTURED_REPLY", 8),
    ("LIST_META_CONTEXT", 9),
    ("SET_META_CONTEXT", 10),
    ("EXTENDED_HEADERS", 11),
    // Option replies. (Their INFO is R_INFO.)
    ("ACK", 1),
    ("SERVER", 2),
    ("R_INFO", 3),
    ("META_CONTEXT", 4),
    ("ERR_UNSUP", 0x8000_0001),
    ("ERR_POLICY", 0x8000_0002),
    ("ERR_INVALID", 0x8000_0003),
    ("ERR_PLATFORM", 0x8000_0004),
    ("ERR_TLS_REQD", 0x8000_0005),
    ("ERR_UNKNOWN", 0x8000_0006),
    ("ERR_SHUTDOWN", 0x8000_0007),
    ("ERR_BLOCK_SIZE_REQD", 0x8000_0008),
    ("ERR_TOO_BIG", 0x8000_0009),
    ("ERR_EXT_HEADER_REQD", 0x8000_000a),
    // Information.
    ("EXPORT", 0),
    ("NAME", 1),
    ("DESCRIPTION", 2),
    ("BLOCK_SIZE", 3),
    // Commands.
    ("READ", 0),
    ("WRITE", 1),
    ("DISC", 2),
    ("FLUSH", 3),
    ("TRIM", 4),
    ("CACHE", 5),
    ("WRITE_ZEROES", 6),
    ("STATUS", 7),
    ("RESIZE", 8),
    // Command flags.
    ("FUA", 1),
    ("NO_HOLE", 2),
    ("DF", 4),
    ("REQ_ONE", 8),
    ("FAST_ZERO", 16),
    ("PAYLOAD_LEN", 32),
    // Chunks.
    ("NONE", 0),
    ("OFFSET_DATA", 1),
    ("OFFSET_HOLE", 2),
    ("BLOCK_STATUS", 5),
    ("BLOCK_STATUS_EXT", 6),
    ("ERROR", 0x8001),
    ("ERROR_OFFSET", 0x8002),
    // Errors.
    ("OK", 0),
    ("EPERM", 1),
    ("EIO", 5),
    ("ENOMEM", 12),
    ("EINVAL", 22),
    ("ENOSPC", 28),
    ("EOVERFLOW", 75),
    ("ENOTSUP", 95),
    ("ESHUTDOWN", 108),
];

/// Words of a line; a text in quotes is one word.
pub(crate) fn words(line: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let end = match rest.strip_prefix('"') {
            Some(text) => text.find('"').expect("a text ends with a quote") + 2,
            None => rest.find(char::is_whitespace).unwrap_or(rest.len()),
        };
        words.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    words
}

/// `4096`, `0x1000`, `4K`, `2^63-1`, or a name.
pub(crate) fn number(word: &str) -> u64 {
    if let Some((_, value)) = NUMBERS.iter().find(|(name, _)| *name == word) {
        return *value;
    }
    if let Some((power, less)) = word.split_once('-') {
        return u64::try_from(big(power) - big(less)).unwrap();
    }
    u64::try_from(big(word)).unwrap_or_else(|_| panic!("{word} has more than 64 bits"))
}

fn big(word: &str) -> u128 {
    let parse = |digits: &str| digits.parse::<u128>().ok();
    let unit = |suffix| parse(word.strip_suffix(suffix)?);
    parse(word)
        .or_else(|| u128::from_str_radix(word.strip_prefix("0x")?, 16).ok())
        .or_else(|| Some(1 << parse(word.strip_prefix("2^")?)?))
        .or_else(|| Some(unit('K')? << 10))
        .or_else(|| Some(unit('M')? << 20))
        .or_else(|| Some(unit('G')? << 30))
        .unwrap_or_else(|| panic!("{word} is no number"))
}

/// `FUA|NO_HOLE`.
pub(crate) fn flags(word: &str) -> u16 {
    let bits = word.split('|').map(number).fold(0, |all, bit| all | bit);
    u16::try_from(bits).unwrap()
}

/// The bytes of a list of words.
pub(crate) fn bytes(words: &[&str], commands: &dyn Commands) -> Vec<u8> {
    words.iter().flat_map(|word| one(word, commands)).collect()
}

fn one(word: &str, commands: &dyn Commands) -> Vec<u8> {
    if let Some(text) = word.strip_prefix('"') {
        return text.strip_suffix('"').unwrap().as_bytes().to_vec();
    }
    if let Some(command) = word.strip_prefix('#') {
        let (cookie, _) = commands.command(command.parse().unwrap());
        return cookie.to_be_bytes().to_vec();
    }
    if let Some((value, bits)) = word.split_once(':') {
        let size = bits.parse::<usize>().unwrap() / 8;
        let bytes = number(value).to_be_bytes();
        let (cut, kept) = bytes.split_at(8 - size);
        assert!(cut.iter().all(|byte| *byte == 0), "{word} does not fit");
        return kept.to_vec();
    }
    if let Some((byte, times)) = word.split_once('*') {
        let byte = u8::from_str_radix(byte, 16).unwrap();
        return vec![byte; usize::try_from(number(times)).unwrap()];
    }
    let digits: String = word.chars().filter(|c| *c != '_').collect();
    assert!(digits.len().is_multiple_of(2), "{word} is half a byte");
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16);
    (0..digits.len())
        .step_by(2)
        .map(|at| byte(at).unwrap_or_else(|_| panic!("{word} is no byte")))
        .collect()
}

/// What the server sends:
///
/// | line | means |
/// |---|---|
/// | `rep OPTION REPLY words` | an option reply with its header |
/// | `simple ERROR #0 words` | a simple reply |
/// | `chunk TYPE #0 words`, `last TYPE #0 words` | a chunk in the script's framing, without and with the flag DONE |
/// | anything else | words |
///
/// Length fields are computed from what follows. `len=N`, `off=N` and `flags=N`
/// directly after the command replace the true fields; `structured` and
/// `extended` there choose a framing.
pub(crate) fn server(line: &str, commands: &dyn Commands) -> Vec<u8> {
    let words = words(line);
    match words.as_slice() {
        ["rep", option, reply, rest @ ..] => {
            let (claims, data) = claims(rest);
            let data = bytes(data, commands);
            let length = claim(&claims, "len").unwrap_or(data.len() as u64);
            let reply = match *reply {
                "INFO" => number("R_INFO"),
                other => number(other),
            };
            let mut out = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
            out.extend(narrow(number(option)));
            out.extend(narrow(reply));
            out.extend(narrow(length));
            out.extend(data);
            out
        }
        ["simple", error, rest @ ..] => {
            let mut out = narrow(0x6744_6698).to_vec();
            out.extend(narrow(number(error)));
            out.extend(bytes(rest, commands));
            out
        }
        ["chunk", kind, command, rest @ ..] => chunk(0, kind, command, rest, commands),
        ["last", kind, command, rest @ ..] => chunk(1, kind, command, rest, commands),
        _ => bytes(&words, commands),
    }
}

fn chunk(flags: u64, kind: &str, command: &str, rest: &[&str], commands: &dyn Commands) -> Vec<u8> {
    let (claims, payload) = claims(rest);
    let payload = bytes(payload, commands);
    let length = claim(&claims, "len").unwrap_or(payload.len() as u64);
    let flags = claim(&claims, "flags").unwrap_or(flags);
    let extended = match (claims.contains(&"structured"), claims.contains(&"extended")) {
        (true, _) => false,
        (_, true) => true,
        _ => commands.extended(),
    };
    let mut out = if extended {
        narrow(0x6e8a_278c)
    } else {
        narrow(0x668e_33ef)
    }
    .to_vec();
    out.extend(u16::try_from(flags).unwrap().to_be_bytes());
    out.extend(u16::try_from(number(kind)).unwrap().to_be_bytes());
    out.extend(one(command, commands));
    if extended {
        let offset = claim(&claims, "off").unwrap_or_else(|| {
            let number = command.strip_prefix('#').expect("off= or a command");
            commands.command(number.parse().unwrap()).1
        });
        out.extend(offset.to_be_bytes());
        out.extend(length.to_be_bytes());
    } else {
        out.extend(narrow(length));
    }
    out.extend(payload);
    out
}

fn claims<'a, 'l>(words: &'l [&'a str]) -> (Vec<&'a str>, &'l [&'a str]) {
    let is_claim = |word: &&str| {
        ["len=", "off=", "flags="]
            .iter()
            .any(|c| word.starts_with(c))
            || ["structured", "extended"].contains(word)
    };
    let count = words.iter().take_while(|word| is_claim(word)).count();
    (words[..count].to_vec(), &words[count..])
}

fn claim(claims: &[&str], name: &str) -> Option<u64> {
    let value = |claim: &&str| Some(number(claim.strip_prefix(name)?.strip_prefix('=')?));
    claims.iter().find_map(value)
}

fn narrow(value: u64) -> [u8; 4] {
    u32::try_from(value).unwrap().to_be_bytes()
}

/// An option as a client sends it: `opt OPTION words`.
pub(crate) fn option(words: &[&str]) -> Vec<u8> {
    let [option, data @ ..] = words else {
        panic!("opt without an option")
    };
    let data = bytes(data, &NoCommands);
    let mut out = b"IHAVEOPT".to_vec();
    out.extend(narrow(number(option)));
    out.extend(narrow(data.len() as u64));
    out.extend(data);
    out
}
