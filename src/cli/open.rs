//! The flags of commands that run a classifier, and how it is opened.

use std::path::PathBuf;

use clap::Args;

use super::shell::Shell;
use crate::assets::Finder;
use crate::deploy::{Classifier, Hints, Opening};
use crate::events::Event;
use crate::extract::PixelScale;
use crate::image::Resize;
use crate::runtime::{Runtime, locate};

/// Which classifier, and what is known of it.
#[derive(Clone, Debug, Args)]
pub struct ClassifierArgs {
    /// A classifier.onnx that tlpipe export wrote, or any ONNX image classifier, or a model's name.
    pub(super) model: String,
    /// Images a batch of the network; 0 is as many as suit the image size.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=4096))]
    batch: u16,
}

/// What a user knows of a model that says nothing of itself.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "For a model that tlpipe did not export")]
pub struct ForeignArgs {
    /// Text file with the name of a class in each line.
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Side of the input image, pixels.
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=4096))]
    input_size: Option<u32>,
    /// How an image becomes square: squash, crop or pad.
    #[arg(long, value_name = "HOW")]
    resize: Option<Resize>,
    /// Pixel values it expects: tensorflow, imagenet, unit or raw.
    #[arg(long, value_name = "SCALE", value_parser = pixel_scale)]
    pixels: Option<PixelScale>,
}

fn pixel_scale(text: &str) -> Result<PixelScale, String> {
    match text {
        "tensorflow" => Ok(PixelScale::TensorFlow),
        "imagenet" => Ok(PixelScale::ImageNet),
        "unit" => Ok(PixelScale::Unit),
        "raw" => Ok(PixelScale::Raw),
        _ => Err("use tensorflow, imagenet, unit or raw".to_owned()),
    }
}

impl ForeignArgs {
    /// What the user knows.
    pub fn hints(&self) -> Hints {
        let Self { labels, input_size, resize, pixels } = self.clone();
        Hints { labels, side: input_size, resize, pixels }
    }
}

impl ClassifierArgs {
    /// Finds it and starts it; gives the number of threads that will ask, too.
    pub fn open(&self, foreign: &ForeignArgs, shell: &Shell<'_>) -> anyhow::Result<(Classifier, usize)> {
        let context = &shell.context;
        let (compute, threads) = shell.machine()?;
        let located = Finder::new(context.search.clone())?.model(&self.model, context.observe)?;
        let runtime = Runtime::start(&locate(&context.runtime_options(compute), context.observe)?)?;
        let opening = Opening { compute, threads, batch: usize::from(self.batch), hints: foreign.hints() };
        let classifier = Classifier::open(&located, &runtime, &opening)?;
        for assumption in classifier.assumptions() {
            (context.observe)(Event::Warned(assumption.clone()));
        }
        Ok((classifier, threads))
    }
}
