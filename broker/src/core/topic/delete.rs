//! Deletes a topic: its subscriptions, then its ledgers, then its records.
//!
//! A crash in between leaves a topic that can be deleted again: first the state log forgets the
//! cursors, so that nothing is left behind that belongs to no topic.

use std::time::Duration;

use geminga_ledger::error::DeleteError;
use geminga_meta::keys;
use geminga_meta::store::{Compare, Txn, TxnOutcome};
use geminga_proto::id::{LedgerId, ManagedLedgerId, TopicIncarnation};

use crate::core::admin::AdminError;
use crate::core::api::TopicError;
use crate::core::bundle::{Bundle, state_log_error};
use crate::core::context::unavailable;
use crate::core::topic::Topic;
use crate::core::topic::load::load_ledgers;
use crate::core::topic::maintenance::JobError;
use crate::core::topic::report::Users;

/// Ledgers deleted in one transaction.
const AT_ONCE: usize = 32;
/// How long a job that was begun before may take.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(2);

impl From<JobError> for AdminError {
    fn from(error: JobError) -> Self {
        match error {
            JobError::Later(why) => Self::Topic(unavailable(why)),
            JobError::Metadata(error) => Self::Metadata(error),
            JobError::Fatal(error) => Self::Topic(error),
        }
    }
}

/// Lets a bundle's state log forget the cursors of a topic.
pub async fn forget_cursors(bundle: &Bundle, topic: TopicIncarnation) -> Result<(), TopicError> {
    let log = &bundle.log;
    let room = log.room(0).await.map_err(state_log_error)?;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // Nobody listens if this was dropped meanwhile.
    let done = Box::new(move |result| drop(sender.send(result)));
    log.delete_topic(room, topic, done);
    let lost = |_| unavailable("the bundle's state log was dropped");
    receiver.await.map_err(lost)?.map_err(state_log_error)
}

impl Topic {
    /// Deletes the topic. The caller has its claim.
    ///
    /// # Errors
    /// [`AdminError::TopicInUse`] unless forced, or why it can't be deleted; then some of its data
    /// may be gone, and the topic has closed.
    pub async fn delete(&self, force: bool) -> Result<(), AdminError> {
        let id = self.close_for_deletion(force)?;
        let deleted = self.delete_records(id).await;
        if let Some(map) = self.map.upgrade()
            && let Some(me) = self.me.upgrade()
        {
            map.remove(&me);
        }
        deleted
    }

    /// Nobody waits for what is under way: it goes with the topic.
    fn close_for_deletion(&self, force: bool) -> Result<ManagedLedgerId, AdminError> {
        let mut state = self.state.lock();
        Self::refusal(&state)?;
        let users = Self::users(&state);
        if !force && users != Users::default() {
            let Users { producers, consumers, subscriptions } = users;
            let users = format!(
                "{producers} producers, {consumers} consumers, {subscriptions} subscriptions"
            );
            return Err(AdminError::TopicInUse { topic: self.name.to_string(), users });
        }
        self.close_state(&mut state, &TopicError::Deleted);
        Ok(state.log.ledgers.id)
    }

    async fn delete_records(&self, id: ManagedLedgerId) -> Result<(), AdminError> {
        let started = self.context.env.clock.monotonic();
        while self.state.lock().maintaining {
            if self.context.env.clock.monotonic().saturating_sub(started) > PATIENCE {
                return Err(unavailable("a ledger of it is being opened or closed").into());
            }
            tokio::time::sleep(POLL).await;
        }
        forget_cursors(&self.bundle, self.incarnation).await?;
        self.delete_ledgers(id).await
    }

    async fn delete_ledgers(&self, id: ManagedLedgerId) -> Result<(), AdminError> {
        let context = &self.context;
        // Read again: a job that ended after the topic had closed may have changed them.
        let mut ledgers = load_ledgers(context, id).await.map_err(TopicError::from)?;
        while ledgers.list.len() > AT_ONCE {
            let gone = ledgers.trim(AT_ONCE);
            self.write(&mut ledgers, &gone).await?;
            self.see_revision(&mut ledgers).await?;
        }
        let closed = ledgers.list.iter().map(|ledger| ledger.ledger);
        let rest: Vec<LedgerId> = closed.chain(ledgers.open.iter().copied()).collect();
        let key = keys::topic(&self.name);
        let mut txn: Txn = ledgers.delete().when(self.bundle.is_owned());
        txn = txn.when(Compare::Present(key.clone())).delete(key);
        if rest.is_empty() {
            return match context.meta.txn(txn).await? {
                TxnOutcome::Applied(_) => Ok(()),
                TxnOutcome::Conflict(_) => Err(TopicError::Fenced.into()),
            };
        }
        context.ledgers.delete(&rest, txn).await.map_err(|error| match error {
            DeleteError::Conflict => AdminError::Topic(TopicError::Fenced),
            DeleteError::Metadata(error) => AdminError::Metadata(error),
        })?;
        rest.iter().for_each(|ledger| context.readers.invalidate(ledger));
        Ok(())
    }
}
