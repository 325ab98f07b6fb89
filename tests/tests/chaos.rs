//! A short run of `scripts/chaos`, of faults that need no privilege and little time.

use std::time::Duration;

use geminga_tests::chaos::plan::Kind;
use geminga_tests::chaos::{Settings, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_killed_frozen_damaged_and_wiped_loses_nothing_and_is_whole_again() {
    let kinds = vec![
        Kind::Kill,
        Kind::Freeze,
        Kind::EtcdMember,
        Kind::EtcdRestart,
        Kind::OneWay,
        Kind::Damage,
        Kind::Wipe,
    ];
    let settings = Settings {
        kinds: kinds.clone(),
        most_faults: kinds.len(),
        ..Settings::new(geminga_tests::seed(), Duration::from_secs(120))
    };
    eprintln!("GEMINGA_SEED={} draws the same faults", settings.seed);
    let report = run(&settings).await;
    let json = report.json();
    eprintln!("{json:#}");
    assert!(report.is_good(), "{json:#}");
    assert!(report.stored() > 1_000, "{json:#}");
    for kind in kinds {
        assert_eq!(report.faults_of(kind), 1, "{}", kind.name());
    }
}
