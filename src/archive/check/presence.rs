//! Is everything there? Found out by listing: no request per chunk.

use std::collections::HashMap;

use futures::stream::TryStreamExt;

use super::{CheckStats, DamageReport};
use crate::archive::error::{Damage, DamageKind, Result};
use crate::archive::ids::{ChunkId, ChunkRef, SessionId, parse_chunk_name};
use crate::archive::reader::SnapshotReader;

/// Checks that every object that the snapshots need exists and has its size, by listing.
pub async fn check_presence(readers: &[SnapshotReader], report: &mut DamageReport) -> Result<CheckStats> {
    let mut stats = CheckStats::default();
    let Some(repository) = readers.first().map(SnapshotReader::repository) else {
        return Ok(stats);
    };
    let mut needed: HashMap<String, u64> = HashMap::new();
    let mut chunks: HashMap<(ChunkId, SessionId), u64> = HashMap::new();
    let mut need = |chunk: &ChunkRef| {
        chunks.insert((chunk.id, chunk.session), chunk.stored_len);
    };
    for reader in readers {
        for run in reader.runs() {
            stats.runs += 1;
            if run.reference.root.is_none() {
                needed.insert(run.reference.name(), run.reference.root_len);
            }
            for listed in &run.root.blocks {
                stats.directory_blocks += 1;
                need(&listed.chunk);
                let Some(block) = report.take(reader.block_source().load(listed).await)? else {
                    continue;
                };
                for entry in &block.entries {
                    stats.index_chunks += 1;
                    need(&entry.chunk);
                    entry.data.iter().for_each(&mut need);
                }
            }
        }
    }
    stats.objects = (needed.len() + chunks.len()) as u64;
    let mut wrong: HashMap<(ChunkId, SessionId), Option<u64>> = HashMap::new();
    let mut objects = repository.store().list("chunks");
    while let Some(object) = objects.try_next().await? {
        let Some(name) = parse_chunk_name(&object.name) else {
            continue;
        };
        if let Some(size) = chunks.remove(&name)
            && size != object.size
        {
            wrong.insert(name, Some(object.size));
        }
    }
    let mut objects = repository.store().list("runs");
    while let Some(object) = objects.try_next().await? {
        if let Some(size) = needed.remove(&object.name)
            && size != object.size
        {
            let what = format!("it has {} bytes instead of {size}", object.size);
            report.add(Damage::new(object.name, DamageKind::WrongSize, what));
        }
    }
    for (name, _) in needed {
        report.add(Damage::new(
            name,
            DamageKind::Missing,
            "the object does not exist",
        ));
    }
    wrong.extend(chunks.into_keys().map(|name| (name, None)));
    if !wrong.is_empty() {
        locate_wrong(readers, &wrong, report).await?;
    }
    Ok(stats)
}

/// Goes through the directories again to say which keys the missing chunks affect.
async fn locate_wrong(
    readers: &[SnapshotReader],
    wrong: &HashMap<(ChunkId, SessionId), Option<u64>>,
    report: &mut DamageReport,
) -> Result<()> {
    let mut found: HashMap<(ChunkId, SessionId), Damage> = HashMap::new();
    let mut note = |chunk: &ChunkRef, first: &[u8], last: &[u8]| {
        let key = (chunk.id, chunk.session);
        let Some(size) = wrong.get(&key) else { return };
        let damage = found.entry(key).or_insert_with(|| match size {
            None => Damage::new(chunk.name(), DamageKind::Missing, "the object does not exist"),
            Some(size) => Damage::new(
                chunk.name(),
                DamageKind::WrongSize,
                format!("it has {size} bytes instead of {}", chunk.stored_len),
            ),
        });
        *damage = damage.clone().widen(first, last);
    };
    for reader in readers {
        for listed in reader.runs().iter().flat_map(|run| &run.root.blocks) {
            note(
                &listed.chunk,
                listed.first_key.as_bytes(),
                listed.last_key.as_bytes(),
            );
            // A block that cannot be read was reported before.
            let Ok(block) = reader.block_source().load(listed).await else {
                continue;
            };
            for entry in &block.entries {
                for chunk in entry.data.iter().chain([&entry.chunk]) {
                    note(chunk, entry.first_key(), entry.last_key());
                }
            }
        }
    }
    found.into_values().for_each(|damage| report.add(damage));
    Ok(())
}
