//! Asks a server about itself and its exports, option by option, without
//! opening one.

use anyhow::{Context, Result, bail};
use nbd_codec::client::Handshake;
use nbd_codec::client::handshake::Event;
use nbd_codec::uri::Uri;
use nbd_codec::wire::flags::{ClientFlags, TransmissionFlags};
use nbd_codec::wire::greeting::Greeting;
use nbd_codec::wire::number::{InfoType, OptionReplyType};
use nbd_codec::wire::option::{InfoRequest, MetaContextRequest, OptionRequest, Queries};
use nbd_codec::wire::option_reply::{BlockSizes, Info};
use nbd_codec::{Framing, Limits, Negotiated, Style};

use crate::connection::{self, Link, lost, refused};
use crate::socket::Settings;

/// What a server says of itself and of some of its exports.
pub struct Server {
    pub style: Style,
    pub tls: bool,
    pub framing: Framing,
    pub exports: Vec<Export>,
}

/// What a server says of an export.
pub struct Export {
    pub name: String,
    pub uri: Uri,
    /// Empty if there is none.
    pub description: String,
    pub size: u64,
    pub flags: TransmissionFlags,
    /// `None` if the server stated none.
    pub block_sizes: Option<BlockSizes>,
    /// All metadata contexts the server has for it.
    pub contexts: Vec<String>,
}

/// Describes the export of `uri`.
pub fn one(uri: &Uri, framing: Framing, settings: &Settings) -> Result<Server> {
    let mut haggle = Haggle::start(uri, framing, settings)?;
    let mut server = haggle.server();
    let mut export = Export::new(uri.export().into(), uri.clone());
    let described = haggle.inquire(&mut export)?;
    haggle.abort()?;
    if !described {
        export.open(framing, settings)?;
    }
    server.exports.push(export);
    Ok(server)
}

