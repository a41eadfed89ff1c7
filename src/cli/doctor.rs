//! `tlpipe doctor`.

use clap::Args;
use serde_json::json;

use super::say;
use super::shell::Shell;
use crate::assets::Finder;
use crate::events;
use crate::pipeline;
use crate::runtime::{self, Build, Compute, Device, Precision, Provider, RuntimeOptions};

/// Arguments of `tlpipe doctor`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  tlpipe doctor --provider openvino     what a run with OpenVINO would use\n  \
    tlpipe doctor --install openvino      get the pinned build and try it")]
pub struct DoctorArgs {
    /// Install the pinned build of ONNX Runtime into the cache and try it: cuda (2 GB), openvino or cpu.
    #[arg(long, value_name = "BUILD")]
    install: Option<Build>,
}

/// Installs a build where that is asked for; else looks at everything that a run would use, and installs nothing.
pub fn main(args: &DoctorArgs, shell: &Shell<'_>) -> anyhow::Result<()> {
    args.install.map_or_else(|| look(shell), |build| install(build, shell))
}

/// Installs a build and runs a small network on it.
fn install(build: Build, shell: &Shell<'_>) -> anyhow::Result<()> {
    let context = &shell.context;
    let (device, provider) = match build {
        Build::Cpu => (Device::Cpu, Provider::Default),
        Build::OpenVino => (Device::Cpu, Provider::OpenVino),
        Build::Cuda => (Device::Cuda(0), Provider::Default),
    };
    let compute = Compute::new(device, provider, Precision::Fp32)?;
    let library = runtime::install(build, &context.runtime_options(compute), context.observe)?;
    let missing = compute.missing_hardware();
    let proof = match &missing {
        None => Some(pipeline::prove(&library, compute, context)?),
        Some(_) => None,
    };
    let bf16 = (build == Build::OpenVino).then(runtime::processor_has_bf16);
    let result = json!({
        "build": build.to_string(),
        "path": library.path,
        "version": library.version,
        "works": proof.is_some(),
        "missing": missing,
        "nodes": proof.as_ref().map(|proof| &proof.nodes),
        "bf16": bf16,
    });
    shell.output.result(&result, || {
        let mut lines = vec![format!("ONNX Runtime {} for {build} · {}", library.version, library.path.display())];
        lines.extend(proof.iter().map(|proof| {
            format!("it works: a small network ran on {}, nodes: {}", proof.provider, runtime::listed(&proof.nodes))
        }));
        lines.extend(missing.iter().map(|reason| format!("it is installed and cannot be used on this machine: {reason}")));
        lines.extend(bf16.map(|has| {
            let has = if has { "computes in bf16: --precision bf16 works" } else { "has no bf16 instructions: fp32 only" };
            format!("this processor {has}")
        }));
        lines.join("\n")
    })
}

fn look(shell: &Shell<'_>) -> anyhow::Result<()> {
    let context = &shell.context;
    let options = RuntimeOptions { offline: true, ..context.runtime_options(shell.compute()?) };
    let cuda = Compute::new(Device::Cuda(0), Provider::Default, Precision::Fp32)?.missing_hardware();
    let builds: Vec<_> = Build::ALL.map(|build| (build, runtime::installed(build, &options.cache))).into();
    let candidates = runtime::candidates(&options);
    let chosen = runtime::locate(&options, &events::ignore);
    let finder = Finder::new(context.search.clone())?;
    let models: Vec<_> =
        finder.models().iter().map(|card| (card.name.clone(), finder.model_at_hand(card).map(|found| found.how))).collect();
    let sets: Vec<_> =
        finder.datasets().iter().map(|card| (card.name.clone(), finder.dataset_at_hand(card).map(|found| found.how))).collect();
    let threads = runtime::cores();
    let result = json!({
        "tlpipe": env!("CARGO_PKG_VERSION"),
        "threads": threads,
        "onnxruntime": chosen.as_ref().ok().map(|library| json!({ "path": library.path, "version": library.version, "how": library.how })),
        "candidates": candidates
            .iter()
            .map(|one| json!({ "place": one.place, "path": one.path, "version": one.version, "providers": one.providers, "fits": one.fits, "verdict": one.verdict }))
            .collect::<Vec<_>>(),
        "builds": builds.iter().map(|(build, path)| json!({ "build": build.to_string(), "installed": path })).collect::<Vec<_>>(),
        "bf16": runtime::processor_has_bf16(),
        "cuda": cuda,
        "cache": context.search.cache,
        "assets": context.search.roots,
        "models": models.iter().map(|(name, found)| json!({ "name": name, "at_hand": found })).collect::<Vec<_>>(),
        "data": sets.iter().map(|(name, found)| json!({ "name": name, "at_hand": found })).collect::<Vec<_>>(),
    });
    shell.output.result(&result, || {
        let mut lines = vec![format!("tlpipe {} · {threads} threads", env!("CARGO_PKG_VERSION")), String::new()];
        lines.push(match &chosen {
            Ok(library) => format!("ONNX Runtime {} · {} ({})", library.version, library.path.display(), library.how),
            Err(error) if options.compute != Compute::CPU => error.to_string(),
            Err(_) if context.search.offline => "ONNX Runtime: none found, and --offline forbids installing one".into(),
            Err(_) => "ONNX Runtime: none found; the first run installs it into the cache".into(),
        });
        lines.push(say::table(
            &["looked", "found", "providers", "verdict"],
            candidates.iter().map(|one| {
                let found = one.path.as_ref().map_or_else(|| "nothing".to_owned(), |path| path.display().to_string());
                vec![one.place.clone(), found, one.providers.join(", "), one.verdict.clone()]
            }),
        ));
        lines.push(String::new());
        lines.extend(builds.iter().map(|(build, path)| {
            let there = path.as_ref().map_or_else(
                || format!("not installed (tlpipe doctor --install {build}, {})", build.download()),
                |path| path.display().to_string(),
            );
            format!("build        {build}: {there}")
        }));
        let has = if runtime::processor_has_bf16() { "has" } else { "has no" };
        lines.push(format!("card         {}", cuda.clone().unwrap_or_else(|| "the NVIDIA driver finds one".to_owned())));
        lines.push(format!("processor    {has} bf16 instructions"));
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
