//! Reading rows of a store without holding its embeddings in memory.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use rayon::prelude::*;

use super::layout::{Dtype, Layout, Put, Reading, Transform};
use super::{ShardRecord, Store, StoreError, pages, shard};

/// Rows of one or more splits, in the order of the source, whose embeddings stay on disk.
///
/// Every shard has been checked against its hash once; later it is read without that.
#[derive(Clone, Debug)]
pub struct StreamedFeatures {
    /// Row ids.
    pub ids: Vec<String>,
    /// Label index; none for an unlabelled row.
    pub labels: Vec<Option<i32>>,
    /// Rows that hold NaN or an infinity in one of their views, in order.
    pub not_finite: Vec<usize>,
    layout: Layout,
    /// Images; there are more rows where each view is one.
    images: usize,
    shards: Vec<Shard>,
}

/// Where the values of a shard lie.
#[derive(Clone, Debug)]
struct Shard {
    path: PathBuf,
    /// First row.
    start: usize,
    /// Of each view.
    pages: Vec<Vec<Page>>,
}

/// Values that lie in a file one after the other.
#[derive(Clone, Copy, Debug)]
struct Page {
    /// The first one's number in the shard.
    start: usize,
    /// Its place in the file.
    offset: u64,
}

/// What a look at one shard finds.
struct Looked {
    rows: Vec<(String, Option<i32>)>,
    not_finite: Vec<usize>,
    pages: Vec<Vec<Page>>,
}

impl Store {
    /// Reads splits once, one shard a thread at a time, and keeps everything but the embeddings.
    ///
    /// # Errors
    /// When a split is not there, or a shard is damaged.
    pub fn stream(&self, splits: &[&str]) -> Result<StreamedFeatures, StoreError> {
        let records = self.shards(splits)?;
        let layout = self.layout();
        let looked = records.par_iter().map(|record| self.look(record, &layout)).collect::<Result<Vec<_>, _>>()?;
        let mut features = StreamedFeatures {
            ids: Vec::new(),
            labels: Vec::new(),
            not_finite: Vec::new(),
            layout: layout.clone(),
            images: 0,
            shards: Vec::new(),
        };
        for (record, Looked { rows, not_finite, pages }) in records.into_iter().zip(looked) {
            let start = features.ids.len();
            features.not_finite.extend(not_finite.into_iter().map(|row| start + row));
            features.shards.push(Shard { path: self.dir().join(&record.file), start, pages });
            for (id, label) in rows {
                features.ids.push(id);
                features.labels.push(label);
            }
        }
        features.images = features.ids.len();
        Ok(features)
    }

    fn look(&self, record: &ShardRecord, layout: &Layout) -> Result<Looked, StoreError> {
        let path = self.dir().join(&record.file);
        let content = shard::read(self.dir(), record)?;
        let (mut not_finite, mut pages) = (Vec::new(), Vec::with_capacity(layout.views()));
        for view in 0..layout.views() {
            let (mut of_view, mut start) = (Vec::new(), 0);
            for page in pages::values(&path, record, &content, layout, view)? {
                // Not compressed, a page is a part of the file's content.
                let place = (page.as_ptr() as usize).checked_sub(content.as_ptr() as usize);
                let place = place.filter(|place| place + page.len() <= content.len());
                let offset = place.ok_or_else(|| StoreError::damaged(&path, "embeddings that are compressed"))? as u64;
                of_view.push(Page { start, offset });
                let size = layout.dtype.size();
                if !layout.dtype.is_finite(&page) {
                    let bad = page.chunks_exact(size).enumerate().filter(|(_, value)| !layout.dtype.is_finite(value));
                    not_finite.extend(bad.map(|(value, _)| (start + value) / layout.dimension));
                }
                start += page.len() / size;
            }
            pages.push(of_view);
        }
        not_finite.sort_unstable();
        not_finite.dedup();
        let rows = shard::rows(self.dir(), record, content.clone())?.into_iter().map(|row| (row.id, row.label)).collect();
        Ok(Looked { rows, not_finite, pages })
    }
}

