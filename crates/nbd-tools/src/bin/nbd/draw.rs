//! Draws a map as a bar. Each cell is an equal part of the export; its height is
//! the share of data in it.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};

use console::Term;
use nbd_tools::size;

use crate::align::{length, to_usize};
use crate::extents::Placed;
use crate::map;
use crate::name::Name;

/// Heights of a cell, from a trace to full.
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// The width if standard output is not a terminal.
const COLUMNS: usize = 80;

const GREEN: &str = "32";
const YELLOW: &str = "33";
const BLUE: &str = "34";
const MAGENTA: &str = "35";
const CYAN: &str = "36";
const DIM: &str = "2";

/// The abilities of standard output.
pub struct Palette {
    colour: bool,
    columns: usize,
}

impl Palette {
    /// Colours on a terminal, unless `NO_COLOR` is set.
    pub fn of_stdout() -> Self {
        let terminal = io::stdout().is_terminal();
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let size = Term::stdout().size_checked();
        Self {
            colour: terminal && !no_colour,
            columns: size.map_or(COLUMNS, |(_, columns)| columns.into()),
        }
    }

    pub fn dim(&self, text: &str) -> String {
        self.paint(text, DIM)
    }

    pub fn paint(&self, text: &str, colour: &str) -> String {
        if self.colour {
            format!("\x1b[{colour}m{text}\x1b[0m")
        } else {
            text.into()
        }
    }
}

/// How a type of extent is shown.
#[derive(Clone, Copy, PartialEq)]
enum Look {
    /// A cell of this colour, as high as its share.
    Filled(&'static str),
    /// This character, in cells without data.
    Empty(char),
}

fn look(context: &Name, flags: u64) -> Look {
    let others = [BLUE, MAGENTA, CYAN, YELLOW];
    match (context.as_bytes(), flags) {
        (b"base:allocation", 0) => Look::Filled(GREEN),
        (b"base:allocation", 1) => Look::Empty('╌'),
        (b"base:allocation", 2) => Look::Empty('░'),
        (b"base:allocation", 3) | (_, 0) => Look::Empty('·'),
        (b"qemu:allocation-depth", 1) => Look::Filled(GREEN),
        (context, 1) if context.starts_with(map::DIRTY_BITMAP) => Look::Filled(YELLOW),
        (_, flags) => Look::Filled(others[(flags % 4) as usize]),
    }
}

/// The bar and its legend.
pub fn bar(context: &Name, extents: &[Placed], total: u64, palette: &Palette) -> String {
    if total == 0 {
        return "  the export is empty\n".into();
    }
    let cells = palette.columns.saturating_sub(4).clamp(10, 120) as u64;
    let cells = cells.min(total);
    let mut drawn = Vec::new();
    let mut at = 0;
    for cell in 0..cells {
        let edge = |n: u64| share(total, n, cells);
        let (start, end) = (edge(cell), edge(cell.saturating_add(1)));
        while extents.get(at).is_some_and(|extent| extent.end() <= start) {
            at = at.saturating_add(1);
        }
        let shares = shares(&extents[at..], start, end);
        drawn.push(draw_cell(context, &shares, length(&(start..end))));
    }
    let mut text = String::from("  ");
    for run in drawn.chunk_by(|a, b| a.1 == b.1) {
        let signs: String = run.iter().map(|(sign, _)| sign).collect();
        text += &palette.paint(&signs, run[0].1);
    }
    text.push('\n');
    text += &ruler(total, cells as usize, palette);
    text += &legend(context, extents, total, palette);
    text
}

/// `n` of `all` equal parts of `total`; in 128 bits, because exports may have up to
/// 2^64 - 1 bytes.
fn share(total: u64, n: u64, all: u64) -> u64 {
    let product = u128::from(total).saturating_mul(n.into());
    let share = product.checked_div(all.into()).unwrap_or(0);
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// How many bytes of each type are between `start` and `end`.
fn shares(extents: &[Placed], start: u64, end: u64) -> BTreeMap<u64, u64> {
    let mut shares = BTreeMap::new();
    for extent in extents.iter().take_while(|extent| extent.offset < end) {
        let bytes = length(&(extent.offset.max(start)..extent.end().min(end)));
        let sum: &mut u64 = shares.entry(extent.flags).or_default();
        *sum = sum.saturating_add(bytes);
    }
    shares
}

/// The character for a cell of `total` bytes, and its colour.
fn draw_cell(context: &Name, shares: &BTreeMap<u64, u64>, total: u64) -> (char, &'static str) {
    let (mut filled, mut most, mut colour) = (0u64, 0u64, GREEN);
    let (mut empty, mut sign) = (0u64, ' ');
    for (flags, bytes) in shares {
        match look(context, *flags) {
            Look::Filled(paint) => {
                filled = filled.saturating_add(*bytes);
                if *bytes > most {
                    (most, colour) = (*bytes, paint);
                }
            }
            Look::Empty(char) if *bytes > empty => (empty, sign) = (*bytes, char),
            Look::Empty(_) => {}
        }
    }
    if filled == 0 {
        return (sign, DIM);
    }
    // From 1 to 8 eighths.
    let eighths = to_usize(share(filled, 8, total.max(1)));
    let height = HEIGHTS[eighths.saturating_sub(1).min(7)];
    (height, colour)
}

/// Sizes below the bar: at its ends and in its middle.
fn ruler(total: u64, cells: usize, palette: &Palette) -> String {
    let (middle, end) = (size::rounded(total / 2), size::rounded(total));
    if cells < middle.len().saturating_add(end.len()).saturating_add(24) {
        return String::new();
    }
    let left = (cells / 2).saturating_sub(1);
    let after = left.saturating_add(middle.chars().count());
    let right = cells.saturating_sub(after).saturating_sub(1);
    palette.dim(&format!("  {:<left$} {middle}{end:>right$}", "0")) + "\n"
}

/// The meaning of the characters, and the size of each type.
fn legend(context: &Name, extents: &[Placed], total: u64, palette: &Palette) -> String {
    let mut totals: BTreeMap<u64, (u64, usize)> = BTreeMap::new();
    for extent in extents {
        let entry = totals.entry(extent.flags).or_default();
        entry.0 = entry.0.saturating_add(extent.length);
        entry.1 = entry.1.saturating_add(1);
    }
    let mut text = String::new();
    for (flags, (bytes, count)) in totals {
        let sign = match look(context, flags) {
            Look::Filled(colour) => palette.paint("█", colour),
            Look::Empty(sign) => palette.dim(&sign.to_string()),
        };
        let name = map::describe(context, flags).unwrap_or_else(|| format!("type {flags:#x}"));
        let percent = bytes as f64 * 100.0 / total as f64;
        let plural = if count == 1 { "" } else { "s" };
        text += &format!(
            "  {sign} {name:<12} {:>10}  {percent:>5.1}%  {count} extent{plural}\n",
            size::rounded(bytes)
        );
    }
    text
}
