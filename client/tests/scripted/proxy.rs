//! A TCP proxy that cuts its connections when it is told to: how a network or a process fails,
//! as opposed to a broker that ends a stream.

use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    pub url: String,
    cut: Arc<Notify>,
}

impl Proxy {
    /// Forwards to the server at `url`.
    pub async fn to(url: &str) -> Self {
        let target = url.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let cut = Arc::new(Notify::new());
        let cuts = Arc::clone(&cut);
        tokio::spawn(async move {
            while let Ok((mut inbound, _)) = listener.accept().await {
                let (target, cut) = (target.clone(), Arc::clone(&cuts));
                tokio::spawn(async move {
                    let Ok(mut outbound) = TcpStream::connect(&target).await else { return };
                    tokio::select! {
                        () = cut.notified() => {}
                        // Either side may end as it likes.
                        _ = copy_bidirectional(&mut inbound, &mut outbound) => {}
                    }
                });
            }
        });
        Self { url, cut }
    }

    /// Cuts every connection that is open.
    pub fn cut(&self) {
        self.cut.notify_waiters();
    }
}
