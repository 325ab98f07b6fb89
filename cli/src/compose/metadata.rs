//! The metadata of a cluster: etcd, which a start waits for, and the cluster's record in it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use geminga_meta::cluster::{self, ClusterError};
use geminga_meta::record::ClusterRecord;
use geminga_meta::store::etcd::ConnectError;
use geminga_meta::store::{EtcdConfig, EtcdStore, MetadataStore, StoreError};
use geminga_proto::env::Env;
use tokio::time::Instant;

/// The first pause between attempts; they double up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// An etcd that starts together with this process is no news; one that is away for longer is.
const QUIET: Duration = Duration::from_secs(1);
/// How often it is said then.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// The metadata of a cluster that exists.
#[derive(Debug)]
pub struct ClusterMetadata {
    /// The store.
    pub store: Arc<dyn MetadataStore>,
    /// The same, for what only etcd can say.
    pub etcd: Arc<EtcdStore>,
    /// Who the cluster is.
    pub cluster: ClusterRecord,
    /// How long what is read next may wait for etcd: as long as this did.
    pub patience: Patience,
}

impl ClusterMetadata {
    /// Connects to etcd and reads the cluster's record. Waits for an etcd that can't be reached,
    /// for ever without `wait`; drop the future to give up.
    ///
    /// # Errors
    /// What waiting doesn't mend: wrong credentials, no such cluster; or that it took too long.
    pub async fn open(
        config: EtcdConfig,
        wait: Option<Duration>,
        env: &Env,
    ) -> anyhow::Result<Self> {
        let mut patience = Patience::new(&config, wait);
        let opened = patience.until_done(async || {
            let store = EtcdStore::connect(config.clone(), env.clone()).await?;
            let cluster = cluster::read(&store).await?;
            Ok::<_, Failure>((store, cluster))
        });
        let (etcd, cluster) = opened.await?;
        let etcd = Arc::new(etcd);
        let store = Arc::clone(&etcd) as Arc<dyn MetadataStore>;
        Ok(Self { store, etcd, cluster, patience: Patience::new(&config, wait) })
    }
}

/// Connects to etcd, for making a cluster in it. Waits as [`ClusterMetadata::open`] does.
///
/// # Errors
/// As there.
pub async fn connect(
    config: EtcdConfig,
    wait: Option<Duration>,
    env: &Env,
) -> anyhow::Result<EtcdStore> {
    let mut patience = Patience::new(&config, wait);
    patience.until_done(async || EtcdStore::connect(config.clone(), env.clone()).await).await
}

/// Why there is no metadata, and whether it is worth waiting.
#[derive(Debug)]
pub enum Failure {
    /// etcd doesn't answer.
    Absent(StoreError),
    /// Something that an operator must mend.
    Final(anyhow::Error),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) | StoreError::Unknown(_) => Self::Absent(error),
            StoreError::TooLarge(_)
            | StoreError::Invalid(_)
            | StoreError::LeaseLost
            | StoreError::Full(_)
            | StoreError::Corrupt(_)
            | StoreError::Denied(_)
            | StoreError::Replaced(_) => Self::Final(error.into()),
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Store(error) => error.into(),
            ConnectError::Config(error) => Self::Final(error.into()),
        }
    }
}

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Self {
        match error {
            ClusterError::Store(error) => error.into(),
            error => Self::Final(error.into()),
        }
    }
}

/// How long is waited, and what is said meanwhile.
#[derive(Debug)]
pub struct Patience {
    /// Where etcd is, and who asks.
    place: String,
    wait: Option<Duration>,
    began: Instant,
    pause: Duration,
    said: Option<Instant>,
}

impl Patience {
    fn new(config: &EtcdConfig, wait: Option<Duration>) -> Self {
        let mut place = config.endpoints.join(", ");
        if let Some(credentials) = &config.credentials {
            place.push_str(&format!(" as user {}", credentials.user));
        }
        Self { place, wait, began: Instant::now(), pause: FIRST_PAUSE, said: None }
    }

    /// Attempts something with the metadata until etcd answers.
    ///
    /// # Errors
    /// What waiting doesn't mend, or that it took too long.
    pub async fn until_done<T, E: Into<Failure>>(
        &mut self,
        mut attempt: impl AsyncFnMut() -> Result<T, E>,
    ) -> anyhow::Result<T> {
        loop {
            match attempt().await {
                Ok(done) => {
                    self.is_over();
                    return Ok(done);
                }
                Err(error) => self.after(error.into()).await?,
            }
        }
    }

