//! What every command works with, and how its pipeline comes about.

use super::options::{PipelineArgs, RuntimeArgs};
use super::progress::Progress;
use super::say::Output;
use crate::pipeline::{Context, Override, Pipeline, Settings};
use crate::runtime::Compute;

/// What every command works with.
pub struct Shell<'a> {
    /// For the stages.
    pub context: Context<'a>,
    /// Lines and bars on stderr.
    pub progress: &'a Progress,
    /// Results on stdout.
    pub output: Output,
    /// Flags on what it runs on.
    pub runtime: &'a RuntimeArgs,
}

impl Shell<'_> {
    /// The pipeline with every flag laid over it. Its threads become those of the process.
    pub fn pipeline(&self, args: &PipelineArgs, flags: impl IntoIterator<Item = Override>) -> anyhow::Result<Pipeline> {
        let pipeline = args.resolve(flags.into_iter().chain(self.runtime.overrides()))?;
        let (threads, cores) = (pipeline.settings.runtime.threads, std::thread::available_parallelism().map_or(1, usize::from));
        if threads > cores {
            self.progress
                .warn(&format!("{threads} threads on {cores} cores: more threads than cores make it slower, not faster"));
        }
        if threads > 0 {
            // Fails only where threads run already, and a command has one pipeline.
            let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        }
        Ok(pipeline)
    }

    /// What the flags say to run on.
    pub fn compute(&self) -> anyhow::Result<Compute> {
        let flags: Vec<Override> = self.runtime.overrides().collect();
        Ok(Settings::load(None, &flags)?.runtime.compute()?)
    }
}
