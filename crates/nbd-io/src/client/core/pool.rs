//! The connections of a client, and the policy for lost ones.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use nbd_codec::Negotiated;
use nbd_codec::wire::flags::TransmissionFlags;

use super::link::{Engine, Link};
use super::ranges::Ranges;
use super::table::Failure;
use super::wait::Turn;
use crate::client::{Change, Error, Options, Reconnect};
use crate::lock;

/// Opens one connection.
pub(crate) type Connect<E> = dyn Fn() -> Connecting<E> + Send + Sync;
pub(crate) type Connecting<E> =
    Pin<Box<dyn Future<Output = Result<Arc<Link<E>>, Error>> + Send + 'static>>;

/// The connections of a client.
pub(crate) struct Pool<E: Engine> {
    pub(super) lanes: Vec<Lane<E>>,
    /// `None` if the stream was the caller's, and there is no other.
    connect: Option<Box<Connect<E>>>,
    policy: Option<Reconnect>,
    pub(super) export: Mutex<Export>,
    pub(super) ranges: Arc<Ranges>,
    pub(super) unflushed: Unflushed,
    /// Held by a resize.
    pub(super) resize: Turn,
    disconnected: AtomicBool,
}

/// What the client knows of the export.
#[derive(Debug, Clone, Copy)]
pub(super) struct Export {
    pub(super) negotiated: Negotiated,
    /// The size that a resize under way asks for.
    pub(super) resizing: Option<u64>,
}

/// A place for one connection: the current one, or the one that is made in its place.
pub(super) struct Lane<E> {
    current: Mutex<Current<E>>,
    /// Held by the call that connects again.
    turn: Turn,
    /// How many calls use it.
    busy: AtomicUsize,
}

struct Current<E> {
    link: Arc<Link<E>>,
    /// Failed attempts to replace a lost connection.
    attempts: u32,
    /// How often all attempts have failed, and why the last ones have.
    outages: u64,
    reason: Option<Error>,
}

impl<E: Engine> Pool<E> {
    /// One connection over a stream that cannot be replaced.
    pub(crate) fn over(link: Arc<Link<E>>) -> Self {
        Self::new(vec![link], None, None)
    }

    /// Opens the connections.
    pub(crate) async fn open(connect: Box<Connect<E>>, options: &Options) -> Result<Self, Error> {
        let mut links = vec![connect().await?];
        let shared = |link: &Arc<Link<E>>| {
            let flags = link.negotiated.flags;
            flags.contains(TransmissionFlags::CAN_MULTI_CONN)
        };
        if links.iter().all(shared) {
            for _ in 1..options.connections {
                links.push(connect().await?);
            }
        }
        let pool = Self::new(links, Some(connect), options.reconnect);
        for lane in &pool.lanes {
            pool.check_export(&lane.link())?;
        }
        Ok(pool)
    }

    fn new(
        links: Vec<Arc<Link<E>>>,
        connect: Option<Box<Connect<E>>>,
        policy: Option<Reconnect>,
    ) -> Self {
        let negotiated = links.first().map(|link| link.negotiated);
        let none = || Negotiated::new(Default::default(), 0, TransmissionFlags::NONE);
        let lanes = links.into_iter().map(|link| Lane {
            current: Mutex::new(Current {
                link,
                attempts: 0,
                outages: 0,
                reason: None,
            }),
            turn: Turn::default(),
            busy: AtomicUsize::new(0),
        });
        Self {
            lanes: lanes.collect(),
            connect,
            policy,
            export: Mutex::new(Export {
                negotiated: negotiated.unwrap_or_else(none),
                resizing: None,
            }),
            ranges: Arc::default(),
            unflushed: Unflushed::default(),
            resize: Turn::default(),
            disconnected: AtomicBool::new(false),
        }
    }

    /// What was negotiated, with the current size.
    pub(crate) fn negotiated(&self) -> Negotiated {
        lock(&self.export).negotiated
    }

    /// How many connections there are.
    pub(crate) fn connections(&self) -> usize {
        self.lanes.len()
    }

    /// The contexts of the first connection.
    pub(crate) fn contexts(&self) -> Vec<crate::client::Context> {
        let first = self.lanes.first();
        first.map_or_else(Vec::new, |lane| lane.link().contexts.clone())
    }

