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
//! all its consumers. Give it the addresses of several brokers, and it needs any one of them:
//!
//! ```
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = geminga_client::Client::builder()
//!     .service_url("http://broker-1:6660,broker-2:6660,broker-3:6660")
//!     .build()?;
//! # Ok(())
//! # }
//! # example().expect("these are addresses");
//! ```
//!
//! Producers and consumers find their topic's broker, and find it again when it is stopped, dies,
//! or falls silent; the application notices nothing but latency ([`ClientError`] has the table of
//! what it can see). What has no receipt is sent again, in order. Delivery is at least once: a
//! message whose receipt was lost may be stored twice, one whose acknowledgement has no receipt
//! may come again.
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
mod flight;
mod link;
mod liveness;
mod lookup;
mod message;
mod pool;
mod producer;
mod resend;
mod service_urls;
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
    UrlFailure,
};
pub use geminga_proto::id::{EntryId, LedgerId, MessageIndex, Position};
pub use message::{Message, MessageId, ReceivedMessage, SendReceipt};
pub use producer::{Producer, ProducerBuilder};
