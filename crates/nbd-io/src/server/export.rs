//! Exports, and which clients may have them.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use nbd_codec::server::MetaContext;
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::option_reply::BlockSizes;

use super::device::{Device, has_status, offered, read_only};

/// Where a client is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Peer {
    /// A TCP client.
    Tcp(SocketAddr),
    /// A client on a Unix socket.
    Unix,
    /// Anything else, in the words of the program that accepted it.
    Other(String),
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("Unix socket"),
            Self::Other(name) => f.write_str(name),
        }
    }
}

/// What is known of a client when it names an export.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Client {
    /// Where it is.
    pub peer: Peer,
    /// Whether TLS protects the connection.
    pub tls: bool,
    /// Its certificate chain, its own first, as the TLS configuration verified it.
    /// Empty without TLS and for clients without a certificate.
    #[cfg(feature = "tls")]
    pub certificates: Vec<rustls::pki_types::CertificateDer<'static>>,
}

impl Client {
    pub(super) fn new(peer: Peer) -> Self {
        Self {
            peer,
            tls: false,
            #[cfg(feature = "tls")]
            certificates: Vec::new(),
        }
    }
}

type Access = dyn Fn(&Client) -> bool + Send + Sync;

/// A device with a name, and who may have it. A clone shares the device.
#[derive(Clone)]
pub struct Export {
    name: String,
    description: String,
    hidden: bool,
    read_only: bool,
    multi_conn: bool,
    requires_tls: bool,
    access: Option<Arc<Access>>,
    device: Arc<dyn AnyDevice>,
}

