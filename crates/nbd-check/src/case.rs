//! The table of cases: what a case is, and what it needs.

use nbd_codec::Framing;
use nbd_codec::wire::flags::TransmissionFlags;
use nbd_codec::wire::number::OptionType;

use crate::client;
use crate::duty::{Duty, duty};
use crate::outcome::Checked;
use crate::profile::{FRAMINGS, Profile, TlsMode, framing_name};
use crate::trial::Trial;

/// What a case needs. Without it the case is skipped, and the reason reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// A newstyle greeting.
    Newstyle,
    /// An oldstyle greeting.
    Oldstyle,
    /// The framing was agreed on.
    Framing(Framing),
    /// The flag is advertised.
    Flag(TransmissionFlags),
    /// The flag is not advertised in this framing.
    NoFlag(TransmissionFlags, Framing),
    /// `GO`.
    Go,
    /// `LIST`.
    List,
    /// The option is answered, if only by an error.
    Answers(OptionType),
    /// A metadata context.
    Contexts,
    /// The context `base:allocation`.
    Allocation,
    /// Block status of some contexts.
    Filters,
    /// No block status of some contexts.
    NoFilters,
    /// Permission to write (`--destructive`), and an export that is not read-only.
    Writes,
    /// Permission to send writes that must be refused (`--destructive`).
    WritesRefused,
    /// A read-only export.
    ReadOnly,
    /// An export of this size at least, in bytes.
    Size(u64),
    /// A minimum block size above 1.
    Blocks,
    /// Other export names are refused.
    RefusesNames,
    /// Several clients at a time.
    Concurrent,
    /// `STARTTLS`.
    Tls,
    /// No `STARTTLS`.
    NoTls,
    /// `STARTTLS` before everything else.
    ForcedTls,
    /// Options without TLS.
    NotForcedTls,
}

impl Need {
    /// Why the case is skipped; `None` if the server has what it needs.
    fn missing(self, profile: &Profile, destructive: bool) -> Option<String> {
        let read_only = profile.flags().contains(TransmissionFlags::READ_ONLY);
        let (met, reason) = match self {
            Self::Newstyle => (!profile.oldstyle, "the server is oldstyle".into()),
            Self::Oldstyle => (profile.oldstyle, "the server is newstyle".into()),
            Self::Framing(framing) => (
                profile.export(framing).is_some(),
                format!("the server has no {} framing", framing_name(framing)),
            ),
            Self::Flag(flag) => (
                profile.flags().contains(flag),
                format!("{flag} is not advertised"),
            ),
            Self::NoFlag(flag, framing) => (
                profile
                    .export(framing)
                    .is_none_or(|export| !export.flags.contains(flag)),
                format!("{flag} is advertised"),
            ),
            Self::Go => (profile.go, "the server has no NBD_OPT_GO".into()),
            Self::List => (profile.list, "the server has no NBD_OPT_LIST".into()),
            Self::Answers(option) => (
                profile.answers.contains(&option),
                format!("the server disconnects on {option}"),
            ),
            Self::Contexts => (
                !profile.contexts.is_empty(),
                "the server has no metadata context".into(),
            ),
            Self::Allocation => (
                profile
                    .contexts
                    .iter()
                    .any(|name| name == "base:allocation"),
                "the server has no base:allocation".into(),
            ),
            Self::Filters => (
                profile.filters,
                "BLOCK_STATUS_PAYLOAD is not advertised".into(),
            ),
            Self::NoFilters => (
                !profile.filters,
                "BLOCK_STATUS_PAYLOAD is advertised".into(),
            ),
            Self::Writes if !destructive => (false, "it writes: needs --destructive".into()),
            Self::Writes => (!read_only, "the export is read-only".into()),
            Self::WritesRefused => (destructive, "it sends writes: needs --destructive".into()),
            Self::ReadOnly => (read_only, "the export is not read-only".into()),
            Self::Size(size) => (
                profile.size() >= size,
                format!("the export is smaller than {size} bytes"),
            ),
            Self::Blocks => (
                profile.minimum() > 1,
                "the server has no minimum block size above 1".into(),
            ),
            Self::RefusesNames => (
                profile.refuses_names,
                "the server accepts every export name".into(),
            ),
            Self::Concurrent => (
                profile.concurrent,
                "the server serves one client at a time".into(),
            ),
            Self::Tls => (profile.tls != TlsMode::None, "the server has no TLS".into()),
            Self::NoTls => (profile.tls == TlsMode::None, "the server has TLS".into()),
            Self::NotForcedTls => (
                profile.tls != TlsMode::Forced,
                "the server forces TLS".into(),
            ),
            Self::ForcedTls => (
                profile.tls == TlsMode::Forced,
                "the server does not force TLS".into(),
            ),
        };
        (!met).then_some(reason)
    }
}

