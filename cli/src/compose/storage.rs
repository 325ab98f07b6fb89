//! What is on disk, under one data directory: a standalone's ([`Storage`]), or a bookie's alone.
//!
//! ```text
//! data_dir/metadata/   a standalone's embedded metadata store
//! data_dir/bookie/     the bookie's log and its cookie
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use geminga_bookie::bookie::Bookie;
use geminga_bookie::config::BookieConfig;
use geminga_bookie::cookie;
use geminga_bookie::device::Device;
use geminga_bookie::device::real::RealDevice;
use geminga_meta::cluster;
use geminga_meta::record::ClusterRecord;
use geminga_meta::store::embedded::make_dir;
use geminga_meta::store::{EmbeddedConfig, EmbeddedStore, MetadataStore};
use geminga_proto::env::Env;
use geminga_proto::id::BookieId;

use crate::config::{Settings, SyncModeSetting};

/// An open data directory.
#[derive(Debug)]
pub struct Storage {
    /// The metadata.
    pub metadata: Arc<dyn MetadataStore>,
    /// The cluster that the directory belongs to.
    pub cluster: ClusterRecord,
    /// The bookie.
    pub bookie: Bookie,
}

impl Storage {
    /// Opens the data directory, or makes it.
    ///
    /// # Errors
    /// What is in the way, and what to do about it.
    pub async fn open(
        settings: &Settings,
        bookie_id: &BookieId,
        config: BookieConfig,
        env: &Env,
    ) -> anyhow::Result<Self> {
        let dir = settings.data_dir.clone();
        let failed = || format!("can't use the data directory {}", dir.display());
        prepare(&dir).with_context(failed)?;
        let metadata = open_metadata(&dir.join("metadata"), env).await.with_context(failed)?;
        let cluster = cluster::open(metadata.as_ref(), env).await.with_context(failed)?;
        let opened = open_bookie(settings, &metadata, &cluster, bookie_id, config, env);
        let bookie = opened.await.with_context(failed)?;
        Ok(Self { metadata, cluster, bookie })
    }
}

/// Opens the bookie's part of a data directory, or makes it, as a bookie of this cluster.
///
/// # Errors
/// What is in the way, and what to do about it.
pub async fn open_bookie(
    settings: &Settings,
    metadata: &Arc<dyn MetadataStore>,
    cluster: &ClusterRecord,
    id: &BookieId,
    config: BookieConfig,
    env: &Env,
) -> anyhow::Result<Bookie> {
    prepare(&settings.data_dir)?;
    let device = open_device(settings.data_dir.join("bookie"), settings.bookie.sync_mode).await?;
    #[cfg(feature = "faulty-device")]
    let device = made_faulty(device, &settings.data_dir);
    let claimed = cookie::claim(metadata.as_ref(), device.as_ref(), &cluster.cluster_id, id, env);
    let identity = claimed.await?;
    let env = env.clone();
    let opened = blocking(move || Ok(Bookie::open(config, identity, device, env)?));
    let (bookie, _report) = opened.await?;
    Ok(bookie)
}

fn prepare(dir: &Path) -> anyhow::Result<()> {
    if dir.exists() && !dir.is_dir() {
        return Err(anyhow!("it is a file; name a directory with --data-dir"));
    }
    make_dir(dir)
        .context("it can't be made; name a directory that this user can write with --data-dir")
}

async fn open_metadata(dir: &Path, env: &Env) -> anyhow::Result<Arc<dyn MetadataStore>> {
    let (config, env) = (EmbeddedConfig::new(dir), env.clone());
    let store = blocking(move || Ok(EmbeddedStore::open(&config, &env)?)).await?;
    Ok(Arc::new(store))
}

async fn open_device(dir: PathBuf, mode: SyncModeSetting) -> anyhow::Result<Arc<dyn Device>> {
    let open = move || match mode {
        SyncModeSetting::Auto => RealDevice::open(&dir),
        SyncModeSetting::Fdatasync => RealDevice::open_buffered(&dir),
    };
    Ok(Arc::new(blocking(move || Ok(open()?)).await?))
}

/// In a build for tests, the disk fails as the file `faults` in the data directory says.
#[cfg(feature = "faulty-device")]
fn made_faulty(device: Arc<dyn Device>, data_dir: &Path) -> Arc<dyn Device> {
    let control = data_dir.join("faults");
    tracing::warn!(
        control = %control.display(),
        "this is a build for tests: its disk fails as this file says"
    );
    Arc::new(geminga_bookie::device::faulty::FaultyDevice::new(device, control))
}

/// Runs what waits for the disk where it holds up nobody.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("opening the storage broke down")?
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn open(dir: &Path) -> anyhow::Result<Storage> {
        let settings = Settings { data_dir: dir.to_owned(), ..Settings::default() };
        let id = BookieId::new("b").expect("valid");
        Storage::open(&settings, &id, BookieConfig::default(), &Env::system()).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_data_directory_has_one_user_keeps_its_cluster_and_is_refused_with_reasons() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let dir = home.path().join("data");
        let first = open(&dir).await.expect("made");
        let error = format!("{:#}", open(&dir).await.expect_err("in use"));
        assert!(error.contains("use") && error.contains("data"), "{error}");
        let id = first.cluster.cluster_id.clone();
        first.bookie.close().await.expect("closes");
        drop(first);
        let again = open(&dir).await.expect("free again");
        assert_eq!(again.cluster.cluster_id, id);
        let file = home.path().join("file");
        std::fs::write(&file, b"").expect("writes");
        let error = format!("{:#}", open(&file).await.expect_err("a file"));
        assert!(error.contains("is a file"), "{error}");
    }
}
