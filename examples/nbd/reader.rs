//! Reads ranges of an export, several requests in flight, and hands over what
//! they brought in order.

use std::collections::VecDeque;
use std::ops::Range;

use anyhow::{Result, anyhow, bail};
use nbd_codec::client::{Event, Request};
use nbd_codec::wire::number::Cookie;

use crate::session::{Replies, Session, WINDOW, describe, explain};

/// The most that one request reads or writes, in bytes. Larger ones are not
/// faster, and what is in flight is memory.
pub const CHUNK: u64 = 1 << 20;

/// What one request brought.
pub struct Piece {
    pub offset: u64,
    pub data: Vec<u8>,
    /// Parts of `data`, by their place in it, that the server has as holes.
    pub holes: Vec<Range<usize>>,
}

/// The longest payload for the export: [`CHUNK`], or less where the server
/// takes less.
pub fn chunk(session: &Session) -> u64 {
    let sizes = session.negotiated().constraints();
    let minimum = u64::from(sizes.minimum);
    let most = u64::from(sizes.maximum).min(CHUNK);
    (most / minimum * minimum).max(minimum)
}

/// Reads `range` and hands the pieces to `each` in order, which gives back a
/// buffer to be used again, or an empty one. Nothing is handed over that was
/// not read whole.
pub fn read(
    session: &mut Session,
    range: Range<u64>,
    each: &mut dyn FnMut(Piece) -> Result<Vec<u8>>,
) -> Result<()> {
    let chunk = chunk(session);
    let mut at = range.start;
    let mut jobs = Jobs(VecDeque::new());
    let mut spare: Vec<Vec<u8>> = Vec::new();
    loop {
        while at < range.end && jobs.0.len() < WINDOW {
            let length = chunk.min(range.end - at);
            let request = Request::read(at, length);
            let cookie = session.submit(request, Vec::new())?;
            let data = match spare.pop() {
                Some(mut data) => {
                    data.resize(length as usize, 0);
                    data
                }
                None => vec![0; length as usize],
            };
            jobs.0.push_back(Job {
                cookie,
                request,
                data,
                holes: Vec::new(),
                outcome: Outcome::Running,
                message: String::new(),
            });
            at += length;
        }
        let Some(first) = jobs.0.front() else {
            return Ok(());
        };
        if matches!(first.outcome, Outcome::Running) {
            session.step(&mut jobs)?;
            continue;
        }
        if let Some(job) = jobs.0.pop_front() {
            let used = each(job.finish()?)?;
            if used.capacity() > 0 {
                spare.push(used);
            }
        }
    }
}

/// A read in flight, or waiting for those before it.
struct Job {
    cookie: Cookie,
    request: Request,
    data: Vec<u8>,
    holes: Vec<Range<usize>>,
    outcome: Outcome,
    /// What the server said of an error.
    message: String,
}

enum Outcome {
    Running,
    Read,
    Failed(String),
}

impl Job {
    /// Where a part of the export is in `data`.
    fn part(&self, offset: u64, length: usize) -> Option<Range<usize>> {
        let start = offset.checked_sub(self.request.offset)? as usize;
        let end = start.checked_add(length)?;
        (end <= self.data.len()).then_some(start..end)
    }

    fn finish(self) -> Result<Piece> {
        match self.outcome {
            Outcome::Read => Ok(Piece {
                offset: self.request.offset,
                data: self.data,
                holes: self.holes,
            }),
            Outcome::Failed(error) => {
                bail!(
                    "{} failed: {error}{}",
                    describe(&self.request),
                    self.message
                )
            }
            Outcome::Running => bail!("{} did not end", describe(&self.request)),
        }
    }
}

struct Jobs(VecDeque<Job>);

impl Jobs {
    fn find(&mut self, cookie: Cookie) -> Option<&mut Job> {
        self.0
            .iter_mut()
            .find(|job| job.cookie == cookie && matches!(job.outcome, Outcome::Running))
    }
}

impl Replies for Jobs {
    fn place(&mut self, cookie: Cookie, offset: u64, length: usize) -> Option<&mut [u8]> {
        let job = self.find(cookie)?;
        let part = job.part(offset, length)?;
        Some(&mut job.data[part])
    }

    fn event(&mut self, event: Event<'_>) -> Result<()> {
        let strange = || anyhow!("an event for a read that is not in flight");
        match event {
            Event::Hole {
                cookie,
                offset,
                length,
            } => {
                let job = self.find(cookie).ok_or_else(strange)?;
                let part = job.part(offset, length as usize).ok_or_else(strange)?;
                job.data[part.clone()].fill(0);
                job.holes.push(part);
            }
            Event::Error {
                cookie,
                offset,
                message,
                ..
            } => {
                let job = self.find(cookie).ok_or_else(strange)?;
                if let Some(offset) = offset {
                    job.message += &format!(" at offset {offset}");
                }
                if let Some(text) = message.filter(|text| !text.is_empty()) {
                    job.message += &format!(" (server: {text})");
                }
            }
            Event::Done { cookie, result } => {
                let job = self.find(cookie).ok_or_else(strange)?;
                job.outcome = match result {
                    Ok(()) => Outcome::Read,
                    Err(error) => Outcome::Failed(explain(error)),
                };
            }
            _ => {}
        }
        Ok(())
    }
}
