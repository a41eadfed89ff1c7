//! What becomes of rows whose images are gone.

use std::sync::Arc;

use super::{OldRow, StoreWriter};
use crate::store::{REMOVED, StoreError, shard};

impl StoreWriter {
    /// Keeps the features of images that went or changed in a shard of their own, so that a head can be brought up to date by
    /// taking them out of its statistics. There are never more of them than rows of the store: the oldest go first.
    pub(super) fn keep_removed(&mut self) -> Result<(), StoreError> {
        let live: usize = self.manifest.shards.iter().map(|shard| shard.rows).sum();
        let index = Arc::clone(&self.index);
        let mut gone = Vec::new();
        for (shard, rows) in index.rows.iter().enumerate() {
            let split = &self.old[shard].split;
            for (row, described) in rows.iter().enumerate() {
                let place = OldRow { shard, row };
                // An update that was interrupted may have left a row in two shards.
                let newest = index.find(split, &described.id).is_some_and(|(newest, _)| newest == place);
                if newest && !self.taken.contains(&place) {
                    gone.push(place);
                }
            }
        }
        if !gone.is_empty() && gone.len() <= live {
            let mut embeddings = Vec::with_capacity(gone.len() * self.manifest.dimension);
            for place in &gone {
                let start = place.row * self.manifest.dimension;
                let (from, dimension) = (place.shard, self.manifest.dimension);
                embeddings.extend_from_slice(&self.old_embeddings(from)?[start..start + dimension]);
            }
            let draft = shard::Draft {
                dir: self.dir.clone(),
                key: self.manifest.key.clone(),
                classes: self.manifest.classes.clone(),
                dimension: self.manifest.dimension,
                split: REMOVED.to_owned(),
                file: self.next_file(REMOVED),
                rows: gone.iter().map(|place| index.rows[place.shard][place.row].clone()).collect(),
                embeddings,
            };
            self.manifest.removed.push(shard::write(draft)?);
        }
        while self.manifest.removed.iter().map(|shard| shard.rows).sum::<usize>() > live {
            self.manifest.removed.remove(0);
        }
        Ok(())
    }
}
