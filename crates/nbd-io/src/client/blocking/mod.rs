//! The client for threads.
//!
//! | file | what it has |
//! |---|---|
//! | `engine` | writing commands and reading replies, by the threads that call |
//! | `stream` | opening connections |

mod engine;
mod stream;

use std::io;
use std::sync::Arc;

use nbd_codec::uri::Uri;

use self::engine::Blocking;
use super::core::pool::{Connecting, Pool};
use super::{Error, Options};
use crate::threads::{Stream, block_on};

/// A client of an export, for threads.
///
/// It is cheap to clone, and any number of threads can call it at the same time.
#[doc = include_str!("../client.md")]
///
/// # Threads
///
/// The client has no thread of its own. Of the threads that wait, one reads replies and wakes
/// the others; when its own has come, another one takes its place. With one command at a time
/// a call is one write and one read.
///
/// ```no_run
/// use nbd_io::blocking::Client;
///
/// let disk = Client::connect("nbd://localhost/disk")?;
/// disk.write_at(0, b"some data of any length")?;
/// disk.flush()?;
/// let data = disk.read_at(0, 512)?;
/// # let _ = data;
/// # Ok::<(), nbd_io::client::Error>(())
/// ```
#[derive(Clone)]
pub struct Client {
    pool: Arc<Pool<Blocking>>,
}

impl Client {
    /// Connects to the export of an NBD URI, with the default [`Options`].
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn connect(uri: &str) -> Result<Self, Error> {
        Self::connect_with(uri, Options::new())
    }

    /// Connects to the export of an NBD URI.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn connect_with(uri: &str, options: Options) -> Result<Self, Error> {
        let uri = Uri::parse(uri)?;
        let options = Arc::new(options);
        let wanted = options.clone();
        Self::open(move || stream::connect(&uri, &wanted), &options)
    }

    /// Negotiates the export `export` over a stream. With such a stream there is one
    /// connection, and no reconnect.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn from_stream(stream: impl Stream, export: &str, options: Options) -> Result<Self, Error> {
        let link = stream::over(Arc::new(stream), export, &options)?;
        Ok(Self::new(Pool::over(link)))
    }

    /// Negotiates the export `export` over streams that `connect` opens: one for each
    /// connection, and others if these are lost.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn from_streams<S: Stream>(
        connect: impl Fn() -> io::Result<S> + Send + Sync + 'static,
        export: &str,
        options: Options,
    ) -> Result<Self, Error> {
        let options = Arc::new(options);
        let (export, wanted) = (export.to_owned(), options.clone());
        let connect = move || stream::over(Arc::new(connect()?), &export, &wanted);
        Self::open(connect, &options)
    }

    fn open(
        connect: impl Fn() -> stream::Connection + Send + Sync + 'static,
        options: &Options,
    ) -> Result<Self, Error> {
        let connect = Arc::new(connect);
        let connect = move || -> Connecting<Blocking> {
            let connect = connect.clone();
            Box::pin(async move { connect() })
        };
        Ok(Self::new(block_on(Pool::open(Box::new(connect), options))?))
    }

    fn new(pool: Pool<Blocking>) -> Self {
        let pool = Arc::new(pool);
        Self { pool }
    }
}

super::methods::methods! { (fn) |future| block_on(future) }
