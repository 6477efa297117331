//! Bytes as text: hexadecimal digits, with repeated parts written once.
//!
//! `(00)*4096` is 4096 zeroes. A part that is repeated has 1 to 32 bytes.

/// The lengths of repeated parts: headers of requests and options, bytes. The last of
/// equal ones is chosen.
const UNITS: [usize; 5] = [32, 28, 16, 8, 1];
/// A repetition of fewer bytes is written out.
const LEAST: usize = 48;

/// Writes `bytes`.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = bytes;
    while let [first, after @ ..] = rest {
        let runs = UNITS.iter().map(|unit| (repeats(rest, *unit), *unit));
        let longest = runs.max_by_key(|(count, unit)| count * unit);
        match longest {
            Some((count, unit)) if count > 1 && count * unit >= LEAST => {
                let (run, after) = rest.split_at(count * unit);
                text.push('(');
                run.iter().take(unit).for_each(|byte| put(&mut text, *byte));
                text.push_str(&format!(")*{count} "));
                rest = after;
            }
            _ => {
                put(&mut text, *first);
                rest = after;
            }
        }
    }
    text.trim_end().to_owned()
}

fn put(text: &mut String, byte: u8) {
    for digit in [byte >> 4, byte & 15] {
        text.extend(char::from_digit(digit.into(), 16));
    }
}

/// How often the first `unit` bytes come in a row.
fn repeats(bytes: &[u8], unit: usize) -> usize {
    let Some((first, rest)) = bytes.split_at_checked(unit) else {
        return 0;
    };
    // Most bytes begin no repetition.
    if first.first() != rest.first() {
        return 1;
    }
    bytes.chunks(unit).take_while(|part| *part == first).count()
}

/// The longest message that is read back, in bytes.
const LONGEST: usize = 1 << 30;

/// Reads what [`encode`] wrote; `None` if it is something else.
#[must_use]
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for part in text.split_inclusive([' ', '(']) {
        let part = part.trim_end_matches([' ', '(']);
        match part.split_once(")*") {
            None => bytes.extend(digits(part)?),
            Some((unit, count)) => {
                let unit = digits(unit)?;
                let count: usize = count.parse().ok()?;
                let length = unit.len().checked_mul(count)?;
                if length.checked_add(bytes.len())? > LONGEST {
                    return None;
                }
                bytes.extend(unit.repeat(count));
            }
        }
    }
    Some(bytes)
}

fn digits(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    digits
        .chunks(2)
        .map(|pair| match *pair {
            [high, low] => u8::try_from(digit(high)? * 16 + digit(low)?).ok(),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{decode, encode};

    #[test]
    fn what_is_encoded_is_decoded() {
        let mut mixed = b"NBDMAGIC".to_vec();
        mixed.extend([0; 124]);
        mixed.extend(b"0123456789abcdef0123456789ABCDEF".repeat(9));
        mixed.extend([1, 2, 3]);
        for bytes in [vec![], vec![7], vec![0; 47], vec![0; 4096], mixed] {
            assert_eq!(decode(&encode(&bytes)), Some(bytes));
        }
        assert_eq!(encode(&[0; 4096]), "(00)*4096");
        assert_eq!(encode(b"NBDMAGIC"), "4e42444d41474943");
    }

    #[test]
    fn other_text_is_refused() {
        for text in ["0", "xy", "(00)*", "(00)*-1", "(00)*99999999999", "é0"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }
}
