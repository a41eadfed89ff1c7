//! What every command works with, and how its pipeline comes about.

use std::path::Path;

use super::options::{PipelineArgs, RuntimeArgs};
use super::progress::Progress;
use super::say::Output;
use crate::pipeline::{Context, Override, Pipeline, Settings, quoted};
use crate::runtime::Compute;

/// What every command works with.
pub struct Shell<'a> {
    /// For the stages.
    pub context: Context<'a>,
    /// Lines and bars on stderr.
    pub progress: &'a Progress,
    /// Results on stdout.
    pub output: Output,
    /// The folder of `-C`.
    pub directory: Option<&'a Path>,
    /// Flags on what it runs on.
    pub runtime: &'a RuntimeArgs,
}

impl Shell<'_> {
    /// A command that can be typed next, on the pipeline that a run recorded.
    pub fn hint(&self, command: &str, run: &Path, more: &str) -> String {
        let directory = self.directory.map(|directory| format!(" -C {}", quoted(directory))).unwrap_or_default();
        format!("tlpipe{directory} {command} {} {more}", quoted(run))
    }

    /// The pipeline with every flag laid over it. Its threads become those of the process.
    pub fn pipeline(&self, args: &PipelineArgs, flags: impl IntoIterator<Item = Override>) -> anyhow::Result<Pipeline> {
        self.pipeline_on(args, flags, self.runtime)
    }

    /// The same with other flags on what it runs on.
    pub fn pipeline_on(
        &self,
        args: &PipelineArgs,
        flags: impl IntoIterator<Item = Override>,
        runtime: &RuntimeArgs,
    ) -> anyhow::Result<Pipeline> {
        let pipeline = args.resolve(flags.into_iter().chain(runtime.overrides()), |text| self.progress.note(&text))?;
        let (threads, cores) = (pipeline.settings.runtime.threads, crate::runtime::cores());
        if threads > cores {
            self.progress
                .warn(&format!("{threads} threads on {cores} cores: more threads than cores make it slower, not faster"));
        }
        if threads > 0 {
            take_threads(threads);
        }
        Ok(pipeline)
    }

    /// What the flags say to run on, and with how many threads; one a core unless they say.
    pub fn machine(&self) -> anyhow::Result<(Compute, usize)> {
        let flags: Vec<Override> = self.runtime.overrides().collect();
        let settings = Settings::load(None, &flags)?.runtime;
        let threads = if settings.threads == 0 { crate::runtime::cores() } else { settings.threads };
        Ok((settings.compute()?, threads))
    }

    /// What the flags say to run on.
    pub fn compute(&self) -> anyhow::Result<Compute> {
        Ok(self.machine()?.0)
    }
}

/// Gives the process so many threads.
pub fn take_threads(threads: usize) {
    // Fails only where threads run already, and a command asks once.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
}
