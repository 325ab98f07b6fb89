//! A disk and a name belong together from the first start on, or the bookie refuses.

use std::sync::Arc;

use geminga_meta::store::MemoryStore;
use geminga_proto::env::{ManualClock, SeededRandom};
use proptest::prelude::*;

use super::*;
use crate::device::memory::{MemoryDevice, Tear};

fn env(seed: u64) -> Env {
    Env { clock: Arc::new(ManualClock::default()), random: Arc::new(SeededRandom::new(seed)) }
}

fn store() -> MemoryStore {
    MemoryStore::new(Arc::new(ManualClock::default()))
}

fn disk() -> MemoryDevice {
    MemoryDevice::new(1 << 20)
}

async fn claim_as(
    store: &MemoryStore,
    device: &MemoryDevice,
    cluster: &str,
    bookie: &str,
) -> Result<Identity, CookieError> {
    let cluster = ClusterId::new(cluster).expect("a name");
    let bookie = BookieId::new(bookie).expect("a name");
    claim(store, device, &cluster, &bookie, &env(5)).await
}

#[tokio::test]
async fn the_first_start_makes_both_cookies_and_the_next_finds_them() {
    let (store, device) = (store(), disk());
    let made = claim_as(&store, &device, "c", "b").await.expect("claims");
    let device = device.crash(Tear::Lost);
    let found = claim_as(&store, &device, "c", "b").await.expect("claims");
    assert_eq!((found.instance, found.begun), (made.instance, false));
    assert_eq!(found.youngest_ledger, Some(LedgerId(0)), "none was made yet");
    let counter = CounterRecord { next: 18 }.encode(Nonce::new(&SeededRandom::new(1)));
    let counter = Txn::default().put(keys::counter(Counter::Ledgers), counter.expect("valid"));
    store.txn(counter).await.expect("writes");
    let found = claim_as(&store, &device, "c", "b").await.expect("claims");
    assert_eq!(found.youngest_ledger, Some(LedgerId(17)));
    mark_begun(&device, &made).expect("writes");
    let found = claim_as(&store, &device.crash(Tear::Lost), "c", "b").await.expect("claims");
    assert!(found.begun && found.instance == made.instance);
}

#[tokio::test]
async fn another_nodes_or_clusters_disk_is_refused_by_name() {
    let (store, device) = (store(), disk());
    claim_as(&store, &device, "c", "b").await.expect("claims");
    for (cluster, bookie) in [("c", "other"), ("other", "b")] {
        let refused = claim_as(&store, &device, cluster, bookie).await.expect_err("refused");
        assert!(matches!(refused, CookieError::Foreign { .. }), "{refused}");
        assert!(refused.to_string().contains("belongs to bookie b of cluster c"), "{refused}");
    }
}

#[tokio::test]
async fn a_wiped_disk_a_second_disk_and_foreign_metadata_are_refused() {
    let (store, device) = (store(), disk());
    let identity = claim_as(&store, &device, "c", "b").await.expect("claims");
    let wiped = claim_as(&store, &disk(), "c", "b").await;
    assert!(matches!(wiped, Err(CookieError::Wiped { .. })), "{wiped:?}");

    let second = disk();
    save(&second, &Identity { instance: 9, ..identity.clone() }).expect("writes");
    let other = claim_as(&store, &second, "c", "b").await;
    assert!(matches!(other, Err(CookieError::OtherDisk { .. })), "{other:?}");

    mark_begun(&device, &identity).expect("writes");
    let empty = self::store();
    let unknown = claim_as(&empty, &device, "c", "b").await;
    assert!(matches!(unknown, Err(CookieError::Unknown { .. })), "{unknown:?}");
}

#[tokio::test]
async fn a_first_start_that_was_cut_short_after_the_disk_was_marked_goes_on() {
    let device = disk();
    let cut_short = store();
    claim_as(&cut_short, &device, "c", "b").await.expect("claims");
    // The metadata never got it.
    let store = store();
    let again = claim_as(&store, &device, "c", "b").await.expect("goes on");
    let found = claim_as(&store, &device, "c", "b").await.expect("is known");
    assert_eq!(found.instance, again.instance);
}

#[tokio::test]
async fn a_damaged_or_newer_cookie_is_refused_and_not_overwritten() {
    let (store, device) = (store(), disk());
    claim_as(&store, &device, "c", "b").await.expect("claims");
    let damaged = device.fork();
    damaged.flip(FILE, 20, 1);
    let refused = claim_as(&store, &damaged, "c", "b").await;
    assert!(matches!(refused, Err(CookieError::Damaged { .. })), "{refused:?}");
    device.edit(FILE, |bytes| {
        bytes[8] = 7;
        let crc = crc32c::crc32c(&bytes[4..BYTES]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
    });
    let refused = claim_as(&store, &device, "c", "b").await;
    assert!(matches!(refused, Err(CookieError::Newer { version: 7, .. })), "{refused:?}");
}

#[test]
fn golden_bytes() {
    let identity = Identity {
        bookie: BookieId::new("bookie-1").expect("a name"),
        cluster: ClusterId::new("c").expect("a name"),
        instance: 0x0102,
        begun: true,
        youngest_ledger: None,
    };
    let block = encode(&identity);
    let hex: String = block.as_slice()[..BYTES].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, include_str!("golden.hex").trim());
}

proptest! {
    #[test]
    fn every_identity_is_read_back(
        bookie in "[a-z][a-z0-9-]{0,63}", cluster in "[a-z]{1,64}", instance in 1u64.., begun: bool,
    ) {
        let bookie = BookieId::new(&bookie).expect("a name");
        let cluster = ClusterId::new(&cluster).expect("a name");
        let identity = Identity { begun, ..Identity::detached(bookie, cluster, instance) };
        prop_assert_eq!(decode(encode(&identity).as_slice()), Ok(identity));
    }

    #[test]
    fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(decode(&bytes).is_err());
        if bytes.len() >= BYTES {
            bytes[4..8].copy_from_slice(MAGIC);
            bytes[8..10].copy_from_slice(&[1, 0]);
            let crc = crc32c::crc32c(&bytes[4..BYTES]);
            bytes[..4].copy_from_slice(&crc.to_le_bytes());
            // A right checksum over nonsense: an error or an identity, but no panic.
            drop(decode(&bytes));
        }
    }
}
