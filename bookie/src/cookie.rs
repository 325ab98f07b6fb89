//! The cookie: ties a disk to a bookie's name and a cluster, so that a wiped or exchanged disk is
//! never taken for the one whose entries were acknowledged.
//!
//! Owns the `cookie` file and the rule of [`claim`]: a new cookie is made only if neither the
//! disk nor the metadata has one. The disk's is written first. A disk that has one without the
//! metadata's is accepted only as long as no log was ever begun on it: that is a first start that
//! was cut short.

use geminga_meta::keys::{self, Counter};
use geminga_meta::read::{ReadError, read};
use geminga_meta::record::{CookieRecord, CounterRecord, Nonce, Record, RecordError};
use geminga_meta::store::{Compare, MetadataStore, StoreError, Txn, TxnOutcome};
use geminga_meta::update_loop::{RetryPolicy, Witness, commit};
use geminga_proto::env::Env;
use geminga_proto::id::{BookieId, ClusterId, LedgerId};

use crate::device::{AlignedBuffer, BLOCK_BYTES, Device, DeviceError};

const FILE: &str = "cookie";
const NEW_FILE: &str = "cookie.new";
const MAGIC: &[u8; 4] = b"GMCK";
const VERSION: u16 = 1;
const FLAG_BEGUN: u16 = 1;
const FIXED_BYTES: usize = 24;
const NAME_BYTES: usize = 65;
const BYTES: usize = FIXED_BYTES + 2 * NAME_BYTES;

/// Who this bookie is, as disk and metadata agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its name.
    pub bookie: BookieId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Random, made with the cookie: tells a disk from another one under the same name.
    pub instance: u64,
    /// A log was begun on the disk.
    pub(crate) begun: bool,
    /// No younger ledger than this existed when the disk was claimed, if that is known.
    pub(crate) youngest_ledger: Option<LedgerId>,
}

impl Identity {
    /// An identity that no metadata knows, for a log that is used alone: measurements and tests.
    #[must_use]
    pub fn detached(bookie: BookieId, cluster: ClusterId, instance: u64) -> Self {
        Self { bookie, cluster, instance, begun: false, youngest_ledger: None }
    }
}

/// Why a disk can't be used under a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CookieError {
    /// The disk failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The metadata store failed.
    #[error("the cookie can't be compared with the metadata: {0}")]
    Metadata(#[from] ReadError),
    /// The metadata store didn't take the new cookie.
    #[error("the cookie can't be written to the metadata: {0}")]
    Store(#[from] StoreError),
    /// The record can't be written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The cookie file is damaged.
    #[error(
        "the cookie in {directory} is damaged: restore it from a copy, or give this \
         node a new directory and name"
    )]
    Damaged {
        /// The disk.
        directory: String,
    },
    /// A newer release wrote the cookie file.
    #[error(
        "the cookie in {directory} has format version {version}, this release reads up \
         to {VERSION}: use the release that wrote it, or a newer one"
    )]
    Newer {
        /// The disk.
        directory: String,
        /// Its version.
        version: u16,
    },
    /// The disk belongs to another bookie or cluster.
    #[error(
        "{directory} belongs to bookie {found_bookie} of cluster {found_cluster}, not to {bookie} \
         of {cluster}: start the node that it belongs to, or choose another directory"
    )]
    Foreign {
        /// The disk.
        directory: String,
        /// Who it belongs to.
        found_bookie: BookieId,
        /// Its cluster.
        found_cluster: ClusterId,
        /// Who was started.
        bookie: BookieId,
        /// Its cluster.
        cluster: ClusterId,
    },
    /// The metadata knows this bookie with a disk that isn't this one.
    #[error(
        "the metadata knows bookie {bookie} with another disk than {directory}: put the \
         right disk in place, or start this one under a new name"
    )]
    OtherDisk {
        /// The disk.
        directory: String,
        /// The bookie.
        bookie: BookieId,
    },
    /// The metadata knows this bookie, but the disk has no cookie.
    #[error(
        "bookie {bookie} is known, but {directory} is empty: its disk was wiped or isn't \
         mounted. Put the right disk in place, or start this one under a new name; what the old \
         one held has a copy less then"
    )]
    Wiped {
        /// The disk.
        directory: String,
        /// The bookie.
        bookie: BookieId,
    },
    /// The disk has held a log, but the metadata doesn't know the bookie.
    #[error(
        "{directory} holds a log of bookie {bookie}, but the metadata doesn't know it: it is \
         another cluster's metadata, or an old copy of it, or the bookie was taken away for good. \
         Point the node to the right metadata, or give it an empty disk"
    )]
    Unknown {
        /// The disk.
        directory: String,
        /// The bookie.
        bookie: BookieId,
    },
}

