//! Pipelines for tests.

use std::path::Path;

use super::{Override, Pipeline, Settings};

/// A pipeline on `DIR/features` whose run is `DIR/RUN`, with more settings as `--set` takes them.
pub(super) fn pipeline(dir: &Path, run: &str, set: &[&str]) -> Pipeline {
    let folders =
        [format!("output.features={}", dir.join("features").display()), format!("output.run={}", dir.join(run).display())];
    let set = folders.iter().map(String::as_str).chain(set.iter().copied());
    let overrides: Vec<_> = set.map(|text| Override::parse(text).unwrap()).collect();
    Pipeline::new(Settings::load(None, &overrides).unwrap(), None).unwrap()
}
