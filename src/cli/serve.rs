//! `tlpipe serve`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::open::{ClassifierArgs, ForeignArgs};
use super::say;
use super::shell::Shell;
use crate::deploy::serve::{Bound, Limits, serve};

/// Arguments of `tlpipe serve`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  tlpipe serve classifier.onnx                     and open http://127.0.0.1:8080 in a browser\n  \
    curl --data-binary @cat.jpg http://127.0.0.1:8080/predict?top_k=3\n  \
    curl -F file=@cat.jpg -F file=@dog.jpg http://127.0.0.1:8080/predict\n  \
    curl http://127.0.0.1:8080/v2/models/classifier  the Open Inference Protocol (KServe v2)\n\n\
    Ctrl-C or SIGTERM ends it once what is under way is answered."
)]
pub struct ServeArgs {
    #[command(flatten)]
    classifier: ClassifierArgs,
    /// Address to listen at; 0.0.0.0 is every one of this machine, for everybody who reaches it.
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Port to listen at; 0 is any that is free.
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// Images that may wait; more are turned away with status 503.
    #[arg(long, value_name = "IMAGES", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    queue: u32,
    /// Longest body of a request, MiB; more is refused with status 413.
    #[arg(long, value_name = "MIB", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=512))]
    max_body: u32,
    /// Largest image, millions of pixels: a small file can be a large one.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=178))]
    max_megapixels: u32,
    /// How long a batch may wait for images that are arriving, milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=1000))]
    max_delay: u32,
    #[command(flatten)]
    foreign: ForeignArgs,
}

/// Serves a classifier.
pub fn main(args: &ServeArgs, shell: &Shell<'_>) -> anyhow::Result<()> {
    // A port in use is said before anything is loaded.
    let bound = Bound::new(SocketAddr::new(args.host, args.port))?;
    let (classifier, threads) = args.classifier.open(&args.foreign, shell)?;
    let (address, name, classes) = (bound.address(), classifier.name().to_owned(), classifier.classes().len());
    if !args.host.is_loopback() {
        shell
            .progress
            .warn(&format!("{address} is open to everybody who reaches this machine, without a password or encryption"));
    }
    let model =
        json!({ "url": format!("http://{address}"), "model": name, "classes": classes, "provider": classifier.provider() });
    let threads_said = if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") };
    if shell.output.json {
        say::line(&model.to_string())?;
    } else {
        shell.progress.note(&format!(
            "serving {name} · {classes} classes · {}, {threads_said} · http://{address} (Ctrl-C ends it)",
            classifier.provider()
        ));
    }
    let limits = Limits {
        queue: args.queue as usize,
        max_body: (args.max_body as usize) << 20,
        max_pixels: u64::from(args.max_megapixels) * 1_000_000,
        max_delay: Duration::from_millis(args.max_delay.into()),
    };
    let context = &shell.context;
    context.stoppable(|| serve(bound, classifier, threads, limits, context.stop))?;
    shell.progress.note("stopped: what was under way is answered");
    Ok(())
}
