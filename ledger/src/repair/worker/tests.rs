//! Workers and the auditor over model bookies and a memory metadata store, with what goes wrong in
//! between.

mod interrupted;
mod scene;
mod together;

use geminga_meta::repair::report_damage;
use geminga_proto::id::EntryId;
use geminga_proto::storage::{BookieError, FenceRequest};

use self::scene::{Scene, name};
use super::*;
use crate::metadata::LedgerState;

#[tokio::test(start_paused = true)]
async fn what_a_lost_bookie_had_is_copied_verified_and_recorded() {
    let scene = Scene::new(5).await;
    scene.ledger(LedgerState::Closed, &[&[0, 1, 2], &[0, 1, 3]]).await;
    scene.lose(0);
    scene.queue(&[scene::missing(0)]).await;
    assert!(matches!(scene.attempt().await, Ok(Repaired::Done(bytes)) if bytes > 0));
    scene.assert_whole(3).await;
    // Who got copies refuses a zombie's adds, as who had them before does.
    let metadata = scene.metadata().await.expect("it is there");
    let fence = FenceRequest { ledger: metadata.id, token: metadata.token };
    let fenced = |index| scene.transport.with_disk(&name(index), |disk| disk.is_fenced(&fence));
    let names =
        |index| metadata.fragments.iter().any(|fragment| fragment.bookies.contains(&name(index)));
    assert!(fenced(4) && names(4), "{metadata:?}");
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_is_there_already_is_not_trusted() {
    let scene = Scene::new(4).await;
    scene.ledger(LedgerState::Closed, &[&[0, 1, 2]]).await;
    scene.lose(0);
    // What it has is of an attempt that ended, and the bookie may be about to drop it.
    for entry in 0..10 {
        scene.store_copy(3, EntryId(entry));
    }
    scene.queue(&[scene::missing(0)]).await;
    let asked = scene.counting.appends();
    assert!(matches!(scene.attempt().await, Ok(Repaired::Done(_))));
    assert_eq!(scene.counting.appends() - asked, 10);
    scene.assert_whole(3).await;
}

#[tokio::test(start_paused = true)]
async fn of_a_damaged_copy_another_source_is_read_and_the_copy_is_mended_in_place() {
    let scene = Scene::new(3).await;
    scene.ledger(LedgerState::Closed, &[&[0, 1, 2]]).await;
    scene.damage(0, EntryId(4));
    scene.damage(1, EntryId(4));
    let (meta, env) = (scene.store.as_ref(), &scene.env);
    let before = scene.version().await;
    for bookie in [0, 1] {
        let range = EntryId(3)..=EntryId(5);
        report_damage(meta, env, scene::LEDGER, &name(bookie), range).await.expect("told");
    }
    assert!(matches!(scene.attempt().await, Ok(Repaired::Done(_))));
    scene.assert_whole(3).await;
    assert_eq!(scene.version().await, before, "nothing of the record changed");
}

#[tokio::test(start_paused = true)]
async fn what_was_said_to_be_damaged_counts_if_it_is_whole_and_nobody_else_has_it() {
    let scene = Scene::new(3).await;
    scene.ledger(LedgerState::Closed, &[&[0, 1, 2]]).await;
    for bookie in [1, 2] {
        scene.damage(bookie, EntryId(4));
    }
    let (meta, env) = (scene.store.as_ref(), &scene.env);
    for bookie in [0, 1, 2] {
        let range = EntryId(3)..=EntryId(5);
        report_damage(meta, env, scene::LEDGER, &name(bookie), range).await.expect("told");
    }
    assert!(matches!(scene.attempt().await, Ok(Repaired::Done(_))));
    scene.assert_whole(3).await;
}

#[tokio::test(start_paused = true)]
async fn the_only_copy_that_was_said_to_be_damaged_counts_once_it_is_whole() {
    let scene = Scene::new(3).await;
    scene.ledger(LedgerState::Closed, &[&[0]]).await;
    scene.damage(0, EntryId(4));
    let (meta, env) = (scene.store.as_ref(), &scene.env);
    let range = EntryId(3)..=EntryId(4);
    report_damage(meta, env, scene::LEDGER, &name(0), range).await.expect("told");
    let (entry, error) = (EntryId(4), BookieError::NoSuchEntry);
    let failed = scene.attempt().await.expect_err("it is damaged");
    assert_eq!(failed, RepairError::Copy(CopyError::NoCopy { entry, error }));
    assert!(scene.task().await.is_some());
    // It was only the disk, for a while.
    scene.heal(0, EntryId(4));
    assert!(matches!(scene.attempt().await, Ok(Repaired::Done(_))));
    assert!(scene.task().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn without_a_single_copy_the_task_stays_and_says_so() {
    let scene = Scene::new(5).await;
    scene.ledger(LedgerState::Closed, &[&[0, 1, 2]]).await;
    scene.lose(0);
    for bookie in [1, 2] {
        scene.damage(bookie, EntryId(6));
    }
    scene.queue(&[scene::missing(0)]).await;
    let failed = scene.attempt().await.expect_err("entry 6 is nowhere");
    let (entry, error) = (EntryId(6), BookieError::CorruptEntry);
    assert_eq!(failed, RepairError::Copy(CopyError::NoCopy { entry, error }));
    let task = scene.task().await.expect("it stays");
    assert_eq!((task.attempts, task.claim.is_none()), (1, true));
    assert!(task.last_error.contains("entry 6"), "{}", task.last_error);
    let metadata = scene.metadata().await.expect("it is there");
    assert!(metadata.fragments[0].bookies.contains(&name(0)), "nothing is guessed");
    // Nobody is up who has anything.
    [1, 2].into_iter().for_each(|bookie| scene.lose(bookie));
    scene.queue(&[scene::missing(1), scene::missing(2)]).await;
    assert!(matches!(scene.attempt().await, Ok(Repaired::Waiting(_))));
    assert!(scene.task().await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_target_that_dies_is_left_alone_and_another_takes_its_place() {
    for polls in 0..60 {
        let scene = Scene::new(5).await;
        scene.ledger(LedgerState::Closed, &[&[0, 1, 2]]).await;
        scene.lose(0);
        scene.queue(&[scene::missing(0)]).await;
        let target = scene
            .interrupt(polls, async |scene| {
                let task = scene.task().await;
                let claim = task.and_then(|task| task.claim);
                let target = claim.and_then(|claim| claim.targets.first().cloned());
                if let Some(target) = &target {
                    scene.transport.set_up(target, false);
                }
                target
            })
            .await;
        scene.until_done().await;
        let metadata = scene.metadata().await.expect("it is there");
        if let Some(target) = target {
            scene.transport.set_up(&target, true);
            // It was done with before it died, or isn't used.
            scene.assert_copies(&metadata);
        }
        scene.assert_whole(3).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_ledger_that_lacks_copies_at_a_member_gets_them_and_its_mark_goes() {
    let scene = Scene::new(3).await;
    scene.ledger(LedgerState::Closed, &[&[0, 1, 2]]).await;
    scene.mark().await;
    for entry in 3..7 {
        scene.transport.with_disk(&name(2), |disk| {
            disk.drop_copy(scene::LEDGER, EntryId(entry));
        });
    }
    scene.queue(&[geminga_meta::record::RepairReason::AckQuorumOnly]).await;
    assert!(matches!(scene.attempt().await, Ok(Repaired::Done(_))));
    scene.assert_whole(3).await;
}

#[tokio::test(start_paused = true)]
async fn a_narrow_ledger_is_widened_when_there_is_another_bookie() {
    let scene = Scene::new(3).await;
    scene.ledger(LedgerState::Closed, &[&[0, 1]]).await;
    scene.mark().await;
    scene.lose(2);
    scene.queue(&[geminga_meta::record::RepairReason::AckQuorumOnly]).await;
    assert!(matches!(scene.attempt().await, Ok(Repaired::Waiting(_))));
    let known = scene.task().await.expect("it waits");
    assert!(matches!(scene.attempt().await, Ok(Repaired::Waiting(_))));
    assert_eq!(scene.task().await, Some(known), "what is known isn't written again");
    scene.find(2);
    assert!(matches!(scene.attempt().await, Ok(Repaired::Done(_))));
    scene.assert_whole(3).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_found_meanwhile_stays_in_the_queue() {
    for polls in 0..60 {
        let scene = Scene::new(4).await;
        scene.ledger(LedgerState::Closed, &[&[0, 1, 2]]).await;
        scene.lose(0);
        scene.queue(&[scene::missing(0)]).await;
        scene
            .interrupt(polls, async |scene| {
                scene.damage(1, EntryId(2));
                let (meta, env) = (scene.store.as_ref(), &scene.env);
                let range = EntryId(2)..=EntryId(2);
                report_damage(meta, env, scene::LEDGER, &name(1), range).await.expect("told");
            })
            .await;
        scene.until_done().await;
        scene.assert_whole(3).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_finds_what_was_moved_away_from_all_that_it_knows() {
    let scene = Scene::new(6).await;
    scene.ledger(LedgerState::Closed, &[&[0, 1, 2]]).await;
    let reader = scene.ledgers.open(scene::LEDGER).await.expect("it is closed");
    for bookie in 0..3 {
        scene.lose(bookie);
        scene.queue(&[scene::missing(bookie)]).await;
        assert!(matches!(scene.attempt().await, Ok(Repaired::Done(_))));
    }
    for entry in [0, 9] {
        let read = reader.read(EntryId(entry), 1, 100).await.expect("it is elsewhere");
        assert_eq!(read[0].payload, Scene::payload(EntryId(entry)));
    }
}
