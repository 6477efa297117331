//! "Option types": the data of options, strings and queries.

use super::Stream;
use super::options::{
    EXPORT_NAME, EXTENDED_HEADERS, GO, INFO, LIST, LIST_META_CONTEXT, SET_META_CONTEXT, STARTTLS,
    STRUCTURED_REPLY,
};

/// Well-formed data of an option.
#[derive(Default)]
pub(super) struct Data {
    pub(super) export: Vec<u8>,
    pub(super) requests: Vec<u64>,
    pub(super) queries: Vec<Vec<u8>>,
}

/// The data of an option; `None` if it is malformed.
pub(super) fn parse_data(option: u64, data: &[u8]) -> Option<Data> {
    let mut parsed = Data::default();
    let mut stream = Stream { bytes: data, at: 0 };
    let text = |stream: &mut Stream| {
        let length = stream.number(4).ok()?;
        Some(stream.bytes(length).ok()?.to_vec())
    };
    match option {
        INFO | GO => {
            parsed.export = text(&mut stream)?;
            for _ in 0..stream.number(2).ok()? {
                parsed.requests.push(stream.number(2).ok()?);
            }
        }
        LIST_META_CONTEXT | SET_META_CONTEXT => {
            parsed.export = text(&mut stream)?;
            for _ in 0..stream.number(4).ok()? {
                parsed.queries.push(text(&mut stream)?);
            }
        }
        LIST | STARTTLS | STRUCTURED_REPLY | EXTENDED_HEADERS => {}
        _ => return Some(parsed),
    }
    (stream.left() == 0).then_some(parsed)
}

/// Whether the data of an option is well formed.
pub fn is_well_formed(option: u64, data: &[u8]) -> bool {
    let parsed = parse_data(option, data);
    let strings =
        |data: &Data| is_string(&data.export) && data.queries.iter().all(|query| is_string(query));
    parsed.as_ref().is_some_and(strings) && (option != EXPORT_NAME || is_string(data))
}

/// "Values": UTF-8, no NUL, at most 4096 bytes.
pub(super) fn is_string(bytes: &[u8]) -> bool {
    bytes.len() <= 4096 && !bytes.contains(&0) && str::from_utf8(bytes).is_ok()
}

/// "Metadata querying": a namespace of printable characters, and a colon.
pub(super) fn is_query(bytes: &[u8]) -> bool {
    let mut parts = bytes.splitn(2, |byte| *byte == b':');
    let (namespace, leaf) = (parts.next().unwrap_or_default(), parts.next());
    let printable = namespace.iter().all(|byte| *byte > 32 && *byte != 127);
    is_string(bytes) && leaf.is_some() && !namespace.is_empty() && printable
}
