//! Our graphs against libllama's, in one process, on the same files with the same settings.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use common::forge::{Arch, Forge, RopeKind, mxfp4, of_each_kind};
use common::{argmax, gemma3, load, n_gpu_layers, nmse, session, smollm2, tokenizer, turn};
use ggml::Type;
use ggml::llama::{Context, ContextParams, Model as LlamaModel};
use pp_run::engine::Options as ContextOptions;
use pp_run::engine::Session;
use pp_run::gguf::Gguf;
use pp_run::graph::CacheType;
use pp_run::tokenizer::Tokenizer;

/// The agreement that is asked for.
const MAX_NMSE: f64 = 1e-6;

fn options() -> ContextOptions {
    ContextOptions { n_ctx: Some(2048), ..ContextOptions::new(2) }
}

/// libllama's settings for the same run.
fn llama_params(options: &ContextOptions, n_seq_max: u32) -> ContextParams {
    ContextParams {
        n_ctx: options.n_ctx.unwrap() * n_seq_max,
        n_batch: options.n_batch,
        n_ubatch: options.n_ubatch,
        n_seq_max,
        n_threads: options.n_threads as u32,
        n_threads_batch: options.n_threads_batch as u32,
        type_k: options.cache_type_k.tensor_type(),
        type_v: options.cache_type_v.tensor_type(),
        flash_attn: options.flash_attn,
    }
}

/// libllama's logits after a prompt, and after each of `n_decode` tokens: those of `answer`, or the most likely ones.
fn logits(theirs: &mut Context, prompt: &[i32], answer: Option<&[i32]>, n_decode: usize) -> Vec<Vec<f32>> {
    theirs.clear();
    let batch: Vec<_> = prompt.iter().enumerate().map(|(i, &t)| (t, i as i32, 0, i + 1 == prompt.len())).collect();
    assert!(theirs.decode(&batch), "libllama reads the prompt");
    let mut logits = vec![theirs.logits(prompt.len() - 1).unwrap().to_vec()];
    for i in 0..n_decode {
        let token = answer.map_or_else(|| argmax(&logits[i]), |answer| answer[i]);
        assert!(theirs.decode(&[(token, (prompt.len() + i) as i32, 0, true)]));
        logits.push(theirs.logits(0).unwrap().to_vec());
    }
    theirs.pause();
    logits
}

/// Prefills, then decodes `n_decode` tokens greedily: tokens must be identical and logits agree at every step. A GPU rounds a product by how
/// many rows are multiplied at once and by what it computes in one go with it, mostly to 16-bit floats, so two graphs of a model agree less there:
/// within 1e-5, or a quarter of the error that libllama's logits have against its own on the CPU.
fn compare(path: &Path, options: &ContextOptions, prompts: &[Vec<i32>], n_decode: usize) {
    let model = load(path);
    let mut ours = session(&model, options);
    let params = llama_params(options, 1);
    let llama = LlamaModel::load(path, n_gpu_layers()).unwrap();
    let mut theirs = Context::new(&llama, &params).unwrap();
    let plain = (n_gpu_layers() > 0).then(|| LlamaModel::load(path, 0).unwrap());
    let mut on_cpu = plain.as_ref().map(|model| Context::new(model, &params).unwrap());
    for (number, prompt) in prompts.iter().enumerate() {
        let wanted = logits(&mut theirs, prompt, None, n_decode);
        let answer: Vec<i32> = wanted.iter().map(|logits| argmax(logits)).collect();
        let error_there = on_cpu
            .as_mut()
            .map_or(0.0, |context| nmse(&wanted.concat(), &logits(context, prompt, Some(&answer), n_decode).concat()));
        let most = if on_cpu.is_some() { f64::max(1e-5, error_there / 4.0) } else { MAX_NMSE };
        ours.rewind(0);
        ours.sync(prompt, &mut |_, _| {}).unwrap();
        for (step, (want, &token)) in wanted.iter().zip(&answer).enumerate() {
            let got = ours.logits();
            let error = nmse(got, want);
            assert!(error < most, "{}: prompt {number}, step {step}: NMSE {error:e}", path.display());
            // Where two tokens are as likely as the allowed error, either is right.
            let size = want.iter().map(|x| x * x).sum::<f32>() / want.len() as f32;
            let tie = if most > MAX_NMSE { 8.0 * (most as f32 * size).sqrt() } else { 0.0 };
            let behind = want[token as usize] - want[argmax(got) as usize];
            assert!(behind <= tie, "{}: prompt {number}, step {step}", path.display());
            if step < n_decode {
                ours.decode(token).unwrap();
            }
        }
        ours.pause();
    }
}