impl Export {
    /// An export that every client may have and list.
    #[must_use]
    pub fn new(name: impl Into<String>, device: impl Device) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            hidden: false,
            read_only: false,
            multi_conn: true,
            requires_tls: false,
            access: None,
            device: Arc::new(device),
        }
    }

    /// A text for people that clients can ask for.
    #[must_use]
    pub fn description(mut self, text: impl Into<String>) -> Self {
        self.description = text.into();
        self
    }

    /// Leaves the export out of the reply to `LIST`. Clients that know its name get it.
    #[must_use]
    pub fn hidden(mut self) -> Self {
        self.hidden = true;
        self
    }

    /// Offers reading only, whatever the device implements.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Does not offer several connections of one client (`CAN_MULTI_CONN`): a flush
    /// on one of them does not cover writes on another. The default offers them,
    /// because all connections share the device. Needed where the function of
    /// [`Exports::on_demand`] makes a device of its own for each connection.
    #[must_use]
    pub fn single_connection(mut self) -> Self {
        self.multi_conn = false;
        self
    }

    /// Only with TLS (`Config::tls`, feature `tls`). Without it the export
    /// is not listed either.
    #[must_use]
    pub fn requires_tls(mut self) -> Self {
        self.requires_tls = true;
        self
    }

    /// Only for clients for which `access` returns true. For others it is as if
    /// there were no such export.
    #[must_use]
    pub fn access(mut self, access: impl Fn(&Client) -> bool + Send + Sync + 'static) -> Self {
        self.access = Some(Arc::new(access));
        self
    }

    pub(super) fn is_permitted(&self, client: &Client) -> bool {
        self.access.as_ref().is_none_or(|access| access(client))
    }

    pub(super) fn device(&self) -> Arc<dyn AnyDevice> {
        Arc::clone(&self.device)
    }

    /// Calls `take` with the description of the export; payloads have at most
    /// `maximum` bytes, a power of two.
    pub(super) fn describe<T>(
        &self,
        maximum: u32,
        take: impl FnOnce(&nbd_codec::server::Export<'_>) -> T,
    ) -> T {
        let mut flags = self.device.offered();
        if self.read_only {
            flags = read_only(flags);
        }
        if self.multi_conn {
            flags |= TransmissionFlags::CAN_MULTI_CONN;
        }
        let mut export = nbd_codec::server::Export::new(&self.name, self.device.size(), flags);
        export.description = &self.description;
        export.requires_tls = self.requires_tls;
        export.contexts = self.device.contexts();
        export.block_sizes = self.device.block_sizes();
        let sizes = &mut export.block_sizes;
        sizes.maximum = sizes.maximum.min(maximum.max(sizes.preferred));
        take(&export)
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A device of any type. Requests do not pass through it: it is asked once for each
/// connection.
pub(super) trait AnyDevice: Send + Sync {
    fn size(&self) -> u64;
    fn offered(&self) -> TransmissionFlags;
    fn contexts(&self) -> &[MetaContext<'_>];
    fn block_sizes(&self) -> BlockSizes;

    #[cfg(feature = "tokio")]
    fn transmit(self: Arc<Self>, connection: super::tokio::Connection) -> super::tokio::Running;

    #[cfg(feature = "blocking")]
    fn execute(&self, work: super::receive::Work) -> super::execute::Answer;
}

impl<D: Device> AnyDevice for D {
    fn size(&self) -> u64 {
        self.size()
    }

    fn offered(&self) -> TransmissionFlags {
        offered(self)
    }

    fn contexts(&self) -> &[MetaContext<'_>] {
        if has_status(self) {
            self.contexts()
        } else {
            &[]
        }
    }

    fn block_sizes(&self) -> BlockSizes {
        self.block_sizes()
    }

    #[cfg(feature = "tokio")]
    fn transmit(self: Arc<Self>, connection: super::tokio::Connection) -> super::tokio::Running {
        connection.transmit(move |work| {
            let device = Arc::clone(&self);
            async move { super::execute::execute(&*device, work).await }
        })
    }

    #[cfg(feature = "blocking")]
    fn execute(&self, work: super::receive::Work) -> super::execute::Answer {
        crate::threads::block_on(super::execute::execute(self, work))
    }
}

type Made = Pin<Box<dyn Future<Output = Option<Export>> + Send>>;
type OnDemand = dyn Fn(String, Client) -> Made + Send + Sync;

/// The exports of a server.
///
/// ```
/// use nbd_io::server::{Export, Exports};
/// # use nbd_io::server::{Device, ReadReply};
/// # struct Disk;
/// # impl Device for Disk {
/// #     fn size(&self) -> u64 { 0 }
/// #     async fn read(&self, _: u64, _: &mut ReadReply) -> std::io::Result<()> { Ok(()) }
/// # }
///
/// let exports = Exports::new()
///     .with(Export::new("disk", Disk).description("for everybody"))
///     .with(Export::new("secret", Disk).hidden().access(|client| client.tls))
///     .on_demand(|name, _client| async move {
///         let number = name.strip_prefix("snapshot-")?;
///         let _: u32 = number.parse().ok()?;
///         Some(Export::new(name, Disk).read_only())
///     });
/// # let _ = exports;
/// ```
#[derive(Clone, Default)]
pub struct Exports {
    list: Vec<Export>,
    on_demand: Option<Arc<OnDemand>>,
}

impl Exports {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an export. The first that is not hidden is also the default export,
    /// whose name is empty.
    #[must_use]
    pub fn with(mut self, export: Export) -> Self {
        self.list.push(export);
        self
    }

    /// Calls `make` for names that were not added: it opens the export, or
    /// returns `None`. It is called once for each connection that asks for such an
    /// export, before the client has it, with the name that the client sent: any
    /// text of up to 4096 bytes. `LIST` does not have these exports.
    #[must_use]
    pub fn on_demand<F>(
        mut self,
        make: impl Fn(String, Client) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Option<Export>> + Send + 'static,
    {
        self.on_demand = Some(Arc::new(move |name, client| Box::pin(make(name, client))));
        self
    }

    /// The exports that a client may know of.
    pub(super) fn listed(&self, client: &Client) -> impl Iterator<Item = &Export> {
        let visible = |export: &&Export| !export.hidden && export.is_permitted(client);
        self.list.iter().filter(visible)
    }

    /// The export of this name, if the client may have it.
    pub(super) async fn find(&self, name: &str, client: &Client) -> Option<Export> {
        let named = self.list.iter().find(|export| export.name == name);
        let default = || self.list.iter().find(|it| name.is_empty() && !it.hidden);
        let export = match (named.or_else(default), &self.on_demand) {
            (Some(export), _) => export.clone(),
            (None, Some(make)) => make(name.to_owned(), client.clone()).await?,
            (None, None) => return None,
        };
        export.is_permitted(client).then_some(export)
    }
}

impl fmt::Debug for Exports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exports")
            .field("list", &self.list)
            .finish_non_exhaustive()
    }
}
