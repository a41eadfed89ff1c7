//! Features that say nothing: the same in every image.

use ndarray::{ArrayView2, Axis, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Features that one task looks at.
const TILE: usize = 64;

/// What the features are worth at first sight; indices into a row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureUse {
    /// Values of a row.
    pub width: usize,
    /// Zero in every image.
    pub dead: Vec<usize>,
    /// Another value than zero, the same in every image.
    pub constant: Vec<usize>,
    /// Other than zero in fewer than one image of a thousand, and in one at least.
    pub rare: Vec<usize>,
}

/// Looks at every feature of `x` `[N, D]`, whose values are finite; of fewer than two images nothing is said.
pub fn feature_use(x: ArrayView2<'_, f32>) -> FeatureUse {
    let mut found = FeatureUse { width: x.ncols(), ..FeatureUse::default() };
    if x.nrows() < 2 {
        return found;
    }
    let tiles: Vec<usize> = (0..x.ncols()).step_by(TILE).collect();
    let looked = tiles.into_par_iter().map(|start| {
        let tile = x.slice(s![.., start..x.ncols().min(start + TILE)]);
        let mut features = vec![(f32::INFINITY, f32::NEG_INFINITY, 0_usize); tile.ncols()];
        for row in tile.axis_iter(Axis(0)) {
            for ((least, most, used), &value) in features.iter_mut().zip(row) {
                *least = least.min(value);
                *most = most.max(value);
                *used += usize::from(value != 0.0);
            }
        }
        features
    });
    for (feature, (least, most, used)) in looked.collect::<Vec<_>>().concat().into_iter().enumerate() {
        if used == 0 {
            found.dead.push(feature);
        } else if least == most {
            found.constant.push(feature);
        } else if used * 1000 < x.nrows() {
            found.rare.push(feature);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;

    #[test]
    fn dead_constant_and_rare_features_are_told_apart() {
        let x = Array2::from_shape_fn((2500, 130), |(row, feature)| match feature {
            7 | 100 => 0.0,
            8 => -2.5,
            129 => f32::from(u8::from(row == 3 || row == 900)),
            _ => (row % 7) as f32 - 1.0,
        });
        let found = feature_use(x.view());
        assert_eq!((found.dead, found.constant, found.rare), (vec![7, 100], vec![8], vec![129]));
        let one = feature_use(x.slice(s![..1, ..]));
        assert!(one.dead.is_empty() && one.width == 130);
    }
}
