//! The results, for users and scripts.

use std::time::Duration;

use nbd_tools::size;
use serde_json::{Value, json};

use super::Load;
use super::histogram::Snapshot;

/// The percentiles to report.
const PERCENTILES: [(&str, f64); 4] =
    [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)];

pub struct Report<'l> {
    pub load: &'l Load,
    pub times: Snapshot,
    pub elapsed: Duration,
}

impl Report<'_> {
    fn iops(&self) -> f64 {
        self.times.count() as f64 / self.elapsed.as_secs_f64()
    }

    fn bytes_per_second(&self) -> f64 {
        self.iops() * self.load.size as f64
    }

    /// Throughput and IOPS.
    fn rate(&self) -> String {
        let throughput = size::rounded(self.bytes_per_second() as u64);
        format!("{throughput}/s  {:.0} IOPS", self.iops())
    }

    /// The line that is printed every second.
    pub fn line(&self) -> String {
        let mut line = self.rate();
        for (name, percent) in PERCENTILES {
            let time = micros(self.times.percentile(percent));
            line.push_str(&format!("  {name} {time}"));
        }
        line
    }

    /// The final text.
    pub fn text(&self) -> String {
        let Load {
            mode,
            depth,
            connections,
            ..
        } = self.load;
        let mut text = format!(
            "{} of {}, depth {depth}, {connections} connection{}, {} framing\n{} requests in {:.2} s: {}\nlatency",
            mode.name(),
            size::rounded(self.load.size),
            if *connections == 1 { "" } else { "s" },
            self.load.framing,
            self.times.count(),
            self.elapsed.as_secs_f64(),
            self.rate(),
        );
        for (name, percent) in PERCENTILES {
            let time = micros(self.times.percentile(percent));
            text.push_str(&format!("  {name} {time}"));
        }
        text.push_str(&format!("  max {}\n", micros(self.times.longest())));
        text
    }

    /// The final result for scripts.
    pub fn json(&self) -> Value {
        let mut latency = serde_json::Map::new();
        for (name, percent) in PERCENTILES {
            let time = self.times.percentile(percent).as_nanos() as u64;
            latency.insert(name.into(), time.into());
        }
        let longest = self.times.longest().as_nanos() as u64;
        latency.insert("max".into(), longest.into());
        json!({
            "mode": self.load.mode.name(),
            "size": self.load.size,
            "depth": self.load.depth,
            "connections": self.load.connections,
            "framing": self.load.framing.to_string(),
            "requests": self.times.count(),
            "seconds": self.elapsed.as_secs_f64(),
            "iops": self.iops(),
            "bytes_per_second": self.bytes_per_second(),
            "latency_ns": latency,
        })
    }
}

fn micros(time: Duration) -> String {
    match time.as_secs_f64() * 1e6 {
        short if short < 1e4 => format!("{short:.1} us"),
        long => format!("{:.1} ms", long / 1e3),
    }
}