/// Compares the disk's cookie with the metadata's; makes both if neither exists.
///
/// # Errors
/// Any [`CookieError`]; the node must not start then.
pub async fn claim(
    store: &dyn MetadataStore,
    device: &dyn Device,
    cluster: &ClusterId,
    bookie: &BookieId,
    env: &Env,
) -> Result<Identity, CookieError> {
    let directory = device.describe();
    let key = keys::cookie(bookie);
    let known = read::<CookieRecord>(store, &key).await?;
    let on_disk = load(device)?;
    if let Some(found) = &on_disk
        && (found.bookie != *bookie || found.cluster != *cluster)
    {
        return Err(CookieError::Foreign {
            directory,
            found_bookie: found.bookie.clone(),
            found_cluster: found.cluster.clone(),
            bookie: bookie.clone(),
            cluster: cluster.clone(),
        });
    }
    let bookie = bookie.clone();
    match (on_disk, known) {
        (Some(found), Some(known)) => {
            let same = known.record.instance == found.instance
                && known.record.cluster_id == found.cluster
                && known.record.bookie_id == found.bookie;
            let youngest_ledger = youngest_ledger(store).await?;
            let found = Identity { youngest_ledger, ..found };
            if same { Ok(found) } else { Err(CookieError::OtherDisk { directory, bookie }) }
        }
        (None, Some(_)) => Err(CookieError::Wiped { directory, bookie }),
        (Some(found), None) if found.begun => Err(CookieError::Unknown { directory, bookie }),
        (Some(found), None) => register(store, found, &key, env, directory).await,
        (None, None) => {
            let instance = env.random.nonzero_u64();
            let made = Identity::detached(bookie, cluster.clone(), instance);
            save(device, &made)?;
            register(store, made, &key, env, directory).await
        }
    }
}

/// Read after the disk was last written to and before it is written to again, so it bounds which
/// ledgers can have been on it.
async fn youngest_ledger(store: &dyn MetadataStore) -> Result<Option<LedgerId>, CookieError> {
    let counter = read::<CounterRecord>(store, &keys::counter(Counter::Ledgers)).await?;
    // Without the counter no ledger was ever made.
    let next = counter.map_or(0, |counter| counter.record.next);
    Ok(Some(LedgerId(next.saturating_sub(1))))
}

async fn register(
    store: &dyn MetadataStore,
    identity: Identity,
    key: &str,
    env: &Env,
    directory: String,
) -> Result<Identity, CookieError> {
    let record = CookieRecord {
        bookie_id: identity.bookie.clone(),
        cluster_id: identity.cluster.clone(),
        instance: identity.instance,
    };
    let nonce = Nonce::new(env.random.as_ref());
    let txn = Txn::default().when(Compare::Absent(key.to_owned())).put(key, record.encode(nonce)?);
    let witness = Witness::new(key, nonce);
    match commit(store, env, RetryPolicy::default(), txn, &witness).await? {
        TxnOutcome::Applied(_) => Ok(identity),
        TxnOutcome::Conflict(_) => {
            // Either another disk was just registered under this name, or an earlier start's
            // write has arrived late.
            let known = read::<CookieRecord>(store, key).await?;
            if known.is_some_and(|known| known.record == record) {
                Ok(identity)
            } else {
                Err(CookieError::OtherDisk { directory, bookie: identity.bookie })
            }
        }
    }
}

