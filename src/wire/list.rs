//! Lists: items on the wire or in memory.

/// Traits of lists that are either on the wire or in memory: equality, hash and
/// `Debug` depend on the items only.
macro_rules! list_traits {
    ($list:ident) => {
        impl PartialEq for $list<'_> {
            fn eq(&self, other: &Self) -> bool {
                self.iter().eq(other.iter())
            }
        }

        impl Eq for $list<'_> {}

        impl core::hash::Hash for $list<'_> {
            fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
                self.iter().for_each(|item| item.hash(state));
            }
        }

        impl core::fmt::Debug for $list<'_> {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.debug_list().entries(self.iter()).finish()
            }
        }
    };
}
pub(super) use list_traits;

/// Where the items of a list are. On the wire each has `N` bytes.
#[derive(Clone, Copy)]
pub(super) enum Items<'a, T, const N: usize> {
    Wire(&'a [[u8; N]]),
    Memory(&'a [T]),
}

/// Defines a list of numbers of `$size` bytes.
macro_rules! list {
    ($(#[$meta:meta])* $list:ident of $item:ident($size:literal)) => {
        $(#[$meta])*
        #[derive(Clone, Copy)]
        pub struct $list<'a>(crate::wire::list::Items<'a, $item, $size>);

        impl<'a> $list<'a> {
            /// The whole items at the beginning of `bytes`.
            pub(super) fn on_wire(bytes: &'a [u8]) -> Self {
                Self(crate::wire::list::Items::Wire(bytes.as_chunks().0))
            }

            /// The items in order.
            pub fn iter(&self) -> impl Iterator<Item = $item> + Clone + 'a {
                let (wire, memory): (&'a [[u8; $size]], &'a [$item]) = match self.0 {
                    crate::wire::list::Items::Wire(items) => (items, &[]),
                    crate::wire::list::Items::Memory(items) => (&[], items),
                };
                wire.iter()
                    .map(|bytes| crate::wire::bytes::Fields::new(bytes).get())
                    .chain(memory.iter().copied())
            }

            /// The number of items.
            #[must_use]
            pub fn len(&self) -> usize {
                match self.0 {
                    crate::wire::list::Items::Wire(items) => items.len(),
                    crate::wire::list::Items::Memory(items) => items.len(),
                }
            }

            /// Whether the list is empty.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// Whether the list contains `item`.
            #[must_use]
            pub fn contains(&self, item: $item) -> bool {
                self.iter().any(|other| other == item)
            }
        }

        impl<'a> From<&'a [$item]> for $list<'a> {
            fn from(items: &'a [$item]) -> Self {
                Self(crate::wire::list::Items::Memory(items))
            }
        }

        crate::wire::list::list_traits!($list);

        /// On the wire: a list in memory needs an owner.
        #[cfg(feature = "arbitrary")]
        impl<'a> arbitrary::Arbitrary<'a> for $list<'a> {
            fn arbitrary(u: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
                u.arbitrary().map(Self::on_wire)
            }
        }
    };
}
pub(super) use list;

/// Whether one of a few items is there twice.
pub(crate) fn has_repeated<T: PartialEq>(mut items: impl Iterator<Item = T> + Clone) -> bool {
    while let Some(item) = items.next() {
        if items.clone().any(|other| other == item) {
            return true;
        }
    }
    false
}
