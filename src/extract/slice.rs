//! A stable part of a source: N plain jobs, each with a part of its own, share the work without talking to each other.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Part `number` of `of`: the images whose id hashes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    number: usize,
    of: usize,
}

impl Slice {
    /// Parts there are.
    pub fn of(self) -> usize {
        self.of
    }

    /// Whether an image belongs to this part; the same in every run and on every machine.
    pub fn holds(self, id: &str) -> bool {
        let mut first = [0; 8];
        first.copy_from_slice(&blake3::hash(id.as_bytes()).as_bytes()[..8]);
        u64::from_le_bytes(first) % self.of as u64 == self.number as u64 - 1
    }

    /// Where the features of this part go, below the folder of the whole store.
    pub fn folder(self, features: &Path) -> PathBuf {
        features.join(crate::store::slice_folder(self.number, self.of))
    }
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

/// Why a text is no slice.
#[derive(Debug, thiserror::Error)]
#[error("give I/N with I from 1 to N and N up to 10000, as in 1/4")]
pub struct NoSlice;

impl FromStr for Slice {
    type Err = NoSlice;

    fn from_str(text: &str) -> Result<Self, NoSlice> {
        const MOST: usize = 10_000;
        let (number, of) = text.split_once('/').ok_or(NoSlice)?;
        let (number, of) = (number.parse().map_err(|_| NoSlice)?, of.parse().map_err(|_| NoSlice)?);
        if (1..=of).contains(&number) && of <= MOST { Ok(Self { number, of }) } else { Err(NoSlice) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_is_in_one_slice_and_slices_are_of_a_size() {
        let slices: Vec<Slice> = (1..=4).map(|number| format!("{number}/4").parse().unwrap()).collect();
        let mut sizes = [0; 4];
        for image in 0..4000 {
            let id = format!("train/{image}.jpg");
            let holding: Vec<usize> = (0..4).filter(|&slice| slices[slice].holds(&id)).collect();
            assert_eq!(holding.len(), 1);
            sizes[holding[0]] += 1;
        }
        assert!(sizes.iter().all(|size| (900..1100).contains(size)), "{sizes:?}");
        // Fixed for good: jobs of different versions share a store.
        let of = |id: &str| (0..4).find(|&slice| slices[slice].holds(id)).unwrap() + 1;
        assert_eq!(["cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "train.parquet#0"].map(of), [2, 4, 4, 4]);
    }

    #[test]
    fn what_is_no_slice_is_refused() {
        for text in ["", "1", "0/4", "5/4", "a/b", "1/0", "-1/4", "1/20000"] {
            assert!(text.parse::<Slice>().is_err(), "{text}");
        }
    }
}
