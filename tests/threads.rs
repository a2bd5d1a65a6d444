//! Results do not depend on how many threads compute, which follows what else the machine does.

mod common;

use std::path::Path;

use common::forge::{Arch, Forge};
use common::{load_for, session, smollm2, turn};
use ggml::Type;
use pp_run::engine::Options;
use pp_run::graph::CacheType;
use pp_run::model::{Model, RopeOptions};
use pp_run::prune::{self, Options as PruneOptions};
use pp_run::weights::Kernels;

/// Logits after a prompt of several micro-batches, and after each token of an answer.
fn logits(model: &Model, options: &Options, pruning: Option<&PruneOptions>, n: usize) -> Vec<Vec<f32>> {
    let mut session = session(model, options);
    if let Some(options) = pruning {
        let sources = prune::Sources::default();
        let setup = prune::prepare(options, model.dims(), model.layers(), sources, 1).unwrap();
        session.set_pruning(Some(setup)).unwrap();
    }
    let prompt: Vec<i32> = (0..n).map(|i| (i as i32 * 101 + 7) % 256).collect();
    session.sync(&prompt, &mut |_, _| {}).unwrap();
    let mut all = vec![session.logits().to_vec()];
    for &token in &prompt[..4] {
        session.decode(token).unwrap();
        all.push(session.logits().to_vec());
    }
    session.pause();
    all
}

/// One thread and two compute the same, dense and pruned.
fn compare(path: &Path, kernels: Kernels, options: &Options, n: usize) {
    let model = load_for(path, kernels, RopeOptions::default());
    // Experts run whole, so that there is less to leave out.
    let ratio = if model.dims().layers.iter().any(|l| l.n_expert_weights > 0) { 0.05 } else { 0.4 };
    let pruned = PruneOptions { skip: 1, min_tokens: Some(2), answer: ratio, ..PruneOptions::new(ratio) };
    for pruning in [None, Some(&pruned)] {
        let run = |n_threads| {
            let threads = Options { n_threads, n_threads_batch: n_threads, adapts: false, ..options.clone() };
            logits(&model, &threads, pruning, n)
        };
        assert!(run(1) == run(2), "{}, {kernels:?}, pruned: {}", path.display(), pruning.is_some());
    }
}

#[test]
fn smollm2_computes_the_same_with_any_number_of_threads() {
    let _turn = turn();
    let options = Options { n_ctx: Some(1024), n_ubatch: 128, ..Options::new(1) };
    compare(&smollm2(), Kernels::Native, &options, 600);
    compare(&smollm2(), Kernels::Ggml, &options, 200);
    // ggml's flash attention of one query divides the sums over 512 cells and more by threads: there their number stays as it is.
    compare(&smollm2(), Kernels::Ggml, &Options { flash_attn: false, ..options.clone() }, 600);
    let cache = CacheType::Q8_0;
    compare(&smollm2(), Kernels::Ggml, &Options { cache_type_k: cache, cache_type_v: cache, ..options }, 600);
}

#[test]
fn random_models_compute_the_same_with_any_number_of_threads() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let options = Options { n_ctx: Some(512), n_ubatch: 64, ..Options::new(1) };
    for arch in Arch::ALL {
        for (kernels, ty) in [(Kernels::Native, Type::Q4_K), (Kernels::Ggml, Type::Q4_0), (Kernels::Ggml, Type::F16)] {
            let path = dir.path().join(format!("{}-{ty}.gguf", arch.name()));
            Forge { arch, ..Forge::tiny(ty, 4, 2) }.write(&path);
            compare(&path, kernels, &options, 100);
        }
    }
}
