//! Which documents a damage affects: found in the index, once there is a damage.

use std::sync::Arc;

use super::bodies::{Pending, Wrong};
use crate::archive::error::{Damage, show_key};
use crate::archive::reader::SnapshotReader;

/// Says which documents a damage affects, by going through the index of the chunk once more.
pub(super) async fn locate(reader: &SnapshotReader, pending: &Pending, wrong: Wrong) -> Damage {
    let (mut first, mut last, mut count) = (None::<Vec<u8>>, None::<Vec<u8>>, 0u64);
    for index in &pending.entries {
        let entry = index.entry();
        let name: Arc<str> = entry.chunk.name().into();
        for page in 0..entry.pages.len() {
            let Ok(mut cursor) = reader
                .block_source()
                .load_page(entry, page, Arc::clone(&name))
                .await
            else {
                continue;
            };
            while let Ok(true) = cursor.advance(&name) {
                let Some(put) = cursor.put() else { continue };
                let here = entry.data.get(put.chunk as usize) == Some(&pending.chunk)
                    && u64::from(put.offset) < wrong.span.end
                    && wrong.span.start < u64::from(put.offset) + u64::from(put.length);
                if here {
                    count += 1;
                    first.get_or_insert_with(|| cursor.key().to_vec());
                    last = Some(cursor.key().to_vec());
                }
            }
        }
    }
    let mut damage = wrong.damage;
    if let (Some(first), Some(last)) = (first, last) {
        match count {
            1 => damage.what = format!("{}; affects {}", damage.what, show_key(&first)),
            _ => {
                damage.what = format!(
                    "{}; affects {count} documents from {} to {}",
                    damage.what,
                    show_key(&first),
                    show_key(&last)
                );
            }
        }
        damage = damage.within(&first, &last);
    }
    damage
}
