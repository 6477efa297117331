//! Headers: a magic number and fields, of fixed size.

/// Defines a header: the structure, its size, decoder and encoder. The order of
/// the fields is their order on the wire.
macro_rules! header {
    (
        $(#[$meta:meta])*
        $name:ident($size:literal, $magic:ident, $message:literal) {
            $($(#[$field_meta:meta])* $field:ident: $kind:ty,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $kind,)*
        }

        impl $name {
            /// Size of the header in bytes.
            pub const SIZE: usize = $size;

            /// Decodes the header; the bytes after it are left in the input.
            /// `Ok(None)` if `input` ends before the header does.
            ///
            /// # Errors
            ///
            /// [`DecodeError::Magic`](crate::wire::DecodeError::Magic) at the
            /// first wrong byte.
            #[inline]
            pub fn decode(input: &mut &[u8]) -> Result<Option<Self>, crate::wire::DecodeError> {
                crate::wire::bytes::decode_header(input, Self::parse, $magic, $message)
            }

            /// Decodes the header; `None` if it has another magic number.
            #[inline]
            pub(crate) fn parse(bytes: &[u8; Self::SIZE]) -> Option<Self> {
                let mut fields = crate::wire::bytes::Fields::new(bytes);
                fields.next_is($magic).then(|| Self {
                    $($field: fields.get(),)*
                })
            }

            /// Encodes the header.
            #[must_use]
            #[inline]
            pub fn encode(self) -> [u8; Self::SIZE] {
                crate::wire::bytes::HeaderBuffer::new()
                    .field($magic)
                    $(.field(self.$field))*
                    .into_array()
            }
        }
    };
}
pub(super) use header;
