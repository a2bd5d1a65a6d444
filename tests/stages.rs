//! The stages of the pass have two forms: operations of our own, which the CPU computes, and operations that every backend of ggml has, which
//! a GPU computes. Both choose the same units and make the same results. On a machine with a GPU that pp-run was built for, the second form
//! runs there, too.

mod common;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use common::forge::{Arch, Forge};
use common::{nmse, turn};
use ggml::{Device, Type};
use pp_run::engine::{Options as ContextOptions, Session};
use pp_run::gguf::Gguf;
use pp_run::model::{Model, Options as ModelOptions};
use pp_run::prune::{
    self, BlockStats, Calibration, HistoryKind, LeftOut, MaskSource, Masks, Method, Metric, Options, Picker, Record,
    Reduced, Sources, Spread,
};
use pp_run::weights::{self, GpuOptions, Kernel, Kernels, Mlp};

/// Samples of a batch, the last of them shorter than the others.
const SEQS: [std::ops::Range<i32>; 3] = [300..340, 250..290, 310..341];

fn session<'m>(model: &'m Model, n_seq: usize) -> Session<'m> {
    let context = ContextOptions { n_ctx: Some(256), ..ContextOptions::new(2) };
    Session::new(model, &context, n_seq, n_seq * 64, Arc::new(AtomicBool::new(false))).unwrap()
}

/// What a model does on other texts.
fn calibration(model: &Model) -> Calibration {
    let mut session = session(model, 2);
    let texts: [Vec<i32>; 2] = [(100..236).collect(), (120..256).rev().collect()];
    let moments = session.moments(&[&texts[0], &texts[1]], true).unwrap();
    let stats = moments.into_iter().map(|(block, m)| {
        let variance = m.energy.iter().zip(&m.mean).map(|(e, m)| e - m * m).collect::<Vec<f32>>();
        let stats = BlockStats {
            mean_as_coded: m.mean.clone(),
            variance_as_coded: variance.clone(),
            variance,
            mean: m.mean,
            energy: m.energy,
            normalised: m.normalised,
            positions: m.positions,
        };
        (block, stats)
    });
    Calibration { n_seqs: 2, seq_len: 136, batch: 2, text: String::new(), blocks: stats.collect(), costs: None }
}

/// What a run did: the records of its two sessions, and all results.
struct Run {
    records: [Vec<Record>; 2],
    results: Vec<f32>,
}

/// Two batches of texts side by side, then a conversation of two turns; by the masks of `replay`, if it is given.
fn run(model: &Model, options: &Options, calibration: &Calibration, replay: Option<&[Vec<Record>; 2]>) -> Run {
    let set = |session: &mut Session, replay: Option<&Vec<Record>>| {
        let sources = Sources { calibration: Some((calibration, 1)), replay: replay.cloned(), ..Sources::default() };
        let setup = prune::prepare(options, model.dims(), model.layers(), sources, 2).unwrap();
        session.set_pruning(Some(setup)).unwrap();
    };
    let mut results = Vec::new();
    let mut texts = session(model, SEQS.len());
    set(&mut texts, replay.map(|r| &r[0]));
    for shift in [0, 37] {
        let seqs = SEQS.map(|s| s.map(|t| t + shift).collect::<Vec<i32>>());
        results.extend(texts.states(&seqs.each_ref().map(|s| &s[..]), 0, true).unwrap());
    }
    let mut turns = session(model, 1);
    set(&mut turns, replay.map(|r| &r[1]));
    for first in [300, 310] {
        let mut text = turns.tokens().to_vec();
        text.extend((0..60).map(|i| first + i));
        turns.sync(&text, &mut |_, _| {}).unwrap();
        results.extend(turns.logits());
        for i in 0..3 {
            turns.decode(400 + i).unwrap();
            results.extend(turns.logits());
        }
    }
    Run { records: [texts, turns].map(|s| s.records().unwrap().to_vec()), results }
}

/// The settings that stages differ by, for a model: where experts run whole, only attention can be pruned, and that is not much.
fn settings(model: &Model) -> Vec<(&'static str, Options)> {
    let has_experts = model.layers().iter().any(|l| matches!(l.mlp, Mlp::Experts(_)));
    let ratio = if has_experts { 0.1 } else { 0.4 };
    let dump = || Some("-".into());
    let base = || Options { dump: dump(), skip: 1, min_tokens: Some(2), ..Options::new(ratio) };
    let paper = || Options { dump: dump(), skip: 1, min_tokens: Some(2), ..Options::paper(ratio) };
    let mut settings = vec![
        ("uniform, answers", Options { spread: Spread::Uniform, answer: ratio, ..base() }),
        ("calibrated prior", Options { spread: Spread::Paper, metric: Metric::Normalised, ..base() }),
        ("paper", Options { answer: ratio, ..paper() }),
        ("paper, few tokens, two samples", Options { tokens: 0.1, samples: 0.5, ..paper() }),
        ("paper, even rows", Options { picker: Picker::Even, ..paper() }),
        ("channels", Options { history: HistoryKind::Channel, ..paper() }),
        ("no history", Options { history: HistoryKind::None, ..paper() }),
        ("whole batch", Options { method: Method::FullBatch, ..paper() }),
        ("wanda-sp", Options { method: Method::WandaSp, ..paper() }),
        ("flap", Options { method: Method::Flap, ..paper() }),
        ("MLPs", Options { mlp_only: true, picker: Picker::Residual, ..base() }),
    ];
    settings.retain(|(_, options)| !(options.mlp_only && has_experts));
    settings
}

