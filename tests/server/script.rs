//! Transcripts: the bytes that each side sends, and the events of the server.
//!
//! | line | meaning |
//! |---|---|
//! | `C: …` | the client sends this |
//! | `S: …` | the server has written this since the last `C:` |
//! | `E: …` | the server has reported this event since the last `C:` |
//! | `X: …` | the session has failed with this error |
//!
//! Bytes are hexadecimal (`0000_0001`), text (`"disk"`), a repeated byte
//! (`00*124`), a name of the table below, or data after its length of 2, 4 or 8
//! bytes (`4{ "disk" }`). `#` begins a comment.

/// Magic numbers, and numbers that the specification names.
const NAMES: &[(&str, &str)] = &[
    ("NBDMAGIC", "4e42444d41474943"),
    ("IHAVEOPT", "49484156454f5054"),
    ("REPLY", "0003e889045565a9"),
    ("REQUEST", "25609513"),
    ("EXTREQUEST", "21e41c71"),
    ("SIMPLE", "67446698"),
    ("CHUNK", "668e33ef"),
    ("EXTCHUNK", "6e8a278c"),
    // Options.
    ("EXPORT_NAME", "00000001"),
    ("ABORT", "00000002"),
    ("LIST", "00000003"),
    ("PEEK_EXPORT", "00000004"),
    ("STARTTLS", "00000005"),
    ("INFO", "00000006"),
    ("GO", "00000007"),
    ("STRUCTURED_REPLY", "00000008"),
    ("LIST_META", "00000009"),
    ("SET_META", "0000000a"),
    ("EXTENDED_HEADERS", "0000000b"),
    // Option replies.
    ("ACK", "00000001"),
    ("REP_SERVER", "00000002"),
    ("REP_INFO", "00000003"),
    ("REP_META", "00000004"),
    ("ERR_UNSUP", "80000001"),
    ("ERR_POLICY", "80000002"),
    ("ERR_INVALID", "80000003"),
    ("ERR_TLS_REQD", "80000005"),
    ("ERR_UNKNOWN", "80000006"),
    ("ERR_SHUTDOWN", "80000007"),
    ("ERR_BLOCK_SIZE_REQD", "80000008"),
    ("ERR_TOO_BIG", "80000009"),
    ("ERR_EXT_HEADER_REQD", "8000000a"),
    // Commands.
    ("READ", "0000"),
    ("WRITE", "0001"),
    ("DISC", "0002"),
    ("FLUSH", "0003"),
    ("TRIM", "0004"),
    ("CACHE", "0005"),
    ("WRITE_ZEROES", "0006"),
    ("BLOCK_STATUS", "0007"),
    ("RESIZE", "0008"),
    // Chunks; the first half is the flags.
    ("DONE", "0001"),
    ("MORE", "0000"),
    ("NONE", "0000"),
    ("OFFSET_DATA", "0001"),
    ("OFFSET_HOLE", "0002"),
    ("STATUS", "0005"),
    ("STATUS_EXT", "0006"),
    ("ERROR", "8001"),
    ("ERROR_OFFSET", "8002"),
    // Errors.
    ("OK", "00000000"),
    ("EPERM", "00000001"),
    ("EIO", "00000005"),
    ("EINVAL", "00000016"),
    ("ENOSPC", "0000001c"),
    ("EOVERFLOW", "0000004b"),
    ("ENOTSUP", "0000005f"),
    ("ESHUTDOWN", "0000006c"),
];

/// A message of the client, and what the server does with it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Turn {
    /// The bytes that the client sends.
    pub(crate) sends: Vec<u8>,
    /// The bytes that the server writes.
    pub(crate) writes: Vec<u8>,
    /// The events that the server reports.
    pub(crate) events: Vec<String>,
    /// The error that ends the session.
    pub(crate) error: Option<String>,
}

/// Parses a transcript; the first turn is the greeting of the server.
pub(crate) fn turns(transcript: &str) -> Vec<Turn> {
    let mut turns = vec![Turn::default()];
    for line in transcript.lines().map(str::trim) {
        let last = turns.last_mut().unwrap();
        match line.split_once(' ').unwrap_or((line, "")) {
            ("C:", text) => turns.push(Turn {
                sends: bytes(text),
                ..Turn::default()
            }),
            ("S:", text) => last.writes.extend(bytes(text)),
            ("E:", text) => last.events.push(text.trim().to_owned()),
            ("X:", text) => last.error = Some(text.trim().to_owned()),
            ("", _) => {}
            (comment, _) if comment.starts_with('#') => {}
            _ => panic!("neither C, S, E nor X: {line:?}"),
        }
    }
    turns
}

/// The bytes of a line.
pub(crate) fn bytes(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut open = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() && !rest.starts_with('#') {
        let end = match rest.strip_prefix('"') {
            Some(quoted) => quoted.find('"').expect(text) + 2,
            None => rest.find(char::is_whitespace).unwrap_or(rest.len()),
        };
        let (word, after) = rest.split_at(end);
        rest = after.trim_start();
        if let Some(size) = word.strip_suffix('{') {
            let size: usize = size.parse().expect(word);
            open.push((out.len(), size));
            out.extend(vec![0; size]);
        } else if word == "}" {
            let (at, size) = open.pop().expect(text);
            let length = (out.len() - at - size) as u64;
            out[at..at + size].copy_from_slice(&length.to_be_bytes()[8 - size..]);
        } else {
            out.extend(self::word(word));
        }
    }
    assert!(open.is_empty(), "open brace in {text:?}");
    out
}

fn word(word: &str) -> Vec<u8> {
    if let Some(text) = word.strip_prefix('"') {
        return text.strip_suffix('"').expect(word).into();
    }
    if let Some((_, digits)) = NAMES.iter().find(|(name, _)| *name == word) {
        return hex(digits);
    }
    if let Some((byte, times)) = word.split_once('*') {
        return hex(byte).repeat(times.parse().expect(word));
    }
    hex(word)
}

fn hex(word: &str) -> Vec<u8> {
    let digits: String = word.chars().filter(|c| *c != '_').collect();
    assert_eq!(digits.len() % 2, 0, "half a byte in {word:?}");
    (0..digits.len())
        .step_by(2)
        .map(|at| {
            u8::from_str_radix(&digits[at..at + 2], 16).unwrap_or_else(|_| panic!("{word:?}"))
        })
        .collect()
}

#[test]
fn transcripts_are_parsed() {
    let turns = turns("S: 00_ff \"a b\" # 99\nC: 4{ 7f*2 2{ } } LIST\nE: one two\nX: over");
    assert_eq!(turns[0].writes, b"\x00\xffa b");
    assert_eq!(turns[1].sends, [0, 0, 0, 4, 0x7f, 0x7f, 0, 0, 0, 0, 0, 3]);
    assert_eq!(turns[1].events, ["one two"]);
    assert_eq!(turns[1].error.as_deref(), Some("over"));
}
