//! [`Relay`]: a TCP relay that a scenario can cut: bytes stop, and neither side is told, as when a
//! network between two machines fails. It needs no privilege, and cuts off one process alone.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Relays connections to one address. Dropping it closes them.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    whole: Arc<watch::Sender<bool>>,
    accepting: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Relay {
    /// Relays to `target`, a `host:port`.
    ///
    /// # Panics
    /// When no port is free.
    pub async fn start(target: String) -> Self {
        Self::start_at("127.0.0.1:0", target).await
    }

    /// The same where it must listen at this address.
    ///
    /// # Panics
    /// When it is taken.
    pub async fn start_at(listen: &str, target: String) -> Self {
        let listener = TcpListener::bind(listen).await.expect("the address is free");
        let address = listener.local_addr().expect("it is bound");
        let whole = Arc::new(watch::Sender::new(true));
        let state = Arc::clone(&whole);
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let (target, whole) = (target.clone(), state.subscribe());
                connections.spawn(async move {
                    let mut open = whole.clone();
                    // While it is cut, connecting leads nowhere.
                    if open.wait_for(|whole| *whole).await.is_err() {
                        return;
                    }
                    let Ok(far) = TcpStream::connect(&target).await else { return };
                    relay(near, far, whole).await;
                });
            }
        });
        Self { address, whole, accepting }
    }

    /// Where it listens, as `host:port`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// From now on nothing passes; connections stay open.
    pub fn cut(&self) {
        self.whole.send_replace(false);
    }

    /// What was held back passes again.
    pub fn heal(&self) {
        self.whole.send_replace(true);
    }
}

/// Until either side is done.
async fn relay(near: TcpStream, far: TcpStream, whole: watch::Receiver<bool>) {
    let (near_out, near_in) = near.into_split();
    let (far_out, far_in) = far.into_split();
    tokio::select! {
        () = one_way(near_out, far_in, whole.clone()) => {}
        () = one_way(far_out, near_in, whole) => {}
    }
}

async fn one_way(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut whole: watch::Receiver<bool>,
) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut bytes).await;
        if whole.wait_for(|whole| *whole).await.is_err() {
            return;
        }
        match read {
            Ok(count) if count > 0 && to.write_all(&bytes[..count]).await.is_ok() => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_is_cut_is_silent_and_what_is_healed_goes_on() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let target = listener.local_addr().expect("bound").to_string();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            let mut byte = [0];
            while socket.read_exact(&mut byte).await.is_ok() {
                socket.write_all(&[byte[0] + 1]).await.expect("written");
            }
        });
        let relay = Relay::start(target).await;
        let mut socket = TcpStream::connect(relay.address()).await.expect("connects");
        let mut answer = [0];
        socket.write_all(&[1]).await.expect("written");
        socket.read_exact(&mut answer).await.expect("answered");
        assert_eq!(answer, [2]);
        relay.cut();
        socket.write_all(&[5]).await.expect("the near side takes it");
        let silence = Duration::from_millis(100);
        let heard = tokio::time::timeout(silence, socket.read_exact(&mut answer)).await;
        assert!(heard.is_err(), "nothing passes, and nobody hangs up");
        relay.heal();
        socket.read_exact(&mut answer).await.expect("answered");
        assert_eq!(answer, [6]);
    }
}