impl StreamedFeatures {
    /// Values D of a row.
    pub fn dimension(&self) -> usize {
        self.layout.dimension
    }

    /// Makes each view a row of its own, after the rows of the images: with N images, row `(1 + view) * N + image` is that view
    /// of that image.
    #[must_use]
    pub fn with_views(mut self) -> Self {
        for view in 0..self.layout.views() {
            let start = (1 + view) * self.images;
            self.ids.extend_from_within(..self.images);
            self.labels.extend_from_within(..self.images);
            let bad = self.not_finite.iter().take_while(|row| **row < self.images).map(|row| start + row);
            self.not_finite.extend(bad.collect::<Vec<_>>());
        }
        self
    }

    /// Copies rows into `out`, `[rows, D]`; of an image that was seen in several views their mean. Rows are best in order:
    /// neighbours are read together.
    ///
    /// # Errors
    /// When a row is not there, or its file cannot be read any more.
    pub fn read(&self, rows: &[usize], out: &mut [f32]) -> Result<(), StoreError> {
        self.read_as(rows, None, out)
    }

    /// Copies one view of images into `out`, `[rows, D]`, by its number in [`Store::views`].
    ///
    /// # Errors
    /// As [`Self::read`], and when there is no such view.
    pub fn read_view(&self, rows: &[usize], view: usize, out: &mut [f32]) -> Result<(), StoreError> {
        if view < self.layout.views() {
            return self.read_as(rows, Some(Reading::View(view)), out);
        }
        let path = self.shards.first().map(|shard| shard.path.clone()).unwrap_or_default();
        Err(StoreError::NoView { dir: path, view, present: self.layout.columns.clone() })
    }

    /// Reads rows; where it is left open, each row's number says what it is.
    fn read_as(&self, rows: &[usize], reading: Option<Reading>, out: &mut [f32]) -> Result<(), StoreError> {
        let mut open: Option<(usize, File)> = None;
        let (mut scratch, mut rest) = (Vec::new(), out);
        for run in rows.chunk_by(|row, next| row + 1 == *next) {
            let (mut given, mut left) = (run[0], run.len());
            while left > 0 {
                let (block, row) = match reading {
                    None if given < self.ids.len() => (given / self.images, given % self.images),
                    _ => (0, given),
                };
                let reading = reading.unwrap_or(if block == 0 { Reading::Mean } else { Reading::View(block - 1) });
                let number = self.shards.partition_point(|shard| shard.start <= row).saturating_sub(1);
                let end = self.shards.get(number + 1).map_or(self.images, |next| next.start);
                let count = left.min(end.saturating_sub(row));
                let taken = std::mem::take(&mut rest).split_at_mut_checked(count * self.dimension()).filter(|_| count > 0);
                let (Some(shard), Some((place, after))) = (self.shards.get(number), taken) else {
                    let path = self.shards.first().map(|shard| shard.path.clone()).unwrap_or_default();
                    return Err(StoreError::damaged(&path, format!("row {given} is not one of {}", self.ids.len())));
                };
                let io = StoreError::io(&shard.path);
                let file = match &mut open {
                    Some((other, file)) if *other == number => file,
                    open => &mut open.insert((number, File::open(&shard.path).map_err(io)?)).1,
                };
                let first = (row - shard.start) * self.dimension();
                let read = reading.gather(self.layout.views(), place, |view, put, place| {
                    let Layout { dtype, transform, .. } = self.layout;
                    let wanted = Wanted { view, dtype, transform, first, put };
                    shard.read(file, wanted, place, &mut scratch)
                });
                read.map_err(StoreError::io(&shard.path))?;
                (given, left, rest) = (given + count, left - count, after);
            }
        }
        Ok(())
    }
}

/// Which values of a shard are read, and what is done with them.
struct Wanted {
    view: usize,
    dtype: Dtype,
    transform: Transform,
    /// Number of the first value.
    first: usize,
    put: Put,
}

