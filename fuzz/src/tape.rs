//! The form in which scripts are stored: every string of bytes is a script,
//! and every script has a string of bytes.
//!
//! The first half is what a fuzzer needs (no input is wasted, a small change
//! of the bytes is a small change of the script), the second half is what
//! seeds need: a recorded session is turned into a script, and the script into
//! bytes.

/// Reads a tape from the front. Behind the end everything is zero.
pub struct Tape<'a>(&'a [u8]);

impl<'a> Tape<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn byte(&mut self) -> u8 {
        match self.0 {
            [first, rest @ ..] => {
                self.0 = rest;
                *first
            }
            [] => 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// A value on a tape.
pub trait OnTape: Sized {
    fn take(tape: &mut Tape) -> Self;
    fn put(&self, out: &mut Vec<u8>);
}

impl OnTape for u8 {
    fn take(tape: &mut Tape) -> Self {
        tape.byte()
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.push(*self);
    }
}

impl OnTape for bool {
    fn take(tape: &mut Tape) -> Self {
        tape.byte() & 1 == 1
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl OnTape for u16 {
    fn take(tape: &mut Tape) -> Self {
        u16::from_be_bytes([tape.byte(), tape.byte()])
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.to_be_bytes());
    }
}

/// Numbers of up to 64 bits. Small ones are short, and the numbers at which
/// programs break (powers of two, and one less; the ends of the range) are
/// short too.
impl OnTape for u64 {
    fn take(tape: &mut Tape) -> Self {
        let tag = tape.byte();
        match tag {
            0..=0xef => u64::from(tag),
            0xf0..=0xf7 => {
                let n = usize::from(tag - 0xf0) + 1;
                (0..n).fold(0, |number, _| number << 8 | u64::from(tape.byte()))
            }
            0xf8..=0xf9 => 512 * u64::from(tape.byte()),
            0xfa..=0xfb => 1 << (tape.byte() & 63),
            0xfc..=0xfd => (1 << (tape.byte() & 63)) - 1,
            0xfe..=0xff => u64::MAX - u64::from(tape.byte()),
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        match u8::try_from(*self) {
            Ok(small) if small <= 0xef => out.push(small),
            _ => {
                out.push(0xf7);
                out.extend(self.to_be_bytes());
            }
        }
    }
}

/// Bytes behind their length.
impl OnTape for Vec<u8> {
    fn take(tape: &mut Tape) -> Self {
        let n = u64::take(tape);
        tape.bytes(usize::try_from(n).unwrap_or(usize::MAX))
            .to_vec()
    }

    fn put(&self, out: &mut Vec<u8>) {
        u64::try_from(self.len()).unwrap().put(out);
        out.extend(self);
    }
}

/// A short list behind its length.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct List<T>(pub Vec<T>);

impl<T: OnTape> OnTape for List<T> {
    fn take(tape: &mut Tape) -> Self {
        let n = tape.byte() % 40;
        Self((0..n).map(|_| T::take(tape)).collect())
    }

    fn put(&self, out: &mut Vec<u8>) {
        assert!(self.0.len() < 40, "a list is short");
        out.push(self.0.len() as u8);
        self.0.iter().for_each(|item| item.put(out));
    }
}

/// What is left of a tape, item by item, up to a sensible number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rest<T>(pub Vec<T>);

impl<T: OnTape> OnTape for Rest<T> {
    fn take(tape: &mut Tape) -> Self {
        let mut items = Vec::new();
        while !tape.is_empty() && items.len() < 128 {
            items.push(T::take(tape));
        }
        Self(items)
    }

    fn put(&self, out: &mut Vec<u8>) {
        self.0.iter().for_each(|item| item.put(out));
    }
}

/// Declares structures whose fields stand on the tape one behind the other.
#[macro_export]
macro_rules! structures {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }
    )*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }

        impl $crate::tape::OnTape for $name {
            fn take(tape: &mut $crate::tape::Tape) -> Self {
                Self { $($field: <$type>::take(tape),)* }
            }

            fn put(&self, out: &mut Vec<u8>) {
                $(self.$field.put(out);)*
            }
        }
    )*};
}

/// Declares choices: a byte says which, its fields stand behind it.
#[macro_export]
macro_rules! choices {
    ($(
        $(#[$meta:meta])*
        pub enum $name:ident {
            $($(#[$choice_meta:meta])* $choice:ident { $($field:ident: $type:ty),* $(,)? },)*
        }
    )*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $name { $($(#[$choice_meta])* $choice { $($field: $type),* },)* }

        impl $crate::tape::OnTape for $name {
            #[allow(unused_assignments)]
            fn take(tape: &mut $crate::tape::Tape) -> Self {
                let choices = [$(stringify!($choice)),*].len() as u8;
                let mut which = tape.byte() % choices;
                $(
                    if which == 0 {
                        return Self::$choice { $($field: <$type>::take(tape)),* };
                    }
                    which -= 1;
                )*
                unreachable!("the remainder is below the number of choices")
            }

            #[allow(unused_assignments)]
            fn put(&self, out: &mut Vec<u8>) {
                let mut which = 0;
                $(
                    if let Self::$choice { $($field),* } = self {
                        out.push(which);
                        $($field.put(out);)*
                        return;
                    }
                    which += 1;
                )*
            }
        }
    )*};
}

/// Reads a script from the bytes of a fuzzer.
pub fn read<T: OnTape>(bytes: &[u8]) -> T {
    T::take(&mut Tape::new(bytes))
}

/// Writes a script as the bytes of a seed.
pub fn write(script: &impl OnTape) -> Vec<u8> {
    let mut out = Vec::new();
    script.put(&mut out);
    out
}
