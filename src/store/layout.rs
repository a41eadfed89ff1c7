//! How embeddings lie in a shard: a column for each view, in float32 or float16.

use std::convert::Infallible;

use arrow::datatypes::{ArrowPrimitiveType, DataType, Float16Type};
use half::slice::HalfFloatSliceExt as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{KeyParts, Manifest};

/// A number of half the length.
pub(super) type Half = <Float16Type as ArrowPrimitiveType>::Native;

/// The only view of an image, and the first of several.
pub(super) const IDENTITY: &str = "identity";

/// The numbers that embeddings are stored as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// As they were computed.
    #[default]
    Float32,
    /// Rounded to 11 binary digits, up to 65,504: half the room.
    Float16,
}

impl Dtype {
    /// Largest number that `float16` holds.
    pub(super) const MOST: f32 = 65_504.0;

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
        }
    }

    /// Bytes of a number.
    pub(super) fn size(self) -> usize {
        match self {
            Self::Float32 => size_of::<f32>(),
            Self::Float16 => size_of::<Half>(),
        }
    }

    pub(super) fn arrow(self) -> DataType {
        match self {
            Self::Float32 => DataType::Float32,
            Self::Float16 => DataType::Float16,
        }
    }

    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Appends numbers, little-endian.
    pub(super) fn append(self, numbers: &[f32], to: &mut Vec<u8>) {
        let start = to.len();
        to.resize(start + numbers.len() * self.size(), 0);
        match self {
            Self::Float32 => {
                let places = to[start..].as_chunks_mut().0;
                places.iter_mut().zip(numbers).for_each(|(place, number)| *place = number.to_le_bytes());
            }
            Self::Float16 => {
                let places = to[start..].as_chunks_mut().0;
                places.iter_mut().zip(narrowed(numbers)).for_each(|(place, half)| *place = half.to_le_bytes());
            }
        }
    }

    /// Hands each number of some, which are little-endian, to `act`, with the place that it belongs to.
    #[inline]
    pub(super) fn each(self, numbers: &[u8], places: &mut [f32], act: impl Fn(&mut f32, f32)) {
        match self {
            Self::Float32 => {
                let numbers = numbers.as_chunks().0;
                places.iter_mut().zip(numbers).for_each(|(place, &number)| act(place, f32::from_le_bytes(number)));
            }
            Self::Float16 => {
                let numbers = numbers.as_chunks().0;
                places.iter_mut().zip(numbers).for_each(|(place, &number)| act(place, widened(u16::from_le_bytes(number))));
            }
        }
    }

    /// Whether all of some numbers are finite.
    pub(super) fn is_finite(self, numbers: &[u8]) -> bool {
        match self {
            Self::Float32 => {
                let numbers = numbers.as_chunks().0;
                numbers.iter().fold(true, |finite, &number| finite & f32::from_le_bytes(number).is_finite())
            }
            Self::Float16 => {
                let numbers = numbers.as_chunks().0;
                numbers.iter().fold(true, |finite, &number| finite & (u16::from_le_bytes(number) & INFINITE < INFINITE))
            }
        }
    }
}

/// Numbers as float16, rounded to even.
pub(super) fn narrowed(numbers: &[f32]) -> Vec<Half> {
    let mut halves = vec![Half::ZERO; numbers.len()];
    halves.convert_from_f32_slice(numbers);
    halves
}

/// Exponent of what is not finite in float16.
const INFINITE: u16 = 0x7c00;

/// A float16 as float32: exact, and without a branch, so that a loop over many is vectorized.
#[inline]
fn widened(half: u16) -> f32 {
    // Its digits under an exponent that is 112 too small.
    let shifted = u32::from(half & 0x7fff) << 13;
    let scaled = (f32::from_bits(shifted) * f32::from_bits((127 + 112) << 23)).to_bits();
    let magnitude = if half & INFINITE == INFINITE { shifted | 0x7f80_0000 } else { scaled };
    f32::from_bits(magnitude | u32::from(half & 0x8000) << 16)
}

/// What is done to each value of an embedding as it is read, before views are averaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Transform {
    /// Nothing.
    #[default]
    None,
    /// The square root of its magnitude, with its sign: it evens out the long tails that pooled activations have (Arandjelović &
    /// Zisserman, 2012).
    Sqrt,
}

impl Transform {
    /// Whether nothing is done.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// How the embeddings of a store lie in its shards, and how they are read.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// Values D of an embedding.
    pub(super) dimension: usize,
    /// One for each view.
    pub(super) columns: Vec<String>,
    pub(super) dtype: Dtype,
    pub(super) transform: Transform,
}

impl Layout {
    pub(super) fn new(key: &KeyParts, dimension: usize) -> Self {
        Self {
            dimension,
            columns: key.views.iter().map(|view| column(view)).collect(),
            dtype: key.dtype,
            transform: Transform::None,
        }
    }

    pub(super) fn of(manifest: &Manifest) -> Self {
        Self::new(&manifest.key_parts, manifest.dimension)
    }

