//! Length fields of messages, and the worst values that a peer can send in them.

/// The length fields, counts and offsets of a message, as positions and sizes
/// in bytes. A message that is not recognised has one: its last four bytes.
fn fields(message: &[u8]) -> Vec<(usize, usize)> {
    let number = |at: usize, n: usize| {
        let bytes = message.get(at..at + n).unwrap_or_default();
        bytes
            .iter()
            .fold(0, |number, byte| number << 8 | usize::from(*byte))
    };
    let mut fields = match message {
        // An option: length, name, count of information requests or queries,
        // first query.
        [b'I', b'H', b'A', b'V', b'E', b'O', b'P', b'T', ..] => {
            let after_name = 20 + number(16, 4).min(5000);
            let count = if number(8, 4) < 9 { 2 } else { 4 };
            vec![
                (12, 4),
                (16, 4),
                (after_name, count),
                (after_name + count, 4),
            ]
        }
        // A reply to an option: length, length of a name, block sizes.
        [0, 3, 0xe8, 0x89, ..] => vec![(16, 4), (20, 4), (22, 4), (26, 4), (30, 4)],
        // A compact request: offset, length.
        [0x25, 0x60, ..] => vec![(16, 8), (24, 4)],
        // An extended request: offset, length, effect length, first context.
        [0x21, 0xe4, ..] => vec![(16, 8), (24, 8), (32, 8), (40, 4)],
        // A structured reply: length, offset, length of a hole or an extent.
        [0x66, 0x8e, ..] => {
            let message = 16 + 4 + 4;
            let after_message = message + 2 + number(message, 2);
            vec![
                (16, 4),
                (20, 8),
                (24, 4),
                (28, 4),
                (message, 2),
                (after_message, 8),
            ]
        }
        // An extended reply: offset, length, then as above; count of extents.
        [0x6e, 0x8a, ..] => {
            let message = 32 + 4;
            let after_message = message + 2 + number(message, 2);
            vec![
                (16, 8),
                (24, 8),
                (32, 8),
                (36, 4),
                (40, 4),
                (40, 8),
                (message, 2),
                (after_message, 8),
            ]
        }
        _ => vec![(message.len().saturating_sub(4), 4)],
    };
    fields.retain(|(at, n)| at + n <= message.len());
    fields
}

/// The numbers that break programs; one of them is close to the right one.
fn worst(value: u8, right: u64) -> u64 {
    match value % 12 {
        0 => 0,
        1 => 1,
        2 => right.wrapping_sub(1),
        3 => right.wrapping_add(1),
        4 => 1 << 16,
        5 => 1 << 24,
        6 => u64::from(u32::MAX),
        7 => 1 << 32,
        8 => 1 << 63,
        9 => u64::MAX,
        10 => u64::MAX - 7,
        _ => u64::MAX - right,
    }
}

/// Replaces a length field of a message. The low bytes of numbers that are too
/// long for the field are used.
pub fn replace(message: &mut [u8], field: u8, value: u8) {
    let fields = fields(message);
    let Some(index) = usize::from(field).checked_rem(fields.len()) else {
        return;
    };
    let (at, n) = fields[index];
    let mut bytes = [0; 8];
    bytes[8 - n..].copy_from_slice(&message[at..at + n]);
    let bytes = worst(value, u64::from_be_bytes(bytes)).to_be_bytes();
    message[at..at + n].copy_from_slice(&bytes[8 - n..]);
}

#[cfg(test)]
mod tests {
    use super::{fields, replace};

    #[test]
    fn fields_are_inside_of_messages() {
        for magic in [
            &b"IHAVEOPT"[..],
            &[0, 3, 0xe8, 0x89],
            &[0x25, 0x60],
            &[0x21, 0xe4],
            &[0x66, 0x8e],
            &[0x6e, 0x8a],
            b"other",
        ] {
            for length in magic.len()..100 {
                let mut message = magic.to_vec();
                message.resize(length, 0xff);
                for field in 0..fields(&message).len() {
                    for value in 0..12 {
                        replace(&mut message.clone(), field as u8, value);
                    }
                }
            }
        }
    }
}
