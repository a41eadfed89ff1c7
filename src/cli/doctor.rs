//! `tlpipe doctor`.

use serde_json::json;

use super::say;
use super::shell::Shell;
use crate::assets::Finder;
use crate::events;
use crate::runtime::{self, RuntimeOptions};

/// Looks at everything that a run would use, and installs nothing.
pub fn main(shell: &Shell<'_>) -> anyhow::Result<()> {
    let context = &shell.context;
    let options = RuntimeOptions { offline: true, ..context.runtime_options() };
    let candidates = runtime::candidates(&options);
    let chosen = runtime::locate(&options, &events::ignore);
    let finder = Finder::new(context.search.clone())?;
    let models: Vec<_> =
        finder.models().iter().map(|card| (card.name.clone(), finder.model_at_hand(card).map(|found| found.how))).collect();
    let sets: Vec<_> =
        finder.datasets().iter().map(|card| (card.name.clone(), finder.dataset_at_hand(card).map(|found| found.how))).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let result = json!({
        "tlpipe": env!("CARGO_PKG_VERSION"),
        "threads": threads,
        "onnxruntime": chosen.as_ref().ok().map(|library| json!({ "path": library.path, "version": library.version, "how": library.how })),
        "candidates": candidates
            .iter()
            .map(|one| json!({ "place": one.place, "path": one.path, "version": one.version, "fits": one.fits, "verdict": one.verdict }))
            .collect::<Vec<_>>(),
        "cache": context.search.cache,
        "assets": context.search.roots,
        "models": models.iter().map(|(name, found)| json!({ "name": name, "at_hand": found })).collect::<Vec<_>>(),
        "data": sets.iter().map(|(name, found)| json!({ "name": name, "at_hand": found })).collect::<Vec<_>>(),
    });
    shell.output.result(&result, || {
        let mut lines = vec![format!("tlpipe {} · {threads} threads", env!("CARGO_PKG_VERSION")), String::new()];
        lines.push(match &chosen {
            Ok(library) => format!("ONNX Runtime {} · {} ({})", library.version, library.path.display(), library.how),
            Err(_) if context.search.offline => "ONNX Runtime: none found, and --offline forbids installing one".into(),
            Err(_) => "ONNX Runtime: none found; the first run installs it into the cache".into(),
        });
        lines.push(say::table(
            &["looked", "found", "verdict"],
            candidates.iter().map(|one| {
                let found = one.path.as_ref().map_or_else(|| "nothing".to_owned(), |path| path.display().to_string());
                vec![one.place.clone(), found, one.verdict.clone()]
            }),
        ));
        lines.push(String::new());
        lines.push(format!("cache        {}", context.search.cache.display()));
        let roots: Vec<String> = context.search.roots.iter().map(|root| root.display().to_string()).collect();
        lines.push(format!(
            "assets       {}",
            if roots.is_empty() { "TLPIPE_ASSETS is not set".into() } else { roots.join(", ") }
        ));
        let at_hand = |found: &Option<String>| found.clone().unwrap_or_else(|| "not at hand".into());
        lines.extend(models.iter().map(|(name, found)| format!("model        {name}: {}", at_hand(found))));
        lines.extend(sets.iter().map(|(name, found)| format!("data         {name}: {}", at_hand(found))));
        lines.join("\n")
    })
}
