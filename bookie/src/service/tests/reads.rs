//! Streams of reads and fences when the bytes for answers run out.

use std::time::Duration;

use super::*;

/// An upper limit.
const SOON: Duration = Duration::from_secs(10);

fn reads(reads: impl Iterator<Item = pb::ReadRequest>) -> Result<pb::ReadBatch, Status> {
    Ok(pb::ReadBatch { requests: reads.collect(), fences: vec![] })
}

async fn statuses(
    bookie: &Bookie,
    untaken: &ReadBudget,
    batch: Result<pb::ReadBatch, Status>,
) -> Vec<pb::BookieStatus> {
    let (bookie, untaken) = (bookie.clone(), untaken.clone());
    let answers = read_stream::answer(bookie, untaken, stream::iter([batch]), Stopping::never());
    let answers = answers.map(|message| message.expect("no error").answers);
    answers.collect::<Vec<_>>().await.concat().iter().map(pb::ReadAnswer::status).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_is_answered_while_more_reads_wait_than_may_be_under_way() {
    let bookie = bookie();
    let untaken = ReadBudget::new(256 * 1024, SOON * 6);
    let _all = untaken.claim(u32::MAX).await.expect("nobody holds anything");
    let fence = pb::FenceRequest { ledger_id: 5, token: 1, request_id: 9 };
    let fence = Ok(pb::ReadBatch { requests: vec![], fences: vec![fence] });
    let batches = stream::iter([reads((0..400).map(|id| read(id, 5, 0))), fence]);
    let answers = read_stream::answer(bookie, untaken.clone(), batches, Stopping::never());
    let first = tokio::time::timeout(SOON, Box::pin(answers).next()).await;
    let first = first.expect("the fence waits for no read").expect("an answer").expect("no error");
    let fences: Vec<_> = first.fences.iter().map(|answer| answer.request_id).collect();
    assert_eq!((fences, first.answers.len()), (vec![9], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_wait_for_the_bytes_of_all_streams_are_refused_side_by_side() {
    let wait = Duration::from_millis(500);
    let untaken = ReadBudget::new(256 * 1024, wait);
    let _all = untaken.claim(u32::MAX).await.expect("nobody holds anything");
    let (bookie, most) = (bookie(), 1 << 20);
    let asked = reads((0..250).map(|id| pb::ReadRequest { max_bytes: most, ..read(id, 5, 0) }));
    let refused = tokio::time::timeout(wait * 4, statuses(&bookie, &untaken, asked));
    let refused = refused.await.expect("they hold no share of their stream while they wait");
    assert_eq!(refused, vec![pb::BookieStatus::Overloaded; 250]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_claims_what_it_asks_for_and_more_only_for_a_larger_entry() {
    let bookie = bookie();
    let mut client = connect(bookie.clone()).await;
    let large = pb::AppendRequest { payload: vec![7; 100_000].into(), ..add(2, 5, 1) };
    append(&mut client, vec![add(1, 5, 0), large]).await;
    let untaken = ReadBudget::new(256 * 1024, Duration::from_millis(20));
    let most = untaken.claim(192 * 1024).await.expect("nobody holds anything");
    let read = |entry| pb::ReadRequest { max_bytes: 1_000, ..read(1, 5, entry) };
    let asked = reads([read(0)].into_iter());
    assert_eq!(statuses(&bookie, &untaken, asked).await, [pb::BookieStatus::Ok]);
    let asked = || reads([read(1)].into_iter());
    let refused = statuses(&bookie, &untaken, asked()).await;
    assert_eq!(refused, [pb::BookieStatus::Overloaded], "it takes more than there is");
    drop(most);
    assert_eq!(statuses(&bookie, &untaken, asked()).await, [pb::BookieStatus::Ok]);
}