/// The first block of each session of which two runs kept other units: how many, and of how many. From there on they compute other things.
fn first_difference(a: &Run, b: &Run) -> Vec<[usize; 2]> {
    let of_session = |(a, b): (&Vec<Record>, &Vec<Record>)| {
        a.iter().zip(b).find_map(|(a, b)| {
            assert!(a.kept.keys().eq(b.kept.keys()));
            a.kept.values().zip(b.kept.values()).find_map(|(kept, others)| {
                assert!(kept.len() == others.len() && others.is_sorted());
                let n = kept.iter().filter(|k| others.binary_search(k).is_err()).count();
                (n > 0).then_some([n, kept.len()])
            })
        })
    };
    a.records.iter().zip(&b.records).filter_map(of_session).collect()
}

/// A model with so many layers on a GPU.
fn load(path: &Path, kernels: Kernels, n_gpu_layers: u32) -> Model {
    let gguf = Arc::new(Gguf::open(path).unwrap());
    let gpu = GpuOptions { n_layers: Some(n_gpu_layers), ..GpuOptions::default() };
    let weights = weights::Options { gpu, kernels, ..Default::default() };
    let options = ModelOptions { weights, ..ModelOptions::new(path) };
    Model::load(gguf, &options, 2, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// Compares a model with the one whose blocks take operations of our own: the largest share of a block's units that may differ, where it may
/// be one in any case, and the largest error.
fn compare(name: &str, own: &Model, stock: &Model, most_units: Option<f64>, most_error: f64) {
    let calibration = calibration(own);
    let of_stock = self::calibration(stock);
    for (block, stats) in &calibration.blocks {
        let other = &of_stock.blocks[block];
        let pairs = [
            (&stats.energy, &other.energy),
            (&stats.mean, &other.mean),
            (&stats.normalised, &other.normalised),
            (&stats.positions, &other.positions),
        ];
        for (i, (a, b)) in pairs.into_iter().enumerate() {
            let error = nmse(b, a);
            assert!(error < most_error, "{name}: {block:?}: moments {i} differ by {error:e}");
        }
    }
    // Types of weights differ in how rows and columns are gathered, and some layers on a GPU in where its first one begins: a few settings
    // show that.
    let is_type = |ty| own.layers()[0].attn.q.weight.rows.ty() == ty;
    let is_whole = stock.layers().iter().all(|l| l.attn.q.weight.kernel == Kernel::Stock);
    let step = if is_type(Type::F32) && is_whole { 1 } else { 4 };
    for (setting, options) in settings(own).into_iter().step_by(step) {
        let a = run(own, &options, &calibration, None);
        let differ = first_difference(&a, &run(stock, &options, &calibration, None));
        // What both kept in one run decides about the next layer: results are of the same units.
        let replayed = Options { method: Method::Pp, history: HistoryKind::None, ..options.clone() };
        let again = |model| run(model, &replayed, &calibration, Some(&a.records));
        let error = nmse(&again(stock).results, &again(own).results);
        eprintln!("{name}, {setting}: {differ:?} units differ, NMSE {error:.2e}");
        assert!(!a.records[0][0].kept.is_empty(), "{name}, {setting}");
        let may = |&[n, of]: &[usize; 2]| most_units.is_some_and(|most| n == 1 || n as f64 <= most * of as f64);
        assert!(differ.iter().all(may) && error < most_error, "{name}, {setting}: {differ:?}, NMSE {error:e}");
    }
}

/// The models: several heads to a key or one, widths that no word of 32 bits divides a row of, types of weights, and architectures with
/// operations of their own.
fn models() -> Vec<(String, Forge)> {
    let mut models = Vec::new();
    for (ty, n_head_kv) in
        [(Type::F32, 8), (Type::F32, 2), (Type::Q4_0, 8), (Type::Q4_K, 2), (Type::Q6_K, 2), (Type::Q8_0, 2)]
    {
        let forge = Forge { n_layer: 3, biases: n_head_kv == 2, ..Forge::tiny(ty, 8, n_head_kv) };
        models.push((format!("{} {n_head_kv}", ty.name()), forge));
    }
    let odd = Forge { n_embd: 96, n_ff: 160, n_layer: 3, ..Forge::tiny(Type::Q4_0, 6, 3) };
    models.push(("odd".to_owned(), odd));
    models.push(("opt".to_owned(), Forge { arch: Arch::Opt, n_layer: 3, ..Forge::tiny(Type::F32, 8, 8) }));
    for arch in [Arch::Gemma3, Arch::Mistral3, Arch::Qwen3Moe, Arch::GptOss] {
        models.push((arch.name().to_owned(), Forge { arch, n_layer: 3, ..Forge::tiny(Type::F32, 8, 2) }));
    }
    models
}

/// What blocks of ggml's operations have copies of is counted before they are made: at least as much as they take, and not many times as much.
#[test]
fn copies_take_what_was_counted() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    for (name, forge) in models() {
        let path = dir.path().join("model.gguf");
        forge.write(&path);
        let model = load(&path, Kernels::Stock, 0);
        let calibration = calibration(&model);
        for (setting, options) in settings(&model) {
            let sources = Sources { calibration: Some((&calibration, 1)), ..Sources::default() };
            let mut setup = prune::prepare(&options, model.dims(), model.layers(), sources, 1).unwrap();
            let mut taken = 0;
            let masks: Masks = match &mut setup.source {
                MaskSource::Fixed(masks, _) => std::mem::take(masks),
                _ => {
                    setup.pruning.reside(model.layers(), model.placement(), 1).unwrap();
                    for (store, block) in setup.pruning.plan.blocks().filter_map(|b| setup.pruning.resident(b)) {
                        let ids = [block.constants, block.prior, block.history, Some(block.columns)];
                        taken += ids.into_iter().flatten().map(|id| store.n_bytes(id) as u64).sum::<u64>();
                    }
                    let plan = setup.pruning.answer_plan.as_ref();
                    let first = |b| Some((b, (0..plan?.kept(b)? as i32).collect()));
                    setup.pruning.plan.blocks().filter_map(first).collect()
                }
            };
            if !masks.is_empty() {
                let reduced = Reduced::new(model.layers(), model.placement(), &masks, &LeftOut::new(), 1).unwrap();
                taken += reduced.n_bytes();
            }
            let counted = prune::copies(model.layers(), model.placement(), &options, 136).total();
            assert!(taken > 0 && taken <= counted, "{name}, {setting}: {taken} of {counted} bytes");
            // A plan may leave half of the blocks whole, or half of their units.
            assert!(counted < 4 * taken, "{name}, {setting}: {taken} of {counted} bytes");
        }
    }
}

/// In how many parts, each on one device, the graph of a prompt runs, pruned or dense.
fn parts(model: &Model, options: Option<&Options>, calibration: &Calibration) -> usize {
    let mut session = session(model, 1);
    let sources = Sources { calibration: Some((calibration, 1)), ..Sources::default() };
    let prepare = |options| prune::prepare(options, model.dims(), model.layers(), sources, 2).unwrap();
    session.set_pruning(options.map(prepare)).unwrap();
    session.trace();
    session.sync(&(300..360).collect::<Vec<i32>>(), &mut |_, _| {}).unwrap();
    session.traced().last().unwrap().n_parts
}

#[test]
fn both_forms_compute_the_same() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    for (name, forge) in models() {
        let path = dir.path().join("model.gguf");
        forge.write(&path);
        // Quantised weights are multiplied with activations in 8 bits, but columns with floats; and what rounding decides in one layer
        // changes the next one's scores.
        let (units, error) = if forge.ty == Type::F32 { (None, 1e-6) } else { (Some(0.03), 1e-3) };
        compare(&name, &load(&path, Kernels::Ggml, 0), &load(&path, Kernels::Stock, 0), units, error);
    }
}