fn smollm2_prompts() -> Vec<Vec<i32>> {
    let (_, tokenizer) = tokenizer();
    let long = "The committee met again on Tuesday and could not agree on the colour of the bridge. ".repeat(75);
    let texts = [
        "The capital of France is",
        "Write a haiku about the sea.",
        "fn main() {\n    let numbers = vec![1, 2, 3];\n",
        "Größe, naïveté, 日本語のテキスト, Привет 👋🏽 — and then",
        "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
        "1, 1, 2, 3, 5, 8, 13,",
        "Once upon a time, there was a little girl who lived in a village near the forest.",
        &long,
    ];
    let mut prompts: Vec<Vec<i32>> = texts.iter().map(|t| tokenizer.encode(t, true, true).unwrap()).collect();
    assert!(prompts.last().unwrap().len() > 2 * 512, "longer than two micro-batches");
    prompts.push(vec![28]);
    prompts
}

#[test]
fn smollm2_agrees_with_libllama() {
    let _turn = turn();
    compare(&smollm2(), &options(), &smollm2_prompts(), 128);
}

#[test]
fn gemma3_agrees_with_libllama() {
    let _turn = turn();
    let path = gemma3();
    let tokenizer = Tokenizer::load(&Gguf::open(&path).unwrap()).unwrap();
    // The last one is longer than the window of 512 tokens, and than two micro-batches.
    let long = "The committee met again on Tuesday and could not agree on the colour of the bridge. ".repeat(75);
    let prompts: Vec<Vec<i32>> = ["The capital of France is", "Größe, naïveté, 日本語のテキスト, Привет 👋🏽", &long]
        .map(|t| tokenizer.encode(t, true, true).unwrap())
        .to_vec();
    assert!(prompts[2].len() > 2 * 512);
    compare(&path, &options(), &prompts, 64);
    compare(&path, &ContextOptions { flash_attn: false, ..options() }, &prompts[1..], 16);
}

#[test]
fn smollm2_agrees_without_flash_attention_and_with_other_caches() {
    let _turn = turn();
    let path = smollm2();
    let prompts: Vec<_> = smollm2_prompts().into_iter().skip(6).collect();
    let off = ContextOptions { flash_attn: false, ..options() };
    compare(&path, &off, &prompts, 32);
    for ty in [CacheType::F32, CacheType::Q8_0] {
        let o = ContextOptions { cache_type_k: ty, cache_type_v: ty, ..options() };
        compare(&path, &o, &prompts, 32);
    }
    let mixed = ContextOptions { cache_type_k: CacheType::Q8_0, flash_attn: false, ..options() };
    compare(&path, &mixed, &prompts, 32);
}

/// What earlier sessions left in memory, on a GPU above all, has no part in what later ones compute.
#[test]
fn smollm2_agrees_in_memory_that_others_left() {
    let _turn = turn();
    let path = smollm2();
    let (model, llama) = (load(&path), LlamaModel::load(&path, n_gpu_layers()).unwrap());
    // See `compare` for what a GPU rounds.
    let most = if n_gpu_layers() > 0 { 1e-4 } else { MAX_NMSE };
    let prompt = smollm2_prompts().swap_remove(6);
    for _ in 0..2 {
        for flash_attn in [false, true] {
            for type_k in [CacheType::F16, CacheType::F32, CacheType::Q8_0] {
                let o = ContextOptions { flash_attn, cache_type_k: type_k, ..options() };
                let mut ours = session(&model, &o);
                ours.sync(&prompt, &mut |_, _| {}).unwrap();
                ours.pause();
                let mut theirs = Context::new(&llama, &llama_params(&o, 1)).unwrap();
                let error = nmse(ours.logits(), &logits(&mut theirs, &prompt, None, 0)[0]);
                assert!(error < most, "flash attention {flash_attn}, keys in {type_k:?}: NMSE {error:e}");
            }
        }
    }
}

/// Of a cache in few bits an element that lies between two codes may become one with us and the other with libllama, as sums round otherwise in their
/// last bits. Such an element is wrong by a step of its type, as any quantised one may be: if one in `n` is, logits differ by an `n`-th of what the
/// type costs at all, which is how far libllama's own logits are from those with a cache in f16. One in a hundred is allowed; that rotations,
/// scales or codes are not those of ggml would cost as much as the type does, or more.
#[test]
fn smollm2_agrees_with_caches_in_few_bits() {
    let _turn = turn();
    let path = smollm2();
    let (model, llama) = (load(&path), LlamaModel::load(&path, n_gpu_layers()).unwrap());
    // See `compare` for what a GPU rounds.
    let least = if n_gpu_layers() > 0 { 1e-5 } else { MAX_NMSE };
    let prompt = smollm2_prompts().swap_remove(6);
    let (prompt, answer) = prompt.split_at(prompt.len() - 6);
    let of_type = |o: &ContextOptions| {
        let mut theirs = Context::new(&llama, &llama_params(o, 1)).unwrap();
        logits(&mut theirs, prompt, Some(answer), answer.len()).concat()
    };
    // One thread: the text is short, and threads that wait for each other take longer.
    let of = |ty| ContextOptions { n_ctx: Some(256), cache_type_k: ty, cache_type_v: ty, ..ContextOptions::new(1) };
    let in_f16 = of_type(&of(CacheType::F16));
    for ty in CacheType::ALL {
        let o = of(ty);
        let want = of_type(&o);
        let mut ours = session(&model, &o);
        ours.sync(prompt, &mut |_, _| {}).unwrap();
        let mut got = ours.logits().to_vec();
        for &token in answer {
            ours.decode(token).unwrap();
            got.extend(ours.logits());
        }
        ours.pause();
        let (error, cost) = (nmse(&got, &want), nmse(&want, &in_f16));
        assert!(error < least.max(cost / 100.0), "{}: NMSE {error:e}, the type costs {cost:e}", ty.name());
    }
}

