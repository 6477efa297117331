//! Both clients as one: the tests are written once.

use nbd_codec::Negotiated;
use nbd_codec::wire::flags::CommandFlags;
use nbd_io::client::{BlockStatus, Error, Options};

macro_rules! disk {
    ($(async fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        /// A client.
        pub trait Disk: Clone {
            async fn open(uri: &str, options: Options) -> Result<Self, Error>;
            fn negotiated(&self) -> Negotiated;
            fn connections(&self) -> usize;
            async fn disconnect(&self);
            $(async fn $name(&self, $($argument: $type),*) -> Result<$result, Error>;)*
        }

        impl Disk for nbd_io::tokio::Client {
            async fn open(uri: &str, options: Options) -> Result<Self, Error> {
                Self::connect_with(uri, options).await
            }
            fn negotiated(&self) -> Negotiated {
                self.negotiated()
            }
            fn connections(&self) -> usize {
                self.connections()
            }
            async fn disconnect(&self) {
                self.disconnect().await;
            }
            $(async fn $name(&self, $($argument: $type),*) -> Result<$result, Error> {
                self.$name($($argument),*).await
            })*
        }

        impl Disk for nbd_io::blocking::Client {
            async fn open(uri: &str, options: Options) -> Result<Self, Error> {
                Self::connect_with(uri, options)
            }
            fn negotiated(&self) -> Negotiated {
                self.negotiated()
            }
            fn connections(&self) -> usize {
                self.connections()
            }
            async fn disconnect(&self) {
                self.disconnect();
            }
            $(async fn $name(&self, $($argument: $type),*) -> Result<$result, Error> {
                self.$name($($argument),*)
            })*
        }
    };
}

disk! {
    async fn read_at(offset: u64, length: usize) -> bytes::Bytes;
    async fn read_at_with(offset: u64, length: usize, flags: CommandFlags) -> bytes::Bytes;
    async fn read_into(offset: u64, into: &mut [u8]) -> ();
    async fn write_at(offset: u64, data: &[u8]) -> ();
    async fn write_at_with(offset: u64, data: bytes::Bytes, flags: CommandFlags) -> ();
    async fn flush() -> ();
    async fn trim(offset: u64, length: u64) -> ();
    async fn trim_with(offset: u64, length: u64, flags: CommandFlags) -> ();
    async fn write_zeroes(offset: u64, length: u64) -> ();
    async fn write_zeroes_with(offset: u64, length: u64, flags: CommandFlags) -> ();
    async fn cache(offset: u64, length: u64) -> ();
    async fn block_status(offset: u64, length: u64) -> BlockStatus;
    async fn block_status_with(offset: u64, length: u64, flags: CommandFlags) -> BlockStatus;
    async fn block_status_of(
        contexts: &[&str],
        offset: u64,
        length: u64,
        flags: CommandFlags
    ) -> BlockStatus;
    async fn resize(size: u64) -> ();
}

/// Runs a test with both clients.
#[macro_export]
macro_rules! both {
    ($($(#[$meta:meta])* $test:ident;)*) => {$(
        mod $test {
            $(#[$meta])*
            #[tokio::test]
            async fn tokio() -> Result<(), nbd_io::client::Error> {
                super::$test::<nbd_io::tokio::Client>().await
            }

            $(#[$meta])*
            #[tokio::test]
            async fn blocking() -> Result<(), nbd_io::client::Error> {
                super::$test::<nbd_io::blocking::Client>().await
            }
        }
    )*};
}
