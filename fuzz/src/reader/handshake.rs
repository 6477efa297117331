//! "Handshake": options are sent, replies come.

use super::transmission::Framing;
use super::{Read, Stream, Verdict, bad, must};

/// What a client sends, as far as it matters to what is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    ClientFlags {
        fixed: bool,
        no_zeroes: bool,
    },
    Option {
        number: u64,
        /// The export that it names, if it is well formed.
        export: Option<Vec<u8>>,
    },
    /// The outcome of TLS, which was good.
    Tls,
}

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// The two flag fields of oldstyle are one here.
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
    Skipped {
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
pub struct Terms {
    pub require_tls: bool,
    /// Policy: the longest data of a reply that is looked at.
    pub longest_data: u64,
    /// Policy: the most contexts.
    pub most_contexts: usize,
}

/// What holds when transmission begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agreed {
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

struct Reader<'a> {
    terms: &'a Terms,
    stream: Stream<'a>,
    sent: &'a [(usize, Sent)],
    heard: Vec<Heard>,
    agreed: Agreed,
    no_zeroes: bool,
    /// For which export contexts were selected.
    contexts_for: Option<Vec<u8>>,
    /// Whether the option under way has brought the export's size and flags.
    informed: bool,
}

/// Reads everything a server has said during the handshake.
pub fn read(terms: &Terms, sent: &[(usize, Sent)], bytes: &[u8]) -> (Vec<Heard>, Verdict, Agreed) {
    let mut reader = Reader {
        terms,
        stream: Stream { bytes, at: 0 },
        sent,
        heard: Vec::new(),
        agreed: Agreed::default(),
        no_zeroes: false,
        contexts_for: None,
        informed: false,
    };
    let verdict = match reader.session() {
        Ok(()) => Verdict::Good,
        Err(verdict) => verdict,
    };
    (reader.heard, verdict, reader.agreed)
}