/// What a case does.
enum Run {
    Nothing,
    Server(Box<dyn Fn(&Trial<'_>) -> Checked + Send + Sync>),
    Client(Box<client::Run>),
}

/// A row of the table.
pub struct Case {
    /// The duty's id, and a name.
    pub id: String,
    /// The duty.
    pub duty: &'static Duty,
    /// What the tester sends.
    pub sends: String,
    /// What the program that is tested may answer.
    pub expects: String,
    pub(crate) needs: Vec<Need>,
    run: Run,
}

impl Case {
    /// Adds what the case needs.
    pub(crate) fn needs(&mut self, needs: &[Need]) -> &mut Self {
        self.needs.extend_from_slice(needs);
        self
    }

    /// What the case does.
    pub(crate) fn run(&mut self, run: impl Fn(&Trial<'_>) -> Checked + Send + Sync + 'static) {
        self.run = Run::Server(Box::new(run));
    }

    /// What a case of a client does.
    pub(crate) fn run_client(
        &mut self,
        run: impl Fn(&client::Trial<'_>) -> Checked + Send + Sync + 'static,
    ) {
        self.run = Run::Client(Box::new(run));
    }

    /// Why the case is skipped; `None` if it is run.
    pub(crate) fn skip_reason(&self, profile: &Profile, destructive: bool) -> Option<String> {
        let mut needs = self.needs.iter();
        needs.find_map(|need| need.missing(profile, destructive))
    }

    /// Runs it on a server.
    pub(crate) fn execute(&self, trial: &Trial<'_>) -> Checked {
        match &self.run {
            Run::Server(run) => run(trial),
            Run::Nothing | Run::Client(_) => Ok(()),
        }
    }

    /// Runs it on a client.
    pub(crate) fn execute_client(&self, trial: &client::Trial<'_>) -> Checked {
        match &self.run {
            Run::Client(run) => run(trial),
            Run::Nothing | Run::Server(_) => Ok(()),
        }
    }

    /// Whether a pattern selects it: its id, the beginning of its id up to a slash,
    /// or a pattern with `*`.
    #[must_use]
    pub fn matches(&self, pattern: &str) -> bool {
        matches(&self.id, pattern)
    }
}

/// Whether an id matches a pattern: all of it, its beginning up to a slash, or `*`
/// for any text.
#[must_use]
pub fn matches(id: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        Some((start, rest)) => match id.strip_prefix(start) {
            Some(mut tail) => loop {
                if rest.is_empty() || matches(tail, rest) && !rest.is_empty() {
                    return true;
                }
                let mut chars = tail.chars();
                if chars.next().is_none() {
                    return false;
                }
                tail = chars.as_str();
            },
            None => false,
        },
        None => match id.strip_prefix(pattern) {
            Some(rest) => rest.is_empty() || rest.starts_with('/') && !pattern.is_empty(),
            None => false,
        },
    }
}

/// The table while it is made.
#[derive(Default)]
pub(crate) struct Cases(Vec<Case>);

impl Cases {
    /// A case of a newstyle server.
    pub(crate) fn add(
        &mut self,
        id: &'static str,
        name: impl AsRef<str>,
        sends: impl Into<String>,
        expects: impl Into<String>,
    ) -> &mut Case {
        self.0.push(Case {
            id: format!("{id}/{}", name.as_ref()),
            duty: duty(id),
            sends: sends.into(),
            expects: expects.into(),
            needs: vec![Need::Newstyle],
            run: Run::Nothing,
        });
        // The one that was pushed.
        let last = self.0.len() - 1;
        &mut self.0[last]
    }

    pub(crate) fn into_vec(self) -> Vec<Case> {
        self.0
    }
}

/// Calls `add` for each framing, with its name.
pub(crate) fn for_each_framing(mut add: impl FnMut(Framing, &'static str)) {
    for framing in FRAMINGS {
        add(framing, framing_name(framing));
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns() {
        for (pattern, selected) in [
            ("B4", true),
            ("B4/unknown", true),
            ("B4/unkn", false),
            ("B4/unknown/1", true),
            ("B4/*", true),
            ("*/1", true),
            ("*unknown*", true),
            ("B", false),
            ("*x*", false),
            ("", false),
            ("*", true),
        ] {
            assert_eq!(matches("B4/unknown/1", pattern), selected, "{pattern}");
        }
    }
}
