//! `nbd bench`: how fast an export is read or written.
//!
//! Each connection has a thread, which keeps `--depth` requests in flight. The
//! latency of a request is the time from its submission until its reply is
//! complete; the clock is read once for each batch. Data that is read is not
//! copied.

mod histogram;
mod pipe;
mod report;
mod worker;

use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::{Framing, Negotiated};
use nbd_tools::size;

use crate::address;
use crate::args::{self, Mode};
use crate::connection::{self, Opened};
use crate::{stderr, stdout};
use histogram::{Histogram, Snapshot};
use report::Report;
use worker::Worker;

/// What is measured.
pub struct Load {
    mode: Mode,
    /// The length of a request, in bytes.
    size: u64,
    depth: u16,
    connections: u16,
    framing: Framing,
}

/// When to stop.
pub struct Stop {
    after: Option<Duration>,
    /// For each connection.
    requests: u64,
    /// Another connection has failed.
    failed: AtomicBool,
}

impl Stop {
    fn is_due(&self, elapsed: Duration) -> bool {
        self.after.is_some_and(|after| elapsed >= after) || self.failed.load(Ordering::Relaxed)
    }
}

/// The most memory of all requests in flight, in bytes.
const MAX_MEMORY: u64 = 4 << 30;

pub fn run(args: &args::Bench, common: &args::Common) -> Result<()> {
    let settings = common.settings();
    if settings.record.is_some() {
        bail!("--record cannot be used with bench, because it would slow it down");
    }
    let uri = address::parse(&args.uri)?;
    let opened: Vec<Opened> = (0..args.connections)
        .map(|_| connection::negotiate(&uri, common.framing(), &[], &settings))
        .collect::<Result<_>>()
        .with_context(|| uri.to_string())?;
    let negotiated = &opened.first().context("no connection")?.negotiated;
    check(args, negotiated).with_context(|| uri.to_string())?;
    let load = Load {
        mode: args.mode,
        size: args.size,
        depth: args.depth,
        connections: args.connections,
        framing: negotiated.framing,
    };
    if load.mode.writes() {
        stderr::warn(format_args!("this overwrites the data in {uri}"));
    }
    let report = measure(&load, opened, args).with_context(|| uri.to_string())?;
    let text = if args.json {
        format!("{}\n", report.json())
    } else {
        report.text()
    };
    stdout::write(text.as_bytes())
}

fn check(args: &args::Bench, negotiated: &Negotiated) -> Result<()> {
    let sizes = negotiated.constraints();
    let exact = |bytes: u32| size::exact(bytes.into());
    if args.size == 0 {
        bail!("the size of a request must not be 0");
    }
    if !args.size.is_multiple_of(sizes.minimum.into()) {
        bail!(
            "the size of a request must be a multiple of {}",
            exact(sizes.minimum)
        );
    }
    if args.size > u64::from(sizes.maximum) {
        bail!("the server permits at most {}", exact(sizes.maximum));
    }
    if args.size > negotiated.size {
        bail!("the export has only {}", size::exact(negotiated.size));
    }
    let requests = u64::from(args.depth).saturating_mul(args.connections.into());
    if args.size.saturating_mul(requests) > MAX_MEMORY {
        bail!("size, depth and connections need more than 4G of memory");
    }
    if args.mode.writes() && negotiated.flags.contains(TransmissionFlags::READ_ONLY) {
        bail!("the export is read-only");
    }
    Ok(())
}

fn measure<'l>(load: &'l Load, opened: Vec<Opened>, args: &args::Bench) -> Result<Report<'l>> {
    let histograms: Vec<_> = opened.iter().map(|_| Histogram::new()).collect();
    let start = Instant::now();
    let stop = Stop {
        after: args.requests.is_none().then_some(args.seconds),
        requests: args.requests.unwrap_or(u64::MAX),
        failed: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        // Closed when the last worker has ended.
        let (alive, ended) = channel::<()>();
        let mut threads = Vec::new();
        for ((opened, histogram), number) in opened.into_iter().zip(&histograms).zip(0..) {
            let alive = alive.clone();
            let stop = &stop;
            threads.push(scope.spawn(move || {
                let _alive = alive;
                let worker = Worker::new(opened, number, load, stop, histogram)?;
                let result = worker.run();
                if result.is_err() {
                    stop.failed.store(true, Ordering::Relaxed);
                }
                result
            }));
        }
        drop(alive);
        watch(load, &histograms, &ended);
        for thread in threads {
            let result = thread.join();
            result.map_err(|_| anyhow!("a connection ended unexpectedly"))??;
        }
        anyhow::Ok(())
    })?;
    Ok(Report {
        load,
        times: Snapshot::of(histograms.iter()),
        elapsed: start.elapsed(),
    })
}

/// Waits for the end; on a terminal, prints a line every second.
fn watch(load: &Load, histograms: &[Histogram], ended: &Receiver<()>) {
    let shown = io::stderr().is_terminal();
    let mut before = Snapshot::of(histograms.iter());
    let mut since = Instant::now();
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(Duration::from_secs(1)) {
        if !shown {
            continue;
        }
        let all = Snapshot::of(histograms.iter());
        let report = Report {
            load,
            times: all.since(&before),
            elapsed: since.elapsed(),
        };
        stderr::line(report.line());
        (before, since) = (all, Instant::now());
    }
}
