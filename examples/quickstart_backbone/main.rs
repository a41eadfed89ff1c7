//! Makes `models/quickstart.onnx`, the backbone that tlpipe carries with it, and measures what it is worth.
//!
//! ```text
//! cargo run --release --example quickstart_backbone              train it and write it (minutes); the same bytes every time
//! cargo run --release --example quickstart_backbone -- measure   score a softmax head on its features, and on raw pixels
//! ```
//!
//! The backbone is a MobileNetV2 in small. It is trained on figures that tlpipe draws, sixteen kinds, none of which is
//! among the ten of the quickstart data set: so the quickstart is transfer learning, and no more than that.
#![allow(clippy::print_stdout)]

mod export;
mod matrix;
mod measure;
mod network;
mod training;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use image::RgbImage;
use tlpipe::dataset::synth;

use network::{Block, Network};
use training::Recipe;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/quickstart.onnx");
const SIDE: u32 = 64;
const RECIPE: Recipe = Recipe { seed: 1, steps: 2500, batch: 32, learning_rate: 3e-3 };

fn main() -> Result<()> {
    let network = quickstart();
    match std::env::args().nth(1).as_deref() {
        None => make(&network),
        Some("measure") => {
            let model = std::fs::read(MODEL).with_context(|| format!("{MODEL}: run this example without arguments first"))?;
            measure::measure(&network, &export::parameters_of(&network, &model)?);
            Ok(())
        }
        Some(other) => bail!("`{other}` is not known; give `measure`, or nothing to train the backbone"),
    }
}

fn quickstart() -> Network {
    let block = |expansion, outputs, stride| Block { expansion, outputs, stride };
    let blocks = [block(1, 16, 1), block(4, 24, 2), block(4, 24, 1), block(4, 40, 2), block(4, 40, 1), block(4, 64, 1)];
    Network::new(SIDE as usize, 16, &blocks, 256, synth::PRETRAINING_CLASSES.len())
}

fn make(network: &Network) -> Result<()> {
    println!("{} parameters, {} steps of {} pictures", network.parameters, RECIPE.steps, RECIPE.batch);
    let start = Instant::now();
    let picture = |index| {
        let (class, picture) = synth::pretraining_image(RECIPE.seed, index, SIDE);
        (class, planes(&picture))
    };
    let parameters = training::train(network, &RECIPE, picture, |step, loss, accuracy| {
        println!("step {step}: loss {loss:.3}, accuracy {accuracy:.3}, {:.0} s", start.elapsed().as_secs_f64());
    });
    let model = export::to_onnx(network, &parameters, &synth::PRETRAINING_CLASSES);
    if let Some(folder) = Path::new(MODEL).parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(MODEL, &model).with_context(|| MODEL.to_owned())?;
    println!("{MODEL}: {} bytes, BLAKE3 {}", model.len(), blake3::hash(&model));
    Ok(())
}

/// Pixels as the network takes them: `[3, side * side]`, -1 to 1.
fn planes(picture: &RgbImage) -> Vec<f32> {
    let channel = |channel: usize| picture.pixels().map(move |pixel| f32::from(pixel[channel]) / 127.5 - 1.0);
    (0..3).flat_map(channel).collect()
}
