//! A TCP proxy that does to its connections what a network or a process can do, as opposed to a
//! broker that ends a stream: it cuts them, refuses them, or goes silent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    pub url: String,
    address: SocketAddr,
    target: String,
    /// How often connections were cut.
    cut: watch::Sender<u32>,
    frozen: watch::Sender<bool>,
    accepted: Arc<AtomicU32>,
    accepting: Mutex<AbortHandle>,
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut frozen: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(read) = from.read(&mut buffer).await else { return };
        // What was read while it is frozen stays here, as in a socket's buffer.
        if frozen.wait_for(|frozen| !frozen).await.is_err() || read == 0 {
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

impl Proxy {
    /// Forwards to the server at `url`.
    pub async fn to(url: &str) -> Self {
        let target = url.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (cut, accepted) = (watch::Sender::new(0), Arc::default());
        let frozen = watch::Sender::new(false);
        let accepting = Self::accept(listener, &target, &cut, &frozen, &accepted);
        Self {
            url: format!("http://{address}"),
            address,
            target,
            cut,
            frozen,
            accepted,
            accepting: Mutex::new(accepting),
        }
    }

    fn accept(
        listener: TcpListener,
        target: &str,
        cut: &watch::Sender<u32>,
        frozen: &watch::Sender<bool>,
        accepted: &Arc<AtomicU32>,
    ) -> AbortHandle {
        let (target, cut) = (target.to_owned(), cut.clone());
        let (frozen, accepted) = (frozen.clone(), Arc::clone(accepted));
        let accepting = tokio::spawn(async move {
            while let Ok((inbound, _)) = listener.accept().await {
                accepted.fetch_add(1, Ordering::Relaxed);
                let (target, mut cut) = (target.clone(), cut.subscribe());
                let (there, back) = (frozen.subscribe(), frozen.subscribe());
                tokio::spawn(async move {
                    let Ok(outbound) = TcpStream::connect(&target).await else { return };
                    // Else small frames wait for each other's acknowledgements.
                    if inbound.set_nodelay(true).and(outbound.set_nodelay(true)).is_err() {
                        return;
                    }
                    let (inbound_read, inbound_write) = inbound.into_split();
                    let (outbound_read, outbound_write) = outbound.into_split();
                    tokio::select! {
                        _ = cut.changed() => {}
                        // Either side may end as it likes.
                        () = pump(inbound_read, outbound_write, there) => {}
                        () = pump(outbound_read, inbound_write, back) => {}
                    }
                });
            }
        });
        accepting.abort_handle()
    }

    /// Cuts every connection that is open.
    pub fn cut(&self) {
        self.cut.send_modify(|times| *times += 1);
    }

    /// Takes connections and everything that is sent, and says nothing, as a process that was
    /// stopped does.
    pub fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    /// Goes on with everything that was sent meanwhile.
    pub fn thaw(&self) {
        self.frozen.send_replace(false);
    }

    /// Cuts every connection and refuses new ones, as a process that was killed does.
    pub fn kill(&self) {
        self.accepting.lock().abort();
        self.cut();
    }

    /// Takes connections again, at the same address.
    pub async fn revive(&self) {
        let listener = TcpListener::bind(self.address).await.expect("the port is free again");
        let accepting =
            Self::accept(listener, &self.target, &self.cut, &self.frozen, &self.accepted);
        *self.accepting.lock() = accepting;
    }

    /// Connections that were ever made.
    pub fn accepted(&self) -> u32 {
        self.accepted.load(Ordering::Relaxed)
    }
}
