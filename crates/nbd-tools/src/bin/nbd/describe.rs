//! Describes a server and its exports with single options, without entering
//! transmission.

use anyhow::{Context, Result, bail};
use nbd_codec::client::{Config, Handshake, HandshakeEvent};
use nbd_codec::uri::Uri;
use nbd_codec::wire::flags::{ClientFlags, TransmissionFlags};
use nbd_codec::wire::greeting::Greeting;
use nbd_codec::wire::number::{InfoType, OptionReplyType, OptionType};
use nbd_codec::wire::option::{InfoRequest, MetaContextRequest, OptionRequest, Queries};
use nbd_codec::wire::option_reply::{BlockSizes, Info};
use nbd_codec::{Framing, HandshakeStyle, Negotiated, Step};

use crate::connection::{self, HungUp, Link, closed, refused};
use crate::name::Name;
use crate::socket::Settings;

/// The most names of exports, and of contexts of an export, that a server may send:
/// one that sends them without an end would use up the memory.
const MOST: usize = 1 << 16;

/// A server and some of its exports.
pub struct Server {
    pub style: HandshakeStyle,
    pub tls: bool,
    pub framing: Framing,
    pub exports: Vec<Export>,
}

/// An export.
pub struct Export {
    pub name: Name,
    /// `None` if the name is invalid.
    pub uri: Option<Uri>,
    /// Empty if there is none.
    pub description: Name,
    /// Why the export could not be described; the fields that follow are unknown.
    pub error: Option<String>,
    pub size: u64,
    pub flags: TransmissionFlags,
    /// `None` if the server sent none.
    pub block_sizes: Option<BlockSizes>,
    /// All metadata contexts the server has for it.
    pub contexts: Vec<Name>,
}

/// Describes the export of `uri`.
pub fn one(uri: &Uri, framing: Framing, settings: &Settings) -> Result<Server> {
    let mut negotiation = Negotiation::start(uri, framing, settings)?;
    let mut server = negotiation.server();
    let mut export = Export::new(uri.export().into());
    export.uri = Some(uri.clone());
    let described = negotiation.describe(&mut export)?;
    negotiation.abort()?;
    match described {
        Described::Yes => {}
        Described::No => export.open(framing, settings)?,
        Described::Refused(error) => return Err(error),
    }
    server.exports.push(export);
    Ok(server)
}

/// Describes every export that the server of `uri` lists.
pub fn all(uri: &Uri, framing: Framing, settings: &Settings) -> Result<Server> {
    let mut negotiation = Negotiation::start(uri, framing, settings)?;
    let mut server = negotiation.server();
    if server.style != HandshakeStyle::FixedNewstyle {
        bail!(
            "the server uses the {} handshake, which cannot list exports; `nbd info` describes one",
            server.style
        );
    }
    let mut listed: Vec<(Name, Name)> = Vec::new();
    let answer = negotiation.send(&OptionRequest::List, |event| {
        if let HandshakeEvent::Server { name, description } = event {
            check_count(&listed, "exports")?;
            listed.push((name.into(), description.into()));
        }
        Ok(())
    })?;
    if let Some(refusal) = answer {
        bail!("the server does not list its exports ({refusal})");
    }
    // `None` after the server failed to describe an export.
    let mut negotiation = Some(negotiation);
    for (name, description) in listed {
        let mut export = Export::new(name);
        if let Err(error) = export.describe_listed(&mut negotiation, uri, framing, settings) {
            export.error = Some(format!("{error:#}"));
        }
        if export.description.is_empty() {
            export.description = description;
        }
        server.exports.push(export);
    }
    negotiation.map_or(Ok(()), Negotiation::abort)?;
    Ok(server)
}

impl Export {
    fn new(name: Name) -> Self {
        Self {
            name,
            uri: None,
            description: Name::default(),
            error: None,
            size: 0,
            flags: TransmissionFlags::NONE,
            block_sizes: None,
            contexts: Vec::new(),
        }
    }

