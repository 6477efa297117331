//! The cases of `instructions`, by the clock: `cargo bench --bench time`.

#[path = "cases/mod.rs"]
mod cases;

use std::time::Instant;

use criterion::{Criterion, criterion_group, criterion_main};

fn all(criterion: &mut Criterion) {
    for case in cases::ALL {
        criterion.bench_function(case.name, |bencher| {
            bencher.iter_custom(|count| {
                let start = Instant::now();
                (case.run)(count);
                start.elapsed()
            });
        });
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
