//! Shared work that is found in a store: what is not done, to be listed or given up, and what was done long ago.

use std::collections::BTreeMap;
use std::pin::pin;

use chrono::{DateTime, TimeDelta, Utc};
use futures::stream::{self, StreamExt, TryStreamExt};

use super::{AGREED, AGREED_KIND, Agreed, READS_AT_ONCE, ShareableWork};
use crate::archive::envelope::{self, MAX_JSON_LEN};
use crate::archive::{ArchiveError, SessionId};
use crate::records::{Listed, Records};
use crate::store::{Store, StoreError};

/// For how long it is remembered what was done, in the store's time.
const REMEMBERED: TimeDelta = TimeDelta::days(30);

/// Shared work that was found in a store.
#[derive(Clone, Debug)]
pub(crate) struct Found<W: ShareableWork> {
    pub(crate) folder: String,
    pub(crate) agreed: Agreed<W::Common>,
    /// How far the parts are that have recorded it.
    pub(crate) begun: Vec<W::Checkpoint>,
    pub(crate) last_sign: DateTime<Utc>,
}

/// The shared work that is not done.
pub(crate) async fn undone<W: ShareableWork>(store: &Store) -> Result<Vec<Found<W>>, ArchiveError> {
    let mut folders: BTreeMap<String, DateTime<Utc>> = BTreeMap::new();
    let mut listing = store.list(W::SHARED_FOLDER);
    while let Some(object) = listing.try_next().await? {
        if let Some(folder) = object.name.strip_suffix(AGREED) {
            folders.insert(folder.trim_end_matches('/').to_owned(), object.last_modified);
        }
    }
    let mut found = Vec::new();
    for (folder, begun_at) in folders {
        let name = format!("{folder}/{AGREED}");
        let bytes = match store.get_at_most(&name, MAX_JSON_LEN).await {
            Err(StoreError::NotFound { .. }) => continue,
            bytes => bytes?,
        };
        let agreed: Agreed<W::Common> = match envelope::decode(&name, AGREED_KIND, &bytes) {
            Ok(agreed) => agreed,
            Err(error) => {
                tracing::warn!("shared work is left out: {error}");
                continue;
            }
        };
        let records = Records::<W>::below(store.clone(), folder.clone());
        let listing = records.list().await?;
        let parts = agreed.parts().map(|part| agreed.record(part));
        let parts = parts.filter_map(|id| Some((id, *listing.get(&id)?)));
        let parts: Vec<(SessionId, Listed)> = parts.filter(|(_, listed)| listed.has_plan).collect();
        let done = parts.iter().filter(|(_, listed)| listed.is_done).count();
        if done == agreed.parts as usize {
            continue;
        }
        let signs = parts.iter().map(|(_, listed)| listed.last_sign);
        let last_sign = signs.max().unwrap_or(begun_at);
        let looks = stream::iter(parts).map(|(id, listed)| records.look_at(id, listed));
        let mut looks = pin!(looks.buffered(READS_AT_ONCE));
        let mut begun = Vec::new();
        while let Some(checkpoint) = looks.next().await {
            match checkpoint {
                Ok(checkpoint) => begun.extend(checkpoint),
                Err(error) => tracing::warn!("a part of `{}` is left out: {error}", agreed.name),
            }
        }
        found.push(Found {
            folder,
            agreed,
            begun,
            last_sign,
        });
    }
    Ok(found)
}

/// Removes all that is recorded of a work. Tasks that are at work on it end when they look for more.
pub(crate) async fn remove<W: ShareableWork>(store: &Store, found: &Found<W>) -> Result<(), ArchiveError> {
    let (folder, agreed) = (&found.folder, &found.agreed);
    store.delete(&format!("{folder}/{AGREED}")).await?;
    // Not all of the folder: other work may have begun under the same name by now.
    let records = Records::<W>::below(store.clone(), folder.clone());
    for part in agreed.parts() {
        records.remove(agreed.record(part)).await?;
    }
    Ok(())
}

/// Removes what is remembered of work of long ago. What is left of it where that fails is nothing to other work by the same name.
pub(super) async fn forget_old<W: ShareableWork>(own: &Records<W>) {
    let mut newest: BTreeMap<String, DateTime<Utc>> = BTreeMap::new();
    let mut names = Vec::new();
    let mut listing = own.store.list(W::SHARED_FOLDER);
    loop {
        let object = match listing.try_next().await {
            Ok(Some(object)) => object,
            Ok(None) => break,
            Err(error) => return tracing::debug!("old records stay: {error}"),
        };
        let rest = object.name.strip_prefix(W::SHARED_FOLDER).unwrap_or_default();
        let Some((folder, _)) = rest.trim_start_matches('/').split_once('/') else {
            continue;
        };
        let folder = format!("{}/{folder}", W::SHARED_FOLDER);
        let sign = newest.entry(folder.clone()).or_default();
        *sign = object.last_modified.max(*sign);
        names.push((folder, object.name));
    }
    // By the store's own clock: this task has just written there, or another of this work has.
    let now = newest.values().max().copied().unwrap_or_default();
    newest.retain(|folder, sign| *folder != own.folder && now - *sign > REMEMBERED);
    // What the tasks have agreed upon goes first: without it the rest is nothing.
    names.retain(|(folder, _)| newest.contains_key(folder));
    names.sort_by_key(|(_, name)| !name.ends_with(AGREED));
    for (_, name) in names {
        if let Err(error) = own.store.delete(&name).await {
            tracing::debug!("`{name}` stays: {error}");
        }
    }
}
