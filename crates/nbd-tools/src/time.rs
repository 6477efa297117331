//! Times in seconds.

use std::time::Duration;

/// Thirty years. The clock can be added to much longer times, but not to all.
const LONGEST: Duration = Duration::from_secs(1_000_000_000);

/// Parses a number of seconds, with or without a fraction.
pub fn parse(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds")?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(Duration::ZERO) => Err("must be at least a nanosecond".into()),
        Ok(time) if time <= LONGEST => Ok(time),
        Ok(_) => Err(format!("must be at most {}", LONGEST.as_secs())),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_from_a_nanosecond_to_thirty_years() {
        for (text, time) in [
            ("1e-9", Ok(Duration::from_nanos(1))),
            ("0.25", Ok(Duration::from_millis(250))),
            ("1e9", Ok(LONGEST)),
            ("0", Err("at least")),
            ("1e-12", Err("at least")),
            ("1e10", Err("at most 1000000000")),
            ("1e30", Err("float seconds")),
            ("-1", Err("negative")),
            ("nan", Err("float seconds")),
            ("a", Err("not a number")),
        ] {
            match (parse(text), time) {
                (Ok(found), Ok(time)) => assert_eq!(found, time),
                (Err(found), Err(error)) => assert!(found.contains(error), "{found}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
    }
}