impl Reader<'_> {
    fn session(&mut self) -> Read<()> {
        if self.greeting()? {
            return Ok(());
        }
        loop {
            let Some((at, sent)) = self.sent.first() else {
                // The server speaks when it is asked.
                return must(self.stream.left() == 0, "bytes that nobody asked for");
            };
            must(*at == self.stream.at, "bytes that nobody asked for")?;
            self.sent = &self.sent[1..];
            match sent {
                Sent::ClientFlags { no_zeroes, .. } => self.no_zeroes = *no_zeroes,
                Sent::Tls => self.agreed.tls = true,
                Sent::Option { number, export } => {
                    self.informed = false;
                    match *number {
                        EXPORT_NAME => return self.export_name(export),
                        GO => self.agreed.block_sizes = None,
                        SET_META_CONTEXT => {
                            // "Issuing this command replaces all previously-set
                            // metadata contexts"
                            self.agreed.contexts.clear();
                            self.contexts_for = export.clone();
                        }
                        _ => {}
                    }
                    let accepted = self.replies(*number)?;
                    if accepted && *number == GO {
                        self.enter(export);
                        return Ok(());
                    }
                }
            }
        }
    }

    /// "Oldstyle negotiation", "Newstyle negotiation"; true where that is all.
    fn greeting(&mut self) -> Read<bool> {
        self.stream.expect(16)?;
        must(self.stream.bytes(8)? == b"NBDMAGIC", "magic")?;
        match self.stream.number(8)? {
            0x49484156454F5054 => {
                let flags = self.stream.number(2)?;
                // Without fixed newstyle there is no STARTTLS.
                let fixed = flags & 1 == 1;
                must(fixed || !self.terms.require_tls, "no TLS")?;
                let oldstyle = None;
                self.heard.push(Heard::Greeting { oldstyle, flags });
                Ok(false)
            }
            0x00420281861253 => {
                self.stream.expect(8 + 4)?;
                let size = self.stream.number(8)?;
                let flags = self.stream.number(4)?;
                must(!self.terms.require_tls, "no TLS")?;
                let oldstyle = Some(size);
                self.heard.push(Heard::Greeting { oldstyle, flags });
                self.agreed.size = size;
                self.agreed.flags = flags & 0xffff;
                self.stream.bytes(124)?;
                self.heard.push(Heard::Ready);
                Ok(true)
            }
            _ => bad("magic"),
        }
    }

    fn export_name(&mut self, export: &Option<Vec<u8>>) -> Read<()> {
        self.stream.expect(8 + 2)?;
        self.agreed.size = self.stream.number(8)?;
        self.agreed.flags = self.stream.number(2)?;
        self.agreed.block_sizes = None;
        if !self.no_zeroes {
            self.stream.bytes(124)?;
        }
        self.enter(export);
        Ok(())
    }

    /// Transmission begins. Contexts hold for the export that they were
    /// selected for.
    fn enter(&mut self, export: &Option<Vec<u8>>) {
        if export.is_none() || self.contexts_for != *export {
            self.agreed.contexts.clear();
        }
        self.heard.push(Heard::Ready);
    }

    /// The replies to an option, to the last one; whether it was accepted.
    fn replies(&mut self, option: u64) -> Read<bool> {
        loop {
            self.stream.expect(20)?;
            must(self.stream.number(8)? == 0x3e889045565a9, "magic")?;
            must(self.stream.number(4)? == option, "reply to another option")?;
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
            // Policy: what answers an option that nobody knows is not judged.
            must(fits || !defined, "reply of another option")?;
            must(reply != REP_ACK || length == 0, "ACK with data")?;
            // Policy: information is never too long for what is fixed of it.
            let fixed = if reply == REP_INFO { 14 } else { 0 };
            if length > self.terms.longest_data.max(fixed) {
                self.skip(option, reply, length)?;
            } else {
                let data = self.stream.bytes(length)?;
                self.reply(option, reply, data)?;
            }
            if error {
                // "If an error is returned, the client MUST disregard any
                // context replies that may have been sent."
                if option == SET_META_CONTEXT {
                    self.agreed.contexts.clear();
                }
                return Ok(false);
            }
            if reply == REP_ACK {
                return self.accepted(option).map(|()| true);
            }
        }
    }

    /// Policy: of what is too long, only what the session depends on is read.
    fn skip(&mut self, option: u64, reply: u64, length: u64) -> Read<()> {
        let mut left = length;
        if reply == REP_META_CONTEXT {
            must(length >= 4, "context without a number")?;
            let id = self.stream.number(4)?;
            left -= 4;
            self.context(option, id)?;
        }
        self.stream.bytes(left)?;
        self.heard.push(match reply & 1 << 31 {
            0 => Heard::Skipped { reply, length },
            _ => Heard::Refused {
                option,
                error: reply,
                message: None,
            },
        });
        Ok(())
    }

    /// "Option reply types"
    fn reply(&mut self, option: u64, reply: u64, data: &[u8]) -> Read<()> {
        let torn = Verdict::Bad("too short for what it is");
        let mut data = Stream { bytes: data, at: 0 };
        let heard = match reply {
            REP_ACK => return Ok(()),
            REP_SERVER => {
                let length = data.number(4).map_err(|_| torn)?;
                let name = data.bytes(length).map_err(|_| torn)?.to_vec();
                let description = data.bytes(data.left())?.to_vec();
                Heard::Server { name, description }
            }
            REP_INFO => {
                let kind = data.number(2).map_err(|_| torn)?;
                let payload = data.bytes(data.left())?;
                self.info(kind, payload)?;
                let payload = payload.to_vec();
                Heard::Info { kind, payload }
            }
            REP_META_CONTEXT => {
                let id = data.number(4).map_err(|_| torn)?;
                self.context(option, id)?;
                let name = data.bytes(data.left())?.to_vec();
                Heard::MetaContext { id, name }
            }
            reply if reply & 1 << 31 != 0 => Heard::Refused {
                option,
                error: reply,
                message: Some(data.bytes(data.left())?.to_vec()),
            },
            reply => {
                let data = data.bytes(data.left())?.to_vec();
                Heard::Other { reply, data }
            }
        };
        self.heard.push(heard);
        Ok(())
    }

    fn info(&mut self, kind: u64, payload: &[u8]) -> Read<()> {
        let length = payload.len();
        let mut payload = Stream {
            bytes: payload,
            at: 0,
        };
        match kind {
            0 => {
                must(length == 10, "length of NBD_INFO_EXPORT")?;
                self.agreed.size = payload.number(8)?;
                self.agreed.flags = payload.number(2)?;
                self.informed = true;
            }
            3 => {
                must(length == 12, "length of NBD_INFO_BLOCK_SIZE")?;
                let minimum = payload.number(4)?;
                let preferred = payload.number(4)?;
                let maximum = payload.number(4)?;
                let power = |size: u64| size.count_ones() == 1;
                must(power(minimum) && minimum <= 1 << 16, "minimum block size")?;
                // Policy: what is preferred below 512 is harmless.
                let usual = power(preferred) || preferred < 512;
                must(usual && preferred >= minimum, "preferred block size")?;
                must(maximum >= preferred, "maximum payload size")?;
                self.agreed.block_sizes = Some((minimum, preferred, maximum));
            }
            _ => {}
        }
        Ok(())
    }

    fn context(&mut self, option: u64, id: u64) -> Read<()> {
        if option != SET_META_CONTEXT {
            return Ok(());
        }
        let contexts = &mut self.agreed.contexts;
        must(!contexts.contains(&id), "a context number twice")?;
        must(contexts.len() < self.terms.most_contexts, "many contexts")?;
        contexts.push(id);
        Ok(())
    }

    fn accepted(&mut self, option: u64) -> Read<()> {
        match option {
            INFO | GO => must(self.informed, "an export of unknown size")?,
            // Extended headers take precedence.
            STRUCTURED_REPLY if self.agreed.framing == Framing::Extended => {}
            STRUCTURED_REPLY => self.agreed.framing = Framing::Structured,
            EXTENDED_HEADERS => self.agreed.framing = Framing::Extended,
            STARTTLS => {
                self.agreed = Agreed::default();
                self.contexts_for = None;
                self.heard.push(Heard::StartTls);
                return Ok(());
            }
            ABORT => {}
            _ => {}
        }
        self.heard.push(Heard::Ack { option });
        Ok(())
    }
}
