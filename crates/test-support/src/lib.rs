//! What the tests of several packages share.

pub mod certificates;
pub mod images;
pub mod peer;
pub mod program;
pub mod server;
pub mod skipped;

/// An enumeration of what a faulty program can have wrong, by name.
#[macro_export]
macro_rules! faults {
    ($(#[$meta:meta])* $($name:ident)*) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Fault {
            $($name,)*
        }

        impl Fault {
            /// Every value.
            #[allow(dead_code, reason = "only the test of all faults has it")]
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The fault of this name.
            #[allow(dead_code, reason = "only the example has it from a command line")]
            pub fn parse(name: &str) -> Option<Self> {
                match name {
                    $(stringify!($name) => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}
