//! `nbd-check`: checks how NBD programs keep to the specification.

mod args;

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use args::{Arguments, Command};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use nbd_check::report::{Report, Side, html};
use nbd_check::{
    Address, Case, CaseResult, Deviations, Options, Outcome, Runner, Target, cases, client, replay,
    tls, transcript,
};
use nbd_codec::uri::Uri;

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Server(args) => server(&args),
        Command::Client(args) => client(&args),
        Command::Report(args) => report(&args),
        Command::Replay(args) => replay_file(&args),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("nbd-check: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Checks a server; true if nothing failed.
fn server(args: &args::Server) -> Result<bool> {
    let cases = selected(cases::all(), &args.common)?;
    if args.common.list {
        print(&list(&cases))?;
        return Ok(true);
    }
    prepare(&args.common)?;
    let target = match &args.uri {
        Some(uri) => Target::running(parse(uri)?)?,
        None => Target::start(&args.command, &args.export)?,
    };
    let options = Options {
        destructive: args.destructive,
        ..options(&args.common)?
    };
    let deviations = options.deviations.clone();
    let mut runner = Runner::new(target, options)?;
    if args.dry_run {
        print(&plan(&runner, &cases))?;
        return Ok(true);
    }
    let start = Instant::now();
    let progress = Progress::new(&cases)?;
    let run = |case: &Case| {
        let result = runner.run(case);
        progress.advance(&result);
        result
    };
    let results: Vec<_> = cases.iter().map(run).collect();
    progress.bar.finish_and_clear();
    let report = Report::new(
        Side::Server,
        &name(&args.common, &args.command, &runner.uri()),
        &runner.uri(),
        runner.server(),
        &results,
        start.elapsed(),
    );
    if runner.restarts() > 0 {
        let times = match runner.restarts() {
            1 => "once".to_owned(),
            times => format!("{times} times"),
        };
        eprintln!("nbd-check: the server ended and was started again: {times}");
    }
    finish(&report, &results, &deviations, &args.common)
}

/// Checks a client; true if nothing failed.
fn client(args: &args::Client) -> Result<bool> {
    let cases = selected(client::all(), &args.common)?;
    if args.common.list {
        print(&list(&cases))?;
        return Ok(true);
    }
    let options = Options {
        thorough: args.thorough,
        jobs: args.jobs.into(),
        tls: args.tls.clone(),
        ..options(&args.common)?
    };
    let deviations = options.deviations.clone();
    prepare(&args.common)?;
    let start = Instant::now();
    let runner = client::Runner::new(&args.command, options)?;
    let progress = Progress::new(&cases)?;
    let results = runner.run(&cases, |result| progress.advance(result));
    progress.bar.finish_and_clear();
    let report = Report::new(
        Side::Client,
        &name(&args.common, &args.command, &runner.uri()),
        &runner.uri(),
        runner.client(),
        &results,
        start.elapsed(),
    );
    finish(&report, &results, &deviations, &args.common)
}

fn options(args: &args::Common) -> Result<Options> {
    Ok(Options {
        timeout: args.timeout,
        strict: args.strict,
        deviations: match &args.deviations {
            None => Deviations::default(),
            Some(path) => {
                Deviations::parse(&read(path)?).with_context(|| path.display().to_string())?
            }
        },
        ..Options::default()
    })
}

/// Finds out whether reports can be written, before cases run.
fn prepare(args: &args::Common) -> Result<()> {
    for path in [&args.json, &args.junit, &args.html].into_iter().flatten() {
        let mut options = fs::File::options();
        let file = options.append(true).create(true).open(path);
        file.with_context(|| format!("cannot write {}", path.display()))?;
    }
    match &args.transcripts {
        Some(path) => {
            fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))
        }
        None => Ok(()),
    }
}

/// What the program is called in reports.
fn name(args: &args::Common, command: &[String], uri: &str) -> String {
    let program = command.first().map(String::as_str);
    args.name.as_deref().or(program).unwrap_or(uri).to_owned()
}

/// Writes the reports; true if nothing failed.
fn finish(
    report: &Report,
    results: &[CaseResult],
    deviations: &Deviations,
    args: &args::Common,
) -> Result<bool> {
    print(&report.text(args.verbose))?;
    if let Some(path) = &args.json {
        write(path, &format!("{:#}\n", report.json()))?;
    }
    if let Some(path) = &args.junit {
        write(path, &report.junit())?;
    }
    if let Some(path) = &args.html {
        write(path, &html(std::slice::from_ref(report)))?;
    }
    if let Some(folder) = &args.transcripts {
        write_transcripts(folder, report)?;
    }
    for pattern in deviations.unused(results) {
        eprintln!("nbd-check: no case needs the deviation {pattern} any more");
    }
    Ok(report.count(Outcome::Fail) == 0)
}

