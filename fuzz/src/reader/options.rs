//! "Handshake": what a server must make of the options of a client.

use super::data::{Data, is_query, is_string, parse};
use super::handshake::Sent;
use super::transmission::Framing;
use super::{Read, Stream, Verdict, must};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    No,
    Selective,
    Forced,
}

#[derive(Debug, Clone, Copy)]
pub struct Terms {
    pub oldstyle: bool,
    pub fixed: bool,
    pub no_zeroes: bool,
    pub tls: Tls,
    pub framing: Framing,
    /// Policy: the longest data of an option that is looked at.
    pub longest_data: u64,
    /// Policy: the longest data that is skipped.
    pub longest_skipped: u64,
}

/// What the server's caller does, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// What is said without a decision was written.
    Transmitted,
    /// Of the list of exports.
    Ended,
    Refused {
        error: u64,
    },
    Granted(Export),
    /// TLS runs; so much was received.
    Tls {
        at: usize,
    },
    /// So much was taken in.
    ShutDown {
        at: usize,
    },
}

/// An export, as far as it matters to what is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    pub size: u64,
    /// Names, and whether they have 64 bits of status.
    pub contexts: Vec<(Vec<u8>, bool)>,
    pub requires_tls: bool,
    pub requires_extended: bool,
    pub requires_block_sizes: bool,
}

/// What becomes of the options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    List,
    Asked {
        option: u64,
        export: Vec<u8>,
        requests: Vec<u64>,
        queries: Vec<Vec<u8>>,
    },
    /// The last reply to an option is one of these; zero is `ACK`.
    Answer {
        option: u64,
        replies: Vec<u64>,
    },
    StartTls,
    Aborted,
    Ready,
}

/// What holds when transmission begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agreed {
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

/// What a whole session of options comes to.
#[derive(Debug)]
pub struct Reading {
    pub heard: Vec<Heard>,
    /// What a client has sent, for those who read the answers.
    pub sent: Vec<Sent>,
    pub agreed: Agreed,
    pub verdict: Verdict,
}

struct Reader<'a> {
    terms: &'a Terms,
    stream: Stream<'a>,
    decisions: &'a [Decision],
    heard: Vec<Heard>,
    sent: Vec<Sent>,
    agreed: Agreed,
    /// The client speaks fixed newstyle.
    fixed: bool,
    shutting_down: bool,
    /// For which export contexts were selected.
    contexts_for: Option<Vec<u8>>,
}

/// There is nothing to be read any more, or not yet.
enum Stop {
    Over,
    Verdict(Verdict),
}

impl From<Verdict> for Stop {
    fn from(verdict: Verdict) -> Self {
        Self::Verdict(verdict)
    }
}

/// Reads everything a client has said during the handshake.
pub fn read(terms: &Terms, decisions: &[Decision], bytes: &[u8]) -> Reading {
    let mut reader = Reader {
        terms,
        stream: Stream { bytes, at: 0 },
        decisions,
        heard: Vec::new(),
        sent: Vec::new(),
        agreed: Agreed::default(),
        fixed: false,
        shutting_down: false,
        contexts_for: None,
    };
    let verdict = match reader.session() {
        Ok(()) | Err(Stop::Over) => Verdict::Good,
        Err(Stop::Verdict(verdict)) => verdict,
    };
    Reading {
        heard: reader.heard,
        sent: reader.sent,
        agreed: reader.agreed,
        verdict,
    }
}

