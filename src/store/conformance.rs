//! What every store must do for a repository to rest on it: one suite, for each kind of store.
//!
//! The stores of this crate are tested with it. Whoever passes another
//! [`ObjectStore`](object_store::ObjectStore) to [`Store::new`] finds out here what it lacks, before a backup
//! rests on it.

use std::collections::BTreeSet;
use std::fmt::Debug;

use bytes::Bytes;
use chrono::TimeDelta;
use futures::{StreamExt, TryStreamExt};
use object_store::PutPayload;

use super::{Store, StoreError};
use crate::clock;

/// A promise that a store does not keep.
#[derive(Debug, thiserror::Error)]
pub enum Violation {
    /// It did something else.
    #[error("{promise}; but it was: {found}")]
    Broken {
        /// What it should have done.
        promise: &'static str,
        /// What it did.
        found: String,
    },
    /// It failed where it should not.
    #[error("{promise}; but it failed: {source}")]
    Failed {
        /// What it should have done.
        promise: &'static str,
        /// How it failed.
        source: StoreError,
    },
}

type Result<T = ()> = std::result::Result<T, Violation>;

/// Tries everything on an empty store. Some twenty megabytes are written, and stay.
///
/// # Errors
/// The first promise that is broken.
pub async fn check(store: &Store) -> Result {
    promise(
        "an empty store lists nothing",
        &listed(store, "").await?,
        &names([]),
    )?;
    create_only(store).await?;
    ranges(store).await?;
    listing(store).await?;
    deleting(store).await?;
    names_of_objects(store).await?;
    one_creator_wins(store).await?;
    large_objects(store).await?;
    done(
        "the probe of `init` and `doctor` succeeds",
        store.check_create_only().await,
    )?;
    promise(
        "the probe leaves nothing behind",
        &listed(store, "probes").await?,
        &names([]),
    )
}

fn promise<T: PartialEq + Debug + ?Sized>(promise: &'static str, found: &T, expected: &T) -> Result {
    match found == expected {
        true => Ok(()),
        false => broken(promise, found),
    }
}

fn broken(promise: &'static str, found: impl Debug) -> Result {
    Err(Violation::Broken {
        promise,
        found: format!("{found:?}"),
    })
}

fn done<T>(promise: &'static str, result: std::result::Result<T, StoreError>) -> Result<T> {
    result.map_err(|source| Violation::Failed { promise, source })
}

macro_rules! refused {
    ($promise:literal, $result:expr, $pattern:pat $(if $guard:expr)?) => {
        match $result {
            Err($pattern) $(if $guard)? => {}
            other => broken($promise, other)?,
        }
    };
}

