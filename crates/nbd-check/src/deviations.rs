//! Known deviations: which cases a server is known not to pass, and why.
//!
//! A file with a line for each: a pattern of case ids, two spaces or a tab, the
//! reason. `#` begins a comment.

use std::cell::RefCell;

use crate::case::matches;

/// Known deviations of a server.
#[derive(Debug, Clone, Default)]
pub struct Deviations {
    rows: Vec<(String, String)>,
    used: RefCell<Vec<bool>>,
}

impl Deviations {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// The number of the first line without a reason.
    pub fn parse(text: &str) -> Result<Self, usize> {
        let mut rows = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (pattern, reason) = line
                .split_once([' ', '\t'])
                .map(|(pattern, reason)| (pattern, reason.trim()))
                .filter(|(_, reason)| !reason.is_empty())
                .ok_or(index + 1)?;
            rows.push((pattern.to_owned(), reason.to_owned()));
        }
        let used = RefCell::new(vec![false; rows.len()]);
        Ok(Self { rows, used })
    }

    /// Why a case is known to fail.
    #[must_use]
    pub fn reason(&self, id: &str) -> Option<&str> {
        let index = self
            .rows
            .iter()
            .position(|(pattern, _)| matches(id, pattern))?;
        if let Some(used) = self.used.borrow_mut().get_mut(index) {
            *used = true;
        }
        self.rows.get(index).map(|(_, reason)| reason.as_str())
    }

    /// The patterns that explained nothing: the server is better than they say.
    #[must_use]
    pub fn unused(&self) -> Vec<String> {
        let used = self.used.borrow();
        let rows = self.rows.iter().zip(used.iter());
        rows.filter(|(_, used)| !**used)
            .map(|((pattern, _), _)| pattern.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Deviations;

    #[test]
    fn a_deviation_needs_a_reason() {
        let text = "# known\n\nE8/*  answers ENOTSUP, as of 1.32\nT13\treads it all\n";
        let deviations = Deviations::parse(text).expect("valid");
        assert_eq!(
            deviations.reason("E8/x"),
            Some("answers ENOTSUP, as of 1.32")
        );
        assert_eq!(deviations.reason("E9/x"), None);
        assert_eq!(deviations.unused(), ["T13"]);
        assert_eq!(Deviations::parse("E8/*").err(), Some(1));
        assert_eq!(Deviations::parse("\nE8/*   \n").err(), Some(2));
    }
}
