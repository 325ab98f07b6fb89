//! The Geminga client: producers and consumers over gRPC.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use geminga_client::{Client, Compression, InitialPosition, Message};
//!
//! let client = Client::builder()
//!     .service_url("http://localhost:6660")
//!     .tenant("shop")
//!     .namespace("prod")
//!     .build()?;
//!
//! // `orders` is short for `persistent://shop/prod/orders`.
//! let producer = client.producer("orders").compression(Compression::Zstd).open().await?;
//! let first = producer.enqueue(Message::new("flat white").key("table-4")).await?;
//! let second = producer.enqueue(Message::new("cake").key("table-4")).await?;
//! println!("stored as {} and {}", first.await?.id, second.await?.id);
//!
//! let consumer = client
//!     .consumer("orders", "kitchen")
//!     .initial_position(InitialPosition::Earliest)
//!     .subscribe()
//!     .await?;
//! let message = consumer.receive().await?;
//! consumer.ack_with_receipt(&message.id).await?;
//! consumer.close().await?;
//! producer.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! A client has one connection to each broker, with one stream for all its producers and one for
//! all its consumers. Both reconnect by themselves. Delivery is at least once: a message whose
//! receipt was lost may be stored twice, one whose acknowledgement has no receipt may come again.
//!
//! *Architecture invariant:* what is sent when, sent again, acknowledged and handed back is
//! decided by state machines without I/O (`batch`, `resend`, `consumer::acks`,
//! `consumer::nacks`). Nothing here is administration: that is REST, and not the client's.

mod backoff;
mod batch;
mod client;
mod completion;
mod compression;
mod connection;
mod consumer;
mod decode;
mod error;
mod link;
mod lookup;
mod message;
mod producer;
mod resend;
mod session;

pub use client::{Client, ClientBuilder, DEFAULT_SERVICE_URL};
pub use completion::SendFuture;
pub use compression::{Compression, UnknownCompression};
pub use connection::BrokerInfo;
pub use consumer::{
    Consumer, ConsumerBuilder, InitialPosition, Listener, Queued, SubscriptionPosition,
    SubscriptionType,
};
pub use error::{
    BrokerError, ClientError, ConsumerError, DecodeError, ErrorCode, ReceiveError, SendError,
};
pub use geminga_proto::id::{EntryId, LedgerId, MessageIndex, Position};
pub use message::{Message, MessageId, ReceivedMessage, SendReceipt};
pub use producer::{Producer, ProducerBuilder};
