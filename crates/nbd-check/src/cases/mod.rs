//! The table, one file for each chapter.
//!
//! To add a case, call `Cases::add` in the file of its chapter: the duty it checks,
//! a name, what the client sends, what the server may answer, what it needs, and the
//! steps. A duty that is not yet there is a row in `duty.rs`.

mod commands;
mod contexts;
mod cuts;
mod delivery;
mod flags;
mod handshake;
mod info;
mod meaning;
pub(crate) mod options;
mod payloads;
mod ranges;
mod status;
mod tls;

use crate::case::{Case, Cases};

/// All cases.
#[must_use]
pub fn all() -> Vec<Case> {
    let mut cases = Cases::default();
    handshake::add(&mut cases);
    options::add(&mut cases);
    info::add(&mut cases);
    contexts::add(&mut cases);
    commands::add(&mut cases);
    flags::add(&mut cases);
    ranges::add(&mut cases);
    payloads::add(&mut cases);
    meaning::add(&mut cases);
    status::add(&mut cases);
    delivery::add(&mut cases);
    cuts::add(&mut cases);
    tls::add(&mut cases);
    cases.into_vec()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use nbd_codec::monitor::{Fault, Side};
    use nbd_codec::wire::DecodeError;
    use nbd_codec::wire::number::ChunkType;

    #[test]
    fn every_id_is_unique() {
        let mut ids = HashSet::new();
        for case in super::all() {
            assert!(ids.insert(case.id.clone()), "{}", case.id);
        }
        assert!(ids.len() >= 700, "{}", ids.len());
    }

    /// A duty that no case and no check names would only seem to be checked.
    #[test]
    fn every_duty_is_checked() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
        let (mut text, mut named) = (String::new(), HashSet::new());
        for folder in [folder.to_owned(), format!("{folder}/cases")] {
            for entry in std::fs::read_dir(folder).expect("the sources") {
                let path = entry.expect("an entry").path();
                if path.is_file() && !path.ends_with("duty.rs") {
                    text.push_str(&std::fs::read_to_string(path).expect("text"));
                }
            }
        }
        // The monitor names the duty that a chunk breaks.
        for number in 0..=u16::MAX {
            for error in [
                DecodeError::Trailing { message: "" },
                DecodeError::Count {
                    count: 1,
                    length: 0,
                },
                DecodeError::EmptyHole,
                DecodeError::EmptyExtent,
                DecodeError::NoError,
            ] {
                let fault = Fault::Chunk(ChunkType(number), error);
                named.insert(fault.duty(Side::Server));
            }
        }
        for duty in crate::duty::DUTIES {
            let id = format!("\"{}\"", duty.id);
            assert!(named.contains(duty.id) || text.contains(&id), "{id}");
        }
    }
}
