//! A worker that copies from a file.

use std::fs::File;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::plan::Next;
use super::shared::Shared;
use super::source::map_file;
use super::target::Target;
use crate::align::{length, to_usize};
use crate::os::FileExt;

pub fn run(shared: &Shared, file: &Arc<File>, mut target: Target) -> Result<()> {
    let mut memory = Vec::new();
    loop {
        match shared.plan.next(true) {
            Next::Data(range) => {
                let length = length(&range);
                memory.resize(to_usize(length), 0);
                let read = file.read_exact_at(&mut memory, range.start);
                let what = || format!("cannot read {length} bytes at offset {}", range.start);
                shared.source(read.with_context(what))?;
                memory = shared.target(target.write(range.start, memory))?;
                shared.advance(length);
            }
            Next::Zeroes(range) => {
                let length = length(&range);
                shared.target(target.zeroes(range.start, length))?;
                shared.advance(length);
            }
            Next::Map(range) => {
                let parts = map_file(file, range, shared.alignment);
                shared.plan.add(shared.source(parts)?);
            }
            Next::Nothing => return shared.target(target.finish()),
        }
    }
}
