//! The rows that a store held before, found by their ids: what decides whether an image must be run.

use std::collections::HashMap;

use super::{Row, ShardRecord, StoreError};

/// Place of a row that was recorded earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OldRow {
    pub(super) shard: usize,
    pub(super) row: usize,
}

/// What is kept of a recorded row while the store is updated. With its entry in [`Index`] 80 bytes: a million rows are 80 MB.
#[derive(Clone, Debug)]
pub struct KnownRow {
    id: [u8; 16],
    content: blake3::Hash,
    pub(super) label: Option<i32>,
    /// Of the source image, pixels.
    pub width: i32,
    /// Of the source image, pixels.
    pub height: i32,
}

impl KnownRow {
    /// # Errors
    /// When its content hash is none; the reason.
    pub(super) fn new(row: &Row) -> Result<Self, String> {
        let content =
            blake3::Hash::from_hex(&row.content_hash).map_err(|error| format!("content_hash of {}: {error}", row.id))?;
        Ok(Self { id: id_hash(&row.id), content, label: row.label, width: row.width, height: row.height })
    }

    /// The row was made from an image with this BLAKE3.
    pub fn is_of(&self, content: &blake3::Hash) -> bool {
        self.content == *content
    }
}

/// Ids are long and many; two with the same 128 bits do not happen.
fn id_hash(id: &str) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&blake3::hash(id.as_bytes()).as_bytes()[..16]);
    half
}

fn prefix(id: &[u8; 16]) -> u64 {
    id[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Where a row is, by the first half of its id's hash.
#[derive(Clone, Copy, Debug)]
struct Entry {
    prefix: u64,
    shard: u32,
    row: u32,
}

/// The rows that were recorded earlier, by split and id; shared with the threads that look images up.
#[derive(Debug, Default)]
pub struct Index {
    /// In the order of the prefixes.
    splits: HashMap<String, Vec<Entry>>,
    rows: Vec<Vec<KnownRow>>,
}

impl Index {
    /// # Errors
    /// When there are more shards than can be counted.
    pub(super) fn new(shards: &[ShardRecord], rows: Vec<Vec<KnownRow>>) -> Result<Self, StoreError> {
        let mut splits: HashMap<String, Vec<Entry>> = HashMap::new();
        for (shard, (record, known)) in shards.iter().zip(&rows).enumerate() {
            let split = splits.entry(record.split.clone()).or_default();
            for (row, known) in known.iter().enumerate() {
                let count =
                    |number: usize| u32::try_from(number).map_err(|error| StoreError::damaged(record.file.as_ref(), error));
                split.push(Entry { prefix: prefix(&known.id), shard: count(shard)?, row: count(row)? });
            }
        }
        let mut index = Self { splits: HashMap::new(), rows };
        for entries in splits.values_mut() {
            // An unfinished update may have a row both in its new shard and in the retired one: the first is the newer.
            entries.sort_by_key(|entry| (entry.prefix, entry.shard, entry.row));
            entries.dedup_by(|later, first| {
                later.prefix == first.prefix
                    && index.known(later).zip(index.known(first)).is_some_and(|(later, first)| later.id == first.id)
            });
            entries.shrink_to_fit();
        }
        index.splits = splits;
        Ok(index)
    }

    /// Where the recorded images are, each once.
    pub(super) fn places(&self) -> impl Iterator<Item = OldRow> {
        self.splits.values().flatten().map(|entry| OldRow { shard: entry.shard as usize, row: entry.row as usize })
    }

    fn known(&self, entry: &Entry) -> Option<&KnownRow> {
        self.rows.get(entry.shard as usize)?.get(entry.row as usize)
    }

    /// The recorded row of this image; it can be taken over where it is of the same content.
    pub fn find(&self, split: &str, id: &str) -> Option<(OldRow, &KnownRow)> {
        let entries = self.splits.get(split)?;
        let id = id_hash(id);
        let wanted = prefix(&id);
        let first = entries.partition_point(|entry| entry.prefix < wanted);
        let same = entries[first..].iter().take_while(|entry| entry.prefix == wanted);
        same.filter_map(|entry| Some((entry, self.known(entry)?)))
            .find(|(_, known)| known.id == id)
            .map(|(entry, known)| (OldRow { shard: entry.shard as usize, row: entry.row as usize }, known))
    }

    /// How many images are recorded.
    pub fn images(&self) -> usize {
        self.splits.values().map(Vec::len).sum()
    }

    /// The rows of a recorded shard.
    pub(super) fn shard(&self, shard: usize) -> &[KnownRow] {
        self.rows.get(shard).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, content: &str) -> Row {
        let content_hash = blake3::hash(content.as_bytes()).to_hex().to_string();
        Row { id: id.into(), label: Some(1), content_hash, width: 4, height: 5 }
    }

    fn shard(split: &str, rows: &[Row]) -> (ShardRecord, Vec<KnownRow>) {
        let record = ShardRecord { split: split.into(), file: "x".into(), rows: rows.len(), bytes: 0, blake3: String::new() };
        (record, rows.iter().map(|row| KnownRow::new(row).unwrap()).collect())
    }

    #[test]
    fn the_newer_of_two_rows_is_found_and_each_image_counts_once() {
        let many: Vec<Row> = (0..2000).map(|number| row(&format!("i{number}"), "old")).collect();
        let (records, rows): (Vec<_>, Vec<_>) =
            [shard("train", &[row("a", "new"), row("i7", "new")]), shard("train", &many), shard("test", &[row("a", "other")])]
                .into_iter()
                .unzip();
        let index = Index::new(&records, rows).unwrap();
        assert_eq!(index.images(), 2002);
        let content = |split: &str, id: &str, text: &str| {
            index.find(split, id).is_some_and(|(_, known)| known.is_of(&blake3::hash(text.as_bytes())))
        };
        assert!(content("train", "a", "new") && content("test", "a", "other") && content("train", "i7", "new"));
        for number in (0..2000).filter(|number| *number != 7) {
            let (place, known) = index.find("train", &format!("i{number}")).unwrap();
            assert_eq!((place, known.width, known.height), (OldRow { shard: 1, row: number }, 4, 5));
        }
        assert!(index.find("train", "b").is_none() && index.find("validation", "a").is_none());
    }

    #[test]
    fn a_row_without_a_hash_is_refused() {
        let error = KnownRow::new(&Row { content_hash: "no hash".into(), ..row("a", "x") }).unwrap_err();
        assert!(error.contains("content_hash of a"), "{error}");
    }
}
