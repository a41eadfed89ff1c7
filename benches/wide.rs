//! `cargo bench --bench wide`: a least-squares head on wide features, from rows in memory to the head refitted on all of them, beside
//! the Gram matrix alone by `ndarray`.
//!
//! `-- ROWS FEATURES` for another size than 50,000 x 15,552 (which takes 7 GiB of memory).

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement: it prints, and a failure ends it")]

use std::hint::black_box;
use std::ops::ControlFlow;
use std::time::Instant;

use ndarray::{Array2, s};
use rayon::prelude::*;
use tlpipe::head::{Examples, HeadParams, ParamGuard as _, Solver, fit};

const CLASSES: usize = 10;
/// Rows of the reference.
const PLAIN_ROWS: usize = 1024;

fn main() {
    let sizes: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let (rows, features) = if let [rows, features] = sizes[..] { (rows, features) } else { (50_000, 15_552) };
    let x = draw(rows, features);
    let labels: Vec<Option<i32>> = (0..rows).map(|row| i32::try_from(row % CLASSES).ok()).collect();
    let classes: Vec<String> = (0..CLASSES).map(|class| class.to_string()).collect();
    let (train, holdout): (Vec<usize>, Vec<usize>) = (0..rows).partition(|&row| row < rows / 5 * 4);

    let part = x.slice(s![..PLAIN_ROWS.min(rows), ..]);
    let start = Instant::now();
    black_box(part.t().dot(&part));
    let plain = start.elapsed().as_secs_f64() * rows as f64 / part.nrows() as f64;

    let examples =
        Examples { x: x.view(), labels: &labels, train: &train, holdout: &holdout, refit: &holdout, classes: &classes };
    let params = HeadParams { solver: Solver::Ridge, refit: Some(true), ..HeadParams::default() }.check().unwrap();
    let start = Instant::now();
    let fitted = fit(&params, &examples, &mut |_| ControlFlow::Continue(())).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let ridge = fitted.ridge.unwrap();
    println!("{rows} x {features}, {} strengths of L2 and the refit: {seconds:.1} s", ridge.path.len());
    println!("the Gram matrix alone by ndarray: {plain:.1} s; ratio {:.2}", seconds / plain);
    println!("hold-out accuracy {:?}", fitted.history[0].val_accuracy);
}

/// Features of a few hundred directions and noise, in which the classes differ a little; none is negative.
fn draw(rows: usize, features: usize) -> Array2<f32> {
    let mut x = Array2::zeros((rows, features));
    x.as_slice_mut().unwrap().par_chunks_exact_mut(features).enumerate().for_each(|(row, out)| {
        let mut state = row as u64 + 1;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5
        };
        let directions: Vec<f32> = (0..256).map(|_| next()).collect();
        for (feature, out) in out.iter_mut().enumerate() {
            let class = if feature % 97 == row % CLASSES { 0.3 } else { 0.0 };
            let shared = directions[feature % 256] + directions[feature * 7 % 251] + directions[feature * 31 % 241];
            *out = (shared + next() + class).max(0.0);
        }
    });
    x
}
