//! How long it takes to check the header of a file with a large vocabulary: `header [TOKENS]` (150,000).

use std::path::Path;
use std::time::{Duration, Instant};

use ggml::Type;
use pp_run::gguf::Gguf;

#[allow(dead_code, reason = "tests use the rest")]
#[path = "../common/forge.rs"]
mod forge;

const ROUNDS: usize = 21;

fn main() {
    let n_vocab = std::env::args().nth(1).map_or(150_000, |n| n.parse().expect("a number of tokens"));
    let bytes = forge::Forge { n_vocab, n_embd: 32, n_ff: 32, ..forge::Forge::tiny(Type::Q4_0, 1, 1) }.doc().bytes();
    let mut times: Vec<(Duration, Duration)> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            let gguf = Gguf::of_bytes(Path::new("model.gguf"), &bytes).expect("a good file");
            let parsed = start.elapsed();
            gguf.require_vocab().expect("a good vocabulary");
            (parsed, start.elapsed())
        })
        .collect();
    times.sort_unstable_by_key(|t| t.1);
    let (parsed, all) = times[ROUNDS / 2];
    let ms = |t: Duration| t.as_secs_f64() * 1e3;
    println!(
        "{n_vocab} tokens: header {:.1} ms, with the vocabulary's checks {:.1} ms (median of {ROUNDS})",
        ms(parsed),
        ms(all)
    );
}
