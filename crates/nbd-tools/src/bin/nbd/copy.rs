//! `nbd copy`. Workers, each a thread with its own connections, take parts from a
//! plan until there are none. If a server does not advertise `CAN_MULTI_CONN`,
//! there is one worker.

mod download;
mod plan;
mod shared;
mod side;
mod source;
mod stream;
mod target;
mod upload;

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::align::round_down;
use crate::args;
use crate::progress::Progress;
use download::Download;
use plan::Plan;
use shared::Shared;
use side::Side;
use source::Source;
use target::Target;

/// The most workers: more were not faster with any server that was measured.
const MAX_WORKERS: usize = 4;

pub fn run(args: &args::Copy, common: &args::Common) -> Result<()> {
    let from = Side::parse(&args.source)?;
    let to = Side::parse(&args.destination)?;
    let recorded = common.settings().record.is_some();
    if let (Side::Export(_), Side::Export(_), true) = (&from, &to, recorded) {
        bail!("--record records one session, but this copy has two");
    }
    if from.is_stream() || to.is_stream() {
        return stream::run(&from, &to, common);
    }
    let source = Source::open(&from, common).with_context(|| from.to_string())?;
    let size = source.size().with_context(|| from.to_string())?;
    let target = Target::open(&to, &source, size, common).with_context(|| to.to_string())?;

    let alignment = source.alignment().max(target.alignment());
    let chunk = round_down(source.chunk().min(target.chunk()), alignment);
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
        thread::spawn(move || run_additional(&shared, source, target, &common, &sender));
    }
    let first = Arc::clone(&shared);
    thread::spawn(move || work(&first, source, target, &sender));
    let result = wait(&shared, &receiver);
    // Workers that have not ended yet have it, too.
    shared.progress.clear();
    result
}

/// How many workers there are.
fn workers(source: &Source, target: &Target) -> usize {
    // From file to file, one worker is enough: there is no server to wait for.
    let connected = source.share().is_none() || target.share().is_none();
    if connected && source.is_shared() && target.is_shared() {
        thread::available_parallelism()
            .map_or(1, NonZero::get)
            .min(MAX_WORKERS)
    } else {
        1
    }
}

/// Runs another worker than the first one. If it cannot connect, because a server
/// limits its connections, the others copy its share. They do not wait for it.
fn run_additional(
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
    if same && shared.plan.add_worker() {
        work(shared, source, target, sender);
    }
}

/// Copies until nothing is left.
fn work(shared: &Arc<Shared>, source: Source, target: Target, sender: &Sender<Result<()>>) {
    let result = match source {
        Source::File(file) => upload::run(shared, &file, target),
        Source::Export {
            session,
            allocation,
        } => Download::new(Arc::clone(shared), session, allocation, target).run(),
    };
    match &result {
        Ok(()) => shared.plan.remove_worker(),
        Err(_) => shared.plan.stop(),
    }
    // Fails if the main thread has ended because another worker failed.
    let _ = sender.send(result);
}

/// Waits for the workers. Those that are still connecting, or wait for a server
/// when another worker has failed, end with the program.
fn wait(shared: &Shared, results: &Receiver<Result<()>>) -> Result<()> {
    while !shared.plan.is_done() {
        match results.recv() {
            Ok(result) => result?,
            Err(_) => bail!("{}: reading ended unexpectedly", shared.from),
        }
    }
    shared.check()
}
