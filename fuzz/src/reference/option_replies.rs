//! "Handshake": the server's replies to options.

use super::replies::Framing;
use super::{Parse, Stream, Validity, ensure, invalid};

/// The parts of the client's messages that matter to the replies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    ClientFlags {
        fixed: bool,
        no_zeroes: bool,
    },
    Option {
        number: u64,
        /// The export it names, if it is well formed.
        export: Option<Vec<u8>>,
    },
    /// TLS is established.
    Tls,
}

/// One reply of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// `flags` has both flag fields of an oldstyle greeting.
    Greeting {
        oldstyle: Option<u64>,
        flags: u64,
    },
    Server {
        name: Vec<u8>,
        description: Vec<u8>,
    },
    Info {
        kind: u64,
        payload: Vec<u8>,
    },
    MetaContext {
        id: u64,
        name: Vec<u8>,
    },
    Other {
        reply: u64,
        data: Vec<u8>,
    },
    Discarded {
        reply: u64,
        length: u64,
    },
    Ack {
        option: u64,
    },
    Refused {
        option: u64,
        error: u64,
        message: Option<Vec<u8>>,
    },
    StartTls,
    Ready,
}

#[derive(Debug, Clone, Copy)]
pub struct Config {
    pub require_tls: bool,
    /// Policy: longer data of a reply is discarded.
    pub max_data: u64,
    /// Policy: more contexts are an error.
    pub max_contexts: usize,
    /// Policy: without it, impossible block sizes are ignored.
    pub strict: bool,
}

/// The parameters of transmission.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Negotiation {
    pub size: u64,
    pub flags: u64,
    pub framing: Framing,
    pub block_sizes: Option<(u64, u64, u64)>,
    pub contexts: Vec<u64>,
    pub tls: bool,
}

const EXPORT_NAME: u64 = 1;
const ABORT: u64 = 2;
const LIST: u64 = 3;
const STARTTLS: u64 = 5;
const INFO: u64 = 6;
const GO: u64 = 7;
const STRUCTURED_REPLY: u64 = 8;
const LIST_META_CONTEXT: u64 = 9;
const SET_META_CONTEXT: u64 = 10;
const EXTENDED_HEADERS: u64 = 11;

const REP_ACK: u64 = 1;
const REP_SERVER: u64 = 2;
const REP_INFO: u64 = 3;
const REP_META_CONTEXT: u64 = 4;

struct Parser<'a> {
    config: &'a Config,
    stream: Stream<'a>,
    sent: &'a [(usize, Sent)],
    events: Vec<Event>,
    negotiation: Negotiation,
    no_zeroes: bool,
    /// The export for which contexts were selected.
    contexts_export: Option<Vec<u8>>,
    /// The current option's replies have included NBD_INFO_EXPORT.
    has_export_info: bool,
}

/// Parses all bytes of a server during the handshake. Each entry of `sent` has
/// the number of bytes received before it.
pub fn parse(
    config: &Config,
    sent: &[(usize, Sent)],
    bytes: &[u8],
) -> (Vec<Event>, Validity, Negotiation) {
    let mut parser = Parser {
        config,
        stream: Stream { bytes, at: 0 },
        sent,
        events: Vec::new(),
        negotiation: Negotiation::default(),
        no_zeroes: false,
        contexts_export: None,
        has_export_info: false,
    };
    let validity = match parser.session() {
        Ok(()) => Validity::Valid,
        Err(validity) => validity,
    };
    (parser.events, validity, parser.negotiation)
}