async fn listed(store: &Store, prefix: &str) -> Result<BTreeSet<String>> {
    let names = store.list(prefix).map_ok(|object| object.name);
    done("a listing succeeds", names.try_collect().await)
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

async fn put(store: &Store, name: &str, bytes: &'static str) -> Result {
    done("a new object is created", store.put_new(name, bytes).await)
}

async fn get(store: &Store, name: &str) -> Result<Bytes> {
    done(
        "an object is read as soon as it is written",
        store.get(name).await,
    )
}

async fn create_only(store: &Store) -> Result {
    put(store, "a/object", "first").await?;
    done(
        "an equal object counts as created: it may be our own, whose answer was lost",
        store.put_new("a/object", "first").await,
    )?;
    for other in ["other", "", "first and more", "firs"] {
        refused!(
            "a second create of a name is refused",
            store.put_new("a/object", other).await,
            StoreError::AlreadyExists { name } if name == "a/object"
        );
    }
    promise(
        "a refused create changes nothing",
        &get(store, "a/object").await?,
        &Bytes::from("first"),
    )?;
    // In parts, as chunks are put.
    let parts = |parts: [&'static str; 3]| parts.map(Bytes::from).into_iter().collect::<PutPayload>();
    done(
        "an object comes in parts",
        store.put_new("a/parts", parts(["on", "", "e"])).await,
    )?;
    done(
        "parts are not remembered",
        store.put_new("a/parts", parts(["o", "n", "e"])).await,
    )?;
    refused!(
        "parts are compared",
        store.put_new("a/parts", parts(["o", "n", "f"])).await,
        StoreError::AlreadyExists { .. }
    );
    for bytes in ["1", "2"] {
        done(
            "a put that may overwrite does",
            store.put("a/marker", bytes).await,
        )?;
    }
    promise(
        "what was overwritten is gone",
        &get(store, "a/marker").await?,
        &Bytes::from("2"),
    )
}

async fn ranges(store: &Store) -> Result {
    put(store, "r/ten", "0123456789").await?;
    for (range, expected) in [(0..10, "0123456789"), (3..5, "34"), (9..10, "9"), (4..4, "")] {
        let found = done("a range is read", store.get_range("r/ten", range).await)?;
        promise(
            "a range is exactly what was asked for",
            &found,
            &Bytes::from(expected),
        )?;
    }
    for range in [8..11, 10..11, 50..60] {
        refused!(
            "a range past the end is refused with the object's size",
            store.get_range("r/ten", range).await,
            StoreError::OutOfRange { name, size: 10, .. } if name == "r/ten"
        );
    }
    refused!(
        "a range of nothing says that there is nothing",
        store.get_range("r/none", 0..1).await,
        StoreError::NotFound { name } if name == "r/none"
    );
    refused!(
        "an object that is too large is not read",
        store.get_at_most("r/ten", 9).await,
        StoreError::TooLarge {
            size: 10,
            limit: 9,
            ..
        }
    );
    done("one that just fits is", store.get_at_most("r/ten", 10).await)?;
    let head = done("size and time are known", store.head("r/ten").await)?;
    promise(
        "they are of the object",
        &(head.name.as_str(), head.size),
        &("r/ten", 10),
    )?;
    let age = clock::now() - head.last_modified;
    match age.abs() < TimeDelta::minutes(10) {
        true => Ok(()),
        false => broken("the store's clock agrees with this one to ten minutes", age),
    }
}

async fn listing(store: &Store) -> Result {
    promise(
        "a folder of nothing lists nothing",
        &listed(store, "l").await?,
        &names([]),
    )?;
    for name in ["l/ab/1", "l/ab/2", "l/abc/3", "l/x"] {
        put(store, name, "x").await?;
        if !listed(store, "l").await?.contains(name) {
            broken("an object is listed as soon as it is written", name)?;
        }
    }
    const SEGMENTS: &str = "a folder is made of whole segments";
    promise(
        SEGMENTS,
        &listed(store, "l/ab").await?,
        &names(["l/ab/1", "l/ab/2"]),
    )?;
    promise(
        SEGMENTS,
        &listed(store, "l/ab/").await?,
        &names(["l/ab/1", "l/ab/2"]),
    )?;
    promise(
        SEGMENTS,
        &listed(store, "l").await?,
        &names(["l/ab/1", "l/ab/2", "l/abc/3", "l/x"]),
    )?;
    promise(
        "a folder that never was lists nothing",
        &listed(store, "nowhere").await?,
        &names([]),
    )?;
    let sizes = store.list("l").map_ok(|object| object.size);
    let sizes: Vec<u64> = done("a listing succeeds", sizes.try_collect().await)?;
    promise("a listing tells the sizes", &sizes, &vec![1; 4])
}

async fn deleting(store: &Store) -> Result {
    put(store, "d/object", "x").await?;
    promise(
        "what is there exists",
        &done("existence is known", store.exists("d/object").await)?,
        &true,
    )?;
    done("an object is deleted", store.delete("d/object").await)?;
    promise(
        "what is deleted does not",
        &done("existence is known", store.exists("d/object").await)?,
        &false,
    )?;
    refused!(
        "it is not read",
        store.get("d/object").await,
        StoreError::NotFound { .. }
    );
    refused!(
        "it has no size",
        store.head("d/object").await,
        StoreError::NotFound { .. }
    );
    promise("it is not listed", &listed(store, "d").await?, &names([]))?;
    done("what is not there may be deleted", store.delete("d/object").await)?;
    put(store, "d/object", "again").await
}

async fn names_of_objects(store: &Store) -> Result {
    let hex = "ab".repeat(32);
    for name in [
        format!("chunks/ab/{hex}-0123456789abcdef"),
        "n/with space and ü.json".to_owned(),
    ] {
        put(store, &name, "x").await?;
        promise("names are kept", &get(store, &name).await?, &Bytes::from("x"))?;
        let head = done("size and time are known", store.head(&name).await)?;
        promise("names are told as they were given", &head.name, &name)?;
        let folder = name.split('/').next().unwrap_or_default();
        if !listed(store, folder).await?.contains(&name) {
            broken("names are listed as they were given", name)?;
        }
    }
    for name in ["", "/a", "a/", "a//b", "../a", "a/./b"] {
        refused!(
            "what can be no name is refused",
            store.put_new(name, "x").await,
            StoreError::BadName { .. }
        );
    }
    Ok(())
}

async fn one_creator_wins(store: &Store) -> Result {
    for round in 0..4 {
        let name = format!("race/{round}");
        let attempts = (0..16).map(|writer| {
            let (store, name) = (store.clone(), name.clone());
            async move {
                let created = store.put_new(&name, format!("writer {writer}")).await;
                created.map(|()| writer)
            }
        });
        let attempts = futures::stream::iter(attempts).buffer_unordered(16);
        let results: Vec<std::result::Result<i32, StoreError>> = attempts.collect().await;
        let winners: Vec<i32> = results
            .iter()
            .filter_map(|result| result.as_ref().ok().copied())
            .collect();
        let [winner] = winners[..] else {
            return broken("of several creators exactly one wins", results);
        };
        let expected = Bytes::from(format!("writer {winner}"));
        promise("the winner's object stays", &get(store, &name).await?, &expected)?;
    }
    Ok(())
}

async fn large_objects(store: &Store) -> Result {
    let parts = (0..20u8).map(|part| Bytes::from(vec![part; 1 << 20]));
    let payload: PutPayload = parts.collect();
    done("20 MiB are one object", store.put_new("large", payload).await)?;
    let head = done("size and time are known", store.head("large").await)?;
    promise("a large object is whole", &head.size, &(20 << 20))?;
    let middle = (5 << 20) - 2..(5 << 20) + 2;
    let across = done("a range is read", store.get_range("large", middle).await)?;
    promise("a range of a large object is right", &across[..], &[4, 4, 5, 5])?;
    promise(
        "all of it is read",
        &get(store, "large").await?.len(),
        &(20 << 20),
    )
}
