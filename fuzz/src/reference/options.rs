//! "Handshake": the client's options, and the server's replies.

use super::option_data::{Data, is_query, is_string, parse_data};
use super::option_replies::Sent;
use super::replies::Framing;
use super::{Parse, Stream, Validity, ensure};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    No,
    Selective,
    Forced,
}

#[derive(Debug, Clone, Copy)]
pub struct Config {
    pub oldstyle: bool,
    pub fixed: bool,
    pub no_zeroes: bool,
    pub tls: Tls,
    pub framing: Framing,
    /// Policy: longer data of an option is discarded.
    pub max_data: u64,
    /// Policy: longer data of an option is an error.
    pub max_discarded: u64,
    /// What a client MUST NOT or SHOULD NOT send is an error.
    pub strict: bool,
}

/// The decisions of the server's caller, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The state machine's own reply was written.
    Transmitted,
    /// The list of exports is complete.
    Ended,
    Refused {
        error: u64,
    },
    Granted(Export),
    /// TLS is established, after this many bytes.
    Tls {
        at: usize,
    },
    /// Shutdown began, after this many bytes were consumed.
    ShutDown {
        at: usize,
    },
}

/// The parts of an export that matter to the replies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    pub size: u64,
    /// Names, and whether the status has 64 bits.
    pub contexts: Vec<(Vec<u8>, bool)>,
    pub requires_tls: bool,
    pub requires_extended: bool,
    pub requires_block_sizes: bool,
}

/// One option, or what follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    List,
    Query {
        option: u64,
        export: Vec<u8>,
        requests: Vec<u64>,
        queries: Vec<Vec<u8>>,
    },
    /// The last reply to an option is one of these; zero is `ACK`.
    Reply {
        option: u64,
        replies: Vec<u64>,
    },
    StartTls,
    Aborted,
    Ready,
}

/// The parameters of transmission.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Negotiation {
    pub size: u64,
    pub framing: Framing,
    pub contexts: Vec<(u64, bool)>,
    pub tls: bool,
}

pub(super) const EXPORT_NAME: u64 = 1;
const ABORT: u64 = 2;
pub(super) const LIST: u64 = 3;
pub(super) const STARTTLS: u64 = 5;
pub(super) const INFO: u64 = 6;
pub(super) const GO: u64 = 7;
pub(super) const STRUCTURED_REPLY: u64 = 8;
pub(super) const LIST_META_CONTEXT: u64 = 9;
pub(super) const SET_META_CONTEXT: u64 = 10;
pub(super) const EXTENDED_HEADERS: u64 = 11;

const ACK: u64 = 0;
const ERR_UNSUP: u64 = 1 << 31 | 1;
const ERR_POLICY: u64 = 1 << 31 | 2;
const ERR_INVALID: u64 = 1 << 31 | 3;
const ERR_TLS_REQD: u64 = 1 << 31 | 5;
const ERR_UNKNOWN: u64 = 1 << 31 | 6;
const ERR_SHUTDOWN: u64 = 1 << 31 | 7;
const ERR_BLOCK_SIZE_REQD: u64 = 1 << 31 | 8;
const ERR_TOO_BIG: u64 = 1 << 31 | 9;
const ERR_EXT_HEADER_REQD: u64 = 1 << 31 | 10;

/// The result of parsing a handshake.
#[derive(Debug)]
pub struct Session {
    pub events: Vec<Event>,
    /// The client's messages, for parsing the replies.
    pub sent: Vec<Sent>,
    pub negotiation: Negotiation,
    pub validity: Validity,
}

struct Parser<'a> {
    config: &'a Config,
    stream: Stream<'a>,
    decisions: &'a [Decision],
    events: Vec<Event>,
    sent: Vec<Sent>,
    negotiation: Negotiation,
    /// The client uses fixed newstyle.
    fixed: bool,
    shutting_down: bool,
    /// The export for which contexts were selected.
    contexts_export: Option<Vec<u8>>,
}

/// Why parsing stops.
enum Stop {
    Over,
    Validity(Validity),
}

impl From<Validity> for Stop {
    fn from(validity: Validity) -> Self {
        Self::Validity(validity)
    }
}

/// Parses all bytes of a client during the handshake.
pub fn parse(config: &Config, decisions: &[Decision], bytes: &[u8]) -> Session {
    let mut parser = Parser {
        config,
        stream: Stream { bytes, at: 0 },
        decisions,
        events: Vec::new(),
        sent: Vec::new(),
        negotiation: Negotiation::default(),
        fixed: false,
        shutting_down: false,
        contexts_export: None,
    };
    let validity = match parser.session() {
        Ok(()) | Err(Stop::Over) => Validity::Valid,
        Err(Stop::Validity(validity)) => validity,
    };
    Session {
        events: parser.events,
        sent: parser.sent,
        negotiation: parser.negotiation,
        validity,
    }
}

