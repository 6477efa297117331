//! The methods of the clients of all runtimes with an allocator.

/// The methods of a `Client { pool }`. `$($kind)+` is `async fn` or `fn`, and `$run` runs the
/// future of a call.
macro_rules! methods {
    (($($kind:tt)+) |$future:ident| $run:expr) => {
        impl Client {
            /// What was negotiated; the size follows [`resize`](Self::resize).
            #[must_use]
            pub fn negotiated(&self) -> nbd_codec::Negotiated {
                self.pool.negotiated()
            }

            /// The size of the export in bytes.
            #[must_use]
            pub fn size(&self) -> u64 {
                self.negotiated().size
            }

            /// The metadata contexts that the server granted.
            #[must_use]
            pub fn contexts(&self) -> Vec<$crate::client::Context> {
                self.pool.contexts()
            }

            /// How many connections there are.
            #[must_use]
            pub fn connections(&self) -> usize {
                self.pool.connections()
            }

            /// Reads `length` bytes at `offset`, in bytes from the start of the export.
            ///
            /// # Errors
            ///
            #[doc = $crate::client::methods::errors!()]
            pub $($kind)+ read_at(&self, offset: u64, length: usize) -> Result<bytes::Bytes, Error> {
                let $future = self.pool.read(offset, length, nbd_codec::wire::flags::CommandFlags::NONE);
                $run
            }

            /// As [`read_at`](Self::read_at), with `DF`: in one piece, as the server had it at
            /// one time, if it is not longer than the maximum payload.
            ///
            /// # Errors
            ///
            #[doc = $crate::client::methods::errors!()]
            pub $($kind)+ read_at_with(
                &self,
                offset: u64,
                length: usize,
                flags: nbd_codec::wire::flags::CommandFlags,
            ) -> Result<bytes::Bytes, Error> {
                let $future = self.pool.read(offset, length, flags);
                $run
            }

            /// Reads into a slice. If the call fails or is dropped, a part of the slice may
            /// have been written.
            ///
            /// # Errors
            ///
            #[doc = $crate::client::methods::errors!()]
            pub $($kind)+ read_into(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
                let $future = self.pool.read_into(offset, into, nbd_codec::wire::flags::CommandFlags::NONE);
                $run
            }

            /// Writes data at `offset`, in bytes from the start of the export.
            ///
            /// # Errors
            ///
            #[doc = $crate::client::methods::errors!()]
            pub $($kind)+ write_at<'a>(
                &self,
                offset: u64,
                data: impl Into<$crate::client::Payload<'a>>,
            ) -> Result<(), Error> {
                let $future = self.pool.write(offset, data.into(), nbd_codec::wire::flags::CommandFlags::NONE);
                $run
            }

            /// As [`write_at`](Self::write_at), with `FUA`: the data is on stable storage when
            /// the call returns.
            ///
            /// # Errors
            ///
            #[doc = $crate::client::methods::errors!()]
            pub $($kind)+ write_at_with<'a>(
                &self,
                offset: u64,
                data: impl Into<$crate::client::Payload<'a>>,
                flags: nbd_codec::wire::flags::CommandFlags,
            ) -> Result<(), Error> {
                let $future = self.pool.write(offset, data.into(), flags);
                $run
            }

            /// Waits until all writes that were answered before are on stable storage.
            ///
            /// # Errors
            ///
            #[doc = $crate::client::methods::errors!()]
            pub $($kind)+ flush(&self) -> Result<(), Error> {
                let $future = self.pool.flush();
                $run
            }

            /// Tells the server that the content of a range is not needed. Of blocks that are
            /// in the range in part nothing is discarded.
            ///
            /// # Errors
            ///
            #[doc = $crate::client::methods::errors!()]
            pub $($kind)+ trim(&self, offset: u64, length: u64) -> Result<(), Error> {
                let $future = self.pool.trim(offset, length, nbd_codec::wire::flags::CommandFlags::NONE);
                $run
            }

            /// As [`trim`](Self::trim), with `FUA`.
            ///
            /// # Errors
            ///
            #[doc = $crate::client::methods::errors!()]
            pub $($kind)+ trim_with(
                &self,
                offset: u64,
                length: u64,
                flags: nbd_codec::wire::flags::CommandFlags,
            ) -> Result<(), Error> {
                let $future = self.pool.trim(offset, length, flags);
                $run
            }

            /// Writes zeroes; the server may make a hole.
            ///
            /// # Errors
            ///
            #[doc = $crate::client::methods::errors!()]
            pub $($kind)+ write_zeroes(&self, offset: u64, length: u64) -> Result<(), Error> {
                let $future = self.pool.write_zeroes(offset, length, nbd_codec::wire::flags::CommandFlags::NONE);
                $run
            }

            /// As [`write_zeroes`](Self::write_zeroes), with `FUA`, `NO_HOLE` or `FAST_ZERO`.
            ///
            /// # Errors
            ///
            #[doc = $crate::client::methods::errors!()]
            pub $($kind)+ write_zeroes_with(
                &self,
                offset: u64,
                length: u64,
                flags: nbd_codec::wire::flags::CommandFlags,
            ) -> Result<(), Error> {
                let $future = self.pool.write_zeroes(offset, length, flags);
                $run
            }

            /// Asks the server to read a range into its cache.
            ///
            /// # Errors
            ///
            #[doc = $crate::client::methods::errors!()]
            pub $($kind)+ cache(&self, offset: u64, length: u64) -> Result<(), Error> {
                let $future = self.pool.cache(offset, length);
                $run
            }

            /// Asks for the status of a range in all metadata contexts that were granted.
            ///
            /// The extents cover the range from its beginning, maybe not all of it: ask again
            /// from where they end.
            ///
            /// # Errors
            ///
            #[doc = $crate::client::methods::errors!()]
            pub $($kind)+ block_status(
                &self,
                offset: u64,
                length: u64,
            ) -> Result<$crate::client::BlockStatus, Error> {
                let $future = self.pool.block_status(offset, length, nbd_codec::wire::flags::CommandFlags::NONE, None);
                $run
            }

            /// As [`block_status`](Self::block_status), with `REQ_ONE`: one extent.
            ///
            /// # Errors
            ///
            #[doc = $crate::client::methods::errors!()]
            pub $($kind)+ block_status_with(
                &self,
                offset: u64,
                length: u64,
                flags: nbd_codec::wire::flags::CommandFlags,
            ) -> Result<$crate::client::BlockStatus, Error> {
                let $future = self.pool.block_status(offset, length, flags, None);
                $run
            }

            /// As [`block_status_with`](Self::block_status_with), in the contexts with these
            /// names only. Needs extended headers and a server with `BLOCK_STATUS_PAYLOAD`.
            ///
            /// # Errors
            ///
            #[doc = $crate::client::methods::errors!()]
            pub $($kind)+ block_status_of(
                &self,
                contexts: &[&str],
                offset: u64,
                length: u64,
                flags: nbd_codec::wire::flags::CommandFlags,
            ) -> Result<$crate::client::BlockStatus, Error> {
                let $future = self.pool.block_status(offset, length, flags, Some(contexts));
                $run
            }

            /// Changes the size of the export to `size` bytes. Calls beyond the new end, or
            /// beyond the old one, fail until it is done.
            ///
            /// # Errors
            ///
            #[doc = $crate::client::methods::errors!()]
            pub $($kind)+ resize(&self, size: u64) -> Result<(), Error> {
                let $future = self.pool.resize(size);
                $run
            }

            /// Ends the session: the commands in flight are answered, `DISC` is sent and the
            /// connections are closed. Later calls of any clone fail with
            /// [`Error::Disconnected`].
            ///
            /// Dropping the last clone does the same without waiting for it.
            pub $($kind)+ disconnect(&self) {
                let $future = self.pool.disconnect();
                $run
            }
        }

        impl std::fmt::Debug for Client {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct("Client").field("negotiated", &self.negotiated()).finish()
            }
        }
    };
}

/// The errors of every call.
macro_rules! errors {
    () => {
        "[`Error`]: of the arguments (nothing was sent), of the server, or of the connection."
    };
}

pub(crate) use {errors, methods};
