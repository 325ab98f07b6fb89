//! [`Watchman`]: the task that looks at a connection while somebody waits for an answer, and pings
//! a broker that has become quiet. `liveness.rs` decides; this does it.
//!
//! Invariants: it sleeps without a timer while nobody waits; it ends with the connection, and so do
//! its pings; what is asked while it goes to sleep wakes it.

use std::sync::Arc;

use geminga_proto::v1;
use geminga_proto::v1::messaging_client::MessagingClient;
use tonic::transport::Channel;

use super::{Streams, note};
use crate::liveness::{Step, TICK, Vitals, Watch};

/// Looks after a connection.
pub(super) struct Watchman {
    pub vitals: Arc<Vitals>,
    pub streams: Arc<Streams>,
    pub grpc: MessagingClient<Channel>,
    /// A ping is another handshake: the least that every broker answers.
    pub request: v1::HandshakeRequest,
}

impl Watchman {
    /// Runs until the connection is dead.
    pub async fn run(self) {
        let vitals = Arc::clone(&self.vitals);
        tokio::select! {
            () = vitals.dead() => {}
            () = self.watch() => {}
        }
    }

    fn somebody_waits(&self) -> bool {
        self.vitals.has_calls() || self.streams.has_waiting()
    }

    async fn watch(self) {
        let mut watch = Watch::default();
        loop {
            self.vitals.armed().await;
            loop {
                // First of all: what is answered at once needs no look, however much of it comes.
                tokio::time::sleep(TICK).await;
                let step = watch.look(self.vitals.signs(), || self.somebody_waits());
                self.vitals.set_doubtful(watch.is_doubtful());
                match step {
                    Step::Look => {}
                    Step::Ping => self.ping(),
                    Step::Park => {
                        self.vitals.disarm();
                        // Who asked before this line relied on the watch.
                        if self.somebody_waits() {
                            self.vitals.asked();
                        }
                        break;
                    }
                }
            }
        }
    }

    fn ping(&self) {
        let (vitals, mut grpc) = (Arc::clone(&self.vitals), self.grpc.clone());
        let request = self.request.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = vitals.dead() => {}
                answer = grpc.handshake(request) => note(&vitals, &answer),
            }
        });
    }
}
