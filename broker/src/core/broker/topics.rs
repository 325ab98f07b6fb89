//! Administration of topics and subscriptions.

use std::sync::Arc;

use geminga_meta::keys;
use geminga_meta::keys::Key;
use geminga_meta::store::MAX_RANGE;
use geminga_proto::topic_name::{NamespaceName, TopicName};

use super::{Broker, keeper};
use crate::core::admin::{AdminError, ResetTo};
use crate::core::api::TopicError;
use crate::core::context::unavailable;
use crate::core::stats::{SubscriptionStats, TopicInternalStats, TopicStats};
use crate::core::topic::{Create, Topic};

impl Broker {
    /// A namespace's topics, sorted.
    ///
    /// # Errors
    /// [`AdminError::NamespaceNotFound`], or why the metadata can't be read.
    pub async fn list_topics(&self, name: &NamespaceName) -> Result<Vec<TopicName>, AdminError> {
        self.namespace(name).await?;
        let prefix = keys::topics_of(name);
        let mut topics = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.metadata().range(&prefix, after.as_deref(), MAX_RANGE).await?;
            for pair in &page.pairs {
                match Key::parse(&pair.key) {
                    Some(Key::Topic(topic)) => topics.push(topic),
                    _ => return Err(AdminError::Record(format!("{:?} is no topic", pair.key))),
                }
            }
            after = page.pairs.into_iter().next_back().map(|pair| pair.key);
            if !page.more || after.is_none() {
                return Ok(topics);
            }
        }
    }

    /// Creates a topic, whatever automatic creation is set to.
    ///
    /// # Errors
    /// [`AdminError::TopicExists`], or why it can't be created.
    pub async fn create_topic(&self, topic: &TopicName) -> Result<(), AdminError> {
        let exists = self.metadata().get(&keys::topic(topic)).await?.is_some();
        if exists || self.inner.topics.get(topic).is_some() {
            return Err(AdminError::TopicExists(topic.to_string()));
        }
        self.topic(topic, Create::Always).await?;
        Ok(())
    }

    /// The topic, loaded, if it exists.
    async fn existing(&self, name: &TopicName) -> Result<Arc<Topic>, AdminError> {
        self.topic(name, Create::Never).await.map_err(|error| match error {
            TopicError::NotFound(_) => AdminError::TopicNotFound(name.to_string()),
            TopicError::NamespaceNotFound(name) => AdminError::NamespaceNotFound(name),
            error => error.into(),
        })
    }

    /// Deletes a topic with its data. Unless forced, refuses while it has producers, consumers or
    /// subscriptions; forced, they are closed with [`TopicError::Deleted`], and a topic that is too
    /// damaged to be loaded is deleted as well.
    ///
    /// # Errors
    /// [`AdminError::TopicNotFound`] or [`AdminError::TopicInUse`], or why it can't be deleted;
    /// then some of its data may be gone already, and deleting it again goes on.
    pub async fn delete_topic(&self, topic: &TopicName, force: bool) -> Result<(), AdminError> {
        self.refuse_stopping()?;
        let (broker, name) = (self.clone(), topic.clone());
        // It goes on without its caller: half of it can't be taken back.
        let deleting = self.inner.context.runtime.spawn(async move {
            let claim = broker.inner.topics.claim(&name).await;
            let loaded = broker.load(&claim, &name, Create::Never).await;
            let deleted = match loaded {
                Ok(topic) => topic.delete(force).await,
                Err(TopicError::Corrupt(why)) if force => broker.delete_damaged(&name, &why).await,
                Err(TopicError::NotFound(_)) => Err(AdminError::TopicNotFound(name.to_string())),
                Err(TopicError::NamespaceNotFound(name)) => {
                    Err(AdminError::NamespaceNotFound(name))
                }
                Err(error) => Err(error.into()),
            };
            broker.inner.topics.release(claim);
            deleted
        });
        deleting.await.map_err(|error| AdminError::Topic(unavailable(error)))?
    }

    /// Closes a topic's ledger and takes it out of the memory; its producers and consumers are
    /// closed with [`TopicError::Unavailable`] and may come back at once.
    ///
    /// # Errors
    /// [`AdminError::TopicNotFound`] if there is none.
    pub async fn unload_topic(&self, topic: &TopicName) -> Result<(), AdminError> {
        self.refuse_stopping()?;
        let (broker, name) = (self.clone(), topic.clone());
        let unloading = self.inner.context.runtime.spawn(async move {
            let claim = broker.inner.topics.claim(&name).await;
            let loaded = claim.topic();
            if let Some(topic) = &loaded {
                keeper::close(&broker.inner.topics, topic, unavailable("it was unloaded")).await;
            }
            broker.inner.topics.release(claim);
            loaded.is_some()
        });
        let unloaded = unloading.await.map_err(|error| AdminError::Topic(unavailable(error)))?;
        if !unloaded && self.metadata().get(&keys::topic(topic)).await?.is_none() {
            return Err(AdminError::TopicNotFound(topic.to_string()));
        }
        Ok(())
    }

    /// A topic's statistics.
    ///
    /// # Errors
    /// [`AdminError::TopicNotFound`], or why it can't be loaded.
    pub async fn topic_stats(&self, topic: &TopicName) -> Result<TopicStats, AdminError> {
        Ok(self.existing(topic).await?.stats()?)
    }

    /// How a topic is stored.
    ///
    /// # Errors
    /// [`AdminError::TopicNotFound`], or why it can't be loaded.
    pub async fn topic_internal_stats(
        &self,
        topic: &TopicName,
    ) -> Result<TopicInternalStats, AdminError> {
        Ok(self.existing(topic).await?.internal_stats()?)
    }

    /// A topic's subscriptions with their statistics, sorted by name.
    ///
    /// # Errors
    /// [`AdminError::TopicNotFound`], or why it can't be loaded.
    pub async fn list_subscriptions(
        &self,
        topic: &TopicName,
    ) -> Result<Vec<(String, SubscriptionStats)>, AdminError> {
        Ok(self.existing(topic).await?.subscriptions()?)
    }

    /// Creates a subscription (durably) without a consumer; the topic too if that is allowed.
    ///
    /// # Errors
    /// [`AdminError::SubscriptionExists`] or [`AdminError::InvalidPosition`], or why the topic
    /// can't be used.
    pub async fn create_subscription(
        &self,
        topic: &TopicName,
        subscription: &str,
        from: ResetTo,
    ) -> Result<(), AdminError> {
        let topic = self.topic(topic, Create::IfAutomatic).await?;
        topic.create_subscription(subscription, from).await
    }

    /// Deletes a subscription. Unless forced, refuses while it has consumers.
    ///
    /// # Errors
    /// [`AdminError::SubscriptionNotFound`] or [`AdminError::SubscriptionInUse`], or why the topic
    /// can't be used.
    pub async fn delete_subscription(
        &self,
        topic: &TopicName,
        subscription: &str,
        force: bool,
    ) -> Result<(), AdminError> {
        self.existing(topic).await?.delete_subscription(subscription, None, force).await
    }

    /// Moves a subscription's cursor. Its consumers are closed with
    /// [`TopicError::Unavailable`] and may come back at once.
    ///
    /// # Errors
    /// [`AdminError::SubscriptionNotFound`] or [`AdminError::InvalidPosition`], or why the topic
    /// can't be used.
    pub async fn reset_subscription(
        &self,
        topic: &TopicName,
        subscription: &str,
        to: ResetTo,
    ) -> Result<(), AdminError> {
        self.existing(topic).await?.reset_subscription(subscription, to).await
    }
}
