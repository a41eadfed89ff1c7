//! What the backbone is worth: one softmax head on its features, the same head on the pixels themselves.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use rayon::prelude::*;
use tlpipe::dataset::synth::{self, Split, SynthParams};

use super::network::Network;
use super::training::{self, Recipe};

const SEEDS: u64 = 3;
/// Of the 3,000 train images; the rest is the hold-out that the quickstart pipeline sets aside.
const TRAINED: usize = 2400;
const EPOCHS: usize = 30;
const BATCH: usize = 32;

/// Prints the test accuracy of each kind of features for data sets of several seeds, and the mean.
pub fn measure(network: &Network, parameters: &[f32]) {
    let halve = |image: Vec<f32>| shrink(&image, network.side);
    score("backbone, pooled features", &|image| network.forward(parameters, image).features);
    let untrained = training::initial(network, 0);
    score("the same network before training", &|image| network.forward(&untrained, image).features);
    score("raw pixels, 64 px", &|image| image);
    score("raw pixels, 32 px", &halve);
    println!("chance: {:.3}", 1.0 / synth::CLASSES.len() as f64);
}

fn score(name: &str, features: &(impl Fn(Vec<f32>) -> Vec<f32> + Sync)) {
    let accuracies: Vec<f64> = (0..SEEDS).map(|seed| accuracy(seed, features)).collect();
    let mean = accuracies.iter().sum::<f64>() / accuracies.len() as f64;
    let each: Vec<String> = accuracies.iter().map(|accuracy| format!("{accuracy:.3}")).collect();
    println!("{name}: test accuracy {mean:.3} ({})", each.join(", "));
}

/// Fits a softmax head on standardized features of the data set of `seed`, and scores its test split.
fn accuracy(seed: u64, features: &(impl Fn(Vec<f32>) -> Vec<f32> + Sync)) -> f64 {
    let params = SynthParams { seed, ..SynthParams::default() };
    let rows = |split, count: u64| -> Vec<(usize, Vec<f32>)> {
        let draw = |index| {
            let (label, picture) = synth::image(&params, split, index);
            (label, features(super::planes(&picture)))
        };
        (0..count).into_par_iter().map(draw).collect()
    };
    let (mut train, mut test) = (rows(Split::Train, TRAINED as u64), rows(Split::Test, params.test));
    standardize(&mut train, &mut test);
    let head = Network::classifier(train[0].1.len(), synth::CLASSES.len());
    let orders: Vec<Vec<usize>> = (0..EPOCHS as u64).map(|epoch| shuffled(TRAINED, seed * 1000 + epoch)).collect();
    let recipe = Recipe { seed, steps: EPOCHS * TRAINED / BATCH, batch: BATCH, learning_rate: 1e-3 };
    let row = |index: u64| train[orders[index as usize / TRAINED][index as usize % TRAINED]].clone();
    let fitted = training::train(&head, &recipe, row, |_, _, _| {});
    let right = test.iter().filter(|(label, row)| {
        let logits = head.forward(&fitted, row.clone()).logits;
        logits.iter().all(|logit| *logit <= logits[*label])
    });
    right.count() as f64 / test.len() as f64
}

/// Brings every feature to mean 0 and deviation 1 over the train rows.
fn standardize(train: &mut [(usize, Vec<f32>)], test: &mut [(usize, Vec<f32>)]) {
    let count = train.len() as f64;
    for feature in 0..train[0].1.len() {
        let values = || train.iter().map(|(_, row)| f64::from(row[feature]));
        let mean = values().sum::<f64>() / count;
        let deviation = (values().map(|value| (value - mean) * (value - mean)).sum::<f64>() / count).sqrt().max(1e-6);
        for (_, row) in train.iter_mut().chain(test.iter_mut()) {
            row[feature] = ((f64::from(row[feature]) - mean) / deviation) as f32;
        }
    }
}

/// Numbers below `count` in random order (Fisher and Yates).
fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last, (random.next_u64() % (last as u64 + 1)) as usize);
    }
    order
}

/// Averages 2x2 pixels of each channel.
fn shrink(image: &[f32], side: usize) -> Vec<f32> {
    let quarter = |channel: usize, row: usize, column: usize| {
        let at = channel * side * side + 2 * row * side + 2 * column;
        (image[at] + image[at + 1] + image[at + side] + image[at + side + 1]) / 4.0
    };
    let half = side / 2;
    (0..3 * half * half).map(|place| quarter(place / (half * half), place / half % half, place % half)).collect()
}