    /// Pauses before the next attempt.
    ///
    /// # Errors
    /// There is no point in one, or no time.
    async fn after(&mut self, failure: Failure) -> anyhow::Result<()> {
        let error = match failure {
            Failure::Absent(error) => error,
            Failure::Final(error) => {
                return Err(error.context(format!("can't use the metadata at {}", self.place)));
            }
        };
        let now = Instant::now();
        let elapsed = now.duration_since(self.began);
        let left = self.wait.map(|wait| wait.saturating_sub(elapsed));
        if left == Some(Duration::ZERO) {
            let wait = self.wait.unwrap_or_default();
            return Err(anyhow!(error)).with_context(|| {
                format!(
                    "etcd could not be reached for {wait:?}; is it running, and are \
                     metadata.endpoints right?"
                )
            });
        }
        let due = self.said.map_or(self.began + QUIET, |said| said + SAY_EVERY);
        if now >= due {
            self.said = Some(now);
            tracing::warn!(%error, "etcd can't be reached yet; trying again");
        }
        tokio::time::sleep(left.map_or(self.pause, |left| self.pause.min(left))).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }

    /// It was reached.
    fn is_over(&self) {
        if self.said.is_some() {
            tracing::info!(after = ?self.began.elapsed(), "etcd is reached");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_meta::store::etcd::EtcdCredentials;
    use geminga_proto::id::ClusterId;

    fn patience(wait: Option<Duration>) -> Patience {
        let (user, password) = ("geminga".to_owned(), "secret".to_owned());
        let config = EtcdConfig {
            endpoints: vec!["http://a:1".to_owned(), "http://b:2".to_owned()],
            credentials: Some(EtcdCredentials { user, password }),
            ..EtcdConfig::new(&ClusterId::new("c").expect("valid"))
        };
        Patience::new(&config, wait)
    }

    fn absent() -> Failure {
        StoreError::Unavailable("http://a:1 refuses connections".to_owned()).into()
    }

    #[tokio::test(start_paused = true)]
    async fn an_absent_store_is_waited_for_up_to_the_limit_and_the_endpoints_are_named() {
        let mut patience = patience(Some(Duration::from_secs(3)));
        let mut attempts = 0;
        let error = loop {
            attempts += 1;
            if let Err(error) = patience.after(absent()).await {
                break format!("{error:#}");
            }
        };
        assert!((5..15).contains(&attempts), "{attempts} attempts");
        assert_eq!(patience.began.elapsed(), Duration::from_secs(3));
        assert!(error.contains("http://a:1") && error.contains("metadata.endpoints"), "{error}");
        assert!(patience.said.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_it_goes_on_and_pauses_stay_short() {
        let mut patience = patience(None);
        for _ in 0..1_000 {
            patience.after(absent()).await.expect("it goes on");
            assert!(patience.pause <= LONGEST_PAUSE);
        }
        assert!(patience.began.elapsed() > Duration::from_secs(900));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_read_is_read_again_while_etcd_is_away() {
        let mut attempts = 0;
        let read = async |answer: Result<u32, StoreError>, attempts: &mut u32| {
            patience(Some(Duration::from_secs(3)))
                .until_done(async || {
                    *attempts += 1;
                    let lost = StoreError::Unknown("the connection was lost".to_owned());
                    if *attempts < 4 { Err(lost) } else { answer.clone() }
                })
                .await
        };
        assert_eq!(read(Ok(7), &mut attempts).await.expect("answered"), 7);
        assert_eq!(attempts, 4);
        let damaged = StoreError::Corrupt("a record".to_owned());
        let error = read(Err(damaged), &mut attempts).await.expect_err("final");
        assert!(format!("{error:#}").contains("damaged"), "{error:#}");
        assert_eq!(attempts, 5, "no further attempt");
    }

    #[tokio::test(start_paused = true)]
    async fn what_waiting_does_not_mend_ends_at_once() {
        let denied = StoreError::Denied("user \"geminga\": wrong password".to_owned());
        for failure in [denied.into(), ClusterError::NotInitialised.into()] {
            let mut patience = patience(None);
            let error = patience.after(failure).await.expect_err("final");
            let error = format!("{error:#}");
            assert!(error.contains("password") || error.contains("cluster init"), "{error}");
            assert!(error.contains("http://a:1, http://b:2 as user geminga"), "{error}");
            assert_eq!(patience.began.elapsed(), Duration::ZERO);
        }
    }
}
