//! Batches of any rows: what a token computes does not depend on what is computed beside it.

mod common;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use common::forge::{Arch, Forge};
use common::{load_for, n_gpu_layers, nmse, session};
use ggml::Type;
use pp_run::engine::{Engine, Options, context_needs};
use pp_run::gguf::Gguf;
use pp_run::graph::{Batch, CacheType, Results, Row};
use pp_run::model::{Model, Options as ModelOptions, RopeOptions};
use pp_run::prune::Pass;
use pp_run::weights::{self, GpuOptions, Kernels};

/// Some tokens of a random model.
fn text(n: usize, step: usize) -> Vec<i32> {
    (0..n).map(|i| ((i * step + 7) % 512) as i32).collect()
}

/// Rows of a sequence from position `first` on, of which the last is wanted.
fn rows(tokens: &[i32], first: usize, seq: usize) -> Vec<Row> {
    let row = |(i, &token)| Row { token, pos: first + i, seq, wanted: i + 1 == tokens.len() };
    tokens.iter().enumerate().map(row).collect()
}

fn engine<'m>(model: &'m Model, options: &Options, n_seq: usize) -> Engine<'m> {
    Engine::new(model, options, n_seq, n_seq, Arc::new(AtomicBool::new(false))).unwrap()
}

/// Logits of the rows that are wanted, one after the other.
fn run(engine: &mut Engine, rows: Vec<Row>) -> Vec<Vec<f32>> {
    let n = rows.iter().filter(|r| r.wanted).count();
    let batch = Batch { rows, ..Batch::of_pieces(&[], 0, 0..0, Results::Logits) };
    engine.run(&batch, Pass::Dense, None, false).unwrap();
    let mut logits = vec![0.0; n * engine.model.n_vocab()];
    engine.results(&mut logits);
    logits.chunks_exact(engine.model.n_vocab()).map(<[f32]>::to_vec).collect()
}

/// Two texts in one cache, in pieces that are of different lengths and at different positions, against each alone.
fn compare(forge: &Forge, kernels: Kernels, options: &Options, most: f64) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    forge.write(&path);
    let model = load_for(&path, kernels, RopeOptions::default());
    // No piece is of so few tokens that other kernels compute it.
    let (a, b) = (text(300, 31), text(50, 5));
    let alone = |text: &[i32], at: [usize; 2]| {
        let mut engine = engine(&model, options, 1);
        let first = run(&mut engine, rows(&text[..at[0]], 0, 0)).remove(0);
        let second = run(&mut engine, rows(&text[at[0]..at[1]], at[0], 0)).remove(0);
        engine.executor.pause();
        [first, second]
    };
    let (a_alone, b_alone) = (alone(&a, [280, 300]), alone(&b, [30, 50]));
    let mut both = engine(&model, options, 3);
    // The cache has three sequences. The batch has rows of the last one and then of the first one; the second stays empty.
    let first = run(&mut both, [rows(&b[..30], 0, 2), rows(&a[..280], 0, 0)].concat());
    let second = run(&mut both, [rows(&a[280..], 280, 0), rows(&b[30..], 30, 2)].concat());
    both.executor.pause();
    for (got, want) in
        [(&first[0], &b_alone[0]), (&first[1], &a_alone[0]), (&second[0], &a_alone[1]), (&second[1], &b_alone[1])]
    {
        let error = nmse(got, want);
        assert!(error < most, "{} {}, {kernels:?}: NMSE {error:e}", forge.arch.name(), forge.ty);
    }
}

#[test]
fn rows_of_any_sequences_at_any_positions() {
    let small = Options { n_ctx: Some(512), ..Options::new(2) };
    for arch in Arch::ALL.into_iter().chain([Arch::Opt]) {
        compare(&Forge { arch, ..Forge::tiny(Type::F32, 4, 2) }, Kernels::Ggml, &small, 1e-9);
        // All experts: which are chosen of many, rounding may decide otherwise.
        compare(&Forge { arch, experts: [4, 4], ..Forge::tiny(Type::Q4_0, 4, 2) }, Kernels::Native, &small, 1e-9);
    }
    let forge = Forge::tiny(Type::F32, 4, 4);
    compare(&forge, Kernels::Ggml, &Options { flash_attn: false, ..small.clone() }, 1e-9);
    let cache = CacheType::Q8_0;
    compare(&forge, Kernels::Ggml, &Options { cache_type_k: cache, cache_type_v: cache, ..small }, 1e-9);
}

#[test]
fn a_sketch_needs_what_the_model_needs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let options = Options { n_ctx: Some(300), ..Options::new(2) };
    for arch in Arch::ALL {
        Forge { arch, ..Forge::tiny(Type::Q4_0, 4, 2) }.write(&path);
        let gguf = Arc::new(Gguf::open(&path).unwrap());
        let model = load_for(&path, Kernels::Auto, RopeOptions::default());
        let gpu = GpuOptions { n_layers: Some(n_gpu_layers()), ..GpuOptions::default() };
        for no_mmap in [false, true] {
            let weights = weights::Options { no_mmap, gpu: gpu.clone(), ..Default::default() };
            let (sketch, needs) =
                Model::sketch(gguf.clone(), &ModelOptions { weights, ..ModelOptions::new(&path) }).unwrap();
            // In the file they take no memory, unless a device keeps them in a layout of its own.
            let (total, of_file) = (needs.total(), gguf.n_bytes());
            assert!(total <= 2 * of_file && (!no_mmap || total > of_file / 2), "{}: {total} of {of_file}", arch.name());
            if !no_mmap {
                let of = |model: &Model| context_needs(model, &options, &[]).unwrap().iter().collect::<Vec<_>>();
                assert_eq!(of(&sketch), of(&model), "{}", arch.name());
                assert!(of(&model).iter().any(|of_device| of_device.1 > 0));
            }
        }
    }
}

#[test]
fn steps_give_the_logits_of_single_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    for (ty, kernels, most) in [(Type::F32, Kernels::Ggml, 1e-6), (Type::Q4_0, Kernels::Native, 1e-3)] {
        Forge::tiny(ty, 4, 2).write(&path);
        let model = load_for(&path, kernels, RopeOptions::default());
        let mut session = session(&model, &Options { n_ctx: Some(256), ..Options::new(2) });
        let text = text(240, 31);
        session.sync(&text[..200], &mut |_, _| {}).unwrap();
        let mut singles = Vec::new();
        for &token in &text[200..] {
            session.decode(token).unwrap();
            singles.extend_from_slice(session.logits());
        }
        let mut logits = Vec::new();
        for n in [1, 2, 8, 9, 40] {
            session.rewind(200);
            session.decode_together(&text[200..200 + n], &mut logits).unwrap();
            assert_eq!((session.n_past(), logits.len()), (200 + n, n * model.n_vocab()));
            let error = nmse(&logits, &singles[..logits.len()]);
            assert!(error < most, "{n} tokens, {kernels:?}: NMSE {error:e}");
            assert_eq!(session.logits(), &logits[logits.len() - model.n_vocab()..]);
        }
        let full = session.decode_together(&text[..17], &mut logits).unwrap_err();
        assert!(full.to_string().contains("the context of 256 tokens is full"), "{full}");
        assert_eq!(session.n_past(), 240);
        session.pause();
    }
}