/// The cases that the arguments select.
fn selected(mut cases: Vec<Case>, args: &args::Common) -> Result<Vec<Case>> {
    let of_section = |case: &Case, text: &String| {
        let section = case.duty.section.to_lowercase();
        section.contains(&text.to_lowercase())
    };
    for text in &args.section {
        let any = cases.iter().any(|case| of_section(case, text));
        ensure!(any, "--section {text} matches no case; --list shows all");
    }
    for pattern in &args.case {
        let any = cases.iter().any(|case| case.matches(pattern));
        ensure!(any, "--case {pattern} matches no case; --list shows all");
    }
    cases.retain(|case| {
        let section = args.section.iter().any(|text| of_section(case, text));
        let id = args.case.iter().any(|pattern| case.matches(pattern));
        (section || args.section.is_empty()) && (id || args.case.is_empty())
    });
    ensure!(
        !cases.is_empty(),
        "no case matches both --section and --case"
    );
    Ok(cases)
}

fn list(cases: &[Case]) -> String {
    let mut text = String::new();
    for case in cases {
        let duty = case.duty;
        text.push_str(&format!(
            "{} ({}, {}): {}\n    sends: {}\n    expects: {}\n",
            case.id, duty.section, duty.level, duty.text, case.sends, case.expects
        ));
    }
    text.push_str(&format!("{} cases\n", cases.len()));
    text
}

fn plan(runner: &Runner, cases: &[Case]) -> String {
    let mut text = String::new();
    let mut count = 0;
    for case in cases {
        match runner.skip_reason(case) {
            None => {
                count += 1;
                text.push_str(&format!("run  {}\n", case.id));
            }
            Some(reason) => text.push_str(&format!("skip {}: {reason}\n", case.id)),
        }
    }
    text.push_str(&format!("{count} of {} cases would run\n", cases.len()));
    text
}

/// What is shown while cases run.
struct Progress {
    bar: ProgressBar,
    failed: AtomicUsize,
}

impl Progress {
    fn new(cases: &[Case]) -> Result<Self> {
        let bar = ProgressBar::new(u64::try_from(cases.len())?);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {wide_msg}")?;
        bar.set_style(style);
        let failed = AtomicUsize::new(0);
        Ok(Self { bar, failed })
    }

    /// A case has ended.
    fn advance(&self, result: &CaseResult) {
        let fails = usize::from(result.outcome == Outcome::Fail);
        let failed = self.failed.fetch_add(fails, Ordering::Relaxed) + fails;
        let id = &result.id;
        self.bar.set_message(format!("{failed} failed; after {id}"));
        self.bar.inc(1);
    }
}

fn write_transcripts(folder: &Path, report: &Report) -> Result<()> {
    for row in &report.rows {
        if let Some(transcript) = &row.transcript {
            let path = folder.join(format!("{}.txt", row.id.replace('/', "_")));
            write(&path, transcript)?;
        }
    }
    Ok(())
}

/// Makes one page of several reports.
fn report(args: &args::Report) -> Result<bool> {
    let reports: Result<Vec<_>> = args
        .reports
        .iter()
        .map(|path| {
            let value = serde_json::from_str(&read(path)?);
            value
                .map_err(anyhow::Error::from)
                .and_then(|value| Report::from_json(&value))
                .with_context(|| format!("{} is no report", path.display()))
        })
        .collect();
    write(&args.html, &html(&reports?))?;
    Ok(true)
}

/// Plays a transcript; true if the program answers the same.
fn replay_file(args: &args::Replay) -> Result<bool> {
    let entries = transcript::parse(&read(&args.transcript)?).map_err(|line| {
        anyhow!(
            "{} is no transcript: line {line}",
            args.transcript.display()
        )
    })?;
    ensure!(
        !entries.is_empty(),
        "{} is no transcript: it is empty",
        args.transcript.display()
    );
    let replay = match &args.uri {
        Some(uri) => {
            let uri = parse(uri)?;
            let certificates = uri
                .tls_certificates()
                .map(std::str::from_utf8)
                .transpose()?;
            let tls = tls::config(certificates.map(Path::new))?;
            replay::replay(&entries, &Address::of(&uri)?, args.timeout, &tls)?
        }
        None => client::replay(&entries, &args.command, args.timeout, args.tls.as_deref())?,
    };
    let mut text = replay.transcript;
    for (entry, difference) in &replay.differences {
        text.push_str(&format!("# entry {entry} differs: {difference}\n"));
    }
    print(&text)?;
    Ok(replay.differences.is_empty())
}

fn parse(uri: &str) -> Result<Uri> {
    Uri::parse(uri).with_context(|| format!("{uri} is no NBD URI"))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Prints to standard output; a reader that closed it is no error.
fn print(text: &str) -> Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}