    /// Describes an export of the list of the server of `uri`.
    fn describe_listed(
        &mut self,
        negotiation: &mut Option<Negotiation>,
        uri: &Uri,
        framing: Framing,
        settings: &Settings,
    ) -> Result<()> {
        let name = self.name.as_text().to_str();
        let name = name.context("its name is invalid")?.to_owned();
        self.uri = Some(uri.clone().with_export(&name)?);
        let outcome = match negotiation {
            Some(negotiation) => negotiation.describe(self),
            None => Ok(Described::No),
        };
        match outcome {
            Ok(Described::Yes) => Ok(()),
            Ok(Described::Refused(error)) => Err(error),
            Ok(Described::No) => {
                negotiation.take().map_or(Ok(()), Negotiation::abort)?;
                self.open(framing, settings)
            }
            Err(error) => {
                // The other exports need another connection.
                *negotiation = None;
                Err(error)
            }
        }
    }

    /// Opens an export that the server does not describe without that: on its own
    /// connection, with the automatic handshake and its fallbacks.
    fn open(&mut self, framing: Framing, settings: &Settings) -> Result<()> {
        let uri = self.uri.as_ref().context("the export has no URI")?;
        let connection = connection::open(uri, framing, &[], settings)?;
        self.take(connection.session.negotiated());
        connection.session.close()
    }

    fn take(&mut self, negotiated: &Negotiated) {
        self.size = negotiated.size;
        self.flags = negotiated.flags;
        self.block_sizes = negotiated.block_sizes;
    }
}

/// Fails if another one would be too many.
fn check_count<T>(listed: &[T], what: &str) -> Result<()> {
    if listed.len() >= MOST {
        bail!("the server lists more than {MOST} {what}");
    }
    Ok(())
}

/// How the server answered the question for an export.
enum Described {
    Yes,
    /// It does not support this, or its reply is not reliable.
    No,
    Refused(anyhow::Error),
}

/// An option error: its type and its message.
struct Refusal {
    error: OptionReplyType,
    message: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.message.as_str() {
            "" => write!(f, "{}", self.error),
            message => write!(f, "{}, {message}", self.error),
        }
    }
}

/// A manual handshake.
struct Negotiation {
    link: Link,
    machine: Handshake,
    /// Whether nothing but `NBD_OPT_LIST` and `NBD_OPT_EXPORT_NAME` is sent.
    export_name: bool,
}

impl Negotiation {
    /// Connects, and negotiates the most capable framing up to `framing`: the
    /// metadata contexts may depend on it.
    fn start(uri: &Uri, framing: Framing, settings: &Settings) -> Result<Self> {
        let framing = if settings.export_name {
            Framing::Simple
        } else {
            framing
        };
        let mut this = Self {
            link: Link::connect(uri, settings)?,
            machine: Handshake::new(&Config::new(uri.export())),
            export_name: settings.export_name,
        };
        let mut greeted = None;
        while greeted.is_none() {
            this.event(|event| {
                if let HandshakeEvent::Greeting(greeting) = event {
                    greeted = Some(greeting);
                }
                Ok(())
            })?;
        }
        if let Some(Greeting::Newstyle(_)) = greeted {
            let mut flags = Vec::new();
            this.machine
                .send_client_flags(ClientFlags::KNOWN, &mut flags)?;
            this.link.send(&flags)?;
        }
        if this.machine.agreed().style == HandshakeStyle::FixedNewstyle {
            let extended = framing == Framing::Extended
                && this
                    .send(&OptionRequest::ExtendedHeaders, |_| Ok(()))?
                    .is_none();
            if !extended && framing >= Framing::Structured {
                this.send(&OptionRequest::StructuredReply, |_| Ok(()))?;
            }
        }
        Ok(this)
    }

    fn server(&self) -> Server {
        let agreed = self.machine.agreed();
        Server {
            style: agreed.style,
            tls: agreed.tls,
            framing: agreed.framing,
            exports: Vec::new(),
        }
    }