/// Notes that a log was begun: from now on this disk is never taken for a fresh one.
pub(crate) fn mark_begun(device: &dyn Device, identity: &Identity) -> Result<(), DeviceError> {
    if identity.begun {
        return Ok(());
    }
    save(device, &Identity { begun: true, ..identity.clone() })
}

fn encode(identity: &Identity) -> AlignedBuffer {
    let mut block = AlignedBuffer::new(BLOCK_BYTES);
    let out = block.as_mut_slice();
    out[4..8].copy_from_slice(MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_le_bytes());
    let flags = if identity.begun { FLAG_BEGUN } else { 0 };
    out[10..12].copy_from_slice(&flags.to_le_bytes());
    out[16..24].copy_from_slice(&identity.instance.to_le_bytes());
    let names = [identity.bookie.as_str(), identity.cluster.as_str()];
    for (name, out) in names.iter().zip(out[FIXED_BYTES..].chunks_exact_mut(NAME_BYTES)) {
        // Names have at most 64 bytes.
        out[0] = u8::try_from(name.len()).unwrap_or(0);
        out[1..=name.len()].copy_from_slice(name.as_bytes());
    }
    let crc = crc32c::crc32c(&out[4..BYTES]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    block
}

/// `Err(Some(version))`: written by a newer release.
fn decode(bytes: &[u8]) -> Result<Identity, Option<u16>> {
    let bytes = bytes.get(..BYTES).ok_or(None)?;
    let crc = crc32c::crc32c(&bytes[4..]).to_le_bytes();
    if bytes[4..8] != *MAGIC || bytes[..4] != crc {
        return Err(None);
    }
    let field = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    if field(8) > VERSION {
        return Err(Some(field(8)));
    }
    let mut instance = [0; 8];
    instance.copy_from_slice(&bytes[16..24]);
    let name = |at: usize| {
        let len = usize::from(bytes[at]);
        let text = bytes[at + 1..at + NAME_BYTES].get(..len)?;
        std::str::from_utf8(text).ok()
    };
    let bookie = name(FIXED_BYTES).and_then(|name| BookieId::new(name).ok()).ok_or(None)?;
    let cluster =
        name(FIXED_BYTES + NAME_BYTES).and_then(|name| ClusterId::new(name).ok()).ok_or(None)?;
    let instance = u64::from_le_bytes(instance);
    let begun = field(10) & FLAG_BEGUN != 0;
    Ok(Identity { begun, ..Identity::detached(bookie, cluster, instance) })
}

pub(crate) fn load(device: &dyn Device) -> Result<Option<Identity>, CookieError> {
    let file = match device.open(FILE) {
        Err(DeviceError::NotFound { .. }) => return Ok(None),
        opened => opened?,
    };
    let directory = device.describe();
    let mut block = AlignedBuffer::new(BLOCK_BYTES);
    match file.read_at(0, block.as_mut_slice()) {
        Err(DeviceError::Short { .. }) => return Err(CookieError::Damaged { directory }),
        read => read?,
    }
    match decode(block.as_slice()) {
        Ok(identity) => Ok(Some(identity)),
        Err(Some(version)) => Err(CookieError::Newer { directory, version }),
        Err(None) => Err(CookieError::Damaged { directory }),
    }
}

/// Written aside and renamed, so that there is always a whole one.
pub(crate) fn save(device: &dyn Device, identity: &Identity) -> Result<(), DeviceError> {
    let file = device.create(NEW_FILE)?;
    file.write_at(0, encode(identity).as_slice())?;
    file.sync()?;
    device.rename(NEW_FILE, FILE)?;
    device.sync_dir()
}

#[cfg(test)]
mod tests;