/// Tokens that a random model has all of.
fn random_prompts(n_vocab: usize) -> Vec<Vec<i32>> {
    let prompt = |n: usize, step: usize| (0..n).map(|i| ((i * step + 7) % n_vocab) as i32).collect();
    vec![prompt(1, 1), prompt(17, 5), prompt(70, 31), prompt(300, 101)]
}

fn compare_forged(forge: &Forge, options: &ContextOptions) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(format!("{}-{}-{}.gguf", forge.ty.name(), forge.n_head, forge.n_head_kv));
    forge.write(&path);
    compare(&path, options, &random_prompts(forge.n_vocab), 32);
}

const TYPES: [Type; 8] = [Type::F32, Type::F16, Type::Q8_0, Type::Q4_0, Type::Q4_1, Type::Q5_0, Type::Q4_K, Type::Q6_K];

/// Micro-batches of 128, so that the longest prompt takes three.
fn small_options() -> ContextOptions {
    ContextOptions { n_ctx: Some(512), n_ubatch: 128, ..ContextOptions::new(2) }
}

#[test]
fn random_models_agree_for_every_weight_type() {
    let _turn = turn();
    for ty in TYPES {
        for n_head_kv in [4, 2] {
            compare_forged(&Forge::tiny(ty, 4, n_head_kv), &small_options());
        }
    }
}

/// The types beyond the ones above that ggml can make without an importance matrix.
#[test]
fn random_models_agree_for_rarer_weight_types() {
    let _turn = turn();
    let mut seen = 0;
    for ty in (0..64).filter_map(Type::from_id).filter(|t| *t == Type::BF16 || ggml::can_quantize(*t)) {
        if TYPES.contains(&ty) {
            continue;
        }
        seen += 1;
        compare_forged(&Forge::tiny(ty, 4, 2), &small_options());
    }
    assert!(seen >= 9, "{seen}");
}

#[test]
fn random_models_agree_for_every_variant() {
    let _turn = turn();
    let base = Forge::tiny(Type::Q4_0, 8, 2);
    for tied in [false, true] {
        for biases in [false, true] {
            for rope in [RopeKind::Plain, RopeKind::Linear, RopeKind::Yarn, RopeKind::Llama3] {
                compare_forged(&Forge { tied, biases, rope, ..base.clone() }, &small_options());
            }
        }
    }
}

#[test]
fn random_models_of_every_architecture_agree() {
    let _turn = turn();
    for arch in Arch::ALL {
        for tied in [false, true] {
            for (ty, n_head_kv) in [(Type::F32, 4), (Type::Q4_0, 2)] {
                compare_forged(&Forge { arch, tied, ..Forge::tiny(ty, 4, n_head_kv) }, &small_options());
            }
            // Rows of 384 have no whole blocks of 256: their types are others. Small models are tied, too.
            let n_embd = if tied { 384 } else { 256 };
            let mixed = Forge { arch, tied, n_embd, is_q4_k_m: true, ..Forge::tiny(Type::Q4_K, 4, 1) };
            compare_forged(&mixed, &small_options());
        }
        for rope in [RopeKind::Linear, RopeKind::Yarn] {
            compare_forged(&Forge { arch, rope, ..Forge::tiny(Type::F16, 4, 2) }, &small_options());
        }
        // Layers of each kind, and a window that is longer than the prompts.
        let deep = Forge { arch, n_layer: 5, ..Forge::tiny(Type::Q8_0, 4, 2) };
        compare_forged(&deep, &small_options());
        compare_forged(&Forge { window: 400, ..deep }, &small_options());
        // A context for which phi3 has other frequencies.
        compare_forged(
            &Forge { arch, ..Forge::tiny(Type::F16, 4, 2) },
            &ContextOptions { n_ctx: Some(1024), ..small_options() },
        );
        let cache = CacheType::Q8_0;
        let options = ContextOptions { cache_type_k: cache, cache_type_v: cache, ..small_options() };
        compare_forged(&Forge { arch, ..Forge::tiny(Type::F16, 4, 2) }, &options);
        compare_forged(
            &Forge { arch, ..Forge::tiny(Type::F16, 4, 2) },
            &ContextOptions { flash_attn: false, ..small_options() },
        );
    }
    // The types of gpt-oss' experts, and a prompt that is read in more than one micro-batch.
    compare_forged(&Forge { arch: Arch::GptOss, n_layer: 3, ..Forge::tiny(mxfp4(), 4, 2) }, &small_options());
    // Qwen 3's heads are wider than their share of the embedding.
    let wide = Forge { arch: Arch::Qwen3, n_embd_head: Some(128), ..Forge::tiny(Type::Q4_0, 4, 2) };
    compare_forged(&wide, &small_options());
}

