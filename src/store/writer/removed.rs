//! What becomes of rows whose images are gone.

use super::{OldRow, StoreWriter};
use crate::store::{REMOVED, StoreError, shard};

impl StoreWriter {
    /// Keeps the features of images that went or changed in a shard of their own, so that a head can be brought up to date by
    /// taking them out of its statistics. There are never more of them than rows of the store: the oldest go first.
    pub(super) fn keep_removed(&mut self) -> Result<(), StoreError> {
        let live: usize = self.manifest.shards.iter().map(|shard| shard.rows).sum();
        let mut gone: Vec<OldRow> = self.index.places().filter(|place| !self.taken[place.shard][place.row]).collect();
        gone.sort_unstable();
        if !gone.is_empty() && gone.len() <= live {
            let (mut rows, mut embeddings) = (Vec::with_capacity(gone.len()), Vec::with_capacity(gone.len()));
            for of_shard in gone.chunk_by(|a, b| a.shard == b.shard) {
                let record = &self.old[of_shard[0].shard];
                let content = shard::read(&self.dir, record)?;
                let described = shard::rows(&self.dir, record, content)?;
                rows.extend(of_shard.iter().map(|place| described[place.row].clone()));
                for &place in of_shard {
                    embeddings.push(self.old_values(place)?);
                }
            }
            let draft = shard::Draft {
                dir: self.dir.clone(),
                key: self.manifest.key.clone(),
                classes: self.manifest.classes.clone(),
                layout: self.layout.clone(),
                split: REMOVED.to_owned(),
                file: self.next_file(REMOVED),
                rows,
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
