//! Chrome's trace format: what ran when, for <https://ui.perfetto.dev> and `chrome://tracing`.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::output::write_file;
use crate::engine::TracedBatch;
use crate::error::Result;

/// Writes the load, which began at `start`, and the micro-batches with their nodes.
pub fn write(path: &Path, start: Instant, load: Duration, batches: &[TracedBatch]) -> Result<()> {
    let microseconds = |t: Duration| t.as_nanos() as f64 / 1e3;
    // A complete event ("ph": "X"). All events are on one track; viewers nest them by their times.
    let event = |name: &str, category: &str, begin: Instant, duration: Duration, args: Value| {
        json!({
            "name": name,
            "cat": category,
            "ph": "X",
            "ts": microseconds(begin - start),
            "dur": microseconds(duration),
            "pid": std::process::id(),
            "tid": 1,
            "args": args,
        })
    };
    let mut events = vec![event("load", "load", start, load, json!({}))];
    for batch in batches {
        let args = json!({ "first": batch.first, "n_tokens": batch.n_tokens, "n_parts": batch.n_parts });
        events.push(event("micro-batch", "batch", batch.start, batch.duration, args));
        let nodes = batch.nodes.iter();
        events.extend(nodes.map(|n| event(&n.name, &n.op, n.start, n.duration, json!({ "shape": n.ne }))));
    }
    let trace = json!({ "traceEvents": events, "displayTimeUnit": "ms" });
    write_file(path, format!("{trace}\n").as_bytes())
}