#[test]
fn random_models_agree_for_every_cache() {
    let _turn = turn();
    // Heads of 128, 64 and 32: what rotations of quantised caches depend on.
    for n_head in [2, 4, 8] {
        let forge = Forge::tiny(Type::F16, n_head, 2);
        for ty in [CacheType::F16, CacheType::F32, CacheType::Q8_0] {
            let o = ContextOptions { cache_type_k: ty, cache_type_v: ty, ..small_options() };
            compare_forged(&forge, &o);
            if ty != CacheType::Q8_0 {
                compare_forged(&forge, &ContextOptions { flash_attn: false, ..o });
            }
        }
    }
}

/// OPT, which libllama does not know, against Hugging Face's implementation: `tests/tools/opt` stored its logits.
#[test]
fn opt_agrees_with_hugging_face() {
    let _turn = turn();
    // A GPU's products are of 16-bit floats.
    let most = if n_gpu_layers() > 0 { 1e-2 } else { 1e-4 };
    let figures: Vec<serde_json::Value> = serde_json::from_str(include_str!("golden/opt.json")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("opt.gguf");
    let (_, forge) = of_each_kind().into_iter().find(|(name, _)| *name == "opt-f32").unwrap();
    forge.write(&path);
    let model = load(&path);
    for flash_attn in [true, false] {
        // Keys in 32 bits, as theirs.
        let cache = CacheType::F32;
        let options = ContextOptions {
            cache_type_k: cache,
            cache_type_v: cache,
            flash_attn,
            exact: true,
            n_ubatch: 128,
            ..options()
        };
        let mut session = session(&model, &options);
        for figure in &figures {
            let numbers = |key: &str| figure[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap());
            let prompt: Vec<i32> = numbers("prompt").map(|t| t as i32).collect();
            let want: Vec<f64> = numbers("logits").collect();
            let largest = want.iter().fold(0.0f64, |a, x| a.max(x.abs()));
            session.rewind(0);
            session.sync(&prompt, &mut |_, _| {}).unwrap();
            for (i, (got, want)) in session.logits().iter().zip(&want).enumerate() {
                let error = (f64::from(*got) - want).abs() / largest;
                assert!(error < most, "{} tokens, logit {i}: {got}, not {want}", prompt.len());
            }
        }
    }
}

#[test]
fn sequences_side_by_side_agree_with_libllama() {
    let _turn = turn();
    let path = smollm2();
    let text = smollm2_prompts().swap_remove(7);
    let seqs: Vec<&[i32]> = text.chunks_exact(300).take(3).collect();
    for flash_attn in [true, false] {
        let options = ContextOptions { n_ctx: Some(512), n_ubatch: 512, flash_attn, ..ContextOptions::new(2) };
        let model = load(&path);
        let mut ours = Session::new(&model, &options, 4, 512, Arc::new(AtomicBool::new(false))).unwrap();
        let llama = LlamaModel::load(&path, n_gpu_layers()).unwrap();
        let mut theirs = Context::new(&llama, &llama_params(&options, 1)).unwrap();
        let first = 150;
        let mut want = Vec::new();
        for seq in &seqs {
            theirs.clear();
            let batch: Vec<_> = seq.iter().enumerate().map(|(i, &t)| (t, i as i32, 0, i >= first)).collect();
            assert!(theirs.decode(&batch));
            theirs.pause();
            want.push((first..300).map(|i| theirs.logits(i).unwrap().to_vec()).collect::<Vec<_>>());
        }
        let states = ours.states(&seqs, first, false).unwrap();
        let rows = ours.outputs(&states).unwrap();
        assert_eq!(rows.len(), seqs.len() * (300 - first) * model.n_vocab());
        for (i, row) in rows.chunks_exact(model.n_vocab()).enumerate() {
            let (seq, pos) = (i / (300 - first), i % (300 - first));
            let error = nmse(row, &want[seq][pos]);
            assert!(error < MAX_NMSE, "sequence {seq}, position {}: NMSE {error:e}", first + pos);
        }
    }
}
