//! Block status, narrow and wide.

use nbd_codec::Width;
use nbd_codec::server::{BlockStatus32, BlockStatus64, Request};
use nbd_codec::wire::extent::{Extent32, Extent64};
use nbd_codec::wire::number::ContextId;

use super::answer::Left;
use super::script::Answer;
use super::{Ask, Server, Token};
use crate::facts::{Fact, push};
use crate::script::{Extent, Measure};
use crate::tape::List;

/// The two widths have the same rules and differ in their extents.
macro_rules! statuses {
    ($($call:ident $token:ident $extent:ident $word:ident $wide:literal;)*) => {$(
        impl Server {
            pub(super) fn $call(&mut self, status: $token, ask: &Ask, answer: &Answer) -> Left {
                let kept = |status| Some(Token::Request(Request::$token(status)));
                match answer {
                    // One extent for each context.
                    Answer::Succeed {} => {
                        let mut status = status;
                        while let Some(first) = status.contexts().next() {
                            let minimum = self.terms().constraints().minimum.max(1);
                            let length = ask.length.min(u32::MAX.into());
                            let answer = whole(length - length % u64::from(minimum));
                            match self.$call(status, ask, &answer) {
                                Some(Token::Request(Request::$token(rest))) => status = rest,
                                left => return left,
                            }
                            if status.contexts().next() == Some(first) {
                                // Refused: block sizes of no sense.
                                break;
                            }
                        }
                        kept(status)
                    }
                    Answer::Status { context, extents, cut, room } => {
                        let missing: Vec<_> = status.contexts().collect();
                        let id = missing.get(usize::from(*context)).copied();
                        let id = id.unwrap_or(ContextId((*context).into()));
                        let extents: Vec<$extent> = extents.0.iter().map(|extent| $extent {
                            length: extent.length.of(ask.length) as $word,
                            flags: extent.flags as $word,
                        }).collect();
                        let before = format!("{status:?}");
                        let mut buffer = vec![0; (*room).min(1000) as usize];
                        let space = buffer.len();
                        let mut sink = &mut buffer[..];
                        let list = match cut {
                            true => status.cut(extents.iter().copied()).collect(),
                            false => extents,
                        };
                        let result = status.answer(id, list.iter().copied(), &mut sink);
                        let written = space - sink.len();
                        buffer.truncate(written);
                        match result {
                            Ok(rest) => {
                                assert!(missing.contains(&id), "a context that is answered");
                                self.outcome.written.extend(&buffer);
                                self.say_status(ask, id, $wide, list.iter().map(|extent| {
                                    (extent.length.into(), extent.flags.into())
                                }).collect());
                                if rest.is_none() {
                                    self.say_done(ask, 0);
                                }
                                rest.and_then(kept)
                            }
                            Err(returned) => {
                                assert_eq!(written, 0, "written and refused");
                                kept(self.returned(&before, returned))
                            }
                        }
                    }
                    _ => kept(status),
                }
            }
        }
    )*};
}

statuses! {
    status32 BlockStatus32 Extent32 u32 false;
    status64 BlockStatus64 Extent64 u64 true;
}

impl Server {
    fn say_status(&mut self, ask: &Ask, id: ContextId, wide: bool, extents: Vec<(u64, u64)>) {
        let context = self
            .terms()
            .contexts
            .iter()
            .find(|context| context.id == id);
        let many = context.is_some_and(|context| context.width == Width::Wide);
        assert!(many || extents.iter().all(|extent| extent.1 < 1 << 32));
        push(
            &mut self.answers,
            Fact::Status {
                cookie: ask.cookie,
                context: id.0,
                wide,
                offset: ask.offset,
                extents,
            },
        );
    }
}

/// One extent for the next context, with room enough.
fn whole(n: u64) -> Answer {
    let length = Measure::Bytes { n };
    Answer::Status {
        context: 0,
        extents: List(vec![Extent { length, flags: 3 }]),
        cut: false,
        room: 1000,
    }
}
