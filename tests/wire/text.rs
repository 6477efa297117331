//! Strings: which are valid, and how any string is printed.

use nbd_codec::wire::text::{MAX_TEXT, Text, TextError};

#[test]
fn the_rules() {
    let longest = "x".repeat(4096);
    let wide = "ü".repeat(2048);
    for (name, text) in [
        ("the empty string", ""),
        ("an export", "disk"),
        ("not ASCII", "Größe 😀"),
        ("control characters are no NUL", "\u{1}\u{1b}[2J\u{7f}"),
        ("4096 bytes", &longest),
        ("2048 characters in 4096 bytes", &wide),
    ] {
        assert_eq!(Text::from(text).to_str(), Ok(text), "{name}");
    }
    assert_eq!(MAX_TEXT, 4096);
}

#[test]
fn strings_that_break_a_rule() {
    let long = [b'x'; 4097];
    let mut long_by_bytes = "ü".repeat(2048);
    long_by_bytes.push('x');
    let mut cut = "x".repeat(4095);
    cut.push('ü');
    for (name, bytes, error) in [
        ("4097 bytes", &long[..], TextError::TooLong),
        (
            "2049 characters in 4097 bytes",
            long_by_bytes.as_bytes(),
            TextError::TooLong,
        ),
        (
            "a character cut by the limit",
            &cut.as_bytes()[..4096],
            TextError::Utf8,
        ),
        ("NUL alone", b"\0", TextError::Nul),
        ("NUL at the end", b"disk\0", TextError::Nul),
        ("NUL in the middle", b"di\0sk", TextError::Nul),
        ("a byte that is never UTF-8", b"disk\xff", TextError::Utf8),
        ("half a character", b"\xc3", TextError::Utf8),
        ("NUL in two bytes", b"\xc0\x80", TextError::Utf8),
        ("a surrogate", b"\xed\xa0\x80", TextError::Utf8),
    ] {
        let text = Text::new(bytes);
        assert_eq!(text.to_str(), Err(error), "{name}");
        assert_eq!(text.as_bytes(), bytes, "{name}: kept as it is");
    }
}

#[test]
fn bytes_are_kept_in_place() {
    let bytes = b"any\0\xffbytes";
    for text in [Text::new(bytes), Text::from(&bytes[..])] {
        assert!(std::ptr::eq(text.as_bytes(), &bytes[..]));
        assert_eq!((text.len(), text.is_empty()), (10, false));
    }
    assert!(Text::EMPTY.is_empty() && Text::default() == Text::EMPTY);
    assert_eq!(Text::EMPTY.len(), 0);
}

#[test]
fn display_is_safe_for_terminals() {
    for (bytes, shown) in [
        (&b"disk"[..], "disk"),
        ("Größe 😀".as_bytes(), "Größe 😀"),
        (b"\x1b[2J\x1b]0;title\x07", r"\u{1b}[2J\u{1b}]0;title\u{7}"),
        (b"one\ntwo\r\tthree", r"one\ntwo\r\tthree"),
        (b"\0\x7f", r"\u{0}\u{7f}"),
        // C1 control characters, which some terminals obey: CSI, OSC.
        ("\u{9b}2J\u{9d}".as_bytes(), r"\u{9b}2J\u{9d}"),
        // Characters that reorder or hide what follows.
        ("\u{202e}gpj.exe".as_bytes(), r"\u{202e}gpj.exe"),
        (
            "a\u{200b}\u{2066}\u{2028}\u{feff}b".as_bytes(),
            r"a\u{200b}\u{2066}\u{2028}\u{feff}b",
        ),
        (b"a\xffb", "a\u{fffd}b"),
        (b"a\xc3", "a\u{fffd}"),
        (b"\x9b2J", "\u{fffd}2J"),
        (b"", ""),
    ] {
        let text = Text::new(bytes);
        assert_eq!(text.to_string(), shown);
        assert_eq!(format!("{text:?}"), format!("\"{shown}\""));
    }
}

#[test]
fn display_escapes_every_control_character() {
    let all: String = (0..=0x2fff).filter_map(char::from_u32).collect();
    let shown = Text::from(all.as_str()).to_string();
    assert!(!shown.chars().any(char::is_control));
    let bytes: Vec<u8> = (0..=255).collect();
    let shown = Text::new(&bytes).to_string();
    assert!(!shown.chars().any(char::is_control));
}

#[test]
fn debug_escapes_quotes_and_backslashes() {
    assert_eq!(format!("{:?}", Text::from("a\n")), r#""a\n""#);
    assert_eq!(format!("{:?}", Text::from(r"a\n")), r#""a\\n""#);
    assert_eq!(format!("{:?}", Text::from("\"")), r#""\"""#);
}
