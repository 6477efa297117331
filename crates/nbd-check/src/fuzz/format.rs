//! The binary format of scripts. Every byte string decodes to a script, and
//! every script encodes to a byte string.
//!
//! Fuzzing relies on the first property: no input is wasted, and a small change
//! of the bytes is a small change of the script. Seeds rely on the second: a
//! recorded session becomes a script, and the script becomes bytes.

/// Decodes from the front of the fuzzer's bytes. Past the end, all bytes are
/// zero.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of these bytes.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        match self.0 {
            [first, rest @ ..] => {
                self.0 = rest;
                *first
            }
            [] => 0,
        }
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// A value that can be decoded from, and encoded to, the format.
pub trait Stored: Sized {
    /// Decodes a value; there is one for any bytes.
    fn read(input: &mut Input) -> Self;

    /// Encodes the value.
    fn write(&self, out: &mut Vec<u8>);
}

impl Stored for u8 {
    fn read(input: &mut Input) -> Self {
        input.byte()
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(*self);
    }
}

impl Stored for bool {
    fn read(input: &mut Input) -> Self {
        input.byte() & 1 == 1
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Stored for u16 {
    fn read(input: &mut Input) -> Self {
        u16::from_be_bytes([input.byte(), input.byte()])
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.to_be_bytes());
    }
}

/// Small numbers and boundary values (powers of two, one less than these, the
/// largest numbers) take one or two bytes.
impl Stored for u64 {
    fn read(input: &mut Input) -> Self {
        let tag = input.byte();
        match tag {
            0..=0xef => u64::from(tag),
            0xf0..=0xf7 => {
                let n = usize::from(tag - 0xf0) + 1;
                (0..n).fold(0, |number, _| number << 8 | u64::from(input.byte()))
            }
            0xf8..=0xf9 => 512 * u64::from(input.byte()),
            0xfa..=0xfb => 1 << (input.byte() & 63),
            0xfc..=0xfd => (1 << (input.byte() & 63)) - 1,
            0xfe..=0xff => u64::MAX - u64::from(input.byte()),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match u8::try_from(*self) {
            Ok(small) if small <= 0xef => out.push(small),
            _ => {
                out.push(0xf7);
                out.extend(self.to_be_bytes());
            }
        }
    }
}

/// A length, followed by that many bytes.
impl Stored for Vec<u8> {
    fn read(input: &mut Input) -> Self {
        let n = u64::read(input);
        input
            .bytes(usize::try_from(n).unwrap_or(usize::MAX))
            .to_vec()
    }

    fn write(&self, out: &mut Vec<u8>) {
        u64::try_from(self.len()).unwrap().write(out);
        out.extend(self);
    }
}

/// A length, followed by that many items: at most 39.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct List<T>(pub Vec<T>);

impl<T: Stored> Stored for List<T> {
    fn read(input: &mut Input) -> Self {
        let n = input.byte() % 40;
        Self((0..n).map(|_| T::read(input)).collect())
    }

    fn write(&self, out: &mut Vec<u8>) {
        assert!(self.0.len() < 40, "a list has at most 39 items");
        out.push(self.0.len() as u8);
        self.0.iter().for_each(|item| item.write(out));
    }
}

/// Items up to the end of the input: at most 128.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rest<T>(pub Vec<T>);

impl<T: Stored> Stored for Rest<T> {
    fn read(input: &mut Input) -> Self {
        let mut items = Vec::new();
        while !input.is_empty() && items.len() < 128 {
            items.push(T::read(input));
        }
        Self(items)
    }

    fn write(&self, out: &mut Vec<u8>) {
        self.0.iter().for_each(|item| item.write(out));
    }
}

/// Declares structs that are stored as their fields in order.
#[macro_export]
macro_rules! structs {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }
    )*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }

        impl $crate::fuzz::format::Stored for $name {
            fn read(input: &mut $crate::fuzz::format::Input) -> Self {
                Self { $($field: <$type>::read(input),)* }
            }

            fn write(&self, out: &mut Vec<u8>) {
                $(self.$field.write(out);)*
            }
        }
    )*};
}

/// Declares enums that are stored as a byte for the variant, followed by its
/// fields.
#[macro_export]
macro_rules! enums {
    ($(
        $(#[$meta:meta])*
        pub enum $name:ident {
            $($(#[$variant_meta:meta])* $variant:ident { $($field:ident: $type:ty),* $(,)? },)*
        }
    )*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_meta])* $variant { $($field: $type),* },)* }

        impl $crate::fuzz::format::Stored for $name {
            #[allow(unused_assignments)]
            fn read(input: &mut $crate::fuzz::format::Input) -> Self {
                let variants = [$(stringify!($variant)),*].len() as u8;
                let mut which = input.byte() % variants;
                $(
                    if which == 0 {
                        return Self::$variant { $($field: <$type>::read(input)),* };
                    }
                    which -= 1;
                )*
                unreachable!("the remainder is less than the number of variants")
            }

            #[allow(unused_assignments)]
            fn write(&self, out: &mut Vec<u8>) {
                let mut which = 0;
                $(
                    if let Self::$variant { $($field),* } = self {
                        out.push(which);
                        $($field.write(out);)*
                        return;
                    }
                    which += 1;
                )*
            }
        }
    )*};
}

/// Decodes a script from the fuzzer's bytes.
#[must_use]
pub fn read<T: Stored>(bytes: &[u8]) -> T {
    T::read(&mut Input::new(bytes))
}

/// Encodes a script as the bytes of a seed.
pub fn write(script: &impl Stored) -> Vec<u8> {
    let mut out = Vec::new();
    script.write(&mut out);
    out
}
