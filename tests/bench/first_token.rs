//! From nothing to the first token, with one of the two engines: time and peak memory as a JSON line.
//!
//! `first_token pp-run|llama.cpp MODEL N_CTX`. Each run is a process of its own; `tests/bench/load` alternates them.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use ggml::Type;
use ggml::llama::{Context, ContextParams, Model as LlamaModel};
use pp_run::engine::Options as ContextOptions;
use pp_run::engine::Session;
use pp_run::gguf::Gguf;
use pp_run::model::{Model, Options as ModelOptions};
use pp_run::tokenizer::Tokenizer;

const THREADS: usize = 2;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, engine, path, n_ctx] = &args[..] else { panic!("first_token pp-run|llama.cpp MODEL N_CTX") };
    let (path, n_ctx) = (PathBuf::from(path), n_ctx.parse().expect("a number"));
    let start = Instant::now();
    let logits = match engine.as_str() {
        "pp-run" => {
            let options = ContextOptions { n_ctx: Some(n_ctx), ..ContextOptions::new(THREADS) };
            let gguf = Arc::new(Gguf::open(&path).unwrap());
            let model_options = ModelOptions::new(&path);
            let (model, tokenizer) = std::thread::scope(|scope| {
                let tokenizer = scope.spawn(|| Tokenizer::load(&gguf).unwrap());
                let progress = &mut |_| ControlFlow::Continue(());
                let model = Model::load(gguf.clone(), &model_options, THREADS, progress).unwrap();
                (model, tokenizer.join().unwrap())
            });
            assert_eq!(tokenizer.n_vocab(), model.n_vocab());
            let mut session = Session::new(&model, &options, 1, 1, Arc::default()).unwrap();
            session.sync(&[1], &mut |_, _| {}).unwrap();
            session.logits().to_vec()
        }
        "llama.cpp" => {
            let model = LlamaModel::load(&path, 0).unwrap();
            let params = ContextParams {
                n_ctx,
                n_batch: 2048,
                n_ubatch: 512,
                n_seq_max: 1,
                n_threads: THREADS as u32,
                n_threads_batch: THREADS as u32,
                type_k: Type::F16,
                type_v: Type::F16,
                flash_attn: true,
            };
            let mut context = Context::new(&model, &params).unwrap();
            assert!(context.decode(&[(1, 0, 0, true)]));
            context.logits(0).unwrap().to_vec()
        }
        other => panic!("unknown engine '{other}'"),
    };
    let seconds = start.elapsed().as_secs_f64();
    assert!(logits.iter().all(|l| l.is_finite()));
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).and_then(|v| v.trim().split(' ').next());
    let peak: u64 = peak.and_then(|v| v.parse().ok()).unwrap_or(0);
    println!("{{\"engine\": \"{engine}\", \"first_token_s\": {seconds:.4}, \"peak_kib\": {peak}}}");
}
