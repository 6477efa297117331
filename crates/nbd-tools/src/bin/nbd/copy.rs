//! `nbd copy`. Workers, each a thread with connections of its own, take parts
//! from a plan until there is nothing left. Where a server does not say that
//! it may have several connections, there is one worker.

mod download;
mod plan;
mod shared;
mod side;
mod source;
mod target;
mod upload;

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::args;
use crate::progress::Progress;
use download::Download;
use plan::Plan;
use shared::Shared;
use side::Side;
use source::Source;
use target::Target;

/// More workers than that are not faster with any server that was tried.
const MOST_WORKERS: usize = 4;

pub fn run(args: &args::Copy, common: &args::Common) -> Result<()> {
    let from = Side::parse(&args.source)?;
    let to = Side::parse(&args.destination)?;
    let recorded = common.settings().record.is_some();
    if let (Side::Export(_), Side::Export(_), true) = (&from, &to, recorded) {
        bail!("--record writes down one session, and this copy has two");
    }
    let source = Source::open(&from, common).with_context(|| from.to_string())?;
    let size = source.size().with_context(|| from.to_string())?;
    let target = Target::open(&to, &source, size, common).with_context(|| to.to_string())?;

    let alignment = source.alignment().max(target.alignment());
    let chunk = source.chunk().min(target.chunk()) / alignment * alignment;
    let shared = Arc::new(Shared {
        plan: Plan::new(size, chunk.max(alignment), source.window()),
        from,
        to,
        size,
        alignment,
        progress: Progress::new("copy", size, true),
        copied: AtomicU64::new(0),
    });
    let workers = if recorded {
        1
    } else {
        workers(&source, &target)
    };
    let (sender, receiver) = channel();
    for _ in 1..workers {
        let (shared, sender) = (Arc::clone(&shared), sender.clone());
        let (source, target) = (source.share(), target.share());
        let common = common.clone();
        thread::spawn(move || help(&shared, source, target, &common, &sender));
    }
    let first = Arc::clone(&shared);
    thread::spawn(move || work(&first, source, target, &sender));
    watch(&shared, &receiver)
}

/// How many workers there are.
fn workers(source: &Source, target: &Target) -> usize {
    // From file to file there is nothing to wait for.
    let connected = source.share().is_none() || target.share().is_none();
    if connected && source.is_shared() && target.is_shared() {
        thread::available_parallelism()
            .map_or(1, NonZero::get)
            .min(MOST_WORKERS)
    } else {
        1
    }
}

/// A worker behind the first one. It is welcome, and not needed: without a
/// connection (a server may have a limit) the others do its part. Nobody waits
/// for it before it has one.
fn help(
    shared: &Arc<Shared>,
    source: Option<Source>,
    target: Option<Target>,
    common: &args::Common,
    sender: &Sender<Result<()>>,
) {
    let source = source.map_or_else(|| Source::open(&shared.from, common), Ok);
    let target = target.map_or_else(|| Target::connect(&shared.to, shared.size, common), Ok);
    let (Ok(source), Ok(target)) = (source, target) else {
        return;
    };
    let alignment = source.alignment().max(target.alignment());
    let same = source.size().is_ok_and(|size| size == shared.size) && alignment == shared.alignment;
    if same && shared.plan.enter() {
        work(shared, source, target, sender);
    }
}

/// Copies as long as there is something to copy.
fn work(shared: &Arc<Shared>, source: Source, target: Target, sender: &Sender<Result<()>>) {
    let result = match source {
        Source::File(file) => upload::run(shared, &file, target),
        Source::Export {
            session,
            allocation,
        } => Download::new(Arc::clone(shared), session, allocation, target).run(),
    };
    match &result {
        Ok(()) => shared.plan.leave(),
        Err(_) => shared.plan.stop(),
    }
    // Nobody listens where another worker has failed.
    let _ = sender.send(result);
}

/// Waits for the workers. Those that have no connection yet, or wait for a
/// server when another has failed, end with the program.
fn watch(shared: &Shared, results: &Receiver<Result<()>>) -> Result<()> {
    while !shared.plan.is_done() {
        match results.recv() {
            Ok(result) => result?,
            Err(_) => bail!("{}: reading ended unexpectedly", shared.from),
        }
    }
    shared.check()
}
