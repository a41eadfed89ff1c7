//! What the server counts, as Prometheus reads it (text format 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the buckets of times, seconds.
const SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// Upper bounds of the buckets of batches, images.
const IMAGES: [f64; 7] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

/// Counts since the start.
#[derive(Default)]
pub(super) struct Metrics {
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    seconds: Mutex<BTreeMap<&'static str, Histogram<12>>>,
    batches: Mutex<Histogram<7>>,
    refused_images: AtomicU64,
    queue_full: AtomicU64,
    pub(super) connections: AtomicUsize,
}

#[derive(Clone, Copy)]
struct Histogram<const N: usize> {
    /// Of each bucket alone.
    counts: [u64; N],
    above: u64,
    sum: f64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self { counts: [0; N], above: 0, sum: 0.0 }
    }
}

impl<const N: usize> Histogram<N> {
    fn add(&mut self, bounds: &[f64; N], value: f64) {
        match bounds.iter().position(|bound| value <= *bound) {
            Some(bucket) => self.counts[bucket] += 1,
            None => self.above += 1,
        }
        self.sum += value;
    }

    fn write(&self, text: &mut String, name: &str, labels: &str, bounds: &[f64; N]) {
        let mut sum = 0;
        let comma = if labels.is_empty() { "" } else { "," };
        for (bound, count) in bounds.iter().zip(self.counts) {
            sum += count;
            line(text, format_args!("{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {sum}"));
        }
        sum += self.above;
        let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        line(text, format_args!("{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {sum}"));
        line(text, format_args!("{name}_sum{braced} {}", self.sum));
        line(text, format_args!("{name}_count{braced} {sum}"));
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{line}");
}

impl Metrics {
    /// A request was answered.
    pub(super) fn request(&self, route: &'static str, status: u16, took: Duration) {
        *self.requests.lock().unwrap_or_else(PoisonError::into_inner).entry((route, status)).or_default() += 1;
        let mut seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        seconds.entry(route).or_default().add(&SECONDS, took.as_secs_f64());
    }

    /// A batch is run on so many images; others could not be used.
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn batch(&self, images: usize, refused: usize) {
        if images > 0 {
            self.batches.lock().unwrap_or_else(PoisonError::into_inner).add(&IMAGES, images as f64);
        }
        self.refused_images.fetch_add(refused as u64, Ordering::Relaxed);
    }

    /// A request found the queue full.
    pub(super) fn full(&self) {
        self.queue_full.fetch_add(1, Ordering::Relaxed);
    }

    /// Everything as text; `waiting` is the number of images in the queue.
    pub(super) fn text(&self, model: &str, waiting: usize) -> String {
        let mut text = String::new();
        let head = |text: &mut String, name: &str, kind: &str, help: &str| {
            line(text, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
        };
        head(&mut text, "tlpipe_info", "gauge", "Version and model.");
        let model = model.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        line(&mut text, format_args!("tlpipe_info{{version=\"{}\",model=\"{model}\"}} 1", env!("CARGO_PKG_VERSION")));
        head(&mut text, "tlpipe_http_requests_total", "counter", "Requests by route and status.");
        for ((route, status), count) in self.requests.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            line(&mut text, format_args!("tlpipe_http_requests_total{{route=\"{route}\",code=\"{status}\"}} {count}"));
        }
        head(&mut text, "tlpipe_http_request_seconds", "histogram", "From the head of a request to its answer.");
        for (route, histogram) in self.seconds.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            histogram.write(&mut text, "tlpipe_http_request_seconds", &format!("route=\"{route}\""), &SECONDS);
        }
        head(
            &mut text,
            "tlpipe_batch_images",
            "histogram",
            "Images in a run of the network; the sum is all that were classified.",
        );
        self.batches.lock().unwrap_or_else(PoisonError::into_inner).write(&mut text, "tlpipe_batch_images", "", &IMAGES);
        for (name, kind, help, value) in [
            (
                "tlpipe_images_refused_total",
                "counter",
                "Images that could not be used.",
                self.refused_images.load(Ordering::Relaxed),
            ),
            (
                "tlpipe_queue_full_total",
                "counter",
                "Requests that found the queue full.",
                self.queue_full.load(Ordering::Relaxed),
            ),
            ("tlpipe_queue_images", "gauge", "Images that wait.", waiting as u64),
            ("tlpipe_connections", "gauge", "Open connections.", self.connections.load(Ordering::Relaxed) as u64),
        ] {
            head(&mut text, name, kind, help);
            line(&mut text, format_args!("{name} {value}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_cumulative() {
        let metrics = Metrics::default();
        metrics.request("/predict", 200, Duration::from_millis(3));
        metrics.request("/predict", 200, Duration::from_secs(60));
        metrics.request("/predict", 503, Duration::from_millis(1));
        metrics.batch(3, 1);
        let text = metrics.text("a\"b", 7);
        for line in [
            "tlpipe_http_requests_total{route=\"/predict\",code=\"200\"} 2",
            "tlpipe_http_request_seconds_bucket{route=\"/predict\",le=\"0.001\"} 1",
            "tlpipe_http_request_seconds_bucket{route=\"/predict\",le=\"0.005\"} 2",
            "tlpipe_http_request_seconds_bucket{route=\"/predict\",le=\"+Inf\"} 3",
            "tlpipe_http_request_seconds_count{route=\"/predict\"} 3",
            "tlpipe_batch_images_bucket{le=\"2\"} 0",
            "tlpipe_batch_images_bucket{le=\"4\"} 1",
            "tlpipe_batch_images_sum 3",
            "tlpipe_images_refused_total 1",
            "tlpipe_queue_images 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.contains("model=\"a\\\"b\""));
    }
}