    /// Describes an export.
    fn describe(&mut self, export: &mut Export) -> Result<Described> {
        let style = self.machine.agreed().style;
        if self.export_name || style != HandshakeStyle::FixedNewstyle {
            return Ok(Described::No);
        }
        let name = export.name.clone();
        let name = name.as_text();
        if self.machine.agreed().framing >= Framing::Structured {
            let request = MetaContextRequest {
                export: name,
                queries: Queries::NONE,
            };
            let contexts = &mut export.contexts;
            // A server without contexts rejects the option, which is fine.
            self.send(&OptionRequest::ListMetaContext(request), |event| {
                if let HandshakeEvent::MetaContext { name, .. } = event {
                    check_count(contexts, "metadata contexts")?;
                    contexts.push(name.into());
                }
                Ok(())
            })?;
        }
        let request = InfoRequest {
            export: name,
            requests: [InfoType::DESCRIPTION, InfoType::BLOCK_SIZE][..].into(),
        };
        let description = &mut export.description;
        let mut sizes = None;
        let answer = self.send(&OptionRequest::Info(request), |event| {
            match event {
                HandshakeEvent::Info(Info::Description(text)) => *description = text.into(),
                HandshakeEvent::Info(Info::BlockSize(stated)) => sizes = Some(stated),
                _ => {}
            }
            Ok(())
        });
        let answer = match answer {
            // It does not know the option, perhaps.
            Err(error) if HungUp::at(&error, OptionType::INFO) => return Ok(Described::No),
            answer => answer?,
        };
        match answer {
            None => {
                export.take(self.machine.agreed());
                export.block_sizes = sizes;
                // nbd-server sends a size of zero unless the export is opened.
                match export.size {
                    0 => Ok(Described::No),
                    _ => Ok(Described::Yes),
                }
            }
            Some(refusal) if refusal.error == OptionReplyType::ERR_UNSUP => Ok(Described::No),
            Some(Refusal { error, message }) => {
                let message = Some(message.as_str().into());
                Ok(Described::Refused(refused(error.into(), message, name)))
            }
        }
    }

    /// Sends an option and handles its replies; returns the error that ended it, if
    /// any.
    fn send(
        &mut self,
        option: &OptionRequest<'_>,
        mut each: impl FnMut(HandshakeEvent<'_>) -> Result<()>,
    ) -> Result<Option<Refusal>> {
        let mut outgoing = Vec::new();
        self.machine.send(option, &mut outgoing)?;
        self.link.send(&outgoing)?;
        let mut answer = None;
        while answer.is_none() {
            self.event(|event| {
                match event {
                    HandshakeEvent::Ack(_) => answer = Some(None),
                    HandshakeEvent::Refused { error, message, .. } => {
                        let message = message.map_or(String::new(), |text| text.to_string());
                        answer = Some(Some(Refusal { error, message }));
                    }
                    event => each(event)?,
                }
                Ok(())
            })?;
        }
        Ok(answer.flatten())
    }

    /// Waits for one event and handles it.
    fn event(&mut self, handle: impl FnOnce(HandshakeEvent<'_>) -> Result<()>) -> Result<()> {
        loop {
            let mut input = self.link.inbox.unread();
            let step = self.machine.receive(&mut input)?;
            let left = input.len();
            match step {
                Step::Event(event) => {
                    handle(event)?;
                    self.link.inbox.keep_last(left);
                    return Ok(());
                }
                Step::Read(_) => {
                    self.link.inbox.keep_last(left);
                    if !self.link.fill()? {
                        self.machine.end_of_input().map_err(closed)?;
                    }
                }
                other => return Err(other.unexpected().into()),
            }
        }
    }

    /// Sends `NBD_OPT_ABORT`, if the handshake style has it.
    fn abort(mut self) -> Result<()> {
        if self.machine.agreed().style == HandshakeStyle::FixedNewstyle {
            let mut outgoing = Vec::new();
            // The server may have closed the connection already.
            if self
                .machine
                .send(&OptionRequest::Abort, &mut outgoing)
                .is_ok()
            {
                let _ = self.link.send(&outgoing);
            }
        }
        Ok(())
    }
}
