//! Replies to block status requests.

use nbd_codec::StatusWidth;
use nbd_codec::server::{BlockStatus32Request, BlockStatus64Request, Request};
use nbd_codec::wire::extent::{Extent32, Extent64};
use nbd_codec::wire::number::ContextId;

use super::answer::Left;
use super::script::Answer;
use super::{Harness, RequestFields, Token};
use crate::format::List;
use crate::reply_event::{ReplyEvent, push};
use crate::script::{Extent, Length};

/// The two widths differ only in their extents.
macro_rules! statuses {
    ($($call:ident $token:ident $request:ident $extent:ident $word:ident $wide:literal;)*) => {$(
        impl Harness {
            pub(super) fn $call(&mut self, status: $request, fields: &RequestFields, answer: &Answer) -> Left {
                let kept = |status| Some(Token::Request(Request::$token(status)));
                match answer {
                    // One extent for each context.
                    Answer::Succeed {} => {
                        let mut status = status;
                        while let Some(first) = status.contexts().next() {
                            let minimum = self.terms().constraints().minimum.max(1);
                            let length = fields.length.min(u32::MAX.into());
                            let answer = whole(length - length % u64::from(minimum));
                            match self.$call(status, fields, &answer) {
                                Some(Token::Request(Request::$token(rest))) => status = rest,
                                left => return left,
                            }
                            if status.contexts().next() == Some(first) {
                                // Rejected, because the block sizes are
                                // invalid.
                                break;
                            }
                        }
                        kept(status)
                    }
                    Answer::Status { context, extents, truncate, space } => {
                        let missing: Vec<_> = status.contexts().collect();
                        let id = missing.get(usize::from(*context)).copied();
                        let id = id.unwrap_or(ContextId((*context).into()));
                        let extents: Vec<$extent> = extents.0.iter().map(|extent| $extent {
                            length: extent.length.of(fields.length) as $word,
                            flags: extent.flags as $word,
                        }).collect();
                        let before = format!("{status:?}");
                        let mut buffer = vec![0; (*space).min(1000) as usize];
                        let space = buffer.len();
                        let mut sink = &mut buffer[..];
                        let list = if *truncate {
                            status.truncate(extents.iter().copied()).collect()
                        } else {
                            extents
                        };
                        let result = status.reply(id, list.iter().copied(), &mut sink);
                        let written = space - sink.len();
                        buffer.truncate(written);
                        match result {
                            Ok(rest) => {
                                assert!(missing.contains(&id), "replied for a context twice");
                                self.outcome.written.extend(&buffer);
                                self.expect_status(fields, id, $wide, list.iter().map(|extent| {
                                    (extent.length.into(), extent.flags.into())
                                }).collect());
                                if rest.is_none() {
                                    self.expect_done(fields, 0);
                                }
                                rest.and_then(kept)
                            }
                            Err(rejected) => {
                                assert_eq!(written, 0, "a failed call wrote");
                                kept(self.rejected(&before, rejected))
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
    status32 BlockStatus32 BlockStatus32Request Extent32 u32 false;
    status64 BlockStatus64 BlockStatus64Request Extent64 u64 true;
}

impl Harness {
    fn expect_status(
        &mut self,
        fields: &RequestFields,
        id: ContextId,
        wide: bool,
        extents: Vec<(u64, u64)>,
    ) {
        let context = self
            .terms()
            .contexts
            .iter()
            .find(|context| context.id == id);
        let many = context.is_some_and(|context| context.width == StatusWidth::Wide);
        assert!(many || extents.iter().all(|extent| extent.1 < 1 << 32));
        push(
            &mut self.expected,
            ReplyEvent::Status {
                cookie: fields.cookie,
                context: id.0,
                wide,
                offset: fields.offset,
                extents,
            },
        );
    }
}

/// One extent for the next context, with enough space.
fn whole(n: u64) -> Answer {
    let length = Length::Bytes { n };
    Answer::Status {
        context: 0,
        extents: List(vec![Extent { length, flags: 3 }]),
        truncate: false,
        space: 1000,
    }
}
