//! Workers that are killed or stand still anywhere, and what others do meanwhile.

use geminga_meta::store::MetadataStore;
use geminga_meta::store::memory::{Fault, Request};
use geminga_proto::id::BookieId;

use super::scene::{self, LEDGER, Scene, name, polled};
use super::*;

/// More polls than an attempt takes here.
const POLLS: usize = 90;

async fn lost_one() -> Scene {
    let scene = Scene::new(5).await;
    scene.ledger(LedgerState::Closed, &[&[0, 1, 2], &[0, 2, 3]]).await;
    scene.lose(0);
    scene.queue(&[scene::missing(0)]).await;
    scene
}

/// Whoever the record names, but for the lost one, has everything at any time.
async fn assert_true(scene: &Scene) {
    let mut metadata = scene.metadata().await.expect("it is there");
    for fragment in &mut metadata.fragments {
        fragment.bookies.retain(|bookie| *bookie != name(0));
    }
    scene.assert_copies(&metadata);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_killed_anywhere_is_followed_by_another_when_its_lease_has_ended() {
    let mut unfinished = 0;
    for polls in 0..POLLS {
        let scene = lost_one().await;
        let (worker, lease) = (scene.worker("killed"), scene.lease().await);
        let mut attempt = Box::pin(worker.shared.repair(LEDGER, &lease, false));
        let ended = polled(attempt.as_mut(), polls).await;
        drop(attempt);
        drop(lease);
        unfinished += usize::from(!ended);
        assert_true(&scene).await;
        scene.until_done().await;
        scene.assert_whole(3).await;
    }
    assert!((20..POLLS).contains(&unfinished), "{unfinished} were cut short");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_stood_still_past_its_lease_anywhere_changes_nothing_afterwards() {
    for polls in 0..POLLS {
        let scene = lost_one().await;
        let (worker, lease) = (scene.worker("slow"), scene.lease().await);
        let mut attempt = Box::pin(worker.shared.repair(LEDGER, &lease, false));
        let ended = polled(attempt.as_mut(), polls).await;
        // The lease has ended, and the worker has not noticed.
        scene.store.revoke_lease(lease.lease()).await.expect("ended");
        drop(scene.attempt().await);
        let after = (scene.metadata().await, scene.task().await.map(|task| task.reasons));
        // A bookie that no claim and no record names drops what it stored.
        drop_unnamed(&scene).await;
        if !ended {
            drop(attempt.await);
        }
        assert_true(&scene).await;
        let last = scene.metadata().await;
        assert!(after.1.is_some() || last == after.0, "polls {polls}: {last:?}, {:?}", after.0);
        scene.until_done().await;
        scene.assert_whole(3).await;
    }
}

/// What the bookies of this scene do when they look: they drop copies of fragments whose ensemble
/// they have left, unless a claim names them.
async fn drop_unnamed(scene: &Scene) {
    let metadata = scene.metadata().await.expect("it is there");
    let task = scene.task().await;
    for bookie in (1..5).map(name) {
        if task.as_ref().is_some_and(|task| task.claims(&bookie)) {
            continue;
        }
        for entry in (0..20).map(EntryId) {
            if !metadata.fragment_of(entry).0.bookies.contains(&bookie) {
                scene.transport.with_disk(&bookie, |disk| disk.drop_copy(LEDGER, entry));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn bookies_that_drop_what_nobody_names_take_nothing_from_a_repair() {
    for polls in 0..POLLS {
        let scene = lost_one().await;
        scene.interrupt(polls, async |scene| drop_unnamed(scene).await).await;
        assert_true(&scene).await;
        scene.until_done().await;
        scene.assert_whole(3).await;
    }
}

#[tokio::test(start_paused = true)]
async fn when_the_ledger_is_deleted_meanwhile_its_task_goes() {
    for polls in 0..POLLS {
        let scene = lost_one().await;
        scene.interrupt(polls, async |scene| scene.delete().await).await;
        assert_eq!(scene.metadata().await, None, "it doesn't come back");
        scene.until_done().await;
        assert_eq!(scene.store.get(&keys::repair_lock(LEDGER)).await, Ok(None));
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_goes_on_meanwhile_keeps_what_it_wrote() {
    for polls in 0..POLLS {
        let scene = Scene::new(5).await;
        scene.ledger(LedgerState::Open, &[&[0, 1, 2], &[1, 2, 3]]).await;
        scene.lose(0);
        scene.queue(&[scene::missing(0)]).await;
        let owners = scene
            .interrupt(polls, async |scene| {
                let mut metadata = scene.metadata().await.expect("it is there");
                metadata.change_ensemble(EntryId(20), [1, 2, 4].map(name).to_vec());
                scene.rewrite(&metadata).await;
                metadata
            })
            .await;
        scene.until_done().await;
        let after = scene.metadata().await.expect("it is there");
        assert_eq!(after.fragments[1..], owners.fragments[1..]);
        assert!(!after.fragments[0].bookies.contains(&name(0)), "{after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn lost_answers_and_an_unavailable_store_cost_time_only() {
    for seed in 0..40_u64 {
        let scene = lost_one().await;
        let random = geminga_proto::env::SeededRandom::new(seed);
        scene.store.faults().set_script(move |request| {
            use geminga_proto::env::Random;
            match (request, random.below(6)) {
                (Request::Txn(_), 0) => Fault::AnswerLost,
                (Request::Txn(_), 1) => Fault::RequestLost,
                (Request::Txn(_) | Request::Get(_), 2) => Fault::Unavailable,
                _ => Fault::None,
            }
        });
        let (worker, lease) = (scene.worker("one"), scene.lease().await);
        for _ in 0..10 {
            drop(worker.shared.repair(LEDGER, &lease, false).await);
        }
        scene.store.faults().clear();
        assert_true(&scene).await;
        // Its lease lives on, and with it what it couldn't take back.
        for _ in 0..2 {
            drop(worker.shared.repair(LEDGER, &lease, false).await);
        }
        assert_eq!(scene.task().await, None);
        assert_eq!(scene.store.get(&keys::repair_lock(LEDGER)).await, Ok(None));
        scene.assert_whole(3).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_written_for_want_of_space_is_written_by_the_same_worker_later() {
    let scene = lost_one().await;
    let (worker, lease) = (scene.worker("one"), scene.lease().await);
    let mut claimed = false;
    scene.store.faults().set_script(move |request| match request {
        Request::Txn(_) if std::mem::replace(&mut claimed, true) => Fault::Full,
        _ => Fault::None,
    });
    let failed = worker.shared.repair(LEDGER, &lease, false).await;
    assert!(matches!(failed, Err(RepairError::Task(TaskError::Store(StoreError::Full(_))))));
    scene.store.faults().clear();
    // Nobody else may be at it as long as the lease lives.
    assert_eq!(scene.attempt().await, Ok(Repaired::Elsewhere));
    let done = worker.shared.repair(LEDGER, &lease, false).await;
    assert!(matches!(done, Ok(Repaired::Done(_))), "{done:?}");
    scene.assert_whole(3).await;
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_not_needed_any_more_stays_while_somebody_is_at_it() {
    for polls in 0..POLLS {
        let scene = lost_one().await;
        let (worker, lease) = (scene.worker("first"), scene.lease().await);
        let mut attempt = Box::pin(worker.shared.repair(LEDGER, &lease, false));
        let ended = polled(attempt.as_mut(), polls).await;
        // The bookie is back, so that somebody else finds nothing to do.
        scene.find(0);
        drop(scene.attempt().await);
        if !ended {
            drop(attempt.await);
        }
        assert_eq!(scene.store.get(&keys::repair_lock(LEDGER)).await, Ok(None), "polls {polls}");
        // The first worker lives on, and another one repairs what comes next.
        scene.lose(1);
        scene.queue(&[scene::missing(1)]).await;
        scene.until_done().await;
        scene.assert_whole(3).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_names_every_target_before_the_first_copy_is_sent() {
    for polls in 0..POLLS {
        let scene = lost_one().await;
        let (worker, lease) = (scene.worker("one"), scene.lease().await);
        let mut attempt = Box::pin(worker.shared.repair(LEDGER, &lease, false));
        polled(attempt.as_mut(), polls).await;
        let metadata = scene.metadata().await.expect("it is there");
        let task = scene.task().await;
        for bookie in (1..5).map(name) {
            let named = |entry| metadata.fragment_of(entry).0.bookies.contains(&bookie);
            let stray = |entry: &EntryId| has(&scene, &bookie, *entry) && !named(*entry);
            if (0..20).map(EntryId).any(|entry| stray(&entry)) {
                let claimed = task.as_ref().is_some_and(|task| task.claims(&bookie));
                assert!(claimed, "polls {polls}: {bookie} has copies that nobody knows of");
            }
        }
    }
}

fn has(scene: &Scene, bookie: &BookieId, entry: EntryId) -> bool {
    scene.transport.with_disk(bookie, |disk| disk.entries(LEDGER).contains(&entry))
}