    pub(super) fn views(&self) -> usize {
        self.columns.len()
    }

    /// Values of all views of an image.
    pub(super) fn values(&self) -> usize {
        self.dimension * self.views()
    }
}

/// The column of a view: `embedding`, `embedding_hflip`, `embedding_top_left`, ….
fn column(view: &str) -> String {
    if view == IDENTITY { "embedding".into() } else { format!("embedding_{}", view.replace('-', "_")) }
}

/// What is asked of the views of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// Their mean.
    Mean,
    /// One of them, by its number.
    View(usize),
}

impl Reading {
    /// Gathers what is asked for in `out`, which `read` fills from one view: it sets the values, or adds to them. The views are
    /// added in their order, so that the bits of the mean are always the same.
    pub(super) fn gather<E>(
        self,
        views: usize,
        out: &mut [f32],
        mut read: impl FnMut(usize, Put, &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        match self {
            Self::View(view) => read(view, Put::Set, out),
            Self::Mean => {
                read(0, Put::Set, out)?;
                for view in 1..views {
                    read(view, Put::Add, out)?;
                }
                if views > 1 {
                    let share = 1.0 / views as f32;
                    out.iter_mut().for_each(|value| *value *= share);
                }
                Ok(())
            }
        }
    }
}

/// The row `[D]` that reading gives once an image's views `[V * D]` were stored: rounded, transformed, averaged.
pub fn as_read(views: &[f32], dimension: usize, dtype: Dtype, transform: Transform) -> Vec<f32> {
    let mut row = vec![0.0; dimension];
    let read = |view: usize, put: Put, row: &mut [f32]| {
        let values = views[view * dimension..][..dimension].iter();
        let numbers: Vec<u8> = match dtype {
            Dtype::Float32 => values.flat_map(|value| value.to_le_bytes()).collect(),
            Dtype::Float16 => values.flat_map(|&value| Half::from_f32(value).to_le_bytes()).collect(),
        };
        put.run(dtype, transform, &numbers, row);
        Ok::<(), Infallible>(())
    };
    let Ok(()) = Reading::Mean.gather(views.len() / dimension.max(1), &mut row, read);
    row
}

/// What is done with values that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    Set,
    Add,
}

impl Put {
    /// Does it with numbers of a type.
    pub(super) fn run(self, dtype: Dtype, transform: Transform, numbers: &[u8], places: &mut [f32]) {
        let root = |value: f32| value.abs().sqrt().copysign(value);
        match (self, transform) {
            (Self::Set, Transform::None) => dtype.each(numbers, places, |place, value| *place = value),
            (Self::Add, Transform::None) => dtype.each(numbers, places, |place, value| *place += value),
            (Self::Set, Transform::Sqrt) => dtype.each(numbers, places, |place, value| *place = root(value)),
            (Self::Add, Transform::Sqrt) => dtype.each(numbers, places, |place, value| *place += root(value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_widened_to_the_same_number() {
        for bits in 0..=u16::MAX {
            let (found, expected) = (widened(bits), Half::from_bits(bits).to_f32());
            let same = if expected.is_nan() { found.is_nan() } else { found.to_bits() == expected.to_bits() };
            assert!(same, "{bits:#06x}: {found} {expected}");
            assert_eq!(Dtype::Float16.is_finite(&bits.to_le_bytes()), expected.is_finite());
        }
    }

    #[test]
    fn the_mean_is_taken_in_the_order_of_the_views() {
        let views = [[1e8_f32, 3.0], [1.0, 5.0], [-1e8, 1.0]];
        let mut out = [0.0; 2];
        let read = |view: usize, put: Put, out: &mut [f32]| -> Result<(), ()> {
            let numbers: Vec<u8> = views[view].iter().flat_map(|value| value.to_le_bytes()).collect();
            put.run(Dtype::Float32, Transform::None, &numbers, out);
            Ok(())
        };
        Reading::Mean.gather(3, &mut out, read).unwrap();
        assert_eq!(out, [0.0, 3.0]);
        Reading::View(1).gather(3, &mut out, read).unwrap();
        assert_eq!(out, [1.0, 5.0]);
        // Roots are taken of each view, then averaged.
        let views = [[4.0_f32, -9.0], [16.0, 25.0]];
        let read = |view: usize, put: Put, out: &mut [f32]| -> Result<(), ()> {
            let numbers: Vec<u8> = views[view].iter().flat_map(|value| value.to_le_bytes()).collect();
            put.run(Dtype::Float32, Transform::Sqrt, &numbers, out);
            Ok(())
        };
        Reading::Mean.gather(2, &mut out, read).unwrap();
        assert_eq!(out, [3.0, 1.0]);
    }

    #[test]
    fn a_view_has_a_column_that_sql_can_name() {
        assert_eq!(
            [IDENTITY, "hflip", "top-left-hflip"].map(column),
            ["embedding", "embedding_hflip", "embedding_top_left_hflip"]
        );
    }
}
