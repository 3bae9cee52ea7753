//! Repositories to prune: nights that share chunks, sessions that were left, and what must stay.

use std::collections::BTreeSet;
use std::time::Duration;

use firebank::archive::*;
use firebank::document::*;
use firebank::progress::Progress;
use firebank::prune::{Choice, Policy, PruneError, PruneFilter, PruneStats, plan as plan_prune, prune};
use firebank::verify::{VerifyOptions, verify};
use futures::TryStreamExt;

use crate::archive_support::*;

/// Gives up whatever is undecided.
pub(crate) fn at_once() -> SweepOptions {
    SweepOptions {
        expiry: Duration::ZERO,
        ..SweepOptions::default()
    }
}

/// Nightly backups that share most chunks, with their documents, oldest first.
pub(crate) async fn nights(repository: &Repository, count: u64) -> Vec<(Snapshot, Docs)> {
    let mut docs = sample(120);
    let mut nights: Vec<(Snapshot, Docs)> = Vec::new();
    for night in 0..count {
        for number in 0..3 {
            docs.insert(
                key(&format!("products/p{:05}", (night * 7 + number) * 4)),
                doc(900 + night * 10 + number, 80),
            );
        }
        let options = SessionOptions {
            pins: nights
                .last()
                .map(|(snapshot, _)| snapshot.id)
                .into_iter()
                .collect(),
            ..SessionOptions::new(plan(&[key("products/p00040")], night as i64 * 86_400))
        };
        let snapshot = back_up(repository, options, &docs).await;
        nights.push((snapshot, docs.clone()));
    }
    nights
}

/// A session that wrote something and was left.
pub(crate) async fn abandoned(repository: &Repository, pins: Vec<SnapshotId>, salt: u64) -> SessionId {
    let options = SessionOptions {
        pins,
        ..SessionOptions::new(plan(&[key("products/p00040")], 0))
    };
    let session = Session::begin(repository, options).await.unwrap();
    let mut docs = sample(60);
    for (number, one) in docs.values_mut().enumerate() {
        *one = doc(salt + number as u64, 120);
    }
    feed(session.range_writer(session.plan().ranges[0].clone()), &docs).await;
    session.id()
}

pub(crate) async fn clean(repository: &Repository, keep: u32, options: &SweepOptions) -> PruneStats {
    try_clean(repository, keep, options).await.unwrap()
}

pub(crate) async fn try_clean(
    repository: &Repository,
    keep: u32,
    options: &SweepOptions,
) -> Result<PruneStats, PruneError> {
    let choice = Choice::Policy(Policy::last(keep));
    let plan = plan_prune(Some(repository), None, &choice, &PruneFilter::default()).await?;
    prune(Some(repository), &plan, options).await
}

pub(crate) async fn intact(repository: &Repository) {
    let stats = verify(repository, VerifyOptions::read_everything(), &Progress::new())
        .await
        .unwrap();
    assert!(stats.is_intact(), "{:?}", stats.damage);
}

/// All that is listed reads as it was taken. Returns how many.
pub(crate) async fn all_restore(repository: &Repository, nights: &[(Snapshot, Docs)]) -> usize {
    let listing = repository.snapshots().await.unwrap();
    assert!(listing.unreadable.is_empty());
    for snapshot in &listing.snapshots {
        let (_, docs) = nights.iter().find(|(night, _)| night.id == snapshot.id).unwrap();
        assert_eq!(&read(repository, snapshot, KeyRange::all()).await.unwrap(), docs);
    }
    listing.snapshots.len()
}

/// What must be there and nothing else: the objects of the snapshots that stand.
pub(crate) async fn needed(repository: &Repository) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for snapshot in repository.snapshots().await.unwrap().snapshots {
        let reader = repository.reader(&snapshot).await.unwrap();
        let of_snapshot: Vec<String> = reader.object_names().try_collect().await.unwrap();
        names.extend(of_snapshot);
    }
    names
}

pub(crate) async fn stored(repository: &Repository) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for folder in ["chunks", "runs"] {
        let found = object_names(repository.store(), folder).await;
        names.extend(found);
    }
    names
}