/// Describes every export that the server of `uri` lists.
pub fn all(uri: &Uri, framing: Framing, settings: &Settings) -> Result<Server> {
    let mut haggle = Haggle::start(uri, framing, settings)?;
    let mut server = haggle.server();
    if server.style != Style::FixedNewstyle {
        bail!(
            "the server speaks {}, which cannot list exports; `nbd info` describes one",
            server.style
        );
    }
    let mut listed = Vec::new();
    let answer = haggle.ask(&OptionRequest::List, |event| {
        if let Event::Server { name, description } = event {
            listed.push((name.to_string(), description.to_string()));
        }
    })?;
    if let Some(refusal) = answer {
        bail!("the server does not list its exports ({refusal})");
    }
    // Until the server turns out not to describe an export.
    let mut haggle = Some(haggle);
    for (name, description) in listed {
        let mut export = Export::new(name.clone(), of_export(uri, &name)?);
        let inquired = haggle.as_mut().map(|haggle| haggle.inquire(&mut export));
        let described = match inquired.transpose() {
            Ok(Some(true)) => Ok(()),
            Ok(_) => {
                haggle.take().map_or(Ok(()), Haggle::abort)?;
                export.open(framing, settings)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = described {
            eprintln!("nbd: warning: {error:#}");
            continue;
        }
        if export.description.is_empty() {
            export.description = description;
        }
        server.exports.push(export);
    }
    haggle.map_or(Ok(()), Haggle::abort)?;
    Ok(server)
}

/// The URI of another export of the same server.
fn of_export(uri: &Uri, export: &str) -> Result<Uri> {
    let other = uri.clone().with_export(export);
    other.with_context(|| format!("the server lists an export with an impossible name, {export:?}"))
}

impl Export {
    fn new(name: String, uri: Uri) -> Self {
        Self {
            name,
            uri,
            description: String::new(),
            size: 0,
            flags: TransmissionFlags::NONE,
            block_sizes: None,
            contexts: Vec::new(),
        }
    }

    /// Opens an export that the server does not describe in another way: on a
    /// connection of its own, where there is a fallback for everything.
    fn open(&mut self, framing: Framing, settings: &Settings) -> Result<()> {
        let connection = connection::open(&self.uri, framing, &[], settings)?;
        self.take(connection.session.negotiated());
        connection.session.close()
    }

    fn take(&mut self, negotiated: &Negotiated) {
        self.size = negotiated.size;
        self.flags = negotiated.flags;
        self.block_sizes = negotiated.block_sizes;
    }
}

/// Why an option was refused: the kind, and what the server said.
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

/// A handshake under way.
struct Haggle {
    link: Link,
    machine: Handshake,
}

impl Haggle {
    /// Up to where the server can be asked about its exports, with the best
    /// framing it has up to `framing`: which contexts there are may depend on
    /// it.
    fn start(uri: &Uri, framing: Framing, settings: &Settings) -> Result<Self> {
        let mut this = Self {
            link: Link::connect(uri, settings)?,
            machine: Handshake::new(false, Limits::DEFAULT),
        };
        let mut greeted = None;
        while greeted.is_none() {
            this.event(|event| {
                if let Event::Greeting(greeting) = event {
                    greeted = Some(greeting);
                }
            })?;
        }
        if let Some(Greeting::Newstyle(_)) = greeted {
            let mut flags = Vec::new();
            this.machine
                .send_client_flags(ClientFlags::KNOWN, &mut flags)?;
            this.link.send(&flags)?;
        }
        if this.machine.agreed().style == Style::FixedNewstyle {
            let extended = framing == Framing::Extended
                && this.ask(&OptionRequest::ExtendedHeaders, |_| {})?.is_none();
            if !extended && framing >= Framing::Structured {
                this.ask(&OptionRequest::StructuredReply, |_| {})?;
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

    /// Asks about an export; false if the server has no way to be asked, or
    /// the answer is not to be relied on.
    fn inquire(&mut self, export: &mut Export) -> Result<bool> {
        if self.machine.agreed().style != Style::FixedNewstyle {
            return Ok(false);
        }
        let name = export.name.clone();
        let name = name.as_str();
        if self.machine.agreed().framing >= Framing::Structured {
            let request = MetaContextRequest {
                export: name.into(),
                queries: Queries::NONE,
            };
            let contexts = &mut export.contexts;
            // A server without contexts refuses the option: so be it.
            self.ask(&OptionRequest::ListMetaContext(request), |event| {
                if let Event::MetaContext { name, .. } = event {
                    contexts.push(name.to_string());
                }
            })?;
        }
        let request = InfoRequest {
            export: name.into(),
            requests: [InfoType::DESCRIPTION, InfoType::BLOCK_SIZE][..].into(),
        };
        let description = &mut export.description;
        let mut sizes = None;
        let answer = self.ask(&OptionRequest::Info(request), |event| match event {
            Event::Info(Info::Description(text)) => *description = text.to_string(),
            Event::Info(Info::BlockSize(stated)) => sizes = Some(stated),
            _ => {}
        })?;
        match answer {
            None => {
                export.take(self.machine.agreed());
                export.block_sizes = sizes;
                // nbd-server knows the size only of an export that is open, and
                // says zero of any other.
                Ok(export.size != 0)
            }
            Some(refusal) if refusal.error == OptionReplyType::ERR_UNSUP => Ok(false),
            Some(Refusal { error, message }) => {
                Err(refused(error.into(), Some(message.as_str().into()), name))
            }
        }
    }

    /// Sends an option and takes its replies; what refused it, if anything.
    fn ask(
        &mut self,
        option: &OptionRequest<'_>,
        mut each: impl FnMut(Event<'_>),
    ) -> Result<Option<Refusal>> {
        let mut outgoing = Vec::new();
        self.machine.send(option, &mut outgoing)?;
        self.link.send(&outgoing)?;
        let mut answer = None;
        while answer.is_none() {
            self.event(|event| match event {
                Event::Ack(_) => answer = Some(None),
                Event::Refused { error, message, .. } => {
                    let message = message.map_or(String::new(), |text| text.to_string());
                    answer = Some(Some(Refusal { error, message }));
                }
                event => each(event),
            })?;
        }
        Ok(answer.flatten())
    }

    /// Takes one event.
    fn event(&mut self, handle: impl FnOnce(Event<'_>)) -> Result<()> {
        loop {
            let mut input = self.link.inbox.unread();
            let event = self.machine.receive(&mut input)?;
            let left = input.len();
            if let Some(event) = event {
                handle(event);
                self.link.inbox.keep_last(left);
                return Ok(());
            }
            self.link.inbox.keep_last(left);
            if !self.link.fill()? {
                self.machine.end_of_input().map_err(lost)?;
            }
        }
    }

    /// Ends the session, if there is one that can be ended in good order.
    fn abort(mut self) -> Result<()> {
        if self.machine.agreed().style == Style::FixedNewstyle {
            let mut outgoing = Vec::new();
            self.machine.send(&OptionRequest::Abort, &mut outgoing)?;
            // The server need not be there any more to hear it.
            let _ = self.link.send(&outgoing);
        }
        Ok(())
    }
}
