//! [`Relay`]: a TCP relay that a scenario can cut: bytes stop, and neither side is told, as when a
//! network between two machines fails. It needs no privilege, and cuts off one process alone.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Which bytes stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// All.
    Both,
    /// Those to the address that is relayed to.
    ToTarget,
    /// Those from there.
    FromTarget,
}

/// Relays connections to one address. Dropping it closes them.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    cut: Arc<watch::Sender<Option<Cut>>>,
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
        let cut = Arc::new(watch::Sender::new(None));
        let state = Arc::clone(&cut);
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let (target, cut) = (target.clone(), state.subscribe());
                connections.spawn(async move {
                    let mut now = cut.clone();
                    // While it is cut, in whichever direction, connecting leads nowhere.
                    if now.wait_for(Option::is_none).await.is_err() {
                        return;
                    }
                    let Ok(far) = TcpStream::connect(&target).await else { return };
                    relay(near, far, cut).await;
                });
            }
        });
        Self { address, cut, accepting }
    }

    /// Where it listens, as `host:port`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// From now on nothing passes that way; connections stay open.
    pub fn cut(&self, cut: Cut) {
        self.cut.send_replace(Some(cut));
    }

    /// What was held back passes again.
    pub fn heal(&self) {
        self.cut.send_replace(None);
    }
}

/// Until either side is done.
async fn relay(near: TcpStream, far: TcpStream, cut: watch::Receiver<Option<Cut>>) {
    let (near_out, near_in) = near.into_split();
    let (far_out, far_in) = far.into_split();
    tokio::select! {
        () = one_way(near_out, far_in, cut.clone(), Cut::ToTarget) => {}
        () = one_way(far_out, near_in, cut, Cut::FromTarget) => {}
    }
}

async fn one_way(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut cut: watch::Receiver<Option<Cut>>,
    way: Cut,
) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut bytes).await;
        let passes = |cut: &Option<Cut>| cut.is_none_or(|cut| cut != Cut::Both && cut != way);
        if cut.wait_for(passes).await.is_err() {
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
        for cut in [Cut::Both, Cut::ToTarget, Cut::FromTarget] {
            relay.cut(cut);
            socket.write_all(&[5]).await.expect("the near side takes it");
            let silence = Duration::from_millis(100);
            let heard = tokio::time::timeout(silence, socket.read_exact(&mut answer)).await;
            assert!(heard.is_err(), "no answer passes, and nobody hangs up");
            relay.heal();
            socket.read_exact(&mut answer).await.expect("answered");
            assert_eq!(answer, [6]);
        }
    }

    #[tokio::test]
    async fn what_is_cut_one_way_still_passes_the_other_way() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let target = listener.local_addr().expect("bound").to_string();
        let relay = Relay::start(target).await;
        let mut near = TcpStream::connect(relay.address()).await.expect("connects");
        let (mut far, _) = listener.accept().await.expect("a connection");
        let mut byte = [0];
        relay.cut(Cut::FromTarget);
        near.write_all(&[1]).await.expect("written");
        far.read_exact(&mut byte).await.expect("it passes");
        relay.cut(Cut::ToTarget);
        far.write_all(&[2]).await.expect("written");
        near.read_exact(&mut byte).await.expect("it passes");
        assert_eq!(byte, [2]);
    }
}
