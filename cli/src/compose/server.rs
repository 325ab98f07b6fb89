//! [`Server`]: what a server process looks like to the command that runs it.

use std::future::Future;

use super::ready_file::Addresses;

/// A server that was started.
pub trait Server: Sized {
    /// Where it is reached.
    fn addresses(&self) -> &Addresses;

    /// What is left of the start once there is something to close, and may last; nobody is told of
    /// the server before. May be given up at any time, for [`Server::close`].
    ///
    /// # Errors
    /// It must not serve.
    fn join(&mut self) -> impl Future<Output = anyhow::Result<()>> {
        std::future::ready(Ok(()))
    }

    /// Says, to whoever asks and in the log, that everything serves.
    fn set_ready(&self);

    /// Is done when the server can't go on, and says why.
    fn broken(&mut self) -> impl Future<Output = anyhow::Error>;

    /// Ends everything in order.
    ///
    /// # Errors
    /// What didn't end well.
    fn close(self) -> impl Future<Output = anyhow::Result<()>>;
}