impl Shard {
    /// Reads values of a view from number `first` on.
    fn read(&self, file: &mut File, wanted: Wanted, mut out: &mut [f32], scratch: &mut Vec<u8>) -> std::io::Result<()> {
        let Wanted { view, dtype, transform, mut first, put } = wanted;
        let pages = self.pages.get(view).map_or(&[][..], Vec::as_slice);
        let mut page = pages.partition_point(|page| page.start <= first).saturating_sub(1);
        while let (Some(found), false) = (pages.get(page), out.is_empty()) {
            let end = pages.get(page + 1).map_or(usize::MAX, |next| next.start);
            let (place, after) = out.split_at_mut(out.len().min(end - first));
            file.seek(SeekFrom::Start(found.offset + ((first - found.start) * dtype.size()) as u64))?;
            if (dtype, put, transform) == (Dtype::Float32, Put::Set, Transform::None) {
                file.read_exact(bytes_of(place))?;
                place.iter_mut().for_each(|value| *value = f32::from_bits(u32::from_le(value.to_bits())));
            } else {
                scratch.resize(place.len() * dtype.size(), 0);
                file.read_exact(scratch)?;
                put.run(dtype, transform, scratch, place);
            }
            first += place.len();
            (page, out) = (page + 1, after);
        }
        Ok(())
    }
}

/// The memory of some values.
fn bytes_of(values: &mut [f32]) -> &mut [u8] {
    // SAFETY: the same memory for the same time; bytes have no alignment, and any bytes are a value.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fixture;

    #[test]
    fn rows_are_those_that_are_loaded() {
        let dir = tempfile::tempdir().unwrap();
        // 8 shards of train, row groups of 256 rows, several pages each.
        fixture::write(dir.path(), &[("train", 2000), ("test", 300)], 40_000, 3, |row, values| match row {
            700 | 701 => values[39_999] = f32::NAN,
            2299 => values[0] = f32::NEG_INFINITY,
            _ => {}
        });
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.manifest().shards.len(), 10);
        let (loaded, streamed) = (store.load(&["train", "test"]).unwrap(), store.stream(&["train", "test"]).unwrap());
        assert_eq!((&streamed.ids, &streamed.labels), (&loaded.ids, &loaded.labels));
        assert_eq!((streamed.dimension(), &streamed.not_finite[..]), (40_000, &[700, 701, 2299][..]));
        let lists: [Vec<usize>; 6] = [
            (0..600).collect(),
            vec![2299],
            vec![],
            vec![255, 256, 511, 1999, 2000, 2001],
            (0..2300).step_by(97).collect(),
            vec![9, 3, 4],
        ];
        for rows in lists {
            let mut out = vec![0.0; rows.len() * 40_000];
            streamed.read(&rows, &mut out).unwrap();
            for (row, found) in rows.into_iter().zip(out.chunks(40_000)) {
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(found), bits(loaded.embeddings.row(row).as_slice().unwrap()), "row {row}");
            }
        }
        let error = streamed.read(&[2300], &mut [0.0; 40_000]).unwrap_err().to_string();
        assert!(error.contains("row 2300 is not one of 2300"), "{error}");
    }

    #[test]
    fn a_damaged_shard_is_found_before_training_and_a_lost_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fixture::write(dir.path(), &[("train", 5000)], 8, 2, |_, _| {});
        let streamed = Store::open(dir.path()).unwrap().stream(&["train"]).unwrap();
        let last = dir.path().join("train/part-00001.parquet");
        let mut content = std::fs::read(&last).unwrap();
        content[100] ^= 1;
        std::fs::write(&last, content).unwrap();
        let error = Store::open(dir.path()).unwrap().stream(&["train"]).unwrap_err().to_string();
        assert!(error.contains("part-00001") && error.contains("not what was recorded"), "{error}");
        std::fs::remove_file(last).unwrap();
        assert!(streamed.read(&[0, 1023], &mut [0.0; 16]).is_ok());
        assert!(streamed.read(&[1023, 1024], &mut [0.0; 16]).unwrap_err().to_string().contains("part-00001"));
    }
}
