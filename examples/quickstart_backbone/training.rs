//! Supervised pretraining: Adam on freshly drawn pictures, so that no picture is seen twice.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use rayon::prelude::*;

use super::network::Network;

/// How the network is trained.
pub struct Recipe {
    pub seed: u64,
    pub steps: usize,
    pub batch: usize,
    /// At the first step; it falls to zero in a straight line.
    pub learning_rate: f32,
}

/// Trains `network` on `picture(index) -> (class, [3, side * side] floats)` and returns its parameters. `told` hears of
/// the mean loss and accuracy of every hundred steps.
pub fn train(
    network: &Network,
    recipe: &Recipe,
    picture: impl Fn(u64) -> (usize, Vec<f32>) + Sync,
    mut told: impl FnMut(usize, f64, f64),
) -> Vec<f32> {
    let mut parameters = initial(network, recipe.seed);
    let (mut mean, mut square) = (vec![0.0f32; parameters.len()], vec![0.0f32; parameters.len()]);
    let (mut decay1, mut decay2) = (1.0f32, 1.0f32);
    let (mut loss, mut right) = (0.0, 0);
    for step in 0..recipe.steps {
        let images: Vec<(f64, bool, Vec<f32>)> = (0..recipe.batch)
            .into_par_iter()
            .map(|place| {
                let (class, image) = picture((step * recipe.batch + place) as u64);
                let trace = network.forward(&parameters, image);
                let (loss, right, slopes) = cross_entropy(&trace.logits, class);
                let mut gradient = vec![0.0; parameters.len()];
                network.backward(&parameters, &trace, &slopes, &mut gradient);
                (loss, right, gradient)
            })
            .collect();
        let mut gradient = vec![0.0f32; parameters.len()];
        for (image_loss, image_right, image_gradient) in &images {
            loss += image_loss;
            right += usize::from(*image_right);
            gradient.iter_mut().zip(image_gradient).for_each(|(sum, value)| *sum += value);
        }
        decay1 *= 0.9;
        decay2 *= 0.999;
        let left = 1.0 - step as f32 / recipe.steps as f32;
        let rate = recipe.learning_rate * left * (1.0 - decay2).sqrt() / (1.0 - decay1);
        for (index, value) in parameters.iter_mut().enumerate() {
            let slope = gradient[index] / recipe.batch as f32;
            mean[index] = 0.9 * mean[index] + 0.1 * slope;
            square[index] = 0.999 * square[index] + 0.001 * slope * slope;
            *value -= rate * mean[index] / (square[index].sqrt() + 1e-7);
        }
        if (step + 1) % 100 == 0 {
            let seen = (100 * recipe.batch) as f64;
            told(step + 1, loss / seen, right as f64 / seen);
            (loss, right) = (0.0, 0);
        }
    }
    parameters
}

/// Parameters before training: weights of deviation `sqrt(gain / fan_in)`, biases zero: 2 before a ReLU6, 1 where the output is linear.
pub fn initial(network: &Network, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut parameters = vec![0.0; network.parameters];
    let layers = network.layers.iter().map(|layer| (layer.weights.clone(), layer.fan_in(), if layer.relu6 { 2.0 } else { 1.0 }));
    for (weights, fan_in, gain) in layers.chain([(network.weights.clone(), network.features, 1.0f32)]) {
        let reach = (3.0 * gain / fan_in as f32).sqrt();
        for value in &mut parameters[weights] {
            *value = ((random.next_u32() >> 8) as f32 / 8_388_608.0 - 1.0) * reach;
        }
    }
    parameters
}

/// Loss, whether the class is the most probable one, and the gradient at the logits.
fn cross_entropy(logits: &[f32], class: usize) -> (f64, bool, Vec<f32>) {
    let highest = logits.iter().copied().fold(f32::MIN, f32::max);
    let shares: Vec<f64> = logits.iter().map(|&logit| exponential(f64::from(logit - highest))).collect();
    let sum: f64 = shares.iter().sum();
    let mut slopes: Vec<f32> = shares.iter().map(|share| (share / sum) as f32).collect();
    slopes[class] -= 1.0;
    (-(shares[class] / sum).ln(), logits[class] == highest, slopes)
}

/// `e^x` for `x <= 0` by (1 + x / 2^20)^(2^20): the standard library's differs in the last bit from platform to platform.
fn exponential(x: f64) -> f64 {
    let start = 1.0 + x.max(-700.0) / 1_048_576.0;
    (0..20).fold(start, |value, _| value * value)
}
