//! Sizes in bytes, with suffixes.

/// The suffixes, each 1024 times the one before.
const SUFFIXES: [char; 6] = ['K', 'M', 'G', 'T', 'P', 'E'];

/// Parses a number of bytes: digits, then `K`, `M`, `G`, `T`, `P` or `E`
/// (powers of 1024), either case.
pub fn parse(text: &str) -> Result<u64, String> {
    let suffix = text.chars().last().map(|c| c.to_ascii_uppercase());
    let power = SUFFIXES
        .iter()
        .position(|known| Some(*known) == suffix)
        .map(|index| index as u32 + 1);
    let digits = match power {
        Some(_) => &text[..text.len() - 1],
        None => text,
    };
    // `u64::from_str` would take a sign.
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err("not a size: write a number of bytes, as 4096, 64K, 2M, 1G or 1T".into());
    }
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1024u64.pow(power.unwrap_or(0))))
        .ok_or_else(|| "too large: sizes end below 16E".into())
}

/// The shortest exact form: `64M` for 67108864, `65537` for 65537.
pub fn exact(bytes: u64) -> String {
    let mut number = bytes;
    let mut suffix = String::new();
    for next in SUFFIXES {
        if number == 0 || !number.is_multiple_of(1024) {
            break;
        }
        number /= 1024;
        suffix = next.into();
    }
    format!("{number}{suffix}")
}

/// A rounded form for reading: `64 MiB`, `5.2 GiB`.
pub fn rounded(bytes: u64) -> String {
    let Some(power) = bytes.checked_ilog2().map(|bits| bits as usize / 10) else {
        return "0 B".into();
    };
    let Some(suffix) = power.checked_sub(1).map(|index| SUFFIXES[index]) else {
        return format!("{bytes} B");
    };
    let unit = 1u64 << (10 * power);
    match bytes % unit {
        0 => format!("{} {suffix}iB", bytes / unit),
        _ => format!("{:.1} {suffix}iB", bytes as f64 / unit as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_both_ways() {
        let table = [
            ("0", 0, "0", "0 B"),
            ("1", 1, "1", "1 B"),
            ("1023", 1023, "1023", "1023 B"),
            ("64k", 65_536, "64K", "64 KiB"),
            ("65537", 65_537, "65537", "64.0 KiB"),
            ("1536M", 1_610_612_736, "1536M", "1.5 GiB"),
            ("5G", 5 << 30, "5G", "5 GiB"),
            ("2T", 2 << 40, "2T", "2 TiB"),
            (
                "9223372036854775807",
                i64::MAX as u64,
                "9223372036854775807",
                "8.0 EiB",
            ),
            (
                "18446744073709551615",
                u64::MAX,
                "18446744073709551615",
                "16.0 EiB",
            ),
        ];
        for (text, bytes, short, round) in table {
            assert_eq!(parse(text), Ok(bytes), "{text}");
            assert_eq!(exact(bytes), short, "{bytes}");
            assert_eq!(rounded(bytes), round, "{bytes}");
        }
    }

    #[test]
    fn no_sizes() {
        for text in [
            "",
            "K",
            "-1",
            "+1",
            "1.5G",
            "1KB",
            "16E",
            "18446744073709551616",
            "ä",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
