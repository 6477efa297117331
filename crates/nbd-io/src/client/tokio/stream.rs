//! Opening connections.

use std::io;
use std::sync::Arc;

use ::tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use ::tokio::net::TcpStream;
#[cfg(unix)]
use ::tokio::net::UnixStream;
use nbd_codec::uri::{Host, Transport, Uri};

use super::super::core::handshake::{Handshake, Opened, queries};
use super::super::core::link::Link;
use super::super::core::reader::Reader;
use super::super::core::table::Table;
use super::super::{Error, Options};
use super::engine::{Driver, Tokio};
#[cfg(unix)]
use super::socket;
use crate::duplex::Duplex;

type Connection = Result<Arc<Link<Tokio>>, Error>;

/// Connects to the export of a URI.
pub(super) async fn connect(uri: &Uri, options: &Options) -> Connection {
    let connecting = async {
        match uri.transport() {
            Transport::Tcp { host, port } => {
                let stream = tcp(host, *port).await?;
                stream.set_nodelay(true)?;
                if uri.tls_required() {
                    return over_tls(stream, uri, options).await;
                }
                plain(
                    stream,
                    |stream| Ok(stream.into_split()),
                    uri.export(),
                    options,
                )
                .await
            }
            #[cfg(unix)]
            other => {
                let stream = socket::connect(other).await?;
                if uri.tls_required() {
                    return over_tls(stream, uri, options).await;
                }
                let split = |stream: UnixStream| socket::split(stream.into_std()?);
                plain(stream, split, uri.export(), options).await
            }
            #[cfg(not(unix))]
            _ => Err(Error::Unsupported("the transport of the URI")),
        }
    };
    in_time(options, connecting).await
}

/// Negotiates over any stream; under TLS if the options say so.
pub(super) async fn over<S>(stream: S, export: &str, options: &Options) -> Connection
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    #[cfg(feature = "tls")]
    if let Some(tls) = &options.tls {
        let session = tls.session(None)?;
        return in_time(options, secured(stream, session, export, options)).await;
    }
    let split = |stream| Ok(::tokio::io::split(stream));
    in_time(options, plain(stream, split, export, options)).await
}

async fn in_time(options: &Options, connecting: impl Future<Output = Connection>) -> Connection {
    let result = ::tokio::time::timeout(options.connect_timeout, connecting).await;
    result.unwrap_or(Err(Error::TimedOut))
}

async fn plain<S, R, W>(
    mut stream: S,
    split: impl FnOnce(S) -> io::Result<(R, W)>,
    export: &str,
    options: &Options,
) -> Connection
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let contexts = queries(options);
    let mut handshake = Handshake::new(export, &contexts, options, false)?;
    handshake.run(&mut Async(&mut stream)).await?;
    let (reader, writer) = split(stream)?;
    Ok(start(
        reader,
        Box::new(writer),
        handshake.finish()?,
        options,
    ))
}

async fn over_tls<S>(stream: S, uri: &Uri, options: &Options) -> Connection
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    #[cfg(feature = "tls")]
    {
        let session = super::super::tls::for_uri(uri, options)?;
        secured(stream, session, uri.export(), options).await
    }
    #[cfg(not(feature = "tls"))]
    {
        let _ = (stream, uri, options);
        Err(Error::Unsupported("TLS: the feature `tls` is off"))
    }
}

#[cfg(feature = "tls")]
async fn secured<S>(
    mut stream: S,
    session: super::super::tls::Session,
    export: &str,
    options: &Options,
) -> Connection
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let contexts = queries(options);
    let mut handshake = Handshake::new(export, &contexts, options, true)?;
    handshake.run(&mut Async(&mut stream)).await?;
    let connector = tokio_rustls::TlsConnector::from(session.config);
    let mut stream = match connector.connect(session.name, stream).await {
        Ok(stream) => stream,
        Err(error) => {
            handshake.connector.tls_failed();
            return Err(error.into());
        }
    };
    handshake.connector.tls_established()?;
    handshake.run(&mut Async(&mut stream)).await?;
    let (reader, writer) = ::tokio::io::split(stream);
    Ok(start(
        reader,
        Box::new(writer),
        handshake.finish()?,
        options,
    ))
}

/// Starts the transmission phase.
fn start<R>(
    reader: R,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    opened: Opened,
    options: &Options,
) -> Arc<Link<Tokio>>
where
    R: AsyncRead + Send + Unpin + 'static,
{
    let table = Table::new(opened.negotiated, options.in_flight, options.timeout);
    let engine = Tokio::new(writer);
    let link = Link::new(table, engine, opened.negotiated, opened.contexts);
    let link = Arc::new(link);
    let driver = Driver::new(
        link.clone(),
        reader,
        Reader::new(opened.inbox),
        options.timeout,
    );
    ::tokio::spawn(driver);
    link
}

async fn tcp(host: &Host, port: u16) -> io::Result<TcpStream> {
    let host = host.to_string();
    TcpStream::connect((host.as_str(), port)).await
}

/// A stream during the handshake.
struct Async<'s, S>(&'s mut S);

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for Async<'_, S> {
    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).await
    }

    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await?;
        self.0.flush().await
    }
}