/// Compares models on a GPU, if there is one, with the CPU.
fn compare_on_gpu(models: impl Iterator<Item = (String, Forge)>) {
    let _turn = turn();
    if Device::gpus().is_empty() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (name, forge) in models {
        let path = dir.path().join("model.gguf");
        forge.write(&path);
        let own = load(&path, Kernels::Ggml, 0);
        let (all, stats) = (load(&path, Kernels::Auto, u32::MAX), calibration(&own));
        let dense = parts(&all, None, &stats);
        for (setting, options) in settings(&own).iter().filter(|(_, o)| o.method.looks_at_batch()) {
            assert_eq!(parts(&all, Some(options), &stats), dense, "{name}, {setting}: parts of a graph");
        }
        // The CPU multiplies quantised weights with activations in 8 bits, GPUs with 16-bit floats; and what rounds otherwise may make a router
        // choose another expert.
        let error = match forge.ty {
            _ if has_experts(&forge) => 5e-2,
            Type::F32 => 1e-4,
            _ => 1e-2,
        };
        for n in [forge.n_layer as u32 + 1, 2, 1] {
            // Layers on the CPU come first, and none of their operations is moved to the GPU.
            assert_eq!(parts(&load(&path, Kernels::Ggml, n), None, &stats), dense, "{name}, {n} on the GPU: parts");
            compare(&format!("{name}, {n} on the GPU"), &own, &load(&path, Kernels::Auto, n), Some(0.05), error);
        }
    }
}

fn has_experts(forge: &Forge) -> bool {
    matches!(forge.arch, Arch::Qwen3Moe | Arch::GptOss)
}

#[test]
fn a_gpu_computes_the_same() {
    compare_on_gpu(models().into_iter().filter(|(_, forge)| !has_experts(forge)));
}

/// A test of their own, as they end the process of Debian 12's software device.
#[test]
fn a_gpu_computes_experts_the_same() {
    compare_on_gpu(models().into_iter().filter(|(_, forge)| has_experts(forge)));
}
