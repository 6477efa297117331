//! The time of the cases of `instructions`: `cargo bench --bench time`.
//! Each case is in a group with its limit, or with the other crate.

#[path = "cases/mod.rs"]
mod cases;

use std::time::Instant;

use criterion::Criterion;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for case in cases::ALL {
        let mut group = criterion.benchmark_group(case.limit.or(case.other).unwrap_or(case.name));
        if case.count < 100 {
            // Long cases need fewer samples.
            group.sample_size(10);
        }
        group.bench_function(case.name, |bencher| {
            bencher.iter_custom(|count| {
                let start = Instant::now();
                (case.run)(count);
                start.elapsed()
            });
        });
        group.finish();
    }
    criterion.final_summary();
}