impl Parser<'_> {
    fn session(&mut self) -> Parse<()> {
        if self.greeting()? {
            return Ok(());
        }
        loop {
            let Some((at, sent)) = self.sent.first() else {
                // A server only replies to options.
                return ensure(self.stream.left() == 0, "unsolicited bytes");
            };
            ensure(*at == self.stream.at, "unsolicited bytes")?;
            self.sent = &self.sent[1..];
            match sent {
                Sent::ClientFlags { no_zeroes, .. } => self.no_zeroes = *no_zeroes,
                Sent::Tls => self.negotiation.tls = true,
                Sent::Option { number, export } => {
                    self.has_export_info = false;
                    match *number {
                        EXPORT_NAME => return self.export_name(export),
                        GO => self.negotiation.block_sizes = None,
                        SET_META_CONTEXT => {
                            // "Issuing this command replaces all previously-set
                            // metadata contexts"
                            self.negotiation.contexts.clear();
                            self.contexts_export = export.clone();
                        }
                        _ => {}
                    }
                    let accepted = self.replies(*number)?;
                    if accepted && *number == GO {
                        self.start_transmission(export);
                        return Ok(());
                    }
                }
            }
        }
    }

    /// "Oldstyle negotiation", "Newstyle negotiation". True if transmission
    /// starts.
    fn greeting(&mut self) -> Parse<bool> {
        self.stream.require(16)?;
        ensure(self.stream.bytes(8)? == b"NBDMAGIC", "magic")?;
        match self.stream.number(8)? {
            0x49484156454F5054 => {
                let flags = self.stream.number(2)?;
                // STARTTLS requires fixed newstyle.
                let fixed = flags & 1 == 1;
                ensure(fixed || !self.config.require_tls, "no TLS")?;
                let oldstyle = None;
                self.events.push(Event::Greeting { oldstyle, flags });
                Ok(false)
            }
            0x00420281861253 => {
                self.stream.require(8 + 4)?;
                let size = self.stream.number(8)?;
                let flags = self.stream.number(4)?;
                ensure(!self.config.require_tls, "no TLS")?;
                let oldstyle = Some(size);
                self.events.push(Event::Greeting { oldstyle, flags });
                self.negotiation.size = size;
                self.negotiation.flags = flags & 0xffff;
                self.stream.bytes(124)?;
                self.events.push(Event::Ready);
                Ok(true)
            }
            _ => invalid("magic"),
        }
    }

    fn export_name(&mut self, export: &Option<Vec<u8>>) -> Parse<()> {
        self.stream.require(8 + 2)?;
        self.negotiation.size = self.stream.number(8)?;
        self.negotiation.flags = self.stream.number(2)?;
        self.negotiation.block_sizes = None;
        if !self.no_zeroes {
            self.stream.bytes(124)?;
        }
        self.start_transmission(export);
        Ok(())
    }

    /// Transmission starts. Contexts apply to the export they were selected
    /// for.
    fn start_transmission(&mut self, export: &Option<Vec<u8>>) {
        if export.is_none() || self.contexts_export != *export {
            self.negotiation.contexts.clear();
        }
        self.events.push(Event::Ready);
    }

    /// All replies to an option. True for success.
    fn replies(&mut self, option: u64) -> Parse<bool> {
        loop {
            self.stream.require(20)?;
            ensure(self.stream.number(8)? == 0x3e889045565a9, "magic")?;
            ensure(self.stream.number(4)? == option, "reply to another option")?;
            let reply = self.stream.number(4)?;
            let length = self.stream.number(4)?;
            let error = reply & 1 << 31 != 0;
            let defined = (1..=11).contains(&option);
            let fits = match reply {
                REP_ACK => true,
                _ if error => true,
                REP_SERVER => option == LIST,
                REP_INFO => option == INFO || option == GO,
                REP_META_CONTEXT => option == LIST_META_CONTEXT || option == SET_META_CONTEXT,
                _ => false,
            };
            // Policy: reply types are not validated for unknown options.
            ensure(fits || !defined, "reply type of another option")?;
            ensure(reply != REP_ACK || length == 0, "ACK with data")?;
            // "Values": a string has at most 4096 bytes. The longest reply is a name
            // and a description. Policy: a higher limit of the caller counts.
            let longest = self.config.max_data.max(4 + 4096 + 4096);
            ensure(length <= longest, "longer than any reply")?;
            // Policy: the fixed part of NBD_REP_INFO is never too long.
            let fixed = if reply == REP_INFO { 14 } else { 0 };
            if length > self.config.max_data.max(fixed) {
                self.skip(option, reply, length)?;
            } else {
                let data = self.stream.bytes(length)?;
                self.reply(option, reply, data)?;
            }
            if error {
                // "If an error is returned, the client MUST disregard any
                // context replies that may have been sent."
                if option == SET_META_CONTEXT {
                    self.negotiation.contexts.clear();
                }
                return Ok(false);
            }
            if reply == REP_ACK {
                return self.accepted(option).map(|()| true);
            }
        }
    }

    /// Policy: of a reply that is too long, only the id of a context is read.
    fn skip(&mut self, option: u64, reply: u64, length: u64) -> Parse<()> {
        let mut left = length;
        if reply == REP_META_CONTEXT {
            ensure(length >= 4, "context without an id")?;
            let id = self.stream.number(4)?;
            left -= 4;
            self.context(option, id)?;
        }
        self.stream.bytes(left)?;
        self.events.push(match reply & 1 << 31 {
            0 => Event::Discarded { reply, length },
            _ => Event::Refused {
                option,
                error: reply,
                message: None,
            },
        });
        Ok(())
    }

    /// "Option reply types"
    fn reply(&mut self, option: u64, reply: u64, data: &[u8]) -> Parse<()> {
        let incomplete = Validity::Invalid("reply is too short");
        let mut data = Stream { bytes: data, at: 0 };
        let events = match reply {
            REP_ACK => return Ok(()),
            REP_SERVER => {
                let length = data.number(4).map_err(|_| incomplete)?;
                let name = data.bytes(length).map_err(|_| incomplete)?.to_vec();
                let description = data.bytes(data.left())?.to_vec();
                Event::Server { name, description }
            }
            REP_INFO => {
                let kind = data.number(2).map_err(|_| incomplete)?;
                let payload = data.bytes(data.left())?;
                self.info(kind, payload)?;
                let payload = payload.to_vec();
                Event::Info { kind, payload }
            }
            REP_META_CONTEXT => {
                let id = data.number(4).map_err(|_| incomplete)?;
                self.context(option, id)?;
                let name = data.bytes(data.left())?.to_vec();
                Event::MetaContext { id, name }
            }
            reply if reply & 1 << 31 != 0 => Event::Refused {
                option,
                error: reply,
                message: Some(data.bytes(data.left())?.to_vec()),
            },
            reply => {
                let data = data.bytes(data.left())?.to_vec();
                Event::Other { reply, data }
            }
        };
        self.events.push(events);
        Ok(())
    }

    fn info(&mut self, kind: u64, payload: &[u8]) -> Parse<()> {
        let length = payload.len();
        let mut payload = Stream {
            bytes: payload,
            at: 0,
        };
        match kind {
            0 => {
                ensure(length == 10, "length of NBD_INFO_EXPORT")?;
                self.negotiation.size = payload.number(8)?;
                self.negotiation.flags = payload.number(2)?;
                self.has_export_info = true;
            }
            3 => {
                ensure(length == 12, "length of NBD_INFO_BLOCK_SIZE")?;
                let minimum = payload.number(4)?;
                let preferred = payload.number(4)?;
                let maximum = payload.number(4)?;
                let power = |size: u64| size.count_ones() == 1;
                let possible = power(minimum)
                    && minimum <= 1 << 16
                    // Policy: a preferred block size below 512 is accepted.
                    && (power(preferred) || preferred < 512)
                    && preferred >= minimum
                    && maximum >= preferred;
                ensure(possible || !self.config.strict, "block sizes")?;
                if possible {
                    self.negotiation.block_sizes = Some((minimum, preferred, maximum));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn context(&mut self, option: u64, id: u64) -> Parse<()> {
        if option != SET_META_CONTEXT {
            return Ok(());
        }
        let contexts = &mut self.negotiation.contexts;
        ensure(!contexts.contains(&id), "a context id twice")?;
        ensure(contexts.len() < self.config.max_contexts, "many contexts")?;
        contexts.push(id);
        Ok(())
    }

    fn accepted(&mut self, option: u64) -> Parse<()> {
        match option {
            INFO | GO => ensure(self.has_export_info, "an export of unknown size")?,
            // Extended headers take precedence.
            STRUCTURED_REPLY if self.negotiation.framing == Framing::Extended => {}
            STRUCTURED_REPLY => self.negotiation.framing = Framing::Structured,
            EXTENDED_HEADERS => self.negotiation.framing = Framing::Extended,
            STARTTLS => {
                self.negotiation = Negotiation::default();
                self.contexts_export = None;
                self.events.push(Event::StartTls);
                return Ok(());
            }
            ABORT => {}
            _ => {}
        }
        self.events.push(Event::Ack { option });
        Ok(())
    }
}