impl Parser<'_> {
    fn session(&mut self) -> Result<(), Stop> {
        self.transmitted()?;
        if self.config.oldstyle {
            self.events.push(Event::Ready);
            return Ok(());
        }
        self.client_flags()?;
        while self.stream.left() > 0 {
            self.option()?;
        }
        Ok(())
    }

    /// "the server MUST close the TCP connection if it does not recognize the
    /// client's flags"
    fn client_flags(&mut self) -> Parse<()> {
        if self.stream.left() == 0 {
            return Ok(());
        }
        let flags = self.stream.number(4)?;
        self.fixed = flags & 1 == 1;
        let no_zeroes = flags & 2 == 2;
        ensure(flags <= 3, "client flags")?;
        ensure(self.config.fixed || !self.fixed, "client flags")?;
        ensure(self.config.no_zeroes || !no_zeroes, "client flags")?;
        let fixed = self.fixed;
        self.sent.push(Sent::ClientFlags { fixed, no_zeroes });
        Ok(())
    }

    /// The state machine's own reply is written before the next option is read.
    fn transmitted(&mut self) -> Result<(), Stop> {
        match self.decide() {
            Some(Decision::Transmitted) => Ok(()),
            Some(other) => panic!("{other:?} before transmit"),
            None => Err(Stop::Over),
        }
    }

    fn decide(&mut self) -> Option<Decision> {
        loop {
            let (first, rest) = self.decisions.split_first()?;
            self.decisions = rest;
            match first {
                Decision::ShutDown { .. } => self.shutting_down = true,
                decision => return Some(decision.clone()),
            }
        }
    }

    /// Applies a shutdown that began before this byte was consumed.
    fn apply_changes(&mut self) {
        while let Some((Decision::ShutDown { at }, rest)) = self.decisions.split_first() {
            if *at > self.stream.at {
                break;
            }
            self.shutting_down = true;
            self.decisions = rest;
        }
    }

    fn option(&mut self) -> Result<(), Stop> {
        self.apply_changes();
        let shutting_down = self.shutting_down;
        ensure(
            b"IHAVEOPT".starts_with(&self.stream.bytes[self.stream.at..][..self.available(8)]),
            "magic",
        )?;
        self.stream.require(16)?;
        self.stream.bytes(8)?;
        let option = self.stream.number(4)?;
        let length = self.stream.number(4)?;
        ensure(self.fixed || option == EXPORT_NAME, "not fixed newstyle")?;
        let longest = self.config.max_discarded.max(self.config.max_data);
        ensure(length <= longest, "option is too long")?;
        let plain_text = self.config.tls == Tls::Forced && !self.negotiation.tls;
        if option == EXPORT_NAME {
            // EXPORT_NAME has no error reply, so every error closes the
            // connection.
            ensure(!plain_text, "export by name without TLS")?;
            ensure(!shutting_down, "export by name during shutdown")?;
            let extended = self.negotiation.framing == Framing::Extended;
            ensure(!extended, "export by name with extended headers")?;
            let fits = length <= 4096 && length <= self.config.max_data;
            ensure(fits, "name is too long")?;
            let name = self.stream.bytes(length)?.to_vec();
            ensure(is_string(&name), "name is not a string")?;
            let export = Some(name.clone());
            self.sent(option, export);
            let export = name;
            return self.query(
                option,
                Data {
                    export,
                    ..Data::default()
                },
            );
        }
        if option == SET_META_CONTEXT {
            // "Issuing this command replaces all previously-set metadata
            // contexts"
            let is_complete = length <= self.stream.left();
            if is_complete {
                self.negotiation.contexts.clear();
            }
        }
        let mut errors = self.errors(option, length, plain_text, shutting_down);
        let data = self.stream.bytes(length)?;
        let parsed = parse_data(option, data);
        let export = parsed.as_ref().map(|data| data.export.clone());
        let names = option == GO || option == SET_META_CONTEXT;
        self.sent(option, export.filter(|_| names));
        if option == ABORT {
            self.reply(option, vec![ACK])?;
            self.events.push(Event::Aborted);
            return Err(Stop::Over);
        }
        let Some(data) = parsed.filter(|data| is_string(&data.export)) else {
            errors.push(ERR_INVALID);
            return self.reply(option, only_tls(errors, plain_text));
        };
        // Policy: a malformed query makes the option invalid.
        if !data.queries.iter().all(|query| is_query(query)) {
            errors.push(ERR_INVALID);
        }
        // "The client MUST NOT include any information request in the list more
        // than once." Policy: accepted.
        let is_repeated = |n: usize| data.requests[..n].contains(&data.requests[n]);
        if self.config.strict && (0..data.requests.len()).any(is_repeated) {
            errors.push(ERR_INVALID);
        }
        if !errors.is_empty() {
            return self.reply(option, only_tls(errors, plain_text));
        }
        match option {
            STRUCTURED_REPLY => self.negotiation.framing = Framing::Structured,
            EXTENDED_HEADERS => self.negotiation.framing = Framing::Extended,
            STARTTLS => return self.start_tls(),
            LIST => {
                self.events.push(Event::List);
                let reply = match self.decide() {
                    None => return Err(Stop::Over),
                    Some(Decision::Ended) => ACK,
                    Some(Decision::Refused { error }) => error,
                    Some(other) => panic!("a list ends with {other:?}"),
                };
                let replies = vec![reply];
                self.events.push(Event::Reply { option, replies });
                return Ok(());
            }
            _ => return self.query(option, data),
        }
        self.reply(option, vec![ACK])
    }

    fn available(&self, most: u64) -> usize {
        self.stream.left().min(most) as usize
    }

    fn sent(&mut self, number: u64, export: Option<Vec<u8>>) {
        self.sent.push(Sent::Option { number, export });
    }

    /// A reply that needs no decision of the caller.
    fn reply(&mut self, option: u64, replies: Vec<u64>) -> Result<(), Stop> {
        self.transmitted()?;
        self.events.push(Event::Reply { option, replies });
        Ok(())
    }

    /// All errors of an option that do not depend on its data.
    fn errors(&self, option: u64, length: u64, plain_text: bool, shutting_down: bool) -> Vec<u64> {
        let mut errors = Vec::new();
        let mut add_if = |applies: bool, error| {
            if applies {
                errors.push(error);
            }
        };
        let chunks = self.config.framing != Framing::Simple;
        let extended = self.config.framing == Framing::Extended;
        let known = match option {
            LIST | STARTTLS | INFO | GO => true,
            STRUCTURED_REPLY | LIST_META_CONTEXT | SET_META_CONTEXT => chunks,
            EXTENDED_HEADERS => extended,
            _ => false,
        };
        // "TLS support"
        add_if(plain_text && option != STARTTLS, ERR_TLS_REQD);
        add_if(shutting_down, ERR_SHUTDOWN);
        add_if(!known, ERR_UNSUP);
        add_if(length > self.config.max_data, ERR_TOO_BIG);
        match option {
            STARTTLS => {
                add_if(self.negotiation.tls, ERR_INVALID);
                add_if(self.config.tls == Tls::No, ERR_POLICY);
            }
            STRUCTURED_REPLY => {
                let already = self.negotiation.framing == Framing::Extended;
                add_if(already, ERR_EXT_HEADER_REQD);
                // "The client SHOULD NOT send such messages more than once".
                // Policy: accepted.
                let again = self.negotiation.framing == Framing::Structured;
                add_if(self.config.strict && again, ERR_INVALID);
            }
            EXTENDED_HEADERS => {
                let again = self.negotiation.framing == Framing::Extended;
                add_if(self.config.strict && again, ERR_INVALID);
            }
            // "This option SHOULD NOT be requested unless structured replies or
            // extended headers have been negotiated first." Policy: accepted.
            LIST_META_CONTEXT => {
                let early = self.negotiation.framing == Framing::Simple;
                add_if(self.config.strict && early, ERR_INVALID);
            }
            SET_META_CONTEXT => add_if(self.negotiation.framing == Framing::Simple, ERR_INVALID),
            _ => {}
        }
        errors
    }

    fn start_tls(&mut self) -> Result<(), Stop> {
        // Everything negotiated in plain_text text is forgotten.
        self.negotiation = Negotiation::default();
        self.contexts_export = None;
        // Plain text between STARTTLS and TLS may have been injected.
        let available = self.stream.left() > 0;
        let established = |decision: &Decision| match decision {
            Decision::Tls { at } => Some(*at),
            _ => None,
        };
        let at = self.decisions.iter().find_map(established);
        ensure(!available || at == Some(self.stream.at), "plain_text text")?;
        self.reply(STARTTLS, vec![ACK])?;
        self.events.push(Event::StartTls);
        match self.decide() {
            None => Err(Stop::Over),
            Some(Decision::Tls { .. }) => {
                self.negotiation.tls = true;
                self.sent.push(Sent::Tls);
                Ok(())
            }
            Some(other) => panic!("TLS was started, and then {other:?}"),
        }
    }

    /// A query about an export, which the caller decides.
    fn query(&mut self, option: u64, data: Data) -> Result<(), Stop> {
        let Data {
            export: name,
            requests,
            queries,
        } = data;
        self.events.push(Event::Query {
            option,
            export: name.clone(),
            requests: requests.clone(),
            queries: queries.clone(),
        });
        let export = match self.decide() {
            None => return Err(Stop::Over),
            Some(Decision::Granted(export)) => export,
            Some(Decision::Refused { error }) => {
                ensure(option != EXPORT_NAME, "refused")?;
                self.check_refusal(option, error, &requests);
                let replies = vec![error];
                self.events.push(Event::Reply { option, replies });
                return Ok(());
            }
            Some(other) => panic!("a query ends with {other:?}"),
        };
        let mut replies = self.export_errors(option, &requests, &export);
        if replies.is_empty() {
            replies.push(self.grant(option, &name, &queries, &export));
        } else {
            ensure(option != EXPORT_NAME, "refused")?;
        }
        let done = replies == [ACK];
        if option != EXPORT_NAME {
            self.events.push(Event::Reply { option, replies });
        }
        if done && (option == GO || option == EXPORT_NAME) {
            self.events.push(Event::Ready);
            return Err(Stop::Over);
        }
        Ok(())
    }

    /// Checks that a refusal is allowed.
    fn check_refusal(&self, option: u64, error: u64, requests: &[u64]) {
        let about = option == INFO || option == GO;
        let fits = match error {
            ERR_TLS_REQD => about && self.config.tls == Tls::Selective && !self.negotiation.tls,
            ERR_BLOCK_SIZE_REQD => about && !requests.contains(&3),
            ERR_EXT_HEADER_REQD => self.negotiation.framing != Framing::Extended,
            // "a server MUST NOT" fail `GO` with NBD_REP_ERR_UNSUP after later
            // options.
            ERR_UNSUP => option != GO || self.negotiation.framing != Framing::Extended,
            error => error & 1 << 31 != 0,
        };
        assert!(fits, "option {option} is refused with {error:#x}");
    }

    fn export_errors(&self, option: u64, requests: &[u64], export: &Export) -> Vec<u64> {
        let contexts = option == LIST_META_CONTEXT || option == SET_META_CONTEXT;
        let mut errors = Vec::new();
        if export.requires_tls && !self.negotiation.tls {
            errors.push(match (contexts, self.config.tls) {
                // Policy: the reply is the same as for an unknown export.
                (true, _) => ERR_UNKNOWN,
                (_, Tls::No) => ERR_POLICY,
                _ => ERR_TLS_REQD,
            });
        }
        if !contexts {
            let extended = self.negotiation.framing == Framing::Extended;
            if export.requires_extended && !extended {
                errors.push(ERR_EXT_HEADER_REQD);
            }
            if export.requires_block_sizes && !requests.contains(&3) {
                errors.push(ERR_BLOCK_SIZE_REQD);
            }
        }
        errors
    }

    /// The reply to a granted query, and its effects.
    fn grant(&mut self, option: u64, name: &[u8], queries: &[Vec<u8>], export: &Export) -> u64 {
        let extended = self.negotiation.framing == Framing::Extended;
        match option {
            LIST_META_CONTEXT => {
                let found = |context: &[u8]| {
                    let found = |query: &Vec<u8>| {
                        query == context || query.ends_with(b":") && context.starts_with(query)
                    };
                    queries.is_empty() || queries.iter().any(found)
                };
                let offered = self.config.framing == Framing::Extended;
                let mut wide = export.contexts.iter().filter(|context| context.1);
                // Policy: contexts that the client cannot select are not
                // listed.
                if offered && !extended && wide.any(|context| found(&context.0)) {
                    ERR_EXT_HEADER_REQD
                } else {
                    ACK
                }
            }
            SET_META_CONTEXT => {
                let numbered = (0..).zip(&export.contexts);
                self.negotiation.contexts = numbered
                    .filter(|(_, context)| queries.contains(&context.0))
                    .filter(|(_, context)| extended || !context.1)
                    .map(|(id, context)| (id, context.1))
                    .collect();
                self.contexts_export = Some(name.to_vec());
                ACK
            }
            INFO => ACK,
            _ => {
                if self.contexts_export.as_deref() != Some(name) {
                    self.negotiation.contexts.clear();
                }
                // The client was told of these contexts: a grant without them
                // is refused.
                for (id, wide) in &self.negotiation.contexts {
                    let own = export.contexts.get(*id as usize);
                    assert!(own.is_some_and(|own| own.1 == *wide), "contexts changed");
                }
                self.negotiation.size = export.size;
                ACK
            }
        }
    }
}

/// "it MUST reply with NBD_REP_ERR_TLS_REQD if TLS has not been initiated"
fn only_tls(errors: Vec<u64>, plain_text: bool) -> Vec<u64> {
    if plain_text && errors.contains(&ERR_TLS_REQD) {
        vec![ERR_TLS_REQD]
    } else {
        errors
    }
}
