//! The client for tokio.
//!
//! | file | what it has |
//! |---|---|
//! | `engine` | writing commands, and the task that reads replies |
//! | `socket` | Unix sockets that wake their task for replies only |
//! | `stream` | opening connections: transports, TLS, the handshake |

mod engine;
#[cfg(unix)]
mod socket;
mod stream;

use std::future::Future;
use std::io;
use std::sync::Arc;

use ::tokio::io::{AsyncRead, AsyncWrite};
use nbd_codec::uri::Uri;

use self::engine::Tokio;
use super::core::pool::{Connecting, Pool};
use super::{Error, Options};

/// A client of an export, for tokio.
///
/// It is cheap to clone, and any number of tasks can call it at the same time.
#[doc = include_str!("../client.md")]
///
/// # Progress
///
/// A task of the client reads replies, so the commands of all calls proceed even if some of
/// their futures are not polled. It runs on the runtime that the client was connected on;
/// when that runtime shuts down, calls fail with [`Error::Disconnected`].
///
/// ```no_run
/// # async fn run() -> Result<(), nbd_io::client::Error> {
/// use nbd_io::tokio::Client;
///
/// let disk = Client::connect("nbd://localhost/disk").await?;
/// disk.write_at(0, b"some data of any length").await?;
/// disk.flush().await?;
/// let (a, b) = tokio::try_join!(disk.read_at(0, 512), disk.read_at(4096, 512))?;
/// # let _ = (a, b);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    pool: Arc<Pool<Tokio>>,
}

impl Client {
    /// Connects to the export of an NBD URI, with the default [`Options`].
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn connect(uri: &str) -> Result<Self, Error> {
        Self::connect_with(uri, Options::new()).await
    }

    /// Connects to the export of an NBD URI.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn connect_with(uri: &str, options: Options) -> Result<Self, Error> {
        let uri = Arc::new(Uri::parse(uri)?);
        let options = Arc::new(options);
        let (to, wanted) = (uri, options.clone());
        let connect = move || -> Connecting<Tokio> {
            let (uri, options) = (to.clone(), wanted.clone());
            Box::pin(async move { stream::connect(&uri, &options).await })
        };
        let pool = Pool::open(Box::new(connect), &options).await?;
        Ok(Self::new(pool))
    }

    /// Negotiates the export `export` over a stream. With such a stream there is one
    /// connection, and no reconnect.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn from_stream<S>(stream: S, export: &str, options: Options) -> Result<Self, Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let link = stream::over(stream, export, &options).await?;
        Ok(Self::new(Pool::over(link)))
    }

    /// Negotiates the export `export` over streams that `connect` opens: one for each
    /// connection, and others if these are lost.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn from_streams<S, C, F>(
        connect: C,
        export: &str,
        options: Options,
    ) -> Result<Self, Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        C: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = io::Result<S>> + Send + 'static,
    {
        let options = Arc::new(options);
        let (export, wanted) = (Arc::<str>::from(export), options.clone());
        let connect = move || -> Connecting<Tokio> {
            let stream = connect();
            let (export, options) = (export.clone(), wanted.clone());
            Box::pin(async move { stream::over(stream.await?, &export, &options).await })
        };
        let pool = Pool::open(Box::new(connect), &options).await?;
        Ok(Self::new(pool))
    }

    fn new(pool: Pool<Tokio>) -> Self {
        let pool = Arc::new(pool);
        Self { pool }
    }
}

super::methods::methods! { (async fn) |future| future.await }