impl Reader<'_> {
    fn session(&mut self) -> Result<(), Stop> {
        self.transmitted()?;
        if self.terms.oldstyle {
            self.heard.push(Heard::Ready);
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
    fn client_flags(&mut self) -> Read<()> {
        if self.stream.left() == 0 {
            return Ok(());
        }
        let flags = self.stream.number(4)?;
        self.fixed = flags & 1 == 1;
        let no_zeroes = flags & 2 == 2;
        must(flags <= 3, "client flags")?;
        must(self.terms.fixed || !self.fixed, "client flags")?;
        must(self.terms.no_zeroes || !no_zeroes, "client flags")?;
        let fixed = self.fixed;
        self.sent.push(Sent::ClientFlags { fixed, no_zeroes });
        Ok(())
    }

    /// What the machine says by itself is written before it reads on.
    fn transmitted(&mut self) -> Result<(), Stop> {
        match self.decide() {
            Some(Decision::Transmitted) => Ok(()),
            Some(other) => panic!("{other:?} while something is to be written"),
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

    /// What was shut down before this was taken in.
    fn catch_up(&mut self) {
        while let Some((Decision::ShutDown { at }, rest)) = self.decisions.split_first() {
            if *at > self.stream.at {
                break;
            }
            self.shutting_down = true;
            self.decisions = rest;
        }
    }

    fn option(&mut self) -> Result<(), Stop> {
        self.catch_up();
        let shutting_down = self.shutting_down;
        must(
            b"IHAVEOPT".starts_with(&self.stream.bytes[self.stream.at..][..self.ahead(8)]),
            "magic",
        )?;
        self.stream.expect(16)?;
        self.stream.bytes(8)?;
        let option = self.stream.number(4)?;
        let length = self.stream.number(4)?;
        must(self.fixed || option == EXPORT_NAME, "not fixed newstyle")?;
        let longest = self.terms.longest_skipped.max(self.terms.longest_data);
        must(length <= longest, "endless option")?;
        let plain = self.terms.tls == Tls::Forced && !self.agreed.tls;
        if option == EXPORT_NAME {
            // What cannot be answered is closed.
            must(!plain, "export by name without TLS")?;
            must(!shutting_down, "export by name during shutdown")?;
            let extended = self.agreed.framing == Framing::Extended;
            must(!extended, "export by name with extended headers")?;
            let fits = length <= 4096 && length <= self.terms.longest_data;
            must(fits, "endless name")?;
            let name = self.stream.bytes(length)?.to_vec();
            must(is_string(&name), "a name that is no string")?;
            let export = Some(name.clone());
            self.sent(option, export);
            let export = name;
            return self.asked(
                option,
                Data {
                    export,
                    ..Data::default()
                },
            );
        }
        if option == SET_META_CONTEXT {
            // "Issuing this command replaces all previously-set metadata
            // contexts"; it does so when it is taken in.
            let whole = length <= self.stream.left();
            if whole {
                self.agreed.contexts.clear();
            }
        }
        let mut errors = self.errors(option, length, plain, shutting_down);
        let data = self.stream.bytes(length)?;
        let parsed = parse(option, data);
        let export = parsed.as_ref().map(|data| data.export.clone());
        let names = option == GO || option == SET_META_CONTEXT;
        self.sent(option, export.filter(|_| names));
        if option == ABORT {
            self.answer(option, vec![ACK])?;
            self.heard.push(Heard::Aborted);
            return Err(Stop::Over);
        }
        let Some(data) = parsed.filter(|data| is_string(&data.export)) else {
            errors.push(ERR_INVALID);
            return self.answer(option, only_tls(errors, plain));
        };
        // Policy: what is no query is not looked for.
        if !data.queries.iter().all(|query| is_query(query)) {
            errors.push(ERR_INVALID);
        }
        if !errors.is_empty() {
            return self.answer(option, only_tls(errors, plain));
        }
        match option {
            STRUCTURED_REPLY => self.agreed.framing = Framing::Structured,
            EXTENDED_HEADERS => self.agreed.framing = Framing::Extended,
            STARTTLS => return self.start_tls(),
            LIST => {
                self.heard.push(Heard::List);
                let reply = match self.decide() {
                    None => return Err(Stop::Over),
                    Some(Decision::Ended) => ACK,
                    Some(Decision::Refused { error }) => error,
                    Some(other) => panic!("a list was answered by {other:?}"),
                };
                let replies = vec![reply];
                self.heard.push(Heard::Answer { option, replies });
                return Ok(());
            }
            _ => return self.asked(option, data),
        }
        self.answer(option, vec![ACK])
    }

    fn ahead(&self, most: u64) -> usize {
        self.stream.left().min(most) as usize
    }

    fn sent(&mut self, number: u64, export: Option<Vec<u8>>) {
        self.sent.push(Sent::Option { number, export });
    }

    /// An answer that needs no decision.
    fn answer(&mut self, option: u64, replies: Vec<u64>) -> Result<(), Stop> {
        self.transmitted()?;
        self.heard.push(Heard::Answer { option, replies });
        Ok(())
    }

    /// What is wrong with an option, whatever its data.
    fn errors(&self, option: u64, length: u64, plain: bool, shutting_down: bool) -> Vec<u64> {
        let mut errors = Vec::new();
        let mut fault = |wrong: bool, error| {
            if wrong {
                errors.push(error);
            }
        };
        let chunks = self.terms.framing != Framing::Simple;
        let extended = self.terms.framing == Framing::Extended;
        let known = match option {
            LIST | STARTTLS | INFO | GO => true,
            STRUCTURED_REPLY | LIST_META_CONTEXT | SET_META_CONTEXT => chunks,
            EXTENDED_HEADERS => extended,
            _ => false,
        };
        // "TLS support"
        fault(plain && option != STARTTLS, ERR_TLS_REQD);
        fault(shutting_down, ERR_SHUTDOWN);
        fault(!known, ERR_UNSUP);
        fault(length > self.terms.longest_data, ERR_TOO_BIG);
        match option {
            STARTTLS => {
                fault(self.agreed.tls, ERR_INVALID);
                fault(self.terms.tls == Tls::No, ERR_POLICY);
            }
            STRUCTURED_REPLY => {
                let already = self.agreed.framing == Framing::Extended;
                fault(already, ERR_EXT_HEADER_REQD);
            }
            SET_META_CONTEXT => fault(self.agreed.framing == Framing::Simple, ERR_INVALID),
            _ => {}
        }
        errors
    }

    fn start_tls(&mut self) -> Result<(), Stop> {
        // What was said in plain text was never said.
        self.agreed = Agreed::default();
        self.contexts_for = None;
        // Nothing may stand between it and TLS; what does may have been
        // injected.
        let ahead = self.stream.left() > 0;
        let established = |decision: &Decision| match decision {
            Decision::Tls { at } => Some(*at),
            _ => None,
        };
        let at = self.decisions.iter().find_map(established);
        must(!ahead || at == Some(self.stream.at), "plain text")?;
        self.answer(STARTTLS, vec![ACK])?;
        self.heard.push(Heard::StartTls);
        match self.decide() {
            None => Err(Stop::Over),
            Some(Decision::Tls { .. }) => {
                self.agreed.tls = true;
                self.sent.push(Sent::Tls);
                Ok(())
            }
            Some(other) => panic!("TLS was started, and then {other:?}"),
        }
    }

    /// An option about an export, which the caller decides.
    fn asked(&mut self, option: u64, data: Data) -> Result<(), Stop> {
        let Data {
            export: name,
            requests,
            queries,
        } = data;
        self.heard.push(Heard::Asked {
            option,
            export: name.clone(),
            requests: requests.clone(),
            queries: queries.clone(),
        });
        let export = match self.decide() {
            None => return Err(Stop::Over),
            Some(Decision::Granted(export)) => export,
            Some(Decision::Refused { error }) => {
                must(option != EXPORT_NAME, "refused")?;
                self.allowed(option, error, &requests);
                let replies = vec![error];
                self.heard.push(Heard::Answer { option, replies });
                return Ok(());
            }
            Some(other) => panic!("an export was answered by {other:?}"),
        };
        let mut replies = self.obstacles(option, &requests, &export);
        if replies.is_empty() {
            replies.push(self.grant(option, &name, &queries, &export));
        } else {
            must(option != EXPORT_NAME, "refused")?;
        }
        let done = replies == [ACK];
        if option != EXPORT_NAME {
            self.heard.push(Heard::Answer { option, replies });
        }
        if done && (option == GO || option == EXPORT_NAME) {
            self.heard.push(Heard::Ready);
            return Err(Stop::Over);
        }
        Ok(())
    }

    /// What the caller must not be allowed to say.
    fn allowed(&self, option: u64, error: u64, requests: &[u64]) {
        let about = option == INFO || option == GO;
        let fits = match error {
            ERR_TLS_REQD => about && self.terms.tls == Tls::Selective && !self.agreed.tls,
            ERR_BLOCK_SIZE_REQD => about && !requests.contains(&3),
            ERR_EXT_HEADER_REQD => self.agreed.framing != Framing::Extended,
            // "a server MUST NOT" fail `GO` so if it has what came later.
            ERR_UNSUP => option != GO || self.agreed.framing != Framing::Extended,
            error => error & 1 << 31 != 0,
        };
        assert!(fits, "option {option} was answered by {error:#x}");
    }

    fn obstacles(&self, option: u64, requests: &[u64], export: &Export) -> Vec<u64> {
        let contexts = option == LIST_META_CONTEXT || option == SET_META_CONTEXT;
        let mut errors = Vec::new();
        if export.requires_tls && !self.agreed.tls {
            errors.push(match (contexts, self.terms.tls) {
                // Policy: it looks as if there were none.
                (true, _) => ERR_UNKNOWN,
                (_, Tls::No) => ERR_POLICY,
                _ => ERR_TLS_REQD,
            });
        }
        if !contexts {
            let extended = self.agreed.framing == Framing::Extended;
            if export.requires_extended && !extended {
                errors.push(ERR_EXT_HEADER_REQD);
            }
            if export.requires_block_sizes && !requests.contains(&3) {
                errors.push(ERR_BLOCK_SIZE_REQD);
            }
        }
        errors
    }

    /// The reply, and what it changes.
    fn grant(&mut self, option: u64, name: &[u8], queries: &[Vec<u8>], export: &Export) -> u64 {
        let extended = self.agreed.framing == Framing::Extended;
        match option {
            LIST_META_CONTEXT => {
                let found = |context: &[u8]| {
                    let found = |query: &Vec<u8>| {
                        query == context || query.ends_with(b":") && context.starts_with(query)
                    };
                    queries.is_empty() || queries.iter().any(found)
                };
                let offered = self.terms.framing == Framing::Extended;
                let mut wide = export.contexts.iter().filter(|context| context.1);
                // Policy: what nobody can have is not named.
                match offered && !extended && wide.any(|context| found(&context.0)) {
                    true => ERR_EXT_HEADER_REQD,
                    false => ACK,
                }
            }
            SET_META_CONTEXT => {
                let numbered = (0..).zip(&export.contexts);
                self.agreed.contexts = numbered
                    .filter(|(_, context)| queries.contains(&context.0))
                    .filter(|(_, context)| extended || !context.1)
                    .map(|(id, context)| (id, context.1))
                    .collect();
                self.contexts_for = Some(name.to_vec());
                ACK
            }
            INFO => ACK,
            _ => {
                if self.contexts_for.as_deref() != Some(name) {
                    self.agreed.contexts.clear();
                }
                // A caller that has two exports of one name has two opinions.
                self.agreed.contexts.retain(|(id, wide)| {
                    let own = export.contexts.get(*id as usize);
                    own.is_some_and(|own| own.1 == *wide)
                });
                self.agreed.size = export.size;
                ACK
            }
        }
    }
}

/// "it MUST reply with NBD_REP_ERR_TLS_REQD if TLS has not been initiated"
fn only_tls(errors: Vec<u64>, plain: bool) -> Vec<u64> {
    match plain && errors.contains(&ERR_TLS_REQD) {
        true => vec![ERR_TLS_REQD],
        false => errors,
    }
}
