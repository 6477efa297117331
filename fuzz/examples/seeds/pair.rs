//! Seeds of the pair.

use nbd_codec_fuzz::delivery::{Delivery, How};
use nbd_codec_fuzz::host::script::OfferSetup;
use nbd_codec_fuzz::pair::script::{DiskSetup, Meeting, Pair, PairStep};
use nbd_codec_fuzz::talk::{PlanSetup, QuerySetup};
use nbd_codec_fuzz::tape::{List, Rest};

use super::{deliveries, setup};

/// Every meeting, and in every framing every kind of session.
pub fn scripts() -> Vec<(String, Pair)> {
    let mut scripts = Vec::new();
    for framing in 0..3 {
        for (name, steps) in sessions() {
            for (way, up) in deliveries() {
                let down = Delivery {
                    how: How::Pieces {},
                    sizes: List(vec![7, 0, 100]),
                    direct: true,
                };
                let pair = Pair {
                    up: up.clone(),
                    down: if way == "bytes" { up } else { down },
                    meeting: meeting(framing, 0, 0),
                    steps: Rest(steps.clone()),
                };
                scripts.push((format!("{name}-{framing}-{way}"), pair));
            }
        }
        for tls in 0..3 {
            for (name, requires) in [("open", 0), ("strict", 7)] {
                let meeting = meeting(framing, tls, requires);
                scripts.push((format!("{name}-{framing}-tls-{tls}"), lone(meeting)));
            }
        }
    }
    for (name, change) in [
        (
            "oldstyle",
            (|meeting| meeting.offer.oldstyle = 15) as fn(&mut Meeting),
        ),
        ("not-fixed", |meeting| meeting.offer.fixed = false),
        ("zeroes", |meeting| {
            meeting.offer.fixed = false;
            meeting.offer.no_zeroes = false;
        }),
        ("unknown", |meeting| meeting.export.name = 4),
        ("forced", |meeting| meeting.offer.tls = 2),
        ("cut", |meeting| meeting.cut = 77),
    ] {
        let mut meeting = meeting(2, 0, 0);
        change(&mut meeting);
        scripts.push((name.into(), lone(meeting)));
    }
    scripts
}

/// A short session.
fn lone(meeting: Meeting) -> Pair {
    let steps = vec![
        submit(1, 0, 0, 3),
        submit(0, 0, 0, 8),
        PairStep::Settle { how: 2 },
        PairStep::Disconnect {},
    ];
    Pair {
        up: Delivery::whole(),
        down: Delivery::whole(),
        meeting,
        steps: Rest(steps),
    }
}

fn meeting(framing: u8, tls: u8, requires: u8) -> Meeting {
    let query = |name, width| QuerySetup { name, width };
    Meeting {
        plan: PlanSetup {
            export: 0,
            contexts: List(vec![query(2, 0), query(3, 1), query(4, 2)]),
            framing,
            describe: true,
        },
        tls,
        offer: OfferSetup {
            oldstyle: 0,
            fixed: true,
            no_zeroes: true,
            tls: u8::from(tls > 0),
            framing: 2,
            limits: setup(0).limits,
        },
        export: DiskSetup {
            name: 0,
            block: 3,
            blocks: 15,
            flags: 0x1ffd,
            maximum: 4,
            contexts: List(vec![0, 1, 2]),
            requires,
        },
        cut: 0,
    }
}

fn submit(command: u8, flags: u16, from: u8, blocks: u8) -> PairStep {
    PairStep::Submit {
        command,
        flags,
        from,
        blocks,
        fill: 0x11,
    }
}

fn answer(which: u8, how: u8) -> PairStep {
    PairStep::Answer { which, how, at: 1 }
}

fn sessions() -> Vec<(&'static str, Vec<PairStep>)> {
    let settle = |how| PairStep::Settle { how };
    let all = u64::MAX;
    let mut everything = Vec::new();
    for how in 0..8 {
        everything.extend([submit(1, 1, how, 2), submit(0, 0, 0, 16), settle(how)]);
        everything.extend([submit(7, 0, 0, 16), submit(7, 8, 2, 4), settle(how)]);
        everything.extend([submit(6, 0, how, 1), submit(4, 0, 9, 2), settle(how)]);
        everything.extend([submit(6, 16, how, 1), submit(5, 0, 9, 2), settle(how)]);
    }
    vec![
        ("everything", everything),
        (
            "order",
            vec![
                submit(1, 0, 0, 4),
                submit(1, 0, 2, 4),
                submit(0, 0, 0, 8),
                submit(0, 4, 1, 3),
                PairStep::Up { n: 700 },
                PairStep::Up { n: all },
                answer(3, 1),
                answer(1, 0),
                PairStep::Down { n: 40 },
                answer(1, 3),
                answer(0, 0),
                PairStep::StatusOf {
                    contexts: List(vec![1, 0]),
                    flags: 0,
                    from: 0,
                    blocks: 16,
                },
                settle(4),
            ],
        ),
        (
            "resize",
            vec![
                submit(1, 0, 8, 8),
                settle(0),
                submit(8, 0, 4, 0),
                submit(0, 0, 0, 4),
                settle(0),
                submit(0, 0, 4, 1),
                submit(8, 0, 32, 0),
                settle(0),
                submit(0, 0, 0, 32),
                submit(8, 0, 16, 0),
                settle(7),
            ],
        ),
        (
            "shutdown",
            vec![
                submit(1, 0, 0, 2),
                submit(0, 0, 0, 2),
                PairStep::Up { n: 100 },
                PairStep::ShutDown {},
                submit(3, 0, 0, 0),
                settle(0),
            ],
        ),
        (
            "lost",
            vec![
                submit(1, 0, 0, 2),
                submit(0, 0, 0, 2),
                PairStep::Up { n: all },
                answer(1, 1),
                answer(0, 0),
                submit(3, 0, 0, 0),
                PairStep::Cut { up: 9, down: 50 },
            ],
        ),
        (
            "wild",
            vec![
                PairStep::Wild {
                    command: 0,
                    flags: 0,
                    offset: 1,
                    length: 9,
                },
                PairStep::Wild {
                    command: 6,
                    flags: 2,
                    offset: 0,
                    length: 8192,
                },
                PairStep::Disconnect {},
                PairStep::Up { n: all },
            ],
        ),
    ]
}