    /// The lane with the fewest calls.
    pub(super) fn pick(&self) -> Result<Busy<'_, E>, Error> {
        if self.is_disconnected() {
            return Err(Error::Disconnected);
        }
        let lane = match self.lanes.as_slice() {
            [lane] => Some(lane),
            lanes => lanes
                .iter()
                .min_by_key(|lane| lane.busy.load(Ordering::Relaxed)),
        };
        let lane = lane.ok_or(Error::Disconnected)?;
        lane.busy.fetch_add(1, Ordering::Relaxed);
        Ok(Busy(lane))
    }

    /// After a failure of a call: `Ok` if there is another connection and the call is to be
    /// made again.
    pub(super) async fn recover(
        &self,
        lane: &Lane<E>,
        link: &Arc<Link<E>>,
        failure: Failure,
        resent: &mut u32,
    ) -> Result<(), Error> {
        let error = match failure {
            Failure::Lost(error) => error,
            Failure::Call(error) if self.policy.is_some() && error.is_shutdown() => error,
            Failure::Call(error) => return Err(error),
        };
        let (Some(policy), Some(connect)) = (self.policy, &self.connect) else {
            return Err(error);
        };
        if *resent >= policy.resends || self.is_disconnected() {
            return Err(error);
        }
        *resent = resent.saturating_add(1);
        let outages = lock(&lane.current).outages;
        let _turn = lane.turn.take().await;
        loop {
            let attempt = {
                let mut current = lock(&lane.current);
                if !Arc::ptr_eq(&current.link, link) {
                    return Ok(());
                }
                if current.outages != outages {
                    return Err(current.reason.clone().unwrap_or(error));
                }
                let attempt = current.attempts;
                current.attempts = attempt.saturating_add(1);
                attempt
            };
            self.unflushed.connection_lost();
            // Dropped here, the next call in turn goes on with the next attempt.
            E::sleep(policy.delay(attempt)).await;
            let result = connect().await.and_then(|link| {
                self.check_export(&link)?;
                Ok(link)
            });
            let mut current = lock(&lane.current);
            match result {
                _ if self.is_disconnected() => return Err(Error::Disconnected),
                Ok(link) => {
                    current.link = link;
                    current.attempts = 0;
                    return Ok(());
                }
                Err(error @ Error::ExportChanged(_)) => {
                    current.attempts = 0;
                    return Err(error);
                }
                Err(error) if current.attempts >= policy.attempts => {
                    current.attempts = 0;
                    current.outages = current.outages.wrapping_add(1);
                    current.reason = Some(error.clone());
                    return Err(error);
                }
                Err(_) => {}
            }
        }
    }

    /// Checks that a new connection has the export that the client knows.
    fn check_export(&self, link: &Link<E>) -> Result<(), Error> {
        let mut export = lock(&self.export);
        let (was, is) = (&export.negotiated, &link.negotiated);
        let resized = export.resizing == Some(is.size);
        let change = change(was, is, resized);
        let accepted = self.policy.is_some_and(|policy| policy.accept_changes);
        if let Some(change) = change
            && !accepted
        {
            E::close(link, Error::ExportChanged(change));
            return Err(Error::ExportChanged(change));
        }
        if change.is_some() || resized {
            export.negotiated = *is;
        }
        Ok(())
    }

    fn is_disconnected(&self) -> bool {
        self.disconnected.load(Ordering::Relaxed)
    }

    /// Ends all connections, and waits until they are closed.
    pub(crate) async fn disconnect(&self) {
        self.close();
        for lane in &self.lanes {
            lane.link().closed().await;
        }
    }

    fn close(&self) {
        self.disconnected.store(true, Ordering::Relaxed);
        for lane in &self.lanes {
            E::close(&lane.link(), Error::Disconnected);
        }
    }

    pub(super) fn strict_flush(&self) -> bool {
        self.policy.is_some_and(|policy| policy.strict_flush)
    }
}

impl<E: Engine> Drop for Pool<E> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<E> Lane<E> {
    pub(super) fn link(&self) -> Arc<Link<E>> {
        lock(&self.current).link.clone()
    }
}

/// A lane that a call uses.
pub(super) struct Busy<'p, E>(pub(super) &'p Lane<E>);

impl<E> Drop for Busy<'_, E> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How an export is less than it was.
fn change(was: &Negotiated, is: &Negotiated, resized: bool) -> Option<Change> {
    use TransmissionFlags as T;
    if was.size != is.size && !resized {
        let (was, is) = (was.size, is.size);
        return Some(Change::Size { was, is });
    }
    let refuses = T::READ_ONLY.intersection(is.flags);
    if !was
        .flags
        .difference(T::READ_ONLY)
        .difference(is.flags)
        .is_empty()
        || !was.flags.contains(refuses)
    {
        return Some(Change::Flags);
    }
    let (old, new) = (was.constraints(), is.constraints());
    if new.minimum > old.minimum || new.maximum < old.maximum {
        return Some(Change::BlockSizes);
    }
    if was.contexts.len() != is.contexts.len() || was.framing != is.framing {
        return Some(Change::Contexts);
    }
    None
}

/// Which writes no FLUSH has covered yet.
#[derive(Debug, Default)]
pub(super) struct Unflushed {
    answered: AtomicU64,
    flushed: AtomicU64,
    /// A connection was lost while there were some.
    suspect: AtomicBool,
}

impl Unflushed {
    /// A write without FUA was answered.
    pub(super) fn written(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// A FLUSH begins. Pass the result to `flushed` when it is answered.
    pub(super) fn flushing(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    pub(super) fn flushed(&self, covered: u64) {
        self.flushed.fetch_max(covered, Ordering::Relaxed);
    }

    fn connection_lost(&self) {
        if self.answered.load(Ordering::Relaxed) > self.flushed.load(Ordering::Relaxed) {
            self.suspect.store(true, Ordering::Relaxed);
        }
    }

    /// Whether writes may be lost; true once.
    pub(super) fn take_suspect(&self) -> bool {
        self.suspect.swap(false, Ordering::Relaxed)
    }
}
